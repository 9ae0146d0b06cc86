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
    """Batches of a whole training, from any iteration on; a subclass says which image a draw is.

    Args:
        batch_size: images per batch.
        iterations: batches in all.
        seed: seeds whatever is drawn.
        start: iteration to begin with; the batches from there on are the same as without it.
    """

    def __init__(self, batch_size: int, iterations: int, *, seed: int, start: int = 0) -> None:
        self.batch_size = batch_size
        self.iterations = iterations
        self.seed = seed
        self.start = start
        self._orders: dict[int, tuple[int, torch.Tensor]] = {}

    def __len__(self) -> int:
        return max(self.iterations - self.start, 0)

    def __iter__(self) -> Iterator[list[Draw]]:
        for iteration in range(self.start, self.iterations):
            first = iteration * self.batch_size
            yield [self.draw(position) for position in range(first, first + self.batch_size)]

    def draw(self, position: int) -> Draw:
        """What comes after ``position`` other images."""
        raise NotImplementedError

    def order(self, of: int, round_: int, count: int, seed: int) -> torch.Tensor:
        """A permutation of ``count`` things; the last one ``of`` each kind is kept."""
        if of not in self._orders or self._orders[of][0] != round_:
            generator = torch.Generator().manual_seed(mix(seed, round_))
            self._orders[of] = round_, torch.randperm(count, generator=generator)
        return self._orders[of][1]


class ShuffledBatches(Batches):
    """Batches from a fresh permutation of the data set every epoch, without a short last batch.

    The permutations are laid end to end and cut into batches, so a batch may straddle two epochs
    and every image is seen equally often.

    Args:
        dataset_size: number of images.
        batch_size, iterations, seed, start: as of ``Batches``.
    """

    def __init__(
        self, dataset_size: int, batch_size: int, iterations: int, *, seed: int, start: int = 0
    ) -> None:
        self.dataset_size = dataset_size
        super().__init__(batch_size, iterations, seed=seed, start=start)

    def draw(self, position: int) -> Draw:
        """The next image of the epoch."""
        epoch, index = divmod(position, self.dataset_size)
        return Draw(int(self.order(0, epoch, self.dataset_size, self.seed)[index]), position)


class EquibatchBatches(Batches):
    """Batches that visit every class in turn (equibatch, paper Sec. 4.3).

    Draw k shows an image that contains class k mod C of a fixed, shuffled order of the classes, so
    of any C draws in a row each class has one of its own, which ``Draw.wanted`` names. The images
    of a class come from a fresh permutation of those that contain it, every time all were shown.
    Classes that no image contains are left out.

    Args:
        presence: which image contains which class, (N, C) bool.
        batch_size, iterations, seed, start: as of ``Batches``.
        first_class: label of the first of the C classes.

    Raises:
        ValueError: no image contains any class.
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
        super().__init__(batch_size, iterations, seed=seed, start=start)
        self.images = [torch.from_numpy(np.flatnonzero(column)) for column in presence.T]
        occurring = [index for index, images in enumerate(self.images) if len(images)]
        if not occurring:
            raise ValueError("no image contains any class")
        generator = torch.Generator().manual_seed(mix(seed, 0))
        shuffled = torch.randperm(len(occurring), generator=generator).tolist()
        self.classes = [occurring[index] for index in shuffled]
        self.first_class = first_class

    def draw(self, position: int) -> Draw:
        """The next image of the class whose turn it is."""
        visit, place = divmod(position, len(self.classes))
        chosen = self.classes[place]
        images = self.images[chosen]
        round_, index = divmod(visit, len(images))
        order = self.order(chosen, round_, len(images), mix(self.seed, 1 + chosen))
        return Draw(int(images[order[index]]), position, self.first_class + chosen)


class BalancedBatches(Batches):
    """Batches half of whose images contain a category on average (paper Sec. 4.2).

    Each draw is an image with the category, or one without it, with probability 1/2; which of
    them is uniform, with replacement
    (bermanmaxim/jaccardSegment: train_pytorch.py).

    Args:
        positive: whether each image contains the category, (N,) bool.
        batch_size, iterations, seed, start: as of ``Batches``.

    Raises:
        ValueError: every image contains the category, or none does.
    """

    def __init__(
        self, positive: np.ndarray, batch_size: int, iterations: int, *, seed: int, start: int = 0
    ) -> None:
        super().__init__(batch_size, iterations, seed=seed, start=start)
        self.kinds = np.flatnonzero(~positive), np.flatnonzero(positive)
        if not all(map(len, self.kinds)):
            raise ValueError(f"{len(self.kinds[1])} images of {len(positive)} with the category")

    def draw(self, position: int) -> Draw:
        """An image of either kind."""
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
