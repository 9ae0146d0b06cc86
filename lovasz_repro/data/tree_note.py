"""What a data folder says about itself when this tool made it: ``<root>/lovasz-repro.json``.

A tree in an official layout may hold generated pictures or another data set's photographs. Its
note says so, and how large it is meant to be; an official download has none.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from lovasz_repro.errors import UserError

NAME = "lovasz-repro.json"


@dataclass(frozen=True)
class TreeNote:
    """Where a data folder comes from."""

    content: str
    """"demo" for generated pictures, else the data set whose photographs these are."""
    made_by: str
    """The command that makes it again."""
    size: tuple[int, int]
    """Height and width of every image, pixels."""
    images: Mapping[str, int]
    """Split -> number of images."""


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a note of this tool ({error}).") from None
