"""Gains of rows of errors by the method asked for: sorted, or counted in bins."""

import torch
from torch import Tensor

from .error_bins import row_bins
from .histogram import Bins, Method, bin_gains, edges_of, error_bounds
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
    rows, own = errors.shape
    pixels = own if ranks.alone else int(ranks.sum_(torch.tensor(own, device=errors.device)))
    if how.sorts(pixels, errors.dtype, weights is not None):
        keys = decreasing_keys(ranked)
        return marginal_gains(keys, foreground, set_function, valid, errors.dtype, weights, ranks)
    bins = how.bins_for(pixels)
    step = max(1, NUMBERS_AT_ONCE // (bins + max(1, own)))

    gains = torch.empty_like(errors)
    for start in range(0, rows, step):
        some = slice(start, start + step)
        gains[some] = _counted(
            errors[some],
            ranked[some],
            foreground[some],
            set_function,
            None if valid is None else valid[some],
            how,
            bins,
            None if weights is None else weights[some],
            ranks,
        )
    return gains


def _counted(
    errors: Tensor,
    ranked: Tensor,
    foreground: Tensor,
    set_function: SetFunction,
    valid: Tensor | None,
    how: Method,
    bins: int,
    weights: Tensor | None,
    ranks: Ranks,
) -> Tensor:
    """Gains from counts, or sums of weights, of the bins of all ranks."""
    binned = row_bins(errors, valid, bins, ranks)
    amount = torch.ones_like(errors, dtype=torch.float64) if weights is None else weights
    if valid is not None:
        amount = amount * valid
    sums = amount.new_zeros(2, *binned.widths.shape)
    sums[0].scatter_add_(1, binned.bin, amount * foreground)
    sums[1].scatter_add_(1, binned.bin, amount * ~foreground)
    held = Bins(*ranks.sum_(sums))
    edges = edges_of(held)
    table = bin_gains(held, edges, set_function)
    missed, wrong = (gain.gather(1, binned.bin) for gain in table)
    gains = torch.where(foreground, missed, wrong)
    gains = (gains if weights is None else gains * weights).to(errors.dtype)
    if valid is not None:
        gains.masked_fill_(~valid, 0.0)
    if how.name == "auto":
        # The errors of the lowest bin are equal, in any order.
        but_lowest = (torch.arange(bins + 1, device=errors.device) > 0).double()
        bounds = error_bounds(held, edges, table, set_function, binned.widths, but_lowest)
        at = (~bounds.below_float32(binned.largest)).nonzero()[:, 0]
        if len(at):
            mask = None if valid is None else valid[at]
            args = (decreasing_keys(ranked[at]), foreground[at], set_function, mask, errors.dtype)
            gains[at] = marginal_gains(*args, ranks=ranks)
    return gains
