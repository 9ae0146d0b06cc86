"""Measures beside the IoU: against torchmetrics, brute force and masks drawn by hand."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassCalibrationError

from lovasz_repro.evaluation.measures import (
    BAND,
    BINS,
    SIZES,
    WORST,
    Band,
    Calibration,
    Objects,
    near_boundary,
    objects_and_holes,
    of_images,
)
from lovasz_repro.metrics import BatchIoU

VOID = 255


def test_calibration_is_that_of_guo_et_al() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 5, 20, 30, generator=generator)
    labels = torch.randint(0, 5, (4, 20, 30), generator=generator)
    labels[:, :4] = VOID
    calibration = Calibration(VOID)
    for part in (slice(0, 1), slice(1, 4)):
        calibration.update(logits[part], labels[part])
    oracle = MulticlassCalibrationError(5, n_bins=BINS, norm="l1", ignore_index=VOID)
    expected = {
        "cross_entropy": F.cross_entropy(logits, labels, ignore_index=VOID).item(),
        "calibration_error": oracle(logits.softmax(dim=1), labels).item(),
    }
    assert calibration.metrics() == pytest.approx(expected, rel=1e-5)


def test_a_sure_and_wrong_network_is_not_calibrated() -> None:
    calibration = Calibration(None)
    calibration.update(torch.tensor([50.0, 0.0]).view(1, 2, 1, 1), torch.ones(1, 1, 1).long())
    assert calibration.metrics() == {"cross_entropy": 50.0, "calibration_error": 1.0}
    assert all(map(math.isnan, Calibration(None).metrics().values()))


def blobs(seed: int, classes: int = 4, size: tuple[int, int] = (23, 31)) -> np.ndarray:
    """Labels in patches, some of them void."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, classes + 1, (6, 8))
    labels = np.kron(np.where(coarse == classes, VOID, coarse), np.ones((4, 4), int))
    return labels[: size[0], : size[1]]


def test_the_band_is_that_of_brute_force() -> None:
    labels = blobs(1)
    height, width = labels.shape
    inside = [(y, x) for y in range(height) for x in range(width)]

    def neighbours(y: int, x: int) -> Iterator[tuple[int, int]]:
        yield from ((y + dy, x + dx) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))
                    if 0 <= y + dy < height and 0 <= x + dx < width)  # fmt: skip

    edge = [p for p in inside if any(labels[q] != labels[p] for q in neighbours(*p))]
    expected = {p for p in inside if min(math.dist(p, q) for q in edge) < BAND}
    assert {(int(y), int(x)) for y, x in np.argwhere(near_boundary(labels, BAND))} == expected
    assert not near_boundary(np.ones((5, 5), int), BAND).any()


def test_the_boundary_miou_counts_the_band_and_nothing_else() -> None:
    labels, predictions = blobs(2), blobs(3) % 4
    predictions[::5, ::3] = 4  # which no label is: it takes from others, and is no class itself
    band = Band(5, VOID)
    band.update(predictions, labels)
    counted = near_boundary(labels, BAND) & (labels != VOID)
    ious = [
        ((predictions == c) & (labels == c) & counted).sum()
        / (((predictions == c) | (labels == c)) & counted).sum()
        for c in range(4)
    ]
    assert band.metrics() == {"boundary_miou": pytest.approx(np.mean(ious))}
    far = np.where(near_boundary(labels, BAND), predictions, (predictions + 1) % 4)
    other = Band(5, VOID)
    other.update(far, labels)
    assert other.metrics() == band.metrics()


