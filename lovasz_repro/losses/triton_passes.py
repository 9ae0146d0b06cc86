"""The two passes of ``plain.py`` as one kernel each, for CUDA devices with Triton.

A program takes some pixels with all their classes, so logits are read once in each pass and their
gradient is written once. Errors are counted by atomic additions of integers, which give the same
sums in any order; those of the lowest bin, where most errors of a trained network are, are not
counted one by one: their number is what is left of the pixels. Gains are read off the counts, and
classes sorted, by ``plain.py``.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .averaging import Problem
from .plain import exact_gains, tables

__all__ = ["count", "exact_gains", "gradient", "tables"]

HALF_LOG2_E = tl.constexpr(0.5 * math.log2(math.e))
# Logits of one program, all classes of its pixels: they stay in registers.
TILE = 4096
MOST_CLASSES = 1024


@triton.jit
def count_kernel(
    logits,
    labels,
    valid,
    kept,
    pixels,
    sums,
    space,
    image_stride,
    class_stride,
    pixel_stride,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    fraction_bits: tl.constexpr,
    one_pixel: tl.constexpr,
    has_valid: tl.constexpr,
    class_block: tl.constexpr,
    pixel_block: tl.constexpr,
):
    """Softmax of some pixels of one image, kept and counted."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
    item = tl.arange(0, class_block)[:, None]
    inside = pixel < space
    flat = image * space + pixel
    label = tl.load(labels + flat, mask=inside, other=0)
    counts = inside
    if has_valid:
        counts = counts & (tl.load(valid + flat, mask=inside, other=0) != 0)
    at = image * image_stride + item * class_stride + pixel[None, :] * pixel_stride
    mask = (item < classes) & inside[None, :]
    scores = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    largest = tl.max(scores, 0)
    roots = tl.exp2((scores - largest[None, :]) * HALF_LOG2_E)
    roots = tl.where(mask, roots, 0.0)
    is_label = item == label[None, :]
    own = tl.sum(tl.where(is_label, roots * roots, 0.0), 0)
    roots = tl.where(is_label, 0.0, roots)
    others = tl.sum(roots * roots, 0)
    total = own + others
    nan = total != total
    inverse = tl.where(counts & (total > 0), 1.0 / tl.sqrt(total), 0.0)
    probability = tl.where(counts, own / total, 0.0)
    error = tl.where(counts, tl.minimum(others / total, 1.0), 0.0)
    error = tl.where(counts & nan, total, error)
    tl.store(kept + flat, largest, mask=inside)
    tl.store(kept + pixels + flat, inverse, mask=inside)
    tl.store(kept + 2 * pixels + flat, probability, mask=inside)
    tl.store(kept + 3 * pixels + flat, error, mask=inside)

    units: tl.constexpr = bins << fraction_bits
    fraction: tl.constexpr = (1 << fraction_bits) - 1
    row = image if rows > 1 else image * 0
    good = counts & (total == total)
    steps = tl.where(good[None, :], roots * inverse[None, :] * units, 0.0).to(tl.int32)
    bin = steps >> fraction_bits
    where = (item.to(tl.int64) * rows + row) * (bins + 1) + bin
    value = (steps & fraction).to(tl.int64) + one_pixel
    tl.atomic_add(sums + where, value, mask=mask & (bin > 0), sem="relaxed")
    step = tl.where(good, tl.sqrt(error) * units, 0.0).to(tl.int32)
    foreground = classes * rows * (bins + 1)
    where = (label.to(tl.int64) * rows + row) * (bins + 1) + (step >> fraction_bits)
    value = (step & fraction).to(tl.int64) + one_pixel
    tl.atomic_add(sums + foreground + where, value, mask=counts, sem="relaxed")


