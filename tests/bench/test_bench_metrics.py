"""``bench metrics``: the same counts first, then ratios of times."""

import json
import statistics
import sys

import pytest
import torch

from lovasz_repro.bench import counting
from lovasz_repro.bench.counting import (
    check_same_counts,
    make_sample,
    page,
    run_bench,
    sizes_of,
    ways,
)
from lovasz_repro.bench.harness import Report, Spread, to_markdown
from lovasz_repro.bench.yardsticks import Size
from lovasz_repro.errors import RunFailed
from tests.bench.conftest import CPU, TOY, Command, Turns

pytest.importorskip("torchmetrics")
NAMES = ["ConfusionMatrix.update", "torchmetrics", "torchmetrics, unchecked"]


def test_json_has_ratios_of_the_times_of_a_round(bench: Command) -> None:
    given = "metrics --size 2x5x32x48 --rounds 3 --threads 1 --device cpu --json"
    code, out, err = bench(given)
    assert code == 0, err
    content = json.loads(out)
    (case,) = content["cases"]
    assert case["size"] == {"batch": 2, "classes": 5, "height": 32, "width": 48}
    assert [row["name"] for row in case["rows"]] == NAMES
    _, theirs, unchecked = (row["times_ms"] for row in case["rows"])
    for row in case["rows"]:
        assert len(row["times_ms"]) == 3
        for spread, unit in ((row["speedup"], theirs), (row["speedup_unchecked"], unchecked)):
            ratios = [one / own for own, one in zip(row["times_ms"], unit, strict=True)]
            assert spread["median"] == pytest.approx(statistics.median(ratios))


def test_every_way_counts_a_sample_pixel_by_pixel() -> None:
    size = Size(2, 4, 40, 50)
    predictions, labels = make_sample(size, 3, CPU)
    assert (predictions.dtype, labels.dtype) == (torch.int64, torch.uint8)
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for label, prediction in zip(
        labels.flatten().tolist(), predictions.flatten().tolist(), strict=True
    ):
        if label != 255:
            expected[label, prediction] += 1
    void = 1 - expected.sum() / labels.numel()
    wrong = 1 - expected.trace() / expected.sum()
    assert 0.03 < void < 0.07
    assert 0.04 < wrong < 0.11  # a tenth of the pixels, three quarters of them another class
    import torchmetrics
    import torchmetrics.functional.classification

    for name, count in ways(size, torchmetrics, predictions, labels).items():
        assert torch.equal(count().long(), expected), name


def test_other_counts_are_refused() -> None:
    with pytest.raises(RunFailed, match="torchmetrics: 2 pixels are counted otherwise"):
        check_same_counts("torchmetrics", torch.tensor([[1, 3]]), torch.tensor([[2, 2]]))


def test_defaults_are_a_photograph_a_batch_and_a_street() -> None:
    assert sizes_of(None) == [
        Size(1, 21, 375, 500), Size(10, 21, 321, 321), Size(1, 19, 1024, 2048)
    ]  # fmt: skip


def test_progress_is_told_of_every_pass() -> None:
    turns = Turns()
    run_bench(["1x3x16x16"], CPU, None, 2, 0, turns)
    assert len(turns.taken) == turns.expected == 2 * 3


def test_the_table_has_the_median_time() -> None:
    row = {"name": NAMES[0], "times_ms": (1.0, 9.0, 2.0), "speedup": Spread(6.0, 5.0, 7.0),
           "speedup_unchecked": Spread(2.0, 2.0, 2.0)}  # fmt: skip
    cases = [{"size": Size(1, 2, 3, 4), "rows": [row]}]
    found = {"torchmetrics_version": "1.9", "cases": cases, "rounds": 3}
    report = Report(TOY, found, [page(TOY, found)])
    line = "| 1 x 2 x 3 x 4: ConfusionMatrix.update | 2.00 | 6.00 (5.00–7.00) | 2.00 |"
    assert line in to_markdown(report)


def test_without_torchmetrics_there_is_one_line(
    bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    code, _, err = bench("metrics")
    assert code == 2
    assert "torchmetrics, which is not installed. Run: pip install" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    report = run_bench(["2x21x64x64"], torch.device("cuda"), 1, 2, 0)
    assert [row["name"] for row in report.found["cases"][0]["rows"]] == NAMES
    assert counting.VOID_LABEL == 255
