"""Half of the images with a category, half without: the sets of the binary experiment (Sec. 4.2).

Validation images are the very ones of the authors' code (bermanmaxim/jaccardSegment: datasets/):
all positives of the category and as many negatives, from one stream of random numbers over the
classes in turn.
"""

import random
from functools import lru_cache
from pathlib import Path

import numpy as np

from lovasz_repro.data.voc import CLASSES, list_images, read_labels

SEED = 1234
"""Of the authors' shuffle."""


def balanced_validation(presence: np.ndarray, category: int) -> list[int]:
    """The images on which a category is validated.

    Args:
        presence: which image contains which class, (N, C) bool; images sorted by name, class 0
            the background.
        category: class id.

    Returns:
        Indices of the images with the category, then of as many without it, or of all without it
        where there are fewer.
    """
    stream = random.Random(SEED)
    negatives: list[int] = []
    for column in presence.T[: category + 1]:  # the stream runs on from class to class
        negatives = np.flatnonzero(~column).tolist()
        shuffle(negatives, stream)
    positives = np.flatnonzero(presence[:, category]).tolist()
    return positives + negatives[: len(positives)]


def shuffle(items: list[int], stream: random.Random) -> None:
    """Shuffle in place as Python 2 did, which draws otherwise than Python 3."""
    for last in range(len(items) - 1, 0, -1):
        other = int(stream.random() * (last + 1))
        items[last], items[other] = items[other], items[last]


@lru_cache(maxsize=4)
def presence_of(root: Path, split: str) -> np.ndarray:
    """Which image of a split contains which class, (N, C) bool, in the order of ``list_images``.

    Raises:
        UserError: a mask is missing or unreadable.
    """
    images = list_images(root, split, photographs=False)
    presence = np.zeros((len(images), len(CLASSES)), dtype=bool)
    for row, image in zip(presence, images, strict=True):
        counts = np.bincount(read_labels(image.mask).ravel(), minlength=256)
        row[:] = counts[: len(CLASSES)] > 0
    return presence
