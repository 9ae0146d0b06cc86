"""Pictures that runs keep for figures: what networks find in a few images of the validation set.

A run stores a folder with a list of its pictures; of image n, kind k is ``<n>-<k>.png``:

    examples/examples.json             photo labels before after       Figure 8: crops, label ids
    masks/masks.json                   photo labels basis prediction   Figure 4: 0, 1, 255 = void
    segmentations/segmentations.json   photo labels prediction crf     Figures 5, 7: class ids

Examples are chosen by how much the networks before and after training differ, not by how good
either is, one from each part of the set: neighbours in a set of video frames show the same street.
All other images are chosen by their labels alone, so they are the same for all runs. There is no
photograph where the network saw none, and no ``crf`` without one.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lovasz_repro.config.read import as_name
from lovasz_repro.data.classes import VOID, ClassTable
from lovasz_repro.data.images import resize_image, resize_mask
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.host.files import write_durably
from lovasz_repro.metrics import batch_miou, binary_image_iou

MOST_IMAGES = 100
"""Images that are looked at for examples, spread evenly; two networks go over each."""
LONGEST_SIDE, LONGEST_IN_LIST = 1024, 40
"""Pixels of a whole image's longer side, above which it is kept smaller; characters of its name."""
MOST_HEIGHT, MOST_WIDTH = 384, 768
"""Largest crop; otherwise half of the image's height and width."""
STEPS = 16
"""Positions of the crop that are tried in each direction."""
Window = tuple[int, int, int, int]
"""Top, left, height, width."""
Regime = Callable[[Tensor, Sequence[int]], np.ndarray]
"""An image as it is loaded, (C, h, w), and the size (H, W) of its labels -> the class of every
pixel, (H, W) uint8."""


