"""How near the mIoU of a batch comes to that of the data set, on the validation masks of VOC.

The network is one that picks the class of the largest evidence, averaged over 3x3 points.
"""

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import uniform_filter

from lovasz_repro.data.classes import VOC_CLASSES, VOID
from lovasz_repro.data.voc_evidence import Evidence, EvidenceScored, grid_of
from tests.conftest import real_data

CLASSES = len(VOC_CLASSES)
BATCHES = 5000


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    """Pixels of intersection, union and ground truth of each image and class, (3, 1449, 21)."""
    data = EvidenceScored(real_data("voc"), "val", Evidence(noise=1.0))
    out = np.zeros((3, len(data), CLASSES))
    for index, mask in enumerate(data.masks):
        evidence, _ = data[index]
        classes = uniform_filter(evidence.numpy(), (1, 3, 3)).argmax(axis=0)
        labels = grid_of(mask)
        known = labels != VOID
        hit, true, said = (
            np.bincount(values, minlength=CLASSES)
            for values in (labels[known & (classes == labels)], labels[known], classes[known])
        )
        out[:, index] = hit, true + said - hit, true
    return out


def present_miou(counts: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Of each batch of images (n, b), over the classes of its ground truth."""
    hit, union, true = counts[:, images].sum(axis=2)
    iou = np.divide(hit, union, out=np.zeros_like(hit), where=union > 0)
    return iou.sum(axis=1, where=true > 0) / (true > 0).sum(axis=1)


def dataset_miou(counts: np.ndarray) -> float:
    hit, union, _ = counts.sum(axis=1)
    return float((hit / union).mean())


def at_random(counts: np.ndarray, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(counts.shape[1], size=(BATCHES, size))


def equibatch(counts: np.ndarray, size: int) -> np.ndarray:
    """Images of one class after the other, each class once in 21 images."""
    random = np.random.default_rng(0)
    turns = BATCHES * size // CLASSES + 1
    wanted = np.concatenate([random.permutation(CLASSES) for _ in range(turns)])[: BATCHES * size]
    showing = [np.flatnonzero(counts[2, :, label]) for label in range(CLASSES)]
    return np.array([random.choice(showing[label]) for label in wanted]).reshape(BATCHES, size)


def test_equibatch_brings_the_batch_miou_closer(counts: np.ndarray) -> None:
    """Sec. 3.1, of the batches of 10 of Sec. 4.3: the mean of the batches, and each of them."""
    dataset = dataset_miou(counts)
    plain, cycled = (present_miou(counts, draw(counts, 10)) for draw in (at_random, equibatch))
    assert abs(cycled.mean() - dataset) < 0.8 * abs(plain.mean() - dataset)
    assert np.hypot.reduce(cycled - dataset) < 0.8 * np.hypot.reduce(plain - dataset)


def test_larger_batches_come_closer(counts: np.ndarray) -> None:
    """Sec. 4.4, of the sizes of Fig. 9."""
    dataset = dataset_miou(counts)
    distances = [
        np.sqrt(((present_miou(counts, at_random(counts, size)) - dataset) ** 2).mean())
        for size in (2, 5, 10, 20)
    ]
    assert all(larger < 0.8 * smaller for smaller, larger in pairwise(distances))
