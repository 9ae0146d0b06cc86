"""``bench crf``: what is refined, how it is timed, and what is reported."""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro.bench import refining
from lovasz_repro.bench.harness import ImageClock, Report, Spread, to_markdown
from lovasz_repro.bench.refining import images_of, make_inputs, numbers_of, page, run_bench, smooth
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.probabilities import read_probabilities
from tests.bench.conftest import TOY, Command, Turns

TINY = (40, 56)


def test_one_process_is_the_unit_and_cores_are_the_limit() -> None:
    assert numbers_of(None, 8) == [1, 2]
    assert numbers_of(None, 1) == [1]
    assert numbers_of([4, 2, 4, 1], 4) == [1, 2, 4]
    with pytest.raises(UserError, match=r"--processes 3: there are 2 cores"):
        numbers_of([3], 2)


def test_every_process_gets_as_many_images_and_two_at_least() -> None:
    assert [images_of(6, count) for count in (1, 4, 16)] == [6, 8, 32]


def test_the_clock_leaves_out_the_first_image_of_each_process() -> None:
    """Two processes that take 10 seconds to start and 4 for each image."""
    times = iter([14.0, 14.0, 18.0, 18.0, 22.0, 22.0])
    clock = ImageClock(2, now=lambda: next(times))
    for _ in range(6):
        clock.tick(1)
    assert clock.milliseconds() == pytest.approx(1000 * 4 / 2)


def test_probabilities_are_smooth_and_some_are_sure() -> None:
    probabilities = smooth((188, 250), torch.Generator().manual_seed(1))
    assert (probabilities.shape, probabilities.dtype) == ((21, 188, 250), np.float32)
    np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)
    steps = np.abs(np.diff(probabilities, axis=2))
    assert steps.max() < 0.2
    assert probabilities.max(0).max() > 0.95
    assert len(np.unique(probabilities.argmax(0))) > 3


def test_photographs_and_probabilities_are_files_of_one_size(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, 2, TINY, 0)
    assert len({item.name for item in inputs}) == 2
    for item in inputs:
        with Image.open(item.image) as opened:
            assert opened.size == (56, 40)
        assert read_probabilities(item.probabilities, item.name).shape == (21, 40, 56)


def test_rates_are_of_new_files_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, Path, int]] = []

    def refine_all(
        inputs: Sequence[object],
        out: Path,
        parameters: object,
        *,
        processes: int,
        advance: Callable[[int], None],
    ) -> None:
        calls.append((len(inputs), out, processes))
        for _ in inputs:
            advance(1)

    monkeypatch.setattr(refining, "refine_all", refine_all)
    monkeypatch.setattr(refining, "cores", lambda: 2)
    turns = Turns()
    report = run_bench([2], 3, 2, 0, turns, TINY)
    assert [(count, processes) for count, _, processes in calls] == [(3, 1), (4, 2)] * 2
    assert len({out for _, out, _ in calls}) == 4
    assert len(turns.taken) == turns.expected == 4 + 2 * (3 + 4)
    one, two = report.found["rows"]
    both = zip(one["images_per_second"], two["images_per_second"], strict=True)
    ratios = [b / a for a, b in both]
    assert min(ratios) <= two["speedup"].median <= max(ratios)
    assert not calls[0][1].parent.exists()  # nothing is left behind


def test_the_table_says_how_much_of_the_cores_is_used() -> None:
    rows = [
        {"processes": 1, "images_per_second": (0.5, 0.4), "speedup": Spread(1, 1, 1)},
        {"processes": 4, "images_per_second": (1.6, 1.6), "speedup": Spread(3.6, 3.2, 4.0)},
    ]
    found = {"size": (375, 500), "crf": {"iterations": 10}, "rows": rows, "images": 6, "rounds": 2}
    text = to_markdown(Report(TOY, found, [page(TOY, found)]))
    assert "| 1 | 0.45 | 1 |  |" in text
    assert "| 4 | 1.60 | 3.60 (3.20–4.00) | 90% |" in text
    assert "375×500, 21 classes, 10 iterations" in text


def test_the_command_refines(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydensecrf.densecrf")
    monkeypatch.setattr(refining, "run_bench", partial(run_bench, size=TINY))
    code, out, err = bench("crf --json --processes 1 --images 2 --rounds 2")
    assert code == 0, err
    content = json.loads(out)
    assert [row["processes"] for row in content["rows"]] == [1]
    assert len(content["rows"][0]["images_per_second"]) == 2
    assert content["crf"]["iterations"] == 10


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunFailed, match=r"cannot write .*jpg: No space left on device"):
        make_inputs(tmp_path, 2, TINY, 0)


def test_without_the_extra_there_is_one_line(
    bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    monkeypatch.setattr(refining, "run_bench", partial(run_bench, size=TINY))
    code, _, err = bench("crf")
    assert code == 2
    assert "pydensecrf2, which is not installed" in err
