"""Figure 4: binary masks on validation images after training with each loss (Sec. 4.2)."""

from collections.abc import Sequence

import numpy as np

from lovasz_repro.report.drawing import Curve, Drawing, Missing
from lovasz_repro.report.picture_grid import Tile, picture_grid
from lovasz_repro.report.runs import Cohort, RunStore, command, natural, seed, sources
from lovasz_repro.report.style import BLACK, DEMO, ORANGE, SKY
from lovasz_repro.report.voc_binary_examples import Example, choose_examples
from lovasz_repro.report.voc_binary_pictures import VOID
from lovasz_repro.report.voc_binary_runs import (
    BINARY,
    is_papers,
    loss_title,
    named_sets,
    on_features,
)

BACKGROUND, VOID_COLOUR = "#f4f4f4", "#b8b8b8"
COLOURS = {
    "foreground": BLACK,
    "foreground in the mask alone": ORANGE,
    "foreground that the mask misses": SKY,
    "void (not scored)": VOID_COLOUR,
}
"""Legend of the masks."""


def figure_4(store: RunStore) -> Drawing | Missing:
    """Masks of a few categories after training with each loss, where these differ most."""
    found = named_sets(store)
    broken: list[str] = []
    for cohort, heading in found:
        examples = choose_examples(store, cohort, broken)
        if examples:
            return _drawing(cohort, heading, examples, broken)
    what = "has masks (masks/) of two losses or more" if found else "is stored"
    reason = f"no finished set of {BINARY} runs {what}"
    return Missing("; ".join([reason, *broken]), command(BINARY))


# -- drawing -----------------------------------------------------------------------------------


def _drawing(
    cohort: Cohort, heading: str, examples: Sequence[Example], broken: Sequence[str]
) -> Drawing:
    title, note = heading, ""
    if not is_papers(cohort):
        lacking = "no paper-scale runs on photographs have stored masks"
        title = f"Not the paper's: {lacking}. Shown: {heading}"
        note = f" This is not the paper's Figure 4: {lacking}."
    if cohort.scale == "demo":
        note += DEMO
    if on_features(cohort):
        note += (
            " The networks saw features: noise drawn from the masks in the place of photographs, "
            "as Sec. 4.1 does for circles."
        )
    seeds = sorted({seed(r) for e in examples for r in e.chosen.runs.values()}, key=natural)
    caption = (
        "Binary masks of a category on a validation image, predicted by the basis network and "
        "after training with each loss, with the image-IoU (×100) of each. Chosen are the images "
        "on which the image-IoUs of the losses differ most, of different categories first, and "
        f"not the best-looking. {heading} ({cohort.scale} scale), seed {' and '.join(seeds)}.{note}"
    )
    if broken:
        caption += f" Passed over: {'; '.join(broken)}."
    curves = [
        Curve(
            f"{chosen.category}, {chosen.entry.name}",
            loss_title(name),
            {"image_iou": [iou]},
            sources([chosen.runs.get(name, chosen.run)]),
        )
        for chosen in (example.chosen for example in examples)
        for name, iou in chosen.ious.items()
    ]
    rows = [_tiles(example) for example in examples]
    title += ". Images: those on which the losses differ most"
    figure = picture_grid(title, rows, COLOURS, legend_columns=len(COLOURS))
    return Drawing(figure, caption, tuple(curves))


def _tiles(example: Example) -> list[Tile]:
    """The pictures of a row; the best image-IoU is bold."""
    chosen = example.chosen
    name = chosen.entry.name[:14]
    truth = Tile("ground truth", colours_of_truth(example.labels), name)
    if example.photograph is None:
        tiles = [Tile(truth.heading, truth.picture, f"{chosen.category}, {name}")]
    else:
        tiles = [Tile("photograph", example.photograph, chosen.category), truth]
    best = max(chosen.ious.values())
    for loss, iou in chosen.ious.items():
        picture = colours_of_mask(example.masks[loss], example.labels)
        tiles.append(Tile(loss_title(loss), picture, f"IoU {100 * iou:.1f}", iou == best))
    return tiles


def colours_of_truth(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) uint8 in the colours of the legend, (H, W, 3) uint8."""
    return _painted(labels == 1, labels == VOID)


def colours_of_mask(mask: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A mask (H, W), 0 or 1, against the labels in the colours of the legend, (H, W, 3) uint8.

    Of void pixels only those that the mask takes for foreground are shown as void.
    """
    found, there = mask == 1, labels == 1
    picture = _painted(found & there, found & (labels == VOID))
    picture[found & (labels == 0)] = _rgb(COLOURS["foreground in the mask alone"])
    picture[~found & there] = _rgb(COLOURS["foreground that the mask misses"])
    return picture


def _painted(foreground: np.ndarray, void: np.ndarray) -> np.ndarray:
    picture = np.full((*void.shape, 3), _rgb(BACKGROUND), np.uint8)
    picture[foreground] = _rgb(COLOURS["foreground"])
    picture[void] = _rgb(COLOURS["void (not scored)"])
    return picture


def _rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return red, green, blue
