"""``--gpus N`` and ``--procs N``: one process per rank, started and watched by this one.

The ranks run the command line that the user gave. Where one dies, the others are ended and all of
them start anew, and the run goes on from its last checkpoint.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import is_gone, machine
from lovasz_repro.host.output import say
from lovasz_repro.host.processes import (
    Interrupted,
    StopRequest,
    child_environment,
    end_all,
    threads_of,
)
from lovasz_repro.launch.meeting import Machines
from lovasz_repro.launch.rank import (
    ERROR_FILE,
    MEETING,
    Attempts,
    Failure,
    RankFailed,
    killed_by,
)

ASK_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Launch:
    """How many processes on how many machines."""

    per_node: int
    """Processes on this machine."""
    nodes: int = 1
    node_rank: int = 0
    """Number of this machine; rank 0, which writes, is on machine 0."""
    rendezvous: str = ""
    """HOST:PORT of machine 0, where there are several."""
    max_restarts: int = 3
    """Attempts in a row without a new checkpoint after which it ends."""


def launch(plan: Launch, logs: Path, progress_mark: Callable[[], object]) -> None:
    """Run this command line on every rank, again where a rank is lost, until it is done.

    Args:
        plan: how many ranks.
        logs: folder for what ranks other than 0 print.
        progress_mark: changes whenever a checkpoint was written.

    Raises:
        Interrupted: a signal asked for it.
        RankFailed: a rank ended with an error, or died too often.
        UserError: machines do not find each other.
    """
    for old in logs.parent.glob(f"{machine()}-*"):
        if is_gone(machine(), int(old.name.rpartition("-")[2]), old):
            shutil.rmtree(old, ignore_errors=True)
    machines = Machines(plan.rendezvous, plan.node_rank) if plan.nodes > 1 else None
    if plan.node_rank:
        progress_mark = object  # machine 0 decides when it has been too often
    attempts = Attempts(plan.max_restarts, progress_mark)
    while (failure := _attempt(plan, logs, machines)) is not None:
        if failure.kind == "stopped":
            raise Interrupted(failure.exit_code - 128, failure.message)
        if failure.kind in ("user", "failed"):
            raise RankFailed(failure.exit_code, failure.message)
        wait = attempts.next_wait(failure)
        say(f"rank {failure.rank}: {failure.message}; all ranks start again", err=True)
        time.sleep(wait)
    shutil.rmtree(logs, ignore_errors=True)


def _attempt(plan: Launch, logs: Path, machines: Machines | None) -> Failure | None:
    """Start the ranks of this machine and wait for them; None when every one is done.

    Raises:
        Interrupted: a signal asked for it; the ranks have saved.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("*.json"):
            old.unlink()
    except OSError as error:
        raise UserError(f"{logs}: cannot be written ({error.strerror}).") from None
    with _meeting(machines) as where, StopRequest() as stop:
        ranks = dict[int, subprocess.Popen[bytes]]()
        try:
            for local_rank in range(plan.per_node):
                rank = plan.node_rank * plan.per_node + local_rank
                ranks[rank] = _start(plan, rank, local_rank, logs, where)
            failed = list[int]()
            while not stop.number and any(process.poll() is None for process in ranks.values()):
                time.sleep(ASK_EVERY)
                if failed:  # with those, by now, that it took along, or that did it
                    break
                failed = [rank for rank, process in ranks.items() if process.poll()]
            failed = [rank for rank, process in ranks.items() if process.poll()]
        finally:
            end_all(list(ranks.values()), stop.number or signal.SIGTERM)
        if stop.number:
            told = _ended(0, 0, logs).message if 0 in ranks else ""
            raise Interrupted(stop.number, told or "Stopped. Run the same command to go on.")
    if not failed:
        return None
    return first_cause(_ended(rank, ranks[rank].returncode, logs) for rank in failed)


@contextmanager
def _meeting(machines: Machines | None) -> Iterator[str]:
    """Where the ranks of an attempt meet, as ``meeting.meet`` reads it."""
    if machines:
        yield machines.next_attempt()
        return
    if sys.platform != "linux":
        raise UserError("several processes on one machine need Linux.")
    file = os.memfd_create("ranks")
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)


def _start(
    plan: Launch, rank: int, local_rank: int, logs: Path, where: str
) -> "subprocess.Popen[bytes]":
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(plan.per_node * plan.nodes),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(plan.per_node),
        MEETING: where,
        ERROR_FILE: str(_error_file(logs, rank)),
    }
    environment |= child_environment() | threads_of(plan.per_node)
    with open(_log(logs, rank), "ab") if rank else nullcontext() as log:  # rank 0 has the terminal
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "lovasz_repro.cli", *sys.argv[1:]],
            env=os.environ | environment,
            stdout=log,
            stderr=log,
            pass_fds=[int(Path(where).name)] if where.startswith("/") else [],
            start_new_session=True,  # Ctrl-C is ours to hand on, once
        )


def _ended(rank: int, exit_code: int, logs: Path) -> Failure:
    """What a rank left to tell of its end."""
    log = _log(logs, rank) if rank else None
    try:
        told = json.loads(_error_file(logs, rank).read_text())["message"]
        more = told["extraInfo"]
        moment, kind = float(more["timestamp"]), str(more["kind"])
        message = str(told["message"]).removeprefix("Error: ")
        return Failure(rank, exit_code, moment, message, kind, log)
    except (OSError, ValueError, KeyError, TypeError):  # it had no time to
        return Failure(rank, exit_code, time.time(), log=log)


def first_cause(ranks: Iterable[Failure]) -> Failure:
    """Of the ranks that failed, the one that the others followed."""
    order = {"user": 0, "failed": 0, "stopped": 1, "died": 2, "unexpected": 2, "lost": 3}
    causes = []
    for ended in ranks:
        message, kind = ended.message, ended.kind
        if kind == "unexpected" and ended.log:
            message += f" (see {ended.log})"
        elif not message and ended.exit_code < 0:
            message = killed_by(ended.exit_code)
            if ended.exit_code == -signal.SIGTERM:  # the launcher ends the others so
                kind = "lost"
        elif not message:
            message = f"ended with exit code {ended.exit_code}"
        causes.append(replace(ended, message=message, kind=kind))
    return min(causes, key=lambda cause: (order[cause.kind], cause.moment, cause.rank))


def _log(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.log"


def _error_file(logs: Path, rank: int) -> Path:
    return logs / f"rank-{rank}.json"
