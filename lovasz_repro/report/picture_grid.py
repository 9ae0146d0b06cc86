"""Rows of pictures with a heading over each column and a legend of colours: Figures 4, 5 and 7."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lovasz_repro.report.style import GREY, PAGE

TALLEST = 6.4
"""Height of all rows together, inches."""
SIDE, GAP, TITLE_LINE, UNDER_LINE, LEGEND_LINE = 0.02, 0.05, 0.125, 0.17, 0.13
"""Sizes of the parts around the pictures, inches."""


@dataclass(frozen=True)
class Tile:
    """One picture with its column's heading, and what stands under it."""

    heading: str
    picture: np.ndarray
    """(H, W, 3) uint8."""
    under: str
    bold: bool = False
    """What stands under it."""
    smooth: bool = True
    """Whether colours may be mixed where the picture is shrunk."""


def picture_grid(
    title: str,
    rows: Sequence[Sequence[Tile]],
    legend: Mapping[str, str],
    *,
    legend_columns: int,
) -> Any:
    """A figure as wide as the page.

    Args:
        title: over all of it, in as many lines as it needs.
        rows: as many pictures each, those of a row of one size.
        legend: name -> colour, below all of it.
        legend_columns: names in a line of it.
    """
    from matplotlib.figure import Figure

    lines = textwrap.wrap(title, 150, break_on_hyphens=False)
    wide = (PAGE - 2 * SIDE - GAP * (len(rows[0]) - 1)) / len(rows[0])
    limit = TALLEST / len(rows) - UNDER_LINE
    shapes = [row[0].picture.shape for row in rows]
    heights = [min(wide * shape[0] / shape[1], limit) for shape in shapes]
    head = TITLE_LINE * len(lines) + 0.2
    foot = LEGEND_LINE * -(-len(legend) // legend_columns) + 0.07
    height = head + sum(heights) + UNDER_LINE * len(rows) + foot
    figure = Figure(figsize=(PAGE, height))
    figure.text(0.5, 1 - 0.02 / height, "\n".join(lines), ha="center", va="top", fontsize=6.5,
                color=GREY, linespacing=1.15, parse_math=False)  # fmt: skip
    top = height - head
    for number, (tiles, tall) in enumerate(zip(rows, heights, strict=True)):
        for column, tile in enumerate(tiles):
            left = SIDE + column * (wide + GAP)
            box = (left / PAGE, (top - tall) / height, wide / PAGE, tall / height)
            ax = figure.add_axes(box, xticks=[], yticks=[])
            _show(ax, tile, heading=number == 0)
        top -= tall + UNDER_LINE
    _legend(figure, legend, legend_columns)
    return figure


def _show(ax: Any, tile: Tile, *, heading: bool) -> None:
    ax.imshow(tile.picture, interpolation="antialiased" if tile.smooth else "none")
    for spine in ax.spines.values():
        spine.set(visible=True, color=GREY, linewidth=0.4)
    if heading:
        ax.set_title(tile.heading, pad=3)
    weight = "bold" if tile.bold else "normal"
    ax.set_xlabel(tile.under, fontsize=6.5, labelpad=2, weight=weight, parse_math=False)


def _legend(figure: Any, colours: Mapping[str, str], columns: int) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=colour, edgecolor=GREY, lw=0.4, label=name)
        for name, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=min(columns, len(handles)),
                  fontsize=6.5, handlelength=1.0, handleheight=0.8, columnspacing=1.6,
                  labelspacing=0.3, borderaxespad=0.1)  # fmt: skip
