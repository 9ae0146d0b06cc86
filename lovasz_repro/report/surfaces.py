"""Figures 1 and 2: the losses of two pixels, for each of their four ground truths.

Drawn from ``lovasz_repro.losses`` itself, so a wrong loss is a wrong picture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lovasz_repro.report.model import Curve, Drawing
from lovasz_repro.report.runs import RunStore
from lovasz_repro.report.style import DOT_RED, PAGE
from lovasz_repro.report.words import figure_caption

Grid = npt.NDArray[np.float64]
GROUND_TRUTHS = ((-1, -1), (-1, 1), (1, -1), (1, 1))
"""(y1*, y2*) of the four panels; 1 is the foreground."""


@dataclass(frozen=True)
class Surface:
    """How a figure turns its two axes into errors, and where the discrete index stands."""

    symbol: str
    limits: tuple[float, float]
    ticks: tuple[float, ...]
    right: float
    """Where a pixel counts as rightly labelled, and below as wrongly."""
    wrong: float
    errors: Callable[[Grid], Grid]
    """Axis value -> error of the pixel."""
    view: tuple[float, float]
    """Elevation and azimuth of the camera, degrees."""
    z_ticks: tuple[float, ...]


HINGE = Surface("r", (-1.0, 2.0), (-1, 0, 1, 2), 0.0, 1.0, lambda r: np.maximum(r, 0.0),
                (24.0, -122.0), (0, 1, 2))  # fmt: skip
"""Relative margins r_i = 1 - F_i y_i*, errors max(r_i, 0) (Eq. 10)."""

SOFTMAX = Surface("d", (-6.0, 6.0), (-6, 0, 6), 6.0, -6.0, lambda d: 1.0 / (1.0 + np.exp(d)),
                  (24.0, 58.0), (0, 0.5, 1))  # fmt: skip
"""Score differences d_i = F_i(y_i*) - F_i(1 - y_i*): errors are 1 - f_i(y_i*) = 1 / (1 + e^d)
for the foreground class, whichever of the two classes the pixel has (Eq. 2 and 11)."""


def figure_1(store: RunStore) -> Drawing:
    """Lovász hinge of two pixels against their relative margins."""
    return _draw(HINGE, figure_caption("figure-1"))


def figure_2(store: RunStore) -> Drawing:
    """Lovász-Softmax of two pixels against their score differences."""
    return _draw(SOFTMAX, figure_caption("figure-2"))


def loss_of_two_pixels(errors: Grid, ground_truth: tuple[int, int]) -> Grid:
    """Lovász extension of the Jaccard loss (Eq. 8).

    Args:
        errors: errors of the two pixels, (..., 2).
        ground_truth: labels -1 or 1 of the two pixels.

    Returns:
        Losses, (...).
    """
    import torch

    from lovasz_repro.losses import JaccardLoss, lovasz_extension

    foreground = torch.tensor([label == 1 for label in ground_truth]).expand(errors.shape)
    losses = lovasz_extension(torch.from_numpy(errors), foreground, JaccardLoss())
    return np.asarray(losses, dtype=np.float64)


def discrete_jaccard_loss(wrong: tuple[bool, bool], ground_truth: tuple[int, int]) -> float:
    """Jaccard loss of the foreground for a set of mispredicted pixels (Eq. 6)."""
    foreground = {i for i, label in enumerate(ground_truth) if label == 1}
    mispredicted = {i for i, is_wrong in enumerate(wrong) if is_wrong}
    union = foreground | mispredicted
    return len(mispredicted) / len(union) if union else 0.0


def _draw(surface: Surface, caption: str) -> Drawing:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 1.75))
    curves: list[Curve] = []
    for i, ground_truth in enumerate(GROUND_TRUTHS):
        axes = figure.add_axes((0.25 * i, -0.06, 0.25, 1.12), projection="3d",
                               computed_zorder=False)  # fmt: skip
        curves += _panel(axes, surface, ground_truth)
    return Drawing(figure, caption, tuple(curves))


def _panel(axes: Any, surface: Surface, ground_truth: tuple[int, int]) -> list[Curve]:
    ticks = np.linspace(*surface.limits, 61)
    first, second = np.meshgrid(ticks, ticks, indexing="ij")
    errors = np.stack([surface.errors(first), surface.errors(second)], axis=-1)
    loss = loss_of_two_pixels(errors, ground_truth)
    axes.plot_surface(first, second, loss, cmap="viridis", rcount=60, ccount=60,
                      linewidth=0, antialiased=True, rasterized=True, zorder=1)  # fmt: skip
    axes.plot_wireframe(first, second, loss, rcount=12, ccount=12, color="white",
                        linewidth=0.25, alpha=0.7, zorder=2)  # fmt: skip
    dots = _dots(surface, ground_truth)
    axes.scatter(*dots, color=DOT_RED, s=14, depthshade=False, edgecolor="white", linewidth=0.4,
                 zorder=3)  # fmt: skip
    _dress(axes, surface, ground_truth)
    panel = f"GT = {list(ground_truth)}"
    names = (f"{surface.symbol}1", f"{surface.symbol}2", "loss")
    flat = dict(zip(names, (first.ravel().tolist(), second.ravel().tolist(), loss.ravel().tolist()),
                    strict=True))  # fmt: skip
    return [
        Curve(panel, "loss", flat, computed="lovasz_repro.losses.lovasz_extension"),
        Curve(
            panel, "discrete Jaccard loss", dict(zip(names, dots, strict=True)), computed="Eq. 6"
        ),
    ]


def _dots(surface: Surface, ground_truth: tuple[int, int]) -> tuple[list[float], ...]:
    """Positions and heights of the discrete losses, one per set of mispredictions."""
    sets = [(a, b) for a in (False, True) for b in (False, True)]
    where = [[surface.wrong if w else surface.right for w in wrong] for wrong in sets]
    heights = [discrete_jaccard_loss(wrong, ground_truth) for wrong in sets]
    return [x for x, _ in where], [y for _, y in where], heights


def _dress(axes: Any, surface: Surface, ground_truth: tuple[int, int]) -> None:
    axes.view_init(*surface.view)
    axes.set_box_aspect((1, 1, 0.8), zoom=0.95)
    axes.set_title(f"GT = [{ground_truth[0]}, {ground_truth[1]}]".replace("-", "−"), y=0.93)
    labels = (f"${surface.symbol}_1$", f"${surface.symbol}_2$", "")
    ticks = (surface.ticks, surface.ticks, surface.z_ticks)
    for axis, label, places in zip(
        (axes.xaxis, axes.yaxis, axes.zaxis), labels, ticks, strict=True
    ):
        axis.set_pane_color((1.0, 1.0, 1.0, 0.0))
        axis._axinfo["grid"].update(color="#dddddd", linewidth=0.4)
        axis.set_ticks(places, [f"{place:g}".replace("-", "−") for place in places])
        axis.set_rotate_label(False)
        axis.set_label_text(label)
        axis.labelpad = -10
    axes.text2D(0.06, 0.84, "loss", transform=axes.transAxes, fontsize=7)
    axes.tick_params(pad=-4.5, labelsize=6.5)
