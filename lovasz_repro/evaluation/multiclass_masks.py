"""Masks of all classes on a few validation images: the material of Figures 5 and 7.

For each image k a run stores ``<k>-labels.png`` (class ids 0..20, 255 = void), one mask for each
way of predicting (``<k>-prediction.png``: the network at one scale, ``<k>-crf.png``: several scales
and the CRF), ``<k>-photo.png`` where there is a photograph, and ``segmentations.json`` to say which
is which. The images are the same for all runs: they are chosen by their labels alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lovasz_repro.data.voc import CLASSES, VOID
from lovasz_repro.evaluation.masks import NamedImages
from lovasz_repro.evaluation.stored_pictures import write_pictures
from lovasz_repro.metrics import batch_miou

Regime = Callable[[Tensor, Sequence[int]], np.ndarray]
"""An image as it is loaded, (C, h, w), and the size (H, W) of its labels -> the class of every
pixel, (H, W) uint8."""


@dataclass(frozen=True)
class Segmentation:
    """What is found in one image; maps are (H, W) uint8."""

    name: str
    photo: np.ndarray | None
    """RGB (H, W, 3) uint8."""
    labels: np.ndarray
    masks: Mapping[str, np.ndarray]
    """Name of a regime -> class ids."""

    @property
    def batch_miou(self) -> dict[str, float]:
        """IoU of each mask, averaged over the classes in the image's labels, in [0, 1]."""
        labels = torch.from_numpy(self.labels)
        return {
            name: batch_miou(torch.from_numpy(mask), labels, len(CLASSES), VOID).item()
            for name, mask in self.masks.items()
        }


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


@torch.inference_mode()
def segment(images: NamedImages, index: int, regimes: Mapping[str, Regime]) -> Segmentation:
    """Predict one image of a set in every way."""
    seen, labels = images[index]
    size = tuple(labels.shape)
    masks = {name: regime(seen, size) for name, regime in regimes.items()}
    photo = pixels_of(seen) if seen.dtype == torch.uint8 else None
    return Segmentation(images.name(index), photo, labels.numpy(), masks)


def pixels_of(image: Tensor) -> np.ndarray:
    """A photograph (3, H, W) as pixels (H, W, 3)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())


def write_segmentations(found: Sequence[Segmentation], folder: Path) -> list[Path]:
    """Write masks as files into a folder, made if it is not there; returns them.

    Raises:
        OSError: the disk refuses.
    """
    content = [
        {
            "name": one.name,
            "height": one.labels.shape[0],
            "width": one.labels.shape[1],
            "batch_miou": {name: round(score, 4) for name, score in one.batch_miou.items()},
        }
        for one in found
    ]
    pictures: dict[str, np.ndarray] = {}
    for number, one in enumerate(found):
        shown = {"labels": one.labels, **one.masks}
        shown |= {} if one.photo is None else {"photo": one.photo}
        pictures |= {f"{number}-{kind}.png": pixels for kind, pixels in shown.items()}
    return write_pictures(folder, "segmentations.json", {"segmentations": content}, pictures)
