"""Intersection over union: over a dataset (Eq. 14), over a batch, and per image (Eq. 3, Sec. 3.1).

All of them come from counts of (label, prediction) pairs, made by one `bincount` per call
(`pair_counts`; who streams several measures counts once and `add`s the counts to each). What is
streamed merges over ranks: `over_ranks` gives the score of all ranks to each, and leaves the part
as it is. `ConfusionMatrix` and `ImageIoU` are sums; `BatchIoU` keeps 3 C numbers an image.

Common to every function here:

* predictions and labels are integer (or bool) tensors of one shape, on one device, with class ids
  0..num_classes-1; other values raise ValueError, other dtypes TypeError.
* A pixel labelled `ignore_index` counts nowhere, and its prediction is not looked at.
* `ignore_index` may be a class id. That class then has no score (NaN) and enters no mean; a pixel
  of another class that is predicted as it is still a miss of its own class.
"""

from typing import Self

import torch
from torch import Tensor, distributed

BARE = (torch.uint16, torch.uint32, torch.uint64)
"""Integers for which PyTorch has no arithmetic."""
INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *BARE)


class ConfusionMatrix:
    """Streaming counts over a whole dataset, for the dataset-mIoU of Eq. 14.

    `counts` is a (C, C) int64 tensor [label, prediction] on the CPU, whatever device the updates
    come from.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        _check_num_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device="cpu")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add the pixels of predictions and labels, both (...) of one shape."""
        self.add(_count_pairs(predictions, labels, self.num_classes, self.ignore_index))

    def add(self, counts: Tensor) -> None:
        """Add counts (..., C, C) that `pair_counts` made with the same options."""
        self.counts += counts.reshape(-1, *self.counts.shape).sum(dim=0).cpu()

    def iou(self) -> Tensor:
        """IoU of each class, (C,) float64 in [0, 1].

        NaN for a class that neither labels nor predictions contain, and for an ignored class.
        """
        return _iou(self.counts, self.ignore_index)

    def mean_iou(self) -> float:
        """Mean of `iou()` over the classes that have one, in [0, 1]; NaN if none has."""
        return self.iou().nanmean().item()

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The matrix of all ranks, the same on each; exact.

        Raises:
            ValueError: on every rank, if the options differ between ranks.
        """
        _check_same_options(self, group)
        total = type(self)(self.num_classes, self.ignore_index)
        total.counts = sum_over_ranks(self.counts, group)
        return total


class ImageIoU:
    """Streaming per-image IoU, averaged over images; 0/0 = 1 (Eq. 3, Sec. 3.1).

    `sums` is a (C,) float64 tensor on the CPU, the per-image IoUs of each class added up; `images`
    is how many images they come from.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        _check_num_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.sums = torch.zeros(num_classes, dtype=torch.float64, device="cpu")
        self.images = 0

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add a batch of B images: predictions and labels (B, ...)."""
        self.add(pair_counts(predictions, labels, self.num_classes, self.ignore_index))

    def add(self, counts: Tensor) -> None:
        """Add counts (B, C, C) that `pair_counts` made with the same options."""
        self.sums += _iou(counts, self.ignore_index, absent=1.0).sum(dim=0).cpu()
        self.images += len(counts)

    def iou(self) -> Tensor:
        """Mean over the images of each class's IoU, (C,) float64; NaN before the first image."""
        return self.sums / self.images

    def mean_iou(self) -> float:
        """The image-mIoU: mean over images of `image_miou`, in [0, 1]; NaN before the first."""
        return self.iou().nanmean().item()

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The sums of all ranks, the same on each; equal to those of one process to rounding.

        Raises:
            ValueError: on every rank, if the options differ between ranks.
        """
        _check_same_options(self, group)
        total = type(self)(self.num_classes, self.ignore_index)
        images = torch.tensor([self.images], dtype=torch.float64, device="cpu")
        sums = sum_over_ranks(torch.cat([self.sums, images]), group)
        total.sums, total.images = sums[:-1], int(sums[-1])
        return total


class BatchIoU:
    """Batch-mIoU over present classes (Sec. 3.1), averaged over random batches of images.

    Which images form a batch depends on how many there are and on nothing else: it is the same at
    every validation, for every network, and for any number of ranks that have the images in order.

    `parts` holds what is known of each image: (3, C) int64 on the CPU, the pixels of each class in
    the labels, in the predictions and in both.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        _check_num_classes(num_classes)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.parts: list[Tensor] = []

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Add B images: predictions and labels (B, ...)."""
        self.add(pair_counts(predictions, labels, self.num_classes, self.ignore_index))

    def add(self, counts: Tensor) -> None:
        """Add counts (B, C, C) that `pair_counts` made with the same options."""
        both = counts.diagonal(dim1=-2, dim2=-1)
        self.parts += torch.stack([counts.sum(dim=-1), counts.sum(dim=-2), both], dim=1).cpu()

    def mean_iou(self, batch_size: int) -> float:
        """Mean over batches of the mean IoU of the classes that their labels contain, in [0, 1].

        Images that do not fill a last batch are left out, unless there is no other. A batch without
        a valid pixel has no score; NaN if none has one.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be >= 1")
        if not self.parts:
            return torch.nan
        count = len(self.parts)
        generator = torch.Generator("cpu").manual_seed(0)
        order = torch.randperm(count, generator=generator, device="cpu")
        size = min(batch_size, count)
        batches = order[: count // size * size].view(-1, size)
        labels, predictions, both = torch.stack(self.parts)[batches].sum(dim=1).unbind(dim=1)
        iou = both.double() / (labels + predictions - both)
        if self.ignore_index is not None and 0 <= self.ignore_index < self.num_classes:
            iou[:, self.ignore_index] = torch.nan
        of_batches = torch.where(labels > 0, iou, torch.nan).nanmean(dim=1)
        return of_batches.nanmean().item()

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The images of all ranks, those of rank 0 first, the same on each.

        Raises:
            ValueError: on every rank, if the options differ between ranks.
        """
        _check_same_options(self, group)
        none = torch.zeros(0, 3, self.num_classes, dtype=torch.int64, device="cpu")
        own = torch.stack(self.parts) if self.parts else none
        counts = torch.zeros(group.size(), dtype=torch.int64, device="cpu")
        counts[group.rank()] = len(own)
        counts = sum_over_ranks(counts, group)
        first = int(counts[: group.rank()].sum())
        everything = none.new_zeros(int(counts.sum()), 3, self.num_classes)
        everything[first : first + len(own)] = own
        total = type(self)(self.num_classes, self.ignore_index)
        total.parts = list(sum_over_ranks(everything, group))
        return total


def pair_counts(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """How often each (label, prediction) pair occurs in each image.

    Arguments:
        predictions, labels: (B, ...).

    Returns: (B, C, C) int64 [image, label, prediction] on the device of the labels.
    """
    _check_num_classes(num_classes)
    _check_pair(predictions, labels)
    if labels.ndim == 0:
        raise ValueError("labels must have a batch dimension, got a 0-dim tensor")
    return _count_pairs_per_image(predictions, labels, num_classes, ignore_index)


def image_iou(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """IoU of each image and class, with 0/0 = 1 (Eq. 3).

    Arguments:
        predictions, labels: (B, ...).

    Returns: (B, C) float64 in [0, 1] on the device of the labels. An image without a valid pixel
    has IoU 1 in each class; an ignored class is NaN.
    """
    counts = pair_counts(predictions, labels, num_classes, ignore_index)
    return _iou(counts, ignore_index, absent=1.0)


def image_miou(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """Image-mIoU of each image: `image_iou` averaged over all classes, 0/0 = 1 (Sec. 3.1).

    Arguments:
        predictions, labels: (B, ...).

    Returns: (B,) float64 in [0, 1] on the device of the labels.
    """
    return image_iou(predictions, labels, num_classes, ignore_index).nanmean(dim=1)


def binary_image_iou(
    predictions: Tensor, labels: Tensor, ignore_index: int | None = None
) -> Tensor:
    """IoU of the foreground (class 1) of each image, with 0/0 = 1: the image-IoU of Table 1.

    Arguments:
        predictions: (B, ...), 0/1 or bool.
        labels: (B, ...), 0/1 or bool, or `ignore_index`.

    Returns: (B,) float64 in [0, 1] on the device of the labels.
    """
    return image_iou(predictions, labels, num_classes=2, ignore_index=ignore_index)[:, 1]


def batch_miou(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """Batch-mIoU: IoU over all pixels of the batch, averaged over its present classes (Sec. 3.1).

    A class is present if the labels contain it. Predictions of absent classes cost only through
    the pixels that they take from present ones.

    Arguments:
        predictions, labels: (...), all of them one batch.

    Returns: 0-dim float64 in [0, 1] on the device of the labels; NaN if no pixel is valid.
    """
    counts = _count_pairs(predictions, labels, num_classes, ignore_index)
    return _iou(counts, ignore_index)[counts.sum(dim=1) > 0].mean()


def _iou(counts: Tensor, ignore_index: int | None, absent: float = torch.nan) -> Tensor:
    """IoU from counts (..., C, C) [label, prediction] -> (..., C) float64; 0/0 = `absent`."""
    intersection = counts.diagonal(dim1=-2, dim2=-1)
    union = counts.sum(dim=-1) + counts.sum(dim=-2) - intersection
    iou = intersection.double() / union
    iou = torch.where(union == 0, absent, iou)
    if ignore_index is not None and 0 <= ignore_index < counts.shape[-1]:
        iou[..., ignore_index] = torch.nan
    return iou


def _count_pairs(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None
) -> Tensor:
    """Count (label, prediction) pairs of all valid pixels -> (C, C) int64."""
    _check_num_classes(num_classes)
    _check_pair(predictions, labels)
    batch = predictions.unsqueeze(0), labels.unsqueeze(0)
    return _count_pairs_per_image(*batch, num_classes, ignore_index).squeeze(0)


def _count_pairs_per_image(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None
) -> Tensor:
    """Count (label, prediction) pairs of each image's valid pixels: (B, ...) -> (B, C, C) int64.

    Ignored pixels are not cut out, which would copy the rest, but sent to one bin behind the last.
    """
    predictions, labels = _countable(predictions), _countable(labels)
    ignored = None
    if ignore_index is not None and _holds(labels.dtype, ignore_index):
        ignored = labels == ignore_index
        predictions, labels = predictions.masked_fill(ignored, 0), labels.masked_fill(ignored, 0)
    _check_ranges(predictions, labels, num_classes, ignore_index)

    batch, pairs = len(labels), num_classes**2
    dtype = torch.int32 if _holds(torch.int32, batch * pairs) else torch.int64  # int32 is faster
    first = torch.arange(batch, device=labels.device, dtype=dtype) * pairs
    bins = labels.to(dtype) * num_classes + predictions.to(dtype)
    bins += first.view(-1, *[1] * (labels.ndim - 1))
    if ignored is not None:
        bins.masked_fill_(ignored, batch * pairs)
    counts = torch.bincount(bins.flatten(), minlength=batch * pairs + 1)[:-1]
    return counts.view(batch, num_classes, num_classes)


def _holds(dtype: torch.dtype, value: int) -> bool:
    """Whether an integer dtype can hold the value (255 == -1 is true where -1 wraps to uint8)."""
    return torch.iinfo(dtype).min <= value <= torch.iinfo(dtype).max


def _countable(values: Tensor) -> Tensor:
    if values.dtype in BARE:
        return values.long()
    return values.to(torch.uint8) if values.dtype == torch.bool else values


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")


def _check_pair(predictions: Tensor, labels: Tensor) -> None:
    """Same shape, same device, integers."""
    if predictions.shape != labels.shape:
        shapes = f"{tuple(predictions.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"predictions and labels must have one shape, got {shapes}")
    if predictions.device != labels.device:
        devices = f"{predictions.device} and {labels.device}"
        raise ValueError(f"predictions and labels must be on one device, got {devices}")
    for name, values in (("predictions", predictions), ("labels", labels)):
        if values.dtype not in INTEGERS:
            raise TypeError(f"{name} must be integer class ids, got {values.dtype}")


def _check_ranges(
    predictions: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None
) -> None:
    """Raise ValueError naming the value and the class count if a value is no class id."""
    if labels.numel() == 0:
        return
    ends = [end.long() for values in (labels, predictions) for end in values.aminmax()]
    first, last, low, high = torch.stack(ends).tolist()  # one synchronisation with the device
    _check_range("label", first, last, num_classes, ignore_index)
    _check_range("prediction", low, high, num_classes)


def _check_range(
    name: str, low: int, high: int, num_classes: int, ignore_index: int | None = None
) -> None:
    if low >= 0 and high < num_classes:
        return
    message = f"{name} {low if low < 0 else high} is out of range for {num_classes} classes"
    if ignore_index is not None:
        message += f" (ignore_index is {ignore_index})"
    raise ValueError(message)


def _check_same_options(
    metric: ConfusionMatrix | ImageIoU | BatchIoU, group: distributed.ProcessGroup
) -> None:
    """Compare the options of all ranks before anything of their size is sent."""
    for name in ("num_classes", "ignore_index"):
        value = getattr(metric, name)
        number = torch.iinfo(torch.int64).min if value is None else value
        ends = _on_device_of(
            torch.tensor([number, -number - 1], device="cpu"), group
        )  # largest, smallest
        distributed.all_reduce(ends, distributed.ReduceOp.MAX, group)
        largest, smallest = int(ends[0]), -int(ends[1]) - 1
        if largest != smallest:
            raise ValueError(f"cannot merge: {name} differs between ranks (here {value})")


def sum_over_ranks(values: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """Sum of a CPU tensor over the ranks of a group of any backend, on the CPU."""
    total = _on_device_of(values.clone(), group)
    distributed.all_reduce(total, distributed.ReduceOp.SUM, group)
    return total.cpu()


def _on_device_of(values: Tensor, group: distributed.ProcessGroup) -> Tensor:
    """NCCL sums up nothing but CUDA tensors."""
    return values.cuda() if distributed.get_backend(group) == "nccl" else values
