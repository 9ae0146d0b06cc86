"""The schedules against Eq. 16 and Sec. 4.2, by hand."""

import pytest

from lovasz_repro.training.schedule import poly, step


@pytest.mark.parametrize(
    ("iteration", "expected"),
    [(0, 2.5e-4), (10_000, 2.5e-4 * 0.5**0.9), (19_999, 2.5e-4 * (1 / 20_000) ** 0.9), (20_000, 0)],
)
def test_values_of_the_paper_s_schedule(iteration: int, expected: float) -> None:
    assert poly(2.5e-4, iteration, 20_000, 0.9) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("iteration", "iterations"), [(-1, 5), (6, 5), (0, 0)])
def test_outside_the_schedule_is_an_error(iteration: int, iterations: int) -> None:
    with pytest.raises(ValueError, match="outside the schedule"):
        poly(1.0, iteration, iterations)


@pytest.mark.parametrize(
    ("iteration", "iterations", "expected"),
    [(0, 2118, 5e-4), (1058, 2118, 5e-4), (1059, 2118, 1e-4), (2117, 2118, 1e-4), (1, 3, 5e-4),
     (2, 3, 1e-4)],
)  # fmt: skip
def test_the_second_epoch_has_a_fifth_of_the_rate(
    iteration: int, iterations: int, expected: float
) -> None:
    assert step(5e-4, iteration, iterations) == pytest.approx(expected, rel=1e-12)


def test_a_step_outside_the_schedule_is_an_error() -> None:
    with pytest.raises(ValueError, match="outside the schedule"):
        step(1.0, 4, 3)
