"""What is counted while a network is scored: one class per kind of data set, all streaming.

A scoring takes predictions and targets batch by batch, adds up over ranks, and names its numbers
for the store. ``<split>/dataset_miou`` is in each of them; it chooses the best snapshot.
"""

from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor, distributed

from lovasz_repro.evaluation.cityscapes import CityscapesCounts
from lovasz_repro.metrics import BatchIoU, ConfusionMatrix, ImageIoU, pair_counts


class Scoring(Protocol):
    """Counts over the images that were seen so far."""

    def update(self, predictions: Tensor, targets: Any) -> None:
        """Add a batch: predicted classes (B, H, W) and what the data set gives to compare."""
        ...

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The counts of all ranks, on each."""
        ...

    def as_metrics(self, split: str) -> dict[str, float]:
        """Scores in [0, 1] by their names in the store, ``<split>/...``."""
        ...

    def summary(self) -> str:
        """The scores in a few words."""
        ...


class SegmentationScoring:
    """Dataset-mIoU (Eq. 14), image-mIoU (Eq. 3), the IoU of each class, and the batch-mIoU over
    present classes (Sec. 3.1); targets are labels.

    Args:
        classes: names.
        ignore_index: label of void.
        batch_size: images of a batch of the batch-mIoU; None: it is not computed.
    """

    def __init__(
        self, classes: tuple[str, ...], ignore_index: int | None, batch_size: int | None = None
    ) -> None:
        self.classes = classes
        self.batch_size = batch_size
        self.confusion = ConfusionMatrix(len(classes), ignore_index)
        self.per_image = ImageIoU(len(classes), ignore_index)
        self.batches = BatchIoU(len(classes), ignore_index)

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Add a batch: predictions and labels (B, H, W)."""
        confusion = self.confusion
        counts = pair_counts(predictions, targets, confusion.num_classes, confusion.ignore_index)
        counts = counts.cpu()  # once for all of them
        confusion.add(counts)
        self.per_image.add(counts)
        if self.batch_size:
            self.batches.add(counts)

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The counts of all ranks, on each."""
        total = type(self)(self.classes, self.confusion.ignore_index, self.batch_size)
        total.confusion = self.confusion.over_ranks(group)
        total.per_image = self.per_image.over_ranks(group)
        total.batches = self.batches.over_ranks(group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """``<split>/dataset_miou``, ``/image_miou``, ``/batch_miou`` where it is computed, and
        ``/iou/<class>``; NaN where undefined."""
        metrics = {
            f"{split}/dataset_miou": self.confusion.mean_iou(),
            f"{split}/image_miou": self.per_image.mean_iou(),
        }
        if self.batch_size:
            metrics[f"{split}/batch_miou"] = self.batches.mean_iou(self.batch_size)
        named = zip(self.classes, self.confusion.iou().tolist(), strict=True)
        return metrics | {f"{split}/iou/{name}": iou for name, iou in named}

    def summary(self) -> str:
        """The scores in a few words."""
        dataset, image = self.confusion.mean_iou(), self.per_image.mean_iou()
        return f"mIoU {dataset:.2%}, image-mIoU {image:.2%}"


class CityscapesScoring:
    """The four official Cityscapes scores (Table 4); targets are label ids and instance ids.

    Args:
        label_ids: official label id of each class that is predicted, (C,).
    """

    def __init__(self, label_ids: np.ndarray) -> None:
        self.label_ids = torch.from_numpy(label_ids)
        self.counts = CityscapesCounts()

    def update(self, predictions: Tensor, targets: tuple[Tensor, Tensor]) -> None:
        """Add a batch: classes (B, H, W); label ids and instance ids (B, H, W)."""
        predicted_ids = self.label_ids.to(predictions.device)[predictions]
        self.counts.update(predicted_ids, *targets)

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The counts of all ranks, on each."""
        total = type(self)(self.label_ids.numpy())
        total.counts = self.counts.over_ranks(group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """See ``CityscapesScores.as_metrics``."""
        return self.counts.scores().as_metrics(split)

    def summary(self) -> str:
        """The scores in a few words."""
        return self.counts.scores().summary()
