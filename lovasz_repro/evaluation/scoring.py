"""Scores of a network on a labelled set, at the labels' own resolution, all streaming.

The set is never held: images pass through a scoring, one class per kind of data set. It takes
predictions and targets batch by batch, adds up over ranks, and names its numbers for the store.
"""

from collections.abc import Callable, Iterable
from copy import copy
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed

from lovasz_repro.config.tables import BINARY_LOSSES, SCORE_TITLES, loss_function
from lovasz_repro.data.classes import CITYSCAPES
from lovasz_repro.evaluation.cityscapes import CityscapesCounts
from lovasz_repro.evaluation.measures import Measures
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.metrics import (
    BatchIoU,
    ConfusionMatrix,
    ImageIoU,
    binary_image_iou,
    pair_counts,
    sum_over_ranks,
)

TITLES = SCORE_TITLES | {
    "image_iou": "image-IoU",
    "image_iou_with_category": "of images with the class",
    "image_iou_without": "without it",
}


_OF_LABEL_IDS = torch.full((256,), CITYSCAPES.ignore_index)
_OF_LABEL_IDS[list(CITYSCAPES.label_ids[CITYSCAPES.first_class :])] = torch.arange(
    CITYSCAPES.first_class, len(CITYSCAPES)
)


class Scoring(Protocol):
    """Counts over the images that were seen so far."""

    measures: Measures | None
    """What is measured beside; None: nothing."""

    def update(self, predictions: Tensor, targets: Any, scores: Tensor | None = None) -> None:
        """Add a batch: predicted classes (B, H, W), what the data set gives to compare, and the
        logits (B, C, H, W) of which the predictions are the highest, for ``measures``."""
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
        measures: what is measured beside; None: nothing.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        ignore_index: int | None,
        batch_size: int | None = None,
        measures: Measures | None = None,
    ) -> None:
        self.classes = classes
        self.batch_size = batch_size
        self.measures = measures
        self.confusion = ConfusionMatrix(len(classes), ignore_index)
        self.per_image = ImageIoU(len(classes), ignore_index)
        self.batches = BatchIoU(len(classes), ignore_index)

    def update(self, predictions: Tensor, targets: Tensor, scores: Tensor | None = None) -> None:
        """Add a batch: predictions and labels (B, H, W)."""
        confusion = self.confusion
        counts = pair_counts(predictions, targets, confusion.num_classes, confusion.ignore_index)
        counts = counts.cpu()  # once for all of them
        if self.measures:
            self.measures.update(predictions, targets, scores, counts)
        confusion.add(counts)
        self.per_image.add(counts)
        if self.batch_size:
            self.batches.add(counts)

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The counts of all ranks, on each."""
        total = copy(self)
        total.measures = self.measures and self.measures.over_ranks(group)
        total.confusion = self.confusion.over_ranks(group)
        total.per_image = self.per_image.over_ranks(group)
        total.batches = self.batches.over_ranks(group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """``<split>/dataset_miou``, ``/image_miou``, ``/batch_miou`` where it is computed, and
        ``/iou/<class>``; NaN where undefined."""
        metrics = self.measures.as_metrics(split) if self.measures else {}
        metrics |= {
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
        measures: what is measured beside, of classes; None: nothing.
    """

    def __init__(self, label_ids: np.ndarray, measures: Measures | None = None) -> None:
        self.label_ids = torch.from_numpy(label_ids)
        self.measures = measures
        self.counts = CityscapesCounts()

    def update(
        self, predictions: Tensor, targets: tuple[Tensor, Tensor], scores: Tensor | None = None
    ) -> None:
        """Add a batch: classes (B, H, W); label ids and instance ids (B, H, W)."""
        predicted_ids = self.label_ids.to(predictions.device)[predictions]
        self.counts.update(predicted_ids, *targets)
        if self.measures:
            labels = _OF_LABEL_IDS.to(predictions.device)[targets[0].long()]
            self.measures.update(predictions, labels, scores)

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The counts of all ranks, on each."""
        total = copy(self)
        total.measures = self.measures and self.measures.over_ranks(group)
        total.counts = self.counts.over_ranks(group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """See ``CityscapesScores.as_metrics``."""
        metrics = self.measures.as_metrics(split) if self.measures else {}
        return metrics | self.counts.scores().as_metrics(split)

    def summary(self) -> str:
        """The scores in a few words."""
        return self.counts.scores().summary()


class CategoryScoring:
    """Scores of one category against the rest (Sec. 4.2): means over images, each at its own size.

    A subclass names them and gives the values of a batch. ``totals`` is a (2, values) float64
    tensor on the CPU: each value added up over the images that have it, and their number.

    Args:
        category: class id of what is told from the rest.
        ignore_index: label of void pixels.
        measures: what is measured beside; None: nothing.
    """

    names: tuple[str, ...] = ()

    def __init__(self, category: int, ignore_index: int, measures: Measures | None = None) -> None:
        self.category, self.ignore_index, self.measures = category, ignore_index, measures
        self.totals = torch.zeros(2, len(self.names), dtype=torch.float64)

    def found(self, predictions: Tensor) -> Tensor:
        """Which pixels are predicted as the category, 0 and 1, (B, H, W)."""
        raise NotImplementedError

    def values(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Each value of those images of a batch that have it, (B,) or fewer."""
        raise NotImplementedError

    def update(self, predictions: Tensor, targets: Tensor, scores: Tensor | None = None) -> None:
        """Add a batch of B images, whose labels (B, H, W) are 0, 1 and void."""
        if self.measures:
            self.measures.update(self.found(predictions), targets)
        values = self.values(predictions, targets.long())
        sums = torch.stack([of_images.double().sum() for of_images in values]).cpu()
        counts = [float(len(of_images)) for of_images in values]
        self.totals += torch.stack([sums, torch.tensor(counts, dtype=torch.float64)])

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The totals of all ranks, the same on each."""
        total = copy(self)
        total.measures = self.measures and self.measures.over_ranks(group)
        total.totals = sum_over_ranks(self.totals, group)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """``<split>/<name>`` for each name; NaN where no image has it."""
        means = (self.totals[0] / self.totals[1]).tolist()
        beside = self.measures.as_metrics(split) if self.measures else {}
        return beside | {
            f"{split}/{name}": mean for name, mean in zip(self.names, means, strict=True)
        }

    def summary(self) -> str:
        """The scores in a few words: losses as numbers, IoUs in per cent."""
        scores = self.as_metrics("val")
        form = {name: ".4f" if name in SCORE_TITLES else ".2%" for name in self.names}
        return ", ".join(f"{TITLES[n]} {scores[f'val/{n}']:{form[n]}}" for n in self.names)


class BinaryScoring(CategoryScoring):
    """The rows of Table 1: losses per image and the image-IoU (0/0 = 1) of the category's logits
    (B, H, W).

    The image-IoU is also given for the images that show the category and for those that do not,
    where it is 1 or 0.
    """

    names = (*SCORE_TITLES, "image_iou", "image_iou_with_category", "image_iou_without")

    def found(self, predictions: Tensor) -> Tensor:
        """Where the logit is above 0."""
        return (predictions > 0).long()

    def values(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Of each image."""
        void, each = self.ignore_index, range(len(labels))
        losses = [
            torch.stack([loss(predictions[i : i + 1], labels[i : i + 1], ignore_index=void)
                         for i in each])
            for loss in map(loss_function, BINARY_LOSSES)
        ]  # fmt: skip
        iou = binary_image_iou(self.found(predictions), labels, void)
        shown = (labels == 1).flatten(1).any(1)
        return [*losses, iou, iou[shown], iou[~shown]]


