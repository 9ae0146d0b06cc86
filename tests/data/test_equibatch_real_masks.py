"""Equibatch on the 10,582 masks of train_aug, where they are: its promise, and what it changes.

The numbers are those of docs/results.md, of the 30,000 batches of seed 0.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.classes import VOC_CLASSES
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.sampling import Draw, class_counts
from lovasz_repro.data.voc import list_images
from lovasz_repro.data.voc_evidence import Evidence, EvidenceTraining
from lovasz_repro.data.voc_training import crops_of
from lovasz_repro.run.build import draw_batches
from tests.conftest import real_data

pytestmark = pytest.mark.slow
BATCH, STEPS = 10, 30_000
OBJECTS = slice(1, None)


@lru_cache
def images(root: Path) -> list[ImagePair]:
    return list_images(root, "train_aug", photographs=False)


@lru_cache
def counted(root: Path) -> np.ndarray:
    """Pixels of each value in each mask, (10582, 256), read without code of the tool."""
    counts = np.zeros((len(images(root)), 256), np.int32)
    for row, image in zip(counts, images(root), strict=True):
        with Image.open(image.mask) as file:
            row[:] = np.bincount(np.asarray(file).ravel(), minlength=256)
    return counts


@lru_cache
def drawn(root: Path) -> list[list[Draw]]:
    """The batches of the variant lovasz-equibatch-30k."""
    (cell,) = load_experiment("voc-multiclass").cells("paper", variants=["lovasz-equibatch-30k"])
    counts = counted(root)
    assert (cell.training.batch_size, cell.training.iterations, cell.seed) == (BATCH, STEPS, 0)
    return list(draw_batches(cell, len(counts), counts, 0))


def pairs(root: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and class of every draw (300000,), and which image contains which class."""
    flat = [draw for batch in drawn(root) for draw in batch]
    presence = counted(root)[:, : len(VOC_CLASSES)] > 0
    return np.array([d.image for d in flat]), np.array([d.wanted for d in flat]), presence


@pytest.fixture
def root() -> Path:
    return real_data("voc")


def test_the_counts_of_a_run_are_those_of_the_masks(root: Path) -> None:
    some = class_counts(crops_of(images(root)[::30], crop=321, seed=0))
    assert np.array_equal(some, counted(root)[::30])


def test_any_21_draws_in_a_row_visit_each_of_the_21_classes(root: Path) -> None:
    image, wanted, presence = pairs(root)
    assert {len(batch) for batch in drawn(root)} == {BATCH}
    assert len(image) == BATCH * STEPS
    windows = np.sort(sliding_window_view(wanted, len(VOC_CLASSES)), axis=1)
    assert (windows == np.arange(len(VOC_CLASSES))).all()
    assert presence[image, wanted].all()  # the image does contain the class


def test_no_image_of_a_class_twice_before_all_were_shown(root: Path) -> None:
    image, wanted, presence = pairs(root)
    for label in range(len(VOC_CLASSES)):
        own, candidates = image[wanted == label], np.flatnonzero(presence[:, label])
        whole = len(own) // len(candidates)
        rounds = own[: whole * len(candidates)].reshape(whole, len(candidates))
        assert whole >= 1  # also the 10,578 images with background
        assert (np.sort(rounds, axis=1) == candidates).all()
        rest = own[whole * len(candidates) :]
        assert len(np.unique(rest)) == len(rest)
        assert len(np.unique(rounds, axis=0)) == whole  # in another order each time


def least_median_most(values: np.ndarray) -> tuple[float, float, float]:
    return values.min(), float(np.median(values)), values.max()


def test_how_often_classes_are_seen(root: Path) -> None:
    """Images with a class among ten, and its share of the labelled pixels in percent: objects."""
    image, _, presence = pairs(root)
    pixels = counted(root)[:, : len(VOC_CLASSES)].astype(np.int64)
    at_random, equibatch = (
        (BATCH * presence[which].mean(axis=0), 100 * pixels[which].sum(0) / pixels[which].sum())
        for which in (slice(None), image)
    )
    assert least_median_most(at_random[0][OBJECTS]) == pytest.approx((0.25, 0.49, 3.68), abs=0.006)
    assert least_median_most(equibatch[0][OBJECTS]) == pytest.approx((0.51, 0.66, 3.61), abs=0.006)
    assert least_median_most(at_random[1][OBJECTS]) == pytest.approx((0.52, 0.99, 7.78), abs=0.006)
    assert least_median_most(equibatch[1][OBJECTS]) == pytest.approx((0.53, 1.28, 5.84), abs=0.006)


class OneByOne(EvidenceTraining):
    """Its masks are read when they are asked for: they are 2 GB."""

    def __init__(self, files: list[ImagePair], crop_with_class: bool) -> None:
        self.masks = Masks(files)  # type: ignore[assignment]
        self.crop, self.evidence, self.seed, self.category = 321, Evidence(), 0, None
        self.crop_with_class, self.augmentation = crop_with_class, "deeplab"


class Masks:
    def __init__(self, files: list[ImagePair]) -> None:
        self.files = files

    def __getitem__(self, index: int) -> np.ndarray:
        with Image.open(self.files[index].mask) as file:
            return np.array(file)


def test_how_often_a_crop_shows_the_class_whose_turn_it_is(root: Path) -> None:
    """In the first 2,100 draws; docs/results.md has 21,000."""
    draws = [draw for batch in drawn(root)[:210] for draw in batch]
    shares = {}
    for crop_with_class in (False, True):
        crops = OneByOne(images(root), crop_with_class)
        shares[crop_with_class] = np.mean([bool((crops[d][1] == d.wanted).any()) for d in draws])
    assert shares[False] == pytest.approx(0.948, abs=0.02)  # 4 standard deviations
    assert shares[True] == pytest.approx(0.998, abs=0.004)
