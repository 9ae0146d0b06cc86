"""Counts carried over the micro-batches of one optimiser step (gradient accumulation, iter_size).

Lovász-Softmax is a function of the whole batch. Where a batch of n micro-batches does not fit the
memory, and each is given to the loss alone, what is minimised is the mean of n losses of small
batches: another objective, closer to the image-mIoU the smaller they are (Sec. 3.1). That is what
happens without a window. With one, the counts of the micro-batches are added up, and

* *carried*, in one pass: the loss of a micro-batch is that of all pixels of the window so far, as
  a function of its own logits. The last one sees the whole batch, the first itself alone.
* *exact*, in two passes: first all micro-batches are counted without gradients, then
  :meth:`AccumulationWindow.freeze`, then each gets the gradient of the loss of the whole batch.
  Costs one more forward pass of the network, which must give the same logits both times.

In both, divide the loss by n as usual: the gradient is multiplied by the number of micro-batches
that were counted, so that the sum over an exact window is the gradient for the whole batch::

    window = AccumulationWindow()
    for step in range(steps):
        for images, labels in micro_batches(step):
            loss = lovasz_softmax(model(images), labels, method="histogram", window=window)
            (loss / n).backward()
        optimizer.step()
        window.reset()
"""

from typing import Any

import torch
from torch import Tensor


class AccumulationWindow:
    """Counts of the micro-batches since the last :meth:`reset`; see the module docstring."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin the next optimiser step."""
        self.micro_batches = 0
        self.frozen = False
        self._label_counts: Tensor | None = None
        self._flat: Tensor | None = None

    def freeze(self) -> None:
        """Count no more: what follows are the micro-batches that were counted, with gradients.

        Raises:
            ValueError: none was counted.
        """
        if self.micro_batches == 0:
            raise ValueError("no micro-batch was counted before freeze()")
        self.frozen = True

    def with_labels(self, counts: Tensor) -> Tensor:
        """Pixels (C,) of each class in the window, with those of this micro-batch."""
        return self._with(self._label_counts, counts)

    def with_counts(self, flat: Tensor) -> Tensor:
        """All that is counted in the window, with what is counted in this micro-batch."""
        return self._with(self._flat, flat)

    def include(self, labels: Tensor | None, flat: Tensor) -> None:
        """Take in a micro-batch, once its loss is there: the sums that the two above gave.

        Where all are in ``flat``, labels are None.
        """
        if not self.frozen:
            self._label_counts, self._flat = labels, flat
            self.micro_batches += 1

    def scale(self, loss: Tensor) -> Tensor:
        """The loss, with its gradient times the number of micro-batches."""
        scaled: Tensor = _ScaledGradient.apply(loss, self.micro_batches)
        return scaled

    def _with(self, before: Tensor | None, counts: Tensor) -> Tensor:
        if not self.frozen:
            return _sum(before, counts)
        assert before is not None, "frozen windows have counts"
        return before


def _sum(before: Tensor | None, counts: Tensor) -> Tensor:
    """Out of place: what earlier micro-batches were given must stay."""
    if before is None:
        return counts
    if before.shape != counts.shape or before.dtype != counts.dtype:
        raise ValueError(
            "the micro-batches of a window need the same classes, bins and kind of pixel weights"
        )
    return before + counts


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor, None]:
        return grad_value * ctx.factor, None
