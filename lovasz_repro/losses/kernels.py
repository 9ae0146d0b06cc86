"""The losses' loops over pixels, compiled by Numba for the CPU; nothing here knows PyTorch.

Each kernel is one pass over some pixels, a block at a time, so that a block's numbers of all
classes stay in the L1 and L2 caches. They are called by several threads at once (``compiled.py``)
and hold no lock. The formulas are those of ``histogram.py``, ``softmax.py`` and ``sorting.py``.

Two rules keep results the same on any number of threads. Additions between threads are of
integers. And of LLVM's fast-math flags only ``contract`` is on: ``reassoc`` would fold
``(y + MAGIC) - MAGIC`` into ``y``, which silently takes the rounding out of the exponential.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK = 512
"""Pixels that are worked on together."""
RADIX_PASSES = 4
"""Digits of a sort key. Nine bits each: 512 streams of writes stay in the L1 cache."""
KEY_BITS = 9 * RADIX_PASSES
INDEX_BITS = 62 - KEY_BITS
"""What a 64-bit word has left for the number of a pixel, with one bit for the foreground."""

ZERO, ONE = np.float32(0), np.float32(1)
LOG2_E = math.log2(math.e)
HALF_LOG2_E = np.float32(0.5 * LOG2_E)
GAIN_ROUNDING, LOSS_ROUNDING = 2.0**-25, 2.0**-24


def kernel(function):
    """Compile a loop: without the GIL, and kept on disk for the next process."""
    return njit(function, nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


def inlined(function):
    """Compile into each kernel that calls it."""
    return njit(function, inline="always", error_model="numpy")


def _reread(number_type, kind):
    def build(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], kind)

    return number_type, build


@intrinsic
def float_of_bits(typing, bits):
    """Float32 of the bits of an int32."""
    result, build = _reread(types.float32, ir.FloatType())
    return result(types.int32), build


@intrinsic
def bits_of_float(typing, value):
    """Bits of a float32."""
    result, build = _reread(types.int32, ir.IntType(32))
    return result(types.float32), build


@intrinsic
def double_of_bits(typing, bits):
    """Float64 of the bits of an int64."""
    result, build = _reread(types.float64, ir.DoubleType())
    return result(types.int64), build


@intrinsic
def bits_of_double(typing, value):
    """Bits of a float64."""
    result, build = _reread(types.int64, ir.IntType(64))
    return result(types.float64), build


def _power_series(degree: int) -> list[float]:
    """Coefficients of 2^f on [-1/2, 1/2], interpolated at Chebyshev's nodes."""
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1)) / 2
    return np.polynomial.polynomial.polyfit(nodes, 2.0**nodes, degree).tolist()


A0, A1, A2, A3, A4, A5, A6 = (np.float32(number) for number in _power_series(6))
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10 = _power_series(10)
# Adding 1.5 * 2^23 (2^52) rounds a float32 (float64) to a whole number, in its last bits.
MAGIC, MAGIC_BITS = np.float32(1.5 * 2**23), np.int32(0x4B400000)
MAGIC64, MAGIC64_BITS = 1.5 * 2.0**52, np.int64(0x4338000000000000)


@inlined
def power_of_two(y):
    """2^y for y <= 0 in float32, to 2e-7; what is smaller than 2^-126 counts as that."""
    if y < np.float32(-126):
        y = np.float32(-126)
    whole = y + MAGIC
    f = y - (whole - MAGIC)
    power = (((((A6 * f + A5) * f + A4) * f + A3) * f + A2) * f + A1) * f + A0
    exponent = bits_of_float(whole) - MAGIC_BITS + np.int32(127)
    return power * float_of_bits(exponent << np.int32(23))


