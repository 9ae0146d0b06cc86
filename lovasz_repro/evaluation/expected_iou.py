"""The decision rule that the paper compares with: labels of high expected IoU (Sec. 4.3).

Instead of the class of highest probability, the labels of a whole batch are chosen together. For
marginals p (C, N) of independent pixels, labels y (N,) and a class c, let

    n = number of pixels with y = c,   S = sum of p_c over all pixels,
    I = sum of p_c over the pixels with y = c,   U = n + S - I.

I is the expected intersection of the chosen with the true pixels of the class, U their expected
union. The objective is the mean of I / U over the classes: a first-order approximation of the
expected IoU, which is the mean of a ratio and not the ratio of means. It is the batch-mIoU itself
where all probabilities are 0 or 1. Elsewhere every class counts in it, as if the batch showed them
all. It is 0.02 too low for two classes on 7 pixels, and gets closer with more of them.

The rule is in the spirit of Nowozin, "Optimal decisions from probabilistic models: the
intersection-over-union case" (CVPR 2014), the paper's [20], who maximises a statistical
approximation of the expected IoU by parametric linear programs. Here a local search does it, see
`expected_iou_labels`. It ends at labels that no change of a single pixel improves (to a tolerance),
which need not be the best ones; in 60 problems of 5 to 8 pixels that can be searched exhaustively
they were. ``tests/evaluation/test_expected_iou.py`` has both numbers.

`rankseg_labels` is another rule beside it, of the package rankseg (Wang and Dai 2025), which solves
each class on its own and then settles pixels that several or none have chosen.

The paper applies the rule to random batches in which every class is represented:
`expected_iou.py` draws and scores them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lovasz_repro.data.sampling import mix
from lovasz_repro.errors import UserError, install
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.metrics import batch_miou

PIXELS_A_BLOCK = 2**15
"""Pixels that are worked on at once, so that what is computed of them stays near the processor."""
MOST_SWEEPS = 100
TOLERANCE = 1e-6
"""Gain in the objective for which another sweep is not worth its time."""
SUM_TOLERANCE = 5e-3
"""How far from 1 the probabilities of a pixel may add up; bfloat16 needs it."""


class Ratios(NamedTuple):
    """I, U and S of every class, (C,) float64 each."""

    intersection: Tensor
    union: Tensor
    mass: Tensor

    def mean(self) -> Tensor:
        """The objective, 0-dim: I / U over the classes that have mass; NaN if none has."""
        there = self.mass > 0
        return (self.intersection[there] / self.union[there]).mean()


class Changes(NamedTuple):
    """Changes of label of M pixels that gain one by one, those that gain most first."""

    pixels: Tensor
    """(M,) int64."""
    labels: Tensor
    """(M,) int64, what the pixels change to."""
    gains: Tensor
    """(M,) what each adds to the sum of all I / U if it is made alone, above 0."""


def expected_iou_labels(probabilities: Tensor) -> Tensor:
    """Labels that maximise the approximate expected batch-mIoU, by local search from arg max.

    A sweep computes for every pixel, in closed form, what its best change of label gains while all
    others stay, and makes all changes that gain. Where they do not raise the objective together,
    the half of them that gains most is made, and so on down to a single one, so the objective grows
    with every sweep. The search ends when the gains that are left add up to less than `TOLERANCE`,
    or after `MOST_SWEEPS`.

    Of equal probabilities or gains the lower class id wins, then the earlier pixel; a pixel stays
    where nothing gains. A class whose probability is 0 everywhere is never chosen.

    A batch of 21 images of 500 x 375 pixels and 21 classes takes 4 s of one CPU core, in 2 or 3
    sweeps, and at most about 100 bytes a pixel beside the probabilities.

    Args:
        probabilities: (C, N) floating, the pixels of all images in a row; those of a pixel add up
            to 1.

    Returns: (N,) int64 on the device of the probabilities.

    Raises:
        TypeError: not floating.
        ValueError: another shape, or a pixel whose probabilities are negative, NaN, or do not add
            up to 1.
    """
    blocks = _blocks(probabilities)
    labels = probabilities.max(dim=0).indices  # as argmax, and several times faster on the CPU
    ratios = _ratios(blocks, labels, _mass(blocks))
    for _ in range(MOST_SWEEPS):
        changes = _gaining_changes(blocks, labels, ratios)
        if float(changes.gains.sum()) < TOLERANCE * float((ratios.mass > 0).sum()):
            break
        improved = _make(changes, blocks, labels, ratios)
        if improved is None:
            break
        labels, ratios = improved
    return labels


def check_rankseg(otherwise: str = "") -> None:
    """Raise UserError where rankseg is not installed; ``otherwise``: what does without it."""
    try:
        import rankseg  # noqa: F401
    except ImportError:
        how = f"{install('rankseg')}{otherwise}"
        raise UserError(f"the decision rule of rankseg needs it: {how}.") from None


def rankseg_labels(probabilities: Tensor) -> Tensor:
    """Labels of the decision rule RankSEG-RMA for the IoU, of the package rankseg.

    Args:
        probabilities: as of `expected_iou_labels`; the batch is one image to the rule.

    Returns: (N,) int64 on the device of the probabilities.

    Raises:
        UserError: rankseg is not installed.
        TypeError, ValueError: as `expected_iou_labels`, or without pixels.
    """
    check_rankseg()
    from rankseg import RankSEG

    _blocks(probabilities)
    # no class is left out because none of its probabilities is large
    labels: Tensor = RankSEG(metric="iou", pruning_prob=0.0)(probabilities[None])[0]
    return labels


def expected_iou(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Approximate expected batch-mIoU of labels: the mean of I / U over the classes with mass.

    A class whose probability is 0 everywhere is not in the mean, as a class without labels is not
    in the batch-mIoU.

    Args:
        probabilities: as of `expected_iou_labels`.
        labels: (N,) integer class ids.

    Returns: 0-dim float64 in [0, 1] on the device of the probabilities; NaN without pixels.

    Raises:
        TypeError: as `expected_iou_labels`, or labels that are not integer.
        ValueError: as `expected_iou_labels`, or another shape, or a label that is no class id.
    """
    blocks, (classes, pixels) = _blocks(probabilities), probabilities.shape
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integer class ids, got {labels.dtype}")
    if labels.shape != (pixels,):
        raise ValueError(f"labels have shape {tuple(labels.shape)}, not ({pixels},)")
    labels = labels.long()
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])} is out of range for {classes} classes")
    return _ratios(blocks, labels, _mass(blocks)).mean()


