"""Figure of the study of measures (Sec. 3.1): scores per variant, and against the batch size."""

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from lovasz_repro.report.curves import BEFORE
from lovasz_repro.report.drawing import Curve, Drawing, Missing
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    before_training,
    command,
    mean_and_spread,
    sources,
    with_batch_size,
)
from lovasz_repro.report.style import GREY, PAGE, variant_colours
from lovasz_repro.report.voc_multiclass_curves import legend_below
from lovasz_repro.report.voc_multiclass_measures import (
    FEATURES,
    KEYS,
    STUDIED,
    TITLES,
    studied_batch,
    studies,
)
from lovasz_repro.report.voc_multiclass_runs import MULTICLASS

SHOWN = ("dataset", "image")
"""Measures of the dots."""
OVER_BATCHES = ("x-loss", "lovasz", "lovasz-all-classes")
LABELS = {
    "x-loss": "cross-entropy",
    "x-loss-equibatch": "cross-entropy\n+ equibatch",
    "lovasz": "Lovász, batch, present",
    "lovasz-equibatch": "Lovász, batch, present\n+ equibatch",
    "lovasz-all-classes": "Lovász, batch, all",
    "lovasz-per-image-present": "Lovász, image, present",
    "lovasz-per-image": "Lovász, image, all",
}
HEIGHT, WIDTHS = 2.75, (1.0, 1.0, 1.45)
"""Height in inches; widths of the three panels to each other."""
CLOSE = ("x-loss", "lovasz")
"""Curves that are also drawn on a scale of their own, where the third makes them flat."""
FLAT = 0.2
"""Share of the axis that they then take at most."""
INSET = (0.13, 0.47, 0.4, 0.33)
"""Where, in parts of the panel: left, bottom, width, height."""


def voc_measures_figure(store: RunStore) -> Drawing | Missing:
    """Dots per variant, and dataset-mIoU against batch size, of the first set that has dots."""
    for cohort, heading in studies(store):
        if any(_having(cohort.select(name), KEYS["dataset"]) for name in STUDIED):
            return _drawing(store, cohort, heading)
    what = "has a validation score" if studies(store) else "is stored"
    reason = f"no finished set of {MULTICLASS} runs on features {what}"
    return Missing(reason, command(MULTICLASS, FEATURES))


def _drawing(store: RunStore, cohort: Cohort, heading: str) -> Drawing:
    from matplotlib.figure import Figure

    size = studied_batch(cohort)
    lines = textwrap.wrap(f"{heading}. Bars: standard deviation over seeds.", 150)
    figure = Figure(figsize=(PAGE, HEIGHT + 0.12 * len(lines)), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=6.5, color=GREY, parse_math=False)
    axes = figure.subplots(1, 3, width_ratios=WIDTHS)
    axes[1].sharey(axes[0])
    curves: list[Curve] = []
    for ax, measure in zip(axes, SHOWN, strict=False):
        curves += _dots(ax, store, cohort.of_batch_size(size), measure)
    axes[1].tick_params(axis="y", labelleft=False)
    axes[0].set_title(f"(a) after training, batch size {size}", fontsize=7.5, loc="left")
    legend_below(axes[0], _signs())
    curves += _over_batch_sizes(axes[2], cohort)
    caption = (
        "What optimising each measure does to the others, on features drawn from the masks of "
        "Pascal VOC in the place of photographs; no figure of the paper. (a) Validation "
        f"dataset-mIoU and image-mIoU of each variant ({with_batch_size(heading, size)}). "
        "Lovász-Softmax is taken over the batch or image by image, and averaged over the classes "
        "that are present or over all. (b) Dataset-mIoU against the batch size; where the third "
        "curve makes two flat, these are drawn again on a scale of their own. Mean and one "
        "standard deviation over seeds, at the last iteration."
    )
    return Drawing(figure, caption, tuple(curves))


