"""`lovasz-repro bench training`: what is measured, and that it is the same."""

import io
import json
import statistics
import sys
from contextlib import redirect_stdout
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lovasz_repro import cli
from lovasz_repro.bench import training
from lovasz_repro.bench.harness import (
    Advance,
    Report,
    Spread,
    print_report,
    to_json,
    to_markdown,
)
from lovasz_repro.bench.trainee import (
    DEEPLAB,
    ENET_TRAINED,
    SMALL,
    TRAINEES,
    LossClock,
    StepVariant,
    TrainedNetwork,
    Trainee,
    batch,
    held_bytes,
    scale_deeplab,
)
from lovasz_repro.bench.training import (
    check_same,
    checkpoint_cost,
    page,
    parse_batch,
    projected_hours,
    run_bench,
    variants,
)
from lovasz_repro.bench.yardsticks import Size
from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.classes import VOID
from lovasz_repro.data.examples import to_caffe
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.models.deeplab import DeepLab
from tests.bench.conftest import CPU, TOY, Turns

NAMES = [
    "float32", "bfloat16", "channels last", "bfloat16, channels last",
]  # fmt: skip
tiny = partial(run_bench, "enet", "2x24x32", CPU, 1, 1, 1)


class Ran(NamedTuple):
    """What the command printed and what it called."""

    content: Any
    report: Report
    turns: Turns


@pytest.fixture(scope="module")
def ran() -> Ran:
    """The command with --json."""
    threads, turns, reports = torch.get_num_threads(), Turns(), []

    def spy(advance: Advance, **given: Any) -> Report:
        reports.append(run_bench(**given, advance=turns))
        return reports[0]

    options = "--size 3x24x32 --rounds 2 --steps 1 --threads 2 --device cpu"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.setattr(training, "run_bench", spy)
        patch.setattr(
            sys, "argv", ["lovasz-repro", "bench", "training", "--json", *options.split()]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
    torch.set_num_threads(threads)
    assert not caught.value.code
    return Ran(json.loads(printed.getvalue()), reports[0], turns)


# -- the report ------------------------------------------------------------------------------------


def test_json_has_everything(ran: Ran) -> None:
    content = ran.content
    assert content["size"] == {"batch": 3, "classes": 11, "height": 24, "width": 32}
    assert content["device"] == "CPU (2 threads)"
    assert content["hardware"].startswith("CPU")
    assert content["torch_version"] == torch.__version__
    assert (content["rounds"], content["steps"], content["threads"]) == (2, 1, 2)
    assert content["notes"] == []
    assert [row["name"] for row in content["rows"]] == NAMES


def test_ratios_are_quotients_of_times(ran: Ran) -> None:
    unit = ran.content["rows"][0]["times_ms"]
    for row in ran.content["rows"]:
        times = row["times_ms"]
        assert len(times) == 2
        assert min(times) > 0
        check_spread(row["time_ratio"], [own / one for own, one in zip(times, unit, strict=True)])
        check_spread(
            row["loss_share"], [own / one for own, one in zip(row["loss_ms"], times, strict=True)]
        )
        assert row["median_ms"] == pytest.approx(statistics.median(times))
        assert row["images_per_second"] == pytest.approx(3 / (row["median_ms"] / 1000))
    checkpoint = ran.content["checkpoint"]
    check_spread(
        checkpoint["steps"],
        [own / one for own, one in zip(checkpoint["times_ms"], unit, strict=True)],
    )
    share = 100 * checkpoint["steps"]["median"]
    assert checkpoint["per_cent"] == pytest.approx({"25": share / 25, "250": share / 250})
    assert checkpoint["bytes"] > 4 * 4 * 364_000  # weights, the best ones, two moments


def check_spread(spread: dict[str, float], numbers: list[float]) -> None:
    assert spread["median"] == pytest.approx(statistics.median(numbers))
    assert min(numbers) <= spread["low"] <= spread["median"] <= spread["high"] <= max(numbers)


def test_shares_are_shares(ran: Ran) -> None:
    for row in ran.content["rows"]:
        assert 0 < row["loss_share"]["low"] <= row["loss_share"]["high"] < 1


def test_progress_is_told_of_every_pass(ran: Ran) -> None:
    assert len(ran.turns.taken) == ran.turns.expected
    assert set(ran.turns.taken) == {*NAMES, "checkpoint"}


def test_table_has_every_row_and_fits(ran: Ran) -> None:
    printed = io.StringIO()
    print_report(ran.report, Console(file=printed, width=120))
    lines = printed.getvalue().splitlines()
    assert lines[0].rstrip() == (
        f"ENet, 3 x 3 x 24 x 32, 11 classes, CPU (2 threads), torch {torch.__version__}"
    )
    for name in NAMES:
        assert sum(line.strip().startswith(f"{name}  ") for line in lines) == 1, name
    text = " ".join(printed.getvalue().split())
    assert "A checkpoint (" in text
    assert max(map(len, lines)) <= 120
    rows = [line for line in to_markdown(ran.report).splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6}
    assert [line.split(" | ")[0].strip("| ") for line in rows[2:]] == NAMES


# -- what is measured ------------------------------------------------------------------------------


def test_the_clock_counts_the_loss_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the parts move: 3 + 5 seconds of loss, 70 elsewhere."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Takes(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
            now[0] += forward
            ctx.backward_seconds = backward
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradient: Tensor) -> Any:
            now[0] += ctx.backward_seconds
            return gradient[0], None, None

    clock = LossClock(lambda logits, labels: Takes.apply(logits, 3.0, 5.0).sum(), CPU)
    weights = torch.ones(2, requires_grad=True)
    for _ in range(2):
        logits = Takes.apply(weights, 10.0, 20.0)
        now[0] += 40
        clock(logits, torch.zeros(2)).backward()
    assert clock.take() == pytest.approx(2 * 8000)
    assert clock.take() == 0
    assert now[0] == 2 * 78


