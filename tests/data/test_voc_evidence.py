"""Evidence drawn from masks: where it lies, what it holds, that it repeats."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.data.classes import VOID
from lovasz_repro.data.examples import CROP_SCALES
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc_evidence import (
    Evidence,
    EvidenceScored,
    EvidenceTraining,
    grid_of,
    seen_by,
)
from tests.tiny_voc import CLASSES_USED, write_voc

EXACT = Evidence(noise=1e-6)


class Fixed:
    """In the place of a generator: one answer after the other, cut to what is asked for."""

    def __init__(self, *answers: int) -> None:
        self.answers = list(answers)

    def integers(self, high: int) -> int:
        return min(self.answers.pop(0), high - 1)


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    scale=st.integers(0, len(CROP_SCALES) - 1),
    top=st.integers(0, 200),
    left=st.integers(0, 200),
    flip=st.integers(0, 1),
    points=st.integers(1, 9),
)
def test_the_grid_is_that_of_whole_pixels(
    height: int, width: int, scale: int, top: int, left: int, flip: int, points: int
) -> None:
    """Resize (by OpenCV), pad, cut, mirror, take every 8th pixel."""
    labels = np.random.default_rng(height * 91 + width).integers(0, 250, (height, width), np.uint8)
    crop = 8 * points - 7
    seen = seen_by(labels, crop, Fixed(scale, top, left, flip))  # type: ignore[arg-type]
    size = [max(1, int(side * CROP_SCALES[scale])) for side in labels.shape]
    resized = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    padded = np.pad(resized, [(0, max(crop - side, 0)) for side in size], constant_values=VOID)
    first = [min(at, max(side - crop, 0)) for at, side in zip((top, left), size, strict=True)]
    cut = padded[first[0] : first[0] + crop, first[1] : first[1] + crop]
    whole = cut[:, ::-1] if flip else cut
    np.testing.assert_array_equal(seen(labels), whole[::8, ::8])


def test_evidence_is_that_of_the_label_and_of_nothing_on_void() -> None:
    labels = np.array([[3, VOID], [0, 20]], dtype=np.uint8)
    scores = EXACT.draw(labels, seed=0).numpy()
    assert scores.shape == (21, 2, 2)
    np.testing.assert_allclose(scores[3], [[0.5, -0.5], [-0.5, -0.5]], atol=1e-4)
    np.testing.assert_allclose(scores[:, 0, 1], -0.5, atol=1e-4)
    assert scores[:, 1].argmax(axis=0).tolist() == [0, 20]


def test_the_noise_is_normal() -> None:
    scores = Evidence(noise=2.0).draw(np.full((80, 80), 7, np.uint8), seed=3)
    others = scores[torch.arange(21) != 7]
    assert others.mean().item() == pytest.approx(-0.5, abs=0.03)
    assert others.std().item() == pytest.approx(2.0, abs=0.03)
    assert scores[7].mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("side", [1, 8, 9, 10, 16, 17])
def test_the_grid_spans_the_image(side: int) -> None:
    labels = np.arange(side, dtype=np.uint8)[None].repeat(side, axis=0)
    grid = grid_of(labels)
    points = range(0, side + 7, 8) if side > 1 else range(1)
    expected = [at if at < side else VOID for at in points]
    assert grid[0].tolist() == expected
    assert (len(expected) - 1) * 8 >= side - 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc", photographs=False)


def test_training_items_repeat_and_differ(root: Path) -> None:
    images = EvidenceTraining(root, 33, Evidence(), seed=1)
    evidence, labels = images[Draw(2, 7)]
    assert evidence.shape == (21, 5, 5)
    assert labels.shape == (5, 5)
    assert torch.equal(images[Draw(2, 7)][0], evidence)
    assert not torch.equal(images[Draw(2, 8)][0], evidence)
    other = EvidenceTraining(root, 33, Evidence(), seed=2)
    assert not torch.equal(other[Draw(2, 7)][0], evidence)


@pytest.mark.parametrize(("crop", "with_class"), [(65, False), (17, True)])
def test_evidence_and_labels_are_aligned(root: Path, crop: int, with_class: bool) -> None:
    images = EvidenceTraining(root, crop, EXACT, seed=1, crop_with_class=with_class)
    for position in range(40):
        image = position % len(images)
        evidence, labels = images[Draw(image, position, CLASSES_USED[image % 3])]
        known = labels != VOID
        assert torch.equal(evidence.argmax(dim=0)[known], labels[known].long())


def test_one_class_against_the_rest(root: Path) -> None:
    """Void is void where the image holds the category, also in a crop that does not."""
    plain = EvidenceTraining(root, 33, EXACT, seed=1)
    binary = EvidenceTraining(root, 33, EXACT, seed=1, category=3)
    seen = set()
    for position in range(60):
        draw = Draw(position % len(plain), position)
        (evidence, labels), (same, found) = plain[draw], binary[draw]
        assert torch.equal(evidence, same)
        present = bool((plain.labels(draw.image) == 3).any())
        assert torch.equal(found == 1, labels == 3)
        if present:
            assert torch.equal(found == VOID, labels == VOID)
        seen.add(present)
    assert seen == {True, False}


def test_scored_images_are_whole_and_repeat(root: Path) -> None:
    images = EvidenceScored(root, "val", EXACT, chosen=[1, 0])
    evidence, labels = images[0]
    assert images.name(0) == images.names[1]
    assert evidence.shape[-2:] == tuple(-(-(side - 1) // 8) + 1 for side in labels.shape)
    assert torch.equal(images[0][0], evidence)
    on_grid = torch.from_numpy(grid_of(labels.numpy()))
    known = on_grid != VOID
    assert torch.equal(evidence.argmax(dim=0)[known], on_grid[known].long())
