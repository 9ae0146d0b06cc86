"""What the paper says of masks beside their mIoU, as numbers that a run logs.

The paper speaks of gaps that are filled and small objects that are recovered (Sec. 4.2), of classes
predicted in images that lack them and of classes never found (Sec. 4.3, Fig. 7), of probabilities
that are not calibrated (Sec. 4.3), of finer details (Sec. 4.4) and of small objects that gain most
(Sec. 5). It measures none of these. Beside them stand the fine-grained mIoUs of Wang et al.
("Revisiting Evaluation Metrics for Semantic Segmentation", NeurIPS 2023), which say what the
image-mIoU (Eq. 3) is where absent classes do not count as 1.

All of them are sums or per-image counts, so that they add up over batches and ranks.
"""

from collections.abc import Sequence
from copy import copy
from typing import Self

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, distributed
from torch.nn import functional as F

from lovasz_repro.metrics import BatchIoU, sum_over_ranks

BINS = 15
"""Equal bins of confidence, as Guo et al. ("On Calibration of Modern Neural Networks", 2017)."""
BAND = 3
"""Pixels on each side of a boundary of the labels that count as detail."""
SIZES = {"small": (1, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}
"""Areas in pixels, from and below: those of COCO (pycocotools, cocoeval.py)."""
WORST = 0.05
"""Share of the images in the worst-case mIoUs."""
TOUCHING = np.ones((3, 3))
"""Pixels of an object touch at sides and corners, those of a hole at sides only."""


class Sums:
    """Sums (N,) float64 over what was seen, on the CPU; a measure says what they are."""

    def __init__(self, size: int) -> None:
        self.sums = torch.zeros(size, dtype=torch.float64, device="cpu")

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The sums of all ranks, the same on each."""
        total = copy(self)
        total.sums = sum_over_ranks(self.sums, group)
        return total


class Calibration(Sums):
    """Cross-entropy (Eq. 1) and expected calibration error of class scores.

    The error is the mean over pixels of |accuracy - confidence| of their bin, where confidence is
    the largest probability (Guo et al. 2017, Eq. 3); 0 is calibrated, 1 the worst.

    Args:
        ignore_index: label of pixels that do not count.
        first_class: class of the first score.
    """

    def __init__(self, ignore_index: int | None, first_class: int = 0) -> None:
        super().__init__(1 + 3 * BINS)
        self.ignore_index, self.first_class = ignore_index, first_class

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add scores (B, C, H, W) before the softmax and labels (B, H, W)."""
        void = self.ignore_index
        valid = torch.ones_like(labels, dtype=torch.bool) if void is None else labels != void
        logs = F.log_softmax(scores.movedim(1, -1)[valid].float(), dim=-1)
        wanted = labels[valid].long() - self.first_class
        confidence, found = logs.max(dim=-1)
        confidence, right = confidence.exp().double(), (found == wanted).double()
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        per_bin = [torch.bincount(bins, weights, minlength=BINS)
                   for weights in (torch.ones_like(right), right, confidence)]  # fmt: skip
        loss = -logs.gather(-1, wanted.unsqueeze(-1)).double().sum().reshape(1)
        self.sums += torch.cat([loss, *per_bin]).cpu()

    def metrics(self) -> dict[str, float]:
        """``cross_entropy`` per pixel in nats, ``calibration_error`` in [0, 1]; NaN of nothing."""
        count, right, confidence = self.sums[1:].view(3, BINS)
        pixels = count.sum()
        return {
            "cross_entropy": (self.sums[0] / pixels).item(),
            "calibration_error": ((right - confidence).abs().sum() / pixels).item(),
        }


class Band(Sums):
    """Mean IoU of the pixels within ``BAND`` pixels of a boundary of the labels: the "trimap" of
    Kohli et al. (2009), by which DeepLab measured detail. Void has boundaries too.

    Args:
        num_classes: C.
        ignore_index: label of pixels that do not count.
    """

    def __init__(self, num_classes: int, ignore_index: int | None) -> None:
        super().__init__(3 * num_classes)
        self.num_classes, self.ignore_index = num_classes, ignore_index

    def update(self, predictions: np.ndarray, labels: np.ndarray) -> None:
        """Add an image: classes (H, W) and labels (H, W)."""
        counted = near_boundary(labels, BAND)
        if self.ignore_index is not None:
            counted &= labels != self.ignore_index
        found, wanted = predictions[counted], labels[counted]
        areas = [np.bincount(of, minlength=self.num_classes)
                 for of in (wanted, found, wanted[wanted == found])]  # fmt: skip
        self.sums += torch.from_numpy(np.concatenate(areas))

    def metrics(self) -> dict[str, float]:
        """``boundary_miou`` in [0, 1], over the classes that the labels have there; NaN of none.

        A class that is only predicted has no boundary to be found. It takes its pixels from others,
        and would weigh as much as they do, if all it has is one of them.
        """
        wanted, found, both = self.sums.view(3, -1)
        iou = both / (wanted + found - both)
        return {"boundary_miou": iou[wanted > 0].mean().item()}


class Objects(Sums):
    """Holes in what is predicted, and how much of each labelled object is found, by its size.

    An object is a connected part of one class. A hole is a part of an image that one object of the
    predictions surrounds and that is not of its class.

    Args:
        classes: those that have objects; VOC's background has none.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        super().__init__(2 + 2 * len(SIZES))
        self.classes = tuple(classes)

    def update(self, predictions: np.ndarray, labels: np.ndarray) -> None:
        """Add an image: classes (H, W) and labels (H, W)."""
        seen = self.sums.view(-1, 2)
        for label in self.classes:
            found = predictions == label
            if found.any():
                seen[0] += torch.tensor(objects_and_holes(found[_box(found)]))
            wanted = labels == label
            if not wanted.any():
                continue
            box = _box(wanted)
            objects, count = ndimage.label(wanted[box], TOUCHING)
            areas = np.bincount(objects.ravel(), minlength=count + 1)[1:]
            parts = np.bincount(objects[found[box]], minlength=count + 1)[1:]
            for row, (least, most) in enumerate(SIZES.values(), start=1):
                of_size = (least <= areas) & (areas < most)
                recall = (parts[of_size] / areas[of_size]).sum()
                seen[row] += torch.tensor([of_size.sum(), recall])

    def metrics(self) -> dict[str, float]:
        """``holes_per_object`` of the predictions and ``recall_by_size/<size>``, the mean over
        objects of the share of their pixels that is found; NaN where there is no object."""
        (objects, holes), *of_size = self.sums.view(-1, 2)
        means = {name: (recall / count).item()
                 for name, (count, recall) in zip(SIZES, of_size, strict=True)}  # fmt: skip
        return {"holes_per_object": (holes / objects).item()} | {
            f"recall_by_size/{name}": mean for name, mean in means.items()
        }


class Measures:
    """All of them for one split.

    Args:
        num_classes: C.
        ignore_index: label of pixels that do not count.
        objects: classes that have objects.
        first_class: class of the first score.
        uncounted: a class that is no class of an image: the background of a category.
        shapes: whether ``Band`` and ``Objects`` are among them; these cost most.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None,
        objects: Sequence[int],
        *,
        first_class: int = 0,
        uncounted: int | None = None,
        shapes: bool = False,
    ) -> None:
        self.uncounted = uncounted
        self.images = BatchIoU(num_classes, ignore_index)
        self.calibration = Calibration(ignore_index, first_class)
        self.shapes: tuple[Band | Objects, ...] = ()
        if shapes:
            self.shapes = Band(num_classes, ignore_index), Objects(objects)

    def update(
        self,
        predictions: Tensor,
        labels: Tensor,
        scores: Tensor | None = None,
        counts: Tensor | None = None,
    ) -> None:
        """Add a batch: classes and labels (B, H, W), scores (B, C, H, W) where there are, and what
        `pair_counts` makes of it where that is known."""
        if counts is None:
            self.images.update(predictions, labels)
        else:
            self.images.add(counts)
        if scores is not None:
            self.calibration.update(scores, labels)
        if self.shapes:
            for image in zip(predictions.cpu().numpy(), labels.cpu().numpy(), strict=True):
                for shape in self.shapes:
                    shape.update(*image)

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """Those of all ranks, the same on each; equal to those of one process to rounding."""
        total = copy(self)
        total.images = self.images.over_ranks(group)
        total.calibration = self.calibration.over_ranks(group)
        total.shapes = tuple(shape.over_ranks(group) for shape in self.shapes)
        return total

    def as_metrics(self, split: str) -> dict[str, float]:
        """``<split>/<measure>`` for each; those of scores only where there were scores."""
        found = of_images(torch.stack(self.images.parts), self.uncounted)
        for measure in (self.calibration, *self.shapes):
            if measure.sums.any():
                found |= measure.metrics()
        return {f"{split}/{name}": value for name, value in found.items()}


