"""The Lovász-Softmax loss (Eq. 11-13) and the Lovász hinge (Eq. 10), for the Jaccard loss.

Gradient of Lovász-Softmax in closed form. Let f be the probabilities of a pixel, y its label,
m_y = 1 - f_y and m_c = f_c its errors (Eq. 11), g the gains of Eq. 9, already multiplied by the
weight of their class in the mean of Eq. 13 (zero for a class outside it). With

    S = sum of g_c f_c over c != y

the pixel adds S + g_y m_y to the loss. The derivative of that is g_c with respect to f_c and -g_y
with respect to f_y; through the softmax it is, for the logits F,

    dF_y = -f_y (S + g_y m_y),    dF_c = f_c (g_c - S + g_y f_y) for c != y.

Beside the gradient, which the forward pass computes and keeps, this takes one more tensor of the
size of the logits, the probabilities, and what the permutation of one class takes.

Errors are ranked by their logarithm in float64, whatever the dtype of the logits. Ranked in
float32, neighbours among a million pixels change places, and with them the gains of a class of a
thousand pixels change by 1e-3. The rest is computed in the dtype of the loss.
"""

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lovasz_repro.losses.eager import eager
from lovasz_repro.losses.extension import (
    decreasing_keys,
    gain_error_products,
    marginal_gains,
)
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
        signed = torch.where(pixels.foreground, -logits, logits)
        # The signed logits rank as the errors 1 + signed do, and have not been rounded.
        gradient = marginal_gains(
            decreasing_keys(signed), pixels.foreground, JaccardLoss(), pixels.valid, signed.dtype
        )
        errors = signed.add_(1).relu_()
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
        softmax = _softmax(logits, pixels)
        probabilities = softmax.wrong
        gradient = torch.zeros_like(probabilities) if needs_gradient else None
        wrong_sum = torch.zeros_like(softmax.label_error)  # S
        label_gains = torch.zeros_like(softmax.label_error)  # g_y
        for item in rows.weights.sum(0).nonzero()[:, 0].tolist():
            foreground = pixels.labels == item
            keys = _log_error_keys(logits[:, item], foreground, softmax)
            gains = _class_gains(keys, foreground, pixels.valid, rows, item, probabilities.dtype)
            wrong_sum.addcmul_(gains, probabilities[:, item])
            label_gains.addcmul_(gains, foreground.to(gains.dtype))
            if gradient is not None:
                gradient[:, item] = gains
        loss = wrong_sum.addcmul(label_gains, softmax.label_error)
        if gradient is not None:
            shift = (label_gains * softmax.label_probability).sub_(wrong_sum)
            label_gradient = -softmax.label_probability * loss
            _through_softmax_(gradient, probabilities, pixels.labels, shift, label_gradient)
            ctx.save_for_backward(gradient)
        return loss.sum(dtype=torch.float64).to(loss.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.logits_dtype), None, None, None


class _Softmax(NamedTuple):
    """Softmax of the logits, and in float64 what ranks the errors. 0 on ignored pixels."""

    wrong: Tensor
    """(B, C, P) probabilities, 0 for the label; float64 or float32."""
    label_probability: Tensor
    """(B, P) f_y, of the same dtype."""
    label_error: Tensor
    """(B, P) m_y, of the same dtype."""
    log_normaliser: Tensor
    """(B, P) float64: logits minus this are log-probabilities."""
    log_label_error: Tensor
    """(B, P) float64."""


def _softmax(logits: Tensor, pixels: MulticlassPixels) -> _Softmax:
    """Softmax with float64 exponentials, one class at a time.

    The label's error is the sum of the other probabilities, which unlike 1 - f_y keeps its
    relative precision on confident pixels.
    """
    labels = pixels.labels
    wrong = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32))
    top = logits.amax(1).double()
    others = torch.zeros_like(top)
    for item in range(logits.shape[1]):
        exponential = (logits[:, item].double() - top).exp_()
        exponential.masked_fill_(labels == item, 0.0)
        wrong[:, item] = exponential
        others += exponential
    own = (logits.gather(1, labels[:, None])[:, 0].double() - top).exp_()
    normaliser = own + others
    wrong /= normaliser[:, None].to(wrong.dtype)
    label_probability, label_error = own.div_(normaliser), others.div_(normaliser)
    if pixels.valid is not None:
        wrong.masked_fill_(~pixels.valid[:, None], 0.0)
        label_probability.masked_fill_(~pixels.valid, 0.0)
        label_error.masked_fill_(~pixels.valid, 0.0)
    return _Softmax(
        wrong,
        label_probability.to(wrong.dtype),
        label_error.to(wrong.dtype),
        normaliser.log_().add_(top),
        label_error.log(),
    )


def _log_error_keys(logits: Tensor, foreground: Tensor, softmax: _Softmax) -> Tensor:
    """(B, P) int64 keys that increase as the errors of one class decrease. logits: (B, P).

    Errors are at most one, so minus their logarithm is not negative, and the bits of a float that
    is not negative grow with its value.
    """
    log_probability = logits.double() - softmax.log_normaliser
    log_error = torch.where(foreground, softmax.log_label_error, log_probability)
    return log_error.abs_().view(torch.int64)


def _through_softmax_(
    gains: Tensor, wrong: Tensor, labels: Tensor, shift: Tensor, label_gradient: Tensor
) -> None:
    """Turn the gains (B, C, P) into the gradient for the logits, in place; uses up ``wrong``.

    For a wrong class of probability near one, g_c - S subtracts near equals. But the gradient of
    a pixel sums to zero over the classes, so that class can give the rounding error back.
    """
    gains.add_(shift[:, None]).mul_(wrong)
    gains.scatter_(1, labels[:, None], label_gradient[:, None])
    gains.addcmul_(wrong.gt_(0.5), gains.sum(1, keepdim=True), value=-1)


def _class_gains(
    keys: Tensor,
    foreground: Tensor,
    valid: Tensor | None,
    rows: _Rows,
    item: int,
    dtype: torch.dtype,
) -> Tensor:
    """Weighted gains (B, P) of one class. keys: (B, P), overwritten on invalid pixels."""
    batch_shape, shape = keys.shape, (len(rows.counts), -1)
    keys, foreground = keys.reshape(shape), foreground.reshape(shape)
    valid = None if valid is None else valid.reshape(shape)
    used, present = rows.weights[:, item] > 0, rows.counts[:, item] > 0
    if (used & present).all():
        gains = marginal_gains(keys, foreground, JaccardLoss(), valid, dtype)
    else:
        gains = torch.zeros(keys.shape, dtype=dtype, device=keys.device)
        for chosen, gains_of in (
            (used & present, marginal_gains),
            (used & ~present, _absent_gains),
        ):
            if chosen.any():
                at = chosen.nonzero()[:, 0].to(keys.device)
                keep = None if valid is None else valid[at]
                gains[at] = gains_of(keys[at], foreground[at], JaccardLoss(), keep, dtype)
    gains *= rows.weights[:, item, None].to(gains)
    return gains.reshape(batch_shape)


def _absent_gains(
    keys: Tensor,
    foreground: Tensor,
    set_function: JaccardLoss,
    valid: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """The same as ``marginal_gains`` without foreground: 1 on the first of the largest errors."""
    if valid is not None:
        keys.masked_fill_(~valid, torch.iinfo(keys.dtype).max)
    gains = torch.zeros(keys.shape, dtype=dtype, device=keys.device)
    return gains.scatter_(1, keys.argmin(1, keepdim=True), 1.0)
