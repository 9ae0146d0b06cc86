"""Cityscapes in its official layout: 2,975 / 500 / 1,525 street photographs of 1024x2048.

cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png     photograph
cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png      official ids 0-33
cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png   id * 1000 + number

The network's classes are the 20 of the released ENet: 0 for every id that is not scored, then the
19 scored ones in official order. Other trees in this layout (``data demo``,
``data convert``) may have other sizes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lovasz_repro.data.classes import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_INSTANCES
from lovasz_repro.data.images import (
    by_name,
    read_mask,
)
from lovasz_repro.errors import UserError

STREET_CLASSES = CITYSCAPES.names
IGNORE = CITYSCAPES.ignore_index
"""Class of pixels that are not scored, and that no network may answer."""
SPLITS = ("train", "val", "test")
CITYSCAPES_SIZES: dict[str, int] = {"train": 2975, "val": 500, "test": 1525}
FULL_SIZE = (1024, 2048)
LEFT_IMAGES, FINE_MASKS = "leftImg8bit", "gtFine"

TO_LABEL_ID = np.array(CITYSCAPES.label_ids, dtype=np.uint8)
"""Class 0..19 -> official label id, (20,)."""
TO_CLASS = np.zeros(CITYSCAPES_IDS.highest + 1, dtype=np.uint8)
"""Official label id 0..33 -> class 0..19, (34,)."""
TO_CLASS[TO_LABEL_ID[1:]] = np.arange(1, len(STREET_CLASSES), dtype=np.uint8)


@dataclass(frozen=True)
class Frame:
    """One photograph and where its annotation lies, there or not."""

    name: str
    """Like ``aachen_000000_000019``."""
    city: str
    image: Path
    label_ids: Path
    instance_ids: Path


def list_frames(root: Path, split: str, *, labelled: bool = True) -> list[Frame]:
    """Every photograph of a split, sorted by name.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: "train", "val" or "test".
        labelled: insist on the annotations, which the official test set lacks.

    Raises:
        UserError: the folders, the annotation of a city or of some photographs are missing.
    """
    folder = root / LEFT_IMAGES / split
    if not folder.is_dir():
        raise UserError(
            f"Cityscapes not found: no folder {folder}. `lovasz-repro data check cityscapes` says "
            "where it comes from and what is missing."
        )
    frames = list(frames_of(root, split))
    if not frames:
        raise UserError(f"{folder}: no city folders with *_{LEFT_IMAGES}.png photographs.")
    if labelled:
        for city in sorted({frame.city for frame in frames}):
            if not (root / FINE_MASKS / split / city).is_dir():
                raise UserError(
                    f"{root / FINE_MASKS / split}: no folder {city}, whose photographs are in "
                    f"{folder / city}."
                )
        lonely = [f for frame in frames for f in (frame.label_ids, frame.instance_ids)
                  if not f.is_file()]  # fmt: skip
        if lonely:
            more = f" (and {len(lonely) - 1} more such files)" if len(lonely) > 1 else ""
            raise UserError(f"{lonely[0]}: missing; its photograph is there{more}.")
    return sorted(frames, key=lambda frame: frame.name)


def read_label_ids(frame: Frame) -> np.ndarray:
    """Official label ids, (H, W) uint8 in 0..33.

    Raises:
        UserError: as ``read_mask``.
    """
    return read_mask(frame.label_ids, CITYSCAPES_IDS)


def read_instances(frame: Frame) -> np.ndarray:
    """Official instance ids, (H, W) int32: a label id, or label id * 1000 + number.

    Raises:
        UserError: as ``read_mask``.
    """
    return read_mask(frame.instance_ids, CITYSCAPES_INSTANCES)


def frames_of(root: Path, split: str) -> Iterator[Frame]:
    """The photographs of a split that there are, in no order."""
    images = (root / LEFT_IMAGES / split).glob("[!.]*/*")
    for name, image in by_name(images, (f"_{LEFT_IMAGES}.png",)).items():
        city = image.parent.name
        masks = root / FINE_MASKS / split / city / f"{name}_gtFine"
        yield Frame(
            name,
            city,
            image,
            Path(f"{masks}_labelIds.png"),
            Path(f"{masks}_instanceIds.png"),
        )