def objects_and_holes(mask: np.ndarray) -> tuple[int, int]:
    """How many connected parts a mask (H, W) has, and how many parts of the rest it surrounds."""
    outside = np.pad(~mask, 1, constant_values=True)  # what reaches the border is one part of it
    return ndimage.label(mask, TOUCHING)[1], ndimage.label(outside)[1] - 1


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def near_boundary(labels: np.ndarray, distance: float) -> np.ndarray:
    """Which pixels (H, W) lie less than a distance, in pixels, from one on a boundary.

    A pixel is on a boundary if one of the four beside it has another label.
    """
    changes = np.zeros(labels.shape, bool)
    for before, after in (
        ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
    ):
        differ = labels[before] != labels[after]
        changes[before] |= differ
        changes[after] |= differ
    if not changes.any():
        return changes
    near: np.ndarray = ndimage.distance_transform_edt(~changes) < distance
    return near


def of_images(parts: Tensor, ignore_index: int | None = None) -> dict[str, float]:
    """Measures of what is known of each image: what the image-mIoU hides.

    Args:
        parts: (N, 3, C) int64: pixels of each class in the labels, in the predictions, in both.
        ignore_index: a class that does not count.

    Returns: means over images, NaN of none. ``extraneous_classes`` are predicted in an image whose
        labels lack them, ``missed_classes`` are there and nowhere predicted. ``miou_i``, ``miou_c``
        and their means over the worst ``WORST`` of the images are those of Wang et al. (2023, Sec.
        3). ``iou_by_size/<size>`` is the mean IoU of the classes of images, by area of the class.
    """
    keep = [c for c in range(parts.shape[-1]) if c != ignore_index]
    labels, predictions, both = parts[..., keep].double().unbind(dim=1)
    present, predicted = labels > 0, predictions > 0
    iou = torch.where(present, both / (labels + predictions - both), torch.nan)
    of_image = iou.nanmean(dim=1)
    by_class = [_worst(column, 1.0) for column in iou.T]
    worst_by_class = [_worst(column, WORST) for column in iou.T]
    return {
        "extraneous_classes": (predicted & ~present).sum(dim=1).double().mean().item(),
        "missed_classes": (present & ~predicted).sum(dim=1).double().mean().item(),
        "miou_i": _worst(of_image, 1.0).item(),
        "miou_i_worst": _worst(of_image, WORST).item(),
        "miou_c": torch.stack(by_class).nanmean().item(),
        "miou_c_worst": torch.stack(worst_by_class).nanmean().item(),
    } | {
        f"iou_by_size/{name}": iou[(least <= labels) & (labels < most)].mean().item()
        for name, (least, most) in SIZES.items()
    }


def _worst(values: Tensor, share: float) -> Tensor:
    """Mean of the lowest part of the values that are no NaN, one at least; NaN of none."""
    values = values[~values.isnan()].sort().values
    return values[: max(1, int(share * len(values)))].mean()
