"""What one Jaccard index is taken over, and which classes are averaged (Eq. 13, Sec. 3.1)."""

from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from .histogram import Method, ProbabilityBins
from .inputs import MulticlassPixels, PixelWeights, class_weight_vector
from .ranks import Ranks
from .set_functions import SetFunction


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


class Problem(NamedTuple):
    """A Lovász-Softmax to compute, for logits (B, C, P)."""

    labels: Tensor
    """(B, P) int64 class ids, 0 on ignored pixels."""
    valid: Tensor | None
    """(B, P) bool, or None where every pixel counts."""
    weights: PixelWeights | None
    rows: Rows
    set_function: SetFunction
    row_ranks: Ranks
    """The processes that share each row: one alone where a row is an image."""
    how: Method
    bins: ProbabilityBins
    counts_all: bool = False
    """Whether classes are counted that no row averages, as the micro-batches of a window do."""

    @property
    def counted(self) -> Tensor:
        """(C,) bool on the CPU: classes whose errors are counted in bins."""
        if self.how.name == "sort":
            return torch.zeros(self.rows.weights.shape[1], dtype=torch.bool, device="cpu")
        return (self.rows.weights > 0).any(0) | self.counts_all

    def classes_to_sort(self, coarse: Tensor) -> list[int]:
        """Classes whose pixels are sorted, if the bins (C, R) of some are too coarse."""
        if self.how.name == "auto":
            return coarse.any(1).nonzero()[:, 0].tolist()
        used = (self.rows.weights > 0).any(0).nonzero()[:, 0]
        return used.tolist() if self.how.name == "sort" else []

    def tally_shape(self, logits: Tensor) -> tuple[int, ...]:
        """(2, C, R, K + 1): int64 counts and positions in one, of background [0] and foreground.

        With weights (2, 2, C, R, K + 1): sums of the weights, and of weight times position.
        """
        shape = (2, logits.shape[1], len(self.rows.counts), self.bins.bins + 1)
        return shape if self.weights is None else (2, *shape)


def rows_of(
    pixels: MulticlassPixels,
    classes: str | Sequence[int],
    per_image: bool,
    class_weights: Sequence[float] | Tensor | None,
) -> Rows:
    """Rows with the weights of Eq. 13; over all ranks, those of a row sum to 1/R, or to 0."""
    counts = pixels.counts if per_image else pixels.total_counts[None]
    weights = class_weight_vector(class_weights, counts.shape[1])
    averaged = _averaged(counts, classes).double()
    weights = averaged if weights is None else averaged * weights
    divisor = weights.sum(1, keepdim=True) * (pixels.total_images if per_image else 1)
    return Rows(counts, torch.where(divisor > 0, weights / divisor, 0.0))


def _averaged(counts: Tensor, classes: str | Sequence[int]) -> Tensor:
    """(R, C) bool: the classes that Eq. 13 averages in each row."""
    ids = listed(classes, counts.shape[1])
    if classes == "present":
        return counts > 0
    not_empty = counts.sum(1, keepdim=True) > 0
    if ids is None:
        return not_empty.expand_as(counts)
    chosen = torch.zeros(counts.shape[1], dtype=torch.bool, device="cpu")
    chosen[ids] = True
    return chosen & not_empty


def listed(classes: str | Sequence[int], num_classes: int) -> list[int] | None:
    """Class ids that are given one by one, or None.

    Raises:
        ValueError: neither "present" nor "all", nor ids of classes, each once.
    """
    if isinstance(classes, str):
        if classes not in ("present", "all"):
            raise ValueError(f'classes is "{classes}", must be "present", "all" or a list of ids')
        return None
    ids = [index(item) for item in classes]
    for item in ids:
        if not 0 <= item < num_classes:
            raise ValueError(f"class {item} in classes is out of range for {num_classes} classes")
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"classes is {ids}, must name at least one class, and each once")
    return ids