@inlined
def power_of_two64(y):
    """2^y for y <= 0 in float64, to 1e-12."""
    if y < -1000.0:
        y = -1000.0
    whole = y + MAGIC64
    f = y - (whole - MAGIC64)
    low = (((B5 * f + B4) * f + B3) * f + B2) * f + B1
    high = (((B10 * f + B9) * f + B8) * f + B7) * f + B6
    power = (high * (f * f * f * f * f) + low) * f + B0
    return power * double_of_bits((bits_of_double(whole) - MAGIC64_BITS + 1023) << 52)


@inlined
def largest_of(logits, image, at, top):
    """Largest logit of each pixel of a block, into ``top``."""
    n = len(top)
    row = logits[image, 0, at : at + n]
    for p in range(n):
        top[p] = row[p]
    for c in range(1, logits.shape[1]):
        row = logits[image, c, at : at + n]
        for p in range(n):
            top[p] = row[p] if row[p] > top[p] else top[p]


@kernel
def count(
    logits,
    image,
    first,
    labels,
    top,
    scale,
    own,
    others,
    counted,
    background,
    foreground,
    units,
    fraction_bits,
):
    """Count the errors of some pixels in bins; the first pass of ``plain_passes.py``.

    Args:
        logits: (B, C, N) float32; the pixels are those from ``first`` on, of one image.
        image, first: where they begin.
        labels: (P,) int64 class ids, -1 on ignored pixels.
        top, scale, own, others: (P,) float32, filled as of ``plain_passes.Softmax``.
        counted: (C,) bool: classes whose errors are counted.
        background, foreground: (C, K + 1) int64 packed sums, added to. The number of background
            pixels in bin 0 is left to :func:`fill_lowest_bin`.
        units: positions in all bins, as float32.
        fraction_bits: binary digits of a position inside a bin.

    Returns:
        How many pixels are valid, and how many of them have NaN.
    """
    classes, pixels = logits.shape[1], len(labels)
    roots, steps = np.empty((classes, BLOCK), np.float32), np.empty(BLOCK, np.int32)
    bits, fraction = np.int32(fraction_bits), np.int32((1 << fraction_bits) - 1)
    one_pixel = np.int64(1) << (fraction_bits + 26)
    held, nans = 0, 0
    for start in range(0, pixels, BLOCK):
        n = min(BLOCK, pixels - start)
        stop = start + n
        label, top_, scale_ = labels[start:stop], top[start:stop], scale[start:stop]
        own_, others_ = own[start:stop], others[start:stop]
        largest_of(logits, image, first + start, top_)
        for c in range(classes):
            row, root = logits[image, c, first + start : first + stop], roots[c]
            for p in range(n):
                root[p] = power_of_two((row[p] - top_[p]) * HALF_LOG2_E)
        for p in range(n):
            others_[p] = ZERO
            own_[p] = ZERO
            if label[p] >= 0:
                own_[p] = roots[label[p], p]
                roots[label[p], p] = ZERO
        for c in range(classes):
            root = roots[c]
            for p in range(n):
                others_[p] += root[p] * root[p]
        for p in range(n):
            mine = own_[p] * own_[p]
            total, valid = mine + others_[p], label[p] >= 0
            error = others_[p] / total
            scale_[p] = ONE / np.sqrt(total) if valid and total == total else ZERO
            own_[p] = mine / total if valid else ZERO
            others_[p] = (ONE if error > ONE else error) if valid else ZERO
        for c in range(classes):
            if counted[c]:
                root, sums, lowest = roots[c], background[c], np.int64(0)
                for p in range(n):
                    step = np.int32(root[p] * (scale_[p] * units))
                    steps[p] = step
                    lowest += step if step <= fraction else np.int32(0)
                sums[0] += lowest
                for p in range(n):
                    if steps[p] > fraction:
                        sums[steps[p] >> bits] += np.int64(steps[p] & fraction) + one_pixel
        for p in range(n):
            if label[p] >= 0:
                held += 1
                if others_[p] != others_[p]:
                    nans += 1
                elif counted[label[p]]:
                    step = np.int32(np.sqrt(others_[p]) * units)
                    foreground[label[p], step >> bits] += np.int64(step & fraction) + one_pixel
    return held, nans


