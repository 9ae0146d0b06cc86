"""What the losses cost: time, peak memory, and errors against float64.

The unit of time is the cross-entropy, which every training step can afford; the yardstick is
Algorithm 1 as it is usually written (``yardsticks.py``).
"""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lovasz_repro.bench.growth import LossGrowth, growing_sizes, measure_growth
from lovasz_repro.bench.harness import (
    Advance,
    BenchReport,
    Machine,
    Page,
    Spread,
    contended,
    enough_memory,
    in_turn,
    load,
    milliseconds,
    number,
    quiet,
    ratio,
    this_machine,
    with_quartiles,
)
from lovasz_repro.bench.samples import (
    Size,
    binary_sample,
    bytes_of,
    check_memory,
    multiclass_sample,
    parse_size,
)
from lovasz_repro.bench.yardsticks import Loss, peers, sort_loop_hinge, sort_loop_softmax
from lovasz_repro.losses import lovasz_hinge, lovasz_softmax

UNTIMED_PASSES = 2  # one for the errors, one for the memory
METHODS = ("sort", "histogram", "auto")
# Crops of Pascal VOC (Sec. 4.2) and Cityscapes at half its size (Sec. 4.3).
DEFAULT_SIZES = {
    "cpu": ("2x21x321x321", "2x19x512x1024"),
    "cuda": ("10x21x321x321", "10x19x512x1024"),
}
GROWING: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "sort loop over classes": sort_loop_softmax,
    "lovasz_softmax auto": partial(lovasz_softmax, method="auto"),
}
"""Losses whose time is measured at growing sizes; the first is the unit."""
DEFAULT_REPEATS = {"cpu": 5, "cuda": 30}
HEADS = (
    "loss", "time /\ncross-entropy", "time /\nsort loop", "peak\nmemory", "loss\nerror",
    "gradient\nerror",
)  # fmt: skip
CAPTION = (
    "Time: forward and backward, divided by that of cross-entropy (2 classes: binary "
    "cross-entropy) and of the sort loop in the same round; median (quartiles) over the rounds "
    "({repeats}). Sort loop: Algorithm 1 in plain PyTorch with autograd, over the classes of the "
    "batch (2 classes: over the images). Peak memory: of what is allocated beyond the inputs, the "
    "gradient included, in tensors of the size of the logits. Errors: of the float32 loss "
    "(absolute) and of its gradient (2-norm, relative) against the same loss in float64 (Lovász "
    "losses: by sorting)."
)


@dataclass(frozen=True)
class LossRow:
    """A loss to measure."""

    name: str
    loss: Loss
    """Takes logits and labels."""
    exact: Loss
    """The same loss; its result for float64 logits is the reference."""
    float_labels: bool = False
    """Whether it takes labels of the logits' dtype (converted before the clock runs)."""


@dataclass(frozen=True)
class MeasuredLoss:
    """What was found out about a row."""

    name: str
    times_ms: tuple[float, ...]
    """Of a forward and a backward, by round."""
    unit_ratio: Spread
    """Time in that of the unit of the same round."""
    loop_ratio: Spread
    """Time in that of the yardstick of the same round."""
    peak_memory: float
    """Beyond the inputs, the gradient included, in tensors of the size of the logits."""
    loss_error: float
    """Absolute difference from the loss in float64."""
    gradient_error: float
    """2-norm of the difference from the float64 gradient, divided by that gradient's."""

    @property
    def median_ms(self) -> float:
        """Of the times."""
        return statistics.median(self.times_ms)

    def cells(self, unit: bool) -> tuple[str, ...]:
        """Of the table, in the order of HEADS."""
        return (
            self.name,
            f"1 = {number(self.median_ms)} ms" if unit else with_quartiles(self.unit_ratio),
            number(self.loop_ratio.median),
            f"{self.peak_memory:.1f}",
            f"{self.loss_error:.0e}",
            f"{self.gradient_error:.0e}",
        )


@dataclass(frozen=True)
class LossCase:
    """Measurements of one size and kind of logits."""

    size: Size
    logits: str
    """The kind: "random" or "trained" (``samples.py``)."""
    multiclass: tuple[MeasuredLoss, ...]
    """On logits (B, C, H, W); the first is the unit, the second the yardstick."""
    binary: tuple[MeasuredLoss, ...]
    """On logits (B, H, W), likewise."""
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""

    @property
    def contended(self) -> bool:
        """Whether that is more than there are."""
        return contended(self.load)

    def page(self, device: str) -> Page:
        """A table of two parts."""
        size = self.size
        parts = {
            f"{size.classes} classes": self.multiclass,
            f"2 classes, logits {size.batch} x {size.height} x {size.width}": self.binary,
        }
        sections = {
            heading: [row.cells(row is rows[0]) for row in rows] for heading, rows in parts.items()
        }
        return Page(f"{size}, {self.logits} logits, {device}", HEADS, sections, self.load)


