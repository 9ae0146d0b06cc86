"""Whose pixels make one batch: those of several processes, and of micro-batches one after another.

The losses are functions of the whole batch, so on N ranks each rank needs what the others have:
counts of pixels (`sum`), or for the exact order of all errors the errors themselves (`gather`).

Each rank computes the gradient of the loss of the whole batch with respect to its own logits. The
gradient with respect to the weights of the network is the *sum* of what the ranks get from there.
DistributedDataParallel *averages* over ranks, so the gradient that leaves a loss is multiplied by
the number of ranks: in `total`, the last step of every loss, and nowhere else.
"""

from typing import Any

import torch
from torch import Tensor, distributed


class Ranks:
    """A process group, or one process alone where the group is None.

    Raises:
        ValueError: a group although torch.distributed is not initialised, or one that this
            process does not belong to.
    """

    def __init__(self, group: distributed.ProcessGroup | None) -> None:
        self.group = group
        self.size = 1
        if group is None:
            return
        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError("group is given, but torch.distributed is not initialised")
        self.size = distributed.get_world_size(group)
        if self.size < 1:
            raise ValueError("this process is not in the group that is given")

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def sum_(self, values: Tensor) -> Tensor:
        """Add up over ranks, in place; every rank gets the same bits."""
        if not self.alone:
            distributed.all_reduce(values, distributed.ReduceOp.SUM, self.group)
        return values

    def total(self, part: Tensor, *, is_total: bool = False) -> Tensor:
        """Sum over ranks, whose gradient is multiplied by their number (module docstring).

        Args:
            part: this rank's part of the loss, or with ``is_total`` the sum itself, as each rank
                computes it from the same counts.
        """
        if self.alone:
            return part
        value = part.detach().clone()
        total = value if is_total else self.sum_(value)
        summed: Tensor = _ScaledGradient.apply(part, total, self.size)
        return summed

    def max_(self, values: Tensor) -> Tensor:
        """Largest over ranks, elementwise, in place."""
        if not self.alone:
            distributed.all_reduce(values, distributed.ReduceOp.MAX, self.group)
        return values

    def gather(self, rows: Tensor) -> tuple[Tensor, slice]:
        """Rows (R, P) of all ranks side by side; P may differ between ranks, R may not.

        Costs the memory and the traffic of all P of all ranks, on every rank.

        Returns:
            (R, P of all ranks) in the order of the ranks, and the columns of this one.
        """
        lengths = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        rank = distributed.get_rank(self.group)
        lengths[rank] = rows.shape[1]
        self.sum_(lengths)
        sizes = lengths.tolist()
        padded = rows.new_zeros(len(rows), max(sizes))
        padded[:, : rows.shape[1]] = rows
        parts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(parts, padded, self.group)
        values = torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)
        start = sum(sizes[:rank])
        return values, slice(start, start + rows.shape[1])


class _ScaledGradient(torch.autograd.Function):
    """A value that stands for ``part``, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, value: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor) -> tuple[Tensor, None, None]:
        return grad_value * ctx.factor, None, None


ONE_PROCESS = Ranks(None)


class AccumulationWindow:
    """Counts carried over the micro-batches of one optimiser step (gradient accumulation).

    Lovász-Softmax is a function of the whole batch. Where a batch of n micro-batches does not fit
    the memory, and each is given to the loss alone, what is minimised is the mean of n losses of
    small batches: another objective, closer to the image-mIoU the smaller they are (Sec. 3.1). That
    is what happens without a window. With one, the counts of the micro-batches are added up, and

    * *carried*, in one pass: the loss of a micro-batch is that of all pixels of the window so far,
      as a function of its own logits. The last one sees the whole batch, the first itself alone.
    * *exact*, in two passes: first all micro-batches are counted without gradients, then
      :meth:`AccumulationWindow.freeze`, then each gets the gradient of the loss of the whole batch.
      Costs one more forward pass of the network, which must give the same logits both times.

    In both, divide the loss by n as usual: the gradient is multiplied by the number of
    micro-batches that were counted, so that the sum over an exact window is the gradient for the
    whole batch::

        window = AccumulationWindow()
        for step in range(steps):
            for images, labels in micro_batches(step):
                loss = lovasz_softmax(model(images), labels, method="histogram", window=window)
                (loss / n).backward()
            optimizer.step()
            window.reset()
    """

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
        scaled: Tensor = _ScaledGradient.apply(loss, loss.detach(), self.micro_batches)
        return scaled

    def _with(self, before: Tensor | None, counts: Tensor) -> Tensor:
        if before is None:
            return counts
        if self.frozen:
            return before
        if before.shape != counts.shape or before.dtype != counts.dtype:
            raise ValueError(
                "the micro-batches of a window need the same classes, bins and kind of weights"
            )
        return before + counts  # out of place: what earlier micro-batches were given must stay
