"""Masks of all classes: which images are shown, what is stored of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lovasz_repro.data.voc import presence_of
from lovasz_repro.evaluation.multiclass_masks import (
    Segmentation,
    choose_images,
    segment,
    write_segmentations,
)
from tests.conftest import real_data

LABELS = np.array([[0, 0, 3], [3, 8, 255]], np.uint8)
PREDICTION = np.array([[0, 3, 3], [0, 8, 8]], np.uint8)
PHOTO = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


class Images:
    """One image, which may be evidence or a photograph."""

    def __init__(self, seen: torch.Tensor) -> None:
        self.seen = seen

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.seen, torch.from_numpy(LABELS)

    def name(self, index: int) -> str:
        return f"2007_{index:06}"


# -- which images ------------------------------------------------------------------------------


def presence(*classes: set[int], count: int = 5) -> np.ndarray:
    """Images by their classes; the background is everywhere."""
    return np.array([[c == 0 or c in present for c in range(count)] for present in classes])


def test_images_are_those_that_add_most_classes() -> None:
    images = presence({1}, {1, 2}, {3}, {1, 2, 4}, set(), {3, 4})
    # 3 adds 1, 2, 4; then 2 and 5 add 3, and 5 has more. All are shown: from 1, with two of four
    assert choose_images(images, 3) == [3, 5, 1]
    # then 3 is missing: 2. Nothing is left but 0
    assert choose_images(images, 9) == [3, 5, 1, 2, 0]
    assert choose_images(images, 0) == []


def test_images_without_an_object_are_not_shown() -> None:
    assert choose_images(presence(set(), set()), 3) == []
    assert choose_images(np.zeros((0, 21), dtype=bool), 3) == []


@given(
    st.lists(st.sets(st.integers(1, 6)), max_size=9),
    st.integers(0, 10),
)
def test_images_are_a_greedy_cover(images: list[set[int]], count: int) -> None:
    expected: list[int] = []
    shown: set[int] = set()
    while len(expected) < count:
        left = [i for i, objects in enumerate(images) if objects and i not in expected]
        if not left:
            break
        if all(images[i] <= shown for i in left):
            shown = set()
        best = max(left, key=lambda i: (len(images[i] - shown), len(images[i]), -i))
        expected.append(best)
        shown |= images[best]
    assert choose_images(presence(*images, count=7).reshape(-1, 7), count) == expected


@pytest.mark.slow
def test_twelve_real_images_show_all_classes() -> None:
    everything = presence_of(real_data("voc"), "val")
    chosen = everything[choose_images(everything, 12)]
    assert chosen.any(axis=0).all()
    assert (chosen[:, 1:].sum(axis=1) >= 3).all()


# -- what is stored ----------------------------------------------------------------------------


def test_every_way_of_predicting_is_asked_once_at_the_size_of_the_labels() -> None:
    asked = []

    def regime(image: torch.Tensor, size: tuple[int, ...]) -> np.ndarray:
        asked.append((image.clone(), size))
        return PREDICTION

    photo = torch.from_numpy(PHOTO.transpose(2, 0, 1).copy())
    found = segment(Images(photo), 7, {"prediction": regime, "crf": regime})
    assert [size for _, size in asked] == [(2, 3)] * 2
    assert all(torch.equal(image, photo) for image, _ in asked)
    assert found.name == "2007_000007"
    assert found.photo is not None
    np.testing.assert_array_equal(found.photo, PHOTO)
    assert list(found.masks) == ["prediction", "crf"]
    assert segment(Images(torch.zeros(21, 1, 1)), 0, {}).photo is None


def test_scores_are_of_the_classes_in_the_labels() -> None:
    # 0: 1 of 3; 3: 1 of 3; 8: the pixel on void does not count: 1 of 1
    found = Segmentation("a", None, LABELS, {"prediction": PREDICTION, "crf": LABELS % 255})
    assert found.batch_miou == pytest.approx({"prediction": (1 / 3 + 1 / 3 + 1) / 3, "crf": 1.0})


def test_files_hold_what_was_found(tmp_path: Path) -> None:
    one = Segmentation("2007_000001", PHOTO, LABELS, {"prediction": PREDICTION})
    two = Segmentation("2007_000002", None, LABELS.T.copy(), {"prediction": PREDICTION.T.copy()})
    files = write_segmentations([one, two], tmp_path / "segmentations")
    assert sorted(file.name for file in files) == sorted(
        ["segmentations.json", "0-photo.png", "0-labels.png", "0-prediction.png", "1-labels.png",
         "1-prediction.png"]
    )  # fmt: skip
    assert sorted(files) == sorted((tmp_path / "segmentations").iterdir())
    assert json.loads(files[0].read_text()) == {
        "segmentations": [
            {"name": "2007_000001", "height": 2, "width": 3, "batch_miou": {"prediction": 0.5556}},
            {"name": "2007_000002", "height": 3, "width": 2, "batch_miou": {"prediction": 0.5556}},
        ]
    }
    for name, pixels in (("0-photo", PHOTO), ("0-labels", LABELS), ("1-prediction", PREDICTION.T)):
        with Image.open(tmp_path / "segmentations" / f"{name}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels)
