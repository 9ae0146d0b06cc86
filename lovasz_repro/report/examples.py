"""Which stored masks Figures 4, 5 and 7 show: images on which runs that are compared differ most.

Runs are compared that are of one set and seed and list the same images. A row of a figure is an
image as all of them see it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

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
    """How far apart the scores of the runs are; of two masks of all classes, the share of the
    scored pixels on which they differ."""
    window: Window
    """The part of the image that is shown, of h x w pixels."""


@dataclass(frozen=True)
class ComparedRuns:
    """Runs of one set and seed that stored masks of the same images."""

    cohort: Cohort
    heading: str
    runs: Mapping[str, Run]
    """Variant -> run."""
    album: Album[Any]
    kind: Kind
    """Which of their masks are compared."""
    entries: tuple[Mapping[str, Any], ...]
    """Each image as every run lists it, in the album's kind of entry."""


def compared_runs(
    store: RunStore,
    cohort: Cohort,
    heading: str,
    by_seed: Mapping[str, Mapping[str, Run]],
    album: Album[Any],
    broken: list[str],
    kinds: Sequence[Kind] = ("prediction",),
) -> ComparedRuns | None:
    """Runs of the first seed that all variants have, if all stored masks of the same images.

    Args:
        store: where to read.
        cohort, heading: the set that they are of.
        by_seed: variant -> seed -> run.
        album: where they keep masks.
        broken: what is wrong with files that are passed over is added here.
        kinds: which masks are compared, the preferred first: the first that all have.
    """
    common = set.intersection(*(set(runs) for runs in by_seed.values()))
    number = min(common, key=natural, default="")
    runs = {name: of_seed[number] for name, of_seed in by_seed.items()} if common else {}
    try:
        listings = [Pictures(store, run, album).listing() for run in runs.values()]
    except UserError as error:
        broken.append(str(error))
        return None
    found = [listing for listing in listings if listing is not None]
    if not found or len(found) < len(listings):
        return None
    images = [[(e.height, e.width, e.name) for e in listing] for listing in found]
    if any(listed != images[0] for listed in images[1:]):
        broken.append(f"{_names(runs)} store masks of different images")
        return None
    entries = tuple(dict(zip(runs, image, strict=True)) for image in zip(*found, strict=True))
    every = [entry for image in entries for entry in image.values()]
    refined = all(isinstance(e, ClassesImage) and e.batch_miou.crf is not None for e in every)
    kind = next(kind for kind in kinds if kind == "prediction" or refined)
    return ComparedRuns(cohort, heading, runs, album, kind, entries) if entries else None


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
        by_seed = _by_seed(replace(cohort, runs=of_category), losses_of(cohort))
        compared = compared_runs(store, cohort, name, by_seed, MASK_ALBUM, broken)
        if compared is None:
            continue
        spreads = [_spread(_scores(image, "prediction")) for image in compared.entries]
        order = sorted(range(len(spreads)), key=lambda number: -spreads[number])
        for place, number in enumerate(order):
            first = place == 0 and name == OF_THE_PAPER
            ranked.append(((not first, place, -spreads[number]), compared, number))
    ranked.sort(key=lambda item: item[0])  # among equals the categories are in their order
    rows: list[ShownImage] = []
    for _, compared, number in ranked:
        if len(rows) == ROWS:
            break
        try:
            rows.append(_with_basis(store, compared, number))
        except UserError as error:
            broken.append(str(error))
    return rows


def find_pairs(
    store: RunStore,
    variants: Sequence[tuple[str, str]],
    kinds: Sequence[Kind],
    broken: list[str],
) -> list[ComparedRuns]:
    """Every pair of runs that stored masks of all classes, the best to show first.

    That is first those of the paper, of these first those with the first kind of masks; else as
    other figures have it.

    Args:
        store: where to read.
        variants: which two are compared, the preferred first.
        kinds: which masks are compared, the preferred first; of each pair the first that both have.
        broken: what is wrong with files that are passed over is added here.
    """
    pairs = [
        compared_runs(store, cohort, title, _by_seed(cohort, names), SEGMENTATIONS, broken, kinds)
        for cohort, title in ten_first(named_sets(store, MULTICLASS))
        for names in variants
    ]

    def preference(pair: ComparedRuns) -> int:
        return kinds.index(pair.kind) if is_papers(pair.cohort) else len(kinds)

    return sorted(filter(None, pairs), key=preference)


def choose_of_pair(
    store: RunStore, pair: ComparedRuns, broken: list[str], *, details: bool = False
) -> list[ShownImage]:
    """The images on which two runs differ most, in that order.

    Args:
        store: where to read.
        pair: the runs.
        broken: what is wrong with files that are passed over is added here.
        details: cut out the part of each image where they differ most.
    """

    def readable() -> Iterator[ShownImage]:
        for number in range(len(pair.entries)):
            try:
                yield _where_two_differ(_read(store, pair, number), details)
            except UserError as error:
                broken.append(str(error))

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


def _scores(image: Mapping[str, Any], kind: Kind) -> dict[str, float]:
    return {
        name: e.image_iou if isinstance(e, BinaryImage) else getattr(e.batch_miou, kind)
        for name, e in image.items()
    }


def _spread(scores: Mapping[str, float]) -> float:
    return max(scores.values()) - min(scores.values())


def _read(store: RunStore, compared: ComparedRuns, number: int) -> ShownImage:
    """A whole image.

    Raises:
        UserError: a file is broken, or the runs disagree on the labels; names it.
    """
    image, runs = compared.entries[number], compared.runs
    pictures = {name: Pictures(store, run, compared.album) for name, run in runs.items()}
    masks = {name: of.mask(number, image[name], compared.kind) for name, of in pictures.items()}
    labels = [of.mask(number, image[name], "labels") for name, of in pictures.items()]
    name, first = next(iter(image.items()))
    if any(not np.array_equal(other, labels[0]) for other in labels[1:]):
        raise UserError(f"{first.name}: {_names(runs)} disagree on the labels")
    photograph = None
    if not on_features(compared.cohort):
        photograph = pictures[name].photograph(number, first)
    scores = _scores(image, compared.kind)
    window = (0, 0, first.height, first.width)
    return ShownImage(
        first.name, runs, photograph, labels[0], masks, scores, _spread(scores), window
    )


def _with_basis(store: RunStore, compared: ComparedRuns, number: int) -> ShownImage:
    """An image of one category, with the mask and the score of the network before training."""
    row = _read(store, compared, number)
    (loss, run), *_ = row.runs.items()
    entry = compared.entries[number][loss]
    mask = Pictures(store, run, MASK_ALBUM).mask(number, entry, "basis")
    scores = {BASIS: entry.basis_iou, **row.scores}
    return replace(row, masks={BASIS: mask, **row.masks}, scores=scores)


def _where_two_differ(row: ShownImage, details: bool) -> ShownImage:
    """An image, or a detail of it, with two masks of all classes, and how far these differ."""
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
        differs=differing.sum() / max(scored.sum(), 1),
        window=window,
    )


def _names(runs: Mapping[str, Run]) -> str:
    return " and ".join(run.name for run in runs.values())
