"""Transforms of an image and its mask together, with Pillow's resampling; and the last step.

Everything before the batch works on uint8 arrays; ``to_unit_range`` turns a batch into what the
network takes, on the device.
"""

import numpy as np
import torch
from PIL import Image


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an RGB image (H, W, 3) uint8 to ``size`` = (height, width), bilinear.

    Pillow widens the bilinear kernel when it shrinks, so nothing aliases. An image that already
    has the size is returned as it is.
    """
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label mask (H, W) uint8 to ``size`` = (height, width), nearest: no new ids."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def mirror(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip an image (H, W, 3) and its mask (H, W) left to right."""
    return image[:, ::-1], mask[:, ::-1]


def to_unit_range(
    images: torch.Tensor, channels_last: bool = False, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """A batch of images (B, 3, H, W), uint8 in [0, 255], as floating point in [0, 1].

    ENet takes RGB / 255 and nothing else (e-lab/ENet-training: train/opts.lua).
    """
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(dtype, memory_format=memory_format) / 255


def _resize(pixels: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))
