"""Crops that show the class whose turn it is: which one is taken, and that nothing else changes."""

from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.classes import VOID
from lovasz_repro.data.datasets import dataset, kind_of
from lovasz_repro.data.examples import CroppedImages, augment
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.sampling import Draw, mix
from lovasz_repro.data.voc_evidence import EvidenceTraining
from lovasz_repro.data.voc_training import crops_of
from lovasz_repro.run.build import draw_batches
from tests.tiny_voc import CLASSES_USED, write_voc

WANTED = 7
sides, seeds = st.integers(20, 130), st.integers(0, 2**31 - 1)


def scene(height: int, width: int, seed: int, side: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and labels with one block of the wanted class."""
    generator = np.random.default_rng(seed)
    image = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
    labels = generator.choice([0, 3, VOID], (height, width)).astype(np.uint8)
    top, left = generator.integers(0, height - side + 1), generator.integers(0, width - side + 1)
    labels[top : top + side, left : left + side] = WANTED
    return image, labels


def by_hand(labels: np.ndarray, crop: int, seed: int, position: int, places: int) -> np.ndarray:
    """Labels of the crop: resize all, pad, cut up to ``places`` times, look, mirror."""
    generator = np.random.default_rng(mix(seed ^ 0x5EED, position))
    scale = (0.5, 0.75, 1.0, 1.25, 1.5)[generator.integers(5)]
    height, width = (max(1, int(side * scale)) for side in labels.shape)
    whole = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    missing = max(crop - height, 0), max(crop - width, 0)
    whole = np.pad(whole, [(0, missing[0]), (0, missing[1])], constant_values=VOID)
    for _ in range(places):
        top = generator.integers(whole.shape[0] - crop + 1)
        left = generator.integers(whole.shape[1] - crop + 1)
        cut = whole[top : top + crop, left : left + crop]
        if any(cut[y, x] == WANTED for y in range(0, crop, 8) for x in range(0, crop, 8)):
            break
    return cut[:, ::-1] if generator.integers(2) else cut


@given(sides, sides, seeds, st.integers(0, 200_000), st.integers(1, 8))
def test_the_first_of_21_crops_that_shows_the_class(
    height: int, width: int, seed: int, position: int, points: int
) -> None:
    image, labels = scene(height, width, seed)
    crop = 8 * points + 1
    for wanted, places in ((WANTED, 21), (None, 1)):
        shown = augment(image, labels, seed=seed, position=position, crop=crop, wanted=wanted)[1]
        assert np.array_equal(shown, by_hand(labels, crop, seed, position, places))


def write(folder: Path, labels: np.ndarray, image: np.ndarray) -> ImagePair:
    file = ImagePair("2008_000000", folder / "photo.png", folder / "mask.png")
    Image.fromarray(image).save(file.image)
    Image.fromarray(labels).save(file.mask)
    return file


def test_crops_show_the_class_and_are_those_without_it_where_they_did(tmp_path: Path) -> None:
    image, labels = scene(150, 200, seed=3, side=20)
    file = write(tmp_path, labels, image)
    plain = crops_of([file], crop=81, seed=0)
    chosen = crops_of([file], crop=81, seed=0, crop_with_class=True)
    before, after, padded = 0, 0, []
    for position in range(100):
        draw = Draw(0, position, WANTED)
        (photograph, shown), (other, crop) = plain[draw], chosen[draw]
        assert torch.equal(plain[Draw(0, position)][0], photograph)
        assert torch.equal(chosen[Draw(0, position)][0], photograph)  # nobody's turn
        there = bool((shown[::8, ::8] == WANTED).any())
        if there:
            assert torch.equal(photograph, other)
            assert torch.equal(shown, crop)
        before += there
        after += bool((crop[::8, ::8] == WANTED).any())
        padded.append((bool((shown[-1] == VOID).all()), bool((crop[-1] == VOID).all())))
    assert before < 60
    assert after > 90
    assert all(one == other for one, other in padded)  # as many small scales as before


def test_a_class_that_no_crop_can_show_ends_the_search(tmp_path: Path) -> None:
    """One pixel between the points of the grid at scale 1, or a class that is not there."""
    labels = np.zeros((33, 33), np.uint8)
    labels[3, 3] = WANTED
    crops = crops_of(
        [write(tmp_path, labels, np.zeros((33, 33, 3), np.uint8))],
        crop=33,
        seed=0,
        crop_with_class=True,
    )
    for position in range(40):
        for wanted in (WANTED, 12):
            shown = crops[Draw(0, position, wanted)][1]
            assert shown.shape == (33, 33)
            assert not (shown == 12).any()


def test_evidence_and_photographs_show_the_same_crop(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc")
    experiment = load_experiment("voc-multiclass")
    found = {}
    for crop_with_class in (False, True):
        for profile in ("demo", "features"):
            cell = experiment.cells(profile, variants=["lovasz-equibatch"])[-1]
            options = {"crop_with_class": crop_with_class, "size": (33, 33)}
            data = cell.data.model_copy(update=options)
            found[profile] = dataset("voc").train(root, data, 5)
        photographs, evidence = found["demo"], found["features"]
        assert isinstance(photographs, CroppedImages)
        assert isinstance(evidence, EvidenceTraining)
        shown = 0
        for position in range(60):
            image = position % len(photographs)
            draw = Draw(image, position, CLASSES_USED[image % 3])
            labels = photographs[draw][1][::8, ::8]
            assert torch.equal(evidence[draw][1], labels)
            shown += bool((labels == draw.wanted).any())
        assert shown > 58 if crop_with_class else shown < 57


@pytest.mark.parametrize(("experiment", "first"), [("voc-multiclass", 0), ("cityscapes-enet", 1)])
def test_batches_name_the_class_by_its_label(experiment: str, first: int) -> None:
    cells = load_experiment(experiment).cells("paper", overrides={"data.equibatch": True})
    cell = next(cell for cell in cells if cell.model.weights != "basis")
    labels = len(kind_of(cell.data).table)
    counts = np.zeros((labels, 256), np.int32)
    counts[np.arange(labels), np.arange(labels)] = 9  # image k has label k
    batches = islice(draw_batches(cell, labels, counts, 0), 10)
    draws = [draw for batch in batches for draw in batch]
    assert all(draw.wanted == draw.image for draw in draws)
    assert {draw.wanted for draw in draws} == set(range(first, labels))
