"""The crops that a run of Sec. 4.4 stores for Figure 8, read with care.

On top of the care of ``stored_pictures.py``, the list is checked entry by entry.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from lovasz_repro.config.read import Strict, validate
from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Run, RunStore
from lovasz_repro.report.stored_pictures import StoredPictures

FOLDER = "examples"
MOST = 6
"""Examples that are read; a run stores no more."""

Position = Annotated[int, Field(ge=0)]
Length = Annotated[int, Field(gt=0, le=4096)]


class Entry(Strict):
    """One example, as listed in ``examples.json``."""

    name: str
    """Frame that it was cut from."""
    window: tuple[Position, Position, Length, Length]
    """Top, left, height, width in pixels of the label."""
    differs: Annotated[float, Field(ge=0, le=1)]
    """Share of the window's annotated pixels on which the two networks disagree."""


class Listing(Strict):
    """All examples of a run, the most different first."""

    examples: list[Entry]


@dataclass(frozen=True)
class Example:
    """A crop as the camera, the labels and the two networks see it."""

    entry: Entry
    photo: np.ndarray
    """(H, W, 3) uint8."""
    labels: np.ndarray
    """Official label ids, (H, W) uint8; ``before`` and ``after`` likewise."""
    before: np.ndarray
    after: np.ndarray


def read_examples(store: RunStore, run: Run) -> list[Example]:
    """The examples of a run, most different first; none where it stored no pictures.

    Raises:
        UserError: pictures are listed but missing, or a file is not what it should be; names it.
    """
    pictures = StoredPictures(store, run, FOLDER)
    if not pictures.has("examples.json"):
        return []
    return [_example(pictures, number, entry) for number, entry in enumerate(_entries(pictures))]


def _entries(pictures: StoredPictures) -> list[Entry]:
    where, content = pictures.where("examples.json"), pictures.listing("examples.json")
    listed = content[:MOST] if isinstance(content, list) else content
    try:
        return validate(Listing, {"examples": listed}, where).examples
    except UserError as error:
        raise UserError(str(error).removesuffix(".")) from None


def _example(pictures: StoredPictures, number: int, entry: Entry) -> Example:
    height, width = entry.window[2:]
    masks = [pictures.picture(f"{number}-{kind}.png", "L", height, width)
             for kind in ("labels", "before", "after")]  # fmt: skip
    photo = pictures.picture(f"{number}-photo.png", "RGB", height, width)
    return Example(entry, photo, *masks)
