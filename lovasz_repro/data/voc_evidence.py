"""Noisy evidence of the classes, drawn from the masks of Pascal VOC in the place of photographs.

Sec. 4.1 of the paper draws a noisy score for each pixel of a circle. Here each point of DeepLab's
output grid, every 8th pixel, gets one such score per class: normal, with mean 1/2 for the class of
the pixel and -1/2 for the others. So the measures can be studied on the labels, the sizes and the
class frequencies of the whole data set without one photograph.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from lovasz_repro.data.classes import VOC_CLASSES, VOID
from lovasz_repro.data.examples import (
    AUGMENTATIONS,
    GRID_STRIDE,
    AugmentationName,
    CropPlace,
    draw_place,
    shows_label,
)
from lovasz_repro.data.sampling import Draw, mix
from lovasz_repro.data.voc import binary_labels, list_images, read_labels


@dataclass(frozen=True)
class Evidence:
    """What is drawn for a point of the grid."""

    noise: float = 1.0
    """Standard deviation; the mean is 0.5 for the class of the pixel, else and on void -0.5."""

    def draw(self, labels: np.ndarray, seed: int) -> torch.Tensor:
        """Scores of labels (h, w) uint8, (classes, h, w) float32."""
        generator = np.random.default_rng(seed)
        scores = generator.standard_normal((len(VOC_CLASSES), *labels.shape), np.float32)
        scores *= self.noise
        scores -= 0.5
        rows, columns = np.nonzero(labels != VOID)
        scores[labels[rows, columns], rows, columns] += 1
        return torch.from_numpy(scores)


@dataclass(eq=False)
class EvidenceTraining:
    """Training images as (evidence (classes, n, n) float32, labels (n, n) uint8) on the grid.

    Scaled, padded with void at the right and the bottom, cropped and mirrored as photographs are;
    the noise is new in each draw. All masks are held in memory (2 GB for the 10,582 of train_aug).
    """

    root: Path
    """See ``data/voc.py``; photographs may be missing."""
    crop: int
    """Side of the crop in pixels, 8 n - 7."""
    evidence: Evidence
    """How it is drawn."""
    _: KW_ONLY
    seed: int
    """Of the whole training."""
    category: int | None = None
    """Class id that is told from the rest; None: all classes."""
    split: str = "train_aug"
    """Or "trainval_aug"."""
    crop_with_class: bool = False
    """Draw the place of a crop again, up to ``REDRAWS`` times, until it shows ``Draw.wanted``."""
    augmentation: AugmentationName = "deeplab"
    """How masks are scaled."""

    def __post_init__(self) -> None:
        self.masks = masks_of(self.root, self.split)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
        generator = np.random.default_rng(mix(self.seed ^ 0x5EED, draw.position))
        labels = self.masks[draw.image]
        shows = None
        if self.crop_with_class and draw.wanted is not None:
            shows = partial(shows_label, labels, draw.wanted, self.crop, how=self.augmentation)
        seen_of = seen_by(labels, self.crop, generator, shows, self.augmentation)
        seen = seen_of(labels)
        evidence = self.evidence.draw(seen, mix(self.seed ^ 0xE71D, draw.position))
        if self.category is not None:
            seen = seen_of(binary_labels(labels, self.category))
        return evidence, torch.from_numpy(seen)

    def labels(self, index: int) -> np.ndarray:
        """The whole mask, (H, W) uint8."""
        return self.masks[index]


@dataclass(eq=False)
class EvidenceScored:
    """Images as (evidence (classes, h, w) on their grid, labels (H, W) uint8 at full size).

    The noise of an image is the same whenever it is drawn. For the fields see ``EvidenceTraining``.
    """

    root: Path
    split: str
    evidence: Evidence
    _: KW_ONLY
    category: int | None = None
    chosen: Sequence[int] | None = None
    """Indices in the split; None: all."""

    def __post_init__(self) -> None:
        self.masks = masks_of(self.root, self.split)
        self.names = [i.name for i in list_images(self.root, self.split, photographs=False)]
        self.indices = range(len(self.masks)) if self.chosen is None else self.chosen

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        index = self.indices[item]
        labels = self.masks[index]
        evidence = self.evidence.draw(grid_of(labels), mix(0xE7A1, index))
        if self.category is not None:
            labels = binary_labels(labels, self.category)
        return evidence, torch.from_numpy(labels)

    def name(self, item: int) -> str:
        """Like ``2007_000033``."""
        return self.names[self.indices[item]]


@lru_cache(maxsize=2)
def masks_of(root: Path, split: str) -> list[np.ndarray]:
    """Every mask of a split, (H, W) uint8, in the order of ``list_images``; kept.

    Raises:
        UserError: a mask is missing or unreadable.
    """
    images = list_images(root, split, photographs=False)
    return [np.array(read_labels(image.mask)) for image in images]  # writable, as PyTorch wants


def grid_of(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) at every 8th pixel; one point more, of void, where pixels are left over."""
    rows, columns = (-(-(side - 1) // GRID_STRIDE) * GRID_STRIDE + 1 for side in labels.shape)
    padded = np.full((rows, columns), VOID, dtype=np.uint8)
    padded[: labels.shape[0], : labels.shape[1]] = labels
    return np.ascontiguousarray(padded[::GRID_STRIDE, ::GRID_STRIDE])


def seen_by(
    labels: np.ndarray,
    crop: int,
    generator: np.random.Generator,
    shows: Callable[[CropPlace], bool] | None = None,
    how: AugmentationName = "deeplab",
) -> Callable[[np.ndarray], np.ndarray]:
    """Draw a crop of an image with these labels; what it has of labels (H, W) at its points.

    (n, n) uint8, void in the padding: every 8th pixel of what a photograph's crop would have.
    ``shows`` is that of ``draw_place``.
    """
    way = AUGMENTATIONS[how]
    place = draw_place(labels.shape, crop, generator, shows, way.draw_scale)

    def seen(labels: np.ndarray) -> np.ndarray:
        inside = way.resize_labels(labels, place.size, place.window(crop, GRID_STRIDE))
        points = np.full(2 * (-(-crop // GRID_STRIDE),), VOID, np.uint8)
        points[: inside.shape[0], : inside.shape[1]] = inside
        return np.ascontiguousarray(points[:, ::-1]) if place.mirrored else points

    return seen
