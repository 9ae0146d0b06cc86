"""Pascal VOC: measures over the training (Fig. 6), and what optimising each does to the others.

Figure 6 has three panels (Sec. 4.3):

(a) dataset-mIoU under cross-entropy and Lovász-Softmax; (b) dataset-mIoU and batch-mIoU over
present classes while Lovász-Softmax is optimised; (c) dataset-mIoU and image-mIoU while the
image-mIoU is.
"""

import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lovasz_repro.report.curves import BEFORE, band, band_sign, begin_below, draw_band
from lovasz_repro.report.layout import number
from lovasz_repro.report.model import Curve, Drawing, Missing
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    command,
    correlation_along,
    finite_history,
    having,
    mean_and_spread,
    score_at,
    sources,
    with_batch_size,
)
from lovasz_repro.report.sets import (
    FEATURES,
    MEASURED,
    MULTICLASS,
    STUDIED,
    is_papers,
    named_sets,
    studied_batch,
    studies,
    ten_first,
)
from lovasz_repro.report.style import (
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PAGE,
    variant_colours,
    variant_dash,
    variant_order,
    variant_title,
)
from lovasz_repro.report.words import caveats, figure_caption, sentence, titled

DATASET_CURVE, IMAGE_CURVE, BATCH_CURVE = MEASURED.values()
MEASURE_LOOKS = {
    DATASET_CURVE: ("dataset-mIoU", BLACK),
    BATCH_CURVE: ("batch-mIoU, present classes", ORANGE),
    IMAGE_CURVE: ("image-mIoU", GREEN),
}
CROSS_ENTROPY = ("x-loss", "x-loss-equibatch", "x-loss-equibatch-30k")
LOVASZ_VARIANTS = ("lovasz", "lovasz-equibatch", "lovasz-equibatch-30k")
JOINT = ("lovasz-equibatch", "lovasz", "lovasz-equibatch-30k")
"""Variants of which one is shown in (b), the first that is there."""
PER_IMAGE, PER_BATCH = "lovasz-per-image", "lovasz"
PANEL_TITLES = (
    "(a) cross-entropy, Lovász-Softmax",
    "(b) Lovász-Softmax: two measures",
    "(c) optimising the image-mIoU",
)
TALL, LEGEND_ROW, HEADING_LINE = 2.3, 0.13, 0.12
"""Height of the panels, of a line of their legends, and of a line of the heading, inches."""
LEGEND_BELOW = 0.42
"""How far under an axis its legend begins, inches."""
ASIDE, APART = 0.8, 0.12
"""Width of thin lines, points; how far two axes are moved apart, of their range."""


@dataclass(frozen=True)
class Series:
    """A mean over seeds, as it is drawn."""

    label: str
    data: dict[str, list[float]]
    runs: tuple[Run, ...]
    colour: str
    dash: str = "-"
    right: bool = False
    """Against the axis at the right."""
    aside: bool = False
    """Thin, for comparison."""


@dataclass(frozen=True)
class Correlation:
    """Of the two measures in (b) along a run, as in the claims; the mean over runs."""

    r: float
    points: int
    """Validations of a run after the one before training; the fewest of all runs."""
    runs: int


def figure_6(store: RunStore) -> Drawing | Missing:
    """Three panels of the paper's runs; of the best other set where there are none."""
    found = [
        (panels_of(store, cohort), cohort, heading)
        for cohort, heading in ten_first(named_sets(store, MULTICLASS))
    ]
    drawable = [item for item in found if any(item[0])]
    if not drawable:
        what = "has curves of two losses or two measures" if found else "is stored"
        return Missing(f"no finished set of {MULTICLASS} runs {what}", command(MULTICLASS))
    chosen = max(drawable, key=lambda item: (is_papers(item[1]), sum(map(bool, item[0]))))
    return _drawing(store, *chosen)


