"""Is a folder of one's own fit to train on? Finds everything that is wrong, file by file."""

from functools import partial
from pathlib import Path

from lovasz_repro.data.check import (
    Begin,
    CheckReport,
    FilesOfImage,
    SplitReport,
    check_each,
    unseen,
)
from lovasz_repro.data.own_files import list_everything, list_pairs, own_splits
from lovasz_repro.data.own_masks import decode_mask, folder_palette, read_classes, read_own_mask
from lovasz_repro.errors import UserError


def check_own_folder(root: Path, begin: Begin = unseen, *, processes: int = 1) -> CheckReport:
    """Read a whole folder and list everything that is wrong.

    Args:
        root: the folder.
        begin: see ``Begin``.
        processes: how many share the images.

    Raises:
        UserError: there is no such folder, or it does not say what is in which split.
        RunFailed: a process died.
    """
    classes = read_classes(root)
    if classes is None:
        raise UserError(f"{root}: no classes.txt.")
    list_everything(root)
    pairs = {split: list_pairs(root, split) for split in own_splits(root)}
    read = partial(
        read_own_mask, classes=folder_palette(decode_mask(pairs["train"][0].mask), classes)
    )
    jobs = [
        FilesOfImage(root, split, pair.image, ((pair.mask, read),))
        for split, of_it in pairs.items()
        for pair in of_it
    ]
    problems = check_each(jobs, begin, processes)
    rows = [
        SplitReport(split, len(of_it), len(of_it), sum(p.split == split for p in problems))
        for split, of_it in pairs.items()
    ]
    return CheckReport(str(root), "own", None, tuple(rows), tuple(problems))
