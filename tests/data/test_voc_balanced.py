"""The balanced validation set of the authors' code, worked out by hand and on the real masks."""

import random
from pathlib import Path

import numpy as np
import pytest

from lovasz_repro.data.voc import list_images, presence_of, read_labels
from lovasz_repro.data.voc_training import balanced_validation, shuffle
from tests.conftest import real_data


def test_the_shuffle_is_that_of_python_2() -> None:
    """By hand: 0.966, 0.441, 0.007, the first numbers of the Mersenne twister seeded with 1234."""
    stream = random.Random(1234)
    assert [round(stream.random(), 3) for _ in range(3)] == [0.966, 0.441, 0.007]
    items = [10, 11, 12]
    shuffle(items, random.Random(1234))  # 2 with int(0.966 * 3) = 2, then 1 with int(0.441 * 2) = 0
    assert items == [11, 10, 12]
    items = [10, 11, 12, 13]
    shuffle(items, random.Random(1234))  # 3 with 3, 2 with int(0.441 * 3) = 1, 1 with 0
    assert items == [12, 10, 11, 13]


def test_one_stream_serves_the_classes_in_turn() -> None:
    presence = np.array([[True, False, True], [True, True, False], [False, False, False]] * 4)
    stream, expected = random.Random(1234), []
    for category in range(3):
        negatives = [image for image in range(12) if not presence[image, category]]
        for last in reversed(range(1, len(negatives))):
            other = int(stream.random() * (last + 1))
            negatives[last], negatives[other] = negatives[other], negatives[last]
        positives = [image for image in range(12) if presence[image, category]]
        expected.append(positives + negatives[: len(positives)])
    assert [balanced_validation(presence, category) for category in range(3)] == expected
    assert len(expected[0]) == 12  # 8 positives, and all there is of negatives
    assert len(expected[2]) == 8


def test_a_class_that_no_image_contains_has_no_images() -> None:
    assert balanced_validation(np.zeros((5, 2), dtype=bool), 1) == []


def test_the_real_validation_set() -> None:
    """Half of each set holds the category; 442 of the 1,449 images show a person."""
    root: Path = real_data("voc")
    presence = presence_of(root, "val")
    images = list_images(root, "val", photographs=False)
    assert presence.shape == (1449, 21)
    for number in (0, 700, 1448):
        found = set(np.unique(read_labels(images[number].mask)).tolist()) - {255}
        assert set(np.flatnonzero(presence[number]).tolist()) == found
    for category in range(1, 21):
        chosen = balanced_validation(presence, category)
        assert len(set(chosen)) == len(chosen) == 2 * presence[:, category].sum()
        assert presence[chosen, category].sum() * 2 == len(chosen)
    sizes = presence.sum(axis=0)
    assert sizes[15] == max(sizes[1:]) == pytest.approx(442, abs=8)
