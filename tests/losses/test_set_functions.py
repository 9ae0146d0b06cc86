"""Set functions against Python sets (all subsets of up to five pixels) and exact fractions."""

from fractions import Fraction

import pytest
import torch

from lovasz_repro.losses import (
    CountFunction,
    Counts,
    HammingLoss,
    JaccardLoss,
    SetFunction,
    TverskyLoss,
)

TVERSKY = TverskyLoss(false_negative_weight=2.5, false_positive_weight=0.3)


def counts_of(
    mispredicted: frozenset[int], foreground: frozenset[int], pixels: int, dtype=torch.float64
) -> Counts:
    numbers = (
        len(mispredicted & foreground),
        len(mispredicted - foreground),
        len(foreground),
        pixels,
    )
    return Counts(*(torch.tensor(float(n), dtype=dtype) for n in numbers))


def value_of(
    function: SetFunction, mispredicted: frozenset[int], foreground: frozenset[int], pixels: int
) -> float:
    return float(function(counts_of(mispredicted, foreground, pixels)))


def dice_loss(fn: torch.Tensor, fp: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    return torch.where(size + fp > 0, (fn + fp) / (2 * size - fn + fp).clamp(min=1), 0.0)


def violation(function: SetFunction, pixels: int, subsets) -> tuple | None:
    """Two sets that contradict Definition 1 (Eq. 7), for any ground truth of that many pixels."""
    for foreground in subsets(pixels):
        value = {s: value_of(function, s, foreground, pixels) for s in subsets(pixels)}
        for a in value:
            for b in value:
                if value[a] + value[b] < value[a | b] + value[a & b] - 1e-12:
                    return foreground, a, b
    return None


@pytest.mark.parametrize("pixels", [1, 2, 3, 5])
def test_jaccard_is_one_minus_intersection_over_union(oracle, pixels: int) -> None:
    for foreground in oracle.subsets(pixels):
        loss = oracle.jaccard_loss(foreground)
        for mispredicted in oracle.subsets(pixels):
            expected = loss(mispredicted)
            assert value_of(JaccardLoss(), mispredicted, foreground, pixels) == pytest.approx(
                expected, abs=1e-15
            )
            plain = TverskyLoss(1.0, 1.0)
            assert value_of(plain, mispredicted, foreground, pixels) == pytest.approx(
                expected, abs=1e-15
            )


def test_hamming_is_the_share_of_mispredictions(oracle) -> None:
    for mispredicted in oracle.subsets(4):
        expected = len(mispredicted) / 4
        assert value_of(HammingLoss(), mispredicted, frozenset({1, 2}), 4) == expected


def test_tversky_of_hand_computed_sets() -> None:
    # Foreground {0, 1, 2}; 0 missed and 3 wrongly taken: TP = 2, D = 2 + 2.5 + 0.3.
    value = value_of(TVERSKY, frozenset({0, 3}), frozenset({0, 1, 2}), 5)
    assert value == pytest.approx(1 - 2 / 4.8)
    assert value_of(TVERSKY, frozenset(), frozenset(), 3) == 0
    assert value_of(TVERSKY, frozenset({1}), frozenset(), 3) == 1
    assert value_of(TverskyLoss(1.0, 0.0), frozenset({1}), frozenset(), 3) == 0


@pytest.mark.parametrize(
    "function",
    [
        JaccardLoss(),
        HammingLoss(),
        TVERSKY,
        TverskyLoss(1.0, 0.0),
        TverskyLoss(1.0, 4.0),
        TverskyLoss(3.0, 1.0),
    ],
    ids=lambda f: type(f).__name__,
)
@pytest.mark.parametrize("pixels", [2, 4])
def test_submodular_by_brute_force(oracle, function: SetFunction, pixels: int) -> None:
    assert violation(function, pixels, oracle.subsets) is None


def test_dice_is_not_submodular_and_is_refused(oracle) -> None:
    assert violation(CountFunction(dice_loss), 4, oracle.subsets) is not None
    with pytest.raises(ValueError, match=r"false_negative_weight is 0\.5.*not submodular"):
        TverskyLoss(0.5, 0.5)


@pytest.mark.parametrize(
    ("a", "b"), [(0.99, 1.0), (float("nan"), 1.0), (float("inf"), 1.0), (1.0, -0.1)]
)
def test_tversky_refuses_weights_out_of_range(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="must be at least"):
        TverskyLoss(a, b)


@pytest.mark.parametrize(
    "function",
    [JaccardLoss(), HammingLoss(), TVERSKY, CountFunction(dice_loss)],
    ids=lambda f: type(f).__name__,
)
def test_gains_are_the_differences(oracle, function: SetFunction) -> None:
    pixels = 4
    for foreground in oracle.subsets(pixels):
        for before in oracle.subsets(pixels):
            counts = counts_of(before, foreground, pixels)
            for pixel in set(range(pixels)) - before:
                gain = (
                    function.foreground_gain(counts)
                    if pixel in foreground
                    else function.background_gain(counts)
                )
                after = value_of(function, before | {pixel}, foreground, pixels)
                difference = after - value_of(function, before, foreground, pixels)
                assert float(gain) == pytest.approx(difference, abs=1e-14)


@pytest.mark.parametrize(
    "function", [JaccardLoss(), TverskyLoss(2.5, 0.25)], ids=lambda f: type(f).__name__
)
def test_float32_gains_of_large_counts_against_exact_fractions(function: SetFunction) -> None:
    a = Fraction(getattr(function, "false_negative_weight", 1.0))
    b = Fraction(getattr(function, "false_positive_weight", 1.0))

    def exact(fn: int, fp: int, size: int) -> Fraction:
        return 1 - Fraction(size - fn) / (size - fn + a * fn + b * fp)

    for fn, fp, size in [
        (0, 0, 1),
        (3, 199_990, 10),
        (99_999, 5, 100_000),
        (70_000, 900_000, 99_999),
    ]:
        counts = Counts(*(torch.tensor(float(n)) for n in (fn, fp, size, 2_000_000)))
        gains = (function.foreground_gain(counts), function.background_gain(counts))
        ends = (exact(fn + 1, fp, size), exact(fn, fp + 1, size))
        for gain, end in zip(gains, ends, strict=True):
            expected = float(end - exact(fn, fp, size))
            assert float(gain) == pytest.approx(expected, rel=5e-7)
