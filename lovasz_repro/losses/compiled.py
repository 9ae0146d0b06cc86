"""The kernels of ``kernels.py`` on PyTorch's tensors, on as many threads as PyTorch may use.

Numba's own threads abort a process in which two Python threads use them, and hang in a forked
one, so the threads are ordinary ones here: kernels let go of the GIL. What they add up together
are whole numbers, so results do not depend on their number.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from . import kernels
from .error_bins import ProbabilityBins
from .inputs import PixelWeights
from .plain_passes import Softmax, Tally

Task = TypeVar("Task")
Result = TypeVar("Result")

# Pixels of a task: enough that calling a kernel costs nothing in comparison.
PIXELS_AT_ONCE = 2**15
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


def threads_for(tasks: Sequence[Any]) -> int:
    """How many threads take part."""
    return max(1, min(torch.get_num_threads(), len(tasks)))


class Chunk(NamedTuple):
    """Some pixels of one image, and where they are among the B * P pixels."""

    image: int
    start: int
    stop: int
    flat: slice


def chunks_of(batch: int, pixels: int, most: int) -> list[Chunk]:
    """All pixels of a batch, image by image."""
    return [
        Chunk(image, start, stop, slice(image * pixels + start, image * pixels + stop))
        for image in range(batch)
        for start in range(0, pixels, most)
        for stop in [min(start + most, pixels)]
    ]


class Logits:
    """Logits (B, C, P) as kernels read and write them: float32, pixels in a row.

    Those that are stored otherwise go through a buffer, some pixels at a time.
    """

    def __init__(self, logits: Tensor) -> None:
        self.tensor = logits.detach()
        self.direct = logits.dtype == torch.float32 and logits.is_contiguous()
        batch, classes, pixels = logits.shape
        most = PIXELS_AT_ONCE if self.direct else max(512, STAGED_AT_ONCE // max(1, classes))
        self.chunks = chunks_of(batch, pixels, most)
        self.threads = threads_for(self.chunks)
        self.array = self.tensor.numpy() if self.direct else None
        self.buffers = [] if self.direct else [
            torch.empty(1, classes, most, device="cpu") for _ in range(self.threads)
        ]  # fmt: skip

    def read(self, chunk: Chunk, thread: int) -> tuple[np.ndarray, int, int]:
        """An array that holds the chunk, with the image and the pixel where it begins."""
        if self.array is not None:
            return self.array, chunk.image, chunk.start
        buffer = self.buffers[thread]
        part = self.tensor[chunk.image, :, chunk.start : chunk.stop]
        buffer[0, :, : chunk.stop - chunk.start].copy_(part)
        return buffer.numpy(), 0, 0

    def target(self, chunk: Chunk, thread: int) -> tuple[np.ndarray, int, int]:
        """An array to write the chunk to; :meth:`written` then brings it to its place."""
        if self.array is not None:
            return self.array, chunk.image, chunk.start
        return self.buffers[thread].numpy(), 0, 0

    def written(self, chunk: Chunk, thread: int) -> None:
        """Take over what was written to the target."""
        if self.array is None:
            buffer = self.buffers[thread][0, :, : chunk.stop - chunk.start]
            self.tensor[chunk.image, :, chunk.start : chunk.stop].copy_(buffer)


def count(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    counted: Tensor,
    rows: int,
    bins: ProbabilityBins,
) -> tuple[Tally, Softmax]:
    """The first pass; as :func:`.plain_passes.count` of pixels without weights."""
    source, wanted = Logits(logits), counted.numpy()
    label = with_ignored(labels, valid).view(-1).numpy()
    batch, classes, _ = logits.shape
    softmax = torch.empty(4, labels.numel(), device="cpu")
    kept = [number.numpy() for number in softmax]
    # One set of sums a thread; of an image that one thread takes alone, only one in all.
    shape = (2, classes, rows, bins.bins + 1)
    flat = np.zeros((source.threads if rows == 1 else 1, math.prod(shape) + 1), np.int64)
    parts = [part[:-1].reshape(shape) for part in flat]
    units = np.float32(bins.scale)

    def work(chunks: list[Chunk], thread: int) -> tuple[int, int]:
        held = nans = 0
        for chunk in chunks:
            sums = parts[thread if rows == 1 else 0][:, :, chunk.image if rows > 1 else 0]
            numbers = [number[chunk.flat] for number in kept]
            place = (*source.read(chunk, thread), label[chunk.flat], *numbers, wanted)
            one, other = kernels.count(*place, sums[0], sums[1], units, bins.fraction_bits)
            held, nans = held + one, nans + other
        return held, nans

    if rows == 1:
        tasks = [[chunk] for chunk in source.chunks]
    else:
        tasks = [[chunk for chunk in source.chunks if chunk.image == b] for b in range(batch)]
    found = shared_out(work, tasks, source.threads)
    held = [sum(one for one, _ in found)] if rows == 1 else [one for one, _ in found]
    pixels = np.array(held, np.int64)

    def merge(item: int, _: int) -> None:
        for part in parts[1:]:
            parts[0][:, item] += part[:, item]
        kernels.fill_lowest_bin(parts[0][:, item], pixels, bins.fraction_bits)

    shared_out(merge, np.flatnonzero(wanted).tolist(), source.threads)
    flat[0, -1] = sum(nans for _, nans in found)
    total = torch.from_numpy(flat[0])
    return Tally(total, total[:-1].view(shape)), Softmax(*softmax)


def with_ignored(labels: Tensor, valid: Tensor | None) -> Tensor:
    """Labels with -1 on ignored pixels, as kernels know them."""
    return labels if valid is None else labels.masked_fill(~valid, -1)


def jaccard_tables(
    sums: Tensor, weights: Tensor, bins: ProbabilityBins
) -> tuple[Tensor, Tensor, Tensor]:
    """Gains of the bins for the Jaccard loss.

    Args:
        sums: (2, C, R, K + 1) packed sums.
        weights: (R, C) float64 weight of each class in the loss.
        bins: the bins.

    Returns:
        (2, C, R, K + 1) float32 gains of background and foreground times the weight, (C, R)
        float64 share in the loss, and (C, R) bool: where bins are not as good as a sort in float32.
    """
    gains = np.zeros(sums.shape, np.float32)
    held, weight = sums.numpy(), weights.numpy()
    values, coarse = np.zeros(sums.shape[1:3]), np.zeros(sums.shape[1:3], np.bool_)

    def work(at: tuple[int, int], _: int) -> None:
        numbers = (held[0][at], held[1][at], weight[at[::-1]], bins.scale, bins.fraction_bits)
        values[at], coarse[at] = kernels.jaccard_tables(*numbers, gains[0][at], gains[1][at])

    tasks = [(int(item), int(row)) for row, item in np.argwhere(weight > 0)]
    shared_out(work, tasks, threads_for(tasks))
    return torch.from_numpy(gains), torch.from_numpy(values), torch.from_numpy(coarse)


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
    """The second pass, of pixels without weights; as :func:`.plain_passes.gradient`."""
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    source, target = Logits(logits), Logits(result)
    label, wanted, gains = labels.view(-1).numpy(), counted.numpy(), tables.numpy()
    kept, factor = [number.numpy() for number in softmax], np.float32(grad_loss.item())
    slots = np.full(logits.shape[1], -1)
    slots[list(exact)] = np.arange(len(exact))
    given = np.empty((len(exact), labels.numel()), np.float32)
    for row, values in zip(given, exact.values(), strict=True):
        row[:] = values.reshape(-1).numpy()

    def work(chunk: Chunk, thread: int) -> None:
        row = chunk.image if tables.shape[2] > 1 else 0
        numbers = (label[chunk.flat], *(number[chunk.flat] for number in kept), wanted)
        table = (gains[0, :, row], gains[1, :, row], np.float32(bins.scale), bins.fraction_bits)
        place, out = source.read(chunk, thread), target.target(chunk, thread)
        kernels.gradient(*place, *numbers, *table, slots, given[:, chunk.flat], factor, *out)
        target.written(chunk, thread)

    shared_out(work, source.chunks, source.threads)
    return result


class LogErrors(NamedTuple):
    """Softmax in float64: what ranks the errors, and what the gradient takes (B, P)."""

    log_normaliser: np.ndarray
    """float64: logits minus this are log-probabilities."""
    log_error: np.ndarray
    """float64 logarithm of the label's error."""
    own: np.ndarray
    """float32 probability of the label."""
    others: np.ndarray
    """float32 error of the label."""