def _blocks(probabilities: Tensor) -> tuple[Tensor, ...]:
    """Checked probabilities as views (C, <= PIXELS_A_BLOCK) of pixels in their order; one or more.

    Raises:
        TypeError, ValueError: as `expected_iou_labels`.
    """
    if not probabilities.is_floating_point():
        raise TypeError(f"probabilities must be a floating tensor, got {probabilities.dtype}")
    if probabilities.ndim != 2 or not len(probabilities):
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must have shape (C, N), got {shape}")
    blocks = probabilities.split(PIXELS_A_BLOCK, dim=1)
    for block in blocks:
        error = (block.sum(dim=0, dtype=torch.float32) - 1).abs()
        if not ((error <= SUM_TOLERANCE).all() and (block >= 0).all()):
            raise ValueError(
                "probabilities must be at least 0 and add up to 1 over the classes of each pixel; "
                "are these logits?"
            )
    return blocks


def _mass(blocks: Sequence[Tensor]) -> Tensor:
    """Sum of each class's probabilities, (C,) float64."""
    return torch.stack([block.sum(dim=1, dtype=torch.float64) for block in blocks]).sum(dim=0)


def _ratios(blocks: Sequence[Tensor], labels: Tensor, mass: Tensor) -> Ratios:
    """I and U of labels (N,), summed in float64."""
    size, intersection = torch.zeros_like(mass), torch.zeros_like(mass)
    for block, own in zip(blocks, _split(labels, blocks), strict=True):
        probability = block.gather(0, own[None])[0].double()
        size += torch.bincount(own, minlength=len(mass))
        intersection += torch.bincount(own, probability, minlength=len(mass))
    union = size + mass - intersection  # positive where there is mass
    return Ratios(intersection, union, mass)


def _gaining_changes(blocks: Sequence[Tensor], labels: Tensor, ratios: Ratios) -> Changes:
    """The best change of every pixel that has one that gains."""
    found, first = [], 0
    for block, own in zip(blocks, _split(labels, blocks), strict=True):
        gains, best = _best_change(block, own, ratios)
        pixels = gains.gt(0).nonzero()[:, 0]
        found.append(Changes(pixels + first, best[pixels], gains[pixels]))
        first += len(own)
    pixels, best, gains = (torch.cat(parts) for parts in zip(*found, strict=True))
    gains, order = gains.sort(descending=True, stable=True)
    return Changes(pixels[order], best[order], gains)


def _best_change(block: Tensor, own: Tensor, ratios: Ratios) -> tuple[Tensor, Tensor]:
    """What the best other class of each pixel of a block gains (P,), and which it is (P,).

    With p its probability of a class and r = I / U, a pixel that joins the class adds
    (I + p) / (U + 1 - p) - r = (p - r (1 - p)) / (U + 1 - p), a form that does not cancel; one that
    leaves it takes (p - r (1 - p)) / (U - 1 + p).
    """
    p = block.to(torch.promote_types(block.dtype, torch.float32))  # (C, P)
    mass, union = ratios.mass.to(p.dtype), ratios.union.to(p.dtype)
    r = torch.where(mass > 0, ratios.intersection / ratios.union, 0).to(p.dtype)
    joins = torch.addcmul(-r[:, None], p, 1 + r[:, None])
    joins /= (union + 1)[:, None] - p
    joins[mass == 0] = -torch.inf
    joins.scatter_(0, own[None], -torch.inf)
    gain, best = joins.max(dim=0)
    p, r = p.gather(0, own[None])[0], r[own]
    leaves = (p * (1 + r) - r) / torch.maximum(union[own] - 1 + p, mass[own])
    return gain - leaves, best


