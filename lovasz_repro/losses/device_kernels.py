"""The passes over pixels and bins on a GPU, compiled by Triton; nothing here waits for the host.

The formulas are those of ``histogram.py`` and ``plain.py``; ``device.py`` says in what order the
kernels run. Sums that several programs add to are of integers, the same in any order.

Arguments that several kernels have:

* logits (B, C, P) with their strides; labels (B, P), of which those that are not in [0, C), or are
  ``ignore_index``, do not count.
* kept: (4, B * P) float32 of each pixel: the largest logit t; s of the root 2^((F - t) / (2 ln 2))
  s of a probability, 0 on ignored and NaN pixels; the label's probability; the label's error.
* sums: (C, R, 2, K + 1), packed counts (``histogram.py``) of background and foreground of R rows.
* sizes: (R, C), pixels of each class. alarms: NaN pixels, and labels out of range. ended: programs
  that have.
* parts: (C, R, 2, M), packed counts in the parts of split bins, by decreasing error.
* slots: (C, R, K + 1) number of each bin among those to split, or -1. splits: (2, C, R), how many
  there are, and into 2^how many parts; 0 where none is split.
"""

import math

import triton
import triton.language as tl

HALF_LOG2_E = tl.constexpr(0.5 * math.log2(math.e))
COUNT_BITS = tl.constexpr(26)
"""A packed sum has the number of pixels above this many and the digits of a position."""
SQUARED_GAIN_ROUNDING = tl.constexpr(2.0**-50)
LOSS_ALLOWANCE = tl.constexpr(2.0**-24)
MERGED_BINS = tl.constexpr(3)


@triton.jit
def add_lowest(sums, base, left, value, none: tl.constexpr):
    """Add up within a tile (C, P) what the lowest place of each class gets; returns what is left.

    A trained network's errors crowd in few bins, where additions one by one would queue.
    """
    lowest = tl.min(left, 1)
    here = left == lowest[:, None]
    total = tl.sum(tl.where(here, value, 0), 1)
    tl.atomic_add(sums + base + lowest, total, mask=lowest < none, sem="relaxed")
    return tl.where(here, none, left)


@triton.jit
def is_valid(label, ignore_index, classes: tl.constexpr, has_ignored: tl.constexpr):
    """Which labels count."""
    valid = (label >= 0) & (label < classes)
    if has_ignored:
        valid = valid & (label != ignore_index)
    return valid


