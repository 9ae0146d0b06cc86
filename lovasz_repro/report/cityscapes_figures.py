"""Figures of the Cityscapes experiment (Sec. 4.4): output masks (Fig. 8), convergence (Fig. 9).

The same figures of the same experiment on CamVid's photographs are ``camvid-as-cityscapes`` and
``camvid-as-cityscapes-examples``.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lovasz_repro.data.palettes import CITYSCAPES
from lovasz_repro.errors import UserError
from lovasz_repro.report.cityscapes import (
    CAMVID,
    ENET,
    LOVASZ,
    PAPER_BATCH,
    data_title,
    eleven_over_training,
    is_papers,
    named_cohorts,
    starting_point,
)
from lovasz_repro.report.cityscapes_pictures import Example, read_examples
from lovasz_repro.report.curves import BEFORE_WORDS, PANELS, convergence, dataset_miou, left_out
from lovasz_repro.report.drawing import Curve, Drawing, Missing
from lovasz_repro.report.runs import (
    SCALES,
    Cohort,
    Run,
    RunStore,
    batch_size,
    command,
    natural,
    seed,
    sources,
    variant,
)
from lovasz_repro.report.style import (
    DEMO,
    GREY,
    PAGE,
    shades,
    variant_colours,
    variant_order,
    variant_title,
)

EQUIBATCH = "lovasz-softmax-equibatch"
TALLEST = 6.6
"""Height of all rows of crops together, inches."""
LEFT, GAP, TITLE_LINE, LEGEND_LINE = 0.17, 0.05, 0.125, 0.13
"""Sizes of the parts of Fig. 8 around the crops, inches."""
CLASSES_PER_LINE = 7
PICTURES = ("input", "initial ENet output", "ground truth", "fine-tuned")


def figure_8(store: RunStore) -> Drawing | Missing:
    """Parts of output masks before and after fine-tuning, on Cityscapes."""
    return _examples(store, ENET)


def camvid_as_cityscapes_examples(store: RunStore) -> Drawing | Missing:
    """The same, on CamVid in the layout of Cityscapes."""
    return _examples(store, CAMVID)


def figure_9(store: RunStore) -> Drawing | Missing:
    """Convergence on the validation set with various batch sizes, on Cityscapes."""
    return _curves(store, ENET)


def camvid_as_cityscapes_curves(store: RunStore) -> Drawing | Missing:
    """The same, on CamVid in the layout of Cityscapes."""
    return _curves(store, CAMVID)


# -- convergence -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shades:
    """Curves told apart by a hue per variant, from light to dark with the batch size."""

    drawn: dict[tuple[str, int], tuple[str, str]]

    @classmethod
    def of(cls, found: Sequence[Cohort]) -> "Shades":
        """The look of everything that one figure shows; equibatch is dashed."""
        pairs = {(variant(run), batch_size(run)) for cohort in found for run in cohort.runs}
        names = {name for name, _ in pairs}
        colours = variant_colours(names)
        drawn = {}
        for name in variant_order(names):
            sizes = sorted(size for other, size in pairs if other == name)
            dash = "--" if name == EQUIBATCH else "-"
            for size, colour in zip(sizes, shades(colours[name], len(sizes)), strict=True):
                drawn[name, size] = colour, dash
        return cls(drawn)

    def styles(self) -> dict[tuple[str, int], tuple[str, str]]:
        """Every variant with its batch sizes, ascending."""
        return self.drawn

    def handles(self) -> list[Any]:
        """Entries of the legend: every curve."""
        from matplotlib.lines import Line2D

        return [
            Line2D([], [], color=colour, ls=dash, label=f"{variant_title(name)} ({size})")
            for (name, size), (colour, dash) in self.drawn.items()
        ]


def _curves(store: RunStore, experiment: str) -> Drawing | Missing:
    found = named_cohorts(store, experiment)
    if not found:
        return Missing(f"no finished {experiment} run is stored", command(experiment))
    shown = found[:PANELS]
    look = Shades.of([cohort for cohort, _ in shown])
    of_camvid = experiment == CAMVID
    figure, curves = convergence(
        store,
        shown,
        look,
        "validation IoU, 11 classes (%)" if of_camvid else "validation mIoU (%)",
        legend_title="loss (batch size)",
        score=eleven_over_training if of_camvid else dataset_miou,
    )
    measure = (
        "the mean IoU of the 11 classes that CamVid annotates (the Class IoU counts a class with 0 "
        "as soon as it is predicted somewhere, and goes up and down with that)"
        if of_camvid
        else "the Class IoU of Cityscapes"
    )
    caption = (
        "Convergence of ENet on the validation set under fine-tuning with Lovász-Softmax, with "
        "various batch sizes (from light to dark), and with weighted cross-entropy. Shown is "
        f"{measure}; mean and one standard deviation over seeds.{BEFORE_WORDS} "
        f"{_panels(shown, experiment)}{left_out(found)}"
    )
    return Drawing(figure, caption, tuple(curves))


def _panels(shown: Sequence[tuple[Cohort, str]], experiment: str) -> str:
    """What each panel is, and whether the paper's figure is among them."""
    names = [f"{c.scale} scale, {data_title(c, experiment)}" for c, _ in shown]
    text = f"{'Panels, row by row' if len(names) > 1 else 'Shown'}: {'; '.join(names)}."
    if experiment == CAMVID:
        return f"{text} The paper has no CamVid result."
    if all(is_papers(cohort) for cohort, _ in shown):
        return text
    return f"{text} Only paper-scale panels on Cityscapes repeat the paper's Figure 9."


