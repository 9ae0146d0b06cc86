"""Pascal VOC as the network is trained and scored on it: all 21 classes, or one against the rest.

Training items are crops (``examples.py``), scored items whole photographs at their own size; or
evidence drawn from the masks in their place (``voc_evidence.py``). Labels of one category are made
from the whole mask, before it is cropped: whether a photograph shows the category decides what its
void pixels become.
"""

import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data import voc
from lovasz_repro.data.check_voc import check_voc
from lovasz_repro.data.classes import VOC
from lovasz_repro.data.datasets import (
    DatasetKind,
    ScoredSet,
    TrainingSet,
    category_of,
    not_the_papers,
)
from lovasz_repro.data.examples import CroppedImages, WholeImages
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.voc import binary_labels, presence_of, read_labels
from lovasz_repro.data.voc_evidence import Evidence, EvidenceScored, EvidenceTraining
from lovasz_repro.errors import UserError


def crops_of(
    images: Sequence[ImagePair], *, category: int | None = None, **how: Any
) -> CroppedImages:
    """Crops of what ``list_images`` gives; ``how`` is that of ``CroppedImages``."""
    return CroppedImages(images, read_labels, relabelled(category), **how)


def whole_images(images: Sequence[ImagePair], category: int | None = None) -> WholeImages:
    """Whole photographs at their own size, with class ids 0..20, or 1 and 0 with a category."""
    return WholeImages(images, read_labels, relabelled(category))


def relabelled(category: int | None) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes labels of one category of those of all."""
    return None if category is None else partial(binary_labels, category=category)


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
    how: dict[str, Any] = {
        "crop": data.size[0],
        "seed": seed,
        "category": category_of(data),
        "crop_with_class": data.crop_with_class,
        "augmentation": data.augmentation,
    }
    if data.images == "features":
        evidence = Evidence(data.noise)
        return EvidenceTraining(root, evidence=evidence, split=data.train_split, **how)
    return crops_of(voc.list_images(root, data.train_split), **how)


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
    return whole_images(images if chosen is None else [images[i] for i in chosen], category)


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
)