class BasisScoring(CategoryScoring):
    """The image-IoU of a network of all classes, predicted classes (B, H, W), for the category."""

    names = ("image_iou",)

    def found(self, predictions: Tensor) -> Tensor:
        """Every other class is background."""
        return (predictions == self.category).long()

    def values(self, predictions: Tensor, labels: Tensor) -> list[Tensor]:
        """Of each image."""
        return [binary_image_iou(self.found(predictions), labels, self.ignore_index)]


AnyScoring = TypeVar("AnyScoring", bound=Scoring)


@torch.inference_mode()
def evaluate(
    predictor: Predictor,
    batches: Iterable[tuple[Tensor, Any]],
    scoring: AnyScoring,
    *,
    group: distributed.ProcessGroup | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> AnyScoring:
    """Score a network on every image of ``batches``, each once.

    Args:
        predictor: what is scored.
        batches: images (B, ., h, w) and targets: labels (B, H, W), or several such maps.
        scoring: takes classes, or the logits of its category; without counts yet.
        group: ranks that have one part of the set each; every rank gets the scores of the whole.
        advance: called with the number of images scored, after each batch.

    Raises:
        ValueError: there is no image.
    """
    seen = 0
    for images, targets in batches:
        size = (targets if isinstance(targets, Tensor) else targets[0]).shape[-2:]
        scores = None
        if isinstance(scoring, BinaryScoring):
            predictions = predictor.category_logits(scoring.category, images, size)
        elif scoring.measures:
            predictions, scores = predictor.classes_and_scores(images, size)
        else:
            predictions = predictor.classes(images, size)
        scoring.update(predictions, _on_device(targets, predictor.device), scores)
        seen += len(images)
        advance(len(images))
    if not seen and group is None:
        raise ValueError("nothing to evaluate: no images")
    return scoring.over_ranks(group) if group else scoring


def _on_device(targets: Any, device: torch.device) -> Any:
    if isinstance(targets, Tensor):
        return targets.to(device, non_blocking=True)
    return tuple(target.to(device, non_blocking=True) for target in targets)
