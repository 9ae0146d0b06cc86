"""Figures 1 to 3: the losses of two pixels, and of noisy circles against the bias b."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from lovasz_repro.errors import UserError
from lovasz_repro.report.model import Curve, Drawing, Missing
from lovasz_repro.report.runs import (
    Run,
    RunStore,
    cohorts,
    command,
    mean_and_spread,
    setting,
    sources,
)
from lovasz_repro.report.style import DOT_RED, GREY, PAGE, SEARCHED
from lovasz_repro.report.words import figure_caption

# ---- Figures 1 and 2 -----------------------------------------------------------------------------
#
# Figures 1 and 2: the losses of two pixels, for each of their four ground truths.
#
# Drawn from ``lovasz_repro.losses`` itself, so a wrong loss is a wrong picture.

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


# ---- Figure 3 ------------------------------------------------------------------------------------

JACCARD_CURVE = "jaccard"
NOISE, RADIUS = "circles.noise", "circles.radius"
LOSS_DASHES = {"hinge": "--"}
"""Its curve runs close to that of cross-entropy."""


@dataclass(frozen=True)
class SearchShown:
    """What a stored search keeps of its first seed."""

    run: Run
    curves: dict[str, list[float]]
    """"b" and the value of each loss there."""
    label: Any
    """(size, size) uint8, the first image."""
    features: Any
    """(size, size) float32, its features."""


def searched(store: RunStore) -> SearchShown | Missing:
    """The search that figures show: the first that is no sweep."""
    found = [cohort for cohort in cohorts(store, "synthetic") if cohort.profile != "sweep"]
    if not found:
        return Missing("no finished synthetic run is stored", command("synthetic"))
    run = found[0].runs[0]
    try:
        curves = read_curves(store.artifact(run.run_id, "curves.csv"))
        return SearchShown(run, curves, *_sample(store.artifact(run.run_id, "sample.npz")))
    except UserError as error:
        return Missing(str(error), command("synthetic"))
    except (OSError, ValueError, TypeError, LookupError, BadZipFile):
        broken = f"{run.name}: curves.csv or sample.npz is not what a search stores"
        return Missing(broken, command("synthetic"))


def figure_3(store: RunStore) -> Drawing | Missing:
    """A label with its features, and the relative losses with the minimum of each."""
    found = searched(store)
    if isinstance(found, Missing):
        return found

    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 2.2))
    grid = figure.add_gridspec(
        1, 4, width_ratios=(1, 1, 0.26, 2.35), left=0.005, right=0.99, bottom=0.27, top=0.89,
        wspace=0.06
    )  # fmt: skip
    images = [figure.add_subplot(grid[0, i]) for i in (0, 1)]
    plot = figure.add_subplot(grid[0, 3])
    _images(images, found.label, found.features)
    drawn = _losses(plot, found.curves, found.run)
    for axes, text in ((images, "(a) sample label & features"),
                       ([plot], "(b) relative losses for varying bias $b$")):  # fmt: skip
        left, right = axes[0].get_position().x0, axes[-1].get_position().x1
        figure.text((left + right) / 2, 0.03, text, ha="center")
    return Drawing(figure, figure_caption("figure-3"), drawn)


def synthetic_sweep(store: RunStore) -> Drawing | Missing:
    """Where each loss has its minimum as objects grow, and what that costs; a column a noise."""
    found = [cohort for cohort in cohorts(store, "synthetic") if cohort.profile == "sweep"]
    if not found:
        return Missing("no finished sweep is stored", f"{command('synthetic')} --sweep")
    runs = {(setting(r, NOISE), setting(r, RADIUS)): r for cohort in found for r in cohort.runs}
    noises = sorted({noise for noise, _ in runs})

    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE, 3.6))
    grid = figure.subplots(2, len(noises), sharex=True, sharey="row", squeeze=False)
    figure.subplots_adjust(left=0.07, right=0.99, bottom=0.11, top=0.88, wspace=0.08, hspace=0.1)
    drawn = []
    for column, noise in enumerate(noises):
        radii = sorted((radius for n, radius in runs if n == noise), key=sum)
        of_noise = [runs[noise, radius] for radius in radii]
        for row, (measure, factor) in enumerate((("argmin", 1), ("excess", 100))):
            ax = grid[row, column]
            drawn += _grown(ax, store, of_noise, radii, f"noise {noise:g}", measure, factor)
        grid[0, column].set_title(f"noise {noise:g}")
        grid[1, column].set_xlabel("radii of the circles, pixels")
        grid[1, column].axhline(2, color=GREY, lw=0.6, ls=":", zorder=1)
    grid[0, 0].set_ylabel("arg min $b$")
    grid[1, 0].set_ylabel("above the minimum, points")
    handles, titles = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, titles, loc="upper center", ncols=len(titles), frameon=False)
    return Drawing(figure, figure_caption("synthetic-sweep"), tuple(drawn))


def _grown(
    ax: Any,
    store: RunStore,
    runs: Sequence[Run],
    radii: Sequence[tuple[float, float]],
    panel: str,
    measure: str,
    factor: int,
) -> list[Curve]:
    """Every loss over the radii: mean and standard deviation over draws."""
    names = [f"{low:g}–{high:g}" for low, high in radii]
    curves = []
    for loss, (title, colour) in SEARCHED.items():
        if measure == "excess" and loss == JACCARD_CURVE:
            continue
        draws = [[v for _, v in store.history(run.run_id, f"{measure}/{loss}")] for run in runs]
        found = [mean_and_spread([factor * value for value in values]) for values in draws]
        means, spreads = [mean for mean, _ in found], [spread or 0.0 for _, spread in found]
        ax.errorbar(names, means, spreads, color=colour, label=title, marker="o", ms=2.5,
                    ls=LOSS_DASHES.get(loss, "-"), lw=1.8 if loss == JACCARD_CURVE else 1.1,
                    elinewidth=0.6)  # fmt: skip
        data = {"smallest radius": [low for low, _ in radii],
                "largest radius": [high for _, high in radii],
                measure: means, "deviation": spreads}  # fmt: skip
        curves.append(Curve(f"{panel}, {measure}", title, data, sources(runs)))
    return curves


def read_curves(path: Path) -> dict[str, list[float]]:
    """Columns of ``curves.csv``: "b" and one per loss."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0]}