def _dots(ax: Any, store: RunStore, cohort: Cohort, measure: str) -> list[Curve]:
    """One measure of every variant, from top to bottom, and that of the network before training."""
    key, title = KEYS[measure], TITLES[measure]
    colours = variant_colours(set(STUDIED))
    names = list(STUDIED)
    curves = []
    for row, name in enumerate(names):
        runs = _having(cohort.select(name), key)
        if runs:
            mean, spread = mean_and_spread([100 * run.metrics[key] for run in runs])
            filled = "white" if name.endswith("equibatch") else colours[name]
            ax.errorbar([mean], [row], xerr=[spread or 0.0] if spread else None, fmt="o",
                        color=colours[name], mfc=filled, elinewidth=0.8, zorder=3)  # fmt: skip
            data = {"variant": [float(row)], "mean": [mean], "spread": [spread or 0.0]}
            curves.append(Curve(title, STUDIED[name], data, sources(runs)))
    starts = [(run, before_training(store, run, key)) for run in cohort.runs]
    known = [(run, 100 * start) for run, start in starts if start is not None]
    if known:
        mean, _ = mean_and_spread([start for _, start in known])
        ax.axvline(mean, zorder=1, **BEFORE)
        curves.append(
            Curve(title, "before training", {"mean": [mean]}, sources(r for r, _ in known))
        )
    ax.set_yticks(range(len(names)), [LABELS[name] for name in names],
                  fontsize=6.5)  # fmt: skip
    ax.set(xlabel=f"val {title} (%)", ylim=(len(names) - 0.5, -0.5))
    ax.margins(x=0.12)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    return curves


def _over_batch_sizes(ax: Any, cohort: Cohort) -> list[Curve]:
    """Dataset-mIoU of three variants against the batch size."""
    key = KEYS["dataset"]
    colours = variant_colours(set(OVER_BATCHES))
    curves = []
    for name in OVER_BATCHES:
        points = [(size, _having(cohort.select(name, size), key)) for size in cohort.batch_sizes]
        points = [(size, runs) for size, runs in points if runs]
        if not points:
            continue
        stats = [mean_and_spread([100 * run.metrics[key] for run in runs]) for _, runs in points]
        x, y = [float(size) for size, _ in points], [mean for mean, _ in stats]
        spread = [s or 0.0 for _, s in stats]
        ax.errorbar(x, y, yerr=spread if any(spread) else None, fmt="o-", color=colours[name],
                    label=LABELS[name], elinewidth=0.8, capsize=2)  # fmt: skip
        data = {"batch_size": x, "mean": y, "spread": spread}
        used = sources(run for _, runs in points for run in runs)
        curves.append(Curve("(b)", STUDIED[name], data, used))
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.set_xticks(cohort.batch_sizes, [str(size) for size in cohort.batch_sizes])
    ax.set(xlabel="batch size", ylabel="val dataset-mIoU (%)")
    ax.set_title("(b) against the batch size", fontsize=7.5, loc="left")
    ax.grid(axis="y")
    if curves:
        legend_below(ax, ax.get_legend_handles_labels()[0])
    _enlarge(ax, [curve for curve in curves if curve.label in {STUDIED[name] for name in CLOSE}])
    return curves


def _enlarge(ax: Any, close: Sequence[Curve]) -> None:
    """Draw two curves again in the panel, where the third one makes both of them flat."""
    values = [value for curve in close for value in curve.data["mean"]]
    low, high = ax.get_ylim()
    if len(close) < len(CLOSE) or max(values) - min(values) > FLAT * (high - low):
        return
    colours = variant_colours(set(OVER_BATCHES))
    inset = ax.inset_axes(INSET)
    for name, curve in zip(CLOSE, close, strict=True):
        inset.plot(curve.data["batch_size"], curve.data["mean"], "o-", color=colours[name], ms=2,
                   clip_on=False)  # fmt: skip
    inset.set_xscale("log")
    inset.minorticks_off()
    inset.set_xticks([])
    inset.margins(x=0.06, y=0.15)
    inset.tick_params(labelsize=6)
    inset.grid(axis="y")


def _signs() -> list[Any]:
    """Legend of the dots."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"ls": "", "marker": "o", "color": GREY}
    return [
        Line2D([], [], label="random batches", **look),
        Line2D([], [], label="equibatch", mfc="white", **look),
        Line2D([], [], **BEFORE),
    ]


def _having(runs: Sequence[Run], key: str) -> list[Run]:
    return [run for run in runs if math.isfinite(run.metrics.get(key, math.nan))]
