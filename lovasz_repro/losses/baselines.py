"""The losses the paper compares with (Eq. 1, Sec. 2.1, Table 1, [22]), two more, and weighted sums.

The binary losses follow the binary experiment of the authors (Sec. 4.2): ``per_image=True`` is
the mean over the valid pixels of each image, averaged over the images. They share the inputs of
:func:`lovasz_repro.losses.lovasz_hinge`: logits (B, ...) or (B, 1, ...), labels 0 and 1.
Every loss computes in at least float32 and returns a 0-dim tensor of that dtype. With ``group``
each is that of the batch of all ranks, as :func:`lovasz_repro.losses.lovasz_softmax` is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, distributed
from torch.nn import functional

from .inputs import (
    BinaryPixels,
    binary_pixels,
    class_weight_vector,
    eager,
    multiclass_pixels,
)
from .plain import one_hot, rows_of
from .ranks import Ranks

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits and labels to a 0-dim loss."""


@eager
def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    ignore_index: int | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy of Eq. 1: mean over the valid pixels of the batch of -log f_i(y_i).

    Args:
        logits: (B, C, ...) unnormalised scores, any floating dtype.
        labels: (B, ...) class ids in [0, C), any integer dtype.
        ignore_index: label of the pixels that do not count.
        class_weights: (C,) non-negative weights; the mean over pixels is then weighted by the
            weight of each pixel's label, as in ``torch.nn.functional.cross_entropy``.
        group: process group whose ranks hold parts of one batch.

    Returns:
        0-dim tensor, at least 0. No valid pixel, or labels of zero weight alone, give 0 with a
        zero gradient.

    Raises:
        TypeError, ValueError: as :func:`lovasz_repro.losses.lovasz_softmax`.
    """
    ranks = Ranks(group)
    pixels = multiclass_pixels(logits, labels, ignore_index, ranks)
    weights = class_weight_vector(class_weights, logits.shape[1])
    counts = pixels.total_counts.double()
    total_weight = float((counts if weights is None else counts * weights).sum())
    scores = pixels.logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = pixels.labels
    if pixels.valid is not None:
        targets = targets.masked_fill(~pixels.valid, -100)
        # The gradient of a NaN that does not count would be NaN all the same.
        scores = scores.masked_fill(~pixels.valid[:, None], 0.0)
    summed = functional.cross_entropy(
        scores,
        targets,
        weight=None if weights is None else weights.to(scores),
        ignore_index=-100,
        reduction="sum",
    )
    return ranks.total(summed / total_weight if total_weight > 0 else summed * 0.0)


@eager
def binary_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Cross-entropy of the sigmoid of one logit a pixel, mean over pixels.

    Args, raises: as of :func:`lovasz_repro.losses.lovasz_hinge`.

    Returns:
        0-dim tensor, at least 0; an image without valid pixels adds 0.
    """
    ranks = Ranks(group)
    pixels = binary_pixels(logits, labels, ignore_index, ranks).rows(per_image)
    losses = functional.binary_cross_entropy_with_logits(
        pixels.logits, pixels.foreground.to(pixels.logits), reduction="none"
    )
    return _pixel_mean(losses, pixels, per_image, ranks)


