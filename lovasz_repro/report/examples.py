"""Which stored masks Figures 4, 5 and 7 show: images on which runs that are compared differ most.

Runs are compared that are of one set and seed and list the same images. A row of a figure is an
image as all of them see it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lovasz_repro.config.schema import BASIS
from lovasz_repro.errors import UserError
from lovasz_repro.report.pictures import (
    MASK_ALBUM,
    PICTURE_VOID,
    SEGMENTATIONS,
    Album,
    BinaryImage,
    ClassesImage,
    Entry,
    Kind,
    Pictures,
)
from lovasz_repro.report.runs import Cohort, Run, RunStore, natural, seed
from lovasz_repro.report.sets import (
    MULTICLASS,
    category,
    is_papers,
    losses_of,
    named_sets,
    on_features,
    shared_categories,
    ten_first,
)

ROWS = 4
"""Most images that are shown."""
OF_THE_PAPER = "bicycle"
"""The category of Figure 4."""
DETAIL = 0.6
"""Height and width of a detail, of those of its image: 36% of the image."""

Window = tuple[int, int, int, int]
"""Top, left, height and width, pixels."""


@dataclass(frozen=True)
class ShownImage:
    """An image as the compared runs see it."""

    name: str
    """The image."""
    category: str
    """What is told from the rest; "" for all classes."""
    runs: Mapping[str, Run]
    """Variant -> run."""
    photograph: np.ndarray | None
    """(h, w, 3) uint8; None on features."""
    labels: np.ndarray
    """(h, w) uint8; 255 is void."""
    masks: Mapping[str, np.ndarray]
    """Variant (or the basis network) -> (h, w) uint8."""
    scores: Mapping[str, float]
    """Variant (or the basis network) -> IoU of its mask, on the whole image."""
    differs: float
    """How far apart the image-IoUs of the losses are; of all classes, the share of the scored
    pixels on which two masks differ."""
    window: Window
    """The part of the image that is shown, of h x w pixels."""


@dataclass(frozen=True)
class Pair:
    """Two runs on all classes that may be compared."""

    cohort: Cohort
    heading: str
    runs: Mapping[str, Run]
    kind: Kind
    """Which of their masks are compared."""
    entries: tuple[Mapping[str, ClassesImage], ...]
    """Each image as either run lists it."""
    album: Album[ClassesImage] = SEGMENTATIONS


def choose_binary(store: RunStore, cohort: Cohort, broken: list[str]) -> list[ShownImage]:
    """Of each category the image on which the losses differ most, the paper's first; then the next.

    Args:
        store: where to read.
        cohort: a set of binary runs.
        broken: what is wrong with files that are passed over is added here.
    """
    ranked = []
    for name in shared_categories(cohort) if len(losses_of(cohort)) > 1 else []:
        of_category = tuple(run for run in cohort.runs if category(run) == name)
        runs = _of_one_seed(_by_seed(replace(cohort, runs=of_category), losses_of(cohort)))
        images = list(enumerate(_same_images(store, runs, MASK_ALBUM, broken)))
        images.sort(key=lambda item: -_spread(item[1]))
        for place, (number, image) in enumerate(images):
            first = place == 0 and name == OF_THE_PAPER
            ranked.append(((not first, place, -_spread(image)), runs, number, image))
    ranked.sort(key=lambda item: item[0])  # among equals the categories are in their order
    rows: list[ShownImage] = []
    for _, runs, number, image in ranked:
        if len(rows) == ROWS:
            break
        try:
            row = _read(store, cohort, MASK_ALBUM, runs, number, image, "prediction")
            rows.append(_with_basis(store, row, number, image))
        except UserError as error:
            broken.append(str(error))
    return rows


def find_pairs(
    store: RunStore,
    variants: Sequence[tuple[str, str]],
    kinds: Sequence[Kind],
    broken: list[str],
) -> list[Pair]:
    """Every pair of runs that stored masks, the best to show first.

    That is first those of the paper, of these first those with the first kind of masks; else as
    other figures have it.

    Args:
        store: where to read.
        variants: which two are compared, the preferred first.
        kinds: which masks are compared, the preferred first; of each pair the first that both have.
        broken: what is wrong with files that are passed over is added here.
    """
    pairs = []
    for cohort, heading in ten_first(named_sets(store, MULTICLASS)):
        for names in variants:
            by_seed = _by_seed(cohort, names)
            pair = pair_of(store, cohort, heading, by_seed, SEGMENTATIONS, broken, kinds)
            pairs += [pair] if pair else []

    def preference(pair: Pair) -> int:
        return kinds.index(pair.kind) if is_papers(pair.cohort) else len(kinds)

    return sorted(pairs, key=preference)


def pair_of(
    store: RunStore,
    cohort: Cohort,
    heading: str,
    by_seed: Mapping[str, Mapping[str, Run]],
    album: Album[ClassesImage],
    broken: list[str],
    kinds: Sequence[Kind] = ("prediction",),
) -> Pair | None:
    """The runs of two variants of their first common seed, if both stored masks of the same images.

    Args:
        store: where to read.
        cohort, heading: the set that they are of.
        by_seed: variant -> seed -> run.
        album: where they keep masks.
        broken: what is wrong with files that are passed over is added here.
        kinds: which masks are compared, the preferred first: the first that both have.
    """
    runs = _of_one_seed(by_seed)
    images = _same_images(store, runs, album, broken)
    scores = [entry.batch_miou for image in images for entry in image.values()]
    refined = all(score.crf is not None for score in scores)
    kind = next(kind for kind in kinds if kind == "prediction" or refined)
    return Pair(cohort, heading, runs, kind, tuple(images), album) if images else None


def choose_of_pair(
    store: RunStore, pair: Pair, broken: list[str], *, details: bool = False
) -> list[ShownImage]:
    """The images on which two runs differ most, in that order.

    Args:
        store: where to read.
        pair: the runs.
        broken: what is wrong with files that are passed over is added here.
        details: cut out the part of each image where they differ most.
    """

    def readable() -> Iterator[ShownImage]:
        for number, image in enumerate(pair.entries):
            try:
                row = _read(store, pair.cohort, pair.album, pair.runs, number, image, pair.kind)
            except UserError as error:
                broken.append(str(error))
            else:
                yield _compared(row, image, pair.kind, details)

    return sorted(readable(), key=lambda row: -row.differs)[:ROWS]


def detail_window(differing: np.ndarray) -> Window:
    """The window of ``DETAIL`` of the sides that holds the most differing pixels.

    Of several such windows, the one whose middle is nearest to that of all differing pixels.

    Args:
        differing: (H, W) bool.
    """
    full = differing.shape
    sides = height, width = [math.ceil(DETAIL * side) for side in full]
    above = np.pad(differing.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # counts above and left
    held = (
        above[height:, width:]
        - above[:-height, width:]
        - above[height:, :-width]
        + above[:-height, :-width]
    )  # (H - height + 1, W - width + 1), by top and left
    best = np.argwhere(held == held.max())
    points = np.argwhere(differing)
    middle = points.mean(axis=0) if len(points) else (np.array(full) - 1) / 2
    away = np.square(best + (np.array(sides) - 1) / 2 - middle).sum(axis=1)
    top, left = best[away.argmin()].tolist()
    return top, left, height, width


def _by_seed(cohort: Cohort, names: Sequence[str]) -> dict[str, dict[str, Run]]:
    return {name: {seed(run): run for run in cohort.select(name)} for name in names}


def _of_one_seed(by_name: Mapping[str, Mapping[str, Run]]) -> dict[str, Run]:
    """Variant -> run, all of the first seed that every variant has; nothing where there is none."""
    common = set.intersection(*(set(runs) for runs in by_name.values()))
    number = min(common, key=natural, default="")
    return {name: runs[number] for name, runs in by_name.items()} if common else {}


def _same_images(
    store: RunStore, runs: Mapping[str, Run], album: Album[Entry], broken: list[str]
) -> list[dict[str, Entry]]:
    """Each image as every run lists it, by variant; nothing where a run stored no pictures."""
    try:
        found = {name: Pictures(store, run, album).listing() for name, run in runs.items()}
    except UserError as error:
        broken.append(str(error))
        return []
    listings = {name: listing for name, listing in found.items() if listing is not None}
    if not runs or len(listings) < len(runs):
        return []
    images = [[(e.height, e.width, e.name) for e in listing] for listing in listings.values()]
    if any(listed != images[0] for listed in images[1:]):
        broken.append(f"{_names(runs)} store masks of different images")
        return []
    return [
        dict(zip(listings, image, strict=True)) for image in zip(*listings.values(), strict=True)
    ]


def _read(
    store: RunStore,
    cohort: Cohort,
    album: Album[Entry],
    runs: Mapping[str, Run],
    number: int,
    image: Mapping[str, Entry],
    kind: Kind,
) -> ShownImage:
    """A whole image.

    Raises:
        UserError: a file is broken, or the runs disagree on the labels; names it.
    """
    entries = {name: (Pictures(store, run, album), image[name]) for name, run in runs.items()}
    masks = {name: pictures.mask(number, e, kind) for name, (pictures, e) in entries.items()}
    labels = [pictures.mask(number, entry, "labels") for pictures, entry in entries.values()]
    pictures, first = next(iter(entries.values()))
    if any(not np.array_equal(other, labels[0]) for other in labels[1:]):
        raise UserError(f"{first.name}: {_names(runs)} disagree on the labels")
    photograph = None if on_features(cohort) else pictures.photograph(number, first)
    window = (0, 0, first.height, first.width)
    return ShownImage(first.name, "", runs, photograph, labels[0], masks, {}, 0.0, window)


def _spread(image: Mapping[str, BinaryImage]) -> float:
    ious = [entry.image_iou for entry in image.values()]
    return max(ious) - min(ious)


def _with_basis(
    store: RunStore, row: ShownImage, number: int, image: Mapping[str, BinaryImage]
) -> ShownImage:
    """A row of one category, with the mask and the score of the network before training."""
    (loss, run), *_ = row.runs.items()
    masks = {BASIS: Pictures(store, run, MASK_ALBUM).mask(number, image[loss], "basis")}
    scores = {BASIS: image[loss].basis_iou} | {n: entry.image_iou for n, entry in image.items()}
    return replace(
        row,
        category=category(run),
        masks={**masks, **row.masks},
        scores=scores,
        differs=_spread(image),
    )


def _compared(
    row: ShownImage, image: Mapping[str, ClassesImage], kind: Kind, details: bool
) -> ShownImage:
    """A row of two masks of all classes: where and how far they differ."""
    one, other = row.masks.values()
    scored = row.labels != PICTURE_VOID
    differing = (one != other) & scored
    window = detail_window(differing) if details else row.window
    top, left, height, width = window
    part = slice(top, top + height), slice(left, left + width)
    return replace(
        row,
        photograph=None if row.photograph is None else row.photograph[part],
        labels=row.labels[part],
        masks={name: mask[part] for name, mask in row.masks.items()},
        scores={name: entry.batch_miou.of(kind) for name, entry in image.items()},
        differs=differing.sum() / max(scored.sum(), 1),
        window=window,
    )


def _names(runs: Mapping[str, Run]) -> str:
    return " and ".join(run.name for run in runs.values())
