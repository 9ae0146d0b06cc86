"""Figures of pictures: masks of a category (Fig. 4), of all classes (Fig. 5, 7, data of one's own),
crops (Fig. 8)."""

import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from lovasz_repro.data.classes import CITYSCAPES, RGB, VOC, ClassTable, class_table
from lovasz_repro.errors import UserError
from lovasz_repro.report.examples import (
    EXAMPLES,
    OWN_SEGMENTATIONS,
    PICTURE_VOID,
    ComparedRuns,
    Kind,
    ListedWindow,
    Pictures,
    ShownImage,
    choose_binary,
    choose_of_pair,
    compared_runs,
    find_pairs,
)
from lovasz_repro.report.model import Curve, Drawing, Missing
from lovasz_repro.report.own import LOVASZ_LOSSES, OWN, compared_sets
from lovasz_repro.report.runs import (
    SCALES,
    Cohort,
    Run,
    RunStore,
    batch_size,
    command,
    natural,
    seed,
    setting,
    sources,
    variant,
)
from lovasz_repro.report.sets import (
    BINARY,
    CAMVID_LAYOUT,
    MULTICLASS,
    PAPER_BATCH,
    category,
    is_papers,
    loss_title,
    named_cohorts,
    named_sets,
)
from lovasz_repro.report.style import (
    BLACK,
    EQUIBATCH,
    GREY,
    LOVASZ,
    ORANGE,
    PAGE,
    SKY,
    variant_title,
)
from lovasz_repro.report.words import (
    caveats,
    figure_caption,
    passed_over,
    sentence,
    starting_point,
    titled,
)

TALLEST = 6.4
"""Height of all rows together, inches."""
SIDE, GAP_INCHES, TITLE_LINE, UNDER_LINE, LEGEND_LINE = 0.02, 0.05, 0.125, 0.17, 0.13
"""Sizes of the parts around the pictures, inches."""

# -- a grid of pictures ------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """One picture with its column's heading, and what stands under it."""

    heading: str
    picture: np.ndarray
    """(H, W, 3) uint8."""
    under: str = ""
    bold: bool = False
    """What stands under it."""
    smooth: bool = True
    """Whether colours may be mixed where the picture is shrunk."""


