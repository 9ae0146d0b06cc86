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
in the 2-norm over pixels, and that of the loss smaller than 2^-24, and sorts where it is not: the
bins that come first, where the union is still small, exceed the bounds, and it is enough to sort
their pixels (``compiled.py``). For Lovász-Softmax the errors of the gains count in both norms with
e (1 - e), the derivative of an error e with respect to its own logit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .ranks import Ranks
from .set_functions import Counts, SetFunction

# ---- Which bin an error falls into ---------------------------------------------------------------
#
# The square root for errors in [0, 1], a logarithm for others.
#
# **Probabilities.** The errors of Lovász-Softmax (Eq. 11) lie in [0, 1], and those of a trained
# network crowd near 0. With bins of equal width in the square root, bin k holds the errors in
# [(k/K)^2, ((k+1)/K)^2): width at most 2/K near one, and 1/K^2 near zero. For a mediocre network
# that is as good as bins of equal width; for a saturated one, whose errors all fall into the lowest
# equal bins, the gradient was five times and the loss ten thousand times closer. The square root of
# a probability costs nothing: it is an exponential of half the logit.
#
# **Other errors.** Those of a hinge have no largest value, so equal bins would need the largest
# error of the batch, and one outlier of 1e6 would put all others into one bin. The bits of a float
# have no such scale, but waste bins on sizes that do not occur. Both together: bins of equal width
# in log(1 + |e| / UNIT), with the sign of e, between the smallest and the largest error of the row
# itself. An outlier of 1e6 among errors of 4 widens them 2.5 times; zeros share the lowest bin with
# nothing else.


# Errors well below this are told apart linearly, those above by their ratio. The margin of the
# hinge is 1.
UNIT = 2.0**-10


class ProbabilityBins:
    """K + 1 bins of errors in [0, 1], the last for 1 itself; positions inside in fixed point.

    A position is counted in units of 2^-bits of a bin, in the square root. One int64
    per bin takes both the number of its pixels (the upper bits) and the sum of their positions
    (the lower ones), so that one addition per pixel gives the gains and the exact loss.
    """

    most_pixels = 2**26  # in a row, or the sums overflow

    def __init__(self, bins: int) -> None:
        self.bins = bins
        # float32 holds 24 bits, which is what is known of a probability anyway.
        self.bits = max(1, min(10, 24 - bins.bit_length()))
        self.one_pixel = 1 << (self.bits + 26)
        self.scale = float(bins << self.bits)

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor]:
        """Counts and sums of positions from packed sums, in float64."""
        return (packed >> (self.bits + 26)).double(), (packed & (self.one_pixel - 1)).double()

    def error_sums(self, counts: Tensor, positions: Tensor) -> Tensor:
        """Sum of the errors in each bin, as if all were at the mean position.

        What is lost is the variance of the position, less than 1/(4 K^2) an error. Half a unit
        makes up for rounding down; not in bin 0, so that perfect predictions cost nothing.
        """
        roots = torch.arange(counts.shape[-1], dtype=counts.dtype, device=counts.device) / self.bins
        roots[1:] += 0.5 / self.scale
        return (roots + positions / counts.clamp(min=1) / self.scale) ** 2 * counts

    def widths(self, device: torch.device) -> Tensor:
        """(K + 1,) float64 widths of the bins."""
        edges = torch.arange(self.bins + 2, dtype=torch.float64, device=device) / self.bins
        return edges.square().clamp(max=1.0).diff()

    def logit_weights(self, device: torch.device) -> Tensor:
        """(K + 1,) float64 e (1 - e): derivative of an error with respect to its own logit."""
        middles = torch.arange(self.bins + 1, dtype=torch.float64, device=device) + 0.5
        errors = (middles / self.bins).square().clamp(max=1.0)
        return errors * (1 - errors)


class RowBins(NamedTuple):
    """Bins of rows of errors of any size and sign."""

    bin: Tensor
    """(R, P) int64 bin of each pixel in [0, K]; bin 0 holds the smallest error alone."""
    widths: Tensor
    """(R, K + 1) float64 largest difference of two errors in a bin; 0 for bin 0."""
    largest: Tensor
    """(R,) float64 largest absolute value of an error."""


def row_bins(errors: Tensor, valid: Tensor | None, bins: int, ranks: Ranks) -> RowBins:
    """Bins between the smallest and the largest error of each row, over all ranks.

    Args:
        errors: (R, P) of any sign; NaN counts as 0, and what is above 3e35 (float32), infinity
            included, as equal.
        valid: (R, P) bool or None; other pixels get bin 0.
        bins: K, the number of bins besides bin 0.
        ranks: whose pixels make one row.
    """
    most = torch.finfo(errors.dtype).max * UNIT
    finite = errors.nan_to_num().clamp_(-most, most)
    if valid is not None:
        finite.masked_fill_(~valid, 0.0)
    position = (finite.abs() / UNIT).log1p_().copysign_(finite)
    low, high = _range(position, valid, ranks)
    step = (high - low).div_(bins).clamp_(min=torch.finfo(position.dtype).tiny)
    index = position.sub_(low).div_(step).ceil_().clamp_(0, bins).long()
    edges = low.double() + step.double() * torch.arange(bins + 1, device=errors.device)
    edges = edges.abs().expm1_().mul_(UNIT).copysign_(edges)
    widths = torch.nn.functional.pad(edges.diff(), (1, 0))
    largest = torch.maximum(edges[:, 0].abs(), edges[:, -1].abs())
    return RowBins(index, widths, largest)


def _range(position: Tensor, valid: Tensor | None, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """(R, 1) smallest and largest position of the valid pixels of all ranks."""
    infinity = float("inf")
    below = position if valid is None else position.masked_fill(~valid, infinity)
    above = position if valid is None else position.masked_fill(~valid, -infinity)
    if position.shape[1] == 0:
        ends = position.new_full((2, len(position)), -infinity)
    else:
        ends = torch.stack([-below.amin(1), above.amax(1)])
    ends = ranks.max_(ends).nan_to_num(neginf=0.0)
    low, high = -ends[0], ends[1]
    return low[:, None], torch.maximum(low, high)[:, None]


# ---- Gains of bins -------------------------------------------------------------------------------

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


def error_bounds(
    bins: Bins,
    edges: Edges,
    gains: tuple[Tensor, Tensor],
    set_function: SetFunction,
    widths: Tensor,
    weights: Tensor,
) -> ErrorBounds:
    """Bounds of the module docstring, from counts of pixels without weights.

    The gains of a bin lie between those of its first and its last pixel.

    Args:
        bins: (R, K) counts.
        edges, gains: theirs; (R, K) gains of foreground and background.
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
