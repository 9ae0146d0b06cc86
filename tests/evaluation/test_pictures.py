"""Pictures for figures: which are kept, against a search over every one, and what is stored."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lovasz_repro.data.classes import CITYSCAPES, VOC
from lovasz_repro.data.voc import presence_of
from lovasz_repro.evaluation import pictures
from lovasz_repro.evaluation.pictures import (
    choose_images,
    find_examples,
    segment,
    widest_difference,
    write_pictures,
)
from lovasz_repro.evaluation.predictor import Feeding, Predictor
from tests.conftest import real_data

CPU = torch.device("cpu")
ROAD, CAR, VOID = 7, 26, 4


class Answers(nn.Module):
    """A network that answers one class everywhere, or another in the brightest half."""

    def __init__(self, everywhere: int, bright: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.everywhere, self.bright = everywhere, bright

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(images), len(CITYSCAPES), *images.shape[2:])
        logits[:, 0] = 9  # "unlabelled" must not win
        logits[:, self.everywhere] = 1
        logits[:, self.bright] += 2 * (images[:, 0] > 0.5)
        return logits


def answers(everywhere: int, bright: int) -> Predictor:
    return Predictor(Answers(everywhere, bright), Feeding(), CPU, first_class=1)


class Pictures:
    """Picture k is bright in its first k rows of four; all road, the last column void."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, None]:
        return torch.from_numpy(self.photograph(index).transpose(2, 0, 1).copy()), None

    def name(self, index: int) -> str:
        return f"picture {index}"

    def photograph(self, index: int) -> np.ndarray:
        photo = np.zeros((8, 16, 3), dtype=np.uint8)
        photo[: 2 * index] = 255
        return photo

    def label_ids(self, index: int) -> np.ndarray:
        labels = np.full((8, 16), ROAD, dtype=np.uint8)
        labels[:, -1] = VOID
        return labels


def test_the_most_different_window_of_each_part_comes_first(tmp_path: Path) -> None:
    road, car = CITYSCAPES.names.index("road"), CITYSCAPES.names.index("car")
    seen: list[int] = []
    found = find_examples(
        answers(road, road), answers(road, car), Pictures(), CITYSCAPES, 2, advance=seen.append
    )
    assert seen == [1, 1, 1, 1]
    # of pictures 0 and 1, and of 2 and 3, whose windows can be half and all bright
    assert [e.about["differs"] for e in found] == [1.0, 0.5]
    assert set(np.unique(found[0].pictures["before"])) == {ROAD}
    assert set(np.unique(found[0].pictures["after"])) == {CAR}

    files = write_pictures(found, tmp_path / "examples")
    assert sorted(file.name for file in files) == sorted(
        ["examples.json"]
        + [f"{k}-{kind}.png" for k in (0, 1) for kind in ("photo", "labels", "before", "after")]
    )
    content = json.loads((tmp_path / "examples" / "examples.json").read_text())
    assert content[0] == {"name": "picture 2", "window": [0, 0, 4, 8], "differs": 1.0}
    assert content[1]["name"] == "picture 1"
    for kind in ("labels", "before", "after", "photo"):
        stored = np.asarray(Image.open(tmp_path / "examples" / f"1-{kind}.png"))
        np.testing.assert_array_equal(stored, found[1].pictures[kind])


def test_networks_that_agree_give_windows_without_difference() -> None:
    road = CITYSCAPES.names.index("road")
    found = find_examples(answers(road, road), answers(road, road), Pictures(), CITYSCAPES, 9)
    assert [e.about["differs"] for e in found] == [0.0] * 4


def test_a_long_set_is_looked_at_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MOST_IMAGES", 4)
    assert list(pictures._spread_over(10)) == [0, 2, 5, 7]
    assert list(pictures._spread_over(3)) == [0, 1, 2]


@given(
    height=st.integers(1, 12), width=st.integers(1, 12), seed=st.integers(0, 1000),
    density=st.floats(0, 1),
)  # fmt: skip
def test_no_window_differs_more(height: int, width: int, seed: int, density: float) -> None:
    generator = np.random.default_rng(seed)
    scored = generator.random((height, width)) < 0.8
    different = (generator.random((height, width)) < density) & scored
    (top, left, h, w), share = widest_difference(different, scored)
    assert (h, w) == (max(height // 2, 1), max(width // 2, 1))
    best = 0.0
    for y in range(height - h + 1):  # at most 16 positions: all of them are tried
        for x in range(width - w + 1):
            inside = scored[y : y + h, x : x + w]
            if 2 * inside.sum() >= h * w:
                best = max(best, different[y : y + h, x : x + w].sum() / inside.sum())
    assert share == best
    if share:
        inside = scored[top : top + h, left : left + w]
        assert different[top : top + h, left : left + w].sum() / inside.sum() == share


# -- whole images of VOC ---------------------------------------------------------------------------


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


LABELS = np.array([[0, 0, 3], [3, 8, 255]], np.uint8)
PREDICTION = np.array([[0, 3, 3], [0, 8, 8]], np.uint8)
PHOTO = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


class Images:
    """One image, which may be evidence or a photograph."""

    def __init__(self, seen: torch.Tensor) -> None:
        self.seen = seen

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.seen, torch.from_numpy(LABELS)

    def name(self, index: int) -> str:
        return f"2007_{index:06}"


@pytest.mark.parametrize("photograph", [True, False])
def test_files_hold_what_each_way_of_predicting_found(tmp_path: Path, photograph: bool) -> None:
    asked = []

    def regime(image: torch.Tensor, size: tuple[int, ...]) -> np.ndarray:
        asked.append((image.clone(), size))
        return PREDICTION if len(asked) == 1 else LABELS % 255

    seen = (
        torch.from_numpy(PHOTO.transpose(2, 0, 1).copy()) if photograph else torch.zeros(21, 1, 1)
    )
    found = segment(Images(seen), 7, {"prediction": regime, "crf": regime}, VOC)
    assert [size for _, size in asked] == [(2, 3)] * 2
    assert all(torch.equal(image, seen) for image, _ in asked)
    files = write_pictures([found], tmp_path / "segmentations")
    pixels = {"labels": LABELS, "prediction": PREDICTION, "crf": LABELS % 255}
    pixels |= {"photo": PHOTO} if photograph else {}
    names = ["segmentations.json", *(f"0-{kind}.png" for kind in pixels)]
    assert sorted(files) == sorted((tmp_path / "segmentations").iterdir())
    assert sorted(file.name for file in files) == sorted(names)
    # 0: 1 of 3; 3: 1 of 3; 8: the pixel on void does not count: 1 of 1
    scores = {"prediction": round((1 / 3 + 1 / 3 + 1) / 3, 4), "crf": 1.0}
    entry = {"name": "2007_000007", "height": 2, "width": 3, "batch_miou": scores}
    assert json.loads(files[0].read_text()) == {"segmentations": [entry]}
    for kind, expected in pixels.items():
        with Image.open(tmp_path / "segmentations" / f"0-{kind}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), expected)
