"""Which stored masks Figures 4, 5 and 7 show: images on which runs that are compared differ most.

Runs are compared that are of one set and seed and list the same images. A row of a figure is an
image as all of them see it.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, create_model

from lovasz_repro.config.read import Strict, validate
from lovasz_repro.config.schema import BASIS
from lovasz_repro.data.classes import VOC
from lovasz_repro.errors import UserError
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

# ---- Pictures ------------------------------------------------------------------------------------
#
# Pictures that runs stored for Figures 4, 5, 7 and 8, and the lists of them, read with care.
#
# A run may come from another machine, so nothing in its files is trusted: a list has a largest size
# and is checked entry by entry, a picture is decoded only where its header says the mode and the
# size that are expected, and a mask may hold the values of a mask alone.

MOST_PICTURE_BYTES = 1_000_000
"""Size of a list."""
PICTURE_VOID = 255

Length = Annotated[int, Field(gt=0, le=4096)]
Position = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["prediction", "crf"]
"""Masks of the network at one scale, and those after several scales and the CRF."""


class ListedImage(Strict):
    """A validation image, as a list has it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
    """The image, "2007_000033"."""
    height: Length
    width: Length


class BinaryImage(ListedImage):
    """One of the images with masks of one category."""

    image_iou: Share
    """Of the trained network's mask."""
    basis_iou: Share
    """Of the mask of the network before training, the basis network."""


class MaskScores(Strict):
    """IoU of each kind of mask of an image, averaged over the classes in its labels."""

    prediction: Share
    crf: Share | None = None
    """None where the run has no CRF."""


class ClassesImage(ListedImage):
    """One of the images with masks of all classes."""

    batch_miou: MaskScores


class ListedWindow(Strict):
    """A part of a frame of Cityscapes."""

    name: str
    """Frame that it was cut from."""
    window: tuple[Position, Position, Length, Length]
    """Top, left, height, width in pixels of the label."""
    differs: Share
    """Share of the window's annotated pixels on which the two networks disagree."""

    @property
    def height(self) -> int:
        """Of the window, pixels; ``width`` likewise."""
        return self.window[2]

    @property
    def width(self) -> int:  # noqa: D102
        return self.window[3]


Entry = TypeVar("Entry", bound=ListedImage | ListedWindow)


@dataclass(frozen=True)
class Album(Generic[Entry]):
    """What the runs of an experiment store: a folder of pictures, and in it ``<folder>.json``, the
    list of them."""

    folder: str
    """Also the key that the list stands under."""
    entry: type[Entry]
    masks: Mapping[str, Set[int]]
    """Kind of mask -> what its pixels may be."""
    value: str
    """What such a value is called."""
    bare: bool = False
    """The file holds the list itself, under no key."""
    most: int = 32
    """Images that are read of a run."""


MASK_ALBUM = Album(
    "masks", BinaryImage,
    {"prediction": {0, 1}, "basis": {0, 1}, "labels": {0, 1, PICTURE_VOID}}, "value of a mask",
)  # fmt: skip
"""One category against the rest, Sec. 4.2."""
VOC_LABELS = frozenset(range(len(VOC)))
SEGMENTATIONS = Album(
    "segmentations", ClassesImage,
    {"prediction": VOC_LABELS, "crf": VOC_LABELS, "labels": VOC_LABELS | {PICTURE_VOID}},
    "class of VOC",
)  # fmt: skip
"""All classes of Pascal VOC, Sec. 4.3."""
LABEL_IDS = frozenset(range(256))
OWN_SEGMENTATIONS = Album(
    "segmentations", ClassesImage,
    {"prediction": LABEL_IDS - {PICTURE_VOID}, "labels": LABEL_IDS}, "class",
)  # fmt: skip
"""Those of data of the user's own, whose classes a report does not know."""
EXAMPLES = Album(
    "examples", ListedWindow,
    dict.fromkeys(("before", "labels", "after"), LABEL_IDS), "label id", bare=True, most=6,
)  # fmt: skip
"""Official label ids of Cityscapes, Sec. 4.4; the most different windows come first."""


@dataclass(frozen=True)
class Pictures(Generic[Entry]):
    """The pictures of one run."""

    store: RunStore
    run: Run
    album: Album[Entry]

    def listing(self) -> list[Entry] | None:
        """What there is, in the order of the numbers; None where the run stored no list.

        Raises:
            UserError: the list is not what it should be; names it.
        """
        key = self.album.folder
        path, where = self._path(f"{key}.json"), self._where(f"{key}.json")
        if path is None:
            return None
        try:
            if path.stat().st_size > MOST_PICTURE_BYTES:
                raise UserError(f"{where}: larger than {MOST_PICTURE_BYTES} bytes")
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{where}: not readable as JSON") from None
        content = {key: content} if self.album.bare else content
        if not isinstance(content, dict):
            raise UserError(f"{where}: not a list of masks under the key {key}")
        fields: dict[str, Any] = {key: (list[self.album.entry], ...)}  # type: ignore[name-defined]
        try:
            found = validate(create_model("Listing", __base__=Strict, **fields), content, where)
        except UserError as error:
            raise UserError(str(error).removesuffix(".")) from None
        listed: list[Entry] = getattr(found, key)
        return listed[: self.album.most]

    def mask(self, number: int, entry: Entry, kind: str) -> np.ndarray:
        """A mask of an entry, (H, W) uint8; ``number`` is the entry's place in the list.

        Raises:
            UserError: the file is missing, of another size, or no such mask; names it.
        """
        name = f"{number}-{kind}.png"
        mask = self._pixels(name, "L", entry)
        other = set(np.unique(mask).tolist()) - self.album.masks[kind]
        if other:
            raise UserError(
                f"{self._where(name)}: holds {min(other)}, which is no {self.album.value}"
            )
        return mask

    def photograph(self, number: int, entry: Entry) -> np.ndarray:
        """The photograph of an entry, (H, W, 3) uint8 RGB.

        Raises:
            UserError: it is missing, of another size, or no RGB picture; names it.
        """
        return self._pixels(f"{number}-photo.png", "RGB", entry)

    def _where(self, name: str) -> str:
        return f"{self.run.name}, {self.album.folder}/{name}"

    def _path(self, name: str) -> Path | None:
        try:
            path = self.store.artifact(self.run.run_id, f"{self.album.folder}/{name}")
        except UserError:
            return None
        return path if path.is_file() else None

    def _pixels(self, name: str, mode: str, entry: Entry) -> np.ndarray:
        from PIL import Image

        size, path = (entry.width, entry.height), self._path(name)
        if path is None:
            raise UserError(f"{self._where(name)}: listed, but not stored")
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if (image.mode, image.size) != (mode, size):
                    raise UserError(
                        f"{self._where(name)}: {image.mode} of {image.width}×{image.height}, "
                        f"not {mode} of {entry.width}×{entry.height}"
                    )
                return np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise UserError(f"{self._where(name)}: not a readable PNG") from None


# ---- Examples that runs kept ---------------------------------------------------------------------

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