@dataclass(frozen=True)
class LossSettings:
    """What to measure, and where."""

    sizes: tuple[Size, ...]
    kinds: tuple[str, ...]
    """Of logits: "random", "trained"."""
    device: torch.device
    threads: int | None
    """Of the CPU; None: as many as torch takes."""
    repeats: int
    """Rounds."""
    seed: int
    """Each case draws its logits and labels from it."""
    growing: Mapping[str, tuple[Size, ...]] = field(default_factory=dict)
    """Sizes at which the growth of the time is measured; empty: it is not."""

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        rows = len(multiclass_rows()) + len(binary_rows())
        cases = len(self.sizes) * len(self.kinds) * rows * (self.repeats + UNTIMED_PASSES)
        points = sum(map(len, self.growing.values()))
        return cases + points * len(GROWING) * (self.repeats + 1)


@dataclass(frozen=True)
class LossReport(BenchReport):
    """Measurements and what they were made with."""

    machine: Machine
    repeats: int
    seed: int
    cases: tuple[LossCase, ...]
    notes: tuple[str, ...]
    """What was not measured, and why."""
    growth: LossGrowth | None = None
    """Of the time with the size, where it was asked for."""

    def pages(self) -> Iterator[Page]:
        """One table a case, the caption once."""
        pages = [case.page(self.machine.device) for case in self.cases]
        caption = CAPTION.format(repeats=self.repeats)
        pages[-1] = replace(pages[-1], remarks=self.notes, caption=caption)
        yield from pages
        if self.growth:
            yield self.growth.page(self.machine)


def multiclass_rows() -> list[LossRow]:
    """Cross-entropy, the sort loop, every way to compute Lovász-Softmax, and other libraries'."""
    batch = partial(lovasz_softmax, method="sort")
    per_image = partial(lovasz_softmax, method="sort", per_image=True)
    return [
        LossRow("cross-entropy", F.cross_entropy, F.cross_entropy),
        LossRow("sort loop over classes", sort_loop_softmax, batch),
        *(
            LossRow(f"lovasz_softmax {method}", partial(lovasz_softmax, method=method), batch)
            for method in METHODS
        ),
        LossRow(
            "lovasz_softmax auto, per image",
            partial(lovasz_softmax, method="auto", per_image=True),
            per_image,
        ),
        *(LossRow(name, *pair) for name, pair in peers()[0].items()),
    ]


def binary_rows() -> list[LossRow]:
    """Binary cross-entropy, the sort loop, and every way to compute the Lovász hinge."""
    entropy = F.binary_cross_entropy_with_logits
    per_image = partial(lovasz_hinge, method="sort", per_image=True)
    batch = partial(lovasz_hinge, method="sort", per_image=False)
    return [
        LossRow("binary cross-entropy", entropy, entropy, float_labels=True),
        LossRow("sort loop over images", sort_loop_hinge, per_image),
        *(
            LossRow(
                f"lovasz_hinge {method}",
                partial(lovasz_hinge, method=method, per_image=True),
                per_image,
            )
            for method in METHODS
        ),
        LossRow(
            "lovasz_hinge auto, whole batch",
            partial(lovasz_hinge, method="auto", per_image=False),
            batch,
        ),
    ]


def choose_settings(
    sizes: Sequence[str] | None,
    kinds: Sequence[str],
    device: torch.device,
    threads: int | None,
    repeats: int | None,
    seed: int,
    growth: bool = False,
) -> LossSettings:
    """Settings from what was given, defaults for what was not.

    Raises:
        UserError: a size that does not exist, or does not fit the memory of the device.
    """
    chosen = [parse_size(size) for size in sizes or DEFAULT_SIZES[device.type]]
    for size in chosen:
        check_memory(size, bytes_of(size), device)
    repeats = repeats or DEFAULT_REPEATS[device.type]
    growing = growing_sizes(device) if growth else {}
    return LossSettings(tuple(chosen), tuple(kinds), device, threads, repeats, seed, growing)


