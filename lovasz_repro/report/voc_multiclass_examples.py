"""Which masks Figures 5 and 7 show: two runs, and the images on which their masks differ most."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Cohort, Run, RunStore, natural, seed
from lovasz_repro.report.voc_binary_runs import is_papers, on_features
from lovasz_repro.report.voc_multiclass_pictures import (
    VOID,
    Entry,
    Kind,
    read_labels,
    read_listing,
    read_mask,
    read_photograph,
)
from lovasz_repro.report.voc_multiclass_runs import named_sets, ten_first

ROWS = 4
"""Most images that are shown."""
DETAIL = 0.6
"""Height and width of a detail, of those of its image: 36% of the image."""

Window = tuple[int, int, int, int]
"""Top, left, height and width, pixels."""


@dataclass(frozen=True)
class Pair:
    """Two runs that may be compared: of one set and seed, on the same images."""

    cohort: Cohort
    heading: str
    runs: tuple[Run, Run]
    kind: Kind
    """Which of their masks are compared."""
    entries: tuple[tuple[Entry, Entry], ...]
    """Each image as either run lists it."""


@dataclass(frozen=True)
class Example:
    """A row of a figure."""

    name: str
    """The image."""
    photograph: np.ndarray | None
    """(h, w, 3) uint8; None on features."""
    labels: np.ndarray
    """(h, w) uint8: class ids, 255 = void."""
    masks: tuple[np.ndarray, np.ndarray]
    """Class ids that the two runs found, (h, w) uint8."""
    scores: tuple[float, float]
    """IoU of the two masks averaged over the classes in the labels, on the whole image."""
    differs: float
    """Share of the scored pixels of the whole image on which the two masks differ."""
    window: Window
    """The part of the image that is shown, of h x w pixels."""


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
    pairs = [
        pair
        for cohort, heading in ten_first(named_sets(store))
        for names in variants
        if (runs := _of_one_seed(cohort, *names))
        if (pair := _pair(store, cohort, heading, runs, kinds, broken))
    ]

    def preference(pair: Pair) -> int:
        return kinds.index(pair.kind) if is_papers(pair.cohort) else len(kinds)

    return sorted(pairs, key=preference)


def choose_examples(
    store: RunStore, pair: Pair, broken: list[str], *, details: bool = False
) -> list[Example]:
    """The images on which two runs differ most, in that order.

    Args:
        store: where to read.
        pair: the runs.
        broken: what is wrong with files that are passed over is added here.
        details: cut out the part of each image where they differ most.
    """
    examples = sorted(_examples(store, pair, broken, details), key=lambda e: -e.differs)
    return examples[:ROWS]


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


def _of_one_seed(cohort: Cohort, first: str, second: str) -> tuple[Run, Run] | None:
    """Runs of two variants, of the first seed that both have."""
    one, other = ({seed(run): run for run in cohort.select(name)} for name in (first, second))
    common = set(one) & set(other)
    if not common:
        return None
    number = min(common, key=natural)
    return one[number], other[number]


def _pair(
    store: RunStore,
    cohort: Cohort,
    heading: str,
    runs: tuple[Run, Run],
    kinds: Sequence[Kind],
    broken: list[str],
) -> Pair | None:
    """Two runs with the masks that both stored; None where one stored none."""
    try:
        listings = [read_listing(store, run) for run in runs]
    except UserError as error:
        broken.append(str(error))
        return None
    if not all(listings):
        return None
    one, other = ([(e.name, e.height, e.width) for e in listing] for listing in listings)
    if one != other:
        broken.append(f"{runs[0].name} and {runs[1].name} store masks of different images")
        return None
    entries = tuple(zip(*listings, strict=True))
    scores = [entry.batch_miou for listing in listings for entry in listing]
    refined = all(score.crf is not None for score in scores)
    kind = next(kind for kind in kinds if kind == "prediction" or refined)
    return Pair(cohort, heading, runs, kind, entries)


def _examples(store: RunStore, pair: Pair, broken: list[str], details: bool) -> Iterator[Example]:
    """Every image of a pair that can be read."""
    for number in range(len(pair.entries)):
        try:
            yield _read(store, pair, number, details)
        except UserError as error:
            broken.append(str(error))


def _read(store: RunStore, pair: Pair, number: int, details: bool) -> Example:
    """Everything that a row shows.

    Raises:
        UserError: a file is broken, or the runs disagree on the labels; names it.
    """
    runs, entries, kind = pair.runs, pair.entries[number], pair.kind
    first, second = zip(runs, entries, strict=True)
    labels = read_labels(store, first[0], number, first[1])
    if not np.array_equal(labels, read_labels(store, second[0], number, second[1])):
        raise UserError(f"{entries[0].name}: {runs[0].name} and {runs[1].name} disagree on the "
                        "labels")  # fmt: skip
    masks = [read_mask(store, run, number, entry, kind) for run, entry in (first, second)]
    photograph = None
    if not on_features(pair.cohort):
        photograph = read_photograph(store, first[0], number, first[1])
    scored = labels != VOID
    differing = (masks[0] != masks[1]) & scored
    window = detail_window(differing) if details else (0, 0, *labels.shape)
    top, left, height, width = window
    part = slice(top, top + height), slice(left, left + width)
    return Example(
        entries[0].name,
        None if photograph is None else photograph[part],
        labels[part],
        (masks[0][part], masks[1][part]),
        (entries[0].batch_miou.of(kind), entries[1].batch_miou.of(kind)),
        differing.sum() / max(scored.sum(), 1),
        window,
    )