def panels_of(store: RunStore, cohort: Cohort) -> tuple[list[Series], list[Series], list[Series]]:
    """What each panel shows; nothing where a set lacks what the panel compares."""
    joint = joint_variant(store, cohort)
    second = _measures(store, cohort, joint, BATCH_CURVE) if joint else []
    third = _measures(store, cohort, PER_IMAGE, IMAGE_CURVE)
    if third:
        third += _measures(store, cohort, PER_BATCH, IMAGE_CURVE, aside=True)
    return _losses(store, cohort), second, third


def joint_variant(store: RunStore, cohort: Cohort) -> str | None:
    """The variant of (b): the first of ``JOINT`` with both measures."""
    having = (name for name in JOINT if _measures(store, cohort, name, BATCH_CURVE))
    return next(having, None)


def correlation(store: RunStore, runs: Sequence[Run]) -> Correlation | None:
    """How closely the batch-mIoU follows the dataset-mIoU; None where it is undefined."""
    found = [
        along
        for run in runs
        if (along := correlation_along(store, run, (DATASET_CURVE, BATCH_CURVE)))
    ]
    if not found:
        return None
    return Correlation(
        statistics.fmean(r for r, _ in found), min(count for _, count in found), len(found)
    )


# -- lines -------------------------------------------------------------------------------------


def _losses(store: RunStore, cohort: Cohort) -> list[Series]:
    """Dataset-mIoU of every variant of (a), where there are both losses."""
    names = variant_order(set(cohort.variants) & {*CROSS_ENTROPY, *LOVASZ_VARIANTS})
    colours = variant_colours(set(names))
    lines = {
        name: Series(variant_title(name), *curve, colours[name], variant_dash(name))
        for name in names
        if (curve := _curve(store, cohort.select(name), DATASET_CURVE))
    }
    both = all(set(lines) & set(side) for side in (CROSS_ENTROPY, LOVASZ_VARIANTS))
    return list(lines.values()) if both else []


def _measures(
    store: RunStore, cohort: Cohort, name: str, other: str, *, aside: bool = False
) -> list[Series]:
    """Dataset-mIoU and another measure of a variant; none where it lacks one of them."""
    lines = []
    for metric in (DATASET_CURVE, other):
        curve = _curve(store, cohort.select(name), metric)
        if curve is None:
            return []
        label, colour = MEASURE_LOOKS[metric]
        label = f"{label}, optimised per batch" if aside else label
        dash = "--" if aside else "-"
        lines.append(Series(label, *curve, colour, dash, right=metric == other, aside=aside))
    return lines


def _curve(
    store: RunStore, runs: Sequence[Run], metric: str
) -> tuple[dict[str, list[float]], tuple[Run, ...]] | None:
    """Mean and spread of a metric over iterations; None where there are no two of them."""
    histories = [finite_history(store, run, metric) for run in runs]
    having = [i for i, history in enumerate(histories) if len(history) > 1]
    data = band([histories[i] for i in having]) if having else {"iteration": []}
    return (data, tuple(runs[i] for i in having)) if len(data["iteration"]) > 1 else None


# -- drawing -----------------------------------------------------------------------------------


def _drawing(
    store: RunStore,
    panels: tuple[list[Series], list[Series], list[Series]],
    cohort: Cohort,
    heading: str,
) -> Drawing:
    from matplotlib.figure import Figure

    lacking = "" if is_papers(cohort) else sentence("no-curves")
    lines = textwrap.wrap(titled(heading, lacking), 150)
    most = max(len(panel) for panel in panels) + 1  # a band
    tall = TALL + LEGEND_ROW * most + HEADING_LINE * len(lines)
    figure = Figure(figsize=(PAGE, tall), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=6.5, color=GREY, parse_math=False)
    axes = figure.subplots(1, len(panels))
    curves: list[Curve] = []
    for ax, panel, name in zip(axes, panels, PANEL_TITLES, strict=True):
        curves += _panel(ax, panel, name)
    joint = joint_variant(store, cohort)
    words, told = _correlation_words(store, cohort, joint)
    if words:
        axes[1].legend_.set_title(words, prop={"size": 7})
    of_joint = f"(b) is of {variant_title(joint)}." if joint else ""
    where = f"{heading} ({cohort.scale} scale)."
    caption = figure_caption("figure-6", of_joint, told, where, caveats(6, cohort, lacking))
    return Drawing(figure, caption, tuple(curves))


