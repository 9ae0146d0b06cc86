"""Pascal VOC as the network is trained and scored on it: all 21 classes, or one against the rest.

Training items are crops (``voc_augmentation``), scored ones are whole photographs at their own
size. Labels of one category are made from the whole mask, before it is cropped: whether a
photograph shows the category decides what its void pixels become.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc import VOID, VocImage, read_labels, read_pair
from lovasz_repro.data.voc_augmentation import augment

Example = tuple[torch.Tensor, torch.Tensor]


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
    ) -> None:
        self.images = images
        self.crop = crop
        self.seed = seed
        self.category = category
        self.crop_with_class = crop_with_class

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


def binary_labels(labels: np.ndarray, category: int) -> np.ndarray:
    """One class against the rest, as the paper's binary experiments have it
    (bermanmaxim/jaccardSegment: datasets/).

    Args:
        labels: the whole mask of a photograph, (H, W) uint8, class ids 0..20 and 255 = void.
        category: class id.

    Returns:
        (H, W) uint8: 1 where the category is, 0 elsewhere, 255 where void. All 0 if the photograph
        does not show the category, void pixels too.
    """
    foreground = labels == category
    binary = foreground.astype(np.uint8)
    if foreground.any():
        binary[labels == VOID] = VOID
    return binary


def read_example(image: VocImage, category: int | None) -> tuple[np.ndarray, np.ndarray]:
    """A photograph (H, W, 3) and its labels (H, W), both uint8.

    Raises:
        UserError: as ``read_pair``.
    """
    photograph, labels = read_pair(image)
    return photograph, labels if category is None else binary_labels(labels, category)


def as_tensors(image: np.ndarray, labels: np.ndarray) -> Example:
    """(H, W, 3) and (H, W) arrays as tensors of their own, (3, H, W) and (H, W)."""
    channels_first = np.array(image.transpose(2, 0, 1), order="C")
    return torch.from_numpy(channels_first), torch.from_numpy(np.array(labels, order="C"))