def _make(
    changes: Changes, blocks: Sequence[Tensor], labels: Tensor, ratios: Ratios
) -> tuple[Tensor, Ratios] | None:
    """Make as many changes, of the best 1, 1/2, 1/4, ..., as raise the objective; None if none do.

    Returns: the new labels (N,) and their ratios.
    """
    count = len(changes.pixels)
    while count:
        changed = labels.clone()
        changed[changes.pixels[:count]] = changes.labels[:count]
        after = _ratios(blocks, changed, ratios.mass)
        if after.mean() > ratios.mean():
            return changed, after
        count //= 2
    return None


def _split(labels: Tensor, blocks: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return labels.split([block.shape[1] for block in blocks])


# ---- Temperature scaling -------------------------------------------------------------------------
#
# Temperature scaling: probabilities that promise what comes (Guo et al. 2017, Sec. 4.2).
#
# The decision rule assumes calibrated probabilities, and the paper believes that it fails for lack
# of them (Sec. 4.3). A single number T, with which softmax(logits / T) has the lowest cross-entropy
# on images that decide nothing else, calibrates a network without a change of its arg max. Logits
# are not needed for it: softmax(log p / T) is the same.

HELD_OUT = 200
"""Images that a temperature is fitted on, at most."""
PIXELS_AN_IMAGE = 1000
"""Of each of these, drawn at random: neighbours say the same."""
HIGHEST = 100.0
"""A temperature lies between it and its inverse."""


def held_out(images: int, batches: Sequence[Sequence[int]]) -> list[int]:
    """Images that are in no batch, evenly spread, ``HELD_OUT`` at most."""
    scored = set(chain(*batches))
    left = [image for image in range(images) if image not in scored]
    return left[:: -(-len(left) // HELD_OUT)] if left else []


def sampled_pixels(
    predictor: Predictor,
    images: Iterable[tuple[Tensor, Tensor]],
    void: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C) and labels (N,) of random pixels that are not void, on the CPU.

    Args:
        predictor: of the network.
        images: (images (1, ., h, w), labels (1, H, W) integer), each at its own size.
        void: label of pixels that do not count.
        advance: called after each image.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for image, labels in images:
        flat = labels.flatten().long()
        valid = flat.ne(void).nonzero()[:, 0]
        chosen = valid[torch.randperm(len(valid), generator=generator)[:PIXELS_AN_IMAGE]]
        pixels = predictor.probabilities(image, labels.shape[-2:])[0].flatten(1)  # (C, H W)
        found.append((pixels[:, chosen.to(pixels.device)].T.cpu(), flat[chosen]))
        advance()
    probabilities, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return probabilities, labels


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature of the lowest cross-entropy, within ``HIGHEST``.

    The cross-entropy is convex in 1 / T, so its slope there has one root.

    Args:
        probabilities: (N, C) floating.
        labels: (N,) integer classes.

    Raises:
        ValueError: no pixels.
    """
    from scipy.optimize import brentq

    if not len(labels):
        raise ValueError("a temperature is fitted on pixels, and there are none")
    logs = probabilities.clamp_min(torch.finfo(torch.float32).tiny).double().log()
    right = logs.gather(1, labels[:, None])[:, 0].mean()

    def slope(inverse: float) -> float:
        return float(((inverse * logs).softmax(dim=1) * logs).sum(dim=1).mean() - right)

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(HIGHEST) <= 0:
        return 1 / HIGHEST
    return 1 / float(brentq(slope, 1 / HIGHEST, HIGHEST, xtol=1e-6))


def at_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T) over the first dimension: probabilities (C, N), as they come."""
    return probabilities.log().div_(temperature).softmax(dim=0)


# ---- Single batches ------------------------------------------------------------------------------
#
# By arg max and by the rules. The paper compares Lovász-Softmax with the rule on random batches in
# which every class is represented, by the mIoU of each batch.
#
# Labels decide nothing here, they only score. So the rule chooses for all pixels, also for those
# that are void in the labels and counted by no mIoU: what is deployed does not know them. It hardly
# matters: on evidence drawn from Pascal VOC's masks, 0.1 points of a batch's mIoU at most.
#
# Beside the rule on the probabilities as they are stands the rule on calibrated ones, and where it
# is asked for that of the package rankseg.

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
