"""The crops in which two networks differ most, against a search over every window."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from lovasz_repro.data.classes import CITYSCAPES
from lovasz_repro.evaluation import examples
from lovasz_repro.evaluation.examples import find_examples, widest_difference, write_examples
from lovasz_repro.evaluation.predictor import Feeding, Predictor

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
    assert [e.name for e in found] == ["picture 2", "picture 1"]
    assert [e.differs for e in found] == [1.0, 0.5]
    assert found[0].window == (0, 0, 4, 8)
    assert set(np.unique(found[0].before)) == {ROAD}
    assert set(np.unique(found[0].after)) == {CAR}

    files = write_examples(found, tmp_path / "examples")
    assert sorted(file.name for file in files) == sorted(
        ["examples.json"]
        + [f"{k}-{kind}.png" for k in (0, 1) for kind in ("photo", "labels", "before", "after")]
    )
    content = json.loads((tmp_path / "examples" / "examples.json").read_text())
    assert content[0] == {"name": "picture 2", "window": [0, 0, 4, 8], "differs": 1.0}
    for kind in ("labels", "before", "after", "photo"):
        stored = np.asarray(Image.open(tmp_path / "examples" / f"1-{kind}.png"))
        np.testing.assert_array_equal(stored, getattr(found[1], kind))


def test_networks_that_agree_give_windows_without_difference() -> None:
    road = CITYSCAPES.names.index("road")
    found = find_examples(answers(road, road), answers(road, road), Pictures(), CITYSCAPES, 9)
    assert [e.differs for e in found] == [0.0] * 4


def test_a_long_set_is_looked_at_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MOST_IMAGES", 4)
    assert list(examples._spread_over(10)) == [0, 2, 5, 7]
    assert list(examples._spread_over(3)) == [0, 1, 2]


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
