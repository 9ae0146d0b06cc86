"""What one Jaccard index is taken over, and which classes are averaged (Eq. 13, Sec. 3.1)."""

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from lovasz_repro.losses.extension import marginal_gains
from lovasz_repro.losses.inputs import class_weight_vector
from lovasz_repro.losses.set_functions import JaccardLoss


class Rows(NamedTuple):
    """What one Jaccard index is taken over: R = B images, or R = 1 batch. On the CPU."""

    counts: Tensor
    """(R, C) int64: pixels of each class."""
    weights: Tensor
    """(R, C) float64: weight of each class in the loss; 0 where the row does not average it."""


def rows_of(
    counts: Tensor,
    classes: str | Sequence[int],
    per_image: bool,
    class_weights: Sequence[float] | Tensor | None,
) -> Rows:
    """Rows with the weights of Eq. 13; the weights of a row sum to 1/R, or to 0."""
    counts, num_classes = counts if per_image else counts.sum(0, keepdim=True), counts.shape[1]
    weights = class_weight_vector(class_weights, num_classes)
    if weights is None:
        weights = torch.ones(num_classes, dtype=torch.float64)
    weights = weights * _averaged(counts, classes)
    divisor = weights.sum(1, keepdim=True) * len(counts)
    return Rows(counts, torch.where(divisor > 0, weights / divisor, 0.0))


def _averaged(counts: Tensor, classes: str | Sequence[int]) -> Tensor:
    """(R, C) bool: the classes that Eq. 13 averages in each row."""
    not_empty = counts.sum(1, keepdim=True) > 0
    if isinstance(classes, str):
        if classes == "present":
            return counts > 0
        if classes == "all":
            return not_empty.expand_as(counts)
        raise ValueError(f'classes is "{classes}", must be "present", "all" or a list of ids')
    num_classes = counts.shape[1]
    ids = [index(item) for item in classes]
    for item in ids:
        if not 0 <= item < num_classes:
            raise ValueError(f"class {item} in classes is out of range for {num_classes} classes")
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"classes is {ids}, must name at least one class, and each once")
    listed = torch.zeros(num_classes, dtype=torch.bool)
    listed[ids] = True
    return listed & not_empty


def class_gains(
    keys: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    rows: Rows,
    item: int,
    dtype: torch.dtype,
) -> Tensor:
    """Weighted gains (B, P) of one class. keys: (B, P), overwritten on invalid pixels."""
    batch_shape, shape = keys.shape, (len(rows.counts), -1)
    keys, foreground = keys.reshape(shape), foreground.reshape(shape)
    valid = None if valid is None else valid.reshape(shape)
    used, present = rows.weights[:, item] > 0, rows.counts[:, item] > 0
    if (used & present).all():
        gains = marginal_gains(keys, foreground, JaccardLoss(), valid, dtype)
    else:
        gains = torch.zeros(keys.shape, dtype=dtype, device=keys.device)
        for chosen, gains_of in (
            (used & present, marginal_gains),
            (used & ~present, _absent_gains),
        ):
            if chosen.any():
                at = chosen.nonzero()[:, 0].to(keys.device)
                keep = None if valid is None else valid[at]
                gains[at] = gains_of(keys[at], foreground[at], JaccardLoss(), keep, dtype)
    gains *= rows.weights[:, item, None].to(gains)
    return gains.reshape(batch_shape)


def _absent_gains(
    keys: Tensor,
    foreground: Tensor,
    set_function: JaccardLoss,
    valid: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The same as ``marginal_gains`` without foreground: 1 on the first of the largest errors."""
    if valid is not None:
        keys.masked_fill_(~valid, torch.iinfo(keys.dtype).max)
    gains = torch.zeros(keys.shape, dtype=dtype, device=keys.device)
    return gains.scatter_(1, keys.argmin(1, keepdim=True), 1.0)