def test_batch_has_what_a_batch_has() -> None:
    images, labels = batch(parse_batch("2x64x96", ENET_TRAINED))
    assert (images.shape, images.dtype) == ((2, 3, 64, 96), torch.uint8)
    assert (labels.shape, labels.dtype) == ((2, 64, 96), torch.uint8)
    assert (labels[:, :4] == VOID).all()
    assert (labels[:, 4:] < ENET_TRAINED.classes).all()
    assert len(labels[:, 4:].unique()) > 2


def test_a_size_may_name_the_classes() -> None:
    assert parse_batch("2x64x96", ENET_TRAINED) == (2, 11, 64, 96)
    assert parse_batch("2x20x64x96", ENET_TRAINED) == (2, 20, 64, 96)
    assert batch(parse_batch("2x20x64x96", ENET_TRAINED))[1][:, 4:].max() > 11


def test_on_a_gpu_there_are_compiled_variants() -> None:
    names = [variant.name for variant in variants(torch.device("cuda"))]
    assert names == [
        "float32", "bfloat16", "channels last", "bfloat16, channels last", "compiled",
        "bfloat16, channels last, compiled",
    ]  # fmt: skip


def test_deeplab_is_trained_as_its_experiment_says() -> None:
    """But for the learning rate, and from random weights."""
    size = parse_batch("2x65x65", SMALL)
    trainee = Trainee("deeplab-v2-small", StepVariant(""), size, CPU)
    recipe = load_experiment("voc-multiclass").cells("paper")[0].training
    for name in ("optimizer", "weight_decay", "batch_norm", "lr_multipliers"):
        assert getattr(trainee.config, name) == getattr(recipe, name), name
    multipliers = [group["lr_multiplier"] for group in trainee.state.optimizer.param_groups]
    assert multipliers == [1, 10, 20]
    assert size == (2, 21, 65, 65)


def test_an_untrained_deeplab_has_logits_of_order_one() -> None:
    torch.manual_seed(0)
    model = DeepLab(21, blocks=(3, 4, 23, 3), width=8)
    scale_deeplab(model)
    images, _ = batch(parse_batch("2x65x65", DEEPLAB))
    with torch.no_grad():
        logits = model(to_caffe(images, False, torch.float32))
    assert 0.05 < logits.std() < 20


