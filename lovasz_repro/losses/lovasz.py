"""The Lovász-Softmax loss (Eq. 11-13) and the Lovász hinge (Eq. 10), for the Jaccard loss.

Gradient of Lovász-Softmax in closed form. Let f be the probabilities of a pixel, y its label, m
its errors (Eq. 11), g the gains of Eq. 9, already multiplied by the weight of their class in the
mean of Eq. 13 (zero for a class outside it). The loss is the sum over pixels of

    T = sum_c g_c m_c,

the derivative with respect to f_c is g_c for c != y and -g_y for c = y, and the softmax turns it
into, for the logits F,

    dT/dF_y = -f_y T,    dT/dF_c = f_c (g_c + g_y - T) for c != y.

Beside the gradient, which is computed in the forward pass and kept, this needs one more tensor of
the size of the logits: the errors, equal to the probabilities but for the label's entry.
"""

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lovasz_repro.losses.eager import eager
from lovasz_repro.losses.extension import gain_error_products, marginal_gains
from lovasz_repro.losses.inputs import (
    BinaryPixels,
    MulticlassPixels,
    binary_pixels,
    class_weight_vector,
    multiclass_pixels,
)
from lovasz_repro.losses.set_functions import JaccardLoss


@eager
def lovasz_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
) -> Tensor:
    """Lovász-Softmax loss of a batch (Eq. 11-13, Algorithm 1).

    Args:
        logits: (B, C, ...) unnormalised scores of any floating dtype; float16 and bfloat16 are
            computed in float32. -inf is the probability zero; +inf gives NaN, as in a softmax.
        labels: (B, ...) class ids in [0, C), any integer dtype.
        classes: which classes Eq. 13 averages. "present": those with at least one labelled pixel
            in the batch (in the image, with ``per_image``), Sec. 3.1's proxy of dataset-mIoU.
            "all": every class; an absent one costs the largest probability that it gets anywhere.
            A list of class ids: exactly those, present or not.
        per_image: False treats the pixels of the batch as one set (batch-mIoU). True takes the
            loss of each image and averages over the B images; one without valid pixels adds 0.
        ignore_index: label of the pixels that do not count: they have a zero gradient and no part
            in any other. It may be a class id; that class then has no labelled pixel, and is
            still averaged as an absent one by "all".
        class_weights: (C,) non-negative weights; Eq. 13 becomes the weighted mean over the
            averaged classes. Zero weight in all of them gives the loss 0.

    Returns:
        0-dim tensor in [0, 1], float64 for float64 logits, else float32. No valid pixel gives 0
        with a zero gradient. A single class (C = 1) gives 0 with a zero gradient: its
        probability is always one; use :func:`lovasz_hinge` for one logit a pixel. NaN in the
        logits of a valid pixel gives NaN.

    Raises:
        TypeError: logits not floating, or labels neither integer nor bool.
        ValueError: shapes that do not fit, a label out of range, a class id out of range or
            twice in ``classes``, or class weights that are not C finite non-negative numbers.

    The gradient has the dtype of the logits. Tied errors rank in the order of the pixels. The loss
    is differentiable once; a second derivative raises a RuntimeError.
    """
    pixels = multiclass_pixels(logits, labels, ignore_index)
    rows = _rows(pixels.counts, classes, per_image, class_weights)
    needs_gradient = torch.is_grad_enabled() and logits.requires_grad
    loss: Tensor = _LovaszSoftmax.apply(pixels.logits, pixels, rows, needs_gradient)
    return loss


@eager
def lovasz_hinge(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
) -> Tensor:
    """Lovász hinge of the Jaccard loss of the foreground (Eq. 10).

    The errors are max(1 - F y, 0) for the logits F and y = +1 on the foreground, -1 elsewhere.

    Args:
        logits: (B, ...) or (B, 1, ...) unnormalised scores of the foreground, any floating dtype;
            positive predicts foreground. An infinite score on the right side has error zero, on
            the wrong side it makes the loss infinite.
        labels: (B, ...), 1 on the foreground and 0 elsewhere, any integer dtype or bool.
        per_image: True averages the losses of the B images (an image without valid pixels adds
            0), False treats the pixels of the batch as one set.
        ignore_index: label of the pixels that do not count.

    Returns:
        0-dim tensor, at least 0, float64 for float64 logits, else float32. Without foreground
        the loss of an image is its largest error. No valid pixel gives 0 with a zero gradient,
        NaN in a valid pixel gives NaN.

    Raises:
        TypeError: logits not floating, or labels neither integer nor bool.
        ValueError: shapes that do not fit, or a label other than 0, 1 and ``ignore_index``.
    """
    pixels = binary_pixels(logits, labels, ignore_index).rows(per_image)
    loss: Tensor = _LovaszHinge.apply(pixels.logits, pixels)
    return loss


class _Rows(NamedTuple):
    """What one Jaccard index is taken over: R = B images, or R = 1 batch. On the CPU."""

    counts: Tensor
    """(R, C) int64: pixels of each class."""
    weights: Tensor
    """(R, C) float64: weight of each class in the loss; 0 where the row does not average it."""


def _rows(
    counts: Tensor,
    classes: str | Sequence[int],
    per_image: bool,
    class_weights: Sequence[float] | Tensor | None,
) -> _Rows:
    """Rows with the weights of Eq. 13; the weights of a row sum to 1/R, or to 0."""
    counts, num_classes = counts if per_image else counts.sum(0, keepdim=True), counts.shape[1]
    weights = class_weight_vector(class_weights, num_classes)
    if weights is None:
        weights = torch.ones(num_classes, dtype=torch.float64)
    weights = weights * _averaged(counts, classes)
    divisor = weights.sum(1, keepdim=True) * len(counts)
    return _Rows(counts, torch.where(divisor > 0, weights / divisor, 0.0))


