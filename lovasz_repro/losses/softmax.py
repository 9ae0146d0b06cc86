"""The softmax of Lovász-Softmax (Eq. 2, 11): errors, what ranks them, and the gradient.

Let f be the probabilities of a pixel, y its label, m_y = 1 - f_y and m_c = f_c its errors
(Eq. 11), g the gains of Eq. 9, already multiplied by the weight of their class in the mean of
Eq. 13 (zero for a class outside it). With

    S = sum of g_c f_c over c != y

the pixel adds S + g_y m_y to the loss. The derivative of that is g_c with respect to f_c and -g_y
with respect to f_y; through the softmax it is, for the logits F,

    dF_y = -f_y (S + g_y m_y),    dF_c = f_c (g_c - S + g_y f_y) for c != y.

Errors are ranked by their logarithm in float64, whatever the dtype of the logits. Ranked in
float32, neighbours among a million pixels change places, and with them the gains of a class of a
thousand pixels change by 1e-3. The rest is computed in the dtype of the loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Softmax(NamedTuple):
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


def softmax_of(logits: Tensor, labels: Tensor, valid: Tensor | None) -> Softmax:
    """Softmax with float64 exponentials, one class at a time.

    The label's error is the sum of the other probabilities, which unlike 1 - f_y keeps its
    relative precision on confident pixels.
    """
    wrong = torch.empty_like(
        logits,
        dtype=torch.promote_types(logits.dtype, torch.float32),
        memory_format=torch.contiguous_format,
    )
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
    if valid is not None:
        wrong.masked_fill_(~valid[:, None], 0.0)
        label_probability.masked_fill_(~valid, 0.0)
        label_error.masked_fill_(~valid, 0.0)
    return Softmax(
        wrong,
        label_probability.to(wrong.dtype),
        label_error.to(wrong.dtype),
        normaliser.log_().add_(top),
        label_error.log(),
    )


def log_error_keys(logits: Tensor, foreground: Tensor, softmax: Softmax) -> Tensor:
    """(B, P) int64 keys that increase as the errors of one class decrease. logits: (B, P).

    Errors are at most one, so minus their logarithm is not negative, and the bits of a float that
    is not negative grow with its value.
    """
    log_probability = logits.double() - softmax.log_normaliser
    log_error = torch.where(foreground, softmax.log_label_error, log_probability)
    return log_error.abs_().view(torch.int64)


def through_softmax_(
    gains: Tensor, wrong: Tensor, labels: Tensor, shift: Tensor, label_gradient: Tensor
) -> None:
    """Turn the gains (B, C, P) into the gradient for the logits, in place; uses up ``wrong``.

    For a wrong class of probability near one, g_c - S subtracts near equals. But the gradient of
    a pixel sums to zero over the classes, so that class can give the rounding error back.
    """
    gains.add_(shift[:, None]).mul_(wrong)
    gains.scatter_(1, labels[:, None], label_gradient[:, None])
    gains.addcmul_(wrong.gt_(0.5), gains.sum(1, keepdim=True), value=-1)