def run_bench(settings: LossSettings, advance: Advance = quiet) -> LossReport:
    """Measure every loss at every size, on every kind of logits.

    Raises:
        UserError: the memory does not suffice.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cases = tuple(
        _case(size, kind, settings, advance) for size in settings.sizes for kind in settings.kinds
    )
    growth = None
    if settings.growing:
        growth = measure_growth(
            GROWING,
            settings.growing,
            settings.kinds[0],
            _generator(settings),
            settings.repeats,
            advance,
        )
    machine, notes = this_machine(settings.device), tuple(peers()[1])
    return LossReport(machine, settings.repeats, settings.seed, cases, notes, growth)


def _generator(settings: LossSettings) -> torch.Generator:
    return torch.Generator(settings.device).manual_seed(settings.seed)


def _case(size: Size, kind: str, settings: LossSettings, advance: Advance) -> LossCase:
    generator, repeats = _generator(settings), settings.repeats
    with enough_memory(size, settings.device):
        multiclass = measure(
            multiclass_rows(), *multiclass_sample(size, kind, generator), repeats, advance
        )
        binary = measure(binary_rows(), *binary_sample(size, kind, generator), repeats, advance)
    return LossCase(size, kind, multiclass, binary, load())


def measure(
    rows: Sequence[LossRow],
    logits: Tensor,
    labels: Tensor,
    repeats: int,
    advance: Advance = quiet,
) -> tuple[MeasuredLoss, ...]:
    """Measure rows, the first of which is the unit and the second the yardstick.

    Args:
        rows: at least two.
        logits: floating, on the device to measure.
        labels: of the logits, integer.
        repeats: rounds, at least 1.
        advance: told the name of the row after each of its UNTIMED_PASSES + ``repeats`` passes.
    """
    leaf = logits.detach().requires_grad_()
    # The first pass of each, which may compile or load something, is not timed.
    errors = list(_errors(rows, leaf, labels, advance))
    memory = list(_memory(rows, leaf, labels, advance))
    times = _times(rows, leaf, labels, repeats, advance)
    return tuple(
        MeasuredLoss(row.name, own, ratio(own, times[0]), ratio(own, times[1]), peak, *error)
        for row, own, peak, error in zip(rows, times, memory, errors, strict=True)
    )


def peak_memory(loss: Loss, leaf: Tensor, labels: Tensor) -> float:
    """Peak of what forward and backward allocate, in tensors of the size of the logits."""
    leaf.grad = None
    size = leaf.numel() * leaf.element_size()
    if leaf.device.type == "cuda":
        before = torch.cuda.memory_allocated(leaf.device)
        torch.cuda.reset_peak_memory_stats(leaf.device)
        loss(leaf, labels).backward()
        return (torch.cuda.max_memory_allocated(leaf.device) - before) / size
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr of itself
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss(leaf, labels).backward()
    held = peak = 0
    for _, change in sorted(_allocations(record)):
        held += change
        peak = max(peak, held)
    return peak / size


def _allocations(record: profile) -> Iterator[tuple[int, int]]:
    """Times and sizes of what was allocated (positive) and freed (negative)."""
    profiler: Any = record.profiler
    for event in profiler.kineto_results.events():
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()


def _errors(
    rows: Sequence[LossRow], leaf: Tensor, labels: Tensor, advance: Advance
) -> Iterator[tuple[float, float]]:
    exact: dict[Loss, tuple[float, Tensor]] = {}
    for row in rows:
        if row.exact not in exact:
            double = leaf.detach().double().requires_grad_()
            exact[row.exact] = _loss_and_gradient(row.exact, double, _labels(row, double, labels))
        value, gradient = _loss_and_gradient(row.loss, leaf, _labels(row, leaf, labels))
        expected, expected_gradient = exact[row.exact]
        norm = expected_gradient.norm().item() or 1.0
        difference = (expected_gradient - gradient).norm().item()
        yield abs(value - expected), difference / norm
        advance(row.name)


def _loss_and_gradient(loss: Loss, leaf: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    leaf.grad = None
    value = loss(leaf, labels)
    value.backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad


def _memory(
    rows: Sequence[LossRow], leaf: Tensor, labels: Tensor, advance: Advance
) -> Iterator[float]:
    for row in rows:
        yield peak_memory(row.loss, leaf, _labels(row, leaf, labels))
        advance(row.name)


def _times(
    rows: Sequence[LossRow], leaf: Tensor, labels: Tensor, repeats: int, advance: Advance
) -> list[tuple[float, ...]]:
    """Milliseconds of a forward and a backward of each row, by round."""

    def timed(row: LossRow, round_: int, given: Tensor) -> float:
        def both() -> None:
            leaf.grad = None
            row.loss(leaf, given).backward()

        return milliseconds(both, leaf.device)

    ways = {row.name: partial(timed, row, given=_labels(row, leaf, labels)) for row in rows}
    return list(in_turn(ways, repeats, advance).values())


def _labels(row: LossRow, leaf: Tensor, labels: Tensor) -> Tensor:
    return labels.to(leaf.dtype) if row.float_labels else labels
