"""How often classes occur, and which training images form the batch of iteration k.

The latter is a function of the seed and k alone. A sampler that needs no memory of the past
resumes at any iteration with the same batches, and every rank can take its share of a batch without
talking to the others.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from lovasz_repro.host.files import write_durably

# ---- How often classes occur ---------------------------------------------------------------------
#
# How often classes occur in a training set: pixels of each class in each image, counted once.
#
# ENet's class weights come from these counts, and so does which images equibatch can show for a
# class. Counting a whole data set means decoding every mask, so the counts are kept in a file.

VALUES = 256
"""Values that a label of 8 bits may have."""


class Labelled(Protocol):
    """A training set whose labels can be read without its photographs."""

    def __len__(self) -> int: ...

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of an item, as the network is trained on them."""
        ...


def class_counts(
    images: Labelled,
    cache: Path | None = None,
    follow: Callable[[Iterable[int]], Iterable[int]] = lambda indices: indices,
) -> np.ndarray:
    """Pixels of each label value in each image, (N, 256) int32.

    Args:
        images: N labelled images.
        cache: file that holds the counts after the first time; its name must tell data and size.
        follow: wraps the indices as they are gone through, to show progress.
    """
    known = _read(cache, len(images)) if cache else None
    if known is not None:
        return known
    counts = np.zeros((len(images), VALUES), dtype=np.int32)
    for index in follow(range(len(images))):
        counts[index] = np.bincount(images.labels(index).ravel(), minlength=VALUES)
    if cache:
        _write(cache, counts)
    return counts


def class_shares(counts: np.ndarray, num_classes: int) -> torch.Tensor:
    """Share of pixels of each class among all pixels, ignored ones included: (C,) float64."""
    total = counts.sum(axis=0, dtype=np.int64)
    return torch.from_numpy(total[:num_classes] / total.sum())


def class_presence(counts: np.ndarray, classes: Sequence[int]) -> dict[str, float]:
    """How evenly images show the classes, which is what equibatch evens out.

    Args:
        counts: pixels of each label in each image, (N, 256).
        classes: which labels are classes.

    Returns: ``classes_per_image``, the mean; and ``class_uniformity``, the entropy of the numbers
        of images that show each class over that of equal numbers, 1 for equal ones; of the classes
        that some image shows, NaN where these are fewer than two.
    """
    shown = counts[:, list(classes)] > 0
    images = shown.sum(axis=0)
    shares = images[images > 0] / max(1, images.sum())
    entropy = -(shares * np.log(shares)).sum()
    uniformity = entropy / np.log(len(shares)) if len(shares) > 1 else np.nan
    return {
        "classes_per_image": float(shown.sum(axis=1).mean()),
        "class_uniformity": float(uniformity),
    }


def _read(cache: Path, images: int) -> np.ndarray | None:
    try:
        counts = np.load(cache, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = counts.dtype == np.int32 and counts.shape == (images, VALUES)
    return counts if fits else None


def _write(cache: Path, counts: np.ndarray) -> None:
    """A cache that cannot be written costs time, not the run."""
    content = io.BytesIO()
    np.save(content, counts)
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_durably(cache, content.getbuffer())


# ---- Which images form a batch -------------------------------------------------------------------


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
