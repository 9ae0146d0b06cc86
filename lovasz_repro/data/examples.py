"""Photographs with labels, as networks are trained and scored on them."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import Dataset

from lovasz_repro.data.classes import VOID
from lovasz_repro.data.images import (
    ImagePair,
    check_same_size,
    mirror,
    read_photograph,
    resize_image,
    resize_mask,
)
from lovasz_repro.data.sampling import Draw, mix

# ---- Crops of Pascal VOC -------------------------------------------------------------------------
#
# How training images are scaled, padded, cropped and mirrored. ``AUGMENTATIONS`` has the ways: that
# of DeepLab's authors, which Sec. 4.3 follows (data_transformer.cpp), and that of the paper's
# authors for Sec. 4.2 (bermanmaxim/jaccardSegment: compose.py). All on uint8 arrays, image and
# labels together; on the batch and its device, BGR order and the mean subtracted follow
# (``to_caffe``). What is drawn is a function of the seed and of the position of the image in the
# training.

CROP_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Equally likely (DeepLab's data_transformer.cpp)."""
LEAST_SCALE, LARGEST_SCALE = 0.5, 1.5
"""Between which any is as likely (jaccardSegment)."""
CROP = 321
"""Side of the square that the network is trained on, pixels (Sec. 4.2)."""
GRID_STRIDE = 8
"""Pixels between neighbours of DeepLab's output grid, at whose points the loss sees labels."""
REDRAWS = 20
"""Places that are drawn after the first, at most, until a crop shows a class."""
MEAN_BGR = (104.008, 116.669, 122.675)
"""Mean pixel that DeepLab's definition subtracts, B, G, R in 0..255."""
PADDING_RGB = (123, 117, 104)
"""The mean pixel in RGB order, rounded to 8 bits. ``to_caffe`` turns it into (-0.008, 0.331,
0.325), within half a grey level of the exact zeros that Caffe pads with."""


class CropPlace(NamedTuple):
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
    how: "AugmentationName" = "deeplab",
    flip: bool = True,
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
        how: see ``AUGMENTATIONS``.
        flip: mirror it with probability 1/2.

    Returns:
        RGB (crop, crop, 3) and labels (crop, crop), uint8; views, of the arguments or of others.
    """
    way, generator = AUGMENTATIONS[how], np.random.default_rng(mix(seed ^ 0x5EED, position))
    shows = None if wanted is None else partial(shows_label, labels, wanted, crop, how=how)
    place = draw_place(labels.shape, crop, generator, shows, way.draw_scale)
    window = place.window(crop)
    image = way.resize_image(image, place.size)[window]
    labels = way.resize_labels(labels, place.size, window)
    image, labels = way.pad(image, labels, crop)
    return mirror(image, labels) if place.mirrored and flip else (image, labels)


def one_of_five(generator: np.random.Generator) -> float:
    """A scale as DeepLab's authors draw it."""
    return CROP_SCALES[generator.integers(len(CROP_SCALES))]


def any_scale(generator: np.random.Generator) -> float:
    """A scale as the paper's authors draw it for Sec. 4.2."""
    return generator.uniform(LEAST_SCALE, LARGEST_SCALE)


def draw_place(
    shape: tuple[int, ...],
    crop: int,
    generator: np.random.Generator,
    shows: Callable[[CropPlace], bool] | None = None,
    draw_scale: Callable[[np.random.Generator], float] = one_of_five,
) -> CropPlace:
    """Draw scale, place and mirror image of a crop of an image of ``shape`` (H, W).

    A place that ``shows`` refuses is drawn again, ``REDRAWS`` times at most; the scale stays, so
    that all are equally likely. A place that it accepts at once is the one drawn without it.
    """
    scale = draw_scale(generator)
    height, width = (max(1, int(side * scale)) for side in shape)
    for _ in range(1 + REDRAWS):
        top = int(generator.integers(max(height - crop, 0) + 1))
        left = int(generator.integers(max(width - crop, 0) + 1))
        place = CropPlace((height, width), top, left)
        if shows is None or shows(place):
            break
    return place._replace(mirrored=bool(generator.integers(2)))


def shows_label(
    labels: np.ndarray,
    wanted: int,
    crop: int,
    place: CropPlace,
    *,
    how: "AugmentationName" = "deeplab",
) -> bool:
    """Whether a crop of labels (H, W) has ``wanted`` at a point of the output grid.

    A class between the points is in the crop, but not in the loss.
    """
    points = place.window(crop, GRID_STRIDE)
    return bool((AUGMENTATIONS[how].resize_labels(labels, place.size, points) == wanted).any())


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
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
    """A window of labels (H, W) resized to ``size`` = (height, width), as OpenCV's INTER_NEAREST.

    Pixel k of the new side is pixel floor(k old / new) of the old one, in OpenCV's arithmetic: at
    other scales than 1 that is up to half a pixel from the bilinear image. Only the window is
    computed.
    """
    rows, columns = (
        np.minimum(np.floor(np.arange(new)[part] * (1 / (new / old))).astype(np.intp), old - 1)
        for old, new, part in zip(labels.shape, size, window, strict=True)
    )
    return labels[rows][:, columns]


def resize_labels_by_centres(
    labels: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]
) -> np.ndarray:
    """The same with the labels of the nearest pixel; of two as near, the right or lower one."""
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


def pad_around(image: np.ndarray, labels: np.ndarray, crop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad image (H, W, 3) and labels (H, W) on all sides alike to at least ``crop`` a side.

    The image is continued in black, of which the mean is still to be subtracted, the labels with
    void. Of an odd number of pixels the right and the bottom have one more.
    """
    missing = [max(crop - side, 0) for side in labels.shape]
    around = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
    return np.pad(image, [*around, (0, 0)]), np.pad(labels, around, constant_values=VOID)


AugmentationName = Literal["deeplab", "jaccard-segment", "deeplab-centres"]


@dataclass(frozen=True)
class Augmentation:
    """How an image is scaled and padded."""

    draw_scale: Callable[[np.random.Generator], float] = one_of_five
    resize_image: Callable[[np.ndarray, tuple[int, int]], np.ndarray] = resize_bilinear
    resize_labels: Callable[[np.ndarray, tuple[int, int], tuple[slice, slice]], np.ndarray] = (
        resize_labels
    )
    pad: Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]] = pad


AUGMENTATIONS: dict[AugmentationName, Augmentation] = {
    "deeplab": Augmentation(),
    "jaccard-segment": Augmentation(
        draw_scale=any_scale,
        resize_image=resize_image,
        resize_labels=lambda labels, size, window: resize_mask(labels, size)[window],
        pad=pad_around,
    ),
    "deeplab-centres": Augmentation(resize_labels=resize_labels_by_centres),
}
"""Setting ``data.augmentation`` -> how; the last is what DeepLab's was taken for before."""


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


# ---- Photographs with labels ---------------------------------------------------------------------

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