# -- output masks ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A run whose pictures could be shown."""

    run: Run
    cohort: Cohort
    heading: str

    @property
    def is_papers(self) -> bool:
        """The run of the paper's figure: Lovász-Softmax at paper scale, batches of 10."""
        run = self.run
        own = variant(run) == LOVASZ and batch_size(run) == PAPER_BATCH
        return own and is_papers(self.cohort)

    @property
    def title(self) -> str:
        """Data, profile, size, variant, batch size and seed."""
        run = self.run
        name = f"{variant_title(variant(run))}, batch size {batch_size(run)}, seed {seed(run)}"
        return f"{self.heading}, {name}"

    def order(self) -> tuple[object, ...]:
        """Sort key: the paper's run first, then the largest; batches of 10 among equals."""
        run, scale = self.run, self.cohort.scale
        height, width, *_ = *_numbers(run.params.get("data.size", "")), 0, 0
        iterations, *_ = *_numbers(run.params.get("training.iterations", "")), 0
        return (
            not self.is_papers,
            SCALES.index(scale) if scale in SCALES else len(SCALES),
            variant(run) != LOVASZ,
            -height * width,
            -iterations,
            batch_size(run) != PAPER_BATCH,
            -batch_size(run),
            natural(seed(run)),
            run.run_id,
        )


def _examples(store: RunStore, experiment: str) -> Drawing | Missing:
    candidates = sorted(
        (
            Candidate(run, cohort, heading)
            for cohort, heading in named_cohorts(store, experiment)
            for run in cohort.runs
            if variant(run) in (LOVASZ, EQUIBATCH)
        ),
        key=Candidate.order,
    )
    broken: list[str] = []
    for candidate in candidates:
        try:
            examples = read_examples(store, candidate.run)
        except UserError as error:
            broken.append(str(error))
            continue
        if examples:
            return _drawing(experiment, candidate, _fitting(examples), broken)
    what = "has pictures (examples/)" if candidates else "is stored"
    reason = f"no finished {experiment} run with Lovász-Softmax {what}"
    return Missing("; ".join([reason, *broken]), command(experiment))


def _drawing(
    experiment: str, chosen: Candidate, examples: Sequence[Example], broken: Sequence[str]
) -> Drawing:
    title = chosen.title
    note = ""
    if experiment == ENET and not chosen.is_papers:
        lacking = f"no paper-scale run with batches of {PAPER_BATCH} has stored pictures"
        title = f"Not the paper's: {lacking}. Shown: {title}"
        note = f" This is not the paper's Figure 8: {lacking}."
        note += DEMO if chosen.cohort.scale == "demo" else ""
    elif experiment == CAMVID:
        note = " The paper has no CamVid result."
    caption = (
        "Parts of ENet's output masks before and after fine-tuning, with the photographs and the "
        "ground truth, in Cityscapes' palette (black: void, not scored). Chosen are the windows "
        "in which the two networks differ most, one from each part of the set, and not the "
        "best-looking; at the left the share of annotated pixels on which they differ. "
        f"{chosen.title} ({chosen.cohort.scale} scale). Initial output: "
        f"{starting_point(chosen.cohort)}.{note}"
    )
    if broken:
        caption += f" Passed over: {'; '.join(broken)}."
    curves = [
        Curve(
            chosen.title,
            example.entry.name,
            {
                "window": [float(v) for v in example.entry.window],
                "differs": [example.entry.differs],
            },
            sources([chosen.run]),
        )
        for example in examples
    ]
    title += ". Windows: those in which the two networks differ most"
    return Drawing(_grid(title, examples), caption, tuple(curves))


