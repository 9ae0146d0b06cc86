"""The processes that train one run together: a team of ranks, one per device.

A run on N ranks is the run on one. Each rank computes its share of every batch (10 images over 4
ranks are 3 + 3 + 2 + 2), the losses and the batch normalisation talk to the other ranks, and
DistributedDataParallel averages gradients. Only the leader, rank 0, touches files and the store;
what happens to it there, every rank learns (`on_leader`), so that no rank waits for one that left.

PyTorch's collectives are called here, in ``losses/ranks.py``, ``models/batch_norm.py`` and
``metrics.py``, nowhere else.
"""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lovasz_repro.errors import RunFailed, UserError

RANK_PATIENCE = timedelta(
    minutes=15
)  # for a rank that is late, as the leader is that reads all data
T = TypeVar("T")


@dataclass(frozen=True)
class Team:
    """The ranks of a run as one of them sees it; without arguments, one process alone."""

    rank: int = 0
    size: int = 1
    group: distributed.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank writes what is written."""
        return self.rank == 0

    def share(self, items: int) -> slice:
        """This rank's part of ``items`` things in order; the first ranks have one more."""
        each, more = divmod(items, self.size)
        start = self.rank * each + min(self.rank, more)
        return slice(start, start + each + (self.rank < more))

    def on_leader(self, action: Callable[[], T]) -> T:
        """Do something on the leader alone; every rank gets its result, or raises its error.

        Results are numbers, text, tensors, and lists and dicts of them. What is neither a
        `UserError` nor a `RunFailed` is raised on the leader only: it is no answer, and ends the
        team.
        """
        if self.size == 1:
            return action()
        answer: tuple[Any, Any] = (None, None)
        if self.leads:
            try:
                answer = (action(), None)
            except (UserError, RunFailed) as error:
                answer = (None, (type(error).__name__, str(error)))
        result: T
        result, failure = self._told_by(0, answer)
        if failure is not None:
            raise _error(*failure)
        return result

    def on_all(self, action: Callable[[], T]) -> T:
        """Do something on every rank; where it fails on one of them, every rank raises its error.

        As in `on_leader`, that is for a `UserError` or a `RunFailed`.
        """
        if self.size == 1:
            return action()
        own: tuple[str, str] | None = None
        try:
            result = action()
        except (UserError, RunFailed) as error:
            own = (type(error).__name__, str(error))
        for failure in [self._told_by(rank, own) for rank in range(self.size)]:
            if failure is not None:
                raise _error(*failure)
        return result

    def largest(self, number: int) -> int:
        """The largest of what each rank brings, on every rank."""
        if self.size == 1:
            return number
        value = torch.tensor(number)
        distributed.all_reduce(value, distributed.ReduceOp.MAX, self.group)
        return int(value)

    def check_same(self, value: str, what: str) -> None:
        """Make sure that every rank has the same ``value``.

        Raises:
            UserError: on every rank, where one has another value.
        """
        if self.size == 1:
            return
        values = [self._told_by(rank, value) for rank in range(self.size)]
        other = [rank for rank in range(self.size) if values[rank] != values[0]]
        if other:
            raise UserError(f"rank {other[0]} has {what} that differ from those of rank 0.")

    def _told_by(self, source: int, value: Any) -> Any:
        """What one rank brings, on every rank; read so that nothing in it is executed."""
        buffer = io.BytesIO()
        if self.rank == source:
            torch.save(value, buffer)
        length = torch.tensor(buffer.tell())
        distributed.broadcast(length, src=source, group=self.group)
        content = torch.zeros(int(length), dtype=torch.uint8)
        if self.rank == source:
            content = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)
        distributed.broadcast(content, src=source, group=self.group)
        if self.rank == source:
            return value
        return torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)

    def share_buffers(self, model: nn.Module) -> None:
        """Give every rank the leader's buffers (running statistics), in place."""
        for buffer in model.buffers() if self.size > 1 else ():
            distributed.broadcast(buffer, src=0, group=self.group)

    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` as something to call in training, whose gradients are averaged over ranks.

        Buffers are left to whoever changes them. Parameters are the leader's afterwards.
        """
        if self.size == 1:
            return model
        known = signature(DistributedDataParallel).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {name: False}
        if next(model.parameters()).device.type == "cpu":
            # Gradients then stay in the order of the first step, which a resumed run starts with
            # again: a sum in another order would be other bits.
            options["find_unused_parameters"] = True
        return DistributedDataParallel(model, process_group=self.group, **options)


ALONE = Team()


def _error(name: str, message: str) -> UserError | RunFailed:
    """Another rank's error, of the class of that name."""
    classes: list[type[UserError] | type[RunFailed]] = [UserError, RunFailed]
    for known in classes:  # grows on the way
        classes += known.__subclasses__()
    return next(known for known in classes if known.__name__ == name)(message)


def keep_to_this_machine() -> None:
    """Have the ranks listen on the loopback interface alone."""
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")


@contextmanager
def join_team(rank: int, size: int, device: torch.device, store: Any) -> Iterator[Team]:
    """Join the other ranks in torch's ``store``, or without one as torchrun says: MASTER_ADDR.

    GPUs talk over NCCL; gloo carries what is on the CPU (counts, checkpoints, requests to stop).
    An error leaves without a farewell, which could wait for ever for a rank that is gone.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if size == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=rank, world_size=size, timeout=RANK_PATIENCE
    )
    yield Team(rank, size, distributed.group.WORLD)
    distributed.barrier()
    distributed.destroy_process_group()
