"""Scores of one category against the rest (Sec. 4.2): the rows of Table 1.

Each is a mean over images, of losses that are themselves per image, at the images' own size.
"""

from typing import Self

import torch
from torch import Tensor, distributed

from lovasz_repro.config.losses import BINARY_LOSSES, SCORE_TITLES, loss_function
from lovasz_repro.metrics import binary_image_iou, sum_over_ranks

TITLES = SCORE_TITLES | {
    "image_iou": "image-IoU",
    "image_iou_with_category": "of images with the class",
    "image_iou_without": "without it",
}


class CategoryScoring:
    """Means over images, streaming; a subclass names them and gives the values of a batch.

    ``totals`` is a (2, values) float64 tensor on the CPU: each value added up over the images that
    have it, and their number.

    Args:
        category: class id of what is told from the rest.
        ignore_index: label of void pixels.
    """

    names: tuple[str, ...] = ()

    def __init__(self, category: int, ignore_index: int) -> None:
        self.category, self.ignore_index = category, ignore_index
        self.totals = torch.zeros(2, len(self.names), dtype=torch.float64)

    def values(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Each value of those images of a batch that have it, (B,) or fewer."""
        raise NotImplementedError

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch of B images, whose labels (B, H, W) are 0, 1 and void."""
        values = self.values(predictions, targets.long())
        sums = torch.stack([of_images.double().sum() for of_images in values]).cpu()
        counts = [float(len(of_images)) for of_images in values]
        self.totals += torch.stack([sums, torch.tensor(counts, dtype=torch.float64)])

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The totals of all ranks, the same on each."""
        total = type(self)(self.category, self.ignore_index)
        total.totals = sum_over_ranks(self.totals, group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """``<split>/<name>`` for each name; NaN where no image has it."""
        means = (self.totals[0] / self.totals[1]).tolist()
        return {f"{split}/{name}": mean for name, mean in zip(self.names, means, strict=True)}

    def summary(self) -> str:
        """The scores in a few words: in per cent, under the names that they have in the tables."""
        scores = self.as_metrics("val")
        return ", ".join(f"{TITLES[name]} {scores[f'val/{name}']:.2%}" for name in self.names)


class BinaryScoring(CategoryScoring):
    """The losses and the image-IoU (0/0 = 1) of logits (B, H, W) of the category.

    The image-IoU is also given for the images that show the category and for those that do not,
    where it is 1 or 0.
    """

    names = (*SCORE_TITLES, "image_iou", "image_iou_with_category", "image_iou_without")

    def values(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Of each image; a pixel is predicted as foreground where its logit is above 0."""
        void, each = self.ignore_index, range(len(labels))
        losses = [
            torch.stack([loss(predictions[i : i + 1], labels[i : i + 1], ignore_index=void)
                         for i in each])
            for loss in map(loss_function, BINARY_LOSSES)
        ]  # fmt: skip
        iou = binary_image_iou((predictions > 0).long(), labels, void)
        shown = (labels == 1).flatten(1).any(1)
        return [*losses, iou, iou[shown], iou[~shown]]


class BasisScoring(CategoryScoring):
    """The image-IoU of a network of all classes, predicted classes (B, H, W), for the category."""

    names = ("image_iou",)

    def values(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Every other class is background."""
        found = (predictions == self.category).long()
        return [binary_image_iou(found, labels, self.ignore_index)]
