"""Photographs with labels, as networks are trained and scored on them."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from lovasz_repro.data.images import (
    ImagePair,
    check_same_size,
    mirror,
    read_photograph,
    resize_image,
    resize_mask,
)
from lovasz_repro.data.sampling import Draw, mix
from lovasz_repro.data.voc_crops import CROP, AugmentationName, augment

Example = tuple[torch.Tensor, torch.Tensor]
"""An image as the network takes it, (C, h, w), and its labels, (H, W) uint8."""


@dataclass(eq=False)
class LabelledImages(Dataset[Example]):
    """The images of a split; a subclass says how a network is shown them."""

    pairs: Sequence[ImagePair]
    """Photographs and masks."""
    read_labels: Callable[[Path], np.ndarray]
    """Labels (H, W) uint8 of a mask's file."""
    relabel: Callable[[np.ndarray], np.ndarray] | None = None
    """Makes of the labels of a whole image what is trained on, such as one class against the
    rest."""

    def __len__(self) -> int:
        return len(self.pairs)

    def name(self, index: int) -> str:
        """What the photograph is called."""
        return self.pairs[index].name

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8, at its own size."""
        return read_photograph(self.pairs[index].image)

    def label_ids(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of a whole mask, as they were before ``relabel``."""
        return self.read_labels(self.pairs[index].mask)

    def both(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Photograph (H, W, 3) and labels (H, W), both uint8 and at their own size.

        Raises:
            UserError: a file is missing or unreadable, the sizes of photograph and mask differ, or
                an id is unknown.
        """
        photograph, labels = self.photograph(index), self.label_ids(index)
        check_same_size(self.pairs[index].mask, labels, photograph)
        return photograph, self.relabel(labels) if self.relabel else labels


@dataclass(eq=False)
class CroppedImages(LabelledImages):
    """Crops of scaled, padded and mirrored photographs, with their labels.

    An item is an RGB image (3, crop, crop) uint8 and its labels (crop, crop) uint8, 255 = void and
    padding. It is a function of the seed and the ``Draw``; a plain index stands for the draw at
    position 0.
    """

    _: KW_ONLY
    crop: int = CROP
    """Side of what comes out, pixels."""
    seed: int
    """Of the augmentation."""
    augmentation: AugmentationName = "deeplab"
    """How images are scaled and padded."""
    flip: bool = True
    """Mirror an item with probability 1/2."""
    crop_with_class: bool = False
    """Draw the place of a crop again, up to ``REDRAWS`` times, until it shows ``Draw.wanted``."""

    def __getitem__(self, item: int | Draw) -> Example:
        draw = item if isinstance(item, Draw) else Draw(item, 0)
        photograph, labels = self.both(draw.image)
        image, shown = augment(
            photograph,
            labels,
            seed=self.seed,
            position=draw.position,
            crop=self.crop,
            wanted=draw.wanted if self.crop_with_class else None,
            how=self.augmentation,
            flip=self.flip,
        )
        return as_tensors(image, shown)

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of a whole image, whatever the category."""
        return self.label_ids(index)


@dataclass(eq=False)
class WholeImages(LabelledImages):
    """Whole photographs, (3, h, w) uint8, with their labels, (H, W) uint8."""

    _: KW_ONLY
    size: tuple[int, int] | None = None
    """Height and width of the photographs, bilinear; None: they keep their own."""
    own_labels: bool = True
    """Whether labels keep their own size; else they are resized too, nearest."""
    flip: bool = False
    """Mirror an item with probability 1/2."""
    seed: int = 0
    """Of the mirroring."""
    keep: bool = False
    """Whether decoded images stay in memory."""
    _kept: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False)

    def __getitem__(self, item: int | Draw) -> Example:
        draw = item if isinstance(item, Draw) else Draw(item, 0)
        image, labels = self._resized(draw.image)
        if self.flip and mix(self.seed ^ 0x5EED, draw.position) & 1:
            image, labels = mirror(image, labels)
        return as_tensors(image, labels)

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of an item, without its photograph, whatever the category."""
        return self._fitted(self.label_ids(index))

    def _resized(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self._kept:
            return self._kept[index]
        photograph, labels = self.both(index)
        image = resize_image(photograph, self.size) if self.size else photograph
        if self.keep:
            self._kept[index] = image, self._fitted(labels)
        return image, self._fitted(labels)

    def _fitted(self, labels: np.ndarray) -> np.ndarray:
        return labels if self.own_labels or not self.size else resize_mask(labels, self.size)


def as_tensors(image: np.ndarray, labels: np.ndarray) -> Example:
    """(H, W, 3) and (H, W) arrays as tensors of their own, (3, H, W) and (H, W)."""
    channels_first = np.array(image.transpose(2, 0, 1), order="C")
    return torch.from_numpy(channels_first), torch.from_numpy(np.array(labels, order="C"))
