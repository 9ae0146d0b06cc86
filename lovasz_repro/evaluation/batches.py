"""Single batches by arg max and by decision rules that approximate the highest expected IoU.

The paper compares Lovász-Softmax with a rule at test time (``expected_iou.py``) on random batches
in which every class is represented, by the mIoU of each batch.

Labels decide nothing here, they only score. So the rule chooses for all pixels, also for those that
are void in the labels and counted by no mIoU: what is deployed does not know them. It hardly
matters: on evidence drawn from Pascal VOC's masks, 0.1 points of a batch's mIoU at most.

Beside the rule on the probabilities as they are stands the rule on calibrated ones, and where it is
asked for that of the package rankseg.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lovasz_repro.data.sampling import mix
from lovasz_repro.evaluation.expected_iou import (
    at_temperature,
    expected_iou,
    expected_iou_labels,
    rankseg_labels,
)
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.metrics import batch_miou

MOST_DRAWS = 100_000
"""Random batches that are looked at for one with every class; seconds."""


def covering_batches(
    presence: np.ndarray, batches: int = 20, size: int = 21, *, seed: int
) -> list[list[int]]:
    """Random batches in which every class is represented (Sec. 4.3: 20 batches of 21 images).

    Each batch is uniform among all sets of `size` different images that have every class: sets are
    drawn until one has. Batches are independent, so two may share images, and batch k is the same
    however many are drawn.

    Args:
        presence: which image contains which class, (N, C) bool.
        batches: how many, at least 0.
        size: images in each, at least 1.
        seed: of the draws.

    Returns: the images of each batch, in [0, N).

    Raises:
        ValueError: a class that no image contains, fewer images than `size`, or no batch with every
            class among `MOST_DRAWS`.
    """
    images = len(presence)
    if not 1 <= size <= images:
        raise ValueError(f"no batch of {size} different images can be drawn from {images}")
    missing = np.flatnonzero(~presence.any(axis=0)).tolist()
    if missing:
        raise ValueError(f"no image contains class {missing[0]}")
    return [_covering_batch(presence, size, mix(seed, number)) for number in range(batches)]


def _covering_batch(presence: np.ndarray, size: int, seed: int) -> list[int]:
    generator = np.random.default_rng(seed)
    for _ in range(MOST_DRAWS):
        batch = generator.choice(len(presence), size, replace=False)
        if presence[batch].any(axis=0).all():
            return batch.tolist()
    raise ValueError(
        f"none of {MOST_DRAWS:,} random batches of {size} images has all {presence.shape[1]} "
        "classes; take larger batches"
    )


class BatchScores(NamedTuple):
    """Scores of one batch in [0, 1]; NaN without a pixel to score."""

    miou: float
    """Batch-mIoU of the arg max, over the classes present."""
    miou_decision_rule: float
    """The same of the decision rule."""
    expected_miou: float
    """What the probabilities promise for the arg max (``expected_iou``); over all classes."""
    expected_miou_decision_rule: float
    """The same of the decision rule. It is the higher one; where the batch-mIoU is not, the
    probabilities are not those of the labels, or the pixels not independent."""
    miou_calibrated_rule: float = math.nan
    """The batch-mIoU of the decision rule on calibrated probabilities; NaN where there are none."""
    miou_rankseg: float = math.nan
    """The same of rankseg's rule on the probabilities as they are; NaN where not asked for."""


def score_batch(
    predictor: Predictor,
    images: Iterable[tuple[Tensor, Tensor]],
    void: int,
    temperature: float | None = None,
    *,
    rankseg: bool = False,
) -> BatchScores:
    """Score a network on all pixels of a batch together.

    21 images of 500 x 375 pixels and 21 classes take 5 s of one CPU core beside the network, and
    0.6 GB.

    Args:
        predictor: of the network.
        images: (images (1, ., h, w), labels (1, H, W) integer), each at its own size.
        void: label of pixels that are not scored.
        temperature: of the calibrated probabilities; None: the rule sees no such.
        rankseg: whether rankseg decides, too.

    Raises:
        ValueError: no images, or a label that is no class and not void.
        UserError: rankseg is not installed.
    """
    held = list(images)
    probabilities = batch_probabilities(predictor, held)
    labels = torch.cat([truth.flatten() for _, truth in held]).to(predictor.device)
    return scores_of(probabilities, labels, void, temperature, rankseg=rankseg)


def scores_of(
    probabilities: Tensor,
    labels: Tensor,
    void: int,
    temperature: float | None = None,
    *,
    rankseg: bool = False,
) -> BatchScores:
    """Scores of the pixels of a batch in a row: probabilities (C, N), labels (N,) integer.

    Raises:
        ValueError: a label that is no class and not void.
        UserError: rankseg is not installed.
    """

    def score(decisions: Tensor) -> float:
        return batch_miou(decisions, labels, len(probabilities), void).item()

    by_argmax = probabilities.max(dim=0).indices  # as argmax, and faster on the CPU
    decided = by_argmax, expected_iou_labels(probabilities)
    scores = BatchScores(
        *(score(decisions) for decisions in decided),
        *(expected_iou(probabilities, decisions).item() for decisions in decided),
    )
    if rankseg:
        scores = scores._replace(miou_rankseg=score(rankseg_labels(probabilities)))
    if temperature:
        calibrated = at_temperature(probabilities, temperature)
        scores = scores._replace(miou_calibrated_rule=score(expected_iou_labels(calibrated)))
    return scores


@torch.inference_mode()
def batch_probabilities(predictor: Predictor, images: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Softmax of the logits at the images' own sizes, the pixels of all images in a row.

    Images pass the network one by one; logits are upsampled before the softmax.

    Returns:
        (C, N) on the device, N the pixels of all labels.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("a batch without images has no scores")
    total, first = sum(labels.numel() for _, labels in images), 0
    probabilities = None  # filled image by image, which needs half the memory of joining parts
    for image, labels in images:
        pixels = predictor.probabilities(image, labels.shape[-2:])[0].flatten(1)  # (C, H W)
        if probabilities is None:
            probabilities = pixels.new_empty(len(pixels), total)
        probabilities[:, first : first + pixels.shape[1]] = pixels
        first += pixels.shape[1]
    assert probabilities is not None
    return probabilities
