"""The kernels of ``kernels.py`` on PyTorch's tensors, on as many threads as PyTorch may use.

Numba's own threads abort a process in which two Python threads use them, and hang in a forked
one, so the threads are ordinary ones here: kernels let go of the GIL. What they add up together
are whole numbers, so results do not depend on their number.

Large arrays are NumPy's: it asks for huge pages, and half of the time went into faults of small
ones; and no thread of PyTorch's wakes up for them, which would keep a core busy for a while.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import kernels, plain
from .histogram import GAIN_ROUNDING, LOSS_ROUNDING, ProbabilityBins
from .plain import Problem, Readings

Task = TypeVar("Task")
Result = TypeVar("Result")

# Pixels of a task: enough that calling a kernel costs nothing in comparison.
PIXELS_A_TASK = 2**15
# Rows of fewer pixels than this are sorted by the hinge's "auto".
HINGE_PIXELS = 2**16
# So few take less time than handing them to other threads: of a softmax, and of a hinge.
FEW_LOGITS, FEW_SCORES = 2**18, 2**16
# Logits that are copied at once, where they are not float32 in the order that kernels read: below
# the size from which PyTorch would use threads of its own.
STAGED_AT_ONCE = 2**15

_POOL: list[ThreadPoolExecutor] = []
os.register_at_fork(after_in_child=_POOL.clear)  # threads do not live on in a forked process


def shared_out(
    work: Callable[[Task, int], Result], tasks: Sequence[Task], threads: int
) -> list[Result]:
    """Results of ``work(task, thread)`` for all tasks, in their order."""
    results: dict[int, Result] = {}
    queue = iter(enumerate(tasks))

    def serve(thread: int) -> None:
        for number, task in queue:
            results[number] = work(task, thread)

    if threads > 1 and not _POOL:
        _POOL.append(ThreadPoolExecutor(os.cpu_count() or 1, "lovasz"))
    helpers = [_POOL[0].submit(serve, thread) for thread in range(1, threads)]
    try:
        serve(0)
    finally:
        for helper in helpers:
            helper.result()
    return [results[number] for number in range(len(tasks))]


def threads_for(tasks: Sequence[Any], numbers: int, few: int) -> int:
    """How many threads take part in tasks that look at so many numbers."""
    return max(1, min(torch.get_num_threads(), len(tasks))) if numbers >= few else 1


class Chunk(NamedTuple):
    """Some pixels of one image."""

    image: int
    start: int
    pixels: int
    flat: int
    """Where they begin among the pixels of all images."""


class Logits:
    """Logits (B, C, P) as kernels read and write them: float32, pixels in a row.

    Those that are stored otherwise go through a buffer, some pixels at a time.
    """

    def __init__(self, logits: Tensor) -> None:
        self.tensor = logits.detach()
        self.direct = logits.dtype == torch.float32 and logits.is_contiguous()
        batch, classes, pixels = logits.shape
        most = PIXELS_A_TASK if self.direct else max(512, STAGED_AT_ONCE // max(1, classes))
        self.chunks = [
            Chunk(image, start, min(most, pixels - start), image * pixels + start)
            for image in range(batch)
            for start in range(0, pixels, most)
        ]
        self.threads = threads_for(self.chunks, logits.numel(), FEW_LOGITS)
        shape = (0 if self.direct else self.threads, 1, classes, most)
        self.buffers = torch.empty(shape, dtype=torch.float32, device="cpu")

    def place(self, chunk: Chunk, thread: int) -> tuple[np.ndarray, int, int]:
        """An array for the chunk, with the image and the pixel where it begins."""
        if self.direct:
            return self.tensor.numpy(), chunk.image, chunk.start
        return self.buffers[thread].numpy(), 0, 0

    def read(self, chunk: Chunk, thread: int) -> tuple[np.ndarray, int, int]:
        """The same, holding the chunk."""
        if not self.direct:
            self._buffer(chunk, thread).copy_(self._part(chunk))
        return self.place(chunk, thread)

    def written(self, chunk: Chunk, thread: int) -> None:
        """Take over what was written to the place of the chunk."""
        if not self.direct:
            self._part(chunk).copy_(self._buffer(chunk, thread))

    def _part(self, chunk: Chunk) -> Tensor:
        return self.tensor[chunk.image, :, chunk.start : chunk.start + chunk.pixels]

    def _buffer(self, chunk: Chunk, thread: int) -> Tensor:
        return self.buffers[thread, 0, :, : chunk.pixels]


def count(logits: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The first pass; as :func:`.plain.count`. What is kept is that of ``kernels.py``."""
    source, wanted, bins = Logits(logits), problem.counted.numpy(), problem.bins
    label = with_ignored(problem)
    rows = len(problem.rows.counts)
    kept = torch.from_numpy(np.zeros((4, len(label)), np.float32))
    # One set of sums a thread; of an image that one thread takes alone, only one in all.
    shape = problem.tally_shape(logits)
    flat = np.zeros((source.threads if rows == 1 else 1, math.prod(shape) + 1), np.int64)
    parts = [part[:-1].reshape(shape) for part in flat]
    if problem.how.name == "sort" and sorts_here(problem):  # :func:`exact_gains` fills ``kept``
        return torch.from_numpy(flat[0]), kept
    numbers = (kept.numpy(), wanted)

    def work(chunks: list[Chunk], thread: int) -> int:
        nans = 0
        for chunk in chunks:
            place = (source.read(chunk, thread), label, chunk.flat, chunk.pixels, *numbers)
            sums, row = (parts[thread], 0) if rows == 1 else (parts[0], chunk.image)
            nans += kernels.count(*place, sums, row, np.float32(bins.scale), bins.bits)
        return nans

    if rows == 1:
        tasks = [[chunk] for chunk in source.chunks]
    else:
        tasks = [[one for one in source.chunks if one.image == image] for image in range(rows)]
    nans = shared_out(work, tasks, source.threads)
    for part in flat[1:]:
        flat[0] += part
    flat[0, -1] = sum(nans)
    return torch.from_numpy(flat[0]), kept


