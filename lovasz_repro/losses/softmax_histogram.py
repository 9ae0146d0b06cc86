"""Lovász-Softmax in linear time: counts, gains, loss, and the gradient when it is asked for."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .averaging import Measure, Rows, class_gains
from .error_bins import ProbabilityBins
from .histogram import Bins, Method, bin_gains, edges_of, error_bounds
from .inputs import MulticlassPixels, PixelWeights
from .passes import count, gradient, jaccard_kernels
from .plain_passes import Softmax, class_errors
from .softmax_sort import ONCE
from .sorting import EXACT_FLOAT32_COUNT, decreasing_keys
from .window import AccumulationWindow


class _Problem(NamedTuple):
    """What is asked for."""

    pixels: MulticlassPixels
    rows: Rows
    measure: Measure
    how: Method
    bins: ProbabilityBins


class _Readings(NamedTuple):
    """What the counts say."""

    tables: Tensor
    """(2, C, R, K + 1) gains of the bins of background [0] and foreground [1], times the weights
    of Eq. 13."""
    values: Tensor
    """(C, R) float64 share in the loss of each class and row."""
    coarse: Tensor
    """(C, R) bool: where the bins are not as good as a sort in float32."""


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
        problem = _Problem(pixels, rows, measure, how, bins)
        counted = (rows.weights > 0).any(0)
        if window is not None:  # its micro-batches must agree on what they count
            counted.fill_(True)
        args = (logits, pixels.labels, pixels.valid, counted, len(rows.counts), bins)
        tally, softmax = count(*args, measure.weights)
        flat = measure.row_ranks.sum_(tally.flat)
        if window is not None:
            flat = window.with_counts(flat)
        readings = _read(flat[:-1].view(tally.sums.shape), problem, softmax.top.dtype)
        loss = readings.values.sum()
        exact: dict[int, Tensor] = {}
        if how.name == "auto":
            exact, part = _exact_gains(readings.coarse, logits, problem, softmax)
            if exact:
                rest = [item for item in range(len(readings.values)) if item not in exact]
                loss = readings.values[rest].sum() + measure.row_ranks.sum_(part)
        loss = loss + torch.where(flat[-1] > 0, torch.nan, 0.0)
        if window is not None:
            window.include(pixels.total_counts, flat)
        # Saved, not kept on ctx: autograd then notices what is changed in place before the
        # backward pass, and lets go of everything behind it.
        weights = measure.weights or (None, None)
        kept = (pixels.labels, counted, *softmax, *weights, *exact.values())
        ctx.save_for_backward(logits, readings.tables, *kept)
        ctx.exact, ctx.bins = list(exact), bins
        return loss.to(softmax.top.dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():
            raise RuntimeError(ONCE)
        logits, tables, labels, counted, *kept = ctx.saved_tensors
        softmax, weights, gains = Softmax(*kept[:4]), kept[4:6], kept[6:]
        result = gradient(
            logits,
            labels,
            softmax,
            tables,
            dict(zip(ctx.exact, gains, strict=True)),
            counted,
            ctx.bins,
            None if weights[0] is None else PixelWeights(*weights),
            grad_loss,
        )
        return result, None, None, None, None, None


def _read(sums: Tensor, problem: _Problem, dtype: torch.dtype) -> _Readings:
    """Gains, values and error bounds from the sums of the first pass."""
    bins, measure, rows = problem.bins, problem.measure, problem.rows
    weighted, device, shape = measure.weights is not None, sums.device, sums.shape[-4:]
    compiled = jaccard_kernels(sums, measure.set_function, measure.weights)
    if compiled is not None and dtype == torch.float32:
        return _Readings(*compiled.jaccard_tables(sums, rows.weights, bins))
    weights = rows.weights.T.flatten()  # (C R,) float64, on the CPU
    used = weights.nonzero()[:, 0]
    weights, used = weights[used].to(device), used.to(device)
    wide = torch.float64 if weighted or rows.most_pixels > EXACT_FLOAT32_COUNT else dtype
    some = sums.flatten(-3, -2)[..., used, :]
    counts, positions = some if weighted else bins.unpack(some, wide)  # (2, rows, K + 1)
    held = Bins(counts[1], counts[0])
    edges = edges_of(held)
    gains = bin_gains(held, edges, measure.set_function)
    error_sums = bins.error_sums(counts, positions)
    value = error_sums[1].mul_(gains.foreground).sum(-1, dtype=torch.float64)
    value += error_sums[0].mul_(gains.background).sum(-1, dtype=torch.float64)
    places = shape[1] * shape[2]
    values = torch.zeros(places, dtype=torch.float64, device=device)
    values[used] = value * weights
    coarse = torch.zeros(places, dtype=torch.bool, device=device)
    if problem.how.name == "auto":
        widths, logit_weights = bins.widths(device).to(wide), bins.logit_weights(device).to(wide)
        bounds = error_bounds(held, edges, gains, measure.set_function, widths, logit_weights)
        coarse[used] = ~bounds.below_float32()
    tables = torch.zeros(2, places, shape[3], dtype=dtype, device=device)
    tables[0, used] = (gains.background * weights[:, None]).to(dtype)
    tables[1, used] = (gains.foreground * weights[:, None]).to(dtype)
    return _Readings(tables.view(shape), values.view(shape[1:3]), coarse.view(shape[1:3]))


def _exact_gains(
    coarse: Tensor, logits: Tensor, problem: _Problem, softmax: Softmax
) -> tuple[dict[int, Tensor], Tensor]:
    """Gains (B, P) from a sort, for the classes whose bins are too coarse in any row.

    Returns:
        The gains by class, and this rank's part of the loss of these classes, 0-dim float64.
    """
    pixels, rows, measure = problem.pixels, problem.rows, problem.measure
    items = coarse.any(1).nonzero()[:, 0].tolist()
    part = torch.zeros((), dtype=torch.float64, device=logits.device)
    exact: dict[int, Tensor] = {}
    row = pixels.labels.numel() // max(1, len(rows.counts))
    compiled = jaccard_kernels(logits, measure.set_function, measure.weights, row)
    if items and compiled is not None and measure.row_ranks.alone:
        exact = compiled.exact_gains(logits, pixels.labels, pixels.valid, rows.weights, items)
    for item in items:
        errors = class_errors(logits, pixels.labels, softmax, item)
        if item not in exact:
            keys, foreground = decreasing_keys(errors), pixels.labels == item
            args = (keys, foreground, pixels, rows, item, measure, errors.dtype)
            exact[item] = class_gains(*args)
        part += errors.mul_(exact[item]).sum(dtype=torch.float64)
    return exact, part
