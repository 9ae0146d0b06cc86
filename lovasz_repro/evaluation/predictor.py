"""How a trained network is asked: for logits, classes or probabilities of images as they are
loaded.

Scores, examples, masks, files of predictions and the CRF all ask through a ``Predictor``, so that
what they see of a network is the same. ``multiscale.py`` has one that looks at several scales.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_repro.models.enet import Prepare, to_unit_range

Upsample = Literal["logits", "predictions"]
AtSize = Callable[[Tensor, Sequence[int]], Tensor]
"""Logits (B, C, h, w), size (H, W) -> logits (B, C, H, W)."""


def at_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) upsampled bilinearly to (H, W); as they are if equal."""
    if logits.shape[-2:] == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """How a network is fed and how its logits come to another size; by default ENet's way."""

    prepare: Prepare = to_unit_range
    to_size: AtSize = at_size


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
        return F.interpolate(small, size=tuple(size), mode="nearest-exact")[:, 0].long()

    @torch.inference_mode()
    def probabilities(self, images: Tensor, size: Sequence[int]) -> Tensor:
        """Softmax over the answers of the upsampled logits, (B, C - first_class, H, W)."""
        return self.kind.to_size(self.logits(images), size)[:, self.first_class :].softmax(dim=1)

    @torch.inference_mode()
    def category_logits(self, category: int, images: Tensor, size: Sequence[int]) -> Tensor:
        """Scores of one category, (B, H, W)."""
        return self.kind.to_size(self.logits(images)[:, category : category + 1], size)[:, 0]
