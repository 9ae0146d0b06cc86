"""Names that strangers chose, and how they become paths: nowhere else are the two joined.

Experiments, variants, profiles and runs name folders, and come from YAML files, from exports and
from stores that other people filled.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from lovasz_repro.errors import UserError

LONGEST_NAME = 100
LONGEST_PART = 200  # bytes; file systems take 255, and a suffix is often added
LONGEST_PATH = 1000


def check_name(text: str) -> str:
    """The text, if it is a name; else raises ValueError."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}", text):
        raise ValueError(f"use at most {LONGEST_NAME} letters, digits and . _ -")
    return text


def check_relative(text: str) -> str:
    """The text, if it is a path inside a folder; else raises ValueError."""
    parts = text.split("/")
    if (
        {"", ".", ".."} & set(parts)
        or not text.isprintable()
        or re.search(r"[\\:]", text)
        or max(len(part.encode()) for part in parts) > LONGEST_PART
        or len(text) > LONGEST_PATH
    ):
        raise ValueError("give a relative path, of at most 200 characters a part, without ..")
    return text


def check_class(text: str) -> str:
    """The text, if it can name a class; else raises ValueError."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9 _.-]{0,59}", text):
        raise ValueError("use at most 60 letters, digits, spaces and . _ -")
    return text


ClassName = Annotated[str, AfterValidator(check_class)]
"""Text that may name a class, and stand in the names of metrics."""

Name = Annotated[str, AfterValidator(check_name)]
"""Text that may name a run, its experiment, variant or profile, and a folder."""

Relative = Annotated[str, AfterValidator(check_relative)]
"""Text that is the path of something inside a folder."""


def below(folder: Path, relative: str) -> Path:
    """The path ``relative`` inside ``folder``, whoever chose it.

    Raises:
        UserError: it would leave the folder, or cannot be a path on every machine.
    """
    try:
        return folder / check_relative(relative)
    except ValueError as error:
        raise UserError(f"{relative[:60]!r} is no path inside {folder}: {error}") from None


def as_name(text: str) -> str:
    """Text as the name of a file or folder: what may not stand in one becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip(".-")[:LONGEST_NAME] or "unnamed"