def with_ignored(problem: Problem) -> np.ndarray:
    """Labels (B * P,) with -1 on ignored pixels, as kernels know them."""
    labels, valid = problem.labels, problem.valid
    labels = labels if valid is None else labels.masked_fill(~valid, -1)
    return labels.view(-1).numpy()


@cache
def widths_of(bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Widths of the bins, and what the square of an error of a gain counts for."""
    numbers, cpu = ProbabilityBins(bins), torch.device("cpu")
    widths, weights = numbers.widths(cpu).numpy(), numbers.logit_weights(cpu).square().numpy()
    return widths.copy(), weights.copy()  # or the cache would hold tensors


def tables(sums: Tensor, problem: Problem, dtype: torch.dtype) -> Readings:
    """Gains of the bins for the Jaccard loss; as :func:`.plain.tables`.

    But of a class whose bins are too coarse, only the pixels that come first are sorted.
    """
    gains, held = np.zeros(sums.shape, np.float32), sums.numpy()
    weight, bins, shape = problem.rows.weights.numpy(), problem.bins, sums.shape[1:3]
    values, cuts, widths = np.zeros(shape), np.full(shape, problem.first_cut), widths_of(bins.bins)
    limits = float32_limits() if problem.how.name == "auto" else (1e300, 1e300)

    def work(at: tuple[int, int], _: int) -> None:
        numbers = (held, *at, weight[at[::-1]], bins.scale, bins.bits, *widths, limits, gains)
        cuts[at], values[at] = kernels.jaccard_tables(*numbers)

    used = (weight > 0) & problem.counted.numpy()
    tasks = [(int(item), int(row)) for row, item in np.argwhere(used)]
    logits = problem.labels.numel() * sums.shape[1]
    shared_out(work, tasks, threads_for(tasks, logits, FEW_LOGITS))
    if not sorts_here(problem):  # :func:`.plain.exact_gains` sorts whole classes
        whole = (cuts <= bins.bins).any(1)
        cuts[whole], values[whole] = 0, 0.0
    return Readings(torch.from_numpy(gains), torch.from_numpy(values), torch.from_numpy(cuts))


def float32_limits(largest: float = 1.0) -> tuple[float, float]:
    """The limits of :func:`.kernels.jaccard_tables` that a sort in float32 keeps."""
    return GAIN_ROUNDING**2, LOSS_ROUNDING * largest


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
    result = (
        torch.from_numpy(np.empty(logits.shape, np.float32))
        if logits.dtype == torch.float32
        else torch.empty_like(logits, memory_format=torch.contiguous_format)
    )
    bins = problem.bins
    source, target, label = Logits(logits), Logits(result), with_ignored(problem)
    gains, factor = tables.numpy(), np.float32(grad_loss.item())
    numbers = (kept.numpy(), problem.counted.numpy(), gains)
    given = (slots.numpy(), exact.view(len(exact), len(label)).numpy(), factor)

    def work(chunk: Chunk, thread: int) -> None:
        row = chunk.image if gains.shape[2] > 1 else 0
        place = (source.read(chunk, thread), label, chunk.flat, chunk.pixels, *numbers, row)
        units, out = (np.float32(bins.scale), bins.bits), target.place(chunk, thread)
        kernels.gradient(*place, *units, *given, out)
        target.written(chunk, thread)

    shared_out(work, source.chunks, source.threads)
    return result


def sorts_here(problem: Problem) -> bool:
    """Whether kernels can sort the rows: the pixels of this process, and not too many."""
    row = problem.labels.numel() // max(1, len(problem.rows.counts))
    return problem.row_ranks.alone and row <= kernels.INDEX_MASK


def exact_gains(
    logits: Tensor, problem: Problem, kept: Tensor, readings: Readings, items: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gains of some classes, sorted where bins are too coarse; as :func:`.plain.exact_gains`."""
    if not sorts_here(problem):
        return plain.exact_gains(logits, problem, kept, readings, items)
    weight, label = problem.rows.weights.numpy(), with_ignored(problem)
    sizes, bins = problem.rows.counts.numpy(), problem.bins
    row = len(label) // max(1, len(weight))
    source, softmax, tables = Logits(logits), kept.numpy(), readings.tables.numpy()
    all_of_them, nans = problem.how.name == "sort", 0
    logarithms = np.empty((2, len(label) if all_of_them else 0))
    if all_of_them:

        def take(chunk: Chunk, thread: int) -> int:
            place = (source.read(chunk, thread), label, chunk.flat, chunk.pixels)
            number: int = kernels.log_errors(*place, softmax, logarithms)
            return number

        nans = sum(shared_out(take, source.chunks, source.threads))
    gains = torch.from_numpy(np.zeros((len(items), *problem.labels.shape), np.float32))
    tasks = [(r, e) for r in range(len(weight)) for e in range(len(items)) if weight[r, items[e]]]
    threads = threads_for(tasks, logits.numel(), FEW_LOGITS)
    words, into = np.empty((threads, 2, row), np.int64), gains.view(len(items), -1).numpy()

    def sort(task: tuple[int, int], thread: int) -> float:
        at, item = slice(task[0] * row, (task[0] + 1) * row), items[task[1]]
        images = source.tensor if len(weight) == 1 else source.tensor[task[0]][None]
        factor, gained, own = weight[task[0], item], into[task[1], at], words[thread]
        # All of it in a row: kernels are compiled anew for other layouts.
        given = (np.ascontiguousarray(images[:, item].float().numpy()).reshape(-1), label[at])
        if all_of_them:
            n, size = kernels.class_words(*given, *logarithms[:, at], item, 0, own)
            loss: float = kernels.class_gains(own, n, size, factor, gained)
            return loss
        cut, units = readings.cuts[item, task[0]].item(), (np.float32(bins.scale), bins.bits)
        place = (softmax, at.start, item, tables, task[0], *units, cut)
        first = own[1, : kernels.look_up(*given, *place, gained, own[1])].copy()
        size = sizes[task[0], item]
        gained[first], loss = first_gains(images, given[1], first, item, size, factor, own)
        return loss

    part = sum(shared_out(sort, tasks, threads)) if not nans else math.nan
    return gains, torch.tensor(part, dtype=torch.float64, device="cpu")


def first_gains(
    logits: Tensor,
    labels: np.ndarray,
    pixels: np.ndarray,
    item: int,
    size: int,
    weight: float,
    words: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Gains of the pixels that come first for one class, sorted, and their share in the loss.

    Args:
        logits: (B, C, P) of the row.
        labels: (B * P,), -1 where they are ignored.
        pixels: (N,) those of larger errors than all others, in the order of their numbers.
        item, size, weight: the class, all pixels that it has in the row, and its weight in Eq. 13.
        words: (2, B * P) int64 to work in.
    """
    scores, labels, n = picked(logits, pixels), labels[pixels], len(pixels)
    softmax, errors, gains = np.empty((4, n), np.float32), np.empty((2, n)), np.empty(n, np.float32)
    kernels.log_errors((scores, 0, 0), labels, 0, n, softmax, errors)
    below = size - (labels == item).sum()
    sorted_, size = kernels.class_words(scores[0, item], labels, *errors, item, below, words)
    return gains, kernels.class_gains(words, sorted_, size, weight, gains)


def picked(logits: Tensor, pixels: np.ndarray) -> np.ndarray:
    """(1, C, N) float32 logits of N pixels of (B, C, P), which are in the order of all."""
    ends = np.searchsorted(pixels, np.arange(len(logits) + 1) * logits.shape[2])
    at = torch.from_numpy(pixels % logits.shape[2])
    some = [one.index_select(1, at[a:b]) for one, a, b in zip(logits, ends, ends[1:], strict=False)]
    return torch.cat(some, 1).float()[None].numpy()


def hinge(
    scores: Tensor, foreground: Tensor, valid: Tensor | None, factor: float, name: str
) -> tuple[float, Tensor]:
    """Sum of the losses of rows (R, P) times ``factor``, and its gradient (R, P) float32.

    Args:
        scores: (R, P) float32.
        foreground, valid: (R, P) bool; the latter None where every pixel counts.
        factor: what loss and gradient are multiplied by.
        name: "sort" or "auto", as of :class:`.histogram.Method`.
    """
    scores, foreground = scores.detach().contiguous(), foreground.contiguous()
    result = torch.from_numpy(np.empty(scores.shape, np.float32))
    masks = foreground[:, :0] if valid is None else valid.contiguous()
    rows: list[Any] = list(
        zip(*(one.numpy() for one in (scores, foreground, masks, result)), strict=True)
    )
    length, loss = scores.shape[1], 0.0
    unsorted = list(range(len(rows)))
    if name == "auto" and length >= HINGE_PIXELS:
        found = {row: counted_hinge(rows[row], factor) for row in unsorted}
        unsorted = [row for row, value in found.items() if value is None]
        loss = sum(value for value in found.values() if value is not None)
    threads = threads_for(unsorted, scores.numel(), FEW_SCORES)
    words = np.empty((threads if unsorted else 0, 2, length), np.int64)

    def sort(row: int, thread: int) -> float:
        scores, truth, mask, into = rows[row]
        own = words[thread]
        n, size = kernels.hinge_words(scores, truth, mask, own)
        if n < 0:
            into[:] = math.nan
            return math.nan
        value: float = kernels.hinge_gains(own, n, size, factor, into)
        return value

    return loss + sum(shared_out(sort, unsorted, threads)), result


@cache
def hinge_widths() -> tuple[np.ndarray, np.ndarray]:
    """Widths of the bins of a hinge, and weights that leave out bin 0, whose errors are 0."""
    edges = np.arange(kernels.HINGE_BINS + 1, dtype=np.int32) << kernels.HINGE_SHIFT
    errors = (edges + kernels.UNIT_BITS).view(np.float32)
    widths = np.concatenate([[0], np.diff(errors)])
    widths[-1] = 1e30
    return widths, (widths > 0).astype(np.float64)


def counted_hinge(row: Sequence[np.ndarray], factor: float) -> float | None:
    """Loss of scores, foreground and mask of a row, counted in bins; None: they are too coarse.

    The last of the four arrays takes the gradient.
    """
    scores, foreground, valid, result = row
    tasks = [slice(at, at + PIXELS_A_TASK) for at in range(0, len(scores), PIXELS_A_TASK)]
    threads = threads_for(tasks, len(scores), FEW_SCORES)
    sums = np.zeros((threads, 2, 1, 1, kernels.HINGE_BINS + 1), np.int64)

    def pixels(at: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return scores[at], foreground[at], valid[at]

    largest = max(
        shared_out(lambda at, i: kernels.hinge_count(*pixels(at), sums[i].ravel()), tasks, threads),
        key=lambda error: (math.isnan(error), error),
    )
    if math.isnan(largest):
        result[:] = math.nan
        return math.nan
    held, gains = sums[0], np.zeros(sums.shape[1:], np.float32)
    for part in sums[1:]:
        held += part
    numbers = (1.0, 1.0, 0, *hinge_widths(), float32_limits(float(largest)), gains)
    if kernels.jaccard_tables(held, 0, 0, *numbers)[0] <= kernels.HINGE_BINS:
        return None
    gains[..., 0] = 0

    def look_up(at: slice, _: int) -> float:
        loss: float = kernels.hinge_gradient(*pixels(at), gains.ravel(), factor, result[at])
        return loss

    return sum(shared_out(look_up, tasks, threads))
