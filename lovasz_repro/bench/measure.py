"""How the losses are measured: time in rounds, peak memory, and errors against float64.

A machine that others use, or that changes its clock, is not equally fast all the time. So rows
take turns, one repetition of each a round, and are compared with the first row, the unit, and the
second, the yardstick, within the round.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lovasz_repro.bench.machine import synchronise

Loss = Callable[[Tensor, Tensor], Tensor]
UNTIMED_PASSES = 2  # one for the errors, one for the memory
SHORTEST_MS = 20.0  # a single call of less would be timed poorly


@dataclass(frozen=True)
class Row:
    """A loss to measure."""

    name: str
    loss: Loss
    """Takes logits and labels."""
    exact: Loss
    """The same loss; its result for float64 logits is the reference."""
    float_labels: bool = False
    """Whether it takes labels of the logits' dtype (converted before the clock runs)."""


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Measured:
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


def measure(
    rows: Sequence[Row],
    logits: Tensor,
    labels: Tensor,
    repeats: int,
    advance: Callable[[str], None] = lambda name: None,
) -> tuple[Measured, ...]:
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
        Measured(row.name, own, ratio(own, times[0]), ratio(own, times[1]), peak, *error)
        for row, own, peak, error in zip(rows, times, memory, errors, strict=True)
    )


def ratio(times: Sequence[float], unit: Sequence[float]) -> Spread:
    """Median and quartiles of times divided by those of the unit, round by round."""
    ratios = [own / other for own, other in zip(times, unit, strict=True)]
    if len(ratios) == 1:
        return Spread(*ratios * 3)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Spread(median, low, high)


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
    rows: Sequence[Row], leaf: Tensor, labels: Tensor, advance: Callable[[str], None]
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
    rows: Sequence[Row], leaf: Tensor, labels: Tensor, advance: Callable[[str], None]
) -> Iterator[float]:
    for row in rows:
        yield peak_memory(row.loss, leaf, _labels(row, leaf, labels))
        advance(row.name)


def _times(
    rows: Sequence[Row],
    leaf: Tensor,
    labels: Tensor,
    repeats: int,
    advance: Callable[[str], None],
) -> list[tuple[float, ...]]:
    """Milliseconds of each row, by round."""
    times: list[list[float]] = [[] for _ in rows]
    inputs = [_labels(row, leaf, labels) for row in rows]
    for _ in range(repeats):
        for row, own, given in zip(rows, times, inputs, strict=True):
            own.append(_milliseconds(row.loss, leaf, given))
            advance(row.name)
    return [tuple(own) for own in times]


def _milliseconds(loss: Loss, leaf: Tensor, labels: Tensor) -> float:
    """Of forward and backward: the mean of as many calls as fill SHORTEST_MS, at least one."""
    calls, elapsed = 0, 0.0
    synchronise(leaf.device)
    began = time.perf_counter()
    while elapsed < SHORTEST_MS:
        leaf.grad = None
        loss(leaf, labels).backward()
        synchronise(leaf.device)
        calls += 1
        elapsed = 1000 * (time.perf_counter() - began)
    return elapsed / calls


def _labels(row: Row, leaf: Tensor, labels: Tensor) -> Tensor:
    return labels.to(leaf.dtype) if row.float_labels else labels
