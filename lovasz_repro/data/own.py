"""Photographs and masks of one's own, as networks are trained and scored on them.

    own/images/crossing_7.jpg           photographs: JPEG, PNG or TIFF
    own/masks/crossing_7.png            masks of the same names (``own_files.py``)
    own/train.txt, val.txt[, test.txt]  names, one a line
    own/classes.txt                     what the masks show

or, in place of the lists, the folders ``train``, ``val`` and ``test`` with images/ and masks/ each.
``data prepare own`` writes the lists and ``classes.txt`` where they are missing. Training items are
crops as of Pascal VOC (``examples.py``), or whole images resized to one size.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data.check_own import check_own_folder
from lovasz_repro.data.classes import class_table
from lovasz_repro.data.datasets import (
    DatasetKind,
    ScoredSet,
    TrainingSet,
    category_of,
)
from lovasz_repro.data.examples import CroppedImages, WholeImages
from lovasz_repro.data.own_files import (
    OWN_VOID,
    OwnClasses,
    class_file,
    decode_mask,
    expect_classes,
    folder_palette,
    list_everything,
    list_pairs,
    own_splits,
    read_own_mask,
)
from lovasz_repro.errors import UserError


def open_classes(root: Path, data: DataConfig) -> OwnClasses:
    """What the masks of a folder show.

    Raises:
        UserError: nothing says so, or other classes than the config has.
    """
    classes = expect_classes(root)
    if classes.names != data.classes:
        found, wanted = (", ".join(names) or "none" for names in (classes.names, data.classes))
        raise UserError(f"{class_file(root)}: the classes are {found}, data.classes has {wanted}.")
    return folder_palette(decode_mask(list_pairs(root, "train")[0].mask), classes)


def training_set(root: Path, data: DataConfig, seed: int) -> TrainingSet:
    """Crops, or whole images resized."""
    how: dict[str, Any] = {"flip": data.flip, "seed": seed}
    if data.resize:
        return WholeImages(*of_split(root, "train", data), size=data.size, own_labels=False, **how)
    images = of_split(root, "train", data)
    return CroppedImages(*images, crop=data.size[0], augmentation=data.augmentation, **how)


def scored_set(root: Path, split: str, data: DataConfig) -> ScoredSet:
    """Whole images, resized where training images are."""
    return WholeImages(*of_split(root, split, data), size=data.size if data.resize else None)


def of_split(root: Path, split: str, data: DataConfig) -> tuple[Any, Any, Any]:
    """Images of a split, how their masks are read and relabelled: fields of ``LabelledImages``."""
    category, classes = category_of(data), open_classes(root, data)
    one = None if category is None else partial(against_the_rest, category=category)
    return list_pairs(root, split), partial(read_own_mask, classes=classes), one


def against_the_rest(labels: np.ndarray, category: int) -> np.ndarray:
    """1 where a category is, ``OWN_VOID`` where labels (H, W) are void, 0 elsewhere."""
    return np.where(labels == OWN_VOID, labels, labels == category)


KIND = DatasetKind(
    table=class_table("own", ("background", "object"), 2),
    files=lambda root, data: list_everything(root),
    train=training_set,
    scored=scored_set,
    scored_splits=lambda root: tuple(split for split in own_splits(root) if split != "train"),
    sizes_differ=True,
    examples="segmentations",
    published={},
    count=lambda root, split: len(list_pairs(root, split)),
    source="your photographs and masks, for `run own`",
    check=check_own_folder,
)
