"""Marginal gains by sorting the errors: Algorithm 1 with gains in closed form.

Costs O(p log p) a row. On several ranks each gathers the errors of all: exact, at the price of
N times the memory and of sorting everything on every rank. ``histogram.py`` needs neither.
"""

import torch
from torch import Tensor

from .ranks import ONE_PROCESS, Ranks
from .set_functions import Counts, SetFunction

# Rows are worked on in groups of about this many pixels, so that the memory for permutations and
# counts (some 50 bytes a pixel) does not grow with the number of rows.
PIXELS_AT_ONCE = 2**20
# From this length on, CPU rows are worked on one by one: PyTorch's radix sort, several times
# faster than its comparison sort, takes integer keys in one dimension of at least this size.
RADIX_SORT_PIXELS = 2**15
# float32 represents every integer up to here.
EXACT_FLOAT32_COUNT = 2**24


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
        keys: (N, P) integers that increase as the errors decrease. Those of invalid pixels are
            overwritten.
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
    gains = torch.empty(keys.shape, dtype=dtype, device=keys.device)
    if valid is not None:
        keys.masked_fill_(~valid, torch.iinfo(keys.dtype).max)
    step = _rows_at_once(keys)
    for start in range(0, len(keys), step):
        rows = slice(start, start + step)
        keep = None if valid is None else valid[rows]
        is_foreground = foreground[rows] if keep is None else foreground[rows] & keep
        order = _increasing_order(keys[rows])
        ranked = _take(is_foreground, order)
        amount: Tensor | float = 1.0
        if weights is None:
            counts = _counts_before(ranked, keep, dtype)
        else:
            valid_weights = weights[rows] if keep is None else weights[rows] * keep
            amount = valid_weights.gather(-1, order)
            counts = _weights_before(ranked, amount)
        ranked_gains = torch.where(
            ranked,
            set_function.foreground_gain(counts, amount),
            set_function.background_gain(counts, amount),
        )
        gains[rows].scatter_(-1, order, ranked_gains.to(dtype))
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


def _rows_at_once(keys: Tensor) -> int:
    length = max(1, keys.shape[1])
    if keys.device.type == "cpu" and length >= RADIX_SORT_PIXELS:
        return 1
    return max(1, PIXELS_AT_ONCE // length)


def _increasing_order(keys: Tensor) -> Tensor:
    """Permutation (N, P) that sorts each row; equal keys keep the order of their index."""
    if len(keys) == 1:
        return torch.sort(keys[0], stable=True).indices[None]
    return torch.sort(keys, dim=-1, stable=True).indices


def _take(mask: Tensor, order: Tensor) -> Tensor:
    """Rows of the mask (N, P) in the given order."""
    if len(mask) == 1:  # twice as fast as gather on the CPU
        return mask[0].index_select(0, order[0])[None]
    return mask.gather(-1, order)


def _counts_before(ranked: Tensor, valid: Tensor | None, dtype: torch.dtype) -> Counts:
    """Counts of the set {pi_1 ... pi_(i-1)} at each rank i; ranked is the sorted foreground.

    Invalid pixels come last in the order, so they change no count that is used.
    """
    length = ranked.shape[-1]
    if length > EXACT_FLOAT32_COUNT:
        dtype = torch.float64
    # Integers add up to the same number in any order, on any device.
    whole = torch.int64 if length >= 2**31 else torch.int32
    sums = torch.zeros(len(ranked), length + 1, dtype=whole, device=ranked.device)
    torch.cumsum(ranked, -1, dtype=whole, out=sums[:, 1:])
    misses, size = sums[:, :-1].to(dtype), sums[:, -1:].to(dtype)
    rank = torch.arange(length, dtype=dtype, device=ranked.device)
    if valid is None:
        pixels = torch.full_like(size, length)
    else:
        pixels = valid.sum(-1, keepdim=True).to(dtype)
    return Counts(misses, rank - misses, size, pixels)


def _weights_before(ranked: Tensor, amount: Tensor) -> Counts:
    """The same where the pixels have weights; amount (N, P) float64, in the sorted order."""
    missed = amount * ranked
    rest = amount - missed
    size, other = missed.sum(-1, keepdim=True), rest.sum(-1, keepdim=True)
    return Counts(missed.cumsum(-1) - missed, rest.cumsum(-1) - rest, size, size + other)