@triton.jit
def gradient_kernel(
    logits,
    labels,
    kept,
    pixels,
    tables,
    exact,
    slots,
    result,
    space,
    image_stride,
    class_stride,
    pixel_stride,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    has_exact: tl.constexpr,
    class_block: tl.constexpr,
    pixel_block: tl.constexpr,
):
    """Gradient of some pixels of one image; the result (B, C, P) is contiguous."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
    item = tl.arange(0, class_block)[:, None]
    inside = pixel < space
    flat = image * space + pixel
    label = tl.load(labels + flat, mask=inside, other=0)
    largest = tl.load(kept + flat, mask=inside, other=0.0)
    inverse = tl.load(kept + pixels + flat, mask=inside, other=0.0)
    own = tl.load(kept + 2 * pixels + flat, mask=inside, other=0.0)
    error = tl.load(kept + 3 * pixels + flat, mask=inside, other=0.0)
    at = image * image_stride + item * class_stride + pixel[None, :] * pixel_stride
    mask = (item < classes) & inside[None, :]
    scores = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    roots = tl.exp2((scores - largest[None, :]) * HALF_LOG2_E) * inverse[None, :]
    is_label = item == label[None, :]
    roots = tl.where(is_label | (inverse[None, :] == 0) | (mask == 0), 0.0, roots)
    row = image if rows > 1 else image * 0
    base = (item.to(tl.int64) * rows + row) * (bins + 1)
    gains = tl.load(tables + base + (roots * bins).to(tl.int32), mask=mask, other=0.0)
    label_bin = tl.where(error == error, tl.sqrt(error) * bins, 0.0).to(tl.int32)
    label_base = ((classes + label.to(tl.int64)) * rows + row) * (bins + 1)
    gain = tl.load(tables + label_base + label_bin, mask=inside, other=0.0)
    if has_exact:
        slot = tl.load(slots + item, mask=item < classes, other=-1).to(tl.int64)
        given = mask & (slot >= 0)
        one_by_one = exact + slot * pixels + flat[None, :]
        gains = tl.where(given, tl.load(one_by_one, mask=given, other=0.0), gains)
        slot = tl.load(slots + label, mask=inside, other=-1).to(tl.int64)
        given = inside & (slot >= 0)
        one_by_one = exact + slot * pixels + flat
        gain = tl.where(given, tl.load(one_by_one, mask=given, other=0.0), gain)
    wrong = roots * roots
    wrong_sum = tl.sum(gains * wrong, 0)  # S
    shift = gain * own - wrong_sum
    label_gradient = -own * (wrong_sum + gain * error)
    gradient = (gains + shift[None, :]) * wrong
    # A pixel's gradient sums to 0: a wrong class of probability near one gives rounding back.
    rest = tl.sum(gradient, 0) + label_gradient
    gradient = tl.where(wrong > 0.81, gradient - rest[None, :], gradient)
    gradient = tl.where(is_label, label_gradient[None, :], gradient)
    at = (image * classes + item) * space + pixel[None, :]
    tl.store(result + at, gradient.to(result.dtype.element_ty), mask=mask)


def count(logits: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The first pass; as :func:`.plain.count`. What is kept is (4, B * P) float32.

    It is the largest logit, the scale of the roots, the label's probability, and its error.
    """
    labels, valid, bins = problem.labels, problem.valid, problem.bins
    shape = problem.tally_shape(logits)
    flat = labels.new_zeros(math.prod(shape) + 1)
    kept = torch.empty(4, labels.numel(), dtype=torch.float32, device=logits.device)
    if kept.numel() > 0:
        count_kernel[_grid(logits)](
            logits, labels, labels if valid is None else valid, kept, labels.numel(), flat,
            logits.shape[2], *logits.stride(), classes=logits.shape[1], rows=shape[2],
            bins=bins.bins, fraction_bits=bins.bits, one_pixel=bins.one_pixel,
            has_valid=valid is not None, **_blocks(logits.shape[1]),
        )  # fmt: skip
    # Background of the lowest bin: the pixels of the row that are not counted elsewhere.
    sums = flat[:-1].view(shape)
    pixels = torch.ones_like(labels) if valid is None else valid.long()
    pixels = pixels.sum(1) if shape[2] > 1 else pixels.sum().view(1)
    elsewhere = (sums // bins.one_pixel).sum((0, 3))  # (C, R): and foreground
    sums[0, :, :, 0] = (pixels - elsewhere) * bins.one_pixel
    flat[-1] = kept[3].isnan().sum()
    return flat, kept


def gradient(
    logits: Tensor,
    problem: Problem,
    kept: Tensor,
    tables: Tensor,
    exact: Tensor,
    slots: Tensor,
    grad_loss: Tensor,
) -> Tensor:
    """The second pass; as :func:`.plain.gradient`."""
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if result.numel() > 0:
        gradient_kernel[_grid(logits)](
            logits, problem.labels, kept, problem.labels.numel(), tables * grad_loss,
            exact * grad_loss, slots, result, logits.shape[2], *logits.stride(),
            classes=logits.shape[1], rows=tables.shape[2], bins=problem.bins.bins,
            has_exact=len(exact) > 0, **_blocks(logits.shape[1]),
        )  # fmt: skip
    return result


def _blocks(classes: int) -> dict[str, Any]:
    class_block = triton.next_power_of_2(classes)
    return {"class_block": class_block, "pixel_block": max(1, TILE // class_block)}


def _grid(logits: Tensor) -> tuple[int, int]:
    batch, classes, space = logits.shape
    return triton.cdiv(space, _blocks(classes)["pixel_block"]), batch
