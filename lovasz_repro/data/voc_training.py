"""Pascal VOC as the network is trained and scored on it: all 21 classes, or one against the rest.

Training items are crops (Sec. 4.3), scaled, padded, cropped and mirrored as uint8 arrays, image and
labels together; on the batch and its device, BGR order and the mean subtracted follow. What is
drawn is a function of the seed and of the position of the image in the training. Scored items are
whole photographs at their own size. Labels of one category are made from the whole mask, before it
is cropped: whether a photograph shows the category decides what its void pixels become.
"""

import random
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from lovasz_repro.data.images import mirror, read_photograph
from lovasz_repro.data.sampling import Draw, mix
from lovasz_repro.data.voc import CLASSES, VOID, VocImage, list_images, read_labels, read_pair

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


SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Equally likely (DeepLab's data_transformer.cpp)."""
CROP = 321
"""Side of the square that the network is trained on, pixels (Sec. 4.2)."""
STRIDE = 8
"""Pixels between neighbours of DeepLab's output grid, at whose points the loss sees labels."""
REDRAWS = 20
"""Places that are drawn after the first, at most, until a crop shows a class."""
MEAN_BGR = (104.008, 116.669, 122.675)
"""Mean pixel that DeepLab's definition subtracts, B, G, R in 0..255."""
PADDING_RGB = (123, 117, 104)
"""The mean pixel in RGB order, rounded to 8 bits. ``to_caffe`` turns it into (-0.008, 0.331,
0.325), within half a grey level of the exact zeros that Caffe pads with."""


class Place(NamedTuple):
    """Where a crop is in a scaled image, and whether it is mirrored then."""

    size: tuple[int, int]
    """Height and width of the scaled image, pixels."""
    top: int
    left: int
    mirrored: bool = False

    def window(self, crop: int, step: int = 1) -> tuple[slice, slice]:
        """Rows and columns of a crop of this side, every ``step``-th of them."""
        rows, columns = (slice(start, start + crop, step) for start in (self.top, self.left))
        return rows, columns


def augment(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    seed: int,
    position: int,
    crop: int = CROP,
    wanted: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """What the network is shown of one training image.

    Args:
        image: RGB (H, W, 3) uint8.
        labels: (H, W) uint8, 255 = void.
        seed: seeds the whole training.
        position: how many images were drawn before, over the whole training (``Draw.position``).
        crop: side of what comes out, pixels.
        wanted: label that the crop should show, as ``shows_label`` says, where one of 21 draws
            does; None: any crop.

    Returns:
        RGB (crop, crop, 3) and labels (crop, crop), uint8; views, of the arguments or of others.
    """
    generator = np.random.default_rng(mix(seed ^ 0x5EED, position))
    shows = None if wanted is None else partial(shows_label, labels, wanted, crop)
    place = draw_place(labels.shape, crop, generator, shows)
    window = place.window(crop)
    image = resize_image(image, place.size)[window]
    labels = resize_labels(labels, place.size, window)
    image, labels = pad(image, labels, crop)
    return mirror(image, labels) if place.mirrored else (image, labels)


def draw_place(
    shape: tuple[int, ...],
    crop: int,
    generator: np.random.Generator,
    shows: Callable[[Place], bool] | None = None,
) -> Place:
    """Draw scale, place and mirror image of a crop of an image of ``shape`` (H, W).

    A place that ``shows`` refuses is drawn again, ``REDRAWS`` times at most; the scale stays, so
    that all are equally likely. A place that it accepts at once is the one drawn without it.
    """
    scale = SCALES[generator.integers(len(SCALES))]
    height, width = (max(1, int(side * scale)) for side in shape)
    for _ in range(1 + REDRAWS):
        top = int(generator.integers(max(height - crop, 0) + 1))
        left = int(generator.integers(max(width - crop, 0) + 1))
        place = Place((height, width), top, left)
        if shows is None or shows(place):
            break
    return place._replace(mirrored=bool(generator.integers(2)))


def shows_label(labels: np.ndarray, wanted: int, crop: int, place: Place) -> bool:
    """Whether a crop of labels (H, W) has ``wanted`` at a point of the output grid.

    A class between the points is in the crop, but not in the loss.
    """
    return bool((resize_labels(labels, place.size, place.window(crop, STRIDE)) == wanted).any())


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image (H, W, 3) uint8 to ``size`` = (height, width), bilinear.

    Interpolates between the four nearest pixels also where it shrinks, as OpenCV does in DeepLab's
    code and unlike Pillow. On 8-bit pixels PyTorch is many times as fast as on float32, within a
    grey level of it, and exactly the same with any vector instructions.
    """
    if image.shape[:2] == size:
        return image
    # Permuted as a batch, its strides are those of channels last, (3 H W, 1, 3 W, 3). An image that
    # is permuted first and made a batch then passes for channels first, which takes twice the time.
    batch = torch.from_numpy(np.array(image[None], order="C")).permute(0, 3, 1, 2)
    resized = functional.interpolate(batch, size, mode="bilinear")
    return resized.permute(0, 2, 3, 1)[0].numpy()


def resize_labels(
    labels: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> np.ndarray:
    """A window of labels (H, W) resized to ``size`` = (height, width): those of the nearest pixel.

    Only the window is computed. Of two pixels that are as near, the right or lower one counts.
    """
    rows, columns = (
        # the centre of pixel k of the new side, (k + 1/2) / new, in pixels of the old one
        (2 * np.arange(new)[part] + 1) * old // (2 * new)
        for old, new, part in zip(labels.shape, size, window, strict=True)
    )
    return labels[rows][:, columns]


def pad(image: np.ndarray, labels: np.ndarray, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad image (H, W, 3) and labels (H, W) at the right and bottom to at least ``crop`` a side.

    The image is continued with the mean colour, the labels with void.
    """
    height, width = labels.shape
    if height >= crop and width >= crop:
        return image, labels
    size = max(height, crop), max(width, crop)
    row = np.full((1, size[1], 3), PADDING_RGB, dtype=np.uint8)
    padded = np.repeat(row, size[0], axis=0)  # by rows, which is faster than by colours
    void = np.full(size, VOID, dtype=np.uint8)
    padded[:height, :width] = image
    void[:height, :width] = labels
    return padded, void


def to_caffe(
    images: torch.Tensor, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A batch of RGB images (B, 3, H, W), uint8, as the released weights take it.

    Returns:
        B, G, R minus ``MEAN_BGR``, (B, 3, H, W) in about -123..151; no division.
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    mean = torch.tensor(MEAN_BGR, device=images.device).view(3, 1, 1)
    return (images.flip(1) - mean).to(dtype, memory_format=memory_format)


SEED = 1234
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
    stream = random.Random(SEED)
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


@lru_cache(maxsize=4)
def presence_of(root: Path, split: str) -> np.ndarray:
    """Which image of a split contains which class, (N, C) bool, in the order of ``list_images``.

    Raises:
        UserError: a mask is missing or unreadable.
    """
    images = list_images(root, split, photographs=False)
    presence = np.zeros((len(images), len(CLASSES)), dtype=bool)
    for row, image in zip(presence, images, strict=True):
        counts = np.bincount(read_labels(image.mask).ravel(), minlength=256)
        row[:] = counts[: len(CLASSES)] > 0
    return presence
