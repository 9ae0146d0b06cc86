"""How a trained network is asked: for logits, classes or probabilities of images as they are
loaded.

Scores, examples, masks, files of predictions and the CRF all ask through a ``Predictor``, so that
what they see of a network is the same. :class:`MultiScale` looks at several scales.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from lovasz_repro.config.schema import MultiScaleConfig
from lovasz_repro.data.examples import GRID_STRIDE
from lovasz_repro.models.deeplab import upsample
from lovasz_repro.models.enet import ENET_STRIDE, Prepare, to_unit_range

Upsample = Literal["logits", "predictions"]
AtSize = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, C, h, w), size (H, W) -> logits (B, C, H, W)."""


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) upsampled bilinearly to (H, W); as they are if equal."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How a network is fed and how its logits come to another size; by default ENet's way."""

    prepare: Prepare = to_unit_range
    to_size: AtSize = at_size


def on_the_stride(images: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """RGB (B, 3, h, w) in [0, 1], its last row and column repeated up to multiples of 8."""
    inputs = to_unit_range(images, channels_last, dtype)
    right, bottom = -images.shape[3] % ENET_STRIDE, -images.shape[2] % ENET_STRIDE
    if not right and not bottom:
        return inputs
    return functional.pad(inputs, (0, right, 0, bottom), mode="replicate")


def cut(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Without what belongs to repeated rows and columns."""
    return logits[..., : size[0], : size[1]]


OF_ANY_SIZE = {"enet": Feeding(prepare=on_the_stride, to_size=cut)}
"""How networks are fed with images of any size that in training see few sizes."""


@dataclass(frozen=True)
class Predictor:
    """A network, asked in evaluation mode and without a graph.

    Images are (B, ., h, w) as they are loaded, on any device; answers are on the network's. Sizes
    are (H, W) of what comes out, usually the labels' own, so that networks that saw images of
    different sizes are scored on the same pixels.
    """

    network: nn.Module
    kind: Feeding
    device: torch.device
    precision: str = "float32"
    """"bfloat16": autocast around the network; what comes out is float32 or better."""
    channels_last: bool = False
    """Memory format of the images."""
    first_class: int = 0
    """Classes below it are no answer."""
    upsample: Upsample = "logits"
    """Logits bilinearly before the arg max, or predictions (nearest) after it."""

    @property
    def bfloat16(self) -> bool:
        """Whether there is autocast around the network."""
        return self.precision == "bfloat16"

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """(B, C, h, w), at the size that the network gives."""
        inputs = self.inputs(images)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = self.network(inputs)
        return logits.float() if self.bfloat16 else logits

    def inputs(self, images: Tensor) -> Tensor:
        """What the network takes, which is in evaluation mode then."""
        if self.network.training:
            self.network.eval()
        dtype = next(self.network.parameters()).dtype
        images = images.to(self.device, non_blocking=True)
        return self.kind.prepare(images, self.channels_last, dtype)

    @torch.inference_mode()
    def classes(self, images: Tensor, size: Sequence[int]) -> Tensor:
        """The class with the highest score at every pixel, (B, H, W) int64."""
        logits = self.logits(images)[:, self.first_class :]
        if self.upsample == "logits":
            return self._highest(self._upsampled(logits, size))
        return self._nearest(logits, size)

    @torch.inference_mode()
    def classes_and_scores(self, images: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """`classes`, and the upsampled logits (B, C, H, W) of those that are an answer."""
        logits = self.logits(images)[:, self.first_class :]
        scores = self._upsampled(logits, size)
        by_logits = self.upsample == "logits"
        return self._highest(scores) if by_logits else self._nearest(logits, size), scores

    def _upsampled(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        if logits.device.type == "cpu":  # the classes of a pixel side by side are faster there
            logits = logits.contiguous(memory_format=torch.channels_last)
        return self.kind.to_size(logits, size)

    def _highest(self, scores: Tensor) -> Tensor:
        # max, not argmax: the same answer, several times faster on the CPU along dim 1
        return scores.max(dim=1).indices + self.first_class

    def _nearest(self, logits: Tensor, size: Sequence[int]) -> Tensor:
        classes = self._highest(logits)
        if classes.shape[-2:] == tuple(size):
            return classes
        small = classes[:, None].to(logits.dtype)  # interpolate takes no integers; these are exact
        return functional.interpolate(small, size=tuple(size), mode="nearest-exact")[:, 0].long()

    @torch.inference_mode()
    def probabilities(self, images: Tensor, size: Sequence[int]) -> Tensor:
        """Softmax over the answers of the upsampled logits, (B, C - first_class, H, W)."""
        return self.kind.to_size(self.logits(images), size)[:, self.first_class :].softmax(dim=1)

    @torch.inference_mode()
    def category_logits(self, category: int, images: Tensor, size: Sequence[int]) -> Tensor:
        """Scores of one category, (B, H, W)."""
        return self.kind.to_size(self.logits(images)[:, category : category + 1], size)[:, 0]


# ---- Several scales ------------------------------------------------------------------------------
#
# Scores of DeepLab fused over several scales of an image (Sec. 4.3).
#
# Images are continued to the right and below with the mean, to 513x513 as the DeepLab authors do,
# and shrunk. The scores of every scale are brought to the grid of scale 1, and fused there
# ("max-logits", DeepLab's way) or as probabilities of the pixels ("probabilities", the paper's).
#
#     scale   image     logits       All bilinear, corners on corners (Caffe's `Interp`).
#     1       513x513   65x65
#     0.75    385x385   49x49
#     0.5     257x257   33x33

FINEST = 8
"""Scales are multiples of 1/8, so that a common grid is never far."""


@dataclass(frozen=True)
class MultiScale(Predictor):
    """A predictor whose scores are fused over scales of the images.

    Its network takes 8 n + 1 pixels a side and gives logits (B, C, h, w) on every 8th, n + 1
    points a side, as DeepLab. One scale passes the network after the other, and what it gave is
    added up: the memory needed is that of scale 1 and a few maps of the size of the answer, however
    many scales there are. All but the network is float32.
    """

    multi_scale: MultiScaleConfig = field(default_factory=MultiScaleConfig)
    """Scales, in any order, how they are fused, and the least sides of continued images."""

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Fused scores (B, C, H, W) at the size of the images.

        Returns:
            "probabilities": the mean over scales of the softmax at the pixels, 1 over the classes;
            "max-logits": the largest logit at each point of the grid, then to the pixels.

        Raises:
            ValueError: a network with another grid.
        """
        scales, size = self.multi_scale.scales, images.shape[-2:]
        inputs = self.inputs(images)
        inputs = continue_to_step(inputs, common_step(scales), self.multi_scale.least_side)
        logits = scale_logits(self.network, inputs, scales, self.bfloat16)
        if self.multi_scale.fusion == "max-logits":
            return self.kind.to_size(reduce(torch.maximum, logits), size)
        probabilities = (self.kind.to_size(of_scale, size).softmax(dim=1) for of_scale in logits)
        return reduce(Tensor.add_, probabilities).div_(len(scales))

    @torch.inference_mode()
    def probabilities(self, images: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, H, W) float32; the size is that of the images."""
        scores = self.logits(images)
        return scores if self.multi_scale.fusion == "probabilities" else scores.softmax(dim=1)


def scale_logits(
    model: nn.Module, inputs: Tensor, scales: Sequence[float], bfloat16: bool = False
) -> Iterator[Tensor]:
    """Logits (B, C, h, w), float32, at each scale, brought to the grid of scale 1.

    Args:
        model: see ``MultiScale``.
        inputs: (B, 3, H, W), sides that are 8 n + 1 at every scale.
        scales: multiples of 1/8.
        bfloat16: autocast around the network.

    Raises:
        ValueError: a network with another grid.
    """
    grid = [(side - 1) // GRID_STRIDE + 1 for side in inputs.shape[-2:]]
    for scale in scales:
        size = [round(scale * (side - 1)) + 1 for side in inputs.shape[-2:]]
        points = [(side - 1) // GRID_STRIDE + 1 for side in size]
        scaled = inputs if scale == 1 else upsample(inputs, size)  # bilinear; also shrinks
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(scaled)
        if list(logits.shape[-2:]) != points:
            raise ValueError(f"images of {size[0]}x{size[1]} gave logits of "
                             f"{logits.shape[-2]}x{logits.shape[-1]}, not {points[0]}x{points[1]}: "
                             f"the network's grid is not every {GRID_STRIDE}th pixel")  # fmt: skip
        yield logits.float() if scale == 1 else upsample(logits.float(), grid)


def common_step(scales: Sequence[float]) -> int:
    """Pixels s so that sides of s n + 1 are 8 m + 1 at scale 1 and at every scale; 32 by default.

    Raises:
        ValueError: no scales, or one that is no positive multiple of 1/8.
    """
    if not scales or any(not 0 < scale < math.inf or scale * FINEST % 1 for scale in scales):
        raise ValueError(f"scales must be positive multiples of 1/{FINEST}, got {tuple(scales)}")
    return GRID_STRIDE * math.lcm(*(float(scale).as_integer_ratio()[1] for scale in scales))


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