def log_errors(source: Logits, label: np.ndarray) -> LogErrors:
    """Softmax of logits (B, C, P), with labels (B, P) that are -1 on ignored pixels."""
    numbers = np.empty((2, *label.shape))
    errors = LogErrors(*numbers, *np.empty((2, *label.shape), np.float32))

    def work(chunk: Chunk, thread: int) -> None:
        at = chunk.image, slice(chunk.start, chunk.stop)
        place = source.read(chunk, thread)
        kernels.log_errors(*place, label[at], *(number[at] for number in errors))

    shared_out(work, source.chunks, source.threads)
    return errors


def ranked(
    source: Logits, label: np.ndarray, errors: LogErrors, weights: Tensor, into: dict[int, Any]
) -> None:
    """Gains of some classes, sorted exactly.

    Args:
        source, label: logits (B, C, P), and labels (B, P) with -1 on ignored pixels.
        errors: theirs.
        weights: (R, C) float64 weight of each class in the loss; R = 1 is the batch.
        into: of each class, the array (B, P) that takes its gains times the weight.
    """
    weight, (batch, pixels) = weights.numpy(), label.shape
    images = [slice(0, batch)] if len(weight) == 1 else [slice(b, b + 1) for b in range(batch)]
    tasks = [(row, item) for row in range(len(weight)) for item in into if weight[row, item] > 0]
    threads, most = threads_for(tasks), pixels * (batch if len(weight) == 1 else 1)
    words, flat = np.empty((threads, 2, most), np.int64), np.empty((threads, most), np.float32)

    def work(task: tuple[int, int], thread: int) -> None:
        at, item = images[task[0]], task[1]
        numbers = (label[at], errors.log_normaliser[at], errors.log_error[at], item, weight[task])
        scores = source.tensor[at, item].float().numpy()
        kernels.class_gains(scores, *numbers, *words[thread], flat[thread], into[item][at])

    shared_out(work, tasks, threads)


