"""The crops that a run of Sec. 4.4 stores for Figure 8, read with care.

A run may come from another machine, so nothing in its files is trusted: the list is checked entry
by entry, and a picture is decoded only where its header says the size that the list says.
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

FOLDER = "examples"
MOST = 6
"""Examples that are read; a run stores no more."""
MOST_BYTES = 1_000_000
"""Size of the list."""

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
    listing = _artifact(store, run, "examples.json")
    if listing is None:
        return []
    return [_example(store, run, number, e) for number, e in enumerate(_entries(run, listing))]


def _artifact(store: RunStore, run: Run, name: str) -> Path | None:
    try:
        path = store.artifact(run.run_id, f"{FOLDER}/{name}")
    except UserError:
        return None
    return path if path.is_file() else None


def _entries(run: Run, path: Path) -> list[Entry]:
    where = _where(run, "examples.json")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{where}: larger than {MOST_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{where}: not readable as JSON") from None
    listed = content[:MOST] if isinstance(content, list) else content
    try:
        return validate(Listing, {"examples": listed}, where).examples
    except UserError as error:
        raise UserError(str(error).removesuffix(".")) from None


def _example(store: RunStore, run: Run, number: int, entry: Entry) -> Example:
    masks = [_picture(store, run, f"{number}-{kind}.png", "L", entry)
             for kind in ("labels", "before", "after")]  # fmt: skip
    photo = _picture(store, run, f"{number}-photo.png", "RGB", entry)
    return Example(entry, photo, *masks)


def _picture(store: RunStore, run: Run, name: str, mode: str, entry: Entry) -> np.ndarray:
    from PIL import Image

    path = _artifact(store, run, name)
    if path is None:
        raise UserError(f"{_where(run, name)}: listed, but not stored")
    height, width = entry.window[2:]
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if (image.mode, image.size) != (mode, (width, height)):
                raise UserError(
                    f"{_where(run, name)}: {image.mode} of {image.width}×{image.height}, "
                    f"not {mode} of {width}×{height}"
                )
            return np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError(f"{_where(run, name)}: not a readable PNG") from None


def _where(run: Run, name: str) -> str:
    return f"{run.name}, {FOLDER}/{name}"
