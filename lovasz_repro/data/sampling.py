"""Which training images form the batch of iteration k: a function of the seed and k alone.

A sampler that needs no memory of the past resumes at any iteration with the same batches, and
every rank can take its share of a batch without talking to the others.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """One training image of one batch."""

    image: int
    """Which image of the data set."""
    position: int
    """How many images were drawn before it, over the whole training; seeds its augmentation."""
    wanted: int | None = None
    """Label of the class whose turn it is, which the image contains (`EquibatchBatches`)."""


class Batches(Sampler[list[Draw]]):
    """Batches of a whole training, from any iteration on; a subclass says how they are drawn.

    Args:
        batch_size: images per batch, at least 1.
        iterations: batches in all.
        seed: seeds whatever is drawn.
        start: iteration to begin with; the batches from there on are the same as without it.
    """

    def __init__(self, batch_size: int, iterations: int, seed: int, start: int) -> None:
        self.batch_size = batch_size
        self.iterations = iterations
        self.seed = seed
        self.start = start

    def __len__(self) -> int:
        return max(self.iterations - self.start, 0)


class ShuffledBatches(Batches):
    """Batches from a fresh permutation of the data set every epoch, without a short last batch.

    The permutations are laid end to end and cut into batches, so a batch may straddle two epochs
    and every image is seen equally often.

    Args:
        dataset_size: number of images, at least 1.
        batch_size: images per batch, at least 1.
        iterations: batches in all.
        seed: seeds every permutation.
        start: iteration to begin with; the batches from there on are the same as without it.
    """

    def __init__(
        self, dataset_size: int, batch_size: int, iterations: int, *, seed: int, start: int = 0
    ) -> None:
        if dataset_size < 1 or batch_size < 1:
            raise ValueError(
                f"dataset_size {dataset_size} and batch_size {batch_size} must be >= 1"
            )
        self.dataset_size = dataset_size
        super().__init__(batch_size, iterations, seed, start)

    def __iter__(self) -> Iterator[list[Draw]]:
        epoch, order = -1, torch.empty(0)
        for iteration in range(self.start, self.iterations):
            batch = []
            for position in range(iteration * self.batch_size, (iteration + 1) * self.batch_size):
                if position // self.dataset_size != epoch:
                    epoch = position // self.dataset_size
                    order = self._permutation(epoch)
                batch.append(Draw(int(order[position % self.dataset_size]), position))
            yield batch

    def _permutation(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        return torch.randperm(self.dataset_size, generator=generator)


class EquibatchBatches(Batches):
    """Batches that visit every class in turn (equibatch, paper Sec. 4.3).

    Draw k shows an image that contains class k mod C of a fixed, shuffled order of the classes, so
    of any C draws in a row each class has one of its own, which ``Draw.wanted`` names. The images
    of a class come from a fresh permutation of those that contain it, every time all were shown.
    Classes that no image contains are left out.

    Args:
        presence: which image contains which class, (N, C) bool.
        batch_size: images per batch, at least 1.
        iterations: batches in all.
        seed: seeds the order of the classes and every permutation.
        start: iteration to begin with; the batches from there on are the same as without it.
        first_class: label of the first of the C classes.

    Raises:
        ValueError: no image contains any class, or a size below 1.
    """

    def __init__(
        self,
        presence: np.ndarray,
        batch_size: int,
        iterations: int,
        *,
        seed: int,
        start: int = 0,
        first_class: int = 0,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} must be >= 1")
        self.images = [torch.from_numpy(np.flatnonzero(column)) for column in presence.T]
        occurring = [index for index, images in enumerate(self.images) if len(images)]
        if not occurring:
            raise ValueError("no image contains any class")
        generator = torch.Generator().manual_seed(mix(seed, 0))
        shuffled = torch.randperm(len(occurring), generator=generator).tolist()
        self.order = [occurring[index] for index in shuffled]
        self.first_class = first_class
        super().__init__(batch_size, iterations, seed, start)

    def __iter__(self) -> Iterator[list[Draw]]:
        queues: dict[int, tuple[int, torch.Tensor]] = {}
        for iteration in range(self.start, self.iterations):
            first = iteration * self.batch_size
            yield [self._draw(k, queues) for k in range(first, first + self.batch_size)]

    def _draw(self, position: int, queues: dict[int, tuple[int, torch.Tensor]]) -> Draw:
        visit, place = divmod(position, len(self.order))
        chosen = self.order[place]
        images = self.images[chosen]
        round_, index = divmod(visit, len(images))
        if chosen not in queues or queues[chosen][0] != round_:
            generator = torch.Generator().manual_seed(mix(mix(self.seed, 1 + chosen), round_))
            queues[chosen] = round_, torch.randperm(len(images), generator=generator)
        image = int(images[queues[chosen][1][index]])
        return Draw(image, position, self.first_class + chosen)


class BalancedBatches(Batches):
    """Batches half of whose images contain a category on average (paper Sec. 4.2).

    Each draw is an image with the category, or one without it, with probability 1/2; which of
    them is uniform, with replacement
    (bermanmaxim/jaccardSegment: train_pytorch.py).

    Args:
        positive: whether each image contains the category, (N,) bool.
        batch_size: images per batch, at least 1.
        iterations: batches in all.
        seed: seeds every draw.
        start: iteration to begin with; the batches from there on are the same as without it.

    Raises:
        ValueError: every image contains the category, or none does; or a size below 1.
    """

    def __init__(
        self,
        positive: np.ndarray,
        batch_size: int,
        iterations: int,
        *,
        seed: int,
        start: int = 0,
    ) -> None:
        self.kinds = np.flatnonzero(~positive), np.flatnonzero(positive)
        if batch_size < 1 or not all(map(len, self.kinds)):
            raise ValueError(f"batch_size {batch_size}, {len(self.kinds[1])} images of "
                             f"{len(positive)} with the category")  # fmt: skip
        super().__init__(batch_size, iterations, seed, start)

    def __iter__(self) -> Iterator[list[Draw]]:
        for iteration in range(self.start, self.iterations):
            first = iteration * self.batch_size
            yield [self._draw(position) for position in range(first, first + self.batch_size)]

    def _draw(self, position: int) -> Draw:
        generator = np.random.default_rng(mix(self.seed, position))
        images = self.kinds[generator.integers(2)]
        return Draw(int(images[generator.integers(len(images))]), position)


class ShareOfBatches(Sampler[list[Draw]]):
    """The part of every batch that one rank loads, whatever rule the batches come from.

    Args:
        batches: the batches of one device; iterated anew by each rank, with the same result.
        own: which part of each batch.
    """

    def __init__(self, batches: Iterable[list[Draw]], own: slice) -> None:
        self.batches = batches
        self.own = own

    def __iter__(self) -> Iterator[list[Draw]]:
        return (batch[self.own] for batch in self.batches)


def mix(seed: int, counter: int) -> int:
    """A 63-bit seed from a run's seed and a counter; nearby inputs give unrelated outputs.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) on ``seed * 2^32 + counter``.
    """
    mask = 2**64 - 1
    value = (seed * 2**32 + counter + 0x9E3779B97F4A7C15) & mask
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
    return (value ^ (value >> 31)) >> 1
