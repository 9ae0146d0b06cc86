"""What the losses cost: time and how it grows, peak memory, and errors against float64.

The unit of time is the cross-entropy, which every training step can afford; the yardstick is
Algorithm 1 as it is usually written (``yardsticks.py``).
"""

import io
import os
import statistics
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lovasz_repro.bench import harness
from lovasz_repro.bench.harness import (
    QUIET,
    Advance,
    Column,
    Machine,
    Page,
    Report,
    Row,
    enough_memory,
    ratio,
)
from lovasz_repro.bench.yardsticks import (
    Loss,
    Size,
    binary_sample,
    bytes_of,
    check_memory,
    fits,
    multiclass_sample,
    parse_size,
    peers,
    sort_loop_hinge,
    sort_loop_softmax,
)
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.output import plural
from lovasz_repro.losses import lovasz_hinge, lovasz_softmax
from lovasz_repro.report.style import BLUE, GREY, ORANGE, PAGE, RC, RED

UNTIMED_PASSES = 2  # one for the errors, one for the memory
MEASURED_METHODS = ("sort", "histogram", "auto")
LOGIT_KINDS = ("random", "trained")
# Crops of Pascal VOC (Sec. 4.2) and Cityscapes at half its size (Sec. 4.3).
LOSS_SIZES = {
    "cpu": ("2x21x321x321", "2x19x512x1024"),
    "cuda": ("10x21x321x321", "10x19x512x1024"),
}
GROWING: dict[str, Loss] = {
    "cross-entropy": F.cross_entropy,
    "sort loop over classes": sort_loop_softmax,
    "lovasz_softmax auto": partial(lovasz_softmax, method="auto"),
}
"""Losses whose time is measured at growing sizes; the first is the unit."""
LOSS_ROUNDS = {"cpu": 5, "cuda": 30}
UNITS = "cross-entropy", "binary cross-entropy"
LOSS_COLUMNS = (
    ("loss", itemgetter("name")),
    ("time /\ncross-entropy", lambda row: _time(row)),
    ("time /\nsort loop", lambda row: harness.number(row["loop_ratio"].median)),
    ("peak\nmemory", lambda row: f"{row['peak_memory']:.1f}"),
    ("loss\nerror", lambda row: f"{row['loss_error']:.0e}"),
    ("gradient\nerror", lambda row: f"{row['gradient_error']:.0e}"),
)
CAPTION = (
    "Time: forward and backward, divided by that of cross-entropy (2 classes: binary "
    "cross-entropy) and of the sort loop in the same round; median (quartiles) over the rounds "
    "({rounds}). Sort loop: Algorithm 1 in plain PyTorch with autograd, over the classes of the "
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


def multiclass_rows() -> list[LossRow]:
    """Cross-entropy, the sort loop, every way to compute Lovász-Softmax, and other libraries'."""
    entropy, sort = F.cross_entropy, partial(lovasz_softmax, method="sort")
    batch, per_image = sort, partial(sort, per_image=True)
    ours = {method: partial(lovasz_softmax, method=method) for method in MEASURED_METHODS}
    auto = partial(ours["auto"], per_image=True)
    return [
        LossRow("cross-entropy", entropy, entropy),
        LossRow("sort loop over classes", sort_loop_softmax, batch),
        *(LossRow(f"lovasz_softmax {method}", loss, batch) for method, loss in ours.items()),
        LossRow("lovasz_softmax auto, per image", auto, per_image),
        *(LossRow(name, *pair) for name, pair in peers()[0].items()),
    ]


def binary_rows() -> list[LossRow]:
    """Binary cross-entropy, the sort loop, and every way to compute the Lovász hinge."""
    entropy, sort = F.binary_cross_entropy_with_logits, partial(lovasz_hinge, method="sort")
    batch, per_image = partial(sort, per_image=False), partial(sort, per_image=True)
    ours = {
        method: partial(lovasz_hinge, method=method, per_image=True) for method in MEASURED_METHODS
    }
    auto = partial(ours["auto"], per_image=False)
    return [
        LossRow("binary cross-entropy", entropy, entropy, float_labels=True),
        LossRow("sort loop over images", sort_loop_hinge, per_image),
        *(LossRow(f"lovasz_hinge {method}", loss, per_image) for method, loss in ours.items()),
        LossRow("lovasz_hinge auto, whole batch", auto, batch),
    ]


def run_bench(
    size: Sequence[str] | None,
    logits: Sequence[str] | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    seed: int,
    figure: Path | None = None,
    advance: Advance = QUIET,
) -> Report:
    """Measure every loss at every size, on every kind of logits; defaults are for what is None.

    With a figure, the growth of the time is measured too, and drawn.

    Raises:
        UserError: a size that does not exist, or does not fit the memory of the device; a figure
            that cannot be drawn.
    """
    if figure:
        check_figure(figure)
    sizes, kinds = sizes_of(size, device), list(logits or LOGIT_KINDS)
    rounds = rounds or LOSS_ROUNDS[device.type]
    growing = growing_sizes(device) if figure else {}
    rows = len(multiclass_rows()) + len(binary_rows())
    points = sum(map(len, growing.values())) * len(GROWING)
    passes = len(sizes) * len(kinds) * rows * (rounds + UNTIMED_PASSES) + points * (rounds + 1)
    advance.expect(passes)
    if threads:
        torch.set_num_threads(threads)

    def generator() -> torch.Generator:
        return torch.Generator(device).manual_seed(seed)

    cases = [_case(one, kind, generator(), rounds, advance) for one in sizes for kind in kinds]
    growth = None
    if figure:
        growth = measure_growth(GROWING, growing, kinds[0], generator(), rounds, advance)
    machine, notes = harness.this_machine(device), peers()[1]
    found = {"rounds": rounds, "seed": seed, "cases": cases, "notes": notes, "growth": growth}
    pages = [_page(case, machine.device) for case in cases]
    pages[-1] = replace(pages[-1], remarks=notes, caption=CAPTION.format(rounds=rounds))
    if growth and figure:
        pages.append(growth_page(growth, machine))
        draw(growth, machine, figure)
    return Report(machine, found, pages)


def sizes_of(given: Sequence[str] | None, device: torch.device) -> list[Size]:
    """Of the logits.

    Raises:
        UserError: one that does not exist, or does not fit the memory of the device.
    """
    sizes = [parse_size(text) for text in given or LOSS_SIZES[device.type]]
    for size in sizes:
        check_memory(size, bytes_of(size), device)
    return sizes


def _case(
    size: Size, kind: str, generator: torch.Generator, rounds: int, advance: Advance
) -> dict[str, Any]:
    """Measurements of one size and kind of logits; the machine may be busy in one of many."""
    with enough_memory(size, generator.device):
        multiclass = measure(
            multiclass_rows(), *multiclass_sample(size, kind, generator), rounds, advance
        )
        binary = measure(binary_rows(), *binary_sample(size, kind, generator), rounds, advance)
    load = os.getloadavg()[0]
    case = {"size": size, "logits": kind, "multiclass": multiclass, "binary": binary}
    return case | {"load": load, "contended": harness.contended(load)}


def _page(case: Row, device: str) -> Page:
    """A table of two parts."""
    size = case["size"]
    sections = {
        f"{size.classes} classes": case["multiclass"],
        f"2 classes, logits {size.batch} x {size.height} x {size.width}": case["binary"],
    }
    return Page(f"{size}, {case['logits']} logits, {device}", LOSS_COLUMNS, sections, case["load"])


def _time(row: Row) -> str:
    if row["name"] in UNITS:
        return f"1 = {harness.number(row['median_ms'])} ms"
    return harness.with_quartiles(row["unit_ratio"])


def measure(
    rows: Sequence[LossRow],
    logits: Tensor,
    labels: Tensor,
    rounds: int,
    advance: Advance = QUIET,
) -> list[Row]:
    """Measure rows, the first of which is the unit and the second the yardstick.

    Args:
        rows: at least two.
        logits: floating, on the device to measure.
        labels: of the logits, integer.
        rounds: at least 1.
        advance: told the name of the row after each of its UNTIMED_PASSES + ``rounds`` passes.

    Returns:
        Of each the times of a forward and a backward by round, their ratios to those of unit
        and yardstick, peak memory, and errors: of the loss, absolute, and of the gradient, the
        2-norm of the difference divided by that of the float64 gradient.
    """
    leaf = logits.detach().requires_grad_()
    # The first pass of each, which may compile or load something, is not timed.
    errors = list(_errors(rows, leaf, labels, advance))
    memory = list(_memory(rows, leaf, labels, advance))
    given = {row.name: (row.loss, leaf, _labels(row, leaf, labels)) for row in rows}
    ways = {name: lambda _, own=own: harness.both_ways(*own) for name, own in given.items()}
    times = list(harness.in_turn(ways, rounds, advance).values())
    return [
        {
            "name": row.name,
            "times_ms": own,
            "median_ms": statistics.median(own),
            "unit_ratio": ratio(own, times[0]),
            "loop_ratio": ratio(own, times[1]),
            "peak_memory": peak,
            "loss_error": loss_error,
            "gradient_error": gradient_error,
        }
        for row, own, peak, (loss_error, gradient_error) in zip(
            rows, times, memory, errors, strict=True
        )
    ]


def peak_memory(loss: Loss, leaf: Tensor, labels: Tensor) -> float:
    """Peak of what forward and backward allocate, in tensors of the size of the logits.

    On a CPU the sum of two peaks, of tensors and of NumPy's arrays: not less than the peak of both.
    """
    leaf.grad = None
    size = leaf.numel() * leaf.element_size()
    if leaf.device.type == "cuda":
        before = torch.cuda.memory_allocated(leaf.device)
        torch.cuda.reset_peak_memory_stats(leaf.device)
        loss(leaf, labels).backward()
        return (torch.cuda.max_memory_allocated(leaf.device) - before) / size
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr of itself
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        tracemalloc.start()
        loss(leaf, labels).backward()
        arrays = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    held = peak = 0
    for _, change in sorted(_allocations(record)):
        held += change
        peak = max(peak, held)
    return (peak + arrays) / size


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


def _labels(row: LossRow, leaf: Tensor, labels: Tensor) -> Tensor:
    return labels.to(leaf.dtype) if row.float_labels else labels


# ---- How the time grows --------------------------------------------------------------------------
#
# With the pixels and with the classes: a table and a figure.

IMAGE_SIDES = (100, 178, 316, 562, 1000, 1778, 3162)  # of a square image: 1e4 to 1e7 pixels
CLASS_COUNTS = (2, 5, 10, 21, 50, 100, 150)
USUAL_CLASSES, USUAL_SIDE = 21, 316
FIGURE_FORMATS = ("pdf", "png", "svg")
CURVE_COLOURS = (BLUE, ORANGE, RED)
GROWTH_CAPTION = (
    "Forward and backward of one image of {kind} logits; {classes} classes where the pixels grow, "
    "{pixels:,} pixels where the classes do. Times: median of {rounds}; divided by that of the "
    "first loss in the same round: median (quartiles)."
)


def growth_page(growth: Row, machine: Machine) -> Page:
    """A table of two parts: more pixels, more classes."""
    points = growth["pixels"]
    unit, *others = points[0]["times_ms"]
    largest = points[-1]["pixels"]
    left_out = f"More than {largest:,} pixels did not fit the memory."

    def in_units(point: Row, name: str) -> str:
        return harness.with_quartiles(
            harness.ratio(point["times_ms"][name], point["times_ms"][unit])
        )

    columns: list[Column] = [
        ("pixels", lambda point: f"{point['pixels']:,}"),
        ("classes", lambda point: str(point["classes"])),
        (f"{unit}\nms", lambda point: harness.number(statistics.median(point["times_ms"][unit]))),
        *((f"{name} /\n{unit}", partial(in_units, name=name)) for name in others),
    ]
    return Page(
        f"Growth of the losses' time, {machine.device}",
        columns,
        {f"more {along}": growth[along] for along in ("pixels", "classes")},
        machine.load,
        (left_out,) if largest < IMAGE_SIDES[-1] ** 2 else (),
        GROWTH_CAPTION.format(
            kind=growth["logits"],
            classes=USUAL_CLASSES,
            pixels=USUAL_SIDE**2,
            rounds=plural(growth["rounds"], "round"),
        ),
    )


def growing_sizes(device: torch.device) -> dict[str, tuple[Size, ...]]:
    """Sizes with more and more pixels, and with more and more classes, that fit the memory."""
    wanted = {
        "pixels": [Size(1, USUAL_CLASSES, side, side) for side in IMAGE_SIDES],
        "classes": [Size(1, classes, USUAL_SIDE, USUAL_SIDE) for classes in CLASS_COUNTS],
    }
    return {
        along: tuple(size for size in sizes if fits(size, device))
        for along, sizes in wanted.items()
    }


def measure_growth(
    losses: Mapping[str, Loss],
    sizes: Mapping[str, tuple[Size, ...]],
    kind: str,
    generator: torch.Generator,
    rounds: int,
    advance: Advance,
) -> Row:
    """Time losses, the first of which is the unit, at growing sizes.

    Args:
        losses: by name.
        sizes: `growing_sizes`.
        kind: of logits.
        generator: of logits and labels, on the device to measure.
        rounds: at least 1.
        advance: told the name of the loss after each turn, of which one more is taken.

    Returns:
        Along pixels and along classes, of each size the times of each loss by round.
    """

    def point(size: Size) -> Row:
        with harness.enough_memory(size, generator.device):
            logits, labels = multiclass_sample(size, kind, generator)
            leaf = logits.requires_grad_()
            ways = {
                name: lambda _, loss=loss: harness.both_ways(loss, leaf, labels)
                for name, loss in losses.items()
            }
            times = harness.in_turn(ways, rounds, advance, warm_up=1)
        pixels = size.height * size.width
        return {"size": size, "pixels": pixels, "classes": size.classes, "times_ms": times}

    found = {along: [point(size) for size in of_one] for along, of_one in sizes.items()}
    return {"logits": kind, "rounds": rounds, **found}


def check_figure(path: Path) -> None:
    """Refuse a file that cannot be drawn, before anything is measured.

    Raises:
        UserError: another format, or no such folder.
    """
    if path.suffix[1:].lower() not in FIGURE_FORMATS:
        raise UserError(f"--figure {path}: give a name that ends in .pdf, .png or .svg.")
    if not path.parent.is_dir():
        raise UserError(f"--figure {path}: there is no folder {path.parent}.")


def draw(growth: Row, machine: Machine, path: Path) -> None:
    """Draw time against pixels and against classes, both axes logarithmic, with quartiles.

    Raises:
        RunFailed: the disk refuses.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with rc_context(RC):
        figure = Figure(figsize=(PAGE, 2.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_panel(left, growth["pixels"], "pixels")
        _draw_panel(right, growth["classes"], "classes")
        left.set(xlabel=f"pixels ({USUAL_CLASSES} classes)", ylabel="forward + backward, ms")
        right.set(xlabel=f"classes ({USUAL_SIDE**2:,} pixels)")
        left.legend(title=f"{machine.device}, {growth['logits']} logits")
        figure.savefig(buffer, format=path.suffix[1:].lower())
    try:
        write_durably(path, buffer.getvalue())
    except OSError as error:
        raise RunFailed(f"cannot write {path}: {error.strerror or error}.") from error


def _draw_panel(axes: Any, points: Sequence[Row], along: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.grid(True)
    sizes = [point[along] for point in points]
    for name, colour in zip(points[0]["times_ms"], CURVE_COLOURS, strict=True):
        times = [point["times_ms"][name] for point in points]
        # A ratio to a unit of 1 is the time itself.
        spreads = [harness.ratio(own, [1.0] * len(own)) for own in times]
        axes.plot(sizes, [s.median for s in spreads], "o-", color=colour, label=name)
        low, high = [s.low for s in spreads], [s.high for s in spreads]
        axes.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
    last = statistics.median(next(iter(points[-1]["times_ms"].values())))
    line = [last * size / sizes[-1] for size in sizes]
    axes.plot(sizes, line, ":", color=GREY, label="in proportion to the size")
