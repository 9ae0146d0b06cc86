"""Figures 5 and 7: masks of all classes of VOC after training with two losses (Sec. 4.3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lovasz_repro.data.palettes import VOC
from lovasz_repro.report.drawing import Curve, Drawing, Missing
from lovasz_repro.report.picture_grid import Tile, picture_grid
from lovasz_repro.report.runs import RunStore, command, seed, sources, variant
from lovasz_repro.report.style import DEMO, variant_title
from lovasz_repro.report.voc_binary_runs import is_papers, on_features
from lovasz_repro.report.voc_multiclass_examples import (
    Example,
    Pair,
    choose_examples,
    find_pairs,
)
from lovasz_repro.report.voc_multiclass_pictures import VOID, Kind
from lovasz_repro.report.voc_multiclass_runs import MULTICLASS

VOID_COLOUR = (224, 224, 192)
"""Of the masks that Pascal VOC publishes."""
LEGEND_COLUMNS = 9


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


def figure_5(store: RunStore) -> Drawing | Missing:
    """Masks after training with Lovász-Softmax or cross-entropy, refined by the CRF."""
    return _figure(store, FIGURE_5)


def figure_7(store: RunStore) -> Drawing | Missing:
    """Details of masks after training with Lovász-Softmax per batch or per image."""
    return _figure(store, FIGURE_7)


def _figure(store: RunStore, shown: Comparison) -> Drawing | Missing:
    broken: list[str] = []
    for pair in find_pairs(store, shown.variants, shown.kinds, broken):
        examples = choose_examples(store, pair, broken, details=shown.details)
        if examples:
            return _drawing(shown, pair, examples, broken)
    wanted = " or ".join(" and ".join(names) for names in shown.variants)
    reason = f"no finished {MULTICLASS} runs of one seed have masks (segmentations/): {wanted}"
    return Missing("; ".join([reason, *dict.fromkeys(broken)]), command(MULTICLASS))


# -- drawing -----------------------------------------------------------------------------------


def _drawing(
    shown: Comparison, pair: Pair, examples: Sequence[Example], broken: Sequence[str]
) -> Drawing:
    names = [variant_title(variant(run)) for run in pair.runs]
    title = f"{names[0]}; {names[1]}. {pair.heading}"
    notes = []
    lacking = _lacking(shown, pair)
    if lacking:
        title = f"Not the paper's: {lacking}. Shown: {title}"
        notes.append(f"This is not the paper's Figure {shown.number}: {lacking}.")
    if pair.cohort.scale == "demo":
        notes.append(DEMO.strip())
    if on_features(pair.cohort):
        notes.append("The networks saw features: noise drawn from the masks in the place of "
                     "photographs, as Sec. 4.1 does for circles.")  # fmt: skip
    if broken:
        notes.append(f"Passed over: {'; '.join(dict.fromkeys(broken))}.")
    made = {"crf": "at several scales, refined by the CRF", "prediction": "at one scale, no CRF"}
    part = "; of each, the window that holds most of the difference" if shown.details else ""
    caption = (
        f"{shown.about} (predicted {made[pair.kind]}), in the colours of Pascal VOC. Under each "
        "mask is its IoU (×100) averaged over the classes in the labels of the whole image. Chosen "
        "are the images on which the two masks differ most (in their share of pixels that are not "
        f"void), and not the best-looking{part}. {pair.heading} ({pair.cohort.scale} scale), "
        f"{names[0]} and {names[1]}, seed {seed(pair.runs[0])}."
    )
    curves = [
        Curve(
            example.name,
            name,
            {
                "batch_miou": [score],
                "differs": [example.differs],
                "window": [float(side) for side in example.window],
            },
            sources([run]),
        )
        for example in examples
        for name, run, score in zip(names, pair.runs, example.scores, strict=True)
    ]
    rows = [_tiles(shown, pair.kind, example) for example in examples]
    title += ". Images: those on which the two masks differ most"
    figure = picture_grid(title, rows, colours_in(examples), legend_columns=LEGEND_COLUMNS)
    return Drawing(figure, " ".join([caption, *notes]), tuple(curves))


def _lacking(shown: Comparison, pair: Pair) -> str:
    """What the paper's figure has and this one has not; nothing where it is the paper's."""
    if not is_papers(pair.cohort):
        return "no paper-scale runs on photographs have stored masks"
    if pair.kind != shown.kinds[0]:
        return "no paper-scale runs have stored masks after the CRF"
    return ""


def _tiles(shown: Comparison, kind: Kind, example: Example) -> list[Tile]:
    """The pictures of a row; the better IoU is bold."""
    name, differs = example.name[:14], f"masks differ on {100 * example.differs:.1f}%"
    truth = colours_of(example.labels)
    if example.photograph is None:
        tiles = [Tile("ground truth", truth, f"{name}, {differs}", smooth=False)]
    else:
        tiles = [
            Tile("input", example.photograph, name),
            Tile("ground truth", truth, differs, smooth=False),
        ]
    ending = " + CRF" if kind == "crf" else ""
    for heading, mask, score in zip(shown.headings, example.masks, example.scores, strict=True):
        best = score == max(example.scores)
        under = f"mIoU {100 * score:.1f}"
        tiles.append(Tile(heading + ending, colours_of(mask), under, bold=best, smooth=False))
    return tiles


def colours_of(ids: np.ndarray) -> np.ndarray:
    """Class ids (H, W) uint8, 255 = void, in the colours of Pascal VOC, (H, W, 3) uint8."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(VOC)] = VOC.colours
    palette[VOID] = VOID_COLOUR
    return palette[ids]


def colours_in(examples: Sequence[Example]) -> dict[str, str]:
    """Name -> colour, #rrggbb, of the classes that are shown, by id; last what is void."""
    maps = [ids for example in examples for ids in (example.labels, *example.masks)]
    present = set(np.unique(np.concatenate([ids.ravel() for ids in maps])).tolist())
    known = list(zip(range(len(VOC)), VOC.names, VOC.colours, strict=True))
    known.append((VOID, "void (not scored)", VOID_COLOUR))
    return {name: f"#{bytes(colour).hex()}" for i, name, colour in known if i in present}
