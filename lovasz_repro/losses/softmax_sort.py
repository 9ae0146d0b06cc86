"""Lovász-Softmax with every class sorted in float64: as exact as its logits (Eq. 11-13)."""

from typing import Any

import torch
from torch import Tensor

from .averaging import Measure, Rows, class_gains
from .inputs import MulticlassPixels
from .passes import jaccard_kernels
from .softmax import log_error_keys, softmax_of, through_softmax_

ONCE = "lovasz_softmax can be differentiated once: no backward with create_graph=True"


class SortedLovaszSoftmax(torch.autograd.Function):
    """Logits (B, C, P) to this rank's part of the loss, by the closed form of ``softmax.py``.

    Classes are taken one after the other, each for all images at once: the permutation and the
    counts of one class are small beside the logits, those of all classes together are not. So
    the peak is the gradient, the probabilities, and some 100 bytes a pixel, whatever C is.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        logits: Tensor,
        pixels: MulticlassPixels,
        rows: Rows,
        measure: Measure,
        needs_gradient: bool,
    ) -> Tensor:
        ctx.logits_dtype = logits.dtype
        row = pixels.labels.numel() // max(1, len(rows.counts))
        compiled = jaccard_kernels(logits, measure.set_function, measure.weights, row)
        if compiled is not None and measure.row_ranks.alone:
            args = (logits, pixels.labels, pixels.valid, rows.weights)
            value, gradient = compiled.sorted_loss(*args)
            ctx.save_for_backward(gradient)
            return gradient.new_tensor(value)
        softmax = softmax_of(logits, pixels.labels, pixels.valid)
        probabilities = softmax.wrong
        gradient = torch.zeros_like(probabilities) if needs_gradient else None
        wrong_sum = torch.zeros_like(softmax.label_error)  # S
        label_gains = torch.zeros_like(softmax.label_error)  # g_y
        for item in rows.weights.sum(0).nonzero()[:, 0].tolist():
            foreground = pixels.labels == item
            keys = log_error_keys(logits[:, item], foreground, softmax)
            gains = class_gains(keys, foreground, pixels, rows, item, measure, probabilities.dtype)
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
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():
            raise RuntimeError(ONCE)
        (gradient,) = ctx.saved_tensors
        return (gradient * grad_loss).to(ctx.logits_dtype), None, None, None, None
