"""The Lovász-Softmax loss (Eq. 11-13) and the Lovász hinge (Eq. 10), for the Jaccard loss.

Both compute their gradient in closed form in the forward pass and keep nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lovasz_repro.losses.averaging import Rows, class_gains, rows_of
from lovasz_repro.losses.eager import eager
from lovasz_repro.losses.extension import decreasing_keys, gain_error_products, marginal_gains
from lovasz_repro.losses.inputs import (
    BinaryPixels,
    MulticlassPixels,
    binary_pixels,
    multiclass_pixels,
)
from lovasz_repro.losses.set_functions import JaccardLoss
from lovasz_repro.losses.softmax import log_error_keys, softmax_of, through_softmax_


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

    The gradient has the dtype of the logits. Where errors tie it is a subgradient, the same one at
    every call. The loss can be differentiated once: a backward pass with ``create_graph=True``
    raises a RuntimeError.
    """
    pixels = multiclass_pixels(logits, labels, ignore_index)
    rows = rows_of(pixels.counts, classes, per_image, class_weights)
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
    """Logits (B, C, P) to the loss, by the closed form that ``softmax.py`` derives.

    Classes are taken one after the other, each for all images at once: the permutation and the
    counts of one class are small beside the logits, those of all classes together are not. So
    the peak is the gradient, the probabilities, and some 100 bytes a pixel, whatever C is.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, pixels: MulticlassPixels, rows: Rows, needs_gradient: bool
    ) -> Tensor:
        ctx.logits_dtype = logits.dtype
        softmax = softmax_of(logits, pixels.labels, pixels.valid)
        probabilities = softmax.wrong
        gradient = torch.zeros_like(probabilities) if needs_gradient else None
        wrong_sum = torch.zeros_like(softmax.label_error)  # S
        label_gains = torch.zeros_like(softmax.label_error)  # g_y
        for item in rows.weights.sum(0).nonzero()[:, 0].tolist():
            foreground = pixels.labels == item
            keys = log_error_keys(logits[:, item], foreground, softmax)
            gains = class_gains(keys, foreground, pixels.valid, rows, item, probabilities.dtype)
            wrong_sum.addcmul_(gains, probabilities[:, item])
            label_gains.addcmul_(gains, foreground.to(gains.dtype))
            if gradient is not None:
                gradient[:, item] = gains
        loss = wrong_sum.addcmul(label_gains, softmax.label_error)
        if gradient is not None:
            shift = (label_gains * softmax.label_probability).sub_(wrong_sum)
            label_gradient = -softmax.label_probability * loss
            through_softmax_(gradient, probabilities, pixels.labels, shift, label_gradient)
            ctx.save_for_backward(gradient)
        return loss.sum(dtype=torch.float64).to(loss.dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "lovasz_softmax can be differentiated once: no backward with create_graph=True"
            )
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.logits_dtype), None, None, None
