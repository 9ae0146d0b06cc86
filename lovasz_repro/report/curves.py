"""Fine-tuning of ENet: validation score against iteration (Fig. 9), and scores per class."""

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lovasz_repro.report.model import Curve, Drawing, Missing
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    batch_size,
    command,
    finite_history,
    mean_and_spread,
    sources,
    variant,
    with_batch_size,
)
from lovasz_repro.report.sets import (
    CAMVID_LAYOUT,
    CAMVID_RUNS,
    ENET_RUNS,
    data_title,
    is_papers,
    named_cohorts,
)
from lovasz_repro.report.style import (
    BLACK,
    COLUMN,
    EQUIBATCH,
    GREY,
    PAGE,
    shades,
    variant_colours,
    variant_order,
    variant_title,
)
from lovasz_repro.report.tables import CAMVID_CLASSES
from lovasz_repro.report.words import figure_caption, sentence

VALIDATION_SCORE = "val/dataset_miou"
History = list[tuple[int, float]]
"""(iteration, score), ascending."""
LINES = ("-", "--", "-.", ":")
"""Line styles of the batch sizes, ascending."""
MARKED = 16
"""Curves with fewer points show them."""
BAND_OPACITY = 0.18
"""Opacity of a band."""
BEFORE: dict[str, Any] = {
    "ls": (0, (4, 3)), "lw": 0.9, "color": GREY, "label": "before training",
}  # fmt: skip
"""Line of the network before training."""
TITLE_WIDTH = 72
"""Characters of a title that fit over a panel."""
PANELS = 4
"""Most cohorts that one figure shows."""


def camvid_classes(store: RunStore) -> Drawing | Missing:
    """Test IoU of every class before and after fine-tuning, for the largest set of runs."""
    found = named_cohorts(store, CAMVID_RUNS)
    if not found:
        return Missing("no finished camvid-enet run is stored", command(CAMVID_RUNS))

    from matplotlib.figure import Figure

    cohort, heading = found[0]
    size = max(cohort.batch_sizes, key=lambda s: (len(cohort.of_batch_size(s).runs), s))
    runs = cohort.of_batch_size(size).runs
    before = _scores(runs, "initial/test/iou/")
    order = sorted(before, key=lambda name: (before[name][0], name))
    figure = Figure(figsize=(COLUMN, 1.0 + 0.21 * len(order)), layout="constrained")
    ax = figure.subplots()
    curves = [_dots(ax, "initial network", before, order, GREY, 0.0, runs)]
    names = variant_order({run.tags["variant"] for run in runs})
    colours = variant_colours(set(names))
    for i, name in enumerate(names):
        offset = 0.16 * (i - (len(names) - 1) / 2)
        chosen = cohort.select(name, size)
        after = _scores(chosen, "test/iou/")
        curves.append(_dots(ax, variant_title(name), after, order, colours[name], offset, chosen))
    ax.set(xlabel="test IoU (%)", xlim=(0, 100), ylim=(-0.6, len(order) - 0.4))
    ax.set_yticks(range(len(order)), order)
    _title(ax, with_batch_size(heading, size))
    ax.grid(axis="y")
    ax.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=2)
    caption = figure_caption("camvid-enet-classes", heading=with_batch_size(heading, size))
    return Drawing(figure, caption, tuple(curves))


def band(histories: Sequence[Sequence[tuple[int, float]]]) -> dict[str, list[float]]:
    """Mean and spread at the steps that all histories share, in percent.

    A single history has no spread: its band has zero width.
    """
    maps = [dict(history) for history in histories]
    steps = sorted(set.intersection(*(set(m) for m in maps)))
    stats = [mean_and_spread([100 * m[step] for m in maps]) for step in steps]
    return {
        "iteration": [float(step) for step in steps],
        "mean": [mean for mean, _ in stats],
        "spread": [spread or 0.0 for _, spread in stats],
    }