@eager
def hinge(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Hinge loss max(1 - F y, 0) with y = +1 on the foreground, -1 elsewhere; mean over pixels.

    Args, raises: as of :func:`lovasz_repro.losses.lovasz_hinge`.

    Returns:
        0-dim tensor, at least 0; an image without valid pixels adds 0.
    """
    ranks = Ranks(group)
    pixels = binary_pixels(logits, labels, ignore_index, ranks).rows(per_image)
    errors = torch.relu(1 + torch.where(pixels.foreground, -pixels.logits, pixels.logits))
    return _pixel_mean(errors, pixels, per_image, ranks)


@eager
def soft_iou(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """One minus the soft IoU of Rahman and Wang 2016 ([22] of the paper).

    With p = sigmoid(F) and labels t, I = sum(p t) and U = sum(p + t - p t) over the valid pixels
    of an image; the loss is 1 - I/U, and 0 where U = 0. It is computed as the sum of the errors
    |p - t| over U, the same number without the cancellation near I = U.

    Args:
        logits, labels, ignore_index: as :func:`lovasz_repro.losses.lovasz_hinge`.
        per_image: True averages over the images, False takes one I and one U over the batch.
        group: process group whose ranks hold parts of one batch.

    Returns:
        0-dim tensor in [0, 1]. Without foreground the loss of an image is 1 with a zero gradient,
        and 0 where all its probabilities underflow, or no pixel is valid.

    Raises:
        TypeError, ValueError: as :func:`lovasz_repro.losses.lovasz_hinge`.
    """
    ranks = Ranks(group)
    pixels = binary_pixels(logits, labels, ignore_index, ranks).rows(per_image)
    errors = torch.sigmoid(torch.where(pixels.foreground, -pixels.logits, pixels.logits))
    if pixels.valid is not None:
        errors = errors.masked_fill(~pixels.valid, 0.0)
    sums = torch.stack([errors.sum(1), torch.where(pixels.foreground, 1.0, errors).sum(1)])
    if not per_image:
        sums = ranks.total(sums)
    wrong, union = sums
    empty = union == 0
    losses = wrong.masked_fill(empty, 0.0) / union.masked_fill(empty, 1.0)
    loss = losses.sum() / max(1, pixels.total_rows)
    return ranks.total(loss) if per_image else loss


@eager
def soft_dice(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Soft Dice loss, mean over classes of 1 - 2 sum(p t) / sum(p + t).

    p is the softmax of the logits, t is 1 in the pixels of the class and 0 elsewhere, the sums are
    over the valid pixels of the batch. Drozdzal et al. 2016 ("The importance of skip connections
    in biomedical image segmentation") write it so, for one class; V-Net (Milletari et al. 2016)
    squares p and t in the denominator. No constant is added to numerator or denominator.

    Args:
        logits, labels, ignore_index: as of :func:`lovasz_repro.losses.lovasz_softmax`.
        classes: as there; an absent class costs 1 whatever the logits, so "all" adds a constant
            for each of them.
        per_image: False takes the sums over the batch, True over each image, and averages.
        group: as there.

    Returns:
        0-dim tensor in [0, 1]. No valid pixel gives 0 with a zero gradient; a NaN in a valid pixel
        gives NaN.

    Raises:
        TypeError, ValueError: as :func:`lovasz_repro.losses.lovasz_softmax`.
    """
    return _soft_overlap(logits, labels, 1, classes, per_image, ignore_index, group)


@eager
def soft_jaccard(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Soft Jaccard loss, mean over classes of 1 - sum(p t) / sum(p + t - p t).

    It is :func:`soft_iou` (Rahman and Wang 2016, [22] of the paper) of several classes: the
    softmax in place of the sigmoid, and the mean of Eq. 13.

    Args, returns, raises: as of :func:`soft_dice`.
    """
    return _soft_overlap(logits, labels, 0, classes, per_image, ignore_index, group)


def _soft_overlap(
    logits: Tensor,
    labels: Tensor,
    hits: int,
    classes: str | Sequence[int],
    per_image: bool,
    ignore_index: int | None,
    group: distributed.ProcessGroup | None,
) -> Tensor:
    """Mean of the errors |p - t| over them plus (1 + hits) I, I = sum(p t): the same numbers.

    As errors they do not cancel where I is nearly all.
    """
    ranks = Ranks(group)
    pixels = multiclass_pixels(logits, labels, ignore_index, ranks)
    rows = rows_of(pixels, classes, per_image, None)
    scores, is_label = pixels.logits, one_hot(pixels.labels, logits.shape[1])
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if pixels.valid is not None:  # the gradient of a NaN that does not count would be NaN
        scores = scores.masked_fill(~pixels.valid[:, None], 0.0)
    probabilities = scores.softmax(1)
    errors = torch.where(is_label, 1 - probabilities, probabilities)
    if pixels.valid is not None:
        errors = errors.masked_fill(~pixels.valid[:, None], 0.0)
    sums = torch.stack([errors.masked_fill(~is_label, 0.0).sum(2), errors.sum(2)])
    if not per_image:
        sums = ranks.total(sums.sum(1, keepdim=True))
    missed, wrong = sums
    whole = wrong + (1 + hits) * (rows.counts.to(sums) - missed)
    # Where an absent class has no probability that float32 can tell from 0, the ratio is still 1.
    nothing = whole < torch.finfo(whole.dtype).tiny
    losses = wrong.masked_fill(nothing, 1.0) / whole.masked_fill(nothing, 1.0)
    loss = (losses * rows.weights.to(losses)).sum()
    return ranks.total(loss) if per_image else loss


def weighted_sum(
    logits: Tensor, labels: Tensor, losses: Sequence[Loss], weights: Sequence[float] | None = None
) -> Tensor:
    """Weighted sum of losses of the same logits and labels, such as cross-entropy + Lovász.

    Args:
        logits, labels: handed to every loss.
        losses: functions or modules of (logits, labels), options bound beforehand.
        weights: one finite number a loss; all 1 by default. A loss of weight 0 is not computed.

    Returns:
        0-dim tensor.

    Raises:
        ValueError: no loss, or not one finite weight a loss.
    """
    weights = check_sum(len(losses), weights)
    terms = [
        weight * loss(logits, labels)
        for loss, weight in zip(losses, weights, strict=True)
        if weight != 0
    ]
    return torch.stack(terms).sum() if terms else logits[:0].sum()


def check_sum(terms: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    """Weights of a sum with this many terms.

    Raises:
        ValueError: no term, or not one finite weight a term.
    """
    if terms == 0:
        raise ValueError("a weighted sum needs at least one loss")
    numbers = (1.0,) * terms if weights is None else tuple(float(weight) for weight in weights)
    if len(numbers) != terms:
        raise ValueError(f"{terms} losses need {terms} weights, got {len(numbers)}")
    for position, weight in enumerate(numbers):
        if not abs(weight) < float("inf"):
            raise ValueError(f"weights[{position}] is {weight}, must be finite")
    return numbers


def _pixel_mean(losses: Tensor, pixels: BinaryPixels, per_image: bool, ranks: Ranks) -> Tensor:
    """Mean over the rows of (R, P) of their mean over valid pixels; a row without any adds 0."""
    counts = losses.new_full((len(losses),), losses.shape[1])
    if pixels.valid is not None:
        losses, counts = losses.masked_fill(~pixels.valid, 0.0), pixels.valid.sum(1).to(losses)
    if not per_image:
        counts = ranks.sum_(counts.double())
    means = losses.sum(1) / counts.clamp(min=1).to(losses)
    return ranks.total(means.sum() / max(1, pixels.total_rows))
