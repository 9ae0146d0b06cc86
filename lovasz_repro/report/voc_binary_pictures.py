"""The masks that a binary VOC run stores for Figure 4, read with care.

On top of the care of ``stored_pictures.py``, the list is checked entry by entry, and a mask may
hold the values of a mask alone.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from lovasz_repro.config.read import Strict, validate
from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Run, RunStore
from lovasz_repro.report.stored_pictures import StoredPictures

FOLDER = "masks"
MOST = 32
"""Images that are read of a run."""
VOID = 255

Length = Annotated[int, Field(gt=0, le=4096)]
Share = Annotated[float, Field(ge=0, le=1)]


class Entry(Strict):
    """One validation image, as listed in ``masks.json``."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,40}$")]
    """The image, "2007_000033"."""
    height: Length
    width: Length
    image_iou: Share
    """Of the trained network's mask."""
    basis_iou: Share
    """Of the mask of the network before training, the basis network."""


class Listing(Strict):
    """All images of a run, in the same order for every loss."""

    masks: list[Entry]


@dataclass(frozen=True)
class Masks:
    """What is foreground on one image; all (H, W) uint8."""

    prediction: np.ndarray
    """0 or 1; ``basis`` likewise."""
    basis: np.ndarray
    labels: np.ndarray
    """0, 1, or 255 = void."""


def read_listing(store: RunStore, run: Run) -> list[Entry]:
    """The images whose masks a run stored; none where it stored no masks.

    Raises:
        UserError: the list is not what it should be; names it.
    """
    pictures = StoredPictures(store, run, FOLDER)
    if not pictures.has("masks.json"):
        return []
    where, content = pictures.where("masks.json"), pictures.listing("masks.json")
    if not isinstance(content, dict):
        raise UserError(f"{where}: not a list of masks under the key masks")
    try:
        return validate(Listing, content, where).masks[:MOST]
    except UserError as error:
        raise UserError(str(error).removesuffix(".")) from None


def read_masks(store: RunStore, run: Run, number: int, entry: Entry) -> Masks:
    """The masks of an entry, ``number`` its place in the list.

    Raises:
        UserError: a file is missing, of another size, or no mask; names it.
    """
    pictures = StoredPictures(store, run, FOLDER)
    prediction, basis = (
        _mask(pictures, f"{number}-{kind}.png", entry, {0, 1}) for kind in ("prediction", "basis")
    )
    labels = _mask(pictures, f"{number}-labels.png", entry, {0, 1, VOID})
    return Masks(prediction, basis, labels)


def read_photograph(store: RunStore, run: Run, number: int, entry: Entry) -> np.ndarray:
    """The photograph of an entry, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it is missing, of another size, or no RGB picture; names it.
    """
    pictures = StoredPictures(store, run, FOLDER)
    return pictures.picture(f"{number}-photo.png", "RGB", entry.height, entry.width)


def _mask(pictures: StoredPictures, name: str, entry: Entry, allowed: set[int]) -> np.ndarray:
    mask = pictures.picture(name, "L", entry.height, entry.width)
    other = set(np.unique(mask).tolist()) - allowed
    if other:
        raise UserError(f"{pictures.where(name)}: holds {min(other)}, which is no value of a mask")
    return mask
