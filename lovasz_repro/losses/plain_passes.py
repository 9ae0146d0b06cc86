"""Lovász-Softmax from counts of its errors, in two passes over the logits (Eq. 11-13).

This is the plain form that ``compiled.py`` and ``triton_passes.py`` are measured against, for
every device and dtype. The first pass takes the softmax and counts the errors of each class in
bins (``error_bins.py``); the counts give the loss and a table of gains (``histogram.py``). The
second pass, in the backward, takes the softmax again and reads the gain g of each error off the
table. With f the probabilities of a pixel, y its label and m_y = 1 - f_y its error, the gradient
for its logits F is (``softmax.py``)

    S = sum of g_c f_c over c != y,
    dF_y = -f_y (S + g_y m_y),    dF_c = f_c (g_c - S + g_y f_y) for c != y.

The exponentials are powers of two of half the logits: their squares are the probabilities, and
they are themselves the roots that the bins are made in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .error_bins import ProbabilityBins
from .inputs import PixelWeights

HALF_LOG2_E = 0.5 * math.log2(math.e)


class Softmax(NamedTuple):
    """What is kept of the softmax of each pixel, (B * P,) float32 or float64."""

    top: Tensor
    """Largest logit t."""
    scale: Tensor
    """s of the root 2^(HALF_LOG2_E (F - t)) s of a probability; 0 on ignored and NaN pixels."""
    label_probability: Tensor
    """f_y; 0 on ignored pixels."""
    label_error: Tensor
    """m_y, the sum of the other probabilities; 0 on ignored pixels."""


class Tally(NamedTuple):
    """What the first pass has counted."""

    flat: Tensor
    """All numbers in one, to add up over ranks; the last is the number of NaN pixels."""
    sums: Tensor
    """(2, C, R, K + 1) over background [0] and foreground [1]: int64 counts and positions in one.
    With weights (2, 2, C, R, K + 1) float64: sums of the weights, and of weight times position.
    A view of ``flat``."""


def count(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    counted: Tensor,
    rows: int,
    bins: ProbabilityBins,
    weights: PixelWeights | None = None,
) -> tuple[Tally, Softmax]:
    """The first pass.

    Args:
        logits: (B, C, P).
        labels: (B, P) int64 class ids, 0 on ignored pixels.
        valid: (B, P) bool or None.
        counted: (C,) bool on the CPU: classes whose sums are wanted; those of others are undefined.
        rows: B for one Jaccard index an image, 1 for one of the batch.
        bins: the bins.
        weights: of the pixels, or None.

    Returns:
        The counts, and what is kept of the softmax.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    top = logits.amax(1).to(dtype)
    roots = _exponentials(logits, top)
    own = roots.gather(1, labels[:, None])[:, 0].square()
    others = roots.scatter_(1, labels[:, None], 0.0).square().sum(1)
    total = own + others
    scale, probability, error = total.rsqrt(), own / total, (others / total).clamp_(max=1.0)
    if valid is not None:
        for number in (scale, probability, error):
            number.masked_fill_(~valid, 0.0)
    nan, scale = error.isnan(), scale.nan_to_num_(nan=0.0)
    background = _clean(roots.mul_((scale * bins.scale)[:, None])).long()
    foreground = (_clean(error).sqrt() * bins.scale).long()
    tally = empty_tally((2, logits.shape[1], rows, bins.bins + 1), weights, logits.device)
    counts = (torch.ones_like(labels) if valid is None else valid).to(tally.flat.dtype)
    each = (counts, counts) if weights is None else tuple(weights)
    not_label = torch.ones_like(roots, dtype=torch.bool).scatter_(1, labels[:, None], False)
    _add(tally.sums, 0, background, each[0][:, None] * not_label, bins)
    by_class = torch.zeros_like(background).scatter_(1, labels[:, None], foreground[:, None])
    _add(tally.sums, 1, by_class, each[1][:, None] * ~not_label, bins)
    tally.flat[-1] = nan.sum()
    return tally, Softmax(*(one.reshape(-1) for one in (top, scale, probability, error)))