@dataclass(frozen=True)
class CurveLook:
    """How the curves of a figure are told apart, and what its legend says."""

    styles: dict[tuple[str, int], tuple[str, str]]
    """Variant and batch size -> colour and line style, in the order of drawing."""
    signs: tuple[tuple[str, str, str], ...]
    """Entries of the legend: name, colour, line style."""

    @classmethod
    def by_dashes(cls, found: Sequence[Cohort]) -> "CurveLook":
        """A colour per variant and dashes per batch size; the largest batches are solid."""
        names = {name for cohort in found for name in cohort.variants}
        sizes = sorted({size for cohort in found for size in cohort.batch_sizes}, reverse=True)
        colours, order = variant_colours(names), variant_order(names)
        dashes = {size: LINES[i % len(LINES)] for i, size in enumerate(sizes)}
        signs = [(variant_title(name), colours[name], "-") for name in order]
        if len(dashes) > 1:
            signs += [(f"batch size {size}", BLACK, dash) for size, dash in dashes.items()]
        styles = {(n, size): (colours[n], dash) for n in order for size, dash in dashes.items()}
        return cls(styles, tuple(signs))

    @classmethod
    def by_shades(cls, found: Sequence[Cohort]) -> "CurveLook":
        """A hue per variant, from light to dark with the batch size; equibatch is dashed."""
        pairs = {(variant(run), batch_size(run)) for cohort in found for run in cohort.runs}
        names = {name for name, _ in pairs}
        styles = {}
        for name in variant_order(names):
            sizes = sorted(size for other, size in pairs if other == name)
            colours = shades(variant_colours(names)[name], len(sizes))
            for size, colour in zip(sizes, colours, strict=True):
                styles[name, size] = colour, "--" if name == EQUIBATCH else "-"
        signs = [(f"{variant_title(n)} ({size})", *style) for (n, size), style in styles.items()]
        return cls(styles, tuple(signs))


def dataset_miou(store: RunStore, run: Run) -> History:
    """Validation dataset-mIoU of a run, which chooses its best snapshot."""
    return store.history(run.run_id, VALIDATION_SCORE)


def eleven_over_training(store: RunStore, run: Run) -> History:
    """Mean IoU of CamVid's classes at every validation that has all of them."""
    histories = [dict(finite_history(store, run, f"val/iou/{name}")) for name in CAMVID_CLASSES]
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    return [(step, math.fsum(h[step] for h in histories) / len(histories)) for step in steps]


