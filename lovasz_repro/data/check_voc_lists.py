"""What the lists of a Pascal VOC name, and everything that is wrong with the lists themselves.

``voc.list_images`` stops at the first fault; here reading goes on.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lovasz_repro.data.check import SHOWN, Problem
from lovasz_repro.data.voc import (
    LISTS,
    MASKS,
    MERGED_FROM,
    MERGED_MASKS,
    SBD,
    SBD_FROM,
    VOC_FROM,
    voc_folder,
)

MERGED = {"train_aug": "train_aug", "val": "val"}
OF_VOC = {"train": "train_aug", "val": "val"}
OF_SBD = {"train": "train_aug", "val": "train_aug"}
"""Lists of a folder, each with the split that it belongs to. An image is in one list of a folder;
VOC and SBD have images in common."""
LONGEST = 1 << 20
"""Most bytes that a list may have; 12,031 names take 144,372."""


@dataclass
class Lists:
    """What the lists of a tree name."""

    root: Path
    masks: dict[str, Mapping[str, Path | None]] = field(default_factory=dict)
    """Split -> image name -> mask that counts, None for a test image; sorted by name."""
    unlisted: list[Path] = field(default_factory=list)
    """Masks in no list."""
    problems: list[Problem] = field(default_factory=list)

    def found(self, split: str, file: Path, what: str) -> None:
        """Note a problem of a file or folder."""
        self.problems.append(Problem(split, file.relative_to(self.root).as_posix(), what))

    def read(self, folder: Path, lists: dict[str, str], source: str) -> dict[str, list[str]]:
        """List -> names in it that are well-formed and in no list of the folder before."""
        seen: dict[str, str] = {}
        for stem, split in lists.items():
            file = folder / f"{stem}.txt"
            names = self.lines(file, split, source)
            wrong = [name for name in names if not re.fullmatch(r"\d{4}_\d{6}", name)]
            if wrong:
                shown = some([repr(name[:40]) for name in wrong])
                self.found(split, file, f"no image name like 2007_000032: {shown}")
            twice: dict[str, list[str]] = {}
            for name in names:
                if name in seen:
                    twice.setdefault(seen[name], []).append(name)
                elif name not in wrong:
                    seen[name] = stem
            for first, repeated in twice.items():
                where = "listed twice" if first == stem else f"also in {first}.txt"
                self.found(split, file, f"{where}: {some(repeated)}")
        return {stem: [name for name in seen if seen[name] == stem] for stem in lists}

    def lines(self, file: Path, split: str, source: str) -> list[str]:
        """The lines of a list; none where it cannot be read."""
        try:
            if file.stat().st_size <= LONGEST:
                return file.read_text(encoding="ascii").split()
            self.found(split, file, f"a list of {file.stat().st_size:,} bytes")
        except FileNotFoundError:
            self.found(split, file, f"no such list. {source}")
        except (OSError, UnicodeDecodeError) as error:
            self.found(split, file, f"unreadable list ({error})")
        return []


def read_lists(root: Path, *, test: bool) -> Lists:
    """Every list of a tree in either layout (``data/voc.py``).

    Args:
        root: the folder that holds ``VOCdevkit`` and ``benchmark_RELEASE``, or ``VOC2012``.
        test: with the test set, which has no masks.

    Raises:
        UserError: there is no such tree.
    """
    voc, lists = voc_folder(root), Lists(root)
    merged = (voc / MERGED_MASKS).is_dir()
    folder, source, of_voc = (
        (voc / MERGED_MASKS, MERGED_FROM, MERGED) if merged else (voc / MASKS, VOC_FROM, OF_VOC)
    )
    names = lists.read(voc / LISTS, of_voc | ({"test": "test"} if test else {}), source)
    train, val = (masks_of(names[stem], folder, "png") for stem in of_voc)
    sbd = {} if merged else read_sbd_lists(lists)
    lists.unlisted += unlisted(folder, "png", [*train, *val])
    train_aug = {name: mask for name, mask in (sbd | train).items() if name not in val}
    for split, masks in (("train_aug", train_aug), ("val", val)):
        lists.masks[split] = {name: masks[name] for name in sorted(masks)}
    if test:
        lists.masks["test"] = dict.fromkeys(sorted(names["test"]))
    return lists


def read_sbd_lists(lists: Lists) -> dict[str, Path]:
    """Name -> mask of everything in SBD."""
    folder = lists.root / SBD
    names = lists.read(folder, OF_SBD, SBD_FROM)
    masks = masks_of([name for stem in OF_SBD for name in names[stem]], folder / "cls", "mat")
    lists.unlisted += unlisted(folder / "cls", "mat", masks)
    return masks


def masks_of(names: Iterable[str], folder: Path, ending: str) -> dict[str, Path]:
    """Name -> mask."""
    return {name: folder / f"{name}.{ending}" for name in names}


def unlisted(folder: Path, ending: str, names: Iterable[str]) -> list[Path]:
    """Masks in a folder that have none of the names, sorted."""
    listed = set(names)
    return sorted(mask for mask in folder.glob(f"[!.]*.{ending}") if mask.stem not in listed)


def some(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
