"""What one Jaccard index is taken over, and which classes are averaged (Eq. 13, Sec. 3.1)."""

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import MulticlassPixels, PixelWeights, class_weight_vector
from .ranks import Ranks
from .set_functions import SetFunction
from .sorting import marginal_gains


class Measure(NamedTuple):
    """What is taken of each class and row: a set function of (weighted) pixels."""

    set_function: SetFunction
    weights: PixelWeights | None
    """Of the pixels, or None."""
    row_ranks: Ranks
    """The processes that share each row: one alone where a row is an image."""


class Rows(NamedTuple):
    """What one Jaccard index is taken over: R = B images, or R = 1 batch. On the CPU."""

    counts: Tensor
    """(R, C) int64: pixels of each class; a batch is that of all ranks."""
    weights: Tensor
    """(R, C) float64: weight of each class in the loss; 0 where the row does not average it."""

    @property
    def most_pixels(self) -> int:
        """Valid pixels of the largest row."""
        return int(self.counts.sum(1).amax()) if len(self.counts) else 0


def rows_of(
    pixels: MulticlassPixels,
    classes: str | Sequence[int],
    per_image: bool,
    class_weights: Sequence[float] | Tensor | None,
) -> Rows:
    """Rows with the weights of Eq. 13; over all ranks, those of a row sum to 1/R, or to 0."""
    counts = pixels.counts if per_image else pixels.total_counts[None]
    num_classes = counts.shape[1]
    weights = class_weight_vector(class_weights, num_classes)
    if weights is None:
        weights = torch.ones(num_classes, dtype=torch.float64, device="cpu")
    weights = weights * _averaged(counts, classes)
    divisor = weights.sum(1, keepdim=True) * (pixels.total_images if per_image else 1)
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
    listed = torch.zeros(num_classes, dtype=torch.bool, device="cpu")
    listed[ids] = True
    return listed & not_empty


def class_gains(
    keys: Tensor,
    foreground: Tensor,
    pixels: MulticlassPixels,
    rows: Rows,
    item: int,
    measure: Measure,
    dtype: torch.dtype,
) -> Tensor:
    """Weighted gains (B, P) of one class, by sorting. keys: (B, P), may be overwritten."""
    shape, count = keys.shape, len(rows.counts)
    used = (rows.weights[:, item] > 0).nonzero()[:, 0]
    chosen: Tensor | slice = slice(None) if len(used) == count else used.to(keys.device)

    def of(pixel_mask: Tensor | None) -> Tensor | None:
        return None if pixel_mask is None else pixel_mask.reshape(count, -1)[chosen]

    weights = None
    if measure.weights is not None:
        weights = torch.where(foreground, measure.weights.foreground, measure.weights.background)
    gains = marginal_gains(
        keys.reshape(count, -1)[chosen],
        foreground.reshape(count, -1)[chosen],
        measure.set_function,
        of(pixels.valid),
        dtype,
        of(weights),
        measure.row_ranks,
    )
    if len(used) < count:
        found, gains = gains, gains.new_zeros(count, gains.shape[1])
        gains[chosen] = found
    gains *= rows.weights[:, item, None].to(gains)
    return gains.reshape(shape)
