"""Data folders that this tool makes, and what they say of themselves: ``<root>/lovasz-repro.json``.

A tree in an official layout may hold generated pictures or another data set's photographs. Its
note says so, and how large it is meant to be; an official download has none.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import unfinished

NAME = "lovasz-repro.json"


@dataclass(frozen=True)
class TreeNote:
    """Where a data folder comes from."""

    content: str
    """"demo" for generated pictures, else the data set whose photographs these are."""
    made_by: str
    """The command that makes it again."""
    size: tuple[int, int]
    """Height and width of every image, pixels; the most of both where they vary."""
    images: Mapping[str, int]
    """Split -> number of images."""


def new_tree(root: Path, note: TreeNote, write: Callable[[Path], None]) -> bool:
    """Have a tree written beside its place and then renamed, so that it is whole or not there.

    Args:
        root: folder to make.
        note: goes into it.
        write: fills the folder that it is given.

    Returns:
        False where a tree with this note is there already, which is left alone.

    Raises:
        UserError: something else is at ``root``, or it cannot be written.
    """
    if root.exists():
        found = read_note(root) if root.is_dir() else None
        if found == note:
            return False
        what = f"what `{found.made_by}` wrote" if found else "something else"
        raise UserError(f"{root}: there is {what}. Remove it, or choose another --out.")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with unfinished(root) as place:
            place.mkdir()
            write(place)
            write_note(place, note)
            os.replace(place, root)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror or error}).") from error
    return True


def write_note(root: Path, note: TreeNote) -> None:
    """Write the note of a data folder."""
    (root / NAME).write_text(json.dumps(asdict(note), indent=2) + "\n", encoding="utf-8")


def read_note(root: Path) -> TreeNote | None:
    """The note of a data folder, or None where there is none.

    Raises:
        UserError: the file is there and holds something else.
    """
    path = root / NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        height, width = content["size"]
        images = {str(split): int(count) for split, count in content["images"].items()}
        return TreeNote(
            str(content["content"]), str(content["made_by"]), (int(height), int(width)), images
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a note of this tool ({error}).") from None
