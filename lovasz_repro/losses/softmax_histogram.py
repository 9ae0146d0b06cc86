"""Lovász-Softmax in linear time: counts, gains, loss, and the gradient when it is asked for."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .averaging import Measure, Rows, class_gains
from .error_bins import ProbabilityBins
from .histogram import Bins, Method, bin_gains, edges_of, error_bounds
from .inputs import MulticlassPixels, PixelWeights
from .passes import count, gradient, slots_for
from .plain_passes import Softmax, class_errors
from .slots import Slots
from .softmax_sort import ONCE
from .sorting import EXACT_FLOAT32_COUNT, decreasing_keys
from .window import AccumulationWindow

# Bins that are read at once: on a CPU some arrays of this many numbers fit the caches.
BINS_AT_ONCE = {"cpu": 2**16, "other": 2**24}


class _Problem(NamedTuple):
    """What is asked for."""

    pixels: MulticlassPixels
    rows: Rows
    measure: Measure
    how: Method
    bins: ProbabilityBins
    counted: list[int]
    """The class of each place in the tables."""


class _Readings(NamedTuple):
    """What the counts say."""

    tables: Tensor
    """(2, S, R, K + 1) gains of the bins of background [0] and foreground [1], times the weights
    of Eq. 13."""
    values: Tensor
    """(S, R) float64 share in the loss of each class and row."""
    coarse: Tensor
    """(S, R) bool: where the bins are not as good as a sort in float32."""


class CountedLovaszSoftmax(torch.autograd.Function):
    """Logits (B, C, P) to the loss of the batch of all ranks.

    With one row an image, to this rank's part of it.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        logits: Tensor,
        pixels: MulticlassPixels,
        rows: Rows,
        measure: Measure,
        how: Method,
        window: AccumulationWindow | None,
    ) -> Tensor:
        bins = ProbabilityBins(how.bins_for(rows.most_pixels))
        used = (rows.weights > 0).any(0).nonzero()[:, 0].tolist()
        # the micro-batches of a window must agree on what they count
        slots = slots_for(logits, used) if window is None else None
        counted = list(range(logits.shape[1])) if slots is None else used
        problem = _Problem(pixels, rows, measure, how, bins, counted)
        tally, softmax = count(
            logits, pixels.labels, pixels.valid, bins, len(rows.counts), measure.weights, slots
        )
        flat = measure.row_ranks.sum_(tally.flat)
        if window is not None:
            flat = window.with_counts(flat)
        readings = _read(flat[:-1].view(tally.sums.shape), problem, softmax.top.dtype)
        loss = readings.values.sum()
        exact: dict[int, Tensor] = {}
        if how.name == "auto":
            exact, part = _exact_gains(readings.coarse, logits, problem, softmax)
            if exact:
                rest = [place for place, item in enumerate(counted) if item not in exact]
                loss = readings.values[rest].sum() + measure.row_ranks.sum_(part)
        loss = loss + torch.where(flat[-1] > 0, torch.nan, 0.0)
        if window is not None:
            window.include(pixels.total_counts, flat)
        # Saved, not kept on ctx: autograd then notices what is changed in place before the
        # backward pass, and lets go of everything behind it.
        weights = measure.weights or (None, None)
        places = slots or (None, None)
        kept = (pixels.labels, *softmax[:4], *weights, *places, *exact.values())
        ctx.save_for_backward(logits, readings.tables, *kept)
        ctx.exact, ctx.clean, ctx.bins = list(exact), softmax.clean, bins.bins
        return loss.to(softmax.top.dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():
            raise RuntimeError(ONCE)
        logits, tables, labels, top, scale, probability, error, *kept = ctx.saved_tensors
        weights, places, gains = kept[:2], kept[2:4], kept[4:]
        result = gradient(
            logits,
            labels,
            Softmax(top, scale, probability, error, ctx.clean),
            tables * grad_loss,
            {item: each * grad_loss for item, each in zip(ctx.exact, gains, strict=True)},
            None if weights[0] is None else PixelWeights(*weights),
            ctx.bins,
            None if places[0] is None else Slots(*places),
        )
        return result, None, None, None, None, None


def _read(sums: Tensor, problem: _Problem, dtype: torch.dtype) -> _Readings:
    """Gains, values and error bounds from the sums of the first pass, some rows at a time."""
    shape, device, bins = sums.shape[-4:], sums.device, problem.bins
    weighted = problem.measure.weights is not None
    large = problem.rows.most_pixels > EXACT_FLOAT32_COUNT
    wide = torch.float64 if weighted or large else dtype
    sums = sums.flatten(-3, -2)  # (..., 2, S R, K + 1)
    tables = torch.zeros(2, *sums.shape[-2:], dtype=dtype, device=device)
    # 0 in a place for other classes
    weights = torch.zeros(shape[1:3], dtype=torch.float64, device="cpu")
    weights[: len(problem.counted)] = problem.rows.weights.T[problem.counted]
    filled = len(problem.counted) * shape[2]
    weights = weights.flatten().to(device)
    values, coarse = torch.zeros_like(weights), torch.zeros_like(weights, dtype=torch.bool)
    widths, logit_weights = bins.widths(device).to(wide), bins.logit_weights(device).to(wide)
    step = max(1, BINS_AT_ONCE["cpu" if device.type == "cpu" else "other"] // shape[-1])
    for start in range(0, filled, step):
        rows = slice(start, min(start + step, filled))
        some = sums[..., rows, :]
        counts, positions = some if weighted else bins.unpack(some, wide)  # (2, rows, K + 1)
        held = Bins(counts[1], counts[0])
        edges = edges_of(held)
        gains = bin_gains(held, edges, problem.measure.set_function)
        error_sums = bins.error_sums(counts, positions)
        value = error_sums[1].mul_(gains.foreground).sum(-1, dtype=torch.float64)
        value += error_sums[0].mul_(gains.background).sum(-1, dtype=torch.float64)
        values[rows] = torch.where(weights[rows] > 0, value * weights[rows], 0.0)
        if problem.how.name == "auto":
            bounds = error_bounds(
                held, edges, gains, problem.measure.set_function, widths, logit_weights
            )
            coarse[rows] = ~bounds.below_float32()
        weight = weights[rows, None].to(wide)
        tables[0, rows] = gains.background * weight
        tables[1, rows] = gains.foreground * weight
    coarse &= weights > 0
    places = shape[1:3]  # (S, R)
    return _Readings(tables.view(shape), values.view(places), coarse.view(places))


def _exact_gains(
    coarse: Tensor, logits: Tensor, problem: _Problem, softmax: Softmax
) -> tuple[dict[int, Tensor], Tensor]:
    """Gains (B, P) from a sort, for the classes whose bins are too coarse in any row.

    Returns:
        The gains by class, and this rank's part of the loss of these classes, 0-dim float64.
    """
    exact, labels = {}, problem.pixels.labels
    part = torch.zeros((), dtype=torch.float64, device=logits.device)
    for place in coarse.any(1).nonzero()[:, 0].tolist():
        item = problem.counted[place]
        errors = class_errors(logits, labels, softmax, item)
        gains = class_gains(
            decreasing_keys(errors),
            labels == item,
            problem.pixels,
            problem.rows,
            item,
            problem.measure,
            errors.dtype,
        )
        exact[item] = gains
        part += errors.mul_(gains).sum(dtype=torch.float64)
    return exact, part
