"""What counting predictions costs: ``ConfusionMatrix.update`` beside that of torchmetrics.

Labels come in regions, with void between them; a tenth of the predictions is wrong. Both count the
same tensors, and must give the same numbers before anything is timed. The ways take turns, and are
compared within a round.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from lovasz_repro.bench.formats import number, with_quartiles
from lovasz_repro.bench.machine import device_title, load, synchronise
from lovasz_repro.bench.measure import SHORTEST_MS, Spread, ratio
from lovasz_repro.bench.page import Page, page_markdown, print_page
from lovasz_repro.bench.samples import Size, parse_size, regions
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.provenance import device_name, git_commit
from lovasz_repro.metrics import ConfusionMatrix

# A photograph of Pascal VOC, a batch of its crops, a scene of Cityscapes.
DEFAULT_SIZES = ("1x21x375x500", "10x21x321x321", "1x19x1024x2048")
DEFAULT_ROUNDS = {"cpu": 5, "cuda": 30}
VOID = 255
VOID_SHARE, WRONG = 0.05, 0.1
OURS, THEIRS, UNCHECKED = "ConfusionMatrix.update", "torchmetrics", "torchmetrics, unchecked"
HEADS = ("counting", "ms", "times as fast as\ntorchmetrics", "times as fast as\nit unchecked")
CAPTION = (
    "Predictions int64, labels uint8 with {void:.0%} void, to counts on the CPU. Times as fast: "
    "the time of torchmetrics {version} (multiclass_confusion_matrix; unchecked: "
    "validate_args=False; ours always checks) divided by that of the row in the same round; median "
    "(quartiles) over the rounds ({rounds})."
)

Count = Callable[[Tensor, Tensor], Tensor]
"""Predictions and labels (B, H, W) -> counts (C, C) on the CPU."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and where."""

    sizes: tuple[Size, ...]
    """Images, classes, height, width."""
    device: torch.device
    threads: int
    """Of the CPU."""
    rounds: int
    seed: int

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return len(self.sizes) * self.rounds * 3


@dataclass(frozen=True)
class Row:
    """One way to count."""

    name: str
    times_ms: tuple[float, ...]
    """By round."""
    speedup: Spread
    """Time of torchmetrics in that of this, of the same round."""
    speedup_unchecked: Spread
    """That of torchmetrics without checks of its arguments."""


@dataclass(frozen=True)
class Case:
    """The ways to count tensors of one size: ours first."""

    size: Size
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """What was measured."""

    device: str
    torch_version: str
    torchmetrics_version: str
    git_commit: str
    cases: tuple[Case, ...]
    rounds: int
    seed: int
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""


def choose_settings(
    sizes: Sequence[str] | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    seed: int,
) -> Settings:
    """Settings from what was given, defaults for what was not.

    Raises:
        UserError: a size of another form, or more classes than labels can name.
    """
    chosen = tuple(parse_size(size) for size in sizes or DEFAULT_SIZES)
    for size in chosen:
        if size.classes > VOID:
            raise UserError(f"size {size}: {VOID} is void; give at most {VOID} classes.")
    threads = threads or torch.get_num_threads()
    return Settings(chosen, device, threads, rounds or DEFAULT_ROUNDS[device.type], seed)


def run_bench(settings: Settings, advance: Callable[[str], None] = lambda name: None) -> Report:
    """Measure; calls ``advance`` with the name of each thing measured.

    Raises:
        UserError: torchmetrics is not installed.
        RunFailed: the counts differ.
    """
    torchmetrics = _torchmetrics()
    torch.set_num_threads(settings.threads)
    cases = tuple(_case(size, settings, torchmetrics, advance) for size in settings.sizes)
    name = device_name(settings.device)
    return Report(
        device_title(name, settings.device, settings.threads),
        torch.__version__,
        torchmetrics.__version__,
        git_commit(),
        cases,
        settings.rounds,
        settings.seed,
        load(),
    )