def test_memory_is_held_by_weights_gradients_and_moments() -> None:
    trainee = Trainee("deeplab-v2-small", StepVariant(""), parse_batch("1x33x33", SMALL), CPU)
    model = trainee.state.model
    weights = 4 * sum(p.numel() for p in model.parameters())
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    statistics_ = sum(b.nbytes for b in model.buffers())
    assert held_bytes(trainee.state) == weights + statistics_
    trainee.first()
    assert held_bytes(trainee.state) == weights + statistics_ + 2 * trained
    assert trainee.peak_bytes() is None  # of a GPU


def test_hours_of_the_papers_training() -> None:
    crops = Size(10, 21, 321, 321)
    hours = projected_hours("deeplab-v2", crops, 20.0)
    assert hours[20_000] == pytest.approx(20_000 * 0.5 / 3600)
    assert projected_hours("enet", crops, 20.0) == {}
    assert projected_hours("deeplab-v2", Size(10, 21, 97, 97), 20.0) == {}
    row = {
        "name": "float32",
        "times_ms": (500.0,),
        "time_ratio": Spread(1.0, 1.0, 1.0),
        "loss_share": Spread(0.5, 0.5, 0.5),
        "images_per_second": 20.0,
        "peak_bytes": 2**33,
        "projected_hours": hours,
    }
    found = {"network": "deeplab-v2", "size": crops, "rounds": 1, "steps": 1, "rows": [row]}
    found |= {"checkpoint": checkpoint_cost((1.0,), (500.0,), 100), "notes": []}
    told = Report(TOY, found, [page(TOY, found)])
    text = to_markdown(told)
    assert text.startswith("**DeepLab-v2 ResNet-101, 10 x 3 x 321 x 321, 21 classes, Toy, torch")
    assert "batches of 10: 20,000 iterations 2.78 h, 30,000 iterations 4.17 h;" in text
    assert "| float32 | 20.0 | 500 | 1 | 50% | 8.0 GiB |" in text
    assert json.loads(to_json(told))["rows"][0]["projected_hours"]["30000"] == pytest.approx(
        30_000 * 0.5 / 3600
    )


def test_a_small_deeplab_is_measured() -> None:
    told = run_bench("deeplab-v2-small", "2x33x33", CPU, 1, 1, 1)
    rows = told.found["rows"]
    assert [row["name"] for row in rows] == NAMES
    assert all(0 < row["loss_share"].high < 1 for row in rows)
    assert rows[0]["peak_bytes"] is None
    assert told.found["notes"] == []


def test_what_cannot_be_compiled_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(module: torch.nn.Module) -> None:
        raise InductorError("no compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", fail)
    chosen = [StepVariant("float32"), StepVariant("compiled", compiled=True)]
    monkeypatch.setattr(training, "variants", lambda device: chosen)
    found = tiny().found
    assert [row["name"] for row in found["rows"]] == ["float32"]
    assert found["notes"] == ["compiled: not measured, InductorError in torch.compile."]


@pytest.mark.parametrize("trained", TRAINEES.values(), ids=TRAINEES)
def test_default_sizes_are_sizes(trained: TrainedNetwork) -> None:
    for rhythm in trained.rhythms.values():
        assert parse_batch(rhythm.size, trained).batch >= trained.least_images


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda() -> None:
    found = run_bench("enet", "2x64x96", torch.device("cuda"), None, 2, 2).found
    assert len(found["rows"]) + len(found["notes"]) == 6
    assert all(0 < row["loss_share"].high < 1 for row in found["rows"])


# -- another computation ---------------------------------------------------------------------------


def test_another_loss_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailed, match=r"a: the first loss is 0\.5000200, .* another computation"):
        check_same("a", 0.50002, 0.5, 1e-5)
    with pytest.raises(RunFailed, match="the first loss is nan"):
        check_same("a", float("nan"), 0.5, 1e-5)
    losses = iter([1.0, 1.01])
    monkeypatch.setattr(Trainee, "first", lambda self: next(losses))
    with pytest.raises(RunFailed, match=r"bfloat16: the first loss is 1\.01"):
        tiny()


# -- mistakes -------------------------------------------------------------------------------------


def test_running_out_of_memory_is_a_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training, "Trainee", fail)
    with pytest.raises(UserError, match="size 2 x 24 x 32: not enough memory on cpu"):
        tiny()
