"""The decision rule that the paper compares with: labels of highest expected IoU (Sec. 4.3).

Instead of the class of highest probability, the labels of a whole batch are chosen together. For
marginals p (C, N) of independent pixels, labels y (N,) and a class c, let

    n = number of pixels with y = c,   S = sum of p_c over all pixels,
    I = sum of p_c over the pixels with y = c,   U = n + S - I.

I is the expected intersection of the chosen with the true pixels of the class, U their expected
union. I / U stands for the expected IoU, and its mean over the classes is the objective. It is
the batch-mIoU itself where all probabilities are 0 or 1. Elsewhere every class counts in it, as if
the batch showed them all.

The rule is in the spirit of Nowozin, "Optimal decisions from probabilistic models: the
intersection-over-union case" (CVPR 2014), the paper's [20], who maximises a statistical
approximation of the expected IoU by parametric linear programs. Here a local search does it, see
`expected_iou_labels`. It ends at labels that no change of a single pixel improves (to a tolerance),
which are not always the best ones.

The paper applies the rule to random batches in which every class is represented:
`batches.py` draws and scores them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

PIXELS_A_BLOCK = 2**15
"""Pixels that are worked on at once, so that what is computed of them stays near the processor."""
TOLERANCE = 1e-6
"""Gain in expected mIoU for which another sweep is not worth its time."""
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


def expected_iou_labels(
    probabilities: Tensor, *, valid: Tensor | None = None, sweeps: int = 100
) -> Tensor:
    """Labels that maximise the approximate expected batch-mIoU, by local search from arg max.

    A sweep computes for every pixel, in closed form, what its best change of label gains while all
    others stay, and makes all changes that gain. Where they do not raise the objective together,
    the half of them that gains most is made, and so on down to a single one, so the objective grows
    with every sweep. The search ends when the gains that are left add up to less than `TOLERANCE`,
    or after `sweeps`.

    Of equal probabilities or gains the lower class id wins, then the earlier pixel; a pixel stays
    where nothing gains. A class whose probability is 0 everywhere is never chosen.

    A batch of 21 images of 500 x 375 pixels and 21 classes takes 4 s of one CPU core, in 2 or 3
    sweeps. Memory beside the probabilities: at most about 100 bytes a pixel, and with `valid` a
    copy of the probabilities of the valid pixels.

    Arguments:
        probabilities: (B, C, H, W), or (C, N) with the pixels of all images in a row; floating,
            those of a pixel adding up to 1.
        valid: (B, H, W) or (N,) bool, the pixels that count. All others get their class of highest
            probability.
        sweeps: at most so many; 0 gives every pixel its class of highest probability.

    Returns: (B, H, W) or (N,) int64 on the device of the probabilities.

    Raises:
        TypeError: probabilities not floating, or valid not bool.
        ValueError: shapes that do not fit, or a valid pixel whose probabilities are negative, NaN,
            or do not add up to 1.
    """
    counted = _pixels_that_count(probabilities, valid)
    blocks = _blocks(probabilities, counted)
    # max, not argmax: the same answer, several times faster on the CPU
    decisions = probabilities.max(dim=_class_dim(probabilities)).indices
    flat = decisions.view(-1)
    labels = flat if counted is None else flat[counted]
    ratios = _ratios(blocks, labels, _mass(blocks, probabilities))
    for _ in range(sweeps):
        changes = _gaining_changes(blocks, labels, ratios)
        if float(changes.gains.sum()) < TOLERANCE * float((ratios.mass > 0).sum()):
            break
        improved = _make(changes, blocks, labels, ratios)
        if improved is None:
            break
        labels, ratios = improved
    if counted is None:
        return labels.view(decisions.shape)
    flat[counted] = labels
    return decisions


def expected_iou(probabilities: Tensor, labels: Tensor, *, valid: Tensor | None = None) -> Tensor:
    """Approximate expected batch-mIoU of labels: the mean of I / U over the classes with mass.

    A class whose probability is 0 everywhere is not in the mean, as a class without labels is not
    in the batch-mIoU.

    Arguments:
        probabilities, valid: as of `expected_iou_labels`.
        labels: (B, H, W) or (N,) integer class ids.

    Returns: 0-dim float64 in [0, 1] on the device of the probabilities; NaN if no pixel counts.

    Raises:
        TypeError: as `expected_iou_labels`, or labels that are not integer.
        ValueError: as `expected_iou_labels`, or a valid pixel whose label is no class id.
    """
    counted = _pixels_that_count(probabilities, valid)
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise TypeError(f"labels must be integer class ids, got {labels.dtype}")
    _check_shape("labels", labels, probabilities)
    flat = labels.reshape(-1).long()
    if counted is not None:
        flat = flat[counted]
    blocks = _blocks(probabilities, counted)
    classes = probabilities.shape[_class_dim(probabilities)]
    wrong = flat[(flat < 0) | (flat >= classes)]
    if len(wrong):
        raise ValueError(f"label {int(wrong[0])} is out of range for {classes} classes")
    return _ratios(blocks, flat, _mass(blocks, probabilities)).mean()


def _pixels_that_count(probabilities: Tensor, valid: Tensor | None) -> Tensor | None:
    """Check dtypes and shapes -> (N,) bool, or None where all N pixels count."""
    if not probabilities.is_floating_point():
        raise TypeError(f"probabilities must be a floating tensor, got {probabilities.dtype}")
    if probabilities.ndim not in (2, 4) or not probabilities.shape[_class_dim(probabilities)]:
        shape = tuple(probabilities.shape)
        raise ValueError(f"probabilities must have shape (B, C, H, W) or (C, N), got {shape}")
    if valid is None:
        return None
    if valid.dtype != torch.bool:
        raise TypeError(f"valid must be a bool tensor, got {valid.dtype}")
    _check_shape("valid", valid, probabilities)
    return valid.reshape(-1)


def _check_shape(name: str, pixels: Tensor, probabilities: Tensor) -> None:
    shape = probabilities.shape[1:]
    if probabilities.ndim == 4:
        shape = probabilities.shape[:1] + probabilities.shape[2:]
    if pixels.shape != shape:
        raise ValueError(
            f"{name} have shape {tuple(pixels.shape)}; probabilities of shape "
            f"{tuple(probabilities.shape)} need {tuple(shape)}"
        )


def _blocks(probabilities: Tensor, counted: Tensor | None) -> list[Tensor]:
    """Probabilities of the pixels that count, in their order: views (C, <= BLOCK) or copies.

    Raises:
        ValueError: probabilities that are negative, NaN, or do not add up to 1.
    """
    images = probabilities.flatten(2) if probabilities.ndim == 4 else probabilities[None]
    blocks = [block for image in images for block in image.split(PIXELS_A_BLOCK, dim=1)]
    if counted is not None:
        parts = counted.split([block.shape[1] for block in blocks])
        blocks = [block[:, part] for block, part in zip(blocks, parts, strict=True)]
    for block in blocks:
        error = (block.sum(dim=0, dtype=torch.float32) - 1).abs()
        if not ((error <= SUM_TOLERANCE).all() and (block >= 0).all()):
            raise ValueError(
                "probabilities must be at least 0 and add up to 1 over the classes of each pixel; "
                "are these logits?"
            )
    return blocks


def _mass(blocks: list[Tensor], probabilities: Tensor) -> Tensor:
    """Sum of each class's probabilities over the pixels that count, (C,) float64."""
    classes = probabilities.shape[_class_dim(probabilities)]
    mass = torch.zeros(classes, dtype=torch.float64, device=probabilities.device)
    for block in blocks:
        mass += block.sum(dim=1, dtype=torch.float64)
    return mass


