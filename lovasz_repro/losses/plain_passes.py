"""Lovász-Softmax from counts of its errors: two passes over the logits, no sort (Eq. 11-13).

The first pass takes the softmax of a block of pixels and counts the errors of each class in bins
(``error_bins.py``); the counts give the loss and a table of gains (``histogram.py``). The second
pass, in the backward, takes the softmax again and reads the gain g of each error off the table.
With f the probabilities of a pixel, y its label and m_y = 1 - f_y its error, the gradient for its
logits F is (``softmax.py``)

    S = sum of g_c f_c over c != y,
    dF_y = -f_y (S + g_y m_y),    dF_c = f_c (g_c - S + g_y f_y) for c != y.

Between the passes four numbers a pixel are kept, and beyond the inputs nothing of the size of the
logits but the gradient itself. The exponentials are powers of two of half the logits: their
squares are the probabilities, and they are themselves the roots that the bins are made in.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .blocks import Block, Blocks
from .error_bins import ProbabilityBins
from .inputs import PixelWeights
from .slots import Slots, places_of

HALF_LOG2_E = 0.5 * math.log2(math.e)
# Root of a probability from which on the gradient of a wrong class loses digits.
SURE = 0.9


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
    clean: bool
    """Whether no logit gave NaN. On other devices than the CPU false, so as not to ask them."""


class Tally(NamedTuple):
    """What the first pass has counted."""

    flat: Tensor
    """All numbers in one, to add up over ranks; the last is the number of NaN pixels."""
    sums: Tensor
    """(2, S, R, K + 1) over background [0] and foreground [1]: int64 counts and positions in one.
    With weights (2, 2, S, R, K + 1) float64: sums of the weights, and of weight times position.
    S is C, or the number of slots. A view of ``flat``."""


def count(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    bins: ProbabilityBins,
    rows: int,
    weights: PixelWeights | None,
    slots: Slots | None = None,
) -> tuple[Tally, Softmax]:
    """The first pass.

    Args:
        logits: (B, C, P).
        labels: (B, P) int64 class ids, 0 on ignored pixels.
        valid: (B, P) bool or None.
        bins: the bins.
        rows: B for one Jaccard index an image, 1 for one of the batch.
        weights: of the pixels, or None.
        slots: of the classes that are counted, or None for all.

    Returns:
        The counts, and what is kept of the softmax.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    places = logits.shape[1] if slots is None else slots.places()
    tally = empty_tally((2, places, rows, bins.bins + 1), weights, logits.device)
    top, scale, own, others = (
        torch.empty(labels.numel(), dtype=dtype, device=logits.device) for _ in range(4)
    )
    background = None if weights is None else weights.background
    clean = True
    for block in Blocks(logits, dtype):
        numbers = block.numbers_of(labels, top, scale, own, others, valid, background)
        label, top_, scale_, own_, others_, valid_, weight = numbers
        top_.copy_(block.logits.amax(0).view(-1))
        roots = _exponentials(block, top_)
        at = block.elements_of(label)
        torch.index_select(roots.view(-1), 0, at, out=own_)
        roots.view(-1).index_fill_(0, at, 0.0)
        torch.sum(torch.mul(roots, roots, out=block.second), 0, out=others_)
        torch.rsqrt(torch.addcmul(others_, own_, own_), out=scale_)
        if logits.device.type != "cpu" or math.isnan(scale_.sum()):
            clean = False
            roots.masked_fill_(scale_.isnan(), 0.0)
            scale_.nan_to_num_(nan=0.0)
        if valid_ is not None:
            scale_.masked_fill_(~valid_, 0.0)
        block.whole.copy_(roots.mul_(scale_ * bins.scale))
        _add_background(tally.sums, block, weight, bins, slots)
    softmax = _kept(top, scale, own.square_(), others, valid, clean)
    _add_labels(tally, softmax, places_of(labels, slots), valid, weights, bins)
    return tally, softmax


