"""Writes down what a folder of one's own does not say: its classes, and which images are which.

What is written is plain text that may be edited; nothing that is there is changed. After it,
training depends on files alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lovasz_repro.data.check import SHOWN, Begin, unseen
from lovasz_repro.data.check_own import counts_of, with_palette
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.own_files import (
    OWN_SPLITS,
    OwnClasses,
    OwnFolder,
    complete_pairs,
    in_folders,
    list_file,
    list_pairs,
    own_splits,
    read_classes,
)
from lovasz_repro.data.own_look import Looked, counted, found_classes, look_at_all, split_images
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import write_durably

VALIDATION_SHARE = 0.2
COMMAND = "lovasz-repro data prepare own"


@dataclass(frozen=True)
class OwnData:
    """A folder that says all that training needs."""

    classes: OwnClasses
    images: dict[str, int]
    """Split -> how many."""
    wrote: tuple[Path, ...] = ()
    """Files that were missing."""
    notes: tuple[str, ...] = ()
    """Classes that are not in both halves of a split that was made here."""


def prepare_own(
    root: Path,
    *,
    seed: int = 0,
    share: float = VALIDATION_SHARE,
    begin: Begin = unseen,
    processes: int = 1,
) -> OwnData:
    """Write ``classes.txt``, ``train.txt`` and ``val.txt`` of a folder, those that are missing.

    Where all are there, no image is read.

    Args:
        root: the folder.
        seed: of the split, where one is made.
        share: of the images, for validation.
        begin: see ``Begin``.
        processes: how many share the images.

    Raises:
        UserError: no images, files that cannot be used, or a folder that cannot be written.
        RunFailed: a process died.
    """
    classes, split = read_classes(root), is_unsplit(root)
    if classes and not split:
        return OwnData(classes, count_images(root))
    pairs = pairs_to_read(root, split)
    every = [pair for of_it in pairs.values() for pair in of_it]
    known = classes and with_palette(every, classes)
    looked = look_at_all(root, pairs, known, begin, processes)
    check_sound(root, looked)
    known = known or found_classes(looked, root)
    files, notes = dict[Path, str](), list[str]()
    if split:
        files, notes = split_lists(root, counted(looked, known), known, seed, share)
    if not classes:
        head = f"# found by {COMMAND}; names may be changed, the order is that of the outputs\n"
        files[root / "classes.txt"] = head + "".join(f"{line}\n" for line in known.lines())
    write_all(files)
    return OwnData(known, count_images(root), tuple(files), tuple(notes))


def is_unsplit(root: Path) -> bool:
    """Whether nothing says which images are for training and which for validation.

    Raises:
        UserError: one of the lists is missing alone.
    """
    if in_folders(root):
        return False
    lists = [list_file(root, split) for split in OWN_SPLITS[:2]]
    missing = [file for file in lists if not file.is_file()]
    if len(missing) == 1:
        raise UserError(f"{missing[0]}: missing, and the other list is there. Write it, or remove "
                        "the other to have the images split.")  # fmt: skip
    return bool(missing)


def count_images(root: Path) -> dict[str, int]:
    """Images of each split."""
    return {split: len(list_pairs(root, split)) for split in own_splits(root)}


def check_sound(root: Path, looked: Sequence[Looked]) -> None:
    """Raise UserError where images or masks have faults, a line for each of the first few."""
    faults = [f"{root}/{fault}." for one in looked for fault in one.faults]
    if len(faults) > SHOWN:
        more = f"And {len(faults) - SHOWN:,} more; `lovasz-repro data check own` lists all."
        raise UserError(*faults[:SHOWN], more)
    if faults:
        raise UserError(*faults)


def split_lists(
    root: Path, looked: Sequence[Looked], classes: OwnClasses, seed: int, share: float
) -> tuple[dict[Path, str], list[str]]:
    """The lists of a split made here, and what could not be had.

    Raises:
        UserError: the images cannot be split.
    """
    presence = counts_of(looked)[:, : len(classes.names)] > 0
    try:
        chosen = np.array(split_images(presence, [one.content for one in looked], seed, share))
    except UserError as error:
        raise UserError(f"{root}: {error}") from None
    files, notes = dict[Path, str](), list[str]()
    for split, own in (("train", ~chosen), ("val", chosen)):
        names = [one.pair.name for one, wanted in zip(looked, own, strict=True) if wanted]
        head = f"# {COMMAND} --seed {seed} --share {share}\n"
        files[list_file(root, split)] = head + "".join(f"{name}\n" for name in names)
        shown = presence[own].any(axis=0)
        lacking = [name for name, some in zip(classes.names, shown, strict=True) if not some]
        if lacking:
            notes.append(f"{split}: no image shows {', '.join(lacking)}; too few images do")
    return files, notes


def pairs_to_read(root: Path, split: bool) -> dict[str, list[ImagePair]]:
    """Every image with its mask: of each split, or of all where nothing splits them yet."""
    if not split:
        return {name: list_pairs(root, name) for name in own_splits(root)}
    folder = OwnFolder.read(root)
    return {"all": complete_pairs(folder, [*folder.images])}


def write_all(files: dict[Path, str]) -> None:
    """Write text files.

    Raises:
        UserError: the folder or the disk refuses.
    """
    for file, text in files.items():
        try:
            write_durably(file, text.encode())
        except OSError as error:
            raise UserError(
                f"{file}: cannot be written ({error.strerror}). Make a folder that can be, with "
                "links to images and masks, and name that."
            ) from None
