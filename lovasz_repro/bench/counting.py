"""What counting predictions costs: ``ConfusionMatrix.update`` beside that of torchmetrics.

Labels come in regions, with void between them; a tenth of the predictions is wrong. Both count the
same tensors, and must give the same numbers before anything is timed.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from lovasz_repro.bench.harness import (
    Advance,
    BenchReport,
    Machine,
    Page,
    Spread,
    in_turn,
    milliseconds,
    number,
    quiet,
    ratio,
    this_machine,
    with_quartiles,
)
from lovasz_repro.bench.samples import Size, parse_size, regions
from lovasz_repro.errors import RunFailed, UserError
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
class CountingSettings:
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
class CountingRow:
    """One way to count."""

    name: str
    times_ms: tuple[float, ...]
    """By round."""
    speedup: Spread
    """Time of torchmetrics in that of this, of the same round."""
    speedup_unchecked: Spread
    """That of torchmetrics without checks of its arguments."""


@dataclass(frozen=True)
class CountingCase:
    """The ways to count tensors of one size: ours first."""

    size: Size
    rows: tuple[CountingRow, ...]


@dataclass(frozen=True)
class CountingReport(BenchReport):
    """What was measured."""

    machine: Machine
    torchmetrics_version: str
    cases: tuple[CountingCase, ...]
    rounds: int
    seed: int
    names_of_tuples: ClassVar[bool] = False

    def pages(self) -> Iterator[Page]:
        """One table of all sizes."""
        rows = []
        for case in self.cases:
            for row in case.rows:
                against = with_quartiles(row.speedup), with_quartiles(row.speedup_unchecked)
                time_ms = number(statistics.median(row.times_ms))
                rows.append((f"{case.size}: {row.name}", time_ms, *against))
        yield Page(
            f"Counting predictions, {self.machine.device}, torch {self.machine.torch_version}",
            HEADS,
            {"": rows},
            self.machine.load,
            ("All ways gave the same counts.",),
            CAPTION.format(void=VOID_SHARE, version=self.torchmetrics_version, rounds=self.rounds),
        )


def choose_settings(
    sizes: Sequence[str] | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    seed: int,
) -> CountingSettings:
    """Settings from what was given, defaults for what was not.

    Raises:
        UserError: a size of another form, or more classes than labels can name.
    """
    chosen = tuple(parse_size(size) for size in sizes or DEFAULT_SIZES)
    for size in chosen:
        if size.classes > VOID:
            raise UserError(f"size {size}: {VOID} is void; give at most {VOID} classes.")
    threads = threads or torch.get_num_threads()
    return CountingSettings(chosen, device, threads, rounds or DEFAULT_ROUNDS[device.type], seed)


def run_bench(settings: CountingSettings, advance: Advance = quiet) -> CountingReport:
    """Measure.

    Raises:
        UserError: torchmetrics is not installed.
        RunFailed: the counts differ.
    """
    try:
        import torchmetrics
        import torchmetrics.functional.classification
    except ImportError:
        raise UserError(
            "bench metrics compares with torchmetrics, which is not installed. "
            "Run: pip install 'lovasz-repro[dev]'"
        ) from None
    torch.set_num_threads(settings.threads)
    cases = tuple(_case(size, settings, torchmetrics, advance) for size in settings.sizes)
    machine, version = this_machine(settings.device), torchmetrics.__version__
    return CountingReport(machine, version, cases, settings.rounds, settings.seed)


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

    def theirs(predictions: Tensor, labels: Tensor, checked: bool) -> Tensor:
        counts: Tensor = torchmetrics.functional.classification.multiclass_confusion_matrix(
            predictions, labels, size.classes, ignore_index=VOID, validate_args=checked
        )
        return counts.cpu()

    return {OURS: ours, THEIRS: partial(theirs, checked=True),
            UNCHECKED: partial(theirs, checked=False)}  # fmt: skip


def check_same(name: str, counts: Tensor, ours: Tensor) -> None:
    """Make sure that two ways count alike.

    Raises:
        RunFailed: a count differs.
    """
    if not torch.equal(counts.long(), ours):
        off = int((counts.long() - ours).abs().sum())
        raise RunFailed(f"{name}: {off} pixels are counted otherwise. Nothing is reported.")


def _case(
    size: Size, settings: CountingSettings, torchmetrics: Any, advance: Advance
) -> CountingCase:
    sample = make_sample(size, settings.seed, settings.device)
    compared = ways(size, torchmetrics)
    counts = {name: count(*sample) for name, count in compared.items()}  # the first is slower
    for name in (THEIRS, UNCHECKED):
        check_same(name, counts[name], counts[OURS])
    timed = {
        name: lambda _, count=count: milliseconds(lambda: count(*sample), settings.device)
        for name, count in compared.items()
    }
    times = in_turn(timed, settings.rounds, lambda name: advance(f"{name}, {size}"))
    rows = (
        CountingRow(name, own, ratio(times[THEIRS], own), ratio(times[UNCHECKED], own))
        for name, own in times.items()
    )
    return CountingCase(size, tuple(rows))