def gradient(
    logits: Tensor,
    labels: Tensor,
    softmax: Softmax,
    tables: Tensor,
    exact: dict[int, Tensor],
    weights: PixelWeights | None,
    bins: int,
    slots: Slots | None = None,
) -> Tensor:
    """The second pass: gradient (B, C, P), of the dtype of the logits.

    Args:
        logits, labels, softmax: as of the first pass.
        tables: (2, S, R, K + 1) gains of background [0] and foreground [1], times what the loss
            multiplies them by.
        exact: of some classes, the gains (B, P) themselves, to use instead.
        weights: of the pixels, or None.
        bins: K.
        slots: of the classes that have gains, or None for all; as of the first pass.
    """
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    gain = _label_gains(softmax, labels, tables, exact, weights, bins, slots)
    shift = gain * softmax.label_probability  # g_y f_y
    cost = gain.mul_(softmax.label_error)  # g_y m_y
    own = softmax.label_probability.neg()
    background = None if weights is None else weights.background.to(tables.dtype)
    for block in Blocks(logits, tables.dtype):
        label, top, scale, shift_, cost_, own_, weight = block.numbers_of(
            labels, softmax.top, softmax.scale, shift, cost, own, background
        )
        roots = _exponentials(block, top).mul_(scale)
        if not softmax.clean:
            roots.masked_fill_(scale == 0, 0.0)
        roots.view(-1).index_fill_(0, block.elements_of(label), 0.0)
        block.whole.copy_(torch.mul(roots, float(bins), out=block.second))
        gains = _look_up(tables[0], block, slots)
        if weight is not None:
            gains *= weight
        for item, values in exact.items():
            gains[item] = block.numbers_of(values)[0]
        wrong = roots.square_()
        wrong_sum = torch.mul(gains, wrong, out=block.scratch()).sum(0)  # S
        gains.add_(shift_.sub_(wrong_sum))
        target = block.part_of(result)
        torch.mul(gains.view(block.shape), wrong.view(block.shape), out=target)
        label_gradient = cost_.add_(wrong_sum).mul_(own_)
        at = block.elements_in(result, label)
        result.view(-1).index_copy_(0, at, label_gradient.to(result.dtype))
        sure = ((scale > SURE) & (own_ > -0.5)).nonzero()[:, 0]
        if len(sure) > 0:
            _give_back_rounding(result, block, gains, wrong, label_gradient, sure)
    return result


def _give_back_rounding(
    result: Tensor, block: Block, gains: Tensor, wrong: Tensor, label_gradient: Tensor, sure: Tensor
) -> None:
    """Mend the gradient of pixels that are sure of a wrong class.

    There g_c - S subtracts near equals. But the gradient of a pixel sums to zero over the classes,
    so the class of largest probability can give the rounding error back.
    """
    probabilities = wrong[:, sure]
    rest = (gains[:, sure] * probabilities).sum(0) + label_gradient[sure]
    at = block.elements_in(result, probabilities.argmax(0), sure)
    result.view(-1).index_add_(0, at, rest.neg_().to(result.dtype))


def class_errors(logits: Tensor, labels: Tensor, softmax: Softmax, item: int) -> Tensor:
    """(B, P) errors m(c) of one class (Eq. 11), from logits (B, C, P)."""
    top, scale, label_error = (number.view(labels.shape) for number in softmax[:2] + softmax[3:4])
    roots = torch.sub(logits[:, item], top).mul_(HALF_LOG2_E).exp2_()
    errors = roots.mul_(scale).square_().masked_fill_(scale == 0, 0.0)
    return torch.where(labels == item, label_error, errors)


def _exponentials(block: Block, top: Tensor) -> Tensor:
    """2^(HALF_LOG2_E (F - t)): roots of the exponentials of the logits less the largest."""
    roots = block.first
    torch.sub(block.logits, top.view(block.shape[1:]), out=roots.view(block.shape))
    return roots.mul_(HALF_LOG2_E).exp2_()


def empty_tally(
    shape: tuple[int, int, int, int], weights: PixelWeights | None, device: torch.device
) -> Tally:
    """Nothing counted yet, in sums (2, S, R, K + 1)."""
    full, dtype = (shape, torch.int64) if weights is None else ((2, *shape), torch.float64)
    flat = torch.zeros(math.prod(full) + 1, dtype=dtype, device=device)
    return Tally(flat, flat[:-1].view(full))


def _kept(
    top: Tensor, scale: Tensor, own: Tensor, others: Tensor, valid: Tensor | None, clean: bool
) -> Softmax:
    """From the exponentials of the label and of the others, which are overwritten."""
    total = own + others
    own /= total
    others.div_(total).clamp_(max=1.0)
    if valid is not None:
        ignored = ~valid.view(-1)
        own.masked_fill_(ignored, 0.0)
        others.masked_fill_(ignored, 0.0)
    return Softmax(top, scale, own, others, clean)


