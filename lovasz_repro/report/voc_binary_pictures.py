"""The masks that a binary VOC run stores for Figure 4, read with care.

A run may come from another machine, so nothing in its files is trusted: the list is checked entry
by entry, a picture is decoded only where its header says the size that the list says, and a mask
may hold the values of a mask alone.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Run, RunStore
from lovasz_repro.settings import Strict, validate

FOLDER = "masks"
MOST = 32
"""Images that are read of a run."""
MOST_BYTES = 1_000_000
"""Size of the list."""
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
    path = _artifact(store, run, "masks.json")
    if path is None:
        return []
    where = _where(run, "masks.json")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{where}: larger than {MOST_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{where}: not readable as JSON") from None
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
    prediction, basis = (
        _mask(store, run, f"{number}-{kind}.png", entry, {0, 1}) for kind in ("prediction", "basis")
    )
    labels = _mask(store, run, f"{number}-labels.png", entry, {0, 1, VOID})
    return Masks(prediction, basis, labels)


def read_photograph(store: RunStore, run: Run, number: int, entry: Entry) -> np.ndarray:
    """The photograph of an entry, (H, W, 3) uint8 RGB.

    Raises:
        UserError: it is missing, of another size, or no RGB picture; names it.
    """
    return _picture(store, run, f"{number}-photo.png", "RGB", entry)


def _mask(store: RunStore, run: Run, name: str, entry: Entry, allowed: set[int]) -> np.ndarray:
    mask = _picture(store, run, name, "L", entry)
    other = set(np.unique(mask).tolist()) - allowed
    if other:
        raise UserError(f"{_where(run, name)}: holds {min(other)}, which is no value of a mask")
    return mask


def _picture(store: RunStore, run: Run, name: str, mode: str, entry: Entry) -> np.ndarray:
    from PIL import Image

    path = _artifact(store, run, name)
    if path is None:
        raise UserError(f"{_where(run, name)}: listed, but not stored")
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if (image.mode, image.size) != (mode, (entry.width, entry.height)):
                raise UserError(
                    f"{_where(run, name)}: {image.mode} of {image.width}×{image.height}, "
                    f"not {mode} of {entry.width}×{entry.height}"
                )
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{_where(run, name)}: not a readable PNG") from None


def _artifact(store: RunStore, run: Run, name: str) -> Path | None:
    try:
        path = store.artifact(run.run_id, f"{FOLDER}/{name}")
    except UserError:
        return None
    return path if path.is_file() else None


def _where(run: Run, name: str) -> str:
    return f"{run.name}, {FOLDER}/{name}"
