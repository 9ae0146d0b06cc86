"""Cityscapes as the network is trained and scored on it."""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data import demo
from lovasz_repro.data.check_cityscapes import check_cityscapes
from lovasz_repro.data.cityscapes import (
    CITYSCAPES_SIZES,
    LEFT_IMAGES,
    TO_CLASS,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.classes import CITYSCAPES
from lovasz_repro.data.datasets import DatasetKind, Demo, ResizedTraining, not_the_papers
from lovasz_repro.data.images import (
    check_same_size,
    photograph_size,
    read_photograph,
    resize_image,
    resize_mask,
)
from lovasz_repro.errors import UserError

ScoredExample = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]


class CityscapesTraining(ResizedTraining):
    """Photographs and classes as the network is trained on them.

    An item is an RGB image (3, H, W) uint8, resized bilinearly, and its classes (H, W) uint8 in
    0..19 with 0 ignored, resized with it (nearest).

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: "train" or "val".
        size: height and width of what comes out, pixels.
        flip: mirror an item with probability 1/2; needs items drawn with a ``Draw``.
        seed: seeds the mirroring.

    Raises:
        UserError: a folder or an annotation is missing, or (when an item is read) a file cannot be
            decoded, sizes differ or an id is unknown.
    """

    def __init__(
        self,
        root: Path,
        split: str,
        size: tuple[int, int],
        *,
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(size, flip=flip, seed=seed)
        self.frames = list_frames(root, split)

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) and classes (H, W) of an item, resized."""
        frame = self.frames[index]
        photograph, ids = read_photograph(frame.image), read_label_ids(frame)
        check_same_size(frame.label_ids, ids, photograph)
        return resize_image(photograph, self.size), resize_mask(TO_CLASS[ids], self.size)

    def labels(self, index: int) -> np.ndarray:
        """Classes (H, W) uint8 of an item, without reading its photograph."""
        return resize_mask(TO_CLASS[read_label_ids(self.frames[index])], self.size)


class ScoredCityscapes(Dataset[ScoredExample]):
    """Photographs with their full annotation, as the official scores need them.

    An item is an RGB image (3, h, w) uint8 at the network's size, and at the annotation's own size
    the official label ids (H, W) uint8 and instance ids (H, W) int32. All are of one size.

    Raises:
        UserError: as ``CityscapesTraining``, and for a photograph of another size than the first.
    """

    def __init__(self, root: Path, split: str, size: tuple[int, int]) -> None:
        self.frames = list_frames(root, split)
        self.size = size

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> ScoredExample:
        frame = self.frames[index]
        photograph = read_photograph(frame.image)
        ids, instances = read_label_ids(frame), read_instances(frame)
        check_same_size(frame.label_ids, ids, photograph)
        check_same_size(frame.instance_ids, instances, photograph)
        if photograph.shape[:2] != self.full_size:
            height, width = photograph.shape[:2]
            raise UserError(f"{frame.image}: {height}x{width}, others of its split are "
                            f"{self.full_size[0]}x{self.full_size[1]}.")  # fmt: skip
        image = np.array(resize_image(photograph, self.size).transpose(2, 0, 1), order="C")
        targets = torch.from_numpy(ids.copy()), torch.from_numpy(instances)
        return torch.from_numpy(image), targets

    @cached_property
    def full_size(self) -> tuple[int, int]:
        """Height and width of the first photograph, pixels."""
        return photograph_size(self.frames[0].image)

    def name(self, index: int) -> str:
        """What the photograph is called."""
        return self.frames[index].name

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8, at its own size."""
        return read_photograph(self.frames[index].image)

    def label_ids(self, index: int) -> np.ndarray:
        """Official label ids (H, W) uint8."""
        return read_label_ids(self.frames[index])


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
    train=lambda root, data, seed: CityscapesTraining(
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
    demo=Demo(
        write=demo.write_cityscapes,
        counts=demo.STREET_COUNTS,
        size=demo.STREET_SIZE,
        smallest=demo.SMALLEST_STREET,
        things="streets",
        experiment="cityscapes-enet",
    ),
)
