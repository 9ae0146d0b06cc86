"""Random batches of images in which every class is represented (Sec. 4.3, prior work)."""

import numpy as np

from lovasz_repro.data.sampling import mix

MOST_DRAWS = 100_000
"""Random batches that are looked at for one with every class; seconds."""


def covering_batches(
    presence: np.ndarray, batches: int = 20, size: int = 21, *, seed: int
) -> list[list[int]]:
    """Random batches in which every class is represented (Sec. 4.3: 20 batches of 21 images).

    Each batch is uniform among all sets of `size` different images that have every class: sets are
    drawn until one has. Batches are independent, so two may share images, and batch k is the same
    however many are drawn.

    Arguments:
        presence: which image contains which class, (N, C) bool.
        batches: how many, at least 0.
        size: images in each, at least 1.
        seed: of the draws.

    Returns: the images of each batch, in [0, N).

    Raises:
        ValueError: a class that no image contains, fewer images than `size`, or no batch with every
            class among `MOST_DRAWS`.
    """
    images = len(presence)
    if not 1 <= size <= images:
        raise ValueError(f"no batch of {size} different images can be drawn from {images}")
    missing = np.flatnonzero(~presence.any(axis=0)).tolist()
    if missing:
        raise ValueError(f"no image contains class {missing[0]}")
    return [_covering_batch(presence, size, mix(seed, number)) for number in range(batches)]


def _covering_batch(presence: np.ndarray, size: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    for _ in range(MOST_DRAWS):
        batch = generator.choice(len(presence), size, replace=False)
        if presence[batch].any(axis=0).all():
            return batch.tolist()
    raise ValueError(
        f"none of {MOST_DRAWS:,} random batches of {size} images has all {presence.shape[1]} "
        "classes; take larger batches"
    )
