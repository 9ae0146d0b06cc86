"""The losses' loops over pixels, compiled by Numba for the CPU; nothing here knows PyTorch.

Each kernel is one pass over some pixels, a block at a time, so that a block's numbers of all
classes stay in the L1 and L2 caches. They are called by several threads at once (``compiled.py``)
and hold no lock. The formulas are those of ``histogram.py``, ``plain.py`` and ``extension.py``.

Two rules keep results the same on any number of threads. Additions between threads are of
integers. And of LLVM's fast-math flags only ``contract`` is on: ``reassoc`` would fold
``(y + MAGIC) - MAGIC`` into ``y``, which silently takes the rounding out of the exponential.

Arguments that several kernels have:

* source: logits (B, C, N) float32, and the image and the place in it where the pixels begin.
* labels: (P,) int64 class ids of all pixels, -1 where they are ignored.
* at, count: which of all pixels are meant.
* kept: (4, P) float32 of each pixel: the largest logit t; s of the root 2^((F - t) / (2 ln 2)) s
  of a probability, 0 on ignored and NaN pixels; the label's probability; the label's error.
* sums, tables: (2, C, R, K + 1), packed counts and gains of the bins of background [0] and
  foreground [1], of R rows.
* units, bits: positions in all bins, and binary digits of a position inside one.
"""

import math

import numpy as np
from numba import njit

BLOCK = 512
"""Pixels that are worked on together."""
COUNT_SHIFT = 26
"""A packed sum has the number of pixels above this many and the digits of a position."""
DIGIT, DIGITS = 9, 4
"""Bits of a digit that words are sorted by, and digits. The streams that one digit writes have to
stay in the L1 and L2 caches; an even number of digits brings the words back where they were."""
KEY_BITS = DIGIT * DIGITS
INDEX_BITS = 62 - KEY_BITS
"""What a 64-bit word has left for the number of a pixel, with one bit for the foreground."""
INDEX_MASK = (1 << INDEX_BITS) - 1
HINGE_SHIFT, HINGE_BINS = 12, 2**15
"""The bins of a hinge are 2^11 to a doubling of e + UNIT; the last holds what is above 64."""
KERNEL_UNIT = np.float32(2.0**-10)
UNIT_BITS = np.int32(KERNEL_UNIT.view(np.int32))

ZERO, ONE = np.float32(0), np.float32(1)
LOG2_E = math.log2(math.e)
KERNEL_HALF_LOG2_E = np.float32(0.5 * LOG2_E)


def kernel(function):
    """Compile a loop: without the GIL, and kept on disk for the next process."""
    return njit(function, nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")


def inlined(function):
    """Compile into each kernel that calls it."""
    return njit(function, inline="always", error_model="numpy")


def _power_series(degree: int) -> list[float]:
    """Coefficients of 2^f on [-1/2, 1/2], interpolated at Chebyshev's nodes."""
    nodes = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1)) / 2
    return np.polynomial.polynomial.polyfit(nodes, 2.0**nodes, degree).tolist()


A0, A1, A2, A3, A4, A5, A6 = (np.float32(number) for number in _power_series(6))
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10 = _power_series(10)
# Adding 1.5 * 2^23 (2^52) rounds a float32 (float64) to a whole number, in its last bits.
MAGIC, MAGIC_BITS = np.float32(1.5 * 2**23), np.int32(0x4B400000)
MAGIC64, MAGIC64_BITS = 1.5 * 2.0**52, np.int64(0x4338000000000000)
ROOT_HALF_BITS, LN_2 = np.float64(0.5**0.5).view(np.int64), math.log(2)


@inlined
def power_of_two(y):
    """2^y for y <= 0 in float32, to 2e-7; what is smaller than 2^-126 counts as that."""
    if y < np.float32(-126):
        y = np.float32(-126)
    whole = y + MAGIC
    f = y - (whole - MAGIC)
    power = (((((A6 * f + A5) * f + A4) * f + A3) * f + A2) * f + A1) * f + A0
    exponent = np.float32(whole).view(np.int32) - MAGIC_BITS + np.int32(127)
    return power * np.int32(exponent << np.int32(23)).view(np.float32)


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
    exponent = np.float64(whole).view(np.int64) - MAGIC64_BITS + 1023
    return power * np.int64(exponent << 52).view(np.float64)