def relative(losses: Sequence[float]) -> list[float]:
    """Losses between 0 (their minimum) and 1 (their maximum)."""
    low, high = min(losses), max(losses)
    return [(loss - low) / (high - low) if high > low else 0.0 for loss in losses]


def _sample(path: Path) -> tuple[Any, Any]:
    import numpy as np

    with np.load(path, allow_pickle=False) as arrays:
        return arrays["label"], arrays["features"]


def _images(axes: Sequence[Any], label: Any, features: Any) -> None:
    for ax, image, title in zip(axes, (label, features), ("label", "features"), strict=True):
        ax.imshow(image, cmap="gray", interpolation="nearest")
        ax.set(xticks=[], yticks=[], title=title)
        for spine in ax.spines.values():
            spine.set_visible(True)


def _losses(ax: Any, curves: dict[str, list[float]], run: Run) -> tuple[Curve, ...]:
    b = curves["b"]
    reference = relative(curves[JACCARD_CURVE])
    drawn = []
    for order, (name, (title, colour)) in enumerate(SEARCHED.items()):
        if name not in curves:
            continue
        values = relative(curves[name])
        at = values.index(min(values))
        is_reference = name == JACCARD_CURVE
        ax.plot(b, values, LOSS_DASHES.get(name, "-"), color=colour, label=title,
                lw=1.8 if is_reference else 1.1, zorder=4 if is_reference else 3)  # fmt: skip
        ax.plot(b[at], 0.0, "o", color=colour, clip_on=False, zorder=6 + order)
        if not is_reference:
            ax.plot([b[at]] * 2, [0.0, reference[at]], ":", color=colour, lw=0.8, zorder=2)
            ax.plot(b[at], reference[at], "o", mec=colour, mfc="white", mew=1.0, zorder=5)
        data = {"b": b, "loss": curves[name], "relative loss": values, "argmin": [b[at]]}
        drawn.append(Curve("(b)", title, data, sources([run])))
    ax.axhline(0.0, color=GREY, lw=0.4, zorder=1)
    ax.set(xlabel="bias $b$", ylabel="relative loss", xlim=(b[0], b[-1]), ylim=(0.0, 1.02))
    ax.set_yticks([0.0, 0.5, 1.0])
    ax.legend(loc="lower center", ncols=len(drawn), bbox_to_anchor=(0.5, 0.99), columnspacing=1.0,
              handlelength=1.1, handletextpad=0.5)  # fmt: skip
    return tuple(drawn)