@dataclass(frozen=True)
class Convergence:
    """A figure of validation scores against iteration, one panel per cohort."""

    name: str
    experiment: str
    ylabel: str
    look: Callable[[Sequence[Cohort]], CurveLook] = CurveLook.by_shades
    legend_title: str = "loss (batch size)"
    score: Callable[[RunStore, Run], History] = dataset_miou
    """What is drawn of a run, from before the first step on; empty where it has none."""

    def __call__(self, store: RunStore) -> Drawing | Missing:
        """The first ``PANELS`` cohorts."""
        found = named_cohorts(store, self.experiment)
        if not found:
            return Missing(f"no finished {self.experiment} run is stored", command(self.experiment))
        shown = found[:PANELS]
        figure, curves = self._draw(store, shown)
        names = [f"{c.scale} scale, {data_title(c)}" for c, _ in shown]
        other = self.experiment == ENET_RUNS and not all(is_papers(cohort) for cohort, _ in shown)
        caption = figure_caption(
            self.name,
            sentence("other-panels") if other else "",
            left_out(found),
            row_by_row="Panels, row by row" if len(names) > 1 else "Shown",
            panels="; ".join(names),
        )
        return Drawing(figure, caption, tuple(curves))

    def _draw(
        self, store: RunStore, shown: Sequence[tuple[Cohort, str]]
    ) -> tuple[Any, list[Curve]]:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D

        look = self.look([cohort for cohort, _ in shown])
        columns = min(2, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(layout="constrained")
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        curves: list[Curve] = []
        single = len({size for cohort, _ in shown for size in cohort.batch_sizes}) == 1
        for ax, (cohort, heading) in zip(axes, shown, strict=False):
            curves += _convergence(ax, store, cohort, heading, look, self.score)
            _title(ax, with_batch_size(heading, *cohort.batch_sizes) if single else heading)
            ax.set(xlabel="iteration", ylabel=self.ylabel)
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
        lines = [Line2D([], [], color=colour, ls=ls, label=name) for name, colour, ls in look.signs]
        handles = [*lines, *_signs(axes, curves)]
        width = COLUMN if columns == 1 else PAGE
        figure.set_size_inches(width, 2.1 * rows)
        entries = widest_legend(figure, handles, 2 * columns, self.legend_title)
        legend_rows = -(-len(handles) // entries) + bool(self.legend_title)
        figure.set_size_inches(width, 2.1 * rows + 0.17 * legend_rows)
        return figure, curves


def widest_legend(figure: Any, handles: Sequence[Any], entries: int, title: str) -> int:
    """Put a legend below a figure, with at most so many entries in a row: as many as there fit."""
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=entries,
                           title=title or None, title_fontsize=7)  # fmt: skip
    if entries == 1 or legend.get_window_extent().width <= figure.bbox.width:
        return entries
    legend.remove()
    return widest_legend(figure, handles, entries - 1, title)


CONVERGENCE = {
    "figure-9": Convergence("figure-9", ENET_RUNS, "validation mIoU (%)"),
    CAMVID_RUNS: Convergence(
        CAMVID_RUNS,
        CAMVID_RUNS,
        "validation dataset-mIoU (%)",
        CurveLook.by_dashes,
        legend_title="",
    ),
    CAMVID_LAYOUT: Convergence(
        CAMVID_LAYOUT, CAMVID_LAYOUT, "validation IoU, 11 classes (%)", score=eleven_over_training
    ),
}


def _signs(axes: Sequence[Any], curves: Sequence[Curve]) -> list[Any]:
    """Entries of the legend for what is drawn beside curves: bands, and lines before training."""
    from matplotlib.lines import Line2D

    signs = [band_sign()] if any(any(c.data.get("spread", ())) for c in curves) else []
    dashed = [line for ax in axes for line in ax.lines if line.get_label() == BEFORE["label"]]
    if any(line.get_ydata()[0] >= line.axes.get_ylim()[0] for line in dashed):
        signs.append(Line2D([], [], **BEFORE))
    return signs


def band_sign() -> Any:
    """Entry of a legend for the bands around means."""
    from matplotlib.patches import Patch

    return Patch(facecolor=GREY, alpha=BAND_OPACITY, label="± standard deviation over seeds")


def _convergence(
    ax: Any,
    store: RunStore,
    cohort: Cohort,
    heading: str,
    look: CurveLook,
    score: Callable[[RunStore, Run], History],
) -> list[Curve]:
    curves = []
    for (name, size), (colour, dash) in look.styles.items():
        runs = cohort.select(name, size)
        histories = [score(store, run) for run in runs]
        if histories and all(histories):
            data = band(histories)
            draw_band(ax, data, colour, dash)
            label = f"{variant_title(name)}, batch size {size}"
            curves.append(Curve(heading, label, data, sources(runs)))
    initial = _initial_line(ax, store, cohort, heading, score)
    _keep_trained_in_view(ax, curves, initial)
    ax.grid(axis="y")
    ax.margins(x=0.02)
    return curves + initial


def _title(ax: Any, heading: str) -> None:
    """A heading over a panel; one too long for a line breaks first after the data's name."""
    if len(heading) > TITLE_WIDTH:
        heading = heading.replace(": ", ":\n", 1)
    heading = re.sub(r"\((\d+) core", "(\\1\N{NO-BREAK SPACE}core", heading)
    lines = [textwrap.fill(line, TITLE_WIDTH) for line in heading.split("\n")]
    ax.set_title("\n".join(lines), fontsize=6.5, color=GREY)


def draw_band(ax: Any, data: dict[str, list[float]], colour: str, dash: str) -> None:
    """A mean over iterations, with its spread around it; few points are marked."""
    x, mean, spread = data["iteration"], data["mean"], data["spread"]
    if any(spread):
        low = [m - s for m, s in zip(mean, spread, strict=True)]
        high = [m + s for m, s in zip(mean, spread, strict=True)]
        ax.fill_between(x, low, high, color=colour, alpha=BAND_OPACITY, lw=0)
    ax.plot(x, mean, dash, color=colour, marker="o" if len(x) < MARKED else "", ms=2)


def _initial_line(
    ax: Any,
    store: RunStore,
    cohort: Cohort,
    heading: str,
    score: Callable[[RunStore, Run], History],
) -> list[Curve]:
    scores = {run.run_id: dict(score(store, run)).get(0) for run in cohort.runs}
    runs = [run for run in cohort.runs if scores[run.run_id] is not None]
    if not runs:
        return []
    mean, _ = mean_and_spread([100 * (scores[run.run_id] or 0.0) for run in runs])
    ax.axhline(mean, zorder=1, **BEFORE)
    return [Curve(heading, "before training", {"mean": [mean]}, sources(runs))]


def _keep_trained_in_view(ax: Any, curves: Sequence[Curve], initial: Sequence[Curve]) -> None:
    """Where the score before training lies under the axis, a note says what it is."""
    before = initial[0].data["mean"] if initial else []
    if begin_below(ax, [curve.data for curve in curves], before):
        note = f"before training: {before[0]:.1f}, below this axis"
        ax.text(0.98, 0.03, note, transform=ax.transAxes, ha="right", fontsize=6.5, color=GREY)


def begin_below(
    ax: Any, drawn: Sequence[Mapping[str, Sequence[float]]], before: Sequence[float]
) -> bool:
    """Where training gained far more than the curves differ by, begin the axis below the curves."""
    trained = [
        mean
        for data in drawn
        for step, mean in zip(data["iteration"], data["mean"], strict=True)
        if step > 0
    ]
    if not trained or not before:
        return False
    low, span = min(trained), max(trained) - min(trained)
    far = 0 < 2 * span < low - max(before)
    if far:
        ax.set_ylim(bottom=low - 0.35 * span)
    return far


def _scores(runs: Sequence[Run], prefix: str) -> dict[str, tuple[float, float | None]]:
    """Class -> mean and spread over runs, in percent; classes that no run has are left out."""
    names = sorted({key for run in runs for key in run.metrics if key.startswith(prefix)})
    found = {
        name: [v for run in runs if (v := run.metrics.get(name, float("nan"))) == v]
        for name in names
    }
    return {
        name.removeprefix(prefix): mean_and_spread([100 * v for v in values])
        for name, values in found.items()
        if values
    }


def _dots(
    ax: Any,
    label: str,
    scores: dict[str, tuple[float, float | None]],
    order: Sequence[str],
    colour: str,
    offset: float,
    runs: Sequence[Run],
) -> Curve:
    having = [(i, *scores[name]) for i, name in enumerate(order) if name in scores]
    x = [mean for _, mean, _ in having]
    spread = [s or 0.0 for _, _, s in having]
    y = [i + offset for i, _, _ in having]
    ax.errorbar(x, y, xerr=spread if any(spread) else None, fmt="o", color=colour, label=label,
                elinewidth=0.8, mfc="white" if colour == GREY else colour, zorder=3)  # fmt: skip
    data = {"class": [float(i) for i, _, _ in having], "mean": x, "spread": spread}
    return Curve("", label, data, sources(runs))


def left_out(found: Sequence[object]) -> str:
    """What a caption says of the sets of runs for which a figure has no panel."""
    more = len(found) - PANELS
    return sentence("more-sets", more=more) if more > 0 else ""
