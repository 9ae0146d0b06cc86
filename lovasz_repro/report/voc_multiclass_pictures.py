"""The masks that a run on all classes of VOC stores for Figures 5 and 7, read with care.

On top of the care of ``stored_pictures.py``, the list is checked entry by entry, and a mask may
hold the ids of classes alone.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from lovasz_repro.config.read import Strict, validate
from lovasz_repro.data.palettes import VOC
from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Run, RunStore
from lovasz_repro.report.stored_pictures import StoredPictures

FOLDER, LISTING = "segmentations", "segmentations.json"
MOST = 32
"""Images that are read of a run."""
VOID = 255

Length = Annotated[int, Field(gt=0, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["prediction", "crf"]
"""Masks of the network at one scale, and those after several scales and the CRF."""


class Scores(Strict):
    """IoU of each mask of an image, averaged over the classes in its labels."""

    prediction: Share
    crf: Share | None = None
    """None where the run has no CRF."""

    def of(self, kind: Kind) -> float:
        """That of one mask.

        Raises:
            KeyError: there is no such mask.
        """
        score = self.prediction if kind == "prediction" else self.crf
        if score is None:
            raise KeyError(kind)
        return score


class Entry(Strict):
    """One validation image, as listed in ``segmentations.json``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
    """The image, "2007_000033"."""
    height: Length
    width: Length
    batch_miou: Scores


class Listing(Strict):
    """All images of a run, the same in every run on the same data."""

    segmentations: list[Entry]


def read_listing(store: RunStore, run: Run) -> list[Entry]:
    """The images whose masks a run stored; none where it stored no masks.

    Raises:
        UserError: the list is not what it should be; names it.
    """
    pictures = StoredPictures(store, run, FOLDER)
    if not pictures.has(LISTING):
        return []
    where, content = pictures.where(LISTING), pictures.listing(LISTING)
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a list of masks under the key segmentations")
    try:
        return validate(Listing, content, where).segmentations[:MOST]
    except UserError as error:
        raise UserError(str(error).removesuffix(".")) from None


def read_mask(store: RunStore, run: Run, number: int, entry: Entry, kind: Kind) -> np.ndarray:
    """Class ids that a run found in an entry, (H, W) uint8; ``number``: its place in the list.

    Raises:
        UserError: the file is missing, of another size, or no mask; names it.
    """
    return _ids(store, run, f"{number}-{kind}.png", entry, void=False)


def read_labels(store: RunStore, run: Run, number: int, entry: Entry) -> np.ndarray:
    """The ground truth of an entry, (H, W) uint8: class ids, 255 = void.

    Raises:
        UserError: the file is missing, of another size, or no mask; names it.
    """
    return _ids(store, run, f"{number}-labels.png", entry, void=True)


def read_photograph(store: RunStore, run: Run, number: int, entry: Entry) -> np.ndarray:
    """The photograph of an entry, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it is missing, of another size, or no RGB picture; names it.
    """
    pictures = StoredPictures(store, run, FOLDER)
    return pictures.picture(f"{number}-photo.png", "RGB", entry.height, entry.width)


def _ids(store: RunStore, run: Run, name: str, entry: Entry, *, void: bool) -> np.ndarray:
    pictures = StoredPictures(store, run, FOLDER)
    mask = pictures.picture(name, "L", entry.height, entry.width)
    other = mask[(mask >= len(VOC)) & ~(void & (mask == VOID))]
    if other.size:
        raise UserError(f"{pictures.where(name)}: holds {other.min()}, which is no class of VOC")
    return mask
