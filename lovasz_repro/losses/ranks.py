"""The processes whose pixels make one batch: sums over ranks, and the factor of the gradient.

The losses are functions of the whole batch, so on N ranks each rank needs what the others have:
counts of pixels (`sum`), or for the exact order of all errors the errors themselves (`gather`).

Each rank computes the gradient of the loss of the whole batch with respect to its own logits. The
gradient with respect to the weights of the network is the *sum* of what the ranks get from there.
DistributedDataParallel *averages* over ranks, so the gradient that leaves a loss is multiplied by
the number of ranks: in `total`, the last step of every loss, and nowhere else.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed


class Gathered(NamedTuple):
    """Rows of all ranks side by side, and which part is one's own."""

    values: Tensor
    """(R, P of all ranks), in the order of the ranks."""
    own: slice
    """The columns that this rank brought."""


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
        summed: Tensor = _Total.apply(part, self, is_total)
        return summed

    def max_(self, values: Tensor) -> Tensor:
        """Largest over ranks, elementwise, in place."""
        if not self.alone:
            distributed.all_reduce(values, distributed.ReduceOp.MAX, self.group)
        return values

    def gather(self, rows: Tensor) -> Gathered:
        """Rows (R, P) of all ranks side by side; P may differ between ranks, R may not.

        Costs the memory and the traffic of all P of all ranks, on every rank.
        """
        if self.alone:
            return Gathered(rows, slice(0, rows.shape[1]))
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
        return Gathered(values, slice(start, start + rows.shape[1]))


class _Total(torch.autograd.Function):
    """Sum over ranks; the gradient times their number."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ranks: Ranks, is_total: bool) -> Tensor:
        ctx.size = ranks.size
        return part.clone() if is_total else ranks.sum_(part.clone())

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, None, None]:
        return grad_total * ctx.size, None, None


ONE_PROCESS = Ranks(None)
