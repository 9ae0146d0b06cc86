"""A process that is one rank of several: how it knows, and how it tells what went wrong.

Ranks are started by ``launcher.py``, by the user's own torchrun, or by Slurm's srun. All run the
same command line, find their number in the environment and meet where ``meeting.py`` says.
Nothing here imports torch.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import SubprocessError

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.output import say
from lovasz_repro.launch.slurm_job import first_host, port_of

MEETING = "LOVASZ_REPRO_MEETING"  # where the ranks meet that our own launcher started
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # where a launcher, torch's too, looks for a rank's error


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


ALONE = Rank(0, 1, 0, 1)


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

    Raises:
        UserError: a variable that is no number.
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