@kernel
def fill_lowest_bin(sums, pixels, fraction_bits):
    """Count in bin 0 of the background all pixels of a class that are not counted elsewhere.

    Args:
        sums: (2, R, K + 1) packed sums of background [0] and foreground [1].
        pixels: (R,) valid pixels of each row.
        fraction_bits: as of :func:`count`.
    """
    _, rows, width = sums.shape
    for r in range(rows):
        elsewhere = np.int64(0)
        for kind in range(2):
            held = sums[kind, r]
            for k in range(width):
                elsewhere += held[k] >> (fraction_bits + 26)
        sums[0, r, 0] += (pixels[r] - elsewhere) << (fraction_bits + 26)


@inlined
def bin_gains(f, b, intersection, union, size):
    """Gain of a foreground and of a background pixel of a bin, and how far each may be off.

    Args:
        f, b: foreground and background pixels in the bin.
        intersection, union: before it, seen from the top.
        size: foreground pixels in all bins. Without any, the first false positive costs all.
    """
    after = union + b
    if size == 0.0:
        first = union == 0.0 and b > 0.0
        return 0.0, (1.0 / b if first else 0.0), 0.0, (1.0 if first else 0.0)
    inverse, behind = 1.0 / union, 1.0 / after
    gain_f, off_f = 0.5 * (inverse + behind), 0.5 * (inverse - behind)
    gain_b = (intersection - 0.5 * f) * inverse * behind
    highest = intersection * inverse / (union + 1.0)
    lowest = (intersection - f) * behind / (after - 1.0) if after > 1.0 else 0.0
    return gain_f, gain_b, off_f, max(highest - gain_b, gain_b - lowest) if b > 0.0 else 0.0


@kernel
def jaccard_tables(background, foreground, weight, units, fraction_bits, gains_b, gains_f):
    """Gains of the bins of one class and row for the Jaccard loss, by the sums from the top.

    See ``histogram.py`` for the gains and for the bounds of their error.

    Args:
        background, foreground: (K + 1,) packed sums.
        weight: of the class in the mean of Eq. 13.
        units: positions in all bins, K 2^fraction_bits.
        fraction_bits: binary digits of a position inside a bin.
        gains_b, gains_f: (K + 1,) float32, filled with gain times weight in bins that hold pixels.

    Returns:
        The share in the loss, and whether the bounds exceed the rounding of float32.
    """
    shift, bins = fraction_bits + 26, len(background) - 1
    inside = (np.int64(1) << shift) - 1
    size = 0.0
    for k in range(bins + 1):
        size += float(foreground[k] >> shift)
    intersection, union = size, size
    value, spread, squares, scale = 0.0, 0.0, 0.0, 0.0
    gains_b[0] = gains_f[0] = ZERO  # ignored pixels look there
    for k in range(bins, -1, -1):
        f, b = float(foreground[k] >> shift), float(background[k] >> shift)
        if f == 0.0 and b == 0.0:
            continue
        gain_f, gain_b, off_f, off_b = bin_gains(f, b, intersection, union, size)
        lowest, middle = (k << fraction_bits) + (0.5 if k > 0 else 0.0), (k + 0.5) / bins
        if f > 0.0:
            value += ((lowest + (foreground[k] & inside) / f) / units) ** 2 * f * gain_f
        if b > 0.0:
            value += ((lowest + (background[k] & inside) / b) / units) ** 2 * b * gain_b
        width = min(1.0, ((k + 1.0) / bins) ** 2) - min(1.0, (float(k) / bins) ** 2)
        error = min(1.0, middle * middle)
        derivative = (error * (1.0 - error)) ** 2
        spread += (f * off_f + b * off_b) * width
        squares += (f * off_f * off_f + b * off_b * off_b) * derivative
        scale += (f + b) * derivative
        gains_b[k], gains_f[k] = gain_b * weight, gain_f * weight
        union, intersection = union + b, intersection - f
    coarse = math.sqrt(squares) > math.sqrt(scale) * GAIN_ROUNDING or spread > 2 * LOSS_ROUNDING
    return value * weight, coarse