def _panel(ax: Any, lines: Sequence[Series], title: str) -> list[Curve]:
    """Draw one panel; one without lines says so."""
    ax.set_title(title, fontsize=7.5)
    ax.set_xlabel("iteration")
    ax.tick_params(labelsize=6)
    if not lines:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, "not yet run", transform=ax.transAxes, ha="center", color=GREY)
        return []
    left, right = ([line for line in lines if line.right is side] for side in (False, True))
    _side(ax, left)
    ax.set_ylabel("val dataset-mIoU (%)", fontsize=7, labelpad=2)
    ax.grid(axis="y")
    if right:
        other = ax.twinx()
        _side(other, right)
        other.spines["right"].set_visible(True)
        other.tick_params(labelsize=6)
        other.set_ylabel(f"val {right[0].label} (%)", fontsize=7, labelpad=2)
        _apart(ax, other)
    banded = any(any(line.data["spread"]) for line in lines if not line.aside)
    legend_below(ax, [*map(_handle, lines), *([band_sign()] if banded else [])])
    return [Curve(title, line.label, line.data, sources(line.runs)) for line in lines]


def legend_below(ax: Any, handles: Sequence[Any]) -> None:
    """A legend under a panel, a fixed distance below the axis and its label."""
    from matplotlib.transforms import ScaledTranslation

    down = ScaledTranslation(0, -LEGEND_BELOW, ax.figure.dpi_scale_trans)
    ax.legend(handles=handles, loc="upper center", fontsize=6.5, bbox_to_anchor=(0.5, 0),
              bbox_transform=ax.transAxes + down, borderaxespad=0, labelspacing=0.25)  # fmt: skip


def _side(ax: Any, lines: Sequence[Series]) -> None:
    """Draw what is measured on one axis, which begins below the trained networks where these are
    far above the network before training."""
    for line in lines:
        if line.aside:
            ax.plot(
                line.data["iteration"], line.data["mean"], line.dash, color=line.colour, lw=ASIDE
            )
        else:
            draw_band(ax, line.data, line.colour, line.dash)
    data = [line.data for line in lines]
    begin_below(ax, data, [d["mean"][0] for d in data if d["iteration"][0] == 0])
    ax.margins(x=0.02)


def _apart(left: Any, right: Any) -> None:
    """Lower the curves of the right axis, so that two that go together do not hide each other."""
    for ax, down, up in ((left, APART, 0.0), (right, 0.0, APART)):
        low, high = ax.get_ylim()
        ax.set_ylim(low - down * (high - low), high + up * (high - low))


def _handle(line: Series) -> Any:
    from matplotlib.lines import Line2D

    label = f"{line.label} (right)" if line.right and not line.aside else line.label
    return Line2D([], [], color=line.colour, ls=line.dash, lw=ASIDE if line.aside else 1.2,
                  label=label)  # fmt: skip


def _correlation_words(store: RunStore, cohort: Cohort, joint: str | None) -> tuple[str, str]:
    """The correlation for a legend and for a caption; "" where it is undefined."""
    found = correlation(store, cohort.select(joint)) if joint else None
    if found is None:
        return "", ""
    shown = number(found.r, 3)
    over = f"{found.points} validations"
    if found.runs > 1:
        over += f", mean of {found.runs} seeds"
    return f"bends: r = {shown} ({over})", sentence("correlated", r=shown, over=over)


# -- what optimising each measure does to the others (Sec. 3.1) --------------------------------

