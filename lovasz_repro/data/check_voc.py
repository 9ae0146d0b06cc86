"""Is a Pascal VOC with SBD whole, in either layout? Finds everything that is wrong, file by file.

Every photograph and every mask that counts is decoded, over several processes. Masks of SBD that
count for nothing (VOC has its own, or validates on the image) are not read. A JPEG has no
checksum: bits that flipped and still decode go unnoticed. ``voc.list_images`` stops at the first
fault of a list; here reading goes on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lovasz_repro.data.check import (
    SHOWN,
    Begin,
    CheckReport,
    Fault,
    FilesOfImage,
    SplitReport,
    TreeNote,
    check_each,
    read_note,
    some,
    unseen,
)
from lovasz_repro.data.voc import (
    CLASS_MASKS,
    JPEGS,
    MERGED_FROM,
    MERGED_MASKS,
    SBD,
    SBD_FROM,
    VOC_FROM,
    VOC_LISTS,
    VOC_SIZES,
    check_train_aug,
    read_labels,
    voc_folder,
)
from lovasz_repro.errors import UserError

ADVICE = (
    "{:,} photographs are missing. Noisy evidence (data.images=features) does without them: "
    "check the masks alone with --masks-only."
)
MERGED = {"train_aug": "train_aug", "val": "val"}
OF_VOC = {"train": "train_aug", "val": "val"}
OF_SBD = {"train": "train_aug", "val": "train_aug"}
"""Lists of a folder, each with the split that it belongs to. An image is in one list of a folder;
VOC and SBD have images in common."""
LONGEST = 1 << 20
"""Most bytes that a list may have; 12,031 names take 144,372."""


@dataclass(frozen=True)
class FilesReport(SplitReport):
    """What was found of one split."""

    masks: int
    photographs: int


class Listed(NamedTuple):
    """A photograph and its mask as the lists say, there or not; a test image has no mask."""

    image: Path
    mask: Path | None

    def there(self, root: Path, split: str, masks_only: bool) -> FilesOfImage:
        """What there is of it, without the photograph if that is not asked for."""
        image = self.image if self.image.is_file() and not masks_only else None
        masks = ((self.mask, read_labels),) if self.mask and self.mask.is_file() else ()
        return FilesOfImage(root, split, image, masks)


@dataclass
class Lists:
    """What the lists of a tree name."""

    root: Path
    masks: dict[str, Mapping[str, Path | None]] = field(default_factory=dict)
    """Split -> image name -> mask that counts, None for a test image; sorted by name."""
    unlisted: list[Path] = field(default_factory=list)
    """Masks in no list."""
    problems: list[Fault] = field(default_factory=list)

    def found(self, split: str, file: Path, what: str) -> None:
        """Note a problem of a file or folder."""
        self.problems.append(Fault(split, file.relative_to(self.root).as_posix(), what))

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


def check_voc(
    root: Path,
    begin: Begin = unseen,
    *,
    masks_only: bool = False,
    processes: int = 1,
) -> CheckReport:
    """Read a whole tree and list everything that is wrong.

    A tree that this tool wrote is held against its note, any other against the published numbers
    and names. The test set, which takes a download of its own, may be missing.

    Args:
        root: the folder that holds ``VOCdevkit`` and ``benchmark_RELEASE``, or ``VOC2012``.
        begin: see ``Begin``.
        masks_only: do without the photographs, and so without the test set.
        processes: how many share the images.

    Raises:
        UserError: there is no such tree, or its note cannot be read.
        RunFailed: a process died.
    """
    note, lists = read_tree(root, masks_only)
    expected = note.images if note else VOC_SIZES
    images = voc_folder(root) / JPEGS
    listed = {
        split: [Listed(images / f"{name}.jpg", mask) for name, mask in masks.items()]
        for split, masks in lists.masks.items()
    }
    problems = [*lists.problems, *faulty(root, "train_aug", lists.unlisted, "in no list", "masks")]
    for split, masks in lists.masks.items():
        problems += wrong_names(root, split, masks, expected.get(split, 0), published=not note)
        problems += missing(root, split, listed[split], masks_only)
    every = [one.there(root, split, masks_only) for split in listed for one in listed[split]]
    problems += check_each(every, begin, processes)
    rows = [count(split, listed[split], expected.get(split, 0), problems) for split in listed]
    absent = 0 if masks_only else sum(row.images - row.photographs for row in rows)
    return CheckReport(
        root=str(root),
        content=content(root, note) + (", masks only" if masks_only else ""),
        size=None,
        splits=tuple(rows),
        problems=tuple(sorted(problems, key=lambda problem: [*listed].index(problem.split))),
        advice=ADVICE.format(absent) if absent else "",
    )


def count(
    split: str, listed: Sequence[Listed], expected: int, problems: Sequence[Fault]
) -> FilesReport:
    """What was found of a split, in numbers."""
    return FilesReport(
        split,
        images=len(listed),
        expected=expected,
        problems=sum(problem.split == split for problem in problems),
        masks=sum(one.mask is not None and one.mask.is_file() for one in listed),
        photographs=sum(one.image.is_file() for one in listed),
    )


def read_tree(root: Path, masks_only: bool) -> tuple[TreeNote | None, Lists]:
    """The note of a tree, if it has one, and its lists."""
    voc, note = voc_folder(root), read_note(root)
    has_test = (voc / VOC_LISTS / "test.txt").exists() or (
        note is not None and "test" in note.images
    )
    return note, read_lists(root, test=has_test and not masks_only)


def content(root: Path, note: TreeNote | None) -> str:
    """Whose tree it is: what its note says, or the layout."""
    if note:
        return note.content
    return "merged" if (voc_folder(root) / MERGED_MASKS).is_dir() else "official"


def wrong_names(
    root: Path, split: str, names: Iterable[str], expected: int, *, published: bool
) -> Iterator[Fault]:
    """Another number of images than expected, or not the published ones."""
    names = [*names]
    where = (voc_folder(root) / VOC_LISTS).relative_to(root).as_posix()
    if len(names) != expected:
        yield Fault(split, where, f"{split} has {len(names):,} images, not {expected:,}")
    elif published and split == "train_aug":
        try:
            check_train_aug(names)
        except UserError as error:
            yield Fault(split, where, str(error).rstrip("."))


def missing(root: Path, split: str, listed: Sequence[Listed], masks_only: bool) -> Iterator[Fault]:
    """Files of a split that are not there: masks, and photographs if they are asked for."""
    for what, files in (
        ("masks", [one.mask for one in listed if one.mask]),
        ("photographs", [one.image for one in listed if not masks_only]),
    ):
        absent = [file for file in files if not file.is_file()]
        if absent:
            yield from faulty(root, split, absent, "missing", f"of {len(files):,} {split} {what}")


def faulty(root: Path, split: str, files: Iterable[Path], fault: str, what: str) -> Iterator[Fault]:
    """Files with the same fault: a problem each, or one for a folder that has many of them."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    for folder, of_it in folders.items():
        if len(of_it) <= SHOWN:
            yield from (Fault(split, file.relative_to(root).as_posix(), fault) for file in of_it)
        else:
            names = some([file.name for file in of_it])
            where = folder.relative_to(root).as_posix()
            yield Fault(split, where, f"{len(of_it):,} {what} are {fault}: {names}")


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
        (voc / MERGED_MASKS, MERGED_FROM, MERGED)
        if merged
        else (voc / CLASS_MASKS, VOC_FROM, OF_VOC)
    )
    names = lists.read(voc / VOC_LISTS, of_voc | ({"test": "test"} if test else {}), source)
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
