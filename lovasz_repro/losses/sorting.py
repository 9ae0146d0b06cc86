"""Marginal gains by sorting the errors: Algorithm 1 with gains in closed form.

Costs O(p log p) a row. On several ranks each gathers the errors of all: exact, at the price of
N times the memory and of sorting everything on every rank. ``histogram.py`` needs neither.
"""

import torch
from torch import Tensor

from .ranks import ONE_PROCESS, Ranks
from .set_functions import Counts, SetFunction


def gain_error_products(gains: Tensor, errors: Tensor) -> Tensor:
    """Terms of the sum of Eq. 8; an infinite error of gain zero adds nothing."""
    return (gains * errors).masked_fill_((gains == 0) & errors.isinf(), 0.0)


def decreasing_keys(errors: Tensor) -> Tensor:
    """Integers whose increasing order is the decreasing order of the errors.

    The bits of a float, read as an integer, grow with its value, and for negative floats with its
    magnitude; flipping all bits but the sign puts those right. NaN comes first or last.

    Args:
        errors: (N, P) float32 or float64.

    Returns:
        (N, P) int32 or int64.
    """
    integer = {torch.float32: torch.int32, torch.float64: torch.int64}[errors.dtype]
    bits = (errors + 0.0).view(integer)  # + 0.0 turns -0.0 into 0.0
    sign = bits >> (torch.iinfo(integer).bits - 1)  # 0, or -1 for negative floats
    return sign.bitwise_and_(torch.iinfo(integer).max).bitwise_xor_(bits).bitwise_not_()


def marginal_gains(
    keys: Tensor,
    foreground: Tensor,
    set_function: SetFunction,
    valid: Tensor | None,
    dtype: torch.dtype,
    weights: Tensor | None = None,
    ranks: Ranks = ONE_PROCESS,
) -> Tensor:
    """Gains g of Eq. 9 in the order of the pixels (Algorithm 1), outside autograd.

    Args:
        keys: (N, P) integers that increase as the errors decrease.
        foreground: (N, P) bool.
        set_function: the set function whose gains are wanted.
        valid: (N, P) bool or None; other pixels have gain zero and no part in the counts.
        dtype: of the gains.
        weights: (N, P) float64 or None; how much each pixel counts.
        ranks: whose pixels make the rows together.

    Returns:
        (N, P) gains.
    """
    if not ranks.alone:
        return _gains_of_all(keys, foreground, set_function, valid, dtype, weights, ranks)
    amount = torch.ones_like(keys, dtype=torch.float64) if weights is None else weights
    if valid is not None:
        keys, amount = keys.masked_fill(~valid, torch.iinfo(keys.dtype).max), amount * valid
    # In one dimension, integer keys get PyTorch's radix sort on a CPU.
    order = torch.sort(keys.squeeze(0), dim=-1, stable=True).indices.view_as(keys)
    ranked, amount = foreground.gather(-1, order), amount.gather(-1, order)
    missed = amount * ranked
    rest = amount - missed
    size = missed.sum(-1, keepdim=True)
    counts = Counts(
        missed.cumsum(-1) - missed,
        rest.cumsum(-1) - rest,
        size,
        size + rest.sum(-1, keepdim=True),
    )
    ranked_gains = torch.where(
        ranked,
        set_function.foreground_gain(counts, amount),
        set_function.background_gain(counts, amount),
    )
    gains = torch.empty_like(keys, dtype=dtype).scatter_(-1, order, ranked_gains.to(dtype))
    return gains if valid is None else gains.masked_fill_(~valid, 0.0)


def _gains_of_all(
    keys: Tensor,
    foreground: Tensor,
    set_function: SetFunction,
    valid: Tensor | None,
    dtype: torch.dtype,
    weights: Tensor | None,
    ranks: Ranks,
) -> Tensor:
    """This rank's part of the gains of rows that all ranks make together."""
    valid = torch.ones_like(foreground) if valid is None else valid
    masks = ranks.gather(foreground.to(torch.uint8) + 2 * valid.to(torch.uint8)).values
    every = ranks.gather(keys)
    gains = marginal_gains(
        every.values,
        masks % 2 == 1,
        set_function,
        masks >= 2,
        dtype,
        None if weights is None else ranks.gather(weights).values,
    )
    return gains[:, every.own].contiguous()
