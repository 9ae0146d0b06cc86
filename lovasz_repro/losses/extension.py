"""The Lovász extension of a set function, its value and its gradient (Eq. 8-9, Algorithm 1).

The gradient of Eq. 8 with respect to the errors is the vector of marginal gains of Eq. 9, and the
value is its dot product with the errors. One autograd function computes the gains once, in the
forward pass, and keeps nothing else: no graph through sort and cumulative sum.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lovasz_repro.losses.eager import eager
from lovasz_repro.losses.set_functions import CountFunction, Counts, SetFunction

# Rows are worked on in groups of about this many pixels, so that the memory for permutations and
# counts (some 50 bytes a pixel) does not grow with the number of rows.
PIXELS_AT_ONCE = 2**20
# From this length on, CPU rows are worked on one by one: PyTorch's radix sort, several times
# faster than its comparison sort, takes integer keys in one dimension of at least this size.
RADIX_SORT_PIXELS = 2**15
# float32 represents every integer up to here.
EXACT_FLOAT32_COUNT = 2**24


@eager
def lovasz_extension(
    errors: Tensor,
    foreground: Tensor,
    set_function: SetFunction | Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    valid: Tensor | None = None,
) -> Tensor:
    """Lovász extension of ``set_function`` at ``errors``, row by row (Eq. 8-9, Algorithm 1).

    Rows are independent problems: (P,) gives one value, (N, P) gives N values, and a grid of
    two-pixel problems (H, W, 2) gives the surface (H, W) that Figures 1 and 2 draw.

    Where errors tie, the gradient is the subgradient that ranks pixels of equal error in the
    order of their index; it is the same at every call. Double backward works: the extension is
    piecewise linear, so its second derivative with respect to the errors is zero.

    Args:
        errors: (..., P) floating. The paper's errors are non-negative; Eq. 8 takes any sign.
            float16 and bfloat16 are computed in float32, and get a gradient of their own dtype.
        foreground: (..., P) bool, or integers 0 and 1: the pixels of the class.
        set_function: a :class:`SetFunction`, such as ``JaccardLoss()``, or a plain function of
            the tensors (false negatives, false positives, foreground size) that is 0 where the
            first two are.
        valid: (..., P) bool. Pixels where it is false do not exist: they have no part in the
            counts and a zero gradient. All are valid by default.

    Returns:
        (...) values, float64 for float64 errors, else float32. A row without valid pixels is 0.
        NaN errors give NaN.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, or a foreground value other than 0 and 1.
    """
    _check_rows(errors, foreground, valid)
    if not isinstance(set_function, SetFunction):
        set_function = CountFunction(set_function)
    shape, length = errors.shape[:-1], errors.shape[-1]
    rows = shape.numel()
    values: Tensor = _LovaszExtension.apply(
        errors.reshape(rows, length),
        foreground.reshape(rows, length).bool(),
        None if valid is None else valid.reshape(rows, length),
        set_function,
    )
    return values.reshape(shape)


class _LovaszExtension(torch.autograd.Function):
    """(N, P) errors to (N,) values; saves the gains, which are the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        errors: Tensor,
        foreground: Tensor,
        valid: Tensor | None,
        set_function: SetFunction,
    ) -> Tensor:
        ctx.errors_dtype = errors.dtype
        errors = errors.to(torch.promote_types(errors.dtype, torch.float32))
        if valid is not None:
            errors = errors.masked_fill(~valid, 0.0)
        keys = decreasing_keys(errors)
        gains = marginal_gains(keys, foreground, set_function, valid, errors.dtype)
        ctx.save_for_backward(gains)
        return gain_error_products(gains, errors).sum(-1)

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor, None, None, None]:
        (gains,) = ctx.saved_tensors
        return (grad_values[:, None] * gains).to(ctx.errors_dtype), None, None, None


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
) -> Tensor:
    """Gains g of Eq. 9 in the order of the pixels (Algorithm 1), outside autograd.

    Args:
        keys: (N, P) integers that increase as the errors decrease. Those of invalid pixels are
            overwritten.
        foreground: (N, P) bool.
        set_function: the set function whose gains are wanted.
        valid: (N, P) bool or None; other pixels have gain zero and no part in the counts.
        dtype: of the gains.

    Returns:
        (N, P) gains.
    """
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
        counts = _counts_before(ranked, keep, dtype)
        ranked_gains = torch.where(
            ranked, set_function.foreground_gain(counts), set_function.background_gain(counts)
        )
        gains[rows].scatter_(-1, order, ranked_gains.to(dtype))
    return gains if valid is None else gains.masked_fill_(~valid, 0.0)


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


def _check_rows(errors: Tensor, foreground: Tensor, valid: Tensor | None) -> None:
    if not errors.is_floating_point():
        raise TypeError(f"errors must be a floating tensor, got {errors.dtype}")
    if errors.dim() == 0:
        raise ValueError("errors must have shape (..., P), got a scalar")
    masks = {"foreground": foreground} | ({} if valid is None else {"valid": valid})
    for name, mask in masks.items():
        if mask.shape != errors.shape:
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}, errors have {tuple(errors.shape)}"
            )
        if mask.device != errors.device:
            raise ValueError(f"{name} is on {mask.device}, errors are on {errors.device}")
    if valid is not None and valid.dtype != torch.bool:
        raise TypeError(f"valid must be a bool tensor, got {valid.dtype}")
    if foreground.is_floating_point() or foreground.is_complex():
        raise TypeError(f"foreground must be a bool or integer tensor, got {foreground.dtype}")
    if foreground.dtype != torch.bool and foreground.numel() > 0:
        low, high = torch.stack(torch.aminmax(foreground)).tolist()
        if low < 0 or high > 1:
            raise ValueError(
                f"foreground holds {low if low < 0 else high}, must hold 0 and 1 alone"
            )
