"""Sec. 4.1 to try: one image, its mask at any bias, and where that is on the curve of each loss."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from lovasz_repro.report.layout import number, precise
from lovasz_repro.report.model import Missing
from lovasz_repro.report.runs import Provenance, RunStore, command, sources
from lovasz_repro.report.style import SEARCHED
from lovasz_repro.report.synthetic_figure import JACCARD_CURVE, LOSS_DASHES, relative, searched

MOST_BIASES, MOST_PIXELS = 10_000, 128
"""Of what a stored run may hold, and a page can."""
LEFT, RIGHT, TOP, BOTTOM = 40, 590, 12, 222
"""Of the curves in the plot, in its own units."""


@dataclass(frozen=True)
class BiasCurve:
    """A loss against the bias, between its minimum (0) and its maximum (1)."""

    name: str
    title: str
    colour: str
    dashes: str
    wide: bool
    path: str
    """As SVG has it."""
    argmin: int
    """Which bias."""
    lowest: str
    """That bias as text."""


@dataclass(frozen=True)
class BiasSlider:
    """What the page shows, and the numbers that its script moves."""

    curves: tuple[BiasCurve, ...]
    biases: list[float]
    start: float
    """Where the slider stands at first: the minimum of the Lovász hinge."""
    ticks: tuple[tuple[float, str], ...]
    """Places of whole biases on the axis, and their names."""
    size: int
    data: Markup
    """JSON."""
    sources: tuple[Provenance, ...]


def bias_slider(store: RunStore) -> BiasSlider | Missing:
    """That of the search that Figure 3 shows."""
    found = searched(store)
    if isinstance(found, Missing):
        return found
    losses = {name: found.curves[name] for name in SEARCHED if name in found.curves}
    biases = found.curves.get("b", [])
    if fault := _fault(biases, losses, found.label, found.features):
        return Missing(f"{found.run.name}: {fault}", command("synthetic"))
    curves = tuple(_curve(name, biases, values) for name, values in losses.items())
    by_name = {curve.name: curve for curve in curves}
    first = by_name.get("lovasz_hinge", curves[0])
    content = {
        "b": biases,
        "losses": losses,
        "label": found.label.ravel().tolist(),
        "features": found.features.ravel().tolist(),
        "plot": [LEFT, RIGHT, TOP, BOTTOM],
    }
    return BiasSlider(
        curves=curves,
        biases=biases,
        start=biases[first.argmin],
        ticks=tuple(_ticks(biases)),
        size=len(found.label),
        data=Markup(json.dumps(precise(content, 9), separators=(",", ":")).replace("<", "\\u003c")),
        sources=sources([found.run]),
    )


def _fault(biases: Sequence[float], losses: Any, label: Any, features: Any) -> str:
    """What keeps stored files, which may be anybody's, from being shown."""
    steps = [after - before for before, after in pairwise(biases)]
    if not 2 <= len(biases) <= MOST_BIASES or min(steps) <= 0 or max(steps) > 1.01 * min(steps):
        return "curves.csv has no even grid of biases"
    if JACCARD_CURVE not in losses or not all(map(math.isfinite, sum(losses.values(), [*biases]))):
        return "curves.csv lacks the Jaccard loss, or has what is not a number"
    size = len(label) if label.ndim == 2 else 0
    square = label.shape == features.shape == (size, size) and 1 <= size <= MOST_PIXELS
    of_numbers = label.dtype.kind in "bui" and features.dtype.kind == "f"
    if not square or not of_numbers or not all(map(math.isfinite, features.ravel().tolist())):
        return "sample.npz has no square image"
    return ""


def _curve(name: str, biases: Sequence[float], values: Sequence[float]) -> BiasCurve:
    title, colour = SEARCHED[name]
    heights = relative(values)
    at = heights.index(0.0)
    points = (f"{_x(biases, b):.2f} {_y(h):.2f}" for b, h in zip(biases, heights, strict=True))
    return BiasCurve(
        name=name,
        title=title,
        colour="currentColor" if name == JACCARD_CURVE else colour,
        dashes="6 3" if name in LOSS_DASHES else "none",
        wide=name == JACCARD_CURVE,
        path="M" + "L".join(points),
        argmin=at,
        lowest=number(biases[at], 2),
    )


def _x(biases: Sequence[float], bias: float) -> float:
    return LEFT + (RIGHT - LEFT) * (bias - biases[0]) / (biases[-1] - biases[0])


def _y(height: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * height


def _ticks(biases: Sequence[float]) -> list[tuple[float, str]]:
    first, last = math.ceil(biases[0]), math.floor(biases[-1])
    step = max(1, round((last - first) / 6))
    return [(_x(biases, bias), number(bias, 0)) for bias in range(first, last + 1, step)]