@kernel
def gradient(
    logits,
    image,
    first,
    labels,
    top,
    scale,
    own,
    others,
    counted,
    gains_b,
    gains_f,
    units,
    fraction_bits,
    slots,
    exact,
    factor,
    result,
    to_image,
    to_first,
):
    """Gradient of some pixels; the second pass of ``plain_passes.py``.

    Args:
        logits, image, first, labels, top, scale, own, others, counted: as of :func:`count`.
        gains_b, gains_f: (C, K + 1) float32 gains of the bins of background and foreground.
        units, fraction_bits: as of :func:`count`, so that each error finds the bin that it was
            counted in.
        slots: (C,) int64: place of the class in ``exact``, or -1.
        exact: (E, P) float32: gains of the pixels themselves, for classes that have a place.
        factor: what the gradient is multiplied by.
        result: (B, C, M) float32, filled from ``to_first`` on, in one image.
        to_image, to_first: where the results begin.
    """
    classes, pixels = logits.shape[1], len(labels)
    wrong, gains = np.empty((classes, BLOCK), np.float32), np.empty((classes, BLOCK), np.float32)
    wrong_sum, shift = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bin_of, bits = np.empty(BLOCK, np.int32), np.int32(fraction_bits)
    for start in range(0, pixels, BLOCK):
        n = min(BLOCK, pixels - start)
        stop = start + n
        label, top_, scale_ = labels[start:stop], top[start:stop], scale[start:stop]
        own_, others_ = own[start:stop], others[start:stop]
        for c in range(classes):
            row, root = logits[image, c, first + start : first + stop], wrong[c]
            for p in range(n):
                value = power_of_two((row[p] - top_[p]) * HALF_LOG2_E)
                root[p] = value if scale_[p] > ZERO else ZERO
        for p in range(n):
            wrong_sum[p] = ZERO
            if label[p] >= 0:
                wrong[label[p], p] = ZERO
        for c in range(classes):
            root, gain = wrong[c], gains[c]
            if slots[c] >= 0:
                given = exact[slots[c], start:stop]
                for p in range(n):
                    gain[p] = given[p]
            elif counted[c]:
                table = gains_b[c]
                for p in range(n):
                    bin_of[p] = np.int32(root[p] * (scale_[p] * units)) >> bits
                for p in range(n):
                    gain[p] = table[bin_of[p]]
            else:
                for p in range(n):
                    gain[p] = ZERO
            for p in range(n):
                value = root[p] * scale_[p]
                root[p] = value * value
                wrong_sum[p] += gain[p] * root[p]
        for p in range(n):
            label_gain, c = ZERO, label[p]
            if c >= 0 and counted[c] and others_[p] == others_[p]:
                label_gain = gains_f[c, np.int32(np.sqrt(others_[p]) * units) >> bits]
                if slots[c] >= 0:
                    label_gain = exact[slots[c], start + p]
            shift[p] = label_gain * own_[p] - wrong_sum[p]
            wrong_sum[p] = -own_[p] * (wrong_sum[p] + label_gain * others_[p]) * factor
        for c in range(classes):
            gain, root = gains[c], wrong[c]
            out = result[to_image, c, to_first + start : to_first + stop]
            for p in range(n):
                out[p] = (gain[p] + shift[p]) * root[p] * factor
        for p in range(n):
            if label[p] >= 0:
                at = to_first + start + p
                result[to_image, label[p], at] = wrong_sum[p]
                if scale_[p] > np.float32(0.9) and own_[p] < np.float32(0.5):
                    give_back_rounding(result, to_image, at, wrong, p)


