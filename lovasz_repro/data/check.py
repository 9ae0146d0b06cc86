"""What the check of a data folder finds, how it reads files so that no fault is missed, and notes.

A tree in an official layout may hold generated pictures or another data set's photographs. Its
note ``<root>/lovasz-repro.json`` says so, and how large it is meant to be; an official download
has none.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from lovasz_repro.data.images import SHOWN as SHOWN
from lovasz_repro.data.images import opened, read_photograph
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import unfinished
from lovasz_repro.host.processes import mapped

Size = tuple[int, int]
Content = TypeVar("Content")
Begin = Callable[[int], Callable[[int], None]]
"""Told how many images will be read, gives what is called with 1 after each."""


def unseen(images: int) -> Callable[[int], None]:
    """Shows no progress."""
    return lambda done: None


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    split: str
    file: str
    """File or folder, relative to the root."""
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class SplitCount:
    """What was found of one split."""

    split: str
    images: int
    problems: int


@dataclass(frozen=True)
class SplitReport(SplitCount):
    """The same of a split that is known to have so many."""

    expected: int


@dataclass(frozen=True)
class CheckReport:
    """What was found of a tree, and everything that is wrong with it."""

    root: str
    content: str
    """"official", "merged", or what the tree's note says: "demo" or the data set it was made of."""
    size: Size | None
    """Height and width that every image must have, pixels; None where they vary."""
    splits: tuple[SplitCount, ...]
    problems: tuple[Fault, ...]
    """By split: the split as a whole, folders, then files by name."""
    advice: str = ""
    """What the user can do about it, where that does not go without saying."""

    @property
    def ok(self) -> bool:
        """Whether the tree is whole."""
        return not self.problems


@dataclass(frozen=True)
class FilesOfImage:
    """The files of one image that are there, for the process that checks them."""

    root: Path
    split: str
    image: Path | None
    masks: tuple[tuple[Path, Callable[[Path], np.ndarray]], ...]
    """Each with what reads it."""
    size: Size | None = None
    """What every photograph must have; None: sizes differ."""
    contradictions: Callable[..., Iterable[str]] | None = None
    """What is wrong with the last mask, given all of them."""

    def read(
        self, file: Path, read: Callable[[Path], Content]
    ) -> tuple[Content | None, list[Fault]]:
        """What ``read`` makes of a file whose checksums hold, or what is wrong with the file."""
        try:
            pixels = read(file)
            if file.suffix == ".png":
                verify_png(file)
        except UserError as error:
            return None, self.faults(file, [str(error).removeprefix(f"{file}: ").rstrip(".")])
        return pixels, []

    def faults(self, file: Path, faults: Iterable[str]) -> list[Fault]:
        """The faults of a file as problems."""
        where = file.relative_to(self.root).as_posix()
        return [Fault(self.split, where, fault) for fault in faults]


def check_image(files: FilesOfImage) -> list[Fault]:
    """What is wrong with a photograph and its masks; what is missing is listed elsewhere."""
    size, problems = files.size, list[Fault]()
    if files.image:
        photograph, problems = files.read(files.image, read_photograph)
        if photograph is not None:
            size = photograph.shape[:2]
            if files.size and size != files.size:
                what = f"{by(size)}; all must be {by(files.size)}"
                problems += files.faults(files.image, [what])
    masks = []
    for file, read in files.masks:
        mask, unreadable = files.read(file, read)
        problems += unreadable
        if mask is not None and size and mask.shape != size:
            problems += files.faults(file, [f"{by(mask.shape)}; its photograph is {by(size)}"])
        elif mask is not None:
            masks.append(mask)
    if files.contradictions and len(masks) == len(files.masks) > 1:
        problems += files.faults(files.masks[-1][0], files.contradictions(*masks))
    return problems


def check_each(every: Sequence[FilesOfImage], begin: Begin, processes: int) -> list[Fault]:
    """What is wrong with the files of every image, in the order of the images.

    Raises:
        RunFailed: a process died.
    """
    advance, found = begin(len(every)), []
    with mapped(min(processes, len(every)), "read images") as map_:
        for problems in map_(check_image, every):
            found += problems
            advance(1)
    return found


def verify_png(file: Path) -> None:
    """Compare the checksums of a PNG, which decoding alone does not.

    Raises:
        UserError: they differ.
    """
    with opened(file) as image:
        image.verify()


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def by(size: tuple[int, ...]) -> str:
    """Height and width as people write them: "256x512"."""
    return f"{size[0]}x{size[1]}"


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