def _ratios(blocks: list[Tensor], labels: Tensor, mass: Tensor) -> Ratios:
    """I and U of labels (N,), summed in float64."""
    size, intersection = torch.zeros_like(mass), torch.zeros_like(mass)
    for block, own in zip(blocks, _split(labels, blocks), strict=True):
        probability = block.gather(0, own[None])[0].double()
        size += torch.bincount(own, minlength=len(mass))
        intersection += torch.bincount(own, probability, minlength=len(mass))
    union = size + mass - intersection  # positive where there is mass
    return Ratios(intersection, union, mass)


def _gaining_changes(blocks: list[Tensor], labels: Tensor, ratios: Ratios) -> Changes:
    """The best change of every pixel that has one that gains."""
    found, first = [], 0
    for block, own in zip(blocks, _split(labels, blocks), strict=True):
        gains, best = _best_change(block, own, ratios)
        pixels = gains.gt(0).nonzero()[:, 0]
        found.append(Changes(pixels + first, best[pixels], gains[pixels]))
        first += len(own)
    if not found:
        return Changes(labels, labels, labels)
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
    changes: Changes, blocks: list[Tensor], labels: Tensor, ratios: Ratios
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


def _split(labels: Tensor, blocks: list[Tensor]) -> tuple[Tensor, ...]:
    return labels.split([block.shape[1] for block in blocks]) if blocks else ()


def _class_dim(probabilities: Tensor) -> int:
    return 1 if probabilities.ndim == 4 else 0