@inlined
def give_back_rounding(result, image, at, wrong, p):
    """Mend the gradient of a pixel that is sure of a wrong class.

    There g_c - S subtracts near equals. But the gradient of a pixel sums to zero over the classes,
    so the class of largest probability can give the rounding error back.
    """
    rest, best = ZERO, 0
    for c in range(wrong.shape[0]):
        rest += result[image, c, at]
        if wrong[c, p] > wrong[best, p]:
            best = c
    result[image, best, at] -= rest


@kernel
def log_errors(logits, image, first, labels, log_normaliser, log_error, own, others):
    """Softmax of some pixels in float64, as ``softmax.softmax_of``.

    Args:
        logits, image, first, labels: as of :func:`count`.
        log_normaliser: (P,) float64, filled: logits minus this are log-probabilities.
        log_error: (P,) float64, filled: logarithm of the label's error.
        own, others: (P,) float32, filled: the label's probability and error.
    """
    classes, pixels = logits.shape[1], len(labels)
    top = np.empty(BLOCK, np.float32)
    mine, rest = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    for start in range(0, pixels, BLOCK):
        n = min(BLOCK, pixels - start)
        label = labels[start : start + n]
        largest_of(logits, image, first + start, top[:n])
        for p in range(n):
            mine[p] = 0.0
            rest[p] = 0.0
        for c in range(classes):
            row = logits[image, c, first + start : first + start + n]
            for p in range(n):
                power = power_of_two64((np.float64(row[p]) - np.float64(top[p])) * LOG2_E)
                mine[p] += power if label[p] == c else 0.0
                rest[p] += 0.0 if label[p] == c else power
        for p in range(n):
            total = mine[p] + rest[p]
            valid = label[p] >= 0
            log_normaliser[start + p] = math.log(total) + np.float64(top[p])
            log_error[start + p] = math.log(rest[p] / total)
            own[start + p] = mine[p] / total if valid else 0.0
            others[start + p] = rest[p] / total if valid else 0.0


@inlined
def key_of(log_error):
    """Integer of KEY_BITS bits that grows with minus the logarithm of an error.

    Six bits of its exponent and the first thirty of its mantissa: errors whose logarithms agree in
    nine decimal digits are taken for equal. Beyond 2^-45 and 2^18 all are.
    """
    size = max(min(-log_error, 2.0**18), 2.0**-45)
    return (bits_of_double(size) - (np.int64(1023 - 45) << 52)) >> (58 - KEY_BITS)


@inlined
def sorted_words(words, other, counts, n, digit):
    """Sort words by their KEY_BITS upper bits, by digits from the lowest; uses up ``other``.

    Args:
        words, other: (N,) int64.
        counts: (RADIX_PASSES, 2^digit) how often each digit has each value; overwritten.
        n: how many words there are.
        digit: bits of a digit.

    Returns:
        The array that holds the sorted words.
    """
    low = (np.int64(1) << digit) - 1
    for turn in range(RADIX_PASSES):
        where, total, same = counts[turn], np.int64(0), False
        for value in range(len(where)):
            held = where[value]
            same |= held == n
            where[value] = total
            total += held
        if not same:
            shift = INDEX_BITS + 1 + digit * turn
            for i in range(n):
                value = (words[i] >> shift) & low
                at = where[value]
                other[at] = words[i]
                where[value] = at + 1
            words, other = other, words
    return words


@inlined
def ranked_gains(words, n, size, gains):
    """Gains of the Jaccard loss (Eq. 9) of n sorted words, by the number of the pixel.

    Foreground gains 1/U, background I / (U (U + 1)); once no foreground is left, nothing gains.
    """
    intersection, union = float(size), float(size)
    inverse = 1.0 / union if size > 0 else 0.0
    for i in range(n):
        at = (words[i] >> 1) & ((np.int64(1) << INDEX_BITS) - 1)
        if words[i] & 1:
            gains[at] = inverse
            intersection -= 1.0
        else:
            union += 1.0
            behind = 1.0 / union
            gains[at] = intersection * inverse * behind
            inverse = behind
            if intersection == 0.0:
                break
    if size == 0 and n > 0:  # 0/0 = 1 (Eq. 3): the first false positive costs all
        gains[(words[0] >> 1) & ((np.int64(1) << INDEX_BITS) - 1)] = 1.0


