"""CamVid's photographs in the layout of Cityscapes, with official ids and instances.

The 11 classes get the label ids of the Cityscapes classes that they come closest to
(``CAMVID_FROM_CITYSCAPES``), void gets 0. CamVid has no instances: connected regions of car,
person and bicycle stand for them, so objects that touch are one.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data import camvid
from lovasz_repro.data.cityscapes import IMAGES, MASKS
from lovasz_repro.data.palettes import CAMVID_FROM_CITYSCAPES, CITYSCAPES
from lovasz_repro.data.tree_note import TreeNote, new_tree

MADE_BY = "lovasz-repro data convert camvid cityscapes"
CITY = "camvid"
NAMES = "camvid-names.csv"
"""File in the tree that says which photograph is which."""
THINGS = ("car", "person", "bicycle")
"""Cityscapes classes whose regions are numbered."""
SMALLEST = 20
"""Pixels of a region that is numbered; smaller ones stay without a number, as groups do."""
MOST = 999
"""Numbers that an instance id has room for; regions beyond stay without one."""

_LABEL_IDS = np.zeros(camvid.VOID + 1, dtype=np.uint8)  # CamVid id 0..11 -> official label id
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
    files = {split: camvid.list_files(source, split) for split in camvid.SPLIT_SIZES}
    images = {split: len(pairs) for split, pairs in files.items()}
    height, width = camvid.read_pair(*files["train"][0])[1].shape
    note = TreeNote("camvid", MADE_BY, (height, width), images)

    def write(folder: Path) -> None:
        _write_tree(files, folder, advance)

    return new_tree(root, note, write)


def convert_labels(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Label ids and instance ids of a CamVid mask.

    Args:
        labels: (H, W) uint8 in 0..11.

    Returns:
        (H, W) uint8 label ids; (H, W) uint16 instance ids, numbered from 1 within each class.
    """
    from scipy import ndimage  # type: ignore[import-untyped]

    ids = _LABEL_IDS[labels]
    instances = ids.astype(np.uint16)
    for name in THINGS:
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
    files: dict[str, list[tuple[Path, Path]]], root: Path, advance: Callable[[int], None]
) -> None:
    with (root / NAMES).open("w", encoding="utf-8", newline="") as table:
        names = csv.writer(table, lineterminator="\n")
        names.writerow(["split", "name", "camvid"])
        for split, pairs in files.items():
            photographs, masks = root / IMAGES / split / CITY, root / MASKS / split / CITY
            photographs.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number, (photograph, mask) in enumerate(pairs):
                name = f"{CITY}_000000_{number:06d}"
                image, labels = camvid.read_pair(photograph, mask)
                ids, instances = convert_labels(labels)
                Image.fromarray(image).save(photographs / f"{name}_{IMAGES}.png")
                Image.fromarray(ids).save(masks / f"{name}_{MASKS}_labelIds.png")
                Image.fromarray(instances).save(masks / f"{name}_{MASKS}_instanceIds.png")
                names.writerow([split, name, photograph.stem])
                advance(1)
