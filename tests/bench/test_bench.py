"""`lovasz-repro bench losses`: what is measured, and the command."""

import io
import json
import math
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from lovasz_repro.bench import harness, losses, yardsticks
from lovasz_repro.bench.harness import ratio, to_markdown
from lovasz_repro.bench.losses import (
    LossRow,
    binary_rows,
    measure,
    multiclass_rows,
    peak_memory,
    run_bench,
    sizes_of,
)
from lovasz_repro.bench.yardsticks import (
    FOREGROUND,
    WRONG,
    Size,
    binary_sample,
    multiclass_sample,
    parse_size,
)
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host import output
from tests.bench.conftest import CPU, TOY, Command, Turns

NAMES = [row.name for row in (*multiclass_rows(), *binary_rows())]


# -- what is measured ------------------------------------------------------------------------------


def test_ratio_is_taken_round_by_round() -> None:
    assert ratio([2.0, 40.0, 6.0, 8.0, 100.0], [1.0, 10.0, 1.0, 1.0, 10.0]) == (6.0, 4.0, 8.0)
    assert ratio([3.0], [2.0]) == (1.5, 1.5, 1.5)


def test_peak_memory_counts_what_lives_at_once() -> None:
    """The exponentials and the gradient, not the four tensors that came and went before."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        for _ in range(4):
            logits.detach() + 1
        return logits.exp().sum()

    leaf = torch.zeros(100, 1000, requires_grad=True)
    assert peak_memory(loss, leaf, torch.zeros(100)) == pytest.approx(2, abs=0.01)


def test_rows_take_turns_and_errors_are_those_that_were_made() -> None:
    def square(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits * logits).sum()

    def off_by_a_tenth(logits: Tensor, labels: Tensor) -> Tensor:
        return 1.1 * square(logits, labels)

    order: list[str] = []
    rows = [LossRow("a", square, square), LossRow("b", square, square)]
    rows.append(LossRow("c", off_by_a_tenth, square))
    logits = torch.full((2, 3), 2.0)
    a, b, c = measure(rows, logits, torch.zeros(2), 3, order.append)
    assert order == ["a", "b", "c"] * (2 + 3)
    assert (a["loss_error"], a["gradient_error"]) == (0, 0)
    assert c["loss_error"] == pytest.approx(2.4, rel=1e-5)
    assert c["gradient_error"] == pytest.approx(0.1, rel=1e-5)
    assert a["unit_ratio"] == b["loop_ratio"] == (1, 1, 1)
    assert len(c["times_ms"]) == 3


@pytest.mark.parametrize("kind", ["random", "trained"])
def test_samples(kind: str) -> None:
    size = Size(4, 6, 200, 300)
    logits, labels = multiclass_sample(size, kind, torch.Generator().manual_seed(0))
    assert logits.shape == size
    assert labels.shape == (4, 200, 300)
    assert torch.equal(logits, multiclass_sample(size, kind, torch.Generator().manual_seed(0))[0])
    shares = torch.bincount(labels.flatten(), minlength=6) / labels.numel()
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    scores, truth = binary_sample(size, kind, torch.Generator().manual_seed(0))
    binary_accuracy = ((scores > 0) == (truth == 1)).float().mean().item()
    assert set(truth.unique().tolist()) == {0, 1}
    if kind == "random":
        assert shares == pytest.approx([1 / 6] * 6, abs=0.01)
        assert accuracy == pytest.approx(1 / 6, abs=0.01)
        assert binary_accuracy == pytest.approx(0.5, abs=0.01)
    else:
        assert shares.argmax() == 0
        assert shares[0] > 4 * shares[-1]
        assert accuracy == pytest.approx(1 - WRONG * 5 / 6, abs=0.01)
        assert binary_accuracy == pytest.approx(1 - WRONG, abs=0.01)
        assert truth.float().mean().item() == pytest.approx(FOREGROUND, abs=0.1)


# -- the command -----------------------------------------------------------------------------------

TINY = "losses --size 2x3x16x16 --rounds 1 --device cpu"


def test_help(bench: Command) -> None:
    code, out, _ = bench("losses --help")
    assert code == 0
    assert "--size" in out


def test_table_has_every_row_and_fits(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "Terminal", partial(output.Terminal, width=120))
    code, out, err = bench(f"{TINY} --threads 1")
    assert code == 0, err
    assert all(line.startswith("bench losses ") for line in err.splitlines())  # when it is slow
    titles = [f"2 x 3 x 16 x 16, {kind} logits, CPU (1 thread)" for kind in ("random", "trained")]
    assert [line for line in out.splitlines() if line.endswith("(1 thread)")] == titles
    for name in NAMES:
        assert sum(line.strip().startswith(f"{name}  ") for line in out.splitlines()) == 2, name
    assert max(map(len, out.splitlines())) <= 120


def test_json_has_every_number(bench: Command) -> None:
    code, out, err = bench(f"{TINY} --threads 1 --seed 3 --json")
    assert code == 0, err
    report = json.loads(out)
    assert report["threads"] == 1
    assert report["rounds"] == 1
    assert report["seed"] == 3
    assert report["torch_version"] == torch.__version__
    assert report["hardware"].startswith("CPU")
    assert [case["logits"] for case in report["cases"]] == ["random", "trained"]
    assert all(isinstance(case["contended"], bool) for case in report["cases"])
    for case in report["cases"]:
        assert case["size"] == {"batch": 2, "classes": 3, "height": 16, "width": 16}
        assert [row["name"] for row in case["multiclass"] + case["binary"]] == NAMES
        for row in case["multiclass"] + case["binary"]:
            numbers = [row["median_ms"], *row["times_ms"], row["peak_memory"]]
            numbers += [*row["unit_ratio"].values(), *row["loop_ratio"].values()]
            assert all(math.isfinite(number) and number > 0 for number in numbers), row
            assert 0 <= row["loss_error"] < 1e-3, row
            assert 0 <= row["gradient_error"] < 1e-2, row


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
    ids=["cuda", "cpu"],
)
def test_running_out_of_memory_is_a_users_mistake(
    monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    def fail(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("lovasz_repro.bench.losses.measure", fail)
    with pytest.raises(UserError, match="2 x 3 x 4 x 4: not enough memory on cpu"):
        run_bench(["2x3x4x4"], ["random"], CPU, None, 1, 0)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("something else")

    monkeypatch.setattr("lovasz_repro.bench.losses.measure", fail)
    with pytest.raises(RuntimeError, match="something else"):
        run_bench(["2x3x4x4"], ["random"], CPU, None, 1, 0)


def test_markdown_is_a_table_and_progress_is_told_of_every_pass() -> None:
    turns = Turns()
    report = run_bench(["1x2x5x7", "1x3x4x4"], ["random"], CPU, None, 2, 0, advance=turns)
    assert len(turns.taken) == turns.expected
    assert set(turns.taken) == set(NAMES)
    lines = [line for line in to_markdown(report).splitlines() if line.startswith("|")]
    assert len(lines) == 2 * (2 + 2 + len(NAMES))
    assert {line.count("|") for line in lines} == {7}
    for name in NAMES:
        assert sum(line.startswith(f"| {name} |") for line in lines) == 2


@pytest.mark.parametrize(("load", "busy"), [(0.9, False), (99.0, True)])
def test_a_busy_machine_is_told_of(
    monkeypatch: pytest.MonkeyPatch, load: float, busy: bool
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    machine = harness.this_machine(CPU)
    page = harness.Page("title", [("head", str)], {"": [{}]}, machine.load)
    report = harness.Report(machine, {}, [page])
    printed = io.StringIO()
    harness.print_report(report, Console(file=printed, width=120))
    for text in (to_markdown(report), printed.getvalue()):
        assert ("kept the machine busy (load average 99.0, 4 cores)" in text) == busy
    assert json.loads(harness.to_json(report))["contended"] == busy


def test_default_sizes_are_sizes() -> None:
    assert sizes_of(None, CPU) == [parse_size("2x21x321x321"), parse_size("2x19x512x1024")]


# -- growth ----------------------------------------------------------------------------------------


@pytest.fixture
def small_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "IMAGE_SIDES", (8, 16))
    monkeypatch.setattr(losses, "CLASS_COUNTS", (2, 3, 4))
    monkeypatch.setattr(losses, "USUAL_CLASSES", 3)
    monkeypatch.setattr(losses, "USUAL_SIDE", 8)


@pytest.mark.usefixtures("small_growth")
def test_growth_is_measured_and_drawn(bench: Command, tmp_path: Path) -> None:
    file = tmp_path / "losses.png"
    code, out, err = bench(f"{TINY} --logits random --figure {file} --json")
    assert code == 0, err
    found = json.loads(out)["growth"]
    assert (found["logits"], found["rounds"]) == ("random", 1)
    assert [(point["pixels"], point["classes"]) for point in found["pixels"]] == [(64, 3), (256, 3)]
    assert [(p["pixels"], p["classes"]) for p in found["classes"]] == [(64, 2), (64, 3), (64, 4)]
    for point in found["pixels"] + found["classes"]:
        names = ["cross-entropy", "sort loop over classes", "lovasz_softmax auto"]
        assert list(point["times_ms"]) == names
        assert all(len(times) == 1 and times[0] > 0 for times in point["times_ms"].values())
    with Image.open(file) as drawn:
        assert drawn.width > 2 * drawn.height


def growth_of(times: dict[str, tuple[float, ...]]) -> dict[str, Any]:
    """Of one size alone."""
    point = {"size": Size(1, 3, 8, 8), "pixels": 64, "classes": 3, "times_ms": times}
    return {"logits": "random", "rounds": 3, "pixels": [point], "classes": [point]}


def test_growth_is_a_table_of_ratios() -> None:
    times = {"one": (2.0, 4.0, 3.0), "other": (4.0, 8.0, 6.0)}
    page = losses.growth_page(growth_of(times), TOY)
    assert page.cells()[0] == ("more pixels", [["64", "3", "3.00", "2.00"]])
    assert page.remarks == ("More than 64 pixels did not fit the memory.",)


@pytest.mark.usefixtures("small_growth")
def test_sizes_that_do_not_fit_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        yardsticks, "free_memory", lambda device: yardsticks.bytes_of(Size(1, 3, 8, 8))
    )
    turns = Turns()
    figure = tmp_path / "losses.svg"
    found = run_bench(["1x2x2x2"], ["random"], CPU, None, 2, 0, figure, turns).found["growth"]
    assert [point["size"] for point in found["pixels"]] == [Size(1, 3, 8, 8)]
    assert [point["size"] for point in found["classes"]] == [Size(1, 2, 8, 8), Size(1, 3, 8, 8)]
    assert len(turns.taken) == turns.expected


def test_a_figure_that_cannot_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(losses, "write_durably", full)
    times = dict.fromkeys(("a", "b", "c"), (1.0, 2.0))
    with pytest.raises(RunFailed, match=r"cannot write .*g\.pdf: No space left on device"):
        losses.draw(growth_of(times), TOY, tmp_path / "g.pdf")


# -- other libraries -------------------------------------------------------------------------------


def test_a_peer_is_measured_where_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that computes half of what it should, and one whose import fails."""
    for name in ("kornia", "monai"):  # also where the real ones are installed
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "kornia" / "losses.py").write_text(
        "from torch import nn\n"
        "from lovasz_repro.losses import lovasz_softmax\n"
        "class LovaszSoftmaxLoss(nn.Module):\n"
        "    def forward(self, logits, labels):\n"
        "        return lovasz_softmax(logits, labels, classes='all', per_image=True) / 2\n"
    )
    (tmp_path / "kornia-9.9.dist-info").mkdir()
    (tmp_path / "kornia-9.9.dist-info" / "METADATA").write_text("Name: kornia\nVersion: 9.9\n")
    (tmp_path / "monai" / "losses.py").write_text("raise RuntimeError('odd operator')")
    installed = {name for name in sys.modules if name.split(".")[0] in ("kornia", "monai")}
    for name in installed:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        report = run_bench(["2x3x8x8"], ["random"], CPU, None, 1, 0)
    finally:
        for name in ("kornia", "kornia.losses", "monai"):
            sys.modules.pop(name, None)
    (case,) = report.found["cases"]
    (row,) = (row for row in case["multiclass"] if row["name"].startswith("kornia"))
    assert row["name"] == "kornia 9.9 LovaszSoftmaxLoss"
    assert row["gradient_error"] == pytest.approx(0.5, abs=1e-3)
    assert "monai: not measured, RuntimeError on its import." in report.found["notes"]
    assert "- monai: not measured" in to_markdown(report)


@pytest.mark.parametrize("name", ["kornia", "monai", "segmentation_models_pytorch"])
def test_a_real_peer_computes_what_its_row_compares_it_with(name: str) -> None:
    found = [row for row in multiclass_rows() if row.name.startswith(f"{name} ")]
    if not found:
        pytest.skip(f"{name} is not installed")
    sample = multiclass_sample(Size(2, 4, 20, 30), "random", torch.Generator().manual_seed(0))
    measured = measure([*multiclass_rows()[:2], *found], *sample, 1)[-1]
    assert measured["loss_error"] < 1e-5
    assert measured["gradient_error"] < 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    report = run_bench(["2x3x64x64"], ["trained"], torch.device("cuda"), None, 2, 0)
    (case,) = report.found["cases"]
    for row in case["multiclass"] + case["binary"]:
        assert row["peak_memory"] > 0
        assert row["gradient_error"] < 1e-2
