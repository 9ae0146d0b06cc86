"""What the check of a data set finds, and how it reads a file so that no fault of it is missed."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lovasz_repro.data.images import opened
from lovasz_repro.errors import UserError

SHOWN = 5
"""Ids, names or files that are named one by one; of more, the first and how many there are."""
Size = tuple[int, int]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    split: str
    file: str
    """File or folder, relative to the root."""
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


@dataclass(frozen=True)
class SplitReport:
    """What was found of one split."""

    split: str
    images: int
    expected: int
    problems: int


@dataclass(frozen=True)
class CheckReport:
    """What was found of a tree, and everything that is wrong with it."""

    root: str
    content: str
    """"official", "merged", or what the tree's note says: "demo" or the data set it was made of."""
    size: Size | None
    """Height and width that every image must have, pixels; None where they vary."""
    splits: tuple[SplitReport, ...]
    problems: tuple[Problem, ...]
    """By split: the split as a whole, folders, then files by name."""
    advice: str = ""
    """What the user can do about it, where that does not go without saying."""

    @property
    def ok(self) -> bool:
        """Whether the tree is whole."""
        return not self.problems


@dataclass(frozen=True)
class Job:
    """The files of one image, for the process that checks them."""

    root: Path
    split: str

    def read(
        self, file: Path, read: Callable[[Path], np.ndarray]
    ) -> tuple[np.ndarray | None, list[Problem]]:
        """What ``read`` makes of a file whose checksums hold, or what is wrong with the file."""
        try:
            pixels = read(file)
            if file.suffix == ".png":
                verify_png(file)
        except UserError as error:
            return None, self.faults(file, [str(error).removeprefix(f"{file}: ").rstrip(".")])
        return pixels, []

    def faults(self, file: Path, faults: Iterable[str]) -> list[Problem]:
        """The faults of a file as problems."""
        where = file.relative_to(self.root).as_posix()
        return [Problem(self.split, where, fault) for fault in faults]


def verify_png(file: Path) -> None:
    """Compare the checksums of a PNG, which decoding alone does not.

    Raises:
        UserError: they differ.
    """
    with opened(file) as image:
        image.verify()


def by(size: tuple[int, ...]) -> str:
    """Height and width as people write them: "256x512"."""
    return f"{size[0]}x{size[1]}"
