"""Pascal VOC as the network is trained and scored on it: all 21 classes, or one against the rest.

Training items are crops (``voc_crops.py``), scored items whole photographs at their own size; or
evidence drawn from the masks in their place (``voc_evidence.py``). Labels of one category are made
from the whole mask, before it is cropped: whether a photograph shows the category decides what its
void pixels become.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data import demo, voc
from lovasz_repro.data.check_voc import check_voc
from lovasz_repro.data.classes import VOC
from lovasz_repro.data.datasets import (
    DatasetKind,
    Demo,
    Example,
    ScoredSet,
    TrainingSet,
    as_tensors,
    category_of,
    not_the_papers,
)
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc import VocImage, binary_labels, presence_of, read_labels, read_pair
from lovasz_repro.data.voc_crops import AugmentationName, augment
from lovasz_repro.data.voc_evidence import Evidence, EvidenceScored, EvidenceTraining
from lovasz_repro.errors import UserError


class VocTraining(Dataset[Example]):
    """Crops of scaled, padded and mirrored photographs, with their labels.

    An item is an RGB image (3, crop, crop) uint8 and its labels (crop, crop) uint8: class ids
    0..20, or 1 and 0 with a ``category``; 255 = void and padding. It is a function of the seed and
    the ``Draw``; a plain index stands for the draw at position 0.

    Args:
        images: what ``list_images`` gives.
        crop: side of what comes out, pixels.
        seed: seeds the augmentation.
        category: class id that is told from the rest; None: all 21 classes.
        crop_with_class: draw the place of a crop again, up to ``REDRAWS`` times, until it shows
            ``Draw.wanted``.
        augmentation: how images are scaled and padded.

    Raises:
        UserError: (when an item is read) a file is missing or unreadable, the sizes of photograph
            and mask differ, or an id is unknown.
    """

    def __init__(
        self,
        images: Sequence[VocImage],
        crop: int,
        *,
        seed: int,
        category: int | None = None,
        crop_with_class: bool = False,
        augmentation: AugmentationName = "deeplab",
    ) -> None:
        self.images = images
        self.crop = crop
        self.seed = seed
        self.category = category
        self.crop_with_class = crop_with_class
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | Draw) -> Example:
        draw = item if isinstance(item, Draw) else Draw(item, 0)
        photograph, labels = read_example(self.images[draw.image], self.category)
        image, shown = augment(
            photograph,
            labels,
            seed=self.seed,
            position=draw.position,
            crop=self.crop,
            wanted=draw.wanted if self.crop_with_class else None,
            how=self.augmentation,
        )
        return as_tensors(image, shown)

    def labels(self, index: int) -> np.ndarray:
        """Class ids (H, W) uint8 of a whole photograph, 255 = void, whatever the category."""
        return read_labels(self.images[index].mask)


class VocScored(Dataset[Example]):
    """Whole photographs with their labels.

    An item is an RGB image (3, H, W) uint8 and its labels (H, W) uint8, as in ``VocTraining``;
    photographs differ in size.

    Args:
        images: what ``list_images`` gives.
        category: class id that is told from the rest; None: all 21 classes.

    Raises:
        UserError: as ``VocTraining``.
    """

    def __init__(self, images: Sequence[VocImage], *, category: int | None = None) -> None:
        self.images = images
        self.category = category

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Example:
        return as_tensors(*read_example(self.images[index], self.category))

    @property
    def names(self) -> list[str]:
        """What the photographs are called, like ``2007_000033``."""
        return [image.name for image in self.images]

    def name(self, index: int) -> str:
        """What the photograph is called."""
        return self.images[index].name

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8."""
        return read_photograph(self.images[index].image)

    def label_ids(self, index: int) -> np.ndarray:
        """Class ids (H, W) uint8, 255 = void, whatever the category."""
        return read_labels(self.images[index].mask)


def read_example(image: VocImage, category: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 3) and its labels (H, W), both uint8.

    Raises:
        UserError: as ``read_pair``.
    """
    photograph, labels = read_pair(image)
    return photograph, labels if category is None else binary_labels(labels, category)


SHUFFLE_SEED = 1234
"""Of the authors' shuffle."""


