"""Gains from counts instead of a sort: the Lovász extension in linear time.

The gain of a pixel (Eq. 9) depends on its rank through two counts alone: the foreground and the
background pixels of larger error. So instead of sorting P errors, count them in K bins that grow
with the error, add the counts up from the top, and read off the gain of each bin: O(P + K), with
integer counts that are the same in any order of addition, on any number of devices.

**Inside a bin.** Let a bin hold n_f foreground and n_b background pixels, and let a_f and a_b lie
above it. If all of its errors were equal, any order of its pixels would give a subgradient. Two
orders are computed here, foreground first and background first, the pixels of one kind sharing
their gain equally, and their average is taken: with I = G - a_f and U = G + a_b of the Jaccard
loss, before (0) and behind (1) the bin,

    foreground  g = (1/U0 + 1/U1) / 2,        background  g = (I0 + I1) / (2 U0 U1).

(:meth:`lovasz_repro.losses.SetFunction.mean_gains` for any function). This is the trapezoidal
rule for the gains over the bin. A bin of one pixel gets its exact gain, and the gains of any bin
add up to the exact difference of the set function across it.

**Error of the loss.** Let m be the errors, m' the same rounded down to the lower edges of their
bins, and w the width of the widest bin that is not empty. The gains g above are an average of
subgradients of the extension L at m', so g.m' = L(m') and g.m <= L(m) (L is the largest of g.m
over all orders). L grows with each error, so L(m) <= L(m' + w 1) = L(m') + w F, F being the set
function of all pixels mispredicted (1 for Jaccard). Together

    0 <= L(m) - g.m <= w F.

Closer: as the gains of a bin add up to what they should, only their spread counts. With d the
largest deviation of a true gain in the bin from g (gains never grow with the counts, so it is that
of the first or the last pixel),

    |L(m) - g.m| <= sum over bins of (w/2) (n_f d_f + n_b d_b).

Where the errors have a density, the counts in a bin and so the gains across it change by O(w):
the sum is O(w^2). This is the bound that :func:`error_bounds` computes from the counts.

**Error of the gradient.** The gain of each pixel is wrong by at most d of its bin: in the 2-norm
over pixels by at most the root of sum of (n_f d_f^2 + n_b d_b^2). For the Jaccard loss d_f is at
most n_b / (2 U0 U1), so in relation to g it is the share of the union that lies in one bin: O(w).
Errors that are equal in all bits share their gain exactly: also a subgradient.

**When "auto" counts.** Algorithm 1 in float32 takes the difference of neighbouring Jaccard losses
near one, each rounded to 2^-24: the gain of every pixel is wrong by about 2^-25, whatever its
size. "auto" takes the gains of bins only where the bound above is smaller than that rounding error
in the 2-norm over pixels, and that of the loss smaller than 2^-24, and sorts where it is not. For
Lovász-Softmax the errors of the gains count in both norms with e (1 - e), the derivative of an
error e with respect to its own logit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .set_functions import Counts, SetFunction

# Bins: twice as many for rows of many pixels, where they cost nothing in comparison, and half for
# rows of few, where they cost most and no bin would hold more than some pixels.
FEW_BINS, MANY_BINS, MANY_PIXELS, FEW_PIXELS = 2**14, 2**15, 2**19, 2**15
MAX_BINS = 2**20
# Rows of fewer pixels than this are sorted by "auto": there a sort costs little, and bins of a
# few pixels among few are too coarse to pass the test anyway.
AUTO_PIXELS = 2**17
# Rounding of one gain in Algorithm 1 in float32, and of a loss near one.
GAIN_ROUNDING = 2.0**-25
LOSS_ROUNDING = 2.0**-24
METHODS = ("auto", "sort", "histogram")


class Bins(NamedTuple):
    """What each bin holds, in increasing order of the error: floating, exact for whole numbers."""

    foreground: Tensor
    """(R, K) foreground pixels, or the sum of their weights."""
    background: Tensor
    """(R, K) background, likewise."""


class BinGains(NamedTuple):
    """Gain of one pixel of each bin (of weight 1); in an empty bin, of one that came there.

    Where no such pixel exists, as foreground in a row without any, it may be any number.
    """

    foreground: Tensor
    """(R, K)"""
    background: Tensor
    """(R, K)"""


class ErrorBounds(NamedTuple):
    """How far gains from bins may be from exact ones, by row; NaN where nothing is known."""

    gain: Tensor
    """(R,) 2-norm over pixels of the error of the gains, each times the weight of its bin."""
    gain_rounding: Tensor
    """(R,) The same if every gain were wrong by the rounding of float32."""
    loss: Tensor
    """(R,) Error of the loss."""

    def below_float32(self, scale: Tensor | float = 1.0) -> Tensor:
        """(R,) bool: where both are below the rounding of Algorithm 1 in float32.

        Args:
            scale: size of the largest error, by row.
        """
        return (self.gain <= self.gain_rounding) & (self.loss <= LOSS_ROUNDING * scale)


@dataclass(frozen=True)
class Method:
    """How gains are computed; refuses options that do not exist.

    Raises:
        ValueError: an unknown method, or a number of bins out of range.
    """

    name: str = "auto"
    bins: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.name not in METHODS:
            raise ValueError(f'method is "{self.name}", must be "auto", "sort" or "histogram"')
        if self.bins is not None and not 2 <= self.bins <= MAX_BINS:
            raise ValueError(f"bins is {self.bins}, must be between 2 and {MAX_BINS}")

    def bins_for(self, pixels: int) -> int:
        """How many bins to count rows of this many pixels in, of all ranks."""
        if self.bins or pixels >= MANY_PIXELS:
            return self.bins or MANY_BINS
        return FEW_BINS if pixels >= FEW_PIXELS else FEW_BINS // 2

    def sorts(self, pixels: int, dtype: torch.dtype, weighted: bool) -> bool:
        """Whether rows are sorted without counting them first.

        Args:
            pixels: in a row, of all ranks.
            dtype: of the logits or errors; who gives float64 wants to have it.
            weighted: whether pixels have weights, for which there are no bounds.
        """
        if self.name != "auto":
            return self.name == "sort"
        return weighted or dtype == torch.float64 or pixels < AUTO_PIXELS


class Edges(NamedTuple):
    """Counts at the edges of the bins, (R, K) and sizes (R, 1): of the pixels that come first."""

    above: Counts
    """Before each bin."""
    below: Counts
    """Behind each bin."""


def edges_of(bins: Bins) -> Edges:
    """Counts at the edges: sums of whole numbers are exact whatever their order."""
    size, rest = (held.sum(-1, keepdim=True) for held in bins)
    missed, wrong = (held.flip(-1).cumsum(-1).flip(-1) for held in bins)
    below = Counts(missed, wrong, size, size + rest)
    above = (missed - bins.foreground, wrong - bins.background)
    return Edges(below._replace(false_negatives=above[0], false_positives=above[1]), below)


def bin_gains(bins: Bins, edges: Edges, set_function: SetFunction) -> BinGains:
    """Gains of the module docstring."""
    return BinGains(*set_function.mean_gains(edges.above, *bins))


def error_bounds(
    bins: Bins,
    edges: Edges,
    gains: BinGains,
    set_function: SetFunction,
    widths: Tensor,
    weights: Tensor,
) -> ErrorBounds:
    """Bounds of the module docstring, from counts of pixels without weights.

    The gains of a bin lie between those of its first and its last pixel.

    Args:
        bins: (R, K) counts.
        edges, gains: theirs.
        set_function: the function that the gains are of; submodular.
        widths: (K,) or (R, K) largest difference of two errors in a bin.
        weights: (K,) what an error of a gain counts for in the norm, such as the largest
            derivative of an error of the bin with respect to a logit.
    """
    weights = weights.square()
    squares = total = pixels = weights.new_zeros(())
    above, below = edges.above, edges.below
    for held, gain, one_more, last in zip(
        bins,
        gains,
        (set_function.foreground_gain, set_function.background_gain),
        (
            below._replace(false_negatives=(below.false_negatives - 1).clamp_(min=0)),
            below._replace(false_positives=(below.false_positives - 1).clamp_(min=0)),
        ),
        strict=True,
    ):
        deviation = torch.maximum(one_more(above) - gain, gain - one_more(last))
        sums = held * deviation
        total = total + (sums * widths).sum(-1)
        # products and sums: autocast would round what a matrix product takes
        squares = squares + sums.mul_(deviation).mul_(weights).sum(-1)
        pixels = pixels + (held * weights).sum(-1)
    return ErrorBounds(squares.sqrt(), pixels.sqrt() * GAIN_ROUNDING, total / 2)