def make_sample(size: Size, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Predictions (B, H, W) int64 and labels (B, H, W) uint8, 255 = void, on a device."""
    generator = torch.Generator().manual_seed(seed)
    labels = regions(size, torch.ones(size.classes), generator)
    other = torch.randint(size.classes, labels.shape, generator=generator)
    wrong = torch.rand(labels.shape, generator=generator) < WRONG
    predictions = torch.where(wrong, other, labels)
    labels[torch.rand(labels.shape, generator=generator) < VOID_SHARE] = VOID
    return predictions.to(device), labels.to(device, torch.uint8)


def ways(size: Size, torchmetrics: Any) -> dict[str, Count]:
    """What is compared, by name."""

    def ours(predictions: Tensor, labels: Tensor) -> Tensor:
        matrix = ConfusionMatrix(size.classes, VOID)
        matrix.update(predictions, labels)
        return matrix.counts

    def theirs(validate: bool) -> Count:
        count = torchmetrics.functional.classification.multiclass_confusion_matrix

        def counted(predictions: Tensor, labels: Tensor) -> Tensor:
            counts: Tensor = count(
                predictions, labels, size.classes, ignore_index=VOID, validate_args=validate
            )
            return counts.cpu()

        return counted

    return {OURS: ours, THEIRS: theirs(True), UNCHECKED: theirs(False)}


def check_same(name: str, counts: Tensor, ours: Tensor) -> None:
    """Make sure that two ways count alike.

    Raises:
        RunFailed: a count differs.
    """
    if not torch.equal(counts.long(), ours):
        off = int((counts.long() - ours).abs().sum())
        raise RunFailed(f"{name}: {off} pixels are counted otherwise. Nothing is reported.")


def _case(
    size: Size, settings: Settings, torchmetrics: Any, advance: Callable[[str], None]
) -> Case:
    sample = make_sample(size, settings.seed, settings.device)
    compared = ways(size, torchmetrics)
    counts = {name: count(*sample) for name, count in compared.items()}  # the first is slower
    for name in (THEIRS, UNCHECKED):
        check_same(name, counts[name], counts[OURS])
    times: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(settings.rounds):
        for name, count in compared.items():
            times[name].append(_milliseconds(count, *sample))
            advance(f"{name}, {size}")
    rows = (
        Row(name, tuple(own), ratio(times[THEIRS], own), ratio(times[UNCHECKED], own))
        for name, own in times.items()
    )
    return Case(size, tuple(rows))


def _milliseconds(count: Count, predictions: Tensor, labels: Tensor) -> float:
    """The mean of as many calls as fill SHORTEST_MS, at least one."""
    calls, elapsed = 0, 0.0
    synchronise(predictions.device)
    began = time.perf_counter()
    while elapsed < SHORTEST_MS:
        count(predictions, labels)  # to the CPU, which waits for it
        calls += 1
        elapsed = 1000 * (time.perf_counter() - began)
    return elapsed / calls


def _torchmetrics() -> Any:
    try:
        import torchmetrics
        import torchmetrics.functional.classification
    except ImportError:
        raise UserError(
            "bench metrics compares with torchmetrics, which is not installed. "
            "Run: pip install 'lovasz-repro[dev]'"
        ) from None
    return torchmetrics


def print_report(report: Report, console: Console) -> None:
    """The table, for people."""
    print_page(_page(report), console)


def to_markdown(report: Report) -> str:
    """The same in Markdown."""
    return page_markdown(_page(report))


def to_json(report: Report) -> str:
    """Everything, every time of every round included."""
    return json.dumps(asdict(report), indent=2, allow_nan=False)


def _page(report: Report) -> Page:
    rows = []
    for case in report.cases:
        for row in case.rows:
            time_ms = number(sorted(row.times_ms)[len(row.times_ms) // 2])
            against = with_quartiles(row.speedup), with_quartiles(row.speedup_unchecked)
            rows.append((f"{case.size}: {row.name}", time_ms, *against))
    return Page(
        f"Counting predictions, {report.device}, torch {report.torch_version}",
        HEADS,
        rows,
        ("All ways gave the same counts.",),
        CAPTION.format(void=VOID_SHARE, version=report.torchmetrics_version, rounds=report.rounds),
        report.load,
    )
