"""How often classes occur in a training set: pixels of each class in each image, counted once.

ENet's class weights come from these counts, and so does which images equibatch can show for a
class. Counting a whole data set means decoding every mask, so the counts are kept in a file.
"""

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lovasz_repro.host.files import write_durably

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
