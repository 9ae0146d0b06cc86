"""Scores of DeepLab fused over several scales of an image (Sec. 4.3).

Images are continued to the right and below with the mean, to 513x513 as the DeepLab authors do,
and shrunk. The scores of every scale are brought to the grid of scale 1, and fused there
("max-logits", DeepLab's way) or as probabilities of the pixels ("probabilities", the paper's).

    scale   image     logits       All bilinear, corners on corners (Caffe's `Interp`).
    1       513x513   65x65
    0.75    385x385   49x49
    0.5     257x257   33x33
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lovasz_repro.evaluation.evaluate import AtSize, Prepare
from lovasz_repro.models.deeplab import STRIDE, upsample

Fusion = Literal["probabilities", "max-logits"]

SCALES = (1.0, 0.75, 0.5)
"""Sec. 4.3."""
LEAST_SIDE = 513
"""Pixels to which smaller images are continued (crop_size of the DeepLab
authors' data/test.prototxt, in isht7/pytorch-deeplab-resnet); no VOC photograph has more."""
FINEST = 8
"""Scales are multiples of 1/8, so that a common grid is never far."""


@torch.inference_mode()
def fused_scores(
    model: nn.Module,
    images: Tensor,
    *,
    prepare: Prepare,
    to_size: AtSize,
    scales: Sequence[float] = SCALES,
    fusion: Fusion = "probabilities",
    least_side: int = LEAST_SIDE,
    bfloat16: bool = False,
    channels_last: bool = False,
) -> Tensor:
    """Scores of every pixel, fused over scales of the images.

    One scale passes the network after the other, and what it gave is added up: the memory needed
    is that of scale 1 and a few maps of the size of the answer, however many scales there are.

    Args:
        model: in evaluation mode; 8 n + 1 pixels a side -> logits (B, C, h, w) on every 8th,
            n + 1 points a side, as DeepLab.
        images: RGB (B, 3, H, W) uint8, on the device of the model.
        prepare: what the network takes at scale 1, in which 0 is the mean colour; may continue
            images to 8 n + 1 pixels a side (``caffe_on_the_grid``).
        to_size: logits on the grid of scale 1 -> logits (B, C, H, W) (``from_the_grid``).
        scales: multiples of 1/8; the order does not matter.
        fusion: "probabilities": the mean over scales of the softmax at the pixels;
            "max-logits": the largest logit at each point of the grid, then to the pixels.
        least_side: the least height and width, in pixels, to which images are continued.
        bfloat16: autocast around the network; all else is float32.
        channels_last: memory format of the images.

    Returns:
        (B, C, H, W): probabilities that sum to 1 over the classes, or logits.

    Raises:
        ValueError: no scales, a scale that is no multiple of 1/8, an unknown fusion, or a network
            with another grid.
    """
    if fusion not in ("probabilities", "max-logits"):
        raise ValueError(f"no fusion {fusion!r}; there are 'probabilities' and 'max-logits'")
    step, size = common_step(scales), images.shape[-2:]
    inputs = prepare(images, channels_last, next(model.parameters()).dtype)
    inputs = continue_to_step(inputs, step, least_side)
    logits = scale_logits(model, inputs, scales, bfloat16)
    if fusion == "max-logits":
        return to_size(reduce(torch.maximum, logits), size)
    probabilities = (to_size(of_scale, size).softmax(dim=1) for of_scale in logits)
    return reduce(Tensor.add_, probabilities).div_(len(scales))


class MultiScale(nn.Module):
    """A network that answers with fused scores at the size of the images: for ``evaluate``.

    Its images are as they are loaded (``as_loaded``); its answers need no upsampling.

    Args:
        network: at one scale.
        scores: (network, images) -> scores, ``fused_scores`` with its options.
    """

    def __init__(self, network: nn.Module, scores: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.scores = scores

    def forward(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) uint8 to scores (B, C, H, W)."""
        return self.scores(self.network, images)


def as_loaded(images: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """The ``prepare`` of ``MultiScale``, which prepares images by itself."""
    return images


def scale_logits(
    model: nn.Module, inputs: Tensor, scales: Sequence[float], bfloat16: bool = False
) -> Iterator[Tensor]:
    """Logits (B, C, h, w), float32, at each scale, brought to the grid of scale 1.

    Args:
        model: see ``fused_scores``.
        inputs: (B, 3, H, W), sides that are 8 n + 1 at every scale.
        scales: see ``fused_scores``.
        bfloat16: autocast around the network.

    Raises:
        ValueError: a network with another grid.
    """
    grid = [(side - 1) // STRIDE + 1 for side in inputs.shape[-2:]]
    for scale in scales:
        size = [round(scale * (side - 1)) + 1 for side in inputs.shape[-2:]]
        points = [(side - 1) // STRIDE + 1 for side in size]
        scaled = inputs if scale == 1 else upsample(inputs, size)  # bilinear; also shrinks
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(scaled)
        if list(logits.shape[-2:]) != points:
            raise ValueError(f"images of {size[0]}x{size[1]} gave logits of "
                             f"{logits.shape[-2]}x{logits.shape[-1]}, not {points[0]}x{points[1]}: "
                             f"the network's grid is not every {STRIDE}th pixel")  # fmt: skip
        yield logits.float() if scale == 1 else upsample(logits.float(), grid)


def common_step(scales: Sequence[float]) -> int:
    """Pixels s so that sides of s n + 1 are 8 m + 1 at scale 1 and at every scale; 32 by default.

    Raises:
        ValueError: no scales, or one that is no positive multiple of 1/8.
    """
    if not scales or any(not 0 < scale < math.inf or scale * FINEST % 1 for scale in scales):
        raise ValueError(f"scales must be positive multiples of 1/{FINEST}, got {tuple(scales)}")
    return STRIDE * math.lcm(*(float(scale).as_integer_ratio()[1] for scale in scales))


def continue_to_step(inputs: Tensor, step: int, least_side: int) -> Tensor:
    """Continue (B, 3, H, W) with zeros to the right and below.

    Returns:
        The least sides of ``step`` n + 1 pixels that are ``least_side`` or more: 1 to 513 are 513
        by default, 514 to 545 are 545.
    """
    needed = (max(side, least_side) for side in inputs.shape[-2:])
    height, width = (side + -(side - 1) % step for side in needed)
    pad = (0, width - inputs.shape[-1], 0, height - inputs.shape[-2])
    return functional.pad(inputs, pad) if any(pad) else inputs