@kernel
def class_gains(scores, labels, log_normaliser, log_error, item, weight, words, other, flat, gains):
    """Gains of one class over the pixels of one row, sorted exactly (Algorithm 1).

    Background of a smaller error than any foreground gains nothing (I = 0), so it is not sorted:
    early in a training, and of a class that the network is not sure of, that is most of it.

    Args:
        scores: (b, N) float32 logits of the class, of the images of the row.
        labels, log_normaliser, log_error: (b, N).
        item: the class.
        weight: what its gains are multiplied by.
        words, other, flat: (b N,) int64, int64 and float32 to work in.
        gains: (b, N) float32, overwritten.
    """
    images, pixels = labels.shape
    counts = np.zeros((RADIX_PASSES, 1 << 9), np.int64)
    ones, twos, threes, fours = counts[0], counts[1], counts[2], counts[3]
    n, size, least = 0, 0, 0.0
    for b in range(images):
        label, error = labels[b], log_error[b]
        for p in range(pixels):
            size += label[p] == item
            least = error[p] if label[p] == item and error[p] < least else least
    if size == 0:  # then the largest error alone gains
        least = -np.inf
        for b in range(images):
            row, label, normaliser = scores[b], labels[b], log_normaliser[b]
            for p in range(pixels):
                if label[p] >= 0:
                    least = max(least, np.float64(row[p]) - normaliser[p])
    for b in range(images):
        row, label, normaliser, error = scores[b], labels[b], log_normaliser[b], log_error[b]
        for p in range(pixels):
            flat[b * pixels + p] = ZERO
            mine = label[p] == item
            logarithm = error[p] if mine else np.float64(row[p]) - normaliser[p]
            if logarithm >= least and label[p] >= 0:
                key = key_of(logarithm)
                words[n] = (((key << INDEX_BITS) | (b * pixels + p)) << 1) | np.int64(mine)
                ones[key & 511] += 1
                twos[(key >> 9) & 511] += 1
                threes[(key >> 18) & 511] += 1
                fours[key >> 27] += 1
                n += 1
    words = sorted_words(words, other, counts, n, 9)
    ranked_gains(words, n, size, flat)
    for b in range(images):
        for p in range(pixels):
            gains[b, p] = flat[b * pixels + p] * weight


@kernel
def through_softmax(
    logits, image, first, labels, log_normaliser, own, others, gains, to_image, to_first
):
    """Turn the gains of some pixels into the gradient for the logits (``softmax.py``), in place.

    Args:
        logits, image, first, labels: as of :func:`count`.
        log_normaliser, own, others: as :func:`log_errors` filled them.
        gains, to_image, to_first: (B, C, M) float32 and where in it the pixels begin.

    Returns:
        Their share in the loss.
    """
    classes, pixels = logits.shape[1], len(labels)
    wrong, loss = np.empty((classes, BLOCK), np.float32), 0.0
    wrong_sum, shift = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    for start in range(0, pixels, BLOCK):
        n = min(BLOCK, pixels - start)
        stop = start + n
        label = labels[start:stop]
        own_, others_, normaliser = own[start:stop], others[start:stop], log_normaliser[start:stop]
        for c in range(classes):
            row, probability = logits[image, c, first + start : first + stop], wrong[c]
            for p in range(n):
                log = np.float32((np.float64(row[p]) - normaliser[p]) * LOG2_E)
                probability[p] = power_of_two(log)
        for p in range(n):
            wrong_sum[p] = ZERO
            if label[p] >= 0:
                wrong[label[p], p] = ZERO
        for c in range(classes):
            gain, probability = gains[to_image, c, to_first + start : to_first + stop], wrong[c]
            for p in range(n):
                wrong_sum[p] += gain[p] * probability[p]
        for p in range(n):
            label_gain = gains[to_image, label[p], to_first + start + p] if label[p] >= 0 else ZERO
            cost = wrong_sum[p] + label_gain * others_[p] if label[p] >= 0 else ZERO
            loss += np.float64(cost)
            shift[p] = label_gain * own_[p] - wrong_sum[p]
            wrong_sum[p] = -own_[p] * cost
        for c in range(classes):
            gain, probability = gains[to_image, c, to_first + start : to_first + stop], wrong[c]
            for p in range(n):
                value = (gain[p] + shift[p]) * probability[p]
                gain[p] = value if label[p] >= 0 else ZERO
        for p in range(n):
            if label[p] >= 0:
                at = to_first + start + p
                gains[to_image, label[p], at] = wrong_sum[p]
                if own_[p] < np.float32(0.5):
                    give_back_rounding(gains, to_image, at, wrong, p)
    return loss