def test_holes_and_recall_of_masks_drawn_by_hand() -> None:
    predictions = np.zeros((120, 200), int)
    predictions[10:20, 10:20] = 1  # an object with two holes; one of them touches by a corner
    predictions[12, 12] = predictions[13, 13] = predictions[15:17, 15:18] = 0
    predictions[30:34, 30:34] = 1  # one without
    predictions[31, 30] = 2  # a gap at the side is no hole
    labels = np.zeros((120, 200), int)
    labels[10:20, 10:20] = 1  # small
    labels[30:62, 30:62] = 1  # 32 x 32: medium, 16 of its pixels predicted, one of them as another
    labels[0:100, 100:200] = 2  # large, none found
    objects = Objects([1, 2])
    objects.update(predictions, labels)
    found = objects.metrics()
    assert found["holes_per_object"] == pytest.approx(3 / 3)  # of two objects of 1 and one of 2
    assert found["recall_by_size/small"] == pytest.approx((100 - 2 - 6) / 100)
    assert found["recall_by_size/medium"] == pytest.approx(15 / 32**2)
    assert found["recall_by_size/large"] == 0.0
    assert all(map(math.isnan, Objects([]).metrics().values()))


def test_holes_are_those_that_scipy_fills() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        mask = ndimage.zoom(random.random((9, 11)), 3, order=1) > 0.45
        holes = ndimage.binary_fill_holes(mask) & ~mask
        expected = ndimage.label(mask, np.ones((3, 3)))[1], ndimage.label(holes)[1]
        assert objects_and_holes(mask) == expected


def image_counts(predictions: np.ndarray, labels: np.ndarray, ignore_index: int = VOID) -> Tensor:
    counts = BatchIoU(4, ignore_index)
    counts.update(torch.from_numpy(predictions), torch.from_numpy(labels))
    return torch.stack(counts.parts)


def test_measures_of_images_are_those_of_loops_over_images_and_classes() -> None:
    labels = np.stack([blobs(seed) for seed in range(40)])
    labels[labels == 3] = 2
    labels[:7][labels[:7] == 2] = 3
    predictions = np.stack([blobs(seed) % 4 for seed in range(100, 140)])
    predictions = np.where(np.random.default_rng(0).random(labels.shape) < 0.7, labels % 4,
                           predictions)  # fmt: skip
    predictions[5] = 0
    by_image: list[list[float]] = []
    by_class: dict[int, list[float]] = {c: [] for c in range(4)}
    by_size: dict[str, list[float]] = {name: [] for name in SIZES}
    extraneous = missed = 0
    for found, wanted in zip(predictions, labels, strict=True):
        found = found[wanted != VOID]
        wanted = wanted[wanted != VOID]
        by_image.append([])
        for c in range(4):
            extraneous += c in found and c not in wanted
            missed += c in wanted and c not in found
            if c in wanted:
                iou = ((found == c) & (wanted == c)).sum() / ((found == c) | (wanted == c)).sum()
                by_image[-1].append(iou)
                by_class[c].append(iou)
                area = (wanted == c).sum()
                size = "small" if area < 1024 else "medium" if area < 9216 else "large"
                by_size[size].append(iou)

    def worst(values: list[float]) -> float:
        return float(np.mean(sorted(values)[: max(1, int(WORST * len(values)))]))

    means = [float(np.mean(ious)) for ious in by_image]
    measured = of_images(image_counts(predictions, labels), VOID)
    assert measured["extraneous_classes"] == pytest.approx(extraneous / 40)
    assert measured["missed_classes"] == pytest.approx(missed / 40)
    assert missed > 0
    assert extraneous > 0
    assert measured["miou_i"] == pytest.approx(np.mean(means))
    assert measured["miou_i_worst"] == pytest.approx(worst(means))
    assert measured["miou_c"] == pytest.approx(np.mean([np.mean(v) for v in by_class.values()]))
    assert measured["miou_c_worst"] == pytest.approx(np.mean([worst(v) for v in by_class.values()]))
    assert measured["iou_by_size/small"] == pytest.approx(np.mean(by_size["small"]))
    assert math.isnan(measured["iou_by_size/large"])  # none is that large


def test_an_ignored_class_is_neither_missed_nor_extraneous() -> None:
    labels, predictions = np.full((1, 4, 4), 1), np.full((1, 4, 4), 1)
    predictions[0, 0] = 0
    measured = of_images(image_counts(predictions, labels, ignore_index=0), 0)
    assert measured["extraneous_classes"] == 0.0
    assert measured["miou_i"] == 0.75