def picture_grid(
    title: str, rows: Sequence[Sequence[Tile]], legend: Mapping[str, str], *, legend_columns: int
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
    wide = (PAGE - 2 * SIDE - GAP_INCHES * (len(rows[0]) - 1)) / len(rows[0])
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
            left = SIDE + column * (wide + GAP_INCHES)
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


def _tiles(
    image: ShownImage,
    under: tuple[str, str],
    titles: Mapping[str, str],
    measure: str,
    paint: Callable[[np.ndarray], np.ndarray],
    truth: np.ndarray,
    *,
    photograph: str = "input",
    smooth: bool = False,
) -> list[Tile]:
    """A row: the photograph, where there is one, the ground truth, every mask; the best is bold.

    Args:
        image: what is shown.
        under: what stands under the first two pictures.
        titles: run -> heading over its masks, in their order.
        measure: what the masks are scored by.
        paint: colours of a mask.
        truth: the labels in colours.
        photograph: heading over the photographs.
        smooth: as in `Tile`.
    """
    if image.photograph is None:
        tiles = [Tile("ground truth", truth, ", ".join(under), smooth=smooth)]
    else:
        tiles = [
            Tile(photograph, image.photograph, under[0]),
            Tile("ground truth", truth, under[1], smooth=smooth),
        ]
    best = max(image.scores.values())
    for name, title in titles.items():
        score = image.scores[name]
        told = f"{measure} {100 * score:.1f}"
        tiles.append(Tile(title, paint(image.masks[name]), told, score == best, smooth))
    return tiles


def _nothing(reason: str, broken: Sequence[str], fill: str) -> Missing:
    return Missing("; ".join([reason, *dict.fromkeys(broken)]), fill)


@dataclass(frozen=True)
class Palette:
    """Colours of the scored classes by label id, and one for all else."""

    table: ClassTable
    void: RGB

    @property
    def scored(self) -> list[tuple[str, int, RGB]]:
        """Name, id and colour of the classes that a network may predict, in their order."""
        table = self.table
        every = zip(table.names, table.label_ids, table.colours, table.predictable, strict=True)
        return [(name, label, colour) for name, label, colour, scored in every if scored]

    def paint(self, ids: np.ndarray) -> np.ndarray:
        """Label ids (H, W) uint8 as colours, (H, W, 3) uint8."""
        colours = np.full((256, 3), self.void, np.uint8)
        for _, label, colour in self.scored:
            colours[label] = colour
        return colours[ids]

    def legend(self, maps: Iterable[np.ndarray]) -> dict[str, str]:
        """Name -> colour, #rrggbb, of the classes that are shown, in order; last what is void."""
        present = set(np.unique(np.concatenate([ids.ravel() for ids in maps])).tolist())
        found = {name: colour for name, label, colour in self.scored if label in present}
        if not present <= {label for _, label, _ in self.scored}:
            found["void (not scored)"] = self.void
        return {name: f"#{bytes(colour).hex()}" for name, colour in found.items()}


VOC_PALETTE = Palette(VOC, (224, 224, 192))
"""As Pascal VOC publishes its masks."""
CITYSCAPES_PALETTE = Palette(CITYSCAPES, (0, 0, 0))

# -- one category ------------------------------------------------------------------------------

PALE, VOID_GREY = "#f4f4f4", "#b8b8b8"
AREA_COLOURS = {
    "foreground": BLACK,
    "foreground in the mask alone": ORANGE,
    "foreground that the mask misses": SKY,
    "void (not scored)": VOID_GREY,
}
"""Legend of the masks."""


def figure_4(store: RunStore) -> Drawing | Missing:
    """Masks of a few categories after training with each loss, where these differ most."""
    found = named_sets(store, BINARY)
    broken: list[str] = []
    for cohort, heading in found:
        examples = choose_binary(store, cohort, broken)
        if examples:
            return _of_categories(cohort, heading, examples, broken)
    what = "has masks (masks/) of two losses or more" if found else "is stored"
    return _nothing(f"no finished set of {BINARY} runs {what}", broken, command(BINARY))


def _of_categories(
    cohort: Cohort, heading: str, examples: Sequence[ShownImage], broken: Sequence[str]
) -> Drawing:
    lacking = "" if is_papers(cohort) else sentence("no-masks")
    seeds = sorted({seed(run) for e in examples for run in e.runs.values()}, key=natural)
    caption = figure_caption(
        "figure-4",
        caveats(4, cohort, lacking),
        passed_over(broken),
        heading=heading,
        scale=cohort.scale,
        seeds_shown=" and ".join(seeds),
    )
    rows, curves = [], []
    for example in examples:
        first = next(iter(example.runs.values()))
        shown, labels = (category(first), example.name[:14]), example.labels
        titles = {name: loss_title(name) for name in example.scores}
        rows.append(
            _tiles(example, shown, titles, "IoU", partial(colours_of_mask, labels=labels),
                   colours_of_truth(labels), photograph="photograph", smooth=True)
        )  # fmt: skip
        curves += [
            Curve(f"{category(first)}, {example.name}", titles[name], {"image_iou": [iou]},
                  sources([example.runs.get(name, first)]))
            for name, iou in example.scores.items()
        ]  # fmt: skip
    title = f"{titled(heading, lacking)}. Images: those on which the losses differ most"
    figure = picture_grid(title, rows, AREA_COLOURS, legend_columns=len(AREA_COLOURS))
    return Drawing(figure, caption, tuple(curves))


def colours_of_truth(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) uint8 in the colours of the legend, (H, W, 3) uint8."""
    return _painted(labels == 1, labels == PICTURE_VOID)


def colours_of_mask(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A mask (H, W), 0 or 1, against the labels in the colours of the legend, (H, W, 3) uint8.

    Of void pixels only those that the mask takes for foreground are shown as void.
    """
    found, there = mask == 1, labels == 1
    picture = _painted(found & there, found & (labels == PICTURE_VOID))
    picture[found & (labels == 0)] = _rgb(AREA_COLOURS["foreground in the mask alone"])
    picture[~found & there] = _rgb(AREA_COLOURS["foreground that the mask misses"])
    return picture


def _painted(foreground: np.ndarray, void: np.ndarray) -> np.ndarray:
    picture = np.full((*void.shape, 3), _rgb(PALE), np.uint8)
    picture[foreground] = _rgb(AREA_COLOURS["foreground"])
    picture[void] = _rgb(AREA_COLOURS["void (not scored)"])
    return picture


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


# -- all classes of VOC ------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """What one figure compares."""

    number: Literal[5, 7]
    about: str
    variants: tuple[tuple[str, str], ...]
    """Two by two, those to show first."""
    headings: tuple[str, str]
    """Over their columns."""
    kinds: tuple[Kind, ...]
    """Which masks, those to show first."""
    details: bool
    """Whether parts of the images are shown."""


FIGURE_5 = Comparison(
    number=5,
    about="Segmentations after training with Lovász-Softmax or cross-entropy",
    variants=(
        ("lovasz-equibatch-30k", "x-loss-equibatch-30k"),
        ("lovasz-equibatch", "x-loss-equibatch"),
        ("lovasz", "x-loss"),
    ),
    headings=("Lovász-Softmax", "cross-entropy"),
    kinds=("crf", "prediction"),
    details=False,
)
FIGURE_7 = Comparison(
    number=7,
    about="Details of masks after training with Lovász-Softmax per batch or per image",
    variants=(("lovasz", "lovasz-per-image"),),
    headings=("per batch", "per image"),
    kinds=("prediction",),
    details=True,
)


def figure_of_classes(store: RunStore, shown: Comparison) -> Drawing | Missing:
    """Masks of all classes of VOC after training with two losses."""
    broken: list[str] = []
    for pair in find_pairs(store, shown.variants, shown.kinds, broken):
        examples = choose_of_pair(store, pair, broken, details=shown.details)
        if examples:
            return _of_classes(shown, pair, examples, broken)
    wanted = " or ".join(" and ".join(names) for names in shown.variants)
    reason = f"no finished {MULTICLASS} runs of one seed have masks (segmentations/): {wanted}"
    return _nothing(reason, broken, command(MULTICLASS))


def _of_classes(
    shown: Comparison, pair: ComparedRuns, examples: Sequence[ShownImage], broken: Sequence[str]
) -> Drawing:
    one, other = (variant_title(name) for name in pair.runs)
    lacking = "" if pair.kind == shown.kinds[0] else sentence("no-crf")
    lacking = lacking if is_papers(pair.cohort) else sentence("no-masks")
    caption = figure_caption(
        "classes",
        caveats(shown.number, pair.cohort, lacking),
        passed_over(broken),
        about=shown.about,
        made=sentence(f"predicted-{pair.kind}"),
        part=sentence("most-of-it") if shown.details else "",
        heading=pair.heading,
        scale=pair.cohort.scale,
        one=one,
        other=other,
        seed=_seed_of(pair),
    )
    title = titled(f"{one}; {other}. {pair.heading}", lacking)
    return _of_pair(pair, examples, VOC_PALETTE, shown.headings, title, caption)


def own_figure(store: RunStore) -> Drawing | Missing:
    """The validation images, of those that runs keep, on which two losses differ most."""
    broken: list[str] = []
    for one in compared_sets(store):
        for name in (n for n in LOVASZ_LOSSES if one.baseline and n in one.runs):
            runs = {n: one.runs[n] for n in (one.baseline or "", name)}
            pair = compared_runs(store, one.cohort, one.heading, runs, OWN_SEGMENTATIONS, broken)
            rows = choose_of_pair(store, pair, broken) if pair else []
            if pair and rows:
                palette = Palette(class_table(OWN, one.classes, len(one.classes)), VOC_PALETTE.void)
                titles = [variant_title(n) for n in runs]
                caption = figure_caption(
                    OWN, passed_over(broken), one=titles[1], other=titles[0], heading=one.heading,
                    seed=_seed_of(pair),
                )  # fmt: skip
                title = f"{' and '.join(titles)}. {one.heading}"
                return _of_pair(pair, rows, palette, titles, title, caption)
    reason = f"no finished {OWN} runs of one seed, with cross-entropy and a Lovász loss, have masks"
    return _nothing(reason, broken, f"{command(OWN)} --data DIR")


def _seed_of(pair: ComparedRuns) -> str:
    return seed(next(iter(pair.runs.values())))


def _of_pair(
    pair: ComparedRuns,
    examples: Sequence[ShownImage],
    palette: Palette,
    headings: Sequence[str],
    title: str,
    caption: str,
) -> Drawing:
    """Masks of two runs; under the ground truth how far they differ."""
    ending = " + CRF" if pair.kind == "crf" else ""
    titles = {n: heading + ending for n, heading in zip(pair.runs, headings, strict=True)}
    rows, curves = [], []
    for example in examples:
        told = example.name[:14], f"masks differ on {100 * example.differs:.1f}%"
        truth = palette.paint(example.labels)
        rows.append(_tiles(example, told, titles, "mIoU", palette.paint, truth))
        where = {"differs": [example.differs], "window": [float(side) for side in example.window]}
        curves += [
            Curve(example.name, variant_title(name), {"batch_miou": [example.scores[name]]} | where,
                  sources([run]))
            for name, run in pair.runs.items()
        ]  # fmt: skip
    figure = picture_grid(
        f"{title}. Images: those on which the two masks differ most",
        rows,
        palette.legend(ids for e in examples for ids in (e.labels, *e.masks.values())),
        legend_columns=9,
    )
    return Drawing(figure, caption, tuple(curves))


# -- crops of Cityscapes -----------------------------------------------------------------------


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
        height, width, *_ = *re.findall(r"\d+", str(setting(run, "data.size", ""))), 0, 0
        return (
            not self.is_papers,
            SCALES.index(scale) if scale in SCALES else len(SCALES),
            variant(run) != LOVASZ,
            -int(height) * int(width),
            -int(setting(run, "training.iterations", 0)),
            batch_size(run) != PAPER_BATCH,
            -batch_size(run),
            natural(seed(run)),
            run.run_id,
        )


@dataclass(frozen=True)
class Crop:
    """A window as the camera, the labels and the two networks see it."""

    entry: ListedWindow
    photo: np.ndarray
    """(H, W, 3) uint8."""
    masks: Mapping[str, np.ndarray]
    """Official label ids, (H, W) uint8: ``before``, ``labels`` and ``after``."""


def figure_of_crops(store: RunStore, experiment: str) -> Drawing | Missing:
    """Parts of output masks before and after fine-tuning."""
    candidates = [
        Candidate(run, cohort, heading)
        for cohort, heading in named_cohorts(store, experiment)
        for run in cohort.runs
        if variant(run) in (LOVASZ, EQUIBATCH)
    ]
    broken: list[str] = []
    for candidate in sorted(candidates, key=Candidate.order):
        try:
            crops = _crops(Pictures(store, candidate.run, EXAMPLES))
        except UserError as error:
            broken.append(str(error))
            continue
        if crops:
            return _of_crops(experiment, candidate, crops, broken)
    what = "has pictures (examples/)" if candidates else "is stored"
    reason = f"no finished {experiment} run with Lovász-Softmax {what}"
    return _nothing(reason, broken, command(experiment))


def _crops(pictures: Pictures[ListedWindow]) -> list[Crop]:
    return [
        Crop(
            entry,
            pictures.photograph(number, entry),
            {kind: pictures.mask(number, entry, kind) for kind in pictures.album.masks},
        )
        for number, entry in enumerate(pictures.listing() or [])
    ]


def _of_crops(
    experiment: str, chosen: Candidate, crops: Sequence[Crop], broken: Sequence[str]
) -> Drawing:
    of_camvid = experiment == CAMVID_LAYOUT
    lacking = (
        "" if of_camvid or chosen.is_papers else sentence("no-crops", papers_batch=PAPER_BATCH)
    )
    caption = figure_caption(
        "crops",
        sentence("no-camvid") if of_camvid else caveats(8, chosen.cohort, lacking),
        passed_over(broken),
        heading=chosen.title,
        scale=chosen.cohort.scale,
        start=starting_point(chosen.cohort),
    )
    curves = [
        Curve(
            chosen.title,
            crop.entry.name,
            {"window": [float(v) for v in crop.entry.window], "differs": [crop.entry.differs]},
            sources([chosen.run]),
        )
        for crop in crops
    ]
    title = titled(chosen.title, lacking)
    figure = picture_grid(
        f"{title}. Windows: those in which the two networks differ most",
        [_tiles_of_crop(crop) for crop in crops],
        CITYSCAPES_PALETTE.legend(ids for crop in crops for ids in crop.masks.values()),
        legend_columns=7,
    )
    return Drawing(figure, caption, tuple(curves))


def _tiles_of_crop(crop: Crop) -> list[Tile]:
    headings = ("initial ENet output", "ground truth", "fine-tuned")
    masks = zip(headings, crop.masks.values(), strict=True)
    return [
        Tile("input", crop.photo, f"{100 * crop.entry.differs:.0f}% differ"),
        *(Tile(name, CITYSCAPES_PALETTE.paint(mask), smooth=False) for name, mask in masks),
    ]
