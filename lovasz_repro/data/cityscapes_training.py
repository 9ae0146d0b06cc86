"""Cityscapes as the network is trained and scored on it."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data.cityscapes import (
    CITYSCAPES_SIZES,
    LEFT_IMAGES,
    TO_CLASS,
    Frame,
    check_cityscapes,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.classes import CITYSCAPES, CITYSCAPES_IDS
from lovasz_repro.data.datasets import DatasetKind, not_the_papers
from lovasz_repro.data.examples import LabelledImages, WholeImages, as_tensors
from lovasz_repro.data.images import (
    ImagePair,
    check_same_size,
    photograph_size,
    read_mask,
    resize_image,
)
from lovasz_repro.errors import UserError

ScoredExample = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


def pairs_of(frames: Sequence[Frame]) -> list[ImagePair]:
    """Photographs with their label ids."""
    return [ImagePair(frame.name, frame.image, frame.label_ids) for frame in frames]


def classes_of(label_ids: Path) -> np.ndarray:
    """The classes 0..19 of a mask, (H, W) uint8; 0 is ignored."""
    return TO_CLASS[read_mask(label_ids, CITYSCAPES_IDS)]


def training_images(root: Path, split: str, size: tuple[int, int], **how: Any) -> WholeImages:
    """Photographs and classes, both resized; ``how`` is that of ``WholeImages``."""
    pairs = pairs_of(list_frames(root, split))
    return WholeImages(pairs, classes_of, size=size, own_labels=False, **how)


class ScoredCityscapes(LabelledImages):
    """Photographs with their full annotation, as the official scores need them.

    An item is an RGB image (3, h, w) uint8 at the network's size, and at the annotation's own size
    the official label ids (H, W) uint8 and instance ids (H, W) int32. All are of one size.

    Raises:
        UserError: as ``LabelledImages``, and for a photograph of another size than the first.
    """

    def __init__(self, root: Path, split: str, size: tuple[int, int]) -> None:
        self.frames, self.size = list_frames(root, split), size
        super().__init__(pairs_of(self.frames), partial(read_mask, ids=CITYSCAPES_IDS))

    def __getitem__(self, index: int) -> ScoredExample:  # type: ignore[override]
        frame, (photograph, ids) = self.frames[index], self.both(index)
        instances = read_instances(frame)
        check_same_size(frame.instance_ids, instances, photograph)
        if photograph.shape[:2] != self.full_size:
            height, width = photograph.shape[:2]
            raise UserError(f"{frame.image}: {height}x{width}, others of its split are "
                            f"{self.full_size[0]}x{self.full_size[1]}.")  # fmt: skip
        image, labels = as_tensors(resize_image(photograph, self.size), ids)
        return image, (labels, torch.from_numpy(instances))

    @cached_property
    def full_size(self) -> tuple[int, int]:
        """Height and width of the first photograph, pixels."""
        return photograph_size(self.frames[0].image)


def scored_splits(root: Path) -> tuple[str, ...]:
    """Validation, and test where it has labels, which the official one does not."""
    folder = root / LEFT_IMAGES / "test"
    frames = list_frames(root, "test", labelled=False) if folder.is_dir() else []
    labelled = bool(frames) and frames[0].label_ids.is_file()
    if labelled and TO_CLASS[read_label_ids(frames[0])].any():
        return "val", "test"
    return ("val",)


def list_files(root: Path, data: DataConfig) -> list[Path]:
    """Every file that a run may read."""
    splits = "train", *scored_splits(root)
    frames = [frame for split in splits for frame in list_frames(root, split)]
    return [file for f in frames for file in (f.image, f.label_ids, f.instance_ids)]


def check_papers(root: Path, data: DataConfig) -> None:
    """Raise UserError unless there are as many labelled photographs as in the paper."""
    for split in ("train", "val"):
        found = len(list_frames(root, split))
        if found != CITYSCAPES_SIZES[split]:
            raise not_the_papers(root, found, split, "cityscapes", CITYSCAPES_SIZES[split])


KIND = DatasetKind(
    table=CITYSCAPES,
    files=list_files,
    train=lambda root, data, seed: training_images(
        root, "train", data.size, flip=data.flip, seed=seed
    ),
    scored=lambda root, split, data: ScoredCityscapes(root, split, data.size),
    scored_splits=scored_splits,
    official_scores=True,
    evaluation="cityscapes",
    published=CITYSCAPES_SIZES,
    count=lambda root, split: len(list_frames(root, split, labelled=False)),
    source="for `run cityscapes-enet`; `lovasz-repro data check cityscapes` says how to get it",
    check_papers=check_papers,
    check=check_cityscapes,
)
