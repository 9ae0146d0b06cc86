"""Masks of one category before and after training: Figure 4's material.

For each image k a run stores ``<k>-labels.png`` (0, 1, 255 = void), ``<k>-basis.png`` and
``<k>-prediction.png`` (0, 1), ``<k>-photo.png`` where there is a photograph, and ``masks.json`` to
say which is which. Which images is the same for all losses: the first of the validation set.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from lovasz_repro.data.voc import VOID
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.stored_pictures import write_pictures
from lovasz_repro.metrics import binary_image_iou


class NamedImages(Protocol):
    """A scored set: images as a network takes them, labels (H, W) uint8, and names."""

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]: ...

    def name(self, index: int) -> str:
        """What the image is called."""
        ...


@dataclass(frozen=True)
class Mask:
    """What two networks find in one image; maps are (H, W) uint8."""

    name: str
    photo: np.ndarray | None
    """RGB (H, W, 3) uint8."""
    labels: np.ndarray
    basis: np.ndarray
    prediction: np.ndarray
    basis_iou: float
    image_iou: float


def find_mask(
    before: Predictor, after: Predictor, images: NamedImages, index: int, category: int
) -> Mask:
    """Ask both networks for one image: one of all classes, and one trained on the category."""
    seen, labels = images[index]
    image, size = seen[None], labels.shape
    basis = (before.classes(image, size) == category).cpu().to(torch.uint8)
    prediction = (after.category_logits(category, image, size) > 0).cpu().to(torch.uint8)
    target = labels[None].long()
    scores = [binary_image_iou(found.long(), target, VOID).item() for found in (basis, prediction)]
    photo = seen.permute(1, 2, 0).numpy() if seen.dtype == torch.uint8 else None
    return Mask(
        images.name(index), photo, labels.numpy(), basis[0].numpy(), prediction[0].numpy(), *scores
    )


def write_masks(masks: list[Mask], folder: Path) -> list[Path]:
    """Write masks as files into a folder, made if it is not there; returns them.

    Raises:
        OSError: the disk refuses.
    """
    content = [
        {
            "name": mask.name,
            "height": mask.labels.shape[0],
            "width": mask.labels.shape[1],
            "image_iou": round(mask.image_iou, 4),
            "basis_iou": round(mask.basis_iou, 4),
        }
        for mask in masks
    ]
    pictures = {
        f"{number}-{kind}.png": pixels
        for number, mask in enumerate(masks)
        for kind in ("photo", "labels", "basis", "prediction")
        if (pixels := getattr(mask, kind)) is not None
    }
    return write_pictures(folder, "masks.json", {"masks": content}, pictures)
