"""Set functions of the prediction errors (Eq. 6) and their marginal gains (Eq. 9).

A set function gives a loss to every set of mispredicted pixels. The ones here see the set through
its counts alone. The Lovász extension needs only the gain of one more mispredicted pixel. Each
function writes that gain in closed form, because the difference of two neighbouring values loses
it to rounding: at 200,000 pixels neighbouring Jaccard losses lie near 1 and differ by about 1e-6,
while float32 resolves 6e-8 there.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Counts(NamedTuple):
    """What a set function sees of a set of mispredicted pixels.

    Floating tensors that broadcast against each other, with values of whole numbers.
    """

    false_negatives: Tensor
    """Mispredicted foreground pixels."""
    false_positives: Tensor
    """Mispredicted background pixels."""
    foreground_size: Tensor
    """Foreground pixels of the ground truth, mispredicted or not."""
    pixels: Tensor
    """Valid pixels, foreground and background."""


class SetFunction(abc.ABC):
    """A loss on sets of mispredicted pixels that depends on their counts; 0 for the empty set.

    A subclass defines ``__call__``; it may override the gains with a closed form. The gain of a
    pixel that cannot be added (a false negative beyond the foreground, say) may be any number:
    it is not used. The Lovász extension is convex if and only if the function is submodular
    (Definition 1).
    """

    @abc.abstractmethod
    def __call__(self, counts: Counts) -> Tensor:
        """Value of the set function, elementwise over the counts."""

    def foreground_gain(self, counts: Counts) -> Tensor:
        """Increase when one more foreground pixel joins; a difference in float64 by default."""
        before = _double(counts)
        after = before._replace(false_negatives=before.false_negatives + 1)
        return (self(after) - self(before)).to(counts.false_negatives.dtype)

    def background_gain(self, counts: Counts) -> Tensor:
        """Increase when one more background pixel joins; a difference in float64 by default."""
        before = _double(counts)
        after = before._replace(false_positives=before.false_positives + 1)
        return (self(after) - self(before)).to(counts.false_positives.dtype)


def _double(counts: Counts) -> Counts:
    return Counts(*(count.double() for count in counts))


@dataclass(frozen=True)
class CountFunction(SetFunction):
    """A plain function ``(false_negatives, false_positives, foreground_size) -> Tensor``."""

    function: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __call__(self, counts: Counts) -> Tensor:
        """Value of the wrapped function."""
        return self.function(counts.false_negatives, counts.false_positives, counts.foreground_size)


@dataclass(frozen=True)
class JaccardLoss(SetFunction):
    """One minus the Jaccard index, as a function of the mispredictions (Eq. 6).

    With I = foreground_size - false_negatives and U = foreground_size + false_positives the loss
    is 1 - I/U, and 0 where U = 0 (Eq. 3: 0/0 = 1 for the index). One more false negative lowers I
    by one: gain 1/U. One more false positive raises U by one: gain I/U - I/(U+1) = I/(U (U+1)).
    Neither gain grows with the counts, so the loss is submodular. Without foreground the first
    false positive costs 1 and the others nothing.
    """

    def __call__(self, counts: Counts) -> Tensor:
        """Mispredicted pixels over the union of ground truth and prediction, in [0, 1]."""
        union = counts.foreground_size + counts.false_positives
        loss = (counts.false_negatives + counts.false_positives) / union
        return loss.masked_fill(union == 0, 0.0)

    def foreground_gain(self, counts: Counts) -> Tensor:
        """1/U, with the union U before the pixel is added."""
        return (counts.foreground_size + counts.false_positives).reciprocal()

    def background_gain(self, counts: Counts) -> Tensor:
        """I/(U (U+1)), with I and U before the pixel is added; 1 where U = 0."""
        union = counts.foreground_size + counts.false_positives
        gain = (counts.foreground_size - counts.false_negatives).div_(union)
        empty = union == 0
        return gain.div_(union.add_(1)).masked_fill_(empty, 1.0)


@dataclass(frozen=True)
class HammingLoss(SetFunction):
    """Share of mispredicted pixels, in [0, 1]. Modular: its extension is the mean of the errors.

    With hinge errors that mean is the standard hinge loss (Sec. 2.1).
    """

    def __call__(self, counts: Counts) -> Tensor:
        """Mispredicted pixels over all pixels; 0 without pixels."""
        return (counts.false_negatives + counts.false_positives) / counts.pixels.clamp(min=1)

    def foreground_gain(self, counts: Counts) -> Tensor:
        """One over the number of pixels."""
        return counts.pixels.clamp(min=1).reciprocal()

    def background_gain(self, counts: Counts) -> Tensor:
        """One over the number of pixels."""
        return counts.pixels.clamp(min=1).reciprocal()


@dataclass(frozen=True)
class TverskyLoss(SetFunction):
    """Jaccard loss with a weight a for false negatives and b for false positives.

    With TP = foreground_size - false_negatives and the weighted union
    D = TP + a false_negatives + b false_positives the loss is 1 - TP/D (Tversky 1977), and 0
    where D = 0. a = b = 1 is the Jaccard loss. The gains are

    * foreground: 1/(D+a-1) + (a-1) TP / (D (D+a-1)),
    * background: b TP / (D (D+b)).

    For a >= 1 D grows and TP falls with the counts, so neither gain grows: submodular. For a < 1
    and two or more foreground pixels the loss is strictly convex in the false negatives, hence
    not submodular, and refused. The Dice loss, a = b = 1/2, is such a case.

    Attributes:
        false_negative_weight: a, at least 1.
        false_positive_weight: b, at least 0.

    Raises:
        ValueError: a or b outside its range.
    """

    false_negative_weight: float = 1.0
    false_positive_weight: float = 1.0

    def __post_init__(self) -> None:
        """Refuse weights that do not give a submodular function."""
        a, b = self.false_negative_weight, self.false_positive_weight
        if not (math.isfinite(a) and a >= 1):
            raise ValueError(
                f"false_negative_weight is {a}, must be at least 1: below, the Tversky loss is "
                "not submodular (nor is the Dice loss, which has 1/2)"
            )
        if not (math.isfinite(b) and b >= 0):
            raise ValueError(f"false_positive_weight is {b}, must be at least 0")

    def __call__(self, counts: Counts) -> Tensor:
        """Weighted mispredictions over the weighted union, in [0, 1]."""
        a, b = self.false_negative_weight, self.false_positive_weight
        union = self._weighted_union(counts)
        loss = (a * counts.false_negatives + b * counts.false_positives) / union
        return loss.masked_fill(union == 0, 0.0)

    def foreground_gain(self, counts: Counts) -> Tensor:
        """Closed form of the class docstring."""
        extra = self.false_negative_weight - 1
        hits = counts.foreground_size - counts.false_negatives
        union = self._weighted_union(counts)
        return (1 + extra * hits / union) / (union + extra)

    def background_gain(self, counts: Counts) -> Tensor:
        """Closed form of the class docstring; where D = 0, 1 for the first false positive."""
        weight = self.false_positive_weight
        hits = counts.foreground_size - counts.false_negatives
        union = self._weighted_union(counts)
        gain = weight * hits / (union * (union + weight))
        return gain.masked_fill(union == 0, 1.0 if weight > 0 else 0.0)

    def _weighted_union(self, counts: Counts) -> Tensor:
        return (
            counts.foreground_size
            + (self.false_negative_weight - 1) * counts.false_negatives
            + self.false_positive_weight * counts.false_positives
        )