@inlined
def logarithm_of(x):
    """Natural logarithm of a positive x in float64, to 1e-14; 0 counts as 2^-1023.

    x is 2^e m with m between the roots of 1/2 and 2, and log m twice the area tangent of s.
    """
    bits = np.float64(x).view(np.int64)
    e = (bits - ROOT_HALF_BITS) >> 52
    m = np.int64(bits - (e << 52)).view(np.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    high = ((((1 / 17) * z + 1 / 15) * z + 1 / 13) * z + 1 / 11) * z + 1 / 9
    series = (((high * z + 1 / 7) * z + 1 / 5) * z + 1 / 3) * z + 1.0
    exponent = np.int64(e + MAGIC64_BITS).view(np.float64) - MAGIC64
    return exponent * LN_2 + 2.0 * s * series


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
def count(source, labels, at, count, kept, counted, sums, row, units, bits):
    """Count the errors of some pixels in bins; the first pass of ``plain.py``.

    Args:
        kept: filled.
        counted: (C,) bool: classes whose errors are counted.
        sums: added to, in one row. A pixel that is ignored, or of the class, counts as background
            of bin 0 at first, and is taken off in the end.

    Returns:
        How many pixels have NaN.
    """
    logits, image, first = source
    classes, nans, ignored = logits.shape[1], 0, 0
    of_class = np.zeros(classes, np.int64)
    roots, steps = np.empty((classes, BLOCK), np.float32), np.empty(BLOCK, np.int32)
    shift, fraction = np.int32(bits), np.int32((1 << bits) - 1)
    one_pixel = np.int64(1) << (bits + COUNT_SHIFT)
    for start in range(0, count, BLOCK):
        n, here, begin = min(BLOCK, count - start), first + start, at + start
        end = begin + n
        label, top, scale = labels[begin:end], kept[0, begin:end], kept[1, begin:end]
        own, others = kept[2, begin:end], kept[3, begin:end]
        largest_of(logits, image, here, top)
        for c in range(classes):
            scores, root = logits[image, c, here : here + n], roots[c]
            for p in range(n):
                root[p] = power_of_two((scores[p] - top[p]) * KERNEL_HALF_LOG2_E)
        for p in range(n):
            others[p] = ZERO
            own[p] = ZERO
            if label[p] < 0:
                ignored += 1
            else:
                of_class[label[p]] += 1
                own[p] = roots[label[p], p]
                roots[label[p], p] = ZERO
        for c in range(classes):
            root = roots[c]
            for p in range(n):
                others[p] += root[p] * root[p]
        for p in range(n):
            mine = own[p] * own[p]
            total, valid = mine + others[p], label[p] >= 0
            error = others[p] / total
            scale[p] = ONE / np.sqrt(total) if valid and total == total else ZERO
            own[p] = mine / total if valid else ZERO
            others[p] = (ONE if error > ONE else error) if valid else ZERO
        for c in range(classes):
            if counted[c]:
                root, held = roots[c], sums[0, c, row]
                for p in range(n):
                    value = root[p] * (scale[p] * units)
                    steps[p] = np.int32(value if scale[p] > ZERO else ZERO)
                for p in range(n):  # unsigned, or Numba would look for negative places
                    place = np.uint32(steps[p] >> shift)
                    held[place] += np.int64(steps[p] & fraction) + one_pixel
        for p in range(n):
            steps[p] = np.int32(np.sqrt(others[p]) * units)
        for p in range(n):
            if others[p] != others[p]:
                nans += 1
            elif label[p] >= 0 and counted[label[p]]:
                place = np.uint32(steps[p] >> shift)
                sums[1, label[p], row, place] += np.int64(steps[p] & fraction) + one_pixel
    for c in range(classes):
        if counted[c]:
            sums[0, c, row, 0] -= (of_class[c] + ignored) * one_pixel
    return nans


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
def jaccard_tables(sums, item, row, weight, units, bits, widths, norm_weights, limits, tables):
    """Gains of the bins of one class and row for the Jaccard loss, by the sums from the top.

    See ``histogram.py`` for the gains and for the bounds of their error. Where the bounds are too
    large, it is for few pixels: those that come first, where the union is still small.

    Args:
        item, row: the class and row.
        weight: of the class in the mean of Eq. 13.
        widths: (K + 1,) largest difference of two errors in a bin.
        norm_weights: (K + 1,) what the squared error of a gain counts for.
        limits: of the mean squared error of a gain, and of the error of the loss.
        tables: float32, filled with gain times weight in bins that hold pixels.

    Returns:
        The bin from which on pixels have to be sorted, K + 1 if the bounds keep the limits, and
        the share in the loss of the bins below it (of errors whose roots the bins divide).
    """
    background, foreground, shift = sums[0, item, row], sums[1, item, row], bits + COUNT_SHIFT
    gains_b, gains_f = tables[0, item, row], tables[1, item, row]
    inside, size = (np.int64(1) << shift) - 1, 0.0
    bins, ahead, seen = np.empty(len(background), np.int64), np.empty((len(background) + 1, 3)), 0
    ahead[0] = 0.0
    for k in range(len(background)):
        size += float(foreground[k] >> shift)
    intersection, union = size, size
    value, spread, squares, pixels = 0.0, 0.0, 0.0, 0.0
    gains_b[0] = gains_f[0] = ZERO  # ignored pixels look there
    for k in range(len(background) - 1, -1, -1):
        f, b = float(foreground[k] >> shift), float(background[k] >> shift)
        if f == 0.0 and b == 0.0:
            continue
        gain_f, gain_b, off_f, off_b = bin_gains(f, b, intersection, union, size)
        lowest = (k << bits) + (0.5 if k > 0 else 0.0)
        if f > 0.0:
            value += ((lowest + (foreground[k] & inside) / f) / units) ** 2 * f * gain_f
        if b > 0.0:
            value += ((lowest + (background[k] & inside) / b) / units) ** 2 * b * gain_b
        spread += (f * off_f + b * off_b) * widths[k]
        squares += (f * off_f * off_f + b * off_b * off_b) * norm_weights[k]
        pixels += (f + b) * norm_weights[k]
        gains_b[k], gains_f[k] = gain_b * weight, gain_f * weight
        union, intersection = union + b, intersection - f
        bins[seen] = k
        seen += 1
        ahead[seen, 0], ahead[seen, 1], ahead[seen, 2] = value, spread, squares
    cut, done, most, widest = len(background), 0, pixels * limits[0], 2 * limits[1]
    while done < seen:
        if squares - ahead[done, 2] <= most and spread - ahead[done, 1] <= widest:
            break
        if done == 0:  # what is left shall stay well below the limits
            most, widest = most / 16, widest / 4
        cut = bins[done]
        done += 1
    return cut, (value - ahead[done, 0]) * weight


@kernel
def gradient(
    source, labels, at, count, kept, counted, tables, row, units, bits, slots, exact, factor, target
):
    """Gradient of some pixels; the second pass of ``plain.py``.

    Args:
        counted: (C,) bool: classes whose gains are in the tables.
        slots: (C,) int64: place of the class in ``exact``, or -1.
        exact: (E, P) float32: gains of the pixels themselves, for classes that have a place.
        factor: what the gradient is multiplied by.
        target: (B, C, M) float32, filled, and the image and the place in it where to begin.
    """
    (logits, image, first), (result, to_image, to_first) = source, target
    classes = logits.shape[1]
    wrong, gains = np.empty((classes, BLOCK), np.float32), np.empty((classes, BLOCK), np.float32)
    wrong_sum, change = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    bin_of, shift = np.empty(BLOCK, np.int32), np.int32(bits)
    for start in range(0, count, BLOCK):
        n, here, begin = min(BLOCK, count - start), first + start, at + start
        end = begin + n
        label, top, scale = labels[begin:end], kept[0, begin:end], kept[1, begin:end]
        own, others = kept[2, begin:end], kept[3, begin:end]
        for c in range(classes):
            scores, root = logits[image, c, here : here + n], wrong[c]
            for p in range(n):
                value = power_of_two((scores[p] - top[p]) * KERNEL_HALF_LOG2_E)
                root[p] = value if scale[p] > ZERO else ZERO
        for p in range(n):
            wrong_sum[p] = ZERO
            if label[p] >= 0:
                wrong[label[p], p] = ZERO
        for c in range(classes):
            root, gain = wrong[c], gains[c]
            if slots[c] >= 0:
                given = exact[slots[c], begin : begin + n]
                for p in range(n):
                    gain[p] = given[p]
            elif counted[c]:
                table = tables[0, c, row]
                for p in range(n):
                    bin_of[p] = np.int32(root[p] * (scale[p] * units)) >> shift
                for p in range(n):
                    gain[p] = table[bin_of[p]]
            else:
                for p in range(n):
                    gain[p] = ZERO
            for p in range(n):
                value = root[p] * scale[p]
                root[p] = value * value
                wrong_sum[p] += gain[p] * root[p]
        for p in range(n):
            label_gain, c = ZERO, label[p]
            if c >= 0 and slots[c] >= 0:
                label_gain = exact[slots[c], begin + p]
            elif c >= 0 and counted[c] and others[p] == others[p]:
                label_gain = tables[1, c, row, np.int32(np.sqrt(others[p]) * units) >> shift]
            change[p] = label_gain * own[p] - wrong_sum[p]
            wrong_sum[p] = -own[p] * (wrong_sum[p] + label_gain * others[p]) * factor
        for c in range(classes):
            gain, probability = gains[c], wrong[c]
            out = result[to_image, c, to_first + start : to_first + start + n]
            for p in range(n):
                out[p] = (gain[p] + change[p]) * probability[p] * factor
        for p in range(n):
            if label[p] >= 0:
                result[to_image, label[p], to_first + start + p] = wrong_sum[p]
                if (scale[p] > np.float32(0.985)) & (own[p] < np.float32(0.5)):
                    give_back_rounding(result, to_image, to_first + start + p, wrong, p)


@inlined
def give_back_rounding(result, image, at, wrong, p):
    """Mend the gradient of a pixel that is sure of a wrong class: of a probability above 0.97.

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
def log_errors(source, labels, at, count, kept, logarithms):
    """Softmax of some pixels in float64.

    Args:
        kept: filled.
        logarithms: (2, P) float64, filled: what is subtracted from logits to give logarithms of
            probabilities, and the logarithm of the label's error.

    Returns:
        How many pixels have NaN.
    """
    logits, image, first = source
    nans = 0
    mine, rest = np.empty(BLOCK, np.float64), np.empty(BLOCK, np.float64)
    for start in range(0, count, BLOCK):
        n, here, begin = min(BLOCK, count - start), first + start, at + start
        end = begin + n
        label, top, scale = labels[begin:end], kept[0, begin:end], kept[1, begin:end]
        own, others = kept[2, begin:end], kept[3, begin:end]
        normaliser, label_error = logarithms[0, begin:end], logarithms[1, begin:end]
        largest_of(logits, image, here, top)
        for p in range(n):
            mine[p] = 0.0
            rest[p] = 0.0
        for c in range(logits.shape[1]):
            scores = logits[image, c, here : here + n]
            for p in range(n):
                power = power_of_two64((np.float64(scores[p]) - np.float64(top[p])) * LOG2_E)
                mine[p] += power if label[p] == c else 0.0
                rest[p] += 0.0 if label[p] == c else power
        for p in range(n):
            total, counts = mine[p] + rest[p], label[p] >= 0
            share, error = mine[p] / total, rest[p] / total
            normaliser[p] = logarithm_of(total) + np.float64(top[p])
            label_error[p] = logarithm_of(error)
            root = 1.0 / np.sqrt(total) if counts else 0.0
            scale[p] = root if root == root else 0.0  # of NaN
            own[p] = share if counts else 0.0
            others[p] = error if counts else 0.0
        for p in range(n):
            nans += others[p] != others[p]
    return nans


@inlined
def word_of(key, p, is_foreground):
    """A pixel as a word to sort, by a key of KEY_BITS bits."""
    return (((key << INDEX_BITS) | p) << 1) | np.int64(is_foreground)


@inlined
def logarithm_key(logarithm):
    """A key that falls with a logarithm of a probability.

    It is six bits of the exponent and the first thirty of the mantissa: those that agree in nine
    decimal digits are taken for equal, and those between -2^-45 and 0, or below -2^18.
    """
    size = max(min(-logarithm, 2.0**18), 2.0**-45)
    return (np.float64(size).view(np.int64) - (np.int64(1023 - 45) << 52)) >> 22


@inlined
def keyed_logarithm(word):
    """The logarithm of :func:`logarithm_key`, rounded up."""
    key = (word >> (INDEX_BITS + 1)) << 22
    return -np.int64(key + (np.int64(1023 - 45) << 52)).view(np.float64)


@inlined
def ordered(bits):
    """Bits of a float32 as an int32 that grows with it, and back."""
    return bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF))


@inlined
def score_key(score):
    """A key that falls with a score: all bits that float32 has, the upper ones of the key's."""
    key = np.int64(2**31 - 1) - np.int64(ordered(np.float32(score).view(np.int32)))
    return key << (KEY_BITS - 32)


@inlined
def keyed_score(word):
    """The score of :func:`score_key`."""
    key = np.int64(2**31 - 1) - (word >> (INDEX_BITS + 1 + KEY_BITS - 32))
    return np.int32(ordered(np.int32(key))).view(np.float32)


@kernel
def sort_words(words, n):
    """Sort the first n words of ``words[0]``, digit by digit from the lowest (LSD radix).

    Words with the same key stay in the order of their pixels.

    Args:
        words: (2, N) int64; ``words[1]`` is overwritten.
    """
    places, low = np.zeros((DIGITS, 1 << DIGIT), np.int64), (1 << DIGIT) - 1
    for i in range(n):
        key = words[0, i] >> (INDEX_BITS + 1)
        for digit in range(DIGITS):
            places[digit, (key >> (DIGIT * digit)) & low] += 1
    for digit in range(DIGITS):
        place, total = places[digit], np.int64(0)
        for value in range(1 << DIGIT):
            held = place[value]
            place[value] = total
            total += held
        source, target = words[digit & 1], words[1 - (digit & 1)]
        for i in range(n):
            word = source[i]
            value = (word >> (INDEX_BITS + 1 + DIGIT * digit)) & low
            target[place[value]] = word
            place[value] += 1


@kernel
def ranked_gains(words, n, size):
    """Gains of the Jaccard loss (Eq. 9) of n pixels (Algorithm 1), in order of their words.

    Foreground gains 1/U, background I / (U (U + 1)); once no foreground is left, nothing gains.

    Args:
        words: (2, N) int64, of which the first n of ``words[0]`` count; overwritten.
        size: foreground pixels. Without any, the first false positive costs all (Eq. 3).

    Returns:
        The sorted words, and the gains (N,) float64.
    """
    sort_words(words, n)
    ranked, gains = words[0], words[1].view(np.float64)
    intersection, union = size, size
    before, behind = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        word, gain = ranked[start:stop], gains[start:stop]
        for i in range(stop - start):
            foreground = word[i] & 1
            before[i] = intersection
            intersection -= foreground
            union += 1 - foreground
            behind[i] = union
        for i in range(stop - start):
            u, is_foreground = np.float64(behind[i]), word[i] & 1
            costs = 1.0 if is_foreground else np.float64(before[i])
            gain[i] = costs / (u if is_foreground else u * (u - 1.0))
    if size == 0 and n > 0:
        gains[:n] = 0.0
        gains[0] = 1.0
    return ranked, gains


@kernel
def look_up(scores, labels, kept, at, item, tables, row, units, bits, cut, gains, picked):
    """Gains of the pixels of one class and row from its bins.

    Args:
        scores: (P,) float32 logits of the class.
        kept, at: of all pixels, and where these begin.
        item, row: the class and row.
        gains: (P,) float32, filled.
        picked: (P,) int64, of which the first are filled with the pixels in bins from ``cut`` on.

    Returns:
        How many those are.
    """
    background, foreground, shift = tables[0, item, row], tables[1, item, row], np.int32(bits)
    n, bin_of = 0, np.empty(BLOCK, np.int32)
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        score, label, gain = scores[start:stop], labels[start:stop], gains[start:stop]
        top, scale, others = kept[0, at + start :], kept[1, at + start :], kept[3, at + start :]
        for p in range(stop - start):
            value = power_of_two((score[p] - top[p]) * KERNEL_HALF_LOG2_E) * (scale[p] * units)
            value = np.sqrt(others[p]) * units if label[p] == item else value
            bin_of[p] = np.int32(value if scale[p] > ZERO else ZERO) >> shift
        for p in range(stop - start):
            gain[p] = background[bin_of[p]]
        for p in range(stop - start):
            if label[p] == item:
                gain[p] = foreground[bin_of[p]]
        for p in range(stop - start):
            if bin_of[p] >= cut and label[p] >= 0:
                picked[n] = start + p
                n += 1
    return n


@kernel
def class_words(scores, labels, normaliser, label_error, item, below, words):
    """The pixels of one row that one class has to sort, as words.

    Background of a smaller error than any foreground gains nothing (I = 0), so it is not sorted:
    early in a training, and of a class that the network is not sure of, that is most of it.

    Args:
        scores: (P,) float32 logits of the class.
        normaliser, label_error: (P,) of ``logarithms``, as :func:`log_errors` filled them.
        item: the class.
        below: its pixels that are not among these and whose errors are smaller.
        words: (2, P) int64, of which the first of ``words[0]`` are filled.

    Returns:
        How many, and how many pixels are of the class.
    """
    size, leasts = below, np.zeros(BLOCK)
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        label, error = labels[start:stop], label_error[start:stop]
        for p in range(stop - start):
            mine = label[p] == item
            size += mine
            leasts[p] = error[p] if mine and error[p] < leasts[p] else leasts[p]
    least = leasts.min() if below == 0 else -np.inf
    if size == 0:  # then the largest error alone gains
        least = -np.inf
        for p in range(len(scores)):
            if labels[p] >= 0:
                least = max(least, np.float64(scores[p]) - normaliser[p])
    n, block, sorts = 0, np.empty(BLOCK, np.int64), np.empty(BLOCK, np.bool_)
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        label, error = labels[start:stop], label_error[start:stop]
        score, total = scores[start:stop], normaliser[start:stop]
        for p in range(stop - start):
            mine = label[p] == item
            logarithm = error[p] if mine else np.float64(score[p]) - total[p]
            block[p] = word_of(logarithm_key(logarithm), start + p, mine)
            sorts[p] = logarithm >= least and label[p] >= 0
        for p in range(stop - start):
            words[0, n] = block[p]  # the next takes its place where it is not sorted
            n += sorts[p]
    return n, size


@kernel
def class_gains(words, n, size, weight, gains):
    """Gains of one class over the pixels of one row (Algorithm 1).

    Args:
        words, n, size: as :func:`class_words` gave them.
        weight: what the gains are multiplied by.
        gains: (P,) float32, filled.

    Returns:
        The share in the loss.
    """
    gains[:] = ZERO
    ranked, gained = ranked_gains(words, n, size)
    losses = np.zeros(BLOCK)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        word, gain = ranked[start:stop], gained[start:stop]
        for i in range(stop - start):
            error = power_of_two(np.float32(keyed_logarithm(word[i]) * LOG2_E))
            losses[i] += np.float64(error) * gain[i]
        for i in range(stop - start):
            gains[(word[i] >> 1) & INDEX_MASK] = gain[i] * weight
    return losses.sum() * weight


@inlined
def hinge_error(score, is_foreground):
    """max(1 - F y, 0) of Eq. 10."""
    error = ONE - score if is_foreground else ONE + score
    return error if not error < ZERO else ZERO


@inlined
def hinge_keys(scores, foreground, valid, bins, most):
    """Place of some pixels in the bins of background and foreground; their largest key or ``most``.

    A key is the bits of e + UNIT less those of UNIT: a logarithm, linear between powers of two.
    Bin 0 holds what is 0, or next to nothing beside UNIT, and what is ignored.
    """
    for p in range(len(scores)):
        error = np.float32(hinge_error(scores[p], foreground[p]) + KERNEL_UNIT)
        key = (error.view(np.int32) & np.int32(0x7FFFFFFF)) - UNIT_BITS  # NaN has any sign
        most = key if key > most else most
        place = (key + np.int32((1 << HINGE_SHIFT) - 1)) >> np.int32(HINGE_SHIFT)
        place = place if place < np.int32(HINGE_BINS) else np.int32(HINGE_BINS)
        bins[p] = place + foreground[p] * np.int32(HINGE_BINS + 1)
    for p in range(len(valid)):
        bins[p] = bins[p] if valid[p] else np.int32(0)
    return most


@kernel
def hinge_count(scores, foreground, valid, sums):
    """Count the errors of some pixels of a row in bins.

    Args:
        scores: (P,) float32.
        foreground, valid: (P,) bool; ``valid`` may be empty, where every pixel counts.
        sums: (2 * (HINGE_BINS + 1),), with no digits of positions; added to.

    Returns:
        The largest error; NaN if there is one.
    """
    bins, one_pixel, most = np.empty(BLOCK, np.int32), 1 << COUNT_SHIFT, np.int32(0)
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        score, truth = scores[start:stop], foreground[start:stop]
        most = hinge_keys(score, truth, valid[start:stop], bins, most)
        for p in range(stop - start):
            sums[bins[p]] += one_pixel
    return np.int32(most + UNIT_BITS).view(np.float32) - KERNEL_UNIT


@kernel
def hinge_gradient(scores, foreground, valid, gains, factor, result):
    """Loss and gradient of some pixels of a row, from the gains of the bins.

    Args:
        scores, foreground, valid: as of :func:`hinge_count`.
        gains: (2 * (HINGE_BINS + 1),) float32; 0 in bin 0.
        factor: what both are multiplied by.
        result: (P,) float32, filled.

    Returns:
        The loss.
    """
    bins, losses = np.empty(BLOCK, np.int32), np.zeros(BLOCK)
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        score, truth, out = scores[start:stop], foreground[start:stop], result[start:stop]
        hinge_keys(score, truth, valid[start:stop], bins, np.int32(0))
        for p in range(stop - start):
            out[p] = gains[bins[p]] * factor
        for p in range(stop - start):
            cost = np.float64(out[p]) * hinge_error(score[p], truth[p])
            losses[p] += cost if out[p] > ZERO else 0.0
            out[p] = -out[p] if truth[p] else out[p]
    return losses.sum()


@kernel
def hinge_words(scores, foreground, valid, words):
    """The positive errors of a row as words; as :func:`class_words`, but -1 of them with NaN.

    Args:
        scores, foreground, valid: as of :func:`hinge_count`.
    """
    size, most, bad = 0, np.float32(-np.inf), False
    leasts = np.full(BLOCK, np.float32(np.inf))
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        score, truth = scores[start:stop], foreground[start:stop]
        for p in range(stop - start):
            size += truth[p]
            bad |= score[p] != score[p]
            leasts[p] = -score[p] if truth[p] and -score[p] < leasts[p] else leasts[p]
    if bad:
        return -1, size
    least = leasts.min()
    if size == 0:  # then the largest error alone gains
        for p in range(len(scores)):
            if len(valid) == 0 or valid[p]:
                most = max(most, scores[p])
        least = most
    # Signed scores rank as the errors 1 + signed do, and have not been rounded.
    least = max(least, np.float32(-1))
    n, block, sorts = 0, np.empty(BLOCK, np.int64), np.empty(BLOCK, np.bool_)
    for start in range(0, len(scores), BLOCK):
        stop = min(start + BLOCK, len(scores))
        score, truth, mask = scores[start:stop], foreground[start:stop], valid[start:stop]
        for p in range(stop - start):
            signed = -score[p] if truth[p] else score[p]
            block[p] = word_of(score_key(signed), start + p, truth[p])
            sorts[p] = signed >= least
        for p in range(len(mask)):
            sorts[p] &= mask[p]
        for p in range(stop - start):
            words[0, n] = block[p]
            n += sorts[p]
    return n, size


@kernel
def hinge_gains(words, n, size, factor, result):
    """Loss and gradient of a row, as :func:`hinge_gradient`, from its :func:`hinge_words`."""
    result[:] = ZERO
    (ranked, gains), losses = ranked_gains(words, n, size), np.zeros(BLOCK)
    for start in range(0, n, BLOCK):
        stop = min(start + BLOCK, n)
        word, gained = ranked[start:stop], gains[start:stop]
        for i in range(stop - start):
            is_foreground, error = word[i] & 1, 1.0 + np.float64(keyed_score(word[i]))
            gain = gained[i] * factor if error > 0.0 else 0.0
            losses[i] += gain * error if gain > 0.0 else 0.0
            gained[i] = -gain if is_foreground else gain
        for i in range(stop - start):
            result[(word[i] >> 1) & INDEX_MASK] = gained[i]
    return losses.sum()
