"""A process that is one rank of several: how it knows, how it tells what went wrong, and how
often one that died is started again.

Ranks are started by ``launcher.py``, by the user's own torchrun, or by Slurm's srun. All run the
same command line, find their number in the environment and meet where ``launcher.py`` says.
Nothing here imports torch.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.output import say
from lovasz_repro.launch.slurm_job import first_host, port_of

MEETING = "LOVASZ_REPRO_MEETING"  # where the ranks meet that our own launcher started
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where a launcher, torch's too, looks for a rank's error
BACKOFF = 2.0  # seconds before the second attempt in a row without a checkpoint, then twice as long


@dataclass(frozen=True)
class Rank:
    """Which of the processes this is."""

    rank: int
    world_size: int
    local_rank: int
    """Number on this machine, and of the GPU."""
    local_world_size: int
    by_torch: bool = True
    """Started by our launcher or torch's, not by srun."""


ONE_RANK = Rank(0, 1, 0, 1)


def is_rank() -> bool:
    """Whether this process was started as one of several."""
    return "RANK" in os.environ or (tasks_of_step() != "1" and not in_typed_shell())


def tasks_of_step() -> str:
    """How many tasks srun started, this process or the one that it comes from among them."""
    return os.environ.get("SLURM_STEP_NUM_TASKS", "1")


def in_typed_shell() -> bool:
    """Whether somebody types into a shell that is a task of ``srun --pty``.

    Such a shell puts every command into a process group of its own. Nobody types into the shells
    of the other tasks, so a command in this one has no others to wait for.
    """
    task = os.environ.get("SLURM_TASK_PID", "")
    if "SLURM_PTY_PORT" not in os.environ or not task.isdigit():
        return False
    try:
        return os.getpgid(int(task)) != os.getpgrp()
    except OSError:  # started by a shell that is gone
        return False


def rank_from_environment() -> Rank | None:
    """This process's rank as torchrun or srun set it, or None for a process on its own.

    A variable that is no number is a UserError.
    """
    environment = os.environ
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            local_rank = int(environment.get("LOCAL_RANK", rank))
            return Rank(rank, size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", size)))
        if int(tasks_of_step()) > 1 and not in_typed_shell():
            return _slurm_rank()
    except (ValueError, KeyError, OSError, SubprocessError) as error:
        raise UserError(f"the environment names no rank: {error}.") from None
    return None


def _slurm_rank() -> Rank:
    """A task of srun: numbers from Slurm, and an address that every task works out alike."""
    environment = os.environ
    size = int(environment["SLURM_STEP_NUM_TASKS"])
    rank, local_rank = int(environment["SLURM_PROCID"]), int(environment["SLURM_LOCALID"])
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", str(size))
    here = int(tasks.split("(")[0].split(",")[0])
    if "MASTER_ADDR" not in environment:
        nodes = environment["SLURM_STEP_NODELIST"]
        environment["MASTER_ADDR"] = "127.0.0.1" if here == size else first_host(nodes)
    environment.setdefault("MASTER_PORT", str(port_of(int(environment.get("SLURM_STEP_ID", 0)))))
    return Rank(rank, size, local_rank, here, by_torch=False)


def tell(error: BaseException, line: str) -> None:
    """Leave a rank's error, told in ``line``, where its launcher finds it; else print it."""
    path = os.environ.get(ERROR_FILE)
    if path:
        told = {"kind": kind_of(error), "timestamp": str(int(time.time())), "py_callstack": line}
        message = {"message": line, "extraInfo": told}
        Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")
    if not (path and MEETING in os.environ):
        say(*line.splitlines(), err=True)


def kind_of(error: BaseException) -> str:
    """What an error means for the other ranks and for another attempt.

    "user" and "failed" would happen again; "stopped" was asked for; "lost" follows from what
    another rank did; "unexpected" may not happen twice.
    """
    if isinstance(error, UserError):
        return "user"
    if isinstance(error, RunFailed) or type(error).__name__ == "OutOfMemoryError":
        return "failed"
    if hasattr(error, "exit_code") or isinstance(error, KeyboardInterrupt):
        return "stopped"
    text = f"{type(error).__name__} {error}".lower()
    signs = ("distbackenderror", "distnetworkerror", "diststoreerror", "gloo", "nccl", "connection")
    return "lost" if any(sign in text for sign in signs) else "unexpected"


class RankFailed(RunFailed):
    """A process's error as its launcher repeats it, with its exit code."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Failure:
    """How a rank ended that did not end well."""

    rank: int
    exit_code: int
    moment: float = 0.0
    """Seconds since 1970."""
    message: str = ""
    """Its error in one line, where it could tell."""
    kind: str = "died"
    """Of that error, as `kind_of` names it."""
    log: Path | None = None
    """What it printed, where that is not on the screen."""


def killed_by(exit_code: int) -> str:
    """What a negative exit code of a child process says: "killed by SIGKILL"."""
    return f"killed by {signal.Signals(-exit_code).name}"


class Attempts:
    """Counts attempts in a row that brought no checkpoint.

    Args:
        limit: how many there may be.
        progress_mark: changes whenever a checkpoint was written.
    """

    def __init__(self, limit: int, progress_mark: Callable[[], object]) -> None:
        self._limit, self._mark = limit, progress_mark
        self._seen, self._vain = progress_mark(), 0

    def next_wait(self, failure: Failure) -> float:
        """Seconds to wait before another attempt; raises RankFailed where there were too many."""
        seen = self._mark()
        self._vain = 1 if seen != self._seen else self._vain + 1
        self._seen = seen
        if self._vain > self._limit:
            often = f"{self._vain} times in a row without a new checkpoint in between"
            raise RankFailed(1, f"rank {failure.rank}: {failure.message} ({often}).")
        return BACKOFF * 2.0 ** (self._vain - 2) if self._vain > 1 else 0.0


def newest_checkpoints(folders: Iterable[Path]) -> frozenset[str]:
    """Names of the checkpoints in some runs' folders, which change whenever one is written."""
    return frozenset(path.name for folder in folders for path in folder.glob("checkpoint-*.pt"))
