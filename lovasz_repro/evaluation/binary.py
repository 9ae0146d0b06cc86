"""Scores of one category against the rest (Sec. 4.2): the rows of Table 1.

Each is a mean over images, of losses that are themselves per image, at the images' own size.
"""

from typing import Self

import torch
from torch import Tensor, distributed

from lovasz_repro.losses import binary_cross_entropy, hinge, lovasz_hinge, soft_iou
from lovasz_repro.metrics import binary_image_iou, sum_over_ranks

LOSSES = {
    "cross_entropy": binary_cross_entropy,
    "hinge": hinge,
    "lovasz_hinge": lovasz_hinge,
    "soft_iou": soft_iou,
}


class CategoryScoring:
    """Means over images, streaming; a subclass names them and gives their sums over a batch.

    ``totals`` is a float64 tensor on the CPU: each value added up over images, then their number.

    Args:
        category: class id of what is told from the rest.
        ignore_index: label of void pixels.
    """

    names: tuple[str, ...] = ()

    def __init__(self, category: int, ignore_index: int) -> None:
        self.category, self.ignore_index = category, ignore_index
        self.totals = torch.zeros(len(self.names) + 1, dtype=torch.float64)

    def sums(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """What a batch adds to each value, 0-dim."""
        raise NotImplementedError

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of B images, whose labels (B, H, W) are 0, 1 and void."""
        sums = [value.double().cpu() for value in self.sums(predictions, targets.long())]
        self.totals += torch.stack([*sums, torch.tensor(float(len(targets))).double()])

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The totals of all ranks, the same on each."""
        total = type(self)(self.category, self.ignore_index)
        total.totals = sum_over_ranks(self.totals, group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """``<split>/<name>`` for each name."""
        means = (self.totals[:-1] / self.totals[-1]).tolist()
        return {f"{split}/{name}": mean for name, mean in zip(self.names, means, strict=True)}

    def summary(self) -> str:
        """The scores in a few words."""
        scores = self.as_metrics("val")
        return ", ".join(f"{name.partition('/')[2]} {v:.4f}" for name, v in scores.items())


class BinaryScoring(CategoryScoring):
    """The losses and the image-IoU (0/0 = 1) of logits (B, H, W) of the category."""

    names = (*LOSSES, "image_iou")

    def sums(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Each loss is a mean over images; an image counts as foreground where its logit is > 0."""
        void = self.ignore_index
        losses = [
            loss(predictions, labels, per_image=True, ignore_index=void) * len(labels)
            for loss in LOSSES.values()
        ]
        return [*losses, binary_image_iou((predictions > 0).long(), labels, void).sum()]


class BasisScoring(CategoryScoring):
    """The image-IoU of a network of all classes, predicted classes (B, H, W), for the category."""

    names = ("image_iou",)

    def sums(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Every other class is background."""
        found = (predictions == self.category).long()
        return [binary_image_iou(found, labels, self.ignore_index).sum()]