def _averaged(counts: Tensor, classes: str | Sequence[int]) -> Tensor:
    """(R, C) bool: the classes that Eq. 13 averages in each row."""
    not_empty = counts.sum(1, keepdim=True) > 0
    if isinstance(classes, str):
        if classes == "present":
            return counts > 0
        if classes == "all":
            return not_empty.expand_as(counts)
        raise ValueError(f'classes is "{classes}", must be "present", "all" or a list of ids')
    num_classes = counts.shape[1]
    ids = [index(item) for item in classes]
    for item in ids:
        if not 0 <= item < num_classes:
            raise ValueError(f"class {item} in classes is out of range for {num_classes} classes")
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"classes is {ids}, must name at least one class, and each once")
    listed = torch.zeros(num_classes, dtype=torch.bool)
    listed[ids] = True
    return listed & not_empty


class _LovaszHinge(torch.autograd.Function):
    """Logits (R, P) to the mean over the rows of Eq. 10.

    Where m > 0 the derivative of the error is -1 on the foreground and 1 elsewhere, so the one of
    the loss is the gain with that sign. It is constant almost everywhere: double backward works.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, pixels: BinaryPixels) -> Tensor:
        errors = torch.where(pixels.foreground, -logits, logits).add_(1).relu_()
        gradient = marginal_gains(errors, pixels.foreground, JaccardLoss(), pixels.valid)
        gradient /= max(1, len(errors))
        loss = gain_error_products(gradient, errors).sum()
        gradient.masked_fill_(errors == 0, 0.0)
        ctx.save_for_backward(torch.where(pixels.foreground, -gradient, gradient))
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None


class _LovaszSoftmax(torch.autograd.Function):
    """Logits (B, C, P) to the loss, by the closed form of the module docstring.

    Classes are taken one after the other, each for all images at once: the permutation and the
    counts of one class are small beside the logits, those of all classes together are not.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, pixels: MulticlassPixels, rows: _Rows, needs_gradient: bool
    ) -> Tensor:
        ctx.logits_dtype = logits.dtype
        errors, label_probability = _softmax_errors(logits, pixels)
        gradient = torch.zeros_like(errors) if needs_gradient else None
        total = torch.zeros_like(errors[:, 0])  # T of each pixel, (B, P)
        for item in rows.weights.sum(0).nonzero()[:, 0].tolist():
            gains = _class_gains(errors[:, item], pixels, rows, item)
            total.addcmul_(gains, errors[:, item])
            if gradient is not None:
                gradient[:, item] = gains
        if gradient is not None:
            label = pixels.labels[:, None]
            shift = gradient.gather(1, label) - total[:, None]
            gradient.add_(shift).mul_(errors)
            gradient.scatter_(1, label, -label_probability * total[:, None])
            ctx.save_for_backward(gradient)
        return total.sum(dtype=torch.float64).to(errors.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.logits_dtype), None, None, None


def _softmax_errors(logits: Tensor, pixels: MulticlassPixels) -> tuple[Tensor, Tensor]:
    """Errors m (B, C, P) of Eq. 11 and the label's probability (B, 1, P); 0 on ignored pixels.

    The label's error is the sum of the other probabilities, which unlike 1 - f_y keeps its
    relative precision on confident pixels.
    """
    label = pixels.labels[:, None]
    errors = logits.softmax(1, dtype=torch.promote_types(logits.dtype, torch.float32))
    if pixels.valid is not None:
        errors.masked_fill_(~pixels.valid[:, None], 0.0)
    label_probability = errors.gather(1, label)
    errors.scatter_(1, label, 0.0)
    errors.scatter_(1, label, errors.sum(1, keepdim=True))
    return errors, label_probability


def _class_gains(errors: Tensor, pixels: MulticlassPixels, rows: _Rows, item: int) -> Tensor:
    """Weighted gains of one class. errors: (B, P), gains: (B, P)."""
    shape, length = (len(rows.counts), -1), errors.shape
    errors = errors.reshape(shape)
    foreground = (pixels.labels == item).reshape(shape)
    valid = None if pixels.valid is None else pixels.valid.reshape(shape)
    used, present = rows.weights[:, item] > 0, rows.counts[:, item] > 0
    if (used & present).all():
        gains = marginal_gains(errors, foreground, JaccardLoss(), valid)
    else:
        gains = torch.zeros_like(errors)
        if (used & present).any():
            at = (used & present).nonzero()[:, 0].to(errors.device)
            keep = None if valid is None else valid[at]
            gains[at] = marginal_gains(errors[at], foreground[at], JaccardLoss(), keep)
        if (used & ~present).any():
            at = (used & ~present).nonzero()[:, 0].to(errors.device)
            gains[at] = _absent_gains(errors[at], None if valid is None else valid[at])
    gains *= rows.weights[:, item, None].to(gains)
    return gains.reshape(length)


def _absent_gains(errors: Tensor, valid: Tensor | None) -> Tensor:
    """Jaccard gains (R, P) without foreground: 1 on the first of the largest errors, else 0."""
    if valid is not None:
        errors = errors.masked_fill(~valid, -1.0)
    return torch.zeros_like(errors).scatter_(1, errors.argmax(1, keepdim=True), 1.0)