class NamedImages(Protocol):
    """A scored set: images as a network takes them, what they are compared with, and names."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, Any]: ...

    def name(self, index: int) -> str:
        """What the image is called."""
        ...


class Photographed(NamedImages, Protocol):
    """A scored set whose photographs and label ids can be had at their own size."""

    def photograph(self, index: int) -> np.ndarray:
        """RGB (H, W, 3) uint8."""
        ...

    def label_ids(self, index: int) -> np.ndarray:
        """(H, W) uint8."""
        ...


@dataclass(frozen=True)
class Pictured:
    """What is found in one image."""

    about: dict[str, Any]
    """Its entry in the list, for JSON."""
    pictures: dict[str, np.ndarray]
    """By kind: (H, W) or, of a photograph, (H, W, 3) uint8."""


def write_pictures(found: Sequence[Pictured], folder: Path) -> list[Path]:
    """Write a list and pictures into a folder, made if it is not there; returns the files.

    Raises:
        OSError: the disk refuses.
    """
    entries = [one.about for one in found]
    content = entries if folder.name == "examples" else {folder.name: entries}
    files = {f"{folder.name}.json": (json.dumps(content, indent=2) + "\n").encode()}
    for number, one in enumerate(found):
        files |= {f"{number}-{kind}.png": png(array) for kind, array in one.pictures.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_durably(folder / name, data)
    return [folder / name for name in files]


def png(pixels: np.ndarray) -> bytes:
    """(H, W) or (H, W, 3) uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def pixels_of(image: Tensor) -> np.ndarray:
    """A photograph (3, H, W) as pixels (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def photo_of(seen: Tensor) -> dict[str, np.ndarray]:
    """The photograph that a network saw, if it was one."""
    return {"photo": pixels_of(seen)} if seen.dtype == torch.uint8 else {}


# -- crops in which two networks differ ---------------------------------------------------------


def find_examples(
    before: Predictor,
    after: Predictor,
    images: Photographed,
    table: ClassTable,
    count: int,
    *,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Pictured]:
    """Of each of ``count`` equal parts of a set the window in which two networks differ most.

    Args:
        before, after: the networks.
        images: the set.
        table: its classes.
        count: how many.
        advance: called with 1 after each image.

    Returns:
        At most ``count`` examples, the most different first. ``differs`` is the share of a window's
        scored pixels on which the networks disagree.
    """
    best: dict[int, tuple[float, Pictured]] = {}
    for index in _spread_over(len(images)):
        differs, example = _example(before, after, images, index, table)
        part = index * count // len(images)
        if part not in best or differs > best[part][0]:
            best[part] = differs, example
        advance(1)
    ranked = sorted(best.values(), key=lambda found: (-found[0], found[1].about["name"]))
    return [example for _, example in ranked]


def _example(
    before: Predictor, after: Predictor, images: Photographed, index: int, table: ClassTable
) -> tuple[float, Pictured]:
    labels, seen = images.label_ids(index), images[index][0][None]
    ids = np.array(table.label_ids, dtype=np.uint8)
    old, new = (
        ids[predictor.classes(seen, labels.shape)[0].cpu().numpy()] for predictor in (before, after)
    )
    scored = np.isin(labels, ids[table.first_class :])
    window, differs = widest_difference((old != new) & scored, scored)
    top, left, height, width = window
    crop = np.s_[top : top + height, left : left + width]
    maps = {"photo": images.photograph(index), "labels": labels, "before": old, "after": new}
    about = {"name": images.name(index), "window": list(window), "differs": round(differs, 4)}
    return differs, Pictured(about, {kind: pixels[crop] for kind, pixels in maps.items()})


def widest_difference(different: np.ndarray, scored: np.ndarray) -> tuple[Window, float]:
    """The window with the largest share of different pixels among its scored ones.

    Args:
        different: (H, W) bool, scored pixels that differ.
        scored: (H, W) bool. Windows with fewer than half of their pixels scored are passed over.

    Returns:
        The window and the share; the first window and 0 where none is scored.
    """
    height = min(max(different.shape[0] // 2, 1), MOST_HEIGHT)
    width = min(max(different.shape[1] // 2, 1), MOST_WIDTH)
    found, share = (0, 0, height, width), 0.0
    sums = np.stack([_integral(different), _integral(scored)])
    for top in _positions(different.shape[0] - height):
        for left in _positions(different.shape[1] - width):
            bottom, right = top + height, left + width
            above = sums[:, top, right] - sums[:, top, left]
            differ, count = sums[:, bottom, right] - sums[:, bottom, left] - above
            if count * 2 >= height * width and differ > share * count:
                found, share = (top, left, height, width), differ / count
    return found, float(share)


def _integral(mask: np.ndarray) -> np.ndarray:
    """Sums over all pixels above and left, (H + 1, W + 1) int64."""
    return np.pad(mask.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))


def _positions(room: int) -> list[int]:
    return sorted({round(room * step / (STEPS - 1)) for step in range(STEPS)})


def _spread_over(total: int) -> Iterator[int]:
    chosen = min(total, MOST_IMAGES)
    return (index * total // chosen for index in range(chosen))


# -- whole images --------------------------------------------------------------------------------


def find_mask(
    before: Predictor, after: Predictor, images: NamedImages, index: int, category: int
) -> Pictured:
    """Ask both networks for one image: one of all classes, and one trained on the category."""
    seen, labels = images[index]
    image, size = seen[None], labels.shape
    found = {
        "basis": (before.classes(image, size) == category).cpu().to(torch.uint8),
        "prediction": (after.category_logits(category, image, size) > 0).cpu().to(torch.uint8),
    }
    basis, own = (binary_image_iou(m, labels[None].long(), VOID).item() for m in found.values())
    scores = {"image_iou": round(own, 4), "basis_iou": round(basis, 4)}
    masks = {kind: mask[0].numpy() for kind, mask in found.items()}
    return _whole(images.name(index), seen, labels, masks, scores)


@torch.inference_mode()
def segment(
    images: NamedImages, index: int, regimes: Mapping[str, Regime], table: ClassTable
) -> Pictured:
    """Predict one image of a set in every way; ``batch_miou`` is over the classes in its labels."""
    seen, labels = images[index]
    masks = {kind: regime(seen, tuple(labels.shape)) for kind, regime in regimes.items()}
    scores = {
        kind: round(
            batch_miou(torch.from_numpy(mask), labels, len(table), table.ignore_index).item(), 4
        )
        for kind, mask in masks.items()
    }
    return _whole(images.name(index), seen, labels, masks, {"batch_miou": scores})


def _whole(
    name: str, seen: Tensor, labels: Tensor, masks: Mapping[str, np.ndarray], scores: dict[str, Any]
) -> Pictured:
    maps, photo = {"labels": labels.numpy()} | dict(masks), photo_of(seen)
    size = tuple(labels.shape)
    if photo:  # maps at the size that the network saw, or smaller
        height, width = photo["photo"].shape[:2]
        shrink = min(1.0, LONGEST_SIDE / max(height, width))
        size = max(1, round(height * shrink)), max(1, round(width * shrink))
        photo = {"photo": resize_image(photo["photo"], size)}
        maps = {kind: resize_mask(pixels, size) for kind, pixels in maps.items()}
    shown = as_name(name)[:LONGEST_IN_LIST]
    return Pictured({"name": shown, "height": size[0], "width": size[1]} | scores, photo | maps)


def choose_images(presence: np.ndarray, count: int) -> list[int]:
    """A few images that show as many classes as possible together, and several each.

    Again and again the image with the most object classes that are not shown yet; of these, the one
    with the most object classes; of these, the first. Once no image adds a class, all classes count
    as not shown.

    Args:
        presence: which image contains which class, (N, C) bool, class 0 the background.
        count: images wanted.

    Returns:
        Indices, at most ``count``: all of the images with an object if there are fewer.
    """
    objects = presence[:, 1:]
    left = np.array(objects.any(axis=1))
    every = np.ones(objects.shape[1], dtype=bool)
    missing = every
    chosen: list[int] = []
    while len(chosen) < count and left.any():
        if not objects[left][:, missing].any():
            missing = every
        new, all_ = (objects & missing).sum(axis=1), objects.sum(axis=1)
        best = int(np.argmax(np.where(left, new * presence.shape[1] + all_, -1)))
        chosen.append(best)
        left[best] = False
        missing = missing & ~objects[best]
    return chosen
