"""Gains of rows of errors by the method asked for: sorted, or counted in bins."""

import torch
from torch import Tensor

from .error_bins import RowBins, row_bins
from .histogram import (
    BinGains,
    Bins,
    Method,
    bin_gains,
    edges_of,
    error_bounds,
)
from .ranks import ONE_PROCESS, Ranks
from .set_functions import SetFunction
from .sorting import decreasing_keys, marginal_gains

# Rows are counted in groups of about this many bins and pixels.
NUMBERS_AT_ONCE = 2**22


def row_gains(
    errors: Tensor,
    ranked: Tensor,
    foreground: Tensor,
    set_function: SetFunction,
    valid: Tensor | None,
    how: Method,
    *,
    weights: Tensor | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Tensor:
    """Gains g of Eq. 9 in the order of the pixels, outside autograd.

    Args:
        errors: (R, P) float32 or float64.
        ranked: (R, P) floating, what a sort ranks the errors by: themselves, or what they were
            before they were rounded.
        foreground: (R, P) bool.
        set_function: submodular.
        valid: (R, P) bool or None; other pixels have gain zero and no part in the counts.
        how: the method.
        weights: (R, P) float64 or None; what each pixel adds to the counts.
        ranks: whose pixels make the rows together.

    Returns:
        (R, P) gains, of the dtype of the errors; of a pixel with its weight, if it has one.
    """
    pixels = errors.shape[1]
    if not ranks.alone:
        pixels = int(ranks.sum_(torch.tensor(pixels, device=errors.device)))
    if how.sorts(pixels, errors.dtype, weights is not None):
        keys = decreasing_keys(ranked)
        return marginal_gains(keys, foreground, set_function, valid, errors.dtype, weights, ranks)
    gains, bin_count = torch.empty_like(errors), how.bins_for(pixels)

    def of(mask: Tensor | None, rows: slice | Tensor) -> Tensor | None:
        return None if mask is None else mask[rows]

    step = max(1, NUMBERS_AT_ONCE // (bin_count + max(1, errors.shape[1])))
    for start in range(0, len(errors), step):
        rows = slice(start, start + step)
        binned = row_bins(errors[rows], of(valid, rows), bin_count, ranks)
        bins = _count(binned, foreground[rows], of(valid, rows), of(weights, rows), ranks)
        edges = edges_of(bins)
        table = bin_gains(bins, edges, set_function)
        gains[rows] = _look_up(table, binned, foreground[rows], of(valid, rows), of(weights, rows))
        if how.name == "auto":
            bounds = error_bounds(
                bins, edges, table, set_function, binned.widths, _all_but_lowest(binned.widths)
            )
            coarse = ~bounds.below_float32(binned.largest)
            if coarse.any():
                at = coarse.nonzero()[:, 0] + start
                gains[at] = marginal_gains(
                    decreasing_keys(ranked[at]),
                    foreground[at],
                    set_function,
                    of(valid, at),
                    errors.dtype,
                    ranks=ranks,
                )
    return gains


def _count(
    binned: RowBins, foreground: Tensor, valid: Tensor | None, weights: Tensor | None, ranks: Ranks
) -> Bins:
    """Counts, or sums of weights, of the bins of all ranks, in float64."""
    dtype = torch.int64 if weights is None else torch.float64
    amount = torch.ones_like(foreground, dtype=dtype) if weights is None else weights
    if valid is not None:
        amount = amount * valid
    missed = amount * foreground
    sums = torch.zeros(2, *binned.widths.shape, dtype=dtype, device=foreground.device)
    sums[0].scatter_add_(1, binned.bin, missed)
    sums[1].scatter_add_(1, binned.bin, amount - missed)
    return Bins(*ranks.sum_(sums).double())


def _look_up(
    table: BinGains,
    binned: RowBins,
    foreground: Tensor,
    valid: Tensor | None,
    weights: Tensor | None,
) -> Tensor:
    gains = torch.where(
        foreground,
        table.foreground.gather(1, binned.bin),
        table.background.gather(1, binned.bin),
    )
    if weights is not None:
        gains = gains * weights
    return gains if valid is None else gains.masked_fill(~valid, 0.0)


def _all_but_lowest(widths: Tensor) -> Tensor:
    """Weight 1 for the bins, and 0 for the lowest: its errors are equal, in any order."""
    weights = torch.ones_like(widths[0])
    weights[0] = 0.0
    return weights
