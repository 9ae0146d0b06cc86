"""Pictures that runs stored for Figures 4, 5, 7 and 8, and the lists of them, read with care.

A run may come from another machine, so nothing in its files is trusted: a list has a largest size
and is checked entry by entry, a picture is decoded only where its header says the mode and the
size that are expected, and a mask may hold the values of a mask alone.
"""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import numpy as np
from pydantic import Field, create_model

from lovasz_repro.config.read import Strict, validate
from lovasz_repro.data.classes import VOC
from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Run, RunStore

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
