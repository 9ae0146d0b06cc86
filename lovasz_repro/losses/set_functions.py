"""Set functions of the prediction errors (Eq. 6) and their gains (Eq. 9).

A set function gives a loss to every set of mispredicted pixels. The ones here see the set through
its counts alone; where pixels have weights, a count is the sum of the weights. The Lovász
extension needs only the gain of some more mispredicted pixels: one at a time where they are
sorted, all of a bin at once where they are counted (``histogram.py``). Each function writes that
gain in closed form, because the difference of two neighbouring values loses it to rounding: at
200,000 pixels neighbouring Jaccard losses lie near 1 and differ by about 1e-6, while float32
resolves 6e-8 there.

A function of your own is a subclass of :class:`SetFunction` with ``__call__`` alone, or a plain
function in a :class:`CountFunction`; one whose extension is not convex is refused.
"""

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Counts(NamedTuple):
    """What a set function sees of a set of mispredicted pixels.

    Floating tensors that broadcast against each other, with values of whole numbers, or of sums
    of pixel weights.
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
    (Definition 1): see :func:`lovasz_repro.losses.check_submodular`.
    """

    @abc.abstractmethod
    def __call__(self, counts: Counts) -> Tensor:
        """Value of the set function, elementwise over the counts."""

    def foreground_gain(self, counts: Counts, amount: Tensor | float = 1.0) -> Tensor:
        """Increase when more foreground joins, by default from a difference in float64.

        Args:
            counts: what is mispredicted before.
            amount: how many pixels join, or the sum of their weights.
        """
        before = _double(counts)
        after = before._replace(false_negatives=before.false_negatives + amount)
        return (self(after) - self(before)).to(counts.false_negatives.dtype)

    def background_gain(self, counts: Counts, amount: Tensor | float = 1.0) -> Tensor:
        """Increase when more background joins; arguments as of :meth:`foreground_gain`."""
        before = _double(counts)
        after = before._replace(false_positives=before.false_positives + amount)
        return (self(after) - self(before)).to(counts.false_positives.dtype)

    def mean_gains(
        self, counts: Counts, foreground: Tensor, background: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gain of each of some pixels that join together, in two orders (``histogram.py``).

        Args:
            counts: what is mispredicted before.
            foreground, background: how many pixels of each kind join, or the sums of their
                weights.

        Returns:
            Gain of one foreground and of one background pixel (of weight 1): the average of
            foreground first and background first. Where none of a kind join, about that of one
            that would; where there is none at all, any number.
        """
        each = [amount.masked_fill(amount == 0, 1.0) for amount in (foreground, background)]
        later = counts._replace(false_positives=counts.false_positives + background)
        gain = self.foreground_gain(counts, each[0]) + self.foreground_gain(later, each[0])
        later = counts._replace(false_negatives=counts.false_negatives + foreground)
        other = self.background_gain(counts, each[1]) + self.background_gain(later, each[1])
        return gain / each[0].mul_(2), other / each[1].mul_(2)


def _double(counts: Counts) -> Counts:
    return Counts(*(count.double() for count in counts))


def _at_least_some(pixels: Tensor) -> Tensor:
    """Divisor for shares of the pixels: their number, or 1 where there are none."""
    return pixels.masked_fill(pixels == 0, 1.0)


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
    is 1 - I/U, and 0 where U = 0 (Eq. 3: 0/0 = 1 for the index). False negatives of amount n lower
    I by n: gain n/U. False positives of amount n raise U by n: gain I/U - I/(U+n) = n I/(U (U+n)).
    Neither gain grows with the counts, so the loss is submodular. Without foreground the first
    false positive costs 1 and the others nothing. With pixel weights this is the weighted Jaccard
    loss, and with the weights that the Cityscapes benchmark gives to instances its iIoU.
    """

    _a: ClassVar[float] = 1.0
    _b: ClassVar[float] = 1.0
    # The weights of TverskyLoss, whose formulas these are: here both are 1.

    def __call__(self, counts: Counts) -> Tensor:
        """Mispredicted pixels over the union of ground truth and prediction, in [0, 1]."""
        union = self._union(counts)
        loss = (self._a * counts.false_negatives + self._b * counts.false_positives) / union
        return loss.masked_fill(union == 0, 0.0)

    def foreground_gain(self, counts: Counts, amount: Tensor | float = 1.0) -> Tensor:
        """n/U, with the union U before the pixels are added."""
        union = self._union(counts)
        union = union.masked_fill(union == 0, 1.0)  # there is no foreground: any number
        if self._a == 1:
            return amount / union
        hits = counts.foreground_size - counts.false_negatives
        return amount * (1 + (self._a - 1) * hits / union) / (union + (self._a - 1) * amount)

    def background_gain(self, counts: Counts, amount: Tensor | float = 1.0) -> Tensor:
        """n I/(U (U+n)), with I and U before the pixels are added; 1 where U = 0 and n > 0."""
        union, added = self._union(counts), self._b * amount
        hits = counts.foreground_size - counts.false_negatives
        gain = added * hits / (union * (union + added))
        return torch.where((union == 0) & (added > 0), 1.0, gain.masked_fill(union == 0, 0.0))

    def _union(self, counts: Counts) -> Tensor:
        missed = (self._a - 1) * counts.false_negatives
        return counts.foreground_size + missed + self._b * counts.false_positives


@dataclass(frozen=True)
class HammingLoss(SetFunction):
    """Share of mispredicted pixels, in [0, 1]. Modular: its extension is the mean of the errors.

    With hinge errors that mean is the standard hinge loss (Sec. 2.1).
    """

    def __call__(self, counts: Counts) -> Tensor:
        """Mispredicted pixels over all pixels; 0 without pixels."""
        mispredicted = counts.false_negatives + counts.false_positives
        return mispredicted / _at_least_some(counts.pixels)

    def foreground_gain(self, counts: Counts, amount: Tensor | float = 1.0) -> Tensor:
        """Share of the pixels that are added."""
        return amount / _at_least_some(counts.pixels)

    def background_gain(self, counts: Counts, amount: Tensor | float = 1.0) -> Tensor:
        """Share of the pixels that are added."""
        return amount / _at_least_some(counts.pixels)


@dataclass(frozen=True)
class TverskyLoss(JaccardLoss):
    """Jaccard loss with a weight a for false negatives and b for false positives.

    With TP = foreground_size - false_negatives and the weighted union
    D = TP + a false_negatives + b false_positives the loss is 1 - TP/D (Tversky 1977), and 0
    where D = 0. a = b = 1 is the Jaccard loss. The gains of n pixels are

    * foreground: n (1 + (a-1) TP/D) / (D + (a-1) n),
    * background: b n TP / (D (D + b n)).

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

    @property
    def _a(self) -> float:  # type: ignore[override]
        return self.false_negative_weight

    @property
    def _b(self) -> float:  # type: ignore[override]
        return self.false_positive_weight


# ---- Submodularity -------------------------------------------------------------------------------

# Is a set function submodular (Definition 1, Eq. 7)? If not, its extension is not convex.
#
# A function of counts is submodular if and only if its gains never grow: one more false negative or
# false positive adds at most as much after another one as before it. That is Eq. 7 for the sets
# A = S + {x} and B = S + {y}, from which it follows for all sets.

# Rounding of four float64 values of order one.
ROUNDING_ERROR = 1e-12


def check_submodular(
    set_function: SetFunction, *, max_foreground: int = 8, max_background: int = 8
) -> None:
    """Refuse a set function that is not submodular, with a counterexample.

    Every pair of pixels after every set of mispredictions is tried, for all ground truths of up
    to the given numbers of pixels. A function that passes may still fail at larger numbers.

    Args:
        set_function: the function to try.
        max_foreground: largest number of foreground pixels tried, at least 0.
        max_background: largest number of background pixels tried, at least 0.

    Raises:
        ValueError: the function is not 0 for the empty set, not finite, or not submodular; the
            message gives the ground truth and the two sets of mispredictions that show it.
    """
    counts = _all_counts(max_foreground, max_background)
    possible = counts.false_negatives <= counts.foreground_size
    possible &= counts.false_positives <= counts.pixels - counts.foreground_size
    values = set_function(Counts(*(count.clone() for count in counts))).double()
    values = values.expand(possible.shape).masked_fill(~possible, 0.0)
    empty = (counts.false_negatives + counts.false_positives) == 0
    for wrong, rule in (~values.isfinite(), "must be finite"), ((values != 0) & empty, "must be 0"):
        if wrong.any():
            at = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"{set_function} is {values[*at]:g} with {_truth(at)}, {_missed(*at[2:])} "
                f"mispredicted; {rule}"
            )
    for first, second in (((1, 0), (1, 0)), ((0, 1), (0, 1)), ((1, 0), (0, 1))):
        _check_pair(set_function, values, possible, first, second)


def checked(set_function: SetFunction | Callable[[Tensor, Tensor, Tensor], Tensor]) -> SetFunction:
    """A set function, or a plain function made one, after :func:`check_submodular`.

    What can be hashed is checked once.
    """
    try:
        return _checked_once(set_function)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
    return _checked_once.__wrapped__(set_function)


@functools.lru_cache(maxsize=64)
def _checked_once(
    set_function: SetFunction | Callable[[Tensor, Tensor, Tensor], Tensor],
) -> SetFunction:
    if isinstance(set_function, type):
        raise TypeError(f"set_function: give an instance, {set_function.__name__}(...)")
    if not isinstance(set_function, SetFunction):
        set_function = CountFunction(set_function)
    check_submodular(set_function)
    return set_function


def _all_counts(foreground: int, background: int) -> Counts:
    """Counts over (G, B, fn, fp): every ground truth of G and B pixels and every misprediction."""
    sizes = [foreground + 1, background + 1, foreground + 1, background + 1]
    axes = [torch.arange(size, dtype=torch.float64, device="cpu") for size in sizes]
    size, rest, fn, fp = torch.meshgrid(*axes, indexing="ij")
    return Counts(fn, fp, size, size + rest)


def _check_pair(
    set_function: SetFunction,
    values: Tensor,
    possible: Tensor,
    first: tuple[int, int],
    second: tuple[int, int],
) -> None:
    """Eq. 7 for S + {x} and S + {y}: first and second are what x and y add to (fn, fp)."""
    both = (first[0] + second[0], first[1] + second[1])
    rows, columns = (size - more for size, more in zip(values.shape[2:], both, strict=True))
    if rows <= 0 or columns <= 0:
        return

    def shifted(grid: Tensor, by: tuple[int, int]) -> Tensor:
        return grid[..., by[0] : by[0] + rows, by[1] : by[1] + columns]

    lack = shifted(values, both) + shifted(values, (0, 0))
    lack = lack - shifted(values, first) - shifted(values, second)
    wrong = (lack > ROUNDING_ERROR) & shifted(possible, both)
    if not wrong.any():
        return
    at = wrong.nonzero()[0].tolist()
    fn, fp = at[2:]
    truth = values[at[0], at[1]]
    a, b, union, intersection = (
        truth[fn + by[0], fp + by[1]].item() for by in (first, second, both, (0, 0))
    )
    raise ValueError(
        f"{set_function} is not submodular, so its Lovász extension is not convex: with "
        f"{_truth(at)}, let A mispredict {_missed(fn + first[0], fp + first[1])}, B "
        f"{_missed(fn + second[0], fp + second[1])}, all but one of each in common; then "
        f"f(A) + f(B) = {a:.6g} + {b:.6g} is less than "
        f"f(A or B) + f(A and B) = {union:.6g} + {intersection:.6g} (Eq. 7)"
    )


def _truth(at: list[int]) -> str:
    return f"{at[0]} foreground and {at[1]} background pixels"


def _missed(false_negatives: int, false_positives: int) -> str:
    return f"{false_negatives} foreground and {false_positives} background"