DOTTED = ("dataset", "image")
"""Measures of the dots."""
OVER_BATCHES = ("x-loss", "lovasz", "lovasz-all-classes")
CURVE_LABELS = {
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
        if any(having(cohort.select(name), MEASURED["dataset"]) for name in STUDIED):
            return _study(store, cohort, heading)
    what = "has a validation score" if studies(store) else "is stored"
    reason = f"no finished set of {MULTICLASS} runs on features {what}"
    return Missing(reason, command(MULTICLASS, FEATURES))


def _study(store: RunStore, cohort: Cohort, heading: str) -> Drawing:
    from matplotlib.figure import Figure

    size = studied_batch(cohort)
    lines = textwrap.wrap(f"{heading}. Bars: standard deviation over seeds.", 150)
    figure = Figure(figsize=(PAGE, HEIGHT + 0.12 * len(lines)), layout="constrained")
    figure.suptitle("\n".join(lines), fontsize=6.5, color=GREY, parse_math=False)
    axes = figure.subplots(1, 3, width_ratios=WIDTHS)
    axes[1].sharey(axes[0])
    curves: list[Curve] = []
    for ax, measure in zip(axes, DOTTED, strict=False):
        curves += _variant_dots(ax, store, cohort.of_batch_size(size), measure)
    axes[1].tick_params(axis="y", labelleft=False)
    axes[0].set_title(f"(a) after training, batch size {size}", fontsize=7.5, loc="left")
    legend_below(axes[0], _dot_signs())
    curves += _over_batch_sizes(axes[2], cohort)
    caption = figure_caption("voc-measures", heading=with_batch_size(heading, size))
    return Drawing(figure, caption, tuple(curves))


def _variant_dots(ax: Any, store: RunStore, cohort: Cohort, measure: str) -> list[Curve]:
    """One measure of every variant, from top to bottom, and that of the network before training."""
    key, title = MEASURED[measure], f"{measure}-mIoU"
    colours = variant_colours(set(STUDIED))
    names = list(STUDIED)
    curves = []
    for row, name in enumerate(names):
        runs = having(cohort.select(name), key)
        if runs:
            mean, spread = mean_and_spread([100 * run.metrics[key] for run in runs])
            filled = "white" if name.endswith("equibatch") else colours[name]
            ax.errorbar([mean], [row], xerr=[spread or 0.0] if spread else None, fmt="o",
                        color=colours[name], mfc=filled, elinewidth=0.8, zorder=3)  # fmt: skip
            data = {"variant": [float(row)], "mean": [mean], "spread": [spread or 0.0]}
            curves.append(Curve(title, STUDIED[name], data, sources(runs)))
    starts = [(run, score_at(store, run, key, "start")) for run in cohort.runs]
    known = [(run, 100 * start) for run, start in starts if start is not None]
    if known:
        mean, _ = mean_and_spread([start for _, start in known])
        ax.axvline(mean, zorder=1, **BEFORE)
        curves.append(
            Curve(title, "before training", {"mean": [mean]}, sources(r for r, _ in known))
        )
    ax.set_yticks(range(len(names)), [CURVE_LABELS[name] for name in names],
                  fontsize=6.5)  # fmt: skip
    ax.set(xlabel=f"val {title} (%)", ylim=(len(names) - 0.5, -0.5))
    ax.margins(x=0.12)
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    return curves


def _over_batch_sizes(ax: Any, cohort: Cohort) -> list[Curve]:
    """Dataset-mIoU of three variants against the batch size."""
    key = MEASURED["dataset"]
    colours = variant_colours(set(OVER_BATCHES))
    curves = []
    for name in OVER_BATCHES:
        points = [(size, having(cohort.select(name, size), key)) for size in cohort.batch_sizes]
        points = [(size, runs) for size, runs in points if runs]
        if not points:
            continue
        stats = [mean_and_spread([100 * run.metrics[key] for run in runs]) for _, runs in points]
        x, y = [float(size) for size, _ in points], [mean for mean, _ in stats]
        spread = [s or 0.0 for _, s in stats]
        ax.errorbar(x, y, yerr=spread if any(spread) else None, fmt="o-", color=colours[name],
                    label=CURVE_LABELS[name], elinewidth=0.8, capsize=2)  # fmt: skip
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


def _dot_signs() -> list[Any]:
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"ls": "", "marker": "o", "color": GREY}
    return [
        Line2D([], [], label="random batches", **look),
        Line2D([], [], label="equibatch", mfc="white", **look),
        Line2D([], [], **BEFORE),
    ]