def balanced_validation(presence: np.ndarray, category: int) -> list[int]:
    """The images on which a category is validated.

    Args:
        presence: which image contains which class, (N, C) bool; images sorted by name, class 0
            the background.
        category: class id.

    Returns:
        Indices of the images with the category, then of as many without it, or of all without it
        where there are fewer.
    """
    stream = random.Random(SHUFFLE_SEED)
    negatives: list[int] = []
    for column in presence.T[: category + 1]:  # the stream runs on from class to class
        negatives = np.flatnonzero(~column).tolist()
        shuffle(negatives, stream)
    positives = np.flatnonzero(presence[:, category]).tolist()
    return positives + negatives[: len(positives)]


def shuffle(items: list[int], stream: random.Random) -> None:
    """Shuffle in place as Python 2 did, which draws otherwise than Python 3."""
    for last in range(len(items) - 1, 0, -1):
        other = int(stream.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


def list_files(root: Path, data: DataConfig) -> list[Path]:
    """Every file that a run may read."""
    photographs = data.images == "photographs"
    images = [
        image
        for split in (data.train_split, "val")
        for image in voc.list_images(root, split, photographs=photographs)
    ]
    files = [file for i in images for file in ((i.image, i.mask) if photographs else (i.mask,))]
    return list(dict.fromkeys(files))  # trainval_aug holds val


def training_set(root: Path, data: DataConfig, seed: int) -> TrainingSet:
    """Crops of photographs, or of evidence."""
    category, crop, shown = category_of(data), data.size[0], data.crop_with_class
    if data.images == "features":
        return EvidenceTraining(
            root,
            crop,
            Evidence(data.noise),
            seed=seed,
            category=category,
            split=data.train_split,
            crop_with_class=shown,
            augmentation=data.augmentation,
        )
    return VocTraining(
        voc.list_images(root, data.train_split),
        crop,
        seed=seed,
        category=category,
        crop_with_class=shown,
        augmentation=data.augmentation,
    )


def scored_set(root: Path, split: str, data: DataConfig) -> ScoredSet:
    """Whole images, or their evidence; of one category those of its balanced validation."""
    category, chosen = category_of(data), None
    if category is not None:
        chosen = balanced_validation(presence_of(root, split), category)
        if not chosen:
            raise UserError(f"{root}: no image of {split} contains {data.category}.")
    if data.images == "features":
        return EvidenceScored(root, split, Evidence(data.noise), category=category, chosen=chosen)
    images = voc.list_images(root, split)
    return VocScored(images if chosen is None else [images[i] for i in chosen], category=category)


def check_papers(root: Path, data: DataConfig) -> None:
    """Raise UserError unless the images are photographs, and those of the paper."""
    if data.images == "features":
        raise UserError("data.images=features is not the paper's data, which runs of paper scale "
                        "need. Take another --profile.")  # fmt: skip
    voc.check_train_aug(image.name for image in voc.list_images(root, "train_aug"))
    found, expected = len(voc.list_images(root, "val")), voc.VOC_SIZES["val"]
    if found != expected:
        raise not_the_papers(root, found, "val", "voc", expected)


KIND = DatasetKind(
    table=VOC,
    files=list_files,
    train=training_set,
    scored=scored_set,
    balanced=True,
    sizes_differ=True,
    examples="segmentations",
    evaluation="voc",
    published={split: voc.VOC_SIZES[split] for split in ("train_aug", "val")},
    count=lambda root, split: len(voc.list_images(root, split)),
    source="for `run voc-binary` and `run voc-multiclass`; `lovasz-repro data check voc` says how "
    "to get it",
    check_papers=check_papers,
    check=check_voc,
    demo=Demo(
        write=lambda root, seed, images, size, advance: demo.write_voc(
            root, seed, images, size[0], advance
        ),
        counts=demo.VOC_COUNTS,
        size=(demo.VOC_SIZE,),
        smallest=demo.SMALLEST_VOC[:1],
        things="objects",
        experiment="voc-binary",
    ),
)
