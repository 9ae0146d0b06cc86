"""Photographs and masks of one's own, as networks are trained and scored on them.

    own/images/crossing_7.jpg           photographs: JPEG, PNG or TIFF
    own/masks/crossing_7.png            masks of the same names (``own_masks.py``)
    own/train.txt, val.txt[, test.txt]  names, one a line
    own/classes.txt                     what the masks show

or, in place of the lists, the folders ``train``, ``val`` and ``test`` with images/ and masks/ each.
``data prepare own`` writes the lists and ``classes.txt`` where they are missing. Training items are
crops as of Pascal VOC (``voc_crops.py``), or whole images resized to one size.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data.check_own import check_own_folder
from lovasz_repro.data.classes import class_table
from lovasz_repro.data.datasets import (
    DatasetKind,
    Demo,
    Example,
    ResizedTraining,
    ScoredSet,
    TrainingSet,
    as_tensors,
    category_of,
)
from lovasz_repro.data.demo_own import OWN_COUNTS, OWN_SIZE, SMALLEST_OWN, write_own_demo
from lovasz_repro.data.images import (
    check_same_size,
    read_photograph,
    resize_image,
    resize_mask,
)
from lovasz_repro.data.own_files import OwnPair, list_everything, list_pairs, own_splits
from lovasz_repro.data.own_masks import (
    OWN_VOID,
    OwnClasses,
    class_file,
    decode_mask,
    folder_palette,
    read_classes,
    read_own_mask,
)
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc_crops import augment
from lovasz_repro.errors import UserError


class OwnMasks:
    """The images of a split, whole and at their own size.

    Args:
        pairs: photographs and masks.
        classes: what the masks show.
        category: class that is told from the rest; None: all.
    """

    def __init__(
        self, pairs: Sequence[OwnPair], classes: OwnClasses, category: int | None = None
    ) -> None:
        self.pairs, self.classes, self.category = pairs, classes, category

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """What the photograph is called."""
        return self.pairs[index].name

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8."""
        return read_photograph(self.pairs[index].image)

    def label_ids(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8, ``OWN_VOID`` = void, whatever the category."""
        return read_own_mask(self.pairs[index].mask, self.classes)

    def both(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photograph (H, W, 3) and labels (H, W) uint8, 1 and 0 with a category.

        Raises:
            UserError: unreadable files, unknown values, or sizes that differ.
        """
        photograph, labels = self.photograph(index), self.label_ids(index)
        check_same_size(self.pairs[index].mask, labels, photograph)
        if self.category is None:
            return photograph, labels
        return photograph, np.where(labels == OWN_VOID, labels, labels == self.category)


class OwnCrops(Dataset[Example]):
    """Crops of scaled, padded and mirrored photographs, RGB (3, crop, crop) uint8, with labels.

    An item is a function of the seed and the ``Draw``, as of ``VocTraining``.
    """

    def __init__(self, images: OwnMasks, data: DataConfig, seed: int) -> None:
        self.images, self.data, self.seed = images, data, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | Draw) -> Example:
        draw = item if isinstance(item, Draw) else Draw(item, 0)
        photograph, labels = self.images.both(draw.image)
        image, shown = augment(
            photograph,
            labels,
            seed=self.seed,
            position=draw.position,
            crop=self.data.size[0],
            how=self.data.augmentation,
            flip=self.data.flip,
        )
        return as_tensors(image, shown)

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of a whole image, whatever the category."""
        return self.images.label_ids(index)


class OwnResized(ResizedTraining):
    """Whole images resized to one size, with their labels; mirrored where that is asked for."""

    def __init__(self, images: OwnMasks, data: DataConfig, seed: int) -> None:
        super().__init__(data.size, flip=data.flip, seed=seed)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and labels (H, W), resized."""
        photograph, labels = self.images.both(index)
        return resize_image(photograph, self.size), resize_mask(labels, self.size)

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of an image, resized, whatever the category."""
        return resize_mask(self.images.label_ids(index), self.size)


class OwnScored(OwnMasks, Dataset[Example]):
    """Images as the network takes them, whole or resized, with labels at their own size."""

    size: tuple[int, int] | None = None
    """What the photographs are resized to; None: they keep their own."""

    def __getitem__(self, index: int) -> Example:
        photograph, labels = self.both(index)
        return as_tensors(resize_image(photograph, self.size) if self.size else photograph, labels)


def open_classes(root: Path, data: DataConfig) -> OwnClasses:
    """What the masks of a folder show.

    Raises:
        UserError: nothing says so, or other classes than the config has.
    """
    classes = read_classes(root)
    if classes is None:
        raise UserError(f"{root}: no classes.txt; `lovasz-repro data prepare own` finds the "
                        "classes in the masks and writes it.")  # fmt: skip
    if classes.names != data.classes:
        found, wanted = (", ".join(names) or "none" for names in (classes.names, data.classes))
        raise UserError(f"{class_file(root)}: the classes are {found}, data.classes has {wanted}.")
    return folder_palette(decode_mask(list_pairs(root, "train")[0].mask), classes)


def training_set(root: Path, data: DataConfig, seed: int) -> TrainingSet:
    """Crops, or whole images resized."""
    classes = open_classes(root, data)
    images = OwnMasks(list_pairs(root, "train"), classes, category_of(data))
    return OwnResized(images, data, seed) if data.resize else OwnCrops(images, data, seed)


def scored_set(root: Path, split: str, data: DataConfig) -> ScoredSet:
    """Whole images, resized where training images are."""
    scored = OwnScored(list_pairs(root, split), open_classes(root, data), category_of(data))
    scored.size = data.size if data.resize else None
    return scored


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
    demo=Demo(
        write=lambda root, seed, images, size, advance, **how: write_own_demo(
            root, seed, images, size[0], advance, **how
        ),
        counts=OWN_COUNTS,
        size=(OWN_SIZE,),
        smallest=(SMALLEST_OWN,),
        things="small objects",
        experiment=None,
    ),
)
