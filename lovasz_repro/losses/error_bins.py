"""Which bin an error falls into: the square root for errors in [0, 1], a logarithm for others.

**Probabilities.** The errors of Lovász-Softmax (Eq. 11) lie in [0, 1], and those of a trained
network crowd near 0. With bins of equal width in the square root, bin k holds the errors in
[(k/K)^2, ((k+1)/K)^2): width at most 2/K near one, and 1/K^2 near zero. For a mediocre network
that is as good as bins of equal width; for a saturated one, whose errors all fall into the lowest
equal bins, the gradient was five times and the loss ten thousand times closer. The square root of
a probability costs nothing: it is an exponential of half the logit.

**Other errors.** Those of a hinge have no largest value, so equal bins would need the largest error
of the batch, and one outlier of 1e6 would put all others into one bin. The bits of a float have no
such scale, but waste bins on sizes that do not occur. Both together: bins of equal width in
log(1 + |e| / UNIT), with the sign of e, between the smallest and the largest error of the row
itself. An outlier of 1e6 among errors of 4 widens them 2.5 times; zeros share the lowest bin with
nothing else.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .ranks import Ranks

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
