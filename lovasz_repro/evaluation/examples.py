"""Crops in which a network differs most from what it was before training: Figure 8's material.

They are chosen by how much the two networks differ, not by how good either is, one from each part
of the set: neighbours in a set of video frames show the same street. A run stores, for each crop k,
``<k>-photo.png``, and as label ids ``<k>-labels.png``, ``<k>-before.png`` and ``<k>-after.png``,
with ``examples.json`` to say which is which.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lovasz_repro.data.classes import ClassTable
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.stored_pictures import write_pictures

MOST_IMAGES = 100
"""Images that are looked at, spread evenly over the set; two networks go over each."""
MOST_HEIGHT, MOST_WIDTH = 384, 768
"""Largest crop; otherwise half of the image's height and width."""
STEPS = 16
"""Positions of the crop that are tried in each direction."""


class Photographed(Protocol):
    """A scored set whose photographs and label ids can be had at their own size."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        """The image as the network sees it (3, h, w) uint8, first."""
        ...

    def name(self, index: int) -> str:
        """What the photograph is called."""
        ...

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8."""
        ...

    def label_ids(self, index: int) -> np.ndarray:
        """(H, W) uint8."""
        ...


@dataclass(frozen=True)
class Example:
    """A window of one image, with label ids (h, w) uint8 and a photograph (h, w, 3)."""

    name: str
    window: tuple[int, int, int, int]
    """Top, left, height, width."""
    differs: float
    """Share of the window's scored pixels on which the networks disagree."""
    photo: np.ndarray
    labels: np.ndarray
    before: np.ndarray
    after: np.ndarray


def write_examples(examples: list[Example], folder: Path) -> list[Path]:
    """Write examples as files into a folder, made if it is not there; returns them.

    Raises:
        OSError: the disk refuses.
    """
    content = [
        {"name": e.name, "window": list(e.window), "differs": round(e.differs, 4)} for e in examples
    ]
    pictures = {
        f"{number}-{kind}.png": getattr(example, kind)
        for number, example in enumerate(examples)
        for kind in ("photo", "labels", "before", "after")
    }
    return write_pictures(folder, "examples.json", content, pictures)


def find_examples(
    before: Predictor,
    after: Predictor,
    images: Photographed,
    table: ClassTable,
    count: int,
    *,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Example]:
    """Of each of ``count`` equal parts of a set the window in which two networks differ most.

    Args:
        before, after: the networks.
        images: the set.
        table: its classes.
        count: how many.
        advance: called with 1 after each image.

    Returns:
        At most ``count`` examples, the most different first.
    """
    best: dict[int, Example] = {}
    for index in _spread_over(len(images)):
        example = _example(before, after, images, index, table)
        part = index * count // len(images)
        if part not in best or example.differs > best[part].differs:
            best[part] = example
        advance(1)
    return sorted(best.values(), key=lambda e: (-e.differs, e.name))


def _example(
    before: Predictor, after: Predictor, images: Photographed, index: int, table: ClassTable
) -> Example:
    labels, seen = images.label_ids(index), images[index][0][None]
    ids = np.array(table.label_ids, dtype=np.uint8)
    answers = [
        ids[predictor.classes(seen, labels.shape)[0].cpu().numpy()] for predictor in (before, after)
    ]
    scored = np.isin(labels, ids[after.first_class :])
    window, differs = widest_difference((answers[0] != answers[1]) & scored, scored)
    top, left, height, width = window
    crop = np.s_[top : top + height, left : left + width]
    photo = images.photograph(index)[crop]
    return Example(
        images.name(index), window, differs, photo, labels[crop], answers[0][crop], answers[1][crop]
    )


def widest_difference(
    different: np.ndarray, scored: np.ndarray
) -> tuple[tuple[int, int, int, int], float]:
    """The window with the largest share of different pixels among its scored ones.

    Args:
        different: (H, W) bool, scored pixels that differ.
        scored: (H, W) bool. Windows with fewer than half of their pixels scored are passed over.

    Returns:
        (top, left, height, width) and the share; the first window and 0 where none is scored.
    """
    height = min(max(different.shape[0] // 2, 1), MOST_HEIGHT)
    width = min(max(different.shape[1] // 2, 1), MOST_WIDTH)
    found, share = (0, 0, height, width), 0.0
    sums = [_integral(different), _integral(scored)]
    for top in _positions(different.shape[0] - height):
        for left in _positions(different.shape[1] - width):
            inside = [
                s[top + height, left + width]
                - s[top, left + width]
                - s[top + height, left]
                + s[top, left]
                for s in sums
            ]
            if inside[1] * 2 >= height * width and inside[0] > share * inside[1]:
                found, share = (top, left, height, width), inside[0] / inside[1]
    return found, float(share)


def _integral(mask: np.ndarray) -> np.ndarray:
    """Sums over all pixels above and left, (H + 1, W + 1) int64."""
    return np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _positions(room: int) -> list[int]:
    return sorted({round(room * step / (STEPS - 1)) for step in range(STEPS)})


def _spread_over(total: int) -> Iterator[int]:
    chosen = min(total, MOST_IMAGES)
    return (index * total // chosen for index in range(chosen))