@inlined
def hinge_error(score, is_foreground):
    """max(1 - F y, 0) of Eq. 10."""
    error = ONE - score if is_foreground else ONE + score
    return error if not error < ZERO else ZERO


@inlined
def decreasing_key(number):
    """Integer of 32 bits that grows as a float32 falls; see ``sorting.decreasing_keys``."""
    bits = np.int64(bits_of_float(number + ZERO))  # -0.0 becomes 0.0
    return (bits ^ (~(bits >> 63) & 0x7FFFFFFF)) & 0xFFFFFFFF


@kernel
def hinge_gains(scores, foreground, valid, factor, words, other, result):
    """Loss and gradient of the Lovász hinge of one row, its positive errors sorted exactly.

    Background of a smaller error than any foreground gains nothing (I = 0) and is not sorted.

    Args:
        scores: (P,) float32.
        foreground, valid: (P,) bool; ``valid`` may be empty, where every pixel counts.
        factor: what loss and gradient are multiplied by.
        words, other: (P,) int64 to work in.
        result: (P,) float32, filled with the gradient for the scores.

    Returns:
        The loss.
    """
    counts = np.zeros((RADIX_PASSES, 1 << 8), np.int64)
    ones, twos, threes, fours = counts[0], counts[1], counts[2], counts[3]
    pixels, n, size, least, bad = len(scores), 0, 0, np.float32(np.inf), False
    for p in range(pixels):
        result[p] = -scores[p] if foreground[p] else scores[p]
        size += foreground[p]
        least = result[p] if foreground[p] and result[p] < least else least
        bad |= result[p] != result[p]
    if bad:
        return np.nan
    if size == 0:  # then the largest error alone gains
        least = np.float32(-np.inf)
        for p in range(pixels):
            if len(valid) == 0 or valid[p]:
                least = max(least, result[p])
    # Signed scores rank as the errors 1 + signed do, and have not been rounded.
    least = max(least, np.float32(-1))
    for p in range(pixels):
        signed = result[p]
        result[p] = ZERO
        if signed >= least and (len(valid) == 0 or valid[p]):
            key = decreasing_key(signed)
            words[n] = (((key << INDEX_BITS) | p) << 1) | np.int64(foreground[p])
            ones[key & 255] += 1
            twos[(key >> 8) & 255] += 1
            threes[(key >> 16) & 255] += 1
            fours[key >> 24] += 1
            n += 1
    words = sorted_words(words, other, counts, n, 8)
    ranked_gains(words, n, size, result)
    loss = 0.0
    for i in range(n):
        p = (words[i] >> 1) & ((np.int64(1) << INDEX_BITS) - 1)
        error = hinge_error(scores[p], foreground[p])
        gain = np.float64(result[p]) * factor
        loss += gain * error if gain > 0.0 else 0.0
        signed = -gain if foreground[p] else gain
        result[p] = signed if error > ZERO else ZERO
    return loss