def exact_gains(
    logits: Tensor, labels: Tensor, valid: Tensor | None, weights: Tensor, items: Sequence[int]
) -> dict[int, Tensor]:
    """Gains (B, P) float32 of some classes times their weight (R, C), sorted exactly."""
    source, label = Logits(logits), with_ignored(labels, valid).numpy()
    gains = {item: torch.zeros(labels.shape, device="cpu") for item in items}
    into = {item: values.numpy() for item, values in gains.items()}
    ranked(source, label, log_errors(source, label), weights, into)
    return gains


def sorted_loss(
    logits: Tensor, labels: Tensor, valid: Tensor | None, weights: Tensor
) -> tuple[float, Tensor]:
    """Loss of logits (B, C, P) and its gradient in float32, every class sorted exactly.

    Args:
        logits, labels, valid: as of :func:`count`.
        weights: (R, C) float64 weight of each class in the loss; R = 1 is the batch.
    """
    source, label = Logits(logits), with_ignored(labels, valid).numpy()
    result = torch.from_numpy(np.zeros(logits.shape, np.float32))
    gains, errors = result.numpy(), log_errors(source, label)
    ranked(source, label, errors, weights, {c: gains[:, c] for c in range(logits.shape[1])})

    def finish(chunk: Chunk, thread: int) -> float:
        at = chunk.image, slice(chunk.start, chunk.stop)
        numbers = (label[at], errors.log_normaliser[at], errors.own[at], errors.others[at])
        place, target = source.read(chunk, thread), (gains, chunk.image, chunk.start)
        loss: float = kernels.through_softmax(*place, *numbers, *target)
        return loss

    return sum(shared_out(finish, source.chunks, source.threads)), result


def sorted_hinge(
    scores: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    factor: float,
) -> tuple[float, Tensor]:
    """Sum of the losses of rows (R, P) times ``factor``, and its gradient (R, P) float32.

    Args:
        scores: (R, P) float32, 0 on ignored pixels.
        foreground, valid: (R, P) bool; the latter None where every pixel counts.
        factor: what loss and gradient are multiplied by.
    """
    number = scores.detach().contiguous().numpy()
    truth = foreground.contiguous().numpy()
    counts = truth[:, :0] if valid is None else valid.contiguous().numpy()
    gradient = torch.empty(scores.shape, device="cpu")
    rows, threads = range(len(scores)), threads_for(range(len(scores)))
    words, result = np.empty((threads, 2, scores.shape[1]), np.int64), gradient.numpy()

    def work(row: int, thread: int) -> float:
        where = words[thread]
        loss: float = kernels.hinge_gains(
            number[row], truth[row], counts[row], factor, *where, result[row]
        )
        return loss

    return sum(shared_out(work, rows, threads)), gradient