@triton.jit
def count_kernel(
    logits,
    labels,
    kept,
    sums,
    sizes,
    alarms,
    ignore_index,
    space,
    image_stride,
    class_stride,
    pixel_stride,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    fraction_bits: tl.constexpr,
    has_ignored: tl.constexpr,
    class_block: tl.constexpr,
    pixel_block: tl.constexpr,
):
    """Softmax of some pixels of one image, kept, and their errors counted; all classes at once."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
    item = tl.arange(0, class_block)
    inside = pixel < space
    flat, pixels = image * space + pixel, tl.num_programs(1).to(tl.int64) * space
    label = tl.load(labels + flat, mask=inside, other=0).to(tl.int64)
    valid = inside & is_valid(label, ignore_index, classes, has_ignored)
    wrong = inside & ((label < 0) | (label >= classes))
    if has_ignored:
        wrong = wrong & (label != ignore_index)
    at = image * image_stride + item[:, None] * class_stride + pixel[None, :] * pixel_stride
    mask = (item < classes)[:, None] & inside[None, :]
    scores = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    largest = tl.max(scores, 0)
    roots = tl.where(mask, tl.exp2((scores - largest[None, :]) * HALF_LOG2_E), 0.0)
    is_label = (item[:, None] == label[None, :]) & valid[None, :]
    own = tl.sum(tl.where(is_label, roots * roots, 0.0), 0)
    others = tl.sum(tl.where(is_label, 0.0, roots * roots), 0)
    total = own + others
    good = valid & (total == total)
    inverse = tl.where(good & (total > 0), 1.0 / tl.sqrt(total), 0.0)
    error = tl.where(good, tl.minimum(others / total, 1.0), 0.0)
    tl.store(kept + flat, largest, mask=inside)
    tl.store(kept + pixels + flat, inverse, mask=inside)
    tl.store(kept + 2 * pixels + flat, tl.where(valid, own / total, 0.0), mask=inside)
    tl.store(kept + 3 * pixels + flat, tl.where(valid & ~good, total, error), mask=inside)

    units: tl.constexpr = bins << fraction_bits
    root = tl.where(is_label, tl.sqrt(error)[None, :], roots * inverse[None, :])
    steps = tl.where(good[None, :], root * units, 0.0).to(tl.int32)
    value = (steps & ((1 << fraction_bits) - 1)).to(tl.int64)
    value += tl.full([], 1, tl.int64) << (fraction_bits + COUNT_BITS)
    # Places 0 ... K are bins of background, K + 1 ... 2K + 1 of foreground.
    none: tl.constexpr = 2 * (bins + 1)
    place = (steps >> fraction_bits) + tl.where(is_label, bins + 1, 0)
    place = tl.where(valid[None, :] & mask, place, none)
    row = image if rows > 1 else image * 0
    base = (item.to(tl.int64) * rows + row) * none
    left = add_lowest(sums, base, tl.where(is_label, place, none), value, none)
    left = tl.where(is_label, left, place)
    for _ in tl.static_range(MERGED_BINS):
        left = add_lowest(sums, base, left, value, none)
    tl.atomic_add(sums + base[:, None] + left, value, mask=left < none, sem="relaxed")
    size = tl.sum(is_label.to(tl.int64), 1)
    tl.atomic_add(sizes + row * classes + item, size, mask=size > 0, sem="relaxed")
    nans, strange = tl.sum((valid & ~good).to(tl.int64), 0), tl.sum(wrong.to(tl.int64), 0)
    tl.atomic_add(alarms, nans, mask=nans > 0, sem="relaxed")
    tl.atomic_add(alarms + 1, strange, mask=strange > 0, sem="relaxed")


@triton.jit
def bin_gains(f, b, missed, wrong, size):
    """Gain of a foreground and of a background pixel of bins, and how far each may be off.

    Args:
        f, b: foreground and background pixels in the bin, float64.
        missed, wrong: those before it, seen from the top.
        size: foreground pixels in all bins. Without any, the first false positive costs all.
    """
    before, after = size + wrong, size + wrong + b  # the union
    inverse = 1.0 / tl.where(before > 0, before, 1.0)
    behind = 1.0 / tl.where(after > 0, after, 1.0)
    gain_f, off_f = 0.5 * (inverse + behind), 0.5 * (inverse - behind)
    gain_b = (size - missed - 0.5 * f) * inverse * behind
    first = (size - missed) * inverse / (before + 1.0)
    last = tl.where(after > 1.0, (size - missed - f) * behind / tl.maximum(after - 1.0, 1.0), 0.0)
    off_b = tl.where(b > 0, tl.maximum(first - gain_b, gain_b - last), 0.0)
    costs_all = (before == 0) & (b > 0)
    gain_f, off_f = tl.where(size > 0, gain_f, 0.0), tl.where(size > 0, off_f, 0.0)
    gain_b = tl.where(size > 0, gain_b, tl.where(costs_all, behind, 0.0))
    off_b = tl.where(size > 0, off_b, tl.where(costs_all, 1.0, 0.0))
    return gain_f, gain_b, off_f, off_b


@triton.jit
def number_of(packed, fraction_bits: tl.constexpr):
    """How many pixels a packed sum holds."""
    return packed >> (fraction_bits + COUNT_BITS)


@triton.jit
def error_sum(packed, bin, bins: tl.constexpr, fraction_bits: tl.constexpr):
    """Sum of the errors of the pixels of a bin, as if all were at their mean position."""
    count = number_of(packed, fraction_bits).to(tl.float64)
    within = packed & ((tl.full([], 1, tl.int64) << (fraction_bits + COUNT_BITS)) - 1)
    mean = within.to(tl.float64) / tl.maximum(count, 1.0) + tl.where(bin > 0, 0.5, 0.0)
    root = ((bin.to(tl.float64) * (1 << fraction_bits)) + mean) / (bins << fraction_bits)
    return root * root * count


@triton.jit
def finish(values, at, value, alarms, ended, loss, programs: tl.constexpr, block: tl.constexpr):
    """Leave the share of a class and row in the loss; the last to do so adds all of them up.

    Any NaN pixel, or label out of range, makes the loss NaN.
    """
    tl.store(values + at, value)
    tl.debug_barrier()
    before = tl.atomic_add(ended, tl.full([], 1, tl.int64), sem="acq_rel")
    if before == programs - 1:
        place = tl.arange(0, block)
        shares = tl.load(values + place, mask=place < programs, other=0.0, volatile=True)
        total = tl.sum(shares, 0)
        bad = tl.load(alarms) + tl.load(alarms + 1) > 0
        tl.store(loss, tl.where(bad, float("nan"), total).to(tl.float32))


@triton.jit
def scan_kernel(
    sums,
    sizes,
    alarms,
    ended,
    factors,
    tables,
    slots,
    splits,
    places,
    values,
    loss,
    images,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    fraction_bits: tl.constexpr,
    parts: tl.constexpr,
    only_present: tl.constexpr,
    has_factors: tl.constexpr,
    class_block: tl.constexpr,
    value_block: tl.constexpr,
    block: tl.constexpr,
):
    """Gains of the bins of one class and row, from the largest error down, and its loss.

    Args:
        factors: (C,) float64 weights of the classes; 0 for those not listed.
        tables: (C, R, 2, K + 1) float32, filled with gain times weight in Eq. 13.
        places: (C, R, 2, K) int64, filled for each bin to split with the pixels of foreground and
            of background above it that are in no such bin, the bin in the upper half of the first.
        values: (C * R,) float64, filled with the share in the loss (but for bins to split).
        images: what Eq. 13's mean is divided by.
        parts: how many parts a class has for all bins that are split; 0 splits none.
    """
    item, row = tl.program_id(0), tl.program_id(1)
    at = item * rows + row
    every = tl.arange(0, class_block)
    counted = tl.load(sizes + row * classes + every, mask=every < classes, other=0)
    averaged = (
        (counted > 0) if only_present else tl.where(every < classes, tl.sum(counted, 0), 0) > 0
    )
    weights = tl.where(averaged, 1.0, 0.0).to(tl.float64)
    if has_factors:
        weights *= tl.load(factors + every, mask=every < classes, other=0.0)
    divisor = tl.sum(weights, 0) * images
    weight = tl.sum(tl.where(every == item, weights, 0.0), 0)
    weight = tl.where(divisor > 0, weight / tl.where(divisor > 0, divisor, 1.0), 0.0)
    whole = tl.sum(tl.where(every == item, counted, 0), 0)
    size = whole.to(tl.float64)

    width: tl.constexpr = bins + 1
    sums += at.to(tl.int64) * (2 * width)
    tables += at.to(tl.int64) * (2 * width)
    # Counts of foreground are carried in the upper half of an integer, of background in the lower.
    zero = tl.full([], 0, tl.int64)
    above, above_whole, split = zero, zero, zero
    # Summed over the bins of a block at the end only.
    value, split_value = tl.zeros([block], tl.float64), tl.zeros([block], tl.float64)
    squares, spread = tl.zeros([block], tl.float64), tl.zeros([block], tl.float64)
    for start in range(0, width, block):
        bin = bins - start - tl.arange(0, block)
        inside = bin >= 0
        background = tl.load(sums + bin, mask=inside, other=0)
        foreground = tl.load(sums + width + bin, mask=inside, other=0)
        both = (number_of(foreground, fraction_bits) << 32) + number_of(background, fraction_bits)
        before = above + tl.cumsum(both, 0) - both
        f, b = (both >> 32).to(tl.float64), (both & 0xFFFFFFFF).to(tl.float64)
        missed, wrong = (before >> 32).to(tl.float64), (before & 0xFFFFFFFF).to(tl.float64)
        gain_f, gain_b, off_f, off_b = bin_gains(f, b, missed, wrong, size)
        costs = error_sum(foreground, bin, bins, fraction_bits) * gain_f
        costs += error_sum(background, bin, bins, fraction_bits) * gain_b
        value += costs
        tl.store(tables + bin, (gain_b * weight).to(tl.float32), mask=inside)
        tl.store(tables + width + bin, (gain_f * weight).to(tl.float32), mask=inside)
        if parts > 0:
            # Bounds of the errors of gains and loss, of each bin and of all.
            lower = bin.to(tl.float64) / bins
            upper = tl.minimum(lower + 1.0 / bins, 1.0)
            middle = tl.minimum((lower + 0.5 / bins) * (lower + 0.5 / bins), 1.0)
            counts_for = middle * (1.0 - middle) * middle * (1.0 - middle)
            off = f * off_f * off_f + b * off_b * off_b
            tilt = (f * off_f + b * off_b) * (upper * upper - lower * lower) / 2
            squares += (off - (f + b) * SQUARED_GAIN_ROUNDING) * counts_for
            spread += tilt
            coarse = (off > (f + b) * SQUARED_GAIN_ROUNDING) | (tilt > LOSS_ALLOWANCE / width)
            coarse = coarse & (f + b > 1) & inside
            number = split + tl.cumsum(coarse.to(tl.int64), 0) - 1
            tl.store(slots + at.to(tl.int64) * width + bin, tl.where(coarse, number, -1), inside)
            in_no_split = tl.where(coarse, 0, both)
            ahead = above_whole + tl.cumsum(in_no_split, 0)
            first = places + at.to(tl.int64) * (2 * width) + number
            tl.store(first, (bin.to(tl.int64) << 32) + (ahead >> 32), mask=coarse)
            tl.store(first + width, ahead & 0xFFFFFFFF, mask=coarse)
            split_value += tl.where(coarse, costs, 0.0)
            above_whole += tl.sum(in_no_split, 0)
            split += tl.sum(coarse.to(tl.int64), 0)
        above += tl.sum(both, 0)
    if parts > 0:
        too_coarse = (tl.sum(squares, 0) > 0) | (tl.sum(spread, 0) > LOSS_ALLOWANCE)
        halvings = zero
        for more in tl.static_range(1, fraction_bits + 1):
            halvings += ((split << more) <= parts).to(tl.int64)
        halvings = tl.where(too_coarse & (weight > 0) & (split > 0), halvings, 0)
        tl.store(splits + at, split.to(tl.int32))
        tl.store(splits + classes * rows + at, halvings.to(tl.int32))
        rest = tl.sum(value, 0) - tl.where(halvings > 0, tl.sum(split_value, 0), 0.0)
        tl.store(values + at, rest * weight)
        tl.store(values + classes * rows + at, weight)
    else:
        finish(
            values, at, tl.sum(value, 0) * weight, alarms, ended, loss, classes * rows, value_block
        )


@triton.jit
def recount_kernel(
    logits,
    labels,
    kept,
    slots,
    splits,
    counts,
    ignore_index,
    space,
    image_stride,
    class_stride,
    pixel_stride,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    fraction_bits: tl.constexpr,
    parts: tl.constexpr,
    has_ignored: tl.constexpr,
    pixel_block: tl.constexpr,
):
    """Count some pixels of one image again for one class, if its bins are split."""
    item, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = image if rows > 1 else image * 0
    at = item * rows + row
    halvings = tl.load(splits + classes * rows + at)
    if halvings > 0:
        pixel = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
        inside = pixel < space
        flat, pixels = image * space + pixel, tl.num_programs(2).to(tl.int64) * space
        label = tl.load(labels + flat, mask=inside, other=0).to(tl.int64)
        valid = inside & is_valid(label, ignore_index, classes, has_ignored)
        largest = tl.load(kept + flat, mask=inside, other=0.0)
        inverse = tl.load(kept + pixels + flat, mask=inside, other=0.0)
        error = tl.load(kept + 3 * pixels + flat, mask=inside, other=0.0)
        position = image * image_stride + item * class_stride + pixel * pixel_stride
        scores = tl.load(logits + position, mask=inside, other=0.0).to(tl.float32)
        roots = tl.exp2((scores - largest) * HALF_LOG2_E) * inverse
        is_label = label == item
        units: tl.constexpr = bins << fraction_bits
        root = tl.where(is_label, tl.sqrt(error), roots)
        steps = tl.where(valid & (error == error), root * units, 0.0).to(tl.int32)
        slot = tl.load(slots + at * (bins + 1) + (steps >> fraction_bits), mask=valid, other=-1)
        within = steps & ((1 << fraction_bits) - 1)
        part = (slot << halvings) + (1 << halvings) - 1 - (within >> (fraction_bits - halvings))
        none: tl.constexpr = 2 * parts
        place = tl.where(slot >= 0, part + tl.where(is_label, parts, 0), none)[None, :]
        value = within.to(tl.int64) + (tl.full([], 1, tl.int64) << (fraction_bits + COUNT_BITS))
        base = tl.full([1], 0, tl.int64) + at * none
        for _ in tl.static_range(MERGED_BINS):
            place = add_lowest(counts, base, place, value[None, :], none)
        where = counts + base[:, None] + place
        tl.atomic_add(where, value[None, :], mask=place < none, sem="relaxed")


@triton.jit
def rescan_kernel(
    counts,
    sizes,
    alarms,
    ended,
    splits,
    places,
    values,
    tables,
    loss,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    fraction_bits: tl.constexpr,
    parts: tl.constexpr,
    value_block: tl.constexpr,
    block: tl.constexpr,
):
    """Gains of the parts of split bins of one class and row, and what is missing of its loss.

    Args:
        tables: (C, R, 2, M) float32, filled as those of the bins.
    """
    item, row = tl.program_id(0), tl.program_id(1)
    at = item * rows + row
    split, halvings = tl.load(splits + at), tl.load(splits + classes * rows + at)
    value, weight = tl.load(values + at), tl.load(values + classes * rows + at)
    if halvings > 0:
        size = tl.load(sizes + row * classes + item).to(tl.float64)
        counts += at.to(tl.int64) * (2 * parts)
        tables += at.to(tl.int64) * (2 * parts)
        places += at.to(tl.int64) * (2 * (bins + 1))
        above = tl.full([], 0, tl.int64)  # in split bins
        cost = tl.zeros([block], tl.float64)
        for start in range(0, split << halvings, block):
            part = start + tl.arange(0, block)
            inside = part < (split << halvings)
            background = tl.load(counts + part, mask=inside, other=0)
            foreground = tl.load(counts + parts + part, mask=inside, other=0)
            both = number_of(foreground, fraction_bits) << 32
            both += number_of(background, fraction_bits)
            before = above + tl.cumsum(both, 0) - both
            slot = part >> halvings
            first = tl.load(places + slot, mask=inside, other=0)
            second = tl.load(places + (bins + 1) + slot, mask=inside, other=0)
            f, b = (both >> 32).to(tl.float64), (both & 0xFFFFFFFF).to(tl.float64)
            missed = ((before >> 32) + (first & 0xFFFFFFFF)).to(tl.float64)
            wrong = ((before & 0xFFFFFFFF) + second).to(tl.float64)
            gain_f, gain_b, _, _ = bin_gains(f, b, missed, wrong, size)
            cost += error_sum(foreground, first >> 32, bins, fraction_bits) * gain_f
            cost += error_sum(background, first >> 32, bins, fraction_bits) * gain_b
            tl.store(tables + part, (gain_b * weight).to(tl.float32), mask=inside)
            tl.store(tables + parts + part, (gain_f * weight).to(tl.float32), mask=inside)
            above += tl.sum(both, 0)
        value += tl.sum(cost, 0) * weight
    finish(values, at, value, alarms, ended, loss, classes * rows, value_block)


@triton.jit
def gain_of(
    steps, at, kind, tables, part_tables, slots, halvings, mask,
    bins: tl.constexpr, fraction_bits: tl.constexpr, parts: tl.constexpr,
):  # fmt: skip
    """Gains of pixels of a class and row, of background (kind 0) or foreground (1)."""
    bin = steps >> fraction_bits
    gain = tl.load(tables + (at * 2 + kind) * (bins + 1) + bin, mask=mask, other=0.0)
    if parts > 0:
        slot = tl.load(slots + at * (bins + 1) + bin, mask=mask & (halvings > 0), other=-1)
        within = steps & ((1 << fraction_bits) - 1)
        part = (slot << halvings) + (1 << halvings) - 1 - (within >> (fraction_bits - halvings))
        split = mask & (halvings > 0) & (slot >= 0)
        finer = tl.load(part_tables + (at * 2 + kind) * parts + part, mask=split, other=0.0)
        gain = tl.where(split, finer, gain)
    return gain


@triton.jit
def gradient_kernel(
    logits,
    labels,
    kept,
    tables,
    part_tables,
    slots,
    splits,
    grad_loss,
    result,
    ignore_index,
    space,
    image_stride,
    class_stride,
    pixel_stride,
    classes: tl.constexpr,
    rows: tl.constexpr,
    bins: tl.constexpr,
    fraction_bits: tl.constexpr,
    parts: tl.constexpr,
    has_ignored: tl.constexpr,
    class_block: tl.constexpr,
    pixel_block: tl.constexpr,
):
    """Gradient of some pixels of one image; the result (B, C, P) is contiguous."""
    image = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * pixel_block + tl.arange(0, pixel_block)
    item = tl.arange(0, class_block).to(tl.int64)
    inside = pixel < space
    flat, pixels = image * space + pixel, tl.num_programs(1).to(tl.int64) * space
    label = tl.load(labels + flat, mask=inside, other=0).to(tl.int64)
    valid = inside & is_valid(label, ignore_index, classes, has_ignored)
    label = tl.where(valid, label, 0)
    largest = tl.load(kept + flat, mask=inside, other=0.0)
    inverse = tl.load(kept + pixels + flat, mask=inside, other=0.0)
    own = tl.load(kept + 2 * pixels + flat, mask=inside, other=0.0)
    error = tl.load(kept + 3 * pixels + flat, mask=inside, other=0.0)
    at = image * image_stride + item[:, None] * class_stride + pixel[None, :] * pixel_stride
    mask = (item < classes)[:, None] & inside[None, :]
    scores = tl.load(logits + at, mask=mask, other=float("-inf")).to(tl.float32)
    roots = tl.exp2((scores - largest[None, :]) * HALF_LOG2_E) * inverse[None, :]
    is_label = item[:, None] == label[None, :]
    roots = tl.where(is_label | (inverse == 0)[None, :] | (mask == 0), 0.0, roots)

    units: tl.constexpr = bins << fraction_bits
    row = image if rows > 1 else image * 0
    here = item * rows + row
    halvings = tl.full([class_block], 0, tl.int32)
    label_halvings = tl.full([pixel_block], 0, tl.int32)
    if parts > 0:
        halvings = tl.load(splits + classes * rows + here, mask=item < classes, other=0)
        label_halvings = tl.load(splits + classes * rows + label * rows + row, mask=valid, other=0)
    gains = gain_of(
        (roots * units).to(tl.int32), here[:, None], 0, tables, part_tables, slots,
        halvings[:, None], mask & valid[None, :], bins, fraction_bits, parts,
    )  # fmt: skip
    step = tl.where(error == error, tl.sqrt(error) * units, 0.0).to(tl.int32)
    gain = gain_of(
        step, label * rows + row, 1, tables, part_tables, slots,
        label_halvings, valid, bins, fraction_bits, parts,
    )  # fmt: skip
    wrong = roots * roots
    wrong_sum = tl.sum(gains * wrong, 0)  # S
    shift = gain * own - wrong_sum
    label_gradient = -own * (wrong_sum + gain * error)
    gradient = (gains + shift[None, :]) * wrong
    # A pixel's gradient sums to 0: a wrong class of probability near one gives rounding back.
    rest = tl.sum(gradient, 0) + label_gradient
    gradient = tl.where(wrong > 0.81, gradient - rest[None, :], gradient)
    gradient = tl.where(is_label, label_gradient[None, :], gradient) * tl.load(grad_loss)
    at = (image * classes + item[:, None]) * space + pixel[None, :]
    tl.store(result + at, gradient.to(result.dtype.element_ty), mask=mask)
