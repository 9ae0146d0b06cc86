"""The Lovász extension of a set function, its value and its gradient (Eq. 8-9, Algorithm 1).

The gradient of Eq. 8 with respect to the errors is the vector of marginal gains of Eq. 9, and the
value is its dot product with the errors. One autograd function computes the gains once, in the
forward pass, and keeps nothing else: no graph through sort and cumulative sum.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed

from .histogram import Bins, Method, edges_of, error_bounds, row_bins
from .inputs import checked_weights, eager, not_0_or_1
from .ranks import ONE_PROCESS, Ranks
from .set_functions import Counts, SetFunction, checked

# ---- Marginal gains by sorting -------------------------------------------------------------------
#
# Algorithm 1 with gains in closed form. Costs O(p log p) a row. On several ranks each gathers the
# errors of all: exact, at the price of N times the memory and of sorting everything on every rank.
# ``histogram.py`` needs neither.


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
        valid = torch.ones_like(foreground) if valid is None else valid
        masks, own = ranks.gather(foreground.to(torch.uint8) + 2 * valid.to(torch.uint8))
        keys, _ = ranks.gather(keys)
        if weights is not None:
            weights, _ = ranks.gather(weights)
        of_all = (keys, masks % 2 == 1, set_function, masks >= 2, dtype, weights)
        return marginal_gains(*of_all)[:, own].contiguous()
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
        foreground, set_function, valid, weights, ranks: as of :func:`marginal_gains`.
        how: the method.

    Returns:
        (R, P) gains, of the dtype of the errors; of a pixel with its weight, if it has one.
    """
    rows, own = errors.shape
    pixels = own if ranks.alone else int(ranks.sum_(torch.tensor(own, device=errors.device)))
    if how.sorts(pixels, errors.dtype, weights is not None):
        keys = decreasing_keys(ranked)
        return marginal_gains(keys, foreground, set_function, valid, errors.dtype, weights, ranks)
    bins = how.bins_for(pixels)
    # All ranks take the same rows at once, however many pixels each has: they add up their counts.
    step = max(1, NUMBERS_AT_ONCE // (bins + max(1, pixels)))
    gains = torch.empty_like(errors)
    for start in range(0, rows, step):
        given = (errors, ranked, foreground, valid, weights)
        some: list[Any] = [one if one is None else one[start : start + step] for one in given]
        gains[start : start + step] = _counted(set_function, how, bins, ranks, *some)
    return gains


def _counted(
    set_function: SetFunction,
    how: Method,
    bins: int,
    ranks: Ranks,
    errors: Tensor,
    ranked: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    weights: Tensor | None,
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
    table = set_function.mean_gains(edges.above, *held)
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


# ---- The extension -------------------------------------------------------------------------------


@eager
def lovasz_extension(
    errors: Tensor,
    foreground: Tensor,
    set_function: SetFunction | Callable[[Tensor, Tensor, Tensor], Tensor],
    *,
    valid: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    method: str = "auto",
    bins: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Lovász extension of ``set_function`` at ``errors``, row by row (Eq. 8-9, Algorithm 1).

    Rows are independent problems: (P,) gives one value, (N, P) gives N values, and a grid of
    two-pixel problems (H, W, 2) gives the surface (H, W) that Figures 1 and 2 draw.

    Where errors tie, the gradient is a subgradient: sorted, the one that ranks pixels of equal
    error in the order of their index; it is the same at every call. Double backward works: the
    extension is piecewise linear, so its second derivative with respect to the errors is zero.

    Args:
        errors: (..., P) floating. The paper's errors are non-negative; Eq. 8 takes any sign.
            float16 and bfloat16 are computed in float32, and get a gradient of their own dtype.
        foreground: (..., P) bool, or integers 0 and 1: the pixels of the class.
        set_function: a :class:`SetFunction`, such as ``JaccardLoss()``, or a plain function of
            the tensors (false negatives, false positives, foreground size) that is 0 where the
            first two are. One that is not submodular is refused, with a counterexample.
        valid: (..., P) bool. Pixels where it is false do not exist: they have no part in the
            counts and a zero gradient. All are valid by default.
        pixel_weight: (..., P) finite and at least 0: what each pixel adds to the counts. 1 by
            default; a weight of 2 is that of two pixels of the same error.
        method: "sort" ranks the errors exactly. "histogram" counts them in bins, in linear time:
            the value is too small by at most the width of the widest bin that is not empty times
            the set function of all pixels; ``histogram.py`` derives closer bounds. "auto" counts
            rows of at least 131,072 pixels where those bounds are below the rounding error of
            Algorithm 1 in float32, and sorts the others, and all in float64 or with weights.
        bins: number of bins, from 2 to 2**20; 2**14 by default, 2**15 from 2**19 pixels on
            and 2**13 below 2**15 pixels.
        group: process group whose ranks hold parts of the same rows: P may differ between them.
            Every rank gets the values of the whole rows, and the gradient for its own errors times
            the number of ranks, for DistributedDataParallel to average. "histogram" adds up two
            integers a bin over ranks; "sort" gathers all errors on all ranks.

    Returns:
        (...) values, float64 for float64 errors, else float32. A row without valid pixels is 0.
        NaN errors give NaN.

    Raises:
        TypeError: a dtype that is not listed above.
        ValueError: shapes or devices that differ, a foreground value other than 0 and 1, a weight
            or option out of range, or a set function that is not submodular.
    """
    _check_rows(errors, foreground, valid)
    ranks, how = Ranks(group), Method(method, bins)
    shape, length = errors.shape[:-1], errors.shape[-1]
    flat = (shape.numel(), length)
    weights = None if pixel_weight is None else checked_weights(pixel_weight, errors, "errors")
    values: Tensor = LovaszExtensionFunction.apply(
        errors.reshape(flat),
        None,
        foreground.reshape(flat).bool(),
        None if valid is None else valid.reshape(flat),
        None if weights is None else weights.reshape(flat),
        checked(set_function),
        how,
        ranks,
    )
    return ranks.total(values).reshape(shape)


class LovaszExtensionFunction(torch.autograd.Function):
    """(N, P) errors to (N,) values of this rank's part; saves the gains, which are the gradient.

    A sort ranks the errors by ``ranked``, or where it is None by themselves.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        errors: Tensor,
        ranked: Tensor | None,
        foreground: Tensor,
        valid: Tensor | None,
        weights: Tensor | None,
        set_function: SetFunction,
        how: Method,
        ranks: Ranks,
    ) -> Tensor:
        ctx.errors_dtype = errors.dtype
        errors = errors.to(torch.promote_types(errors.dtype, torch.float32))
        if valid is not None:
            errors = errors.masked_fill(~valid, 0.0)
        gains = row_gains(
            errors,
            errors if ranked is None else ranked,
            foreground,
            set_function,
            valid,
            how,
            weights=weights,
            ranks=ranks,
        )
        ctx.save_for_backward(gains)
        # An infinite error of gain zero adds nothing.
        products = (gains * errors).masked_fill_((gains == 0) & errors.isinf(), 0.0)
        return products.sum(-1)

    @staticmethod
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (gains,) = ctx.saved_tensors
        gradient = (grad_values[:, None] * gains).to(ctx.errors_dtype)
        return gradient, None, None, None, None, None, None, None


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
    wrong = not_0_or_1(foreground)
    if wrong is not None:
        raise ValueError(f"foreground holds {wrong}, must hold 0 and 1 alone")
