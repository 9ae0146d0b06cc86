"""What a DeepLab says of a photograph, written plainly: one image, one scale after the other."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from lovasz_repro.config.schema import CrfConfig

MEAN = np.array([104.008, 116.669, 122.675], dtype=np.float32)
"""Of B, G and R."""


def grid_at(model: nn.Module, rgb: np.ndarray, sides: list[int], scale: float) -> torch.Tensor:
    """Logits (1, 21, h, w) on every 8th pixel of a photograph that is continued to ``sides`` with
    the mean, from the network's answer to it at a scale."""
    height, width = rgb.shape[:2]
    canvas = np.zeros((1, 3, *sides), dtype=np.float32)
    canvas[0, :, :height, :width] = (rgb[..., ::-1].astype(np.float32) - MEAN).transpose(2, 0, 1)
    small = [round(scale * (side - 1)) + 1 for side in sides]
    with torch.no_grad():
        logits = model(resized(torch.from_numpy(canvas), small))
    return resized(logits, [(side - 1) // 8 + 1 for side in sides])


def resized(maps: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """Bilinear, corners on corners."""
    return functional.interpolate(maps, sides, mode="bilinear", align_corners=True)


def single_scale(model: nn.Module, rgb: np.ndarray, least: int = 1) -> np.ndarray:
    """Classes (H, W) of the photograph alone, continued to 8 n + 1 pixels a side, or ``least``."""
    sides = [max(-(-(side - 1) // 8) * 8 + 1, least) for side in rgb.shape[:2]]
    height, width = rgb.shape[:2]
    full = resized(grid_at(model, rgb, sides, 1), sides)[0, :, :height, :width]
    return full.argmax(0).numpy()


def fused(
    model: nn.Module,
    rgb: np.ndarray,
    scales: Iterable[float] = (1, 0.75, 0.5),
    side: int = 65,
    fusion: str = "probabilities",
) -> np.ndarray:
    """Probabilities (21, H, W) over scales of a photograph continued to ``side`` pixels (Sec. 4.3).

    With "max-logits" the largest logit is taken on the grid of every 8th pixel, as DeepLab does.
    """
    grids = [grid_at(model, rgb, [side, side], scale) for scale in scales]
    if fusion == "max-logits":
        grids = [torch.stack(grids).amax(0)]
    height, width = rgb.shape[:2]
    full = [resized(grid, [side, side])[0, :, :height, :width].double() for grid in grids]
    return np.mean([of_scale.softmax(0).numpy() for of_scale in full], axis=0)


def refined(rgb: np.ndarray, probabilities: np.ndarray, parameters: CrfConfig) -> np.ndarray:
    """Labels of pydensecrf, called as its own documentation does."""
    densecrf = pytest.importorskip("pydensecrf.densecrf")
    height, width = rgb.shape[:2]
    crf = densecrf.DenseCRF2D(width, height, 21)
    energies = -np.log(np.clip(probabilities, 1e-5, 1)).astype(np.float32)
    crf.setUnaryEnergy(np.ascontiguousarray(energies.reshape(21, -1)))
    after = densecrf.NORMALIZE_AFTER
    crf.addPairwiseGaussian(sxy=parameters.smoothness_xy, compat=parameters.smoothness_weight,
                            normalization=after)  # fmt: skip
    crf.addPairwiseBilateral(sxy=parameters.bilateral_xy, srgb=parameters.bilateral_rgb,
                             rgbim=np.array(rgb), compat=parameters.bilateral_weight,
                             normalization=after)  # fmt: skip
    found = np.array(crf.inference(parameters.iterations)).argmax(0)
    return np.asarray(found.reshape(height, width))


def photograph(root: Path, name: str) -> np.ndarray:
    """RGB (H, W, 3) of the small tree."""
    return np.asarray(Image.open(root / "VOC2012" / "JPEGImages" / f"{name}.jpg"))


def confusion(root: Path, answer: Callable[[str], np.ndarray], names: Iterable[str]) -> np.ndarray:
    """Pixels by [label, answer], (21, 21); void does not count."""
    counts = np.zeros((21, 21), dtype=int)
    for name in names:
        labels = np.asarray(Image.open(root / "VOC2012" / "SegmentationClassAug" / f"{name}.png"))
        known = labels != 255
        np.add.at(counts, (labels[known], answer(name)[known]), 1)
    return counts


def iou_of(counts: np.ndarray) -> np.ndarray:
    """Of each class, (21,); NaN where it does not occur."""
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    return np.where(union > 0, np.diag(counts) / np.maximum(union, 1), np.nan)