def gradient(
    logits: Tensor,
    labels: Tensor,
    softmax: Softmax,
    tables: Tensor,
    exact: dict[int, Tensor],
    counted: Tensor,
    bins: ProbabilityBins,
    weights: PixelWeights | None,
    grad_loss: Tensor,
) -> Tensor:
    """The second pass: gradient (B, C, P), of the dtype of the logits.

    Args:
        logits, labels, counted, bins, weights: as of the first pass.
        softmax: what it kept.
        tables: (2, C, R, K + 1) gains of background [0] and foreground [1].
        exact: of some classes, the gains (B, P) themselves, to use instead.
        grad_loss: what the gradient is multiplied by.
    """
    top, scale, probability, error = (number.view(labels.shape) for number in softmax)
    here, one = labels[:, None], bins.bins
    roots = _exponentials(logits, top).mul_(scale[:, None])
    roots = roots.masked_fill_(scale[:, None] == 0, 0.0).scatter_(1, here, 0.0)
    gains = tables[0].take(_places((roots * one).long(), tables.shape[2:]))
    bin_of_label = (_clean(error).sqrt() * one).long()[:, None].expand_as(gains)
    gain = tables[1].take(_places(bin_of_label, tables.shape[2:]).gather(1, here))
    if weights is not None:
        gains *= weights.background[:, None].to(gains)
        gain *= weights.foreground[:, None].to(gain)
    for item, values in exact.items():
        gains[:, item] = values
        gain = torch.where(here == item, values[:, None], gain)
    wrong = roots.square_()
    wrong_sum = (gains * wrong).sum(1, keepdim=True)  # S
    probability, error = probability[:, None], error[:, None]
    result = gains.add_(gain * probability - wrong_sum).mul_(wrong)
    result.scatter_(1, here, -probability * (wrong_sum + gain * error))
    # For a wrong class of probability near one g_c - S subtracts near equals. But the gradient of
    # a pixel sums to zero over the classes, so that class can give the rounding back.
    result -= result.sum(1, keepdim=True) * (wrong > 0.5)
    return result.mul_(grad_loss).to(logits.dtype)


def class_errors(logits: Tensor, labels: Tensor, softmax: Softmax, item: int) -> Tensor:
    """(B, P) errors m(c) of one class (Eq. 11), from logits (B, C, P)."""
    top, scale, label_error = (number.view(labels.shape) for number in softmax[:2] + softmax[3:])
    roots = torch.sub(logits[:, item], top).mul_(HALF_LOG2_E).exp2_()
    errors = roots.mul_(scale).square_().masked_fill_(scale == 0, 0.0)
    return torch.where(labels == item, label_error, errors)


def empty_tally(
    shape: tuple[int, int, int, int], weights: PixelWeights | None, device: torch.device
) -> Tally:
    """Nothing counted yet, in sums (2, C, R, K + 1)."""
    full, dtype = (shape, torch.int64) if weights is None else ((2, *shape), torch.float64)
    flat = torch.zeros(math.prod(full) + 1, dtype=dtype, device=device)
    return Tally(flat, flat[:-1].view(full))


def _exponentials(logits: Tensor, top: Tensor) -> Tensor:
    """2^(HALF_LOG2_E (F - t)): roots of the exponentials of the logits less the largest."""
    return torch.sub(logits, top[:, None]).mul_(HALF_LOG2_E).exp2_()


def _clean(numbers: Tensor) -> Tensor:
    return numbers.nan_to_num(nan=0.0)


def _places(index: Tensor, shape: torch.Size) -> Tensor:
    """Where in flat tables (C, R, K + 1) bins (B, C, P) are; shape is (R, K + 1)."""
    rows, width = shape
    starts = torch.arange(index.shape[1] * rows, device=index.device).view(-1, rows) * width
    return index + starts.T.expand(len(index), -1)[..., None]


def _add(sums: Tensor, kind: int, steps: Tensor, amounts: Tensor, bins: ProbabilityBins) -> None:
    """Add pixels (B, C, P) at positions ``steps`` to the background (0) or foreground (1)."""
    at = _places(steps >> bins.fraction_bits, sums.shape[-2:]).reshape(-1)
    positions = steps & ((1 << bins.fraction_bits) - 1)
    if sums.dim() == 4:
        sums[kind].view(-1).scatter_add_(
            0, at, ((positions + bins.one_pixel) * amounts).reshape(-1)
        )
        return
    sums[0, kind].view(-1).scatter_add_(0, at, amounts.reshape(-1))
    sums[1, kind].view(-1).scatter_add_(0, at, (amounts * positions).reshape(-1))