def _fitting(examples: Sequence[Example]) -> list[Example]:
    """As many of the first examples as fit on a page."""
    heights = np.cumsum([_tile_height(example) + GAP for example in examples])
    return list(examples[: max(1, int((heights <= TALLEST).sum()))])


def _tile_width() -> float:
    return (PAGE - LEFT - GAP * (len(PICTURES) - 1)) / len(PICTURES)


def _tile_height(example: Example) -> float:
    height, width = example.labels.shape
    return _tile_width() * height / width


def _grid(title: str, examples: Sequence[Example]) -> Any:
    """A row per example, a column per kind of picture, the classes that occur below."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lines = textwrap.wrap(title, 150)
    classes = _classes(examples)
    legend = LEGEND_LINE * -(-len(classes) // CLASSES_PER_LINE) + 0.04
    head = TITLE_LINE * len(lines) + 0.2
    height = head + sum(_tile_height(e) + GAP for e in examples) + legend
    figure = Figure(figsize=(PAGE, height))
    figure.text(0.5, 1 - 0.02 / height, "\n".join(lines), ha="center", va="top", fontsize=6.5,
                color=GREY, linespacing=1.15)  # fmt: skip
    top = height - head
    for row, example in enumerate(examples):
        tall = _tile_height(example)
        for column, (picture, name) in enumerate(zip(_pictures(example), PICTURES, strict=True)):
            left = LEFT + column * (_tile_width() + GAP)
            box = (left / PAGE, (top - tall) / height, _tile_width() / PAGE, tall / height)
            ax = figure.add_axes(box)
            ax.imshow(picture, interpolation="none" if column else "antialiased", aspect="auto")
            ax.set_axis_off()
            if row == 0:
                ax.set_title(name, pad=3)
        share = f"{100 * example.entry.differs:.0f}% differ"
        figure.text(0.45 * LEFT / PAGE, (top - tall / 2) / height, share, rotation=90, ha="center",
                    va="center", fontsize=6.5, color=GREY)  # fmt: skip
        top -= tall + GAP
    handles = [
        Patch(facecolor=[c / 255 for c in colour], edgecolor=GREY, lw=0.4, label=name)
        for name, colour in classes.items()
    ]
    figure.legend(handles=handles, loc="lower center", ncols=CLASSES_PER_LINE, fontsize=6.5,
                  handlelength=1.0, handleheight=0.8, columnspacing=1.2, labelspacing=0.3,
                  borderaxespad=0.1)  # fmt: skip
    return figure


def _pictures(example: Example) -> list[np.ndarray]:
    masks = (example.before, example.labels, example.after)
    return [example.photo, *(colours_of(mask) for mask in masks)]


def colours_of(label_ids: np.ndarray) -> np.ndarray:
    """Official label ids (H, W) uint8 in Cityscapes' palette, (H, W, 3) uint8; void is black."""
    palette = np.zeros((256, 3), np.uint8)
    palette[list(CITYSCAPES.label_ids)] = CITYSCAPES.colours
    return palette[label_ids]


def _classes(examples: Sequence[Example]) -> dict[str, tuple[int, int, int]]:
    """Name -> colour of the classes that are shown, in official order; last what is void."""
    ids = np.unique(
        [i for e in examples for m in (e.before, e.labels, e.after) for i in np.unique(m)]
    )
    scored = zip(CITYSCAPES.names, CITYSCAPES.label_ids, CITYSCAPES.colours, strict=True)
    found = {name: colour for name, label, colour in scored if label in ids and label != 0}
    void = not set(ids.tolist()) <= set(CITYSCAPES.label_ids[1:])
    return found | ({"void": (0, 0, 0)} if void else {})


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
