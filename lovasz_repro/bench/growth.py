"""How the time of a loss grows with the pixels and with the classes: a table and a figure."""

import io
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lovasz_repro.bench import harness
from lovasz_repro.bench.harness import Advance, Column, Machine, Page, Row
from lovasz_repro.bench.yardsticks import Loss, Size, fits, multiclass_sample
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.output import plural
from lovasz_repro.report.style import BLUE, GREY, ORANGE, PAGE, RC, RED

IMAGE_SIDES = (100, 178, 316, 562, 1000, 1778, 3162)  # of a square image: 1e4 to 1e7 pixels
CLASS_COUNTS = (2, 5, 10, 21, 50, 100, 150)
USUAL_CLASSES, USUAL_SIDE = 21, 316
FIGURE_FORMATS = ("pdf", "png", "svg")
CURVE_COLOURS = (BLUE, ORANGE, RED)
CAPTION = (
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
        CAPTION.format(
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