def _add_background(
    sums: Tensor,
    block: Block,
    weights: Tensor | None,
    bins: ProbabilityBins,
    slots: Slots | None,
) -> None:
    """Add the roots in ``block.whole``, in units of a position, to the background."""
    whole, index, positions, shifted = block.integers(None if slots is None else slots.classes)
    images = slice(None) if sums.shape[-2] == 1 else block.images
    sums = sums[..., 0, : len(whole), images, :]
    bits = bins.fraction_bits
    index.copy_(torch.bitwise_right_shift(whole, bits, out=shifted))
    positions.copy_(whole.bitwise_and_((1 << bits) - 1))
    shape = (len(whole), sums.shape[-2], -1)
    index, positions = index.view(shape), positions.view(shape)
    if weights is None:
        sums.scatter_add_(2, index, positions.add_(bins.one_pixel))
        return
    each = weights.expand_as(whole).reshape(positions.shape)
    sums[0].scatter_add_(2, index, each)
    sums[1].scatter_add_(2, index, each * positions)


def _add_labels(
    tally: Tally,
    softmax: Softmax,
    places: Tensor,
    valid: Tensor | None,
    weights: PixelWeights | None,
    bins: ProbabilityBins,
) -> None:
    """Add the label's error of every pixel to the foreground, and take off what was too much.

    The label's element of each pixel is 0 in the background, and was counted there in bin 0; so
    were all elements of an ignored pixel.
    """
    sums = tally.sums
    if not softmax.clean:
        tally.flat[-1] = softmax.label_error.isnan().sum()
    fixed = (_label_roots(softmax) * bins.scale).long()
    lowest = _row_starts(places, sums)
    at = (fixed >> bins.fraction_bits).add_(lowest)
    positions = fixed.bitwise_and_((1 << bins.fraction_bits) - 1)
    if weights is not None:
        flat = sums.view(2, 2, -1)
        foreground, background = weights.foreground.reshape(-1), weights.background.reshape(-1)
        flat[0, 1].scatter_add_(0, at, foreground)
        flat[1, 1].scatter_add_(0, at, foreground * positions)
        flat[0, 0].scatter_add_(0, lowest, -background)
        return
    flat = sums.view(2, -1)
    if valid is None:
        flat[1].scatter_add_(0, at, positions.add_(bins.one_pixel))
        flat[0].scatter_add_(0, lowest, positions.fill_(-bins.one_pixel))
        return
    once = valid.view(-1) * bins.one_pixel
    flat[1].scatter_add_(0, at, positions.add_(once))
    flat[0].scatter_add_(0, lowest, -once)
    ignored = (~valid).sum(1) if sums.shape[-2] > 1 else (~valid).sum()
    sums[0, :, :, 0] -= ignored * bins.one_pixel


def _label_gains(
    softmax: Softmax,
    labels: Tensor,
    tables: Tensor,
    exact: dict[int, Tensor],
    weights: PixelWeights | None,
    bins: int,
    slots: Slots | None,
) -> Tensor:
    """(B * P,) gain g_y of the label's error of each pixel."""
    at = _row_starts(places_of(labels, slots), tables).add_((_label_roots(softmax) * bins).long())
    gains = tables[1].view(-1).index_select(0, at)
    if weights is not None:
        gains *= weights.foreground.view(-1)
    for item, values in exact.items():
        gains = torch.where(labels.view(-1) == item, values.view(-1), gains)
    return gains


def _label_roots(softmax: Softmax) -> Tensor:
    """(B * P,) roots of the label's errors, which fall into bins; 0 for NaN."""
    error = softmax.label_error
    return (error if softmax.clean else error.nan_to_num(nan=0.0)).sqrt()


def _row_starts(places: Tensor, tables: Tensor) -> Tensor:
    """(B * P,) where in flat tables (S, R, K + 1) the bins of each pixel's label begin."""
    rows, width = tables.shape[-2:]
    starts = places * (rows * width)
    if rows > 1:
        starts.add_(torch.arange(rows, device=places.device)[:, None], alpha=width)
    return starts.view(-1)


def _look_up(table: Tensor, block: Block, slots: Slots | None) -> Tensor:
    """Gains (C, b n) of a table (S, R, K + 1) at the whole bins of a block."""
    whole, index, _, _ = block.integers(None if slots is None else slots.classes)
    index.copy_(whole)
    images = slice(None) if table.shape[1] == 1 else block.images
    shape = (len(whole), table[:, images].shape[1], -1)
    gains = block.second[: len(whole)]
    torch.gather(table[: len(whole), images], 2, index.view(shape), out=gains.view(shape))
    if slots is None:
        return gains
    found = gains.clone()
    return block.second.zero_().index_copy_(0, slots.classes, found)
