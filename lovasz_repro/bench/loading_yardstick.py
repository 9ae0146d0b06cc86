"""What the loader of Pascal VOC is compared with: the same in plain Pillow, as most ports have it.

Open, resize the whole photograph, pad, crop, mirror, convert to float and subtract the mean, all in
the loader. Pillow widens its kernel where it shrinks, so photographs look slightly different.
"""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc import VOID, VocImage, read_sbd
from lovasz_repro.data.voc_training import MEAN_BGR, PADDING_RGB, SCALES


class PlainVoc(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Crops as DeepLab-v2 takes them; nothing of it is checked, and labels are of all classes.

    An item is B, G, R minus the mean, (3, crop, crop) float32, and its labels (crop, crop) int64.

    Args:
        images: what ``list_images`` gives.
        crop: side of what comes out, pixels.
    """

    def __init__(self, images: Sequence[VocImage], crop: int) -> None:
        self.images = images
        self.crop = crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: int | Draw) -> tuple[torch.Tensor, torch.Tensor]:
        files = self.images[item.image if isinstance(item, Draw) else item]
        with Image.open(files.image) as opened:
            image: Image.Image = opened.convert("RGB")
        mask = open_mask(files.mask)
        scale = random.choice(SCALES)
        size = int(image.width * scale), int(image.height * scale)
        image = image.resize(size, Image.Resampling.BILINEAR)
        mask = mask.resize(size, Image.Resampling.NEAREST)
        border = (0, 0, max(self.crop - image.width, 0), max(self.crop - image.height, 0))
        if any(border):
            image = ImageOps.expand(image, border, PADDING_RGB)
            mask = ImageOps.expand(mask, border, VOID)
        left = random.randint(0, image.width - self.crop)
        top = random.randint(0, image.height - self.crop)
        window = (left, top, left + self.crop, top + self.crop)
        image, mask = image.crop(window), mask.crop(window)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.array(image, dtype=np.float32)[:, :, ::-1] - np.array(MEAN_BGR, np.float32)
        channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return torch.from_numpy(channels_first), torch.from_numpy(np.array(mask, dtype=np.int64))


def open_mask(file: Path) -> Image.Image:
    """A mask of VOC, or of SBD, which Pillow cannot read."""
    if file.suffix == ".mat":
        return Image.fromarray(read_sbd(file))
    with Image.open(file) as opened:
        opened.load()
        return opened
