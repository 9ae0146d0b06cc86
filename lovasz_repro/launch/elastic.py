"""``--gpus N`` and ``--procs N``: one process per rank, started by torch's elastic launcher.

The ranks run the command line that the user gave. Their launcher watches them: where one dies, it
ends the others and starts all of them anew, and the run goes on from its last checkpoint. Every
attempt is a fresh launch, because torch's own restarts are not reliable with gloo: peers read the
addresses of the attempt before.
"""

import dataclasses
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lovasz_repro.errors import UserError
from lovasz_repro.host.cores import threads_of
from lovasz_repro.host.orphan import child_environment
from lovasz_repro.host.stopping import Interrupted
from lovasz_repro.launch.attempts import Attempts, Failure, RankFailed, killed_by
from lovasz_repro.launch.machines import PATIENCE, Machines
from lovasz_repro.launch.rank import LAUNCHED

SIGNALS = "SIGTERM,SIGINT,SIGUSR2"  # handed on to the ranks, which save and stop
SAVING = 120  # seconds that the ranks may take for it before they are killed


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


def launch(
    plan: Launch, logs: Path, progress_mark: Callable[[], object], say: Callable[[str], None]
) -> None:
    """Run this command line on every rank, again where a rank is lost, until it is done.

    Args:
        plan: how many ranks.
        logs: folder for what ranks other than 0 print.
        progress_mark: changes whenever a checkpoint was written.
        say: prints a line.

    Raises:
        Interrupted: a signal asked for it.
        RankFailed: a rank ended with an error, or died too often.
    """
    from torch.distributed.elastic.multiprocessing import SignalException

    machines = Machines(plan.rendezvous, plan.node_rank) if plan.nodes > 1 else None
    if plan.node_rank:
        progress_mark = object  # machine 0 decides when it has been too often
    attempts = Attempts(plan.max_restarts, progress_mark)
    try:
        while (failure := launch_once(plan, logs, machines)) is not None:
            if failure.kind == "stopped":
                raise Interrupted(failure.exit_code - 128, failure.message)
            if failure.kind in ("user", "failed"):
                raise RankFailed(failure.exit_code, failure.message)
            wait = attempts.next_wait(failure)
            say(f"rank {failure.rank}: {failure.message}; all ranks start again")
            time.sleep(wait)
    except SignalException as error:
        message = told_by_rank_0(logs) or "Stopped. Run the same command to go on."
        raise Interrupted(int(error.sigval), message) from None


def launch_once(plan: Launch, logs: Path, machines: Machines | None) -> Failure | None:
    """One attempt; None when every rank of this machine is done."""
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    logging.disable(logging.CRITICAL)  # torch's account of it, twenty lines a rank
    os.environ.update(_environment(plan))
    command = ["-m", "lovasz_repro.cli", *sys.argv[1:]]
    try:
        endpoint = machines.next_attempt() if machines else "127.0.0.1:0"
        elastic_launch(_config(plan, logs, endpoint), sys.executable)(*command)
    except ChildFailedError as error:
        return first_cause(error.failures)
    except DistError as error:
        first = " ".join(str(error).split())
        return Failure(
            plan.node_rank * plan.per_node, "lost", 1, f"another machine is lost: {first}"
        )
    shutil.rmtree(logs, ignore_errors=True)
    return None


def told_by_rank_0(logs: Path) -> str | None:
    """What rank 0 said of its end in the last attempt."""
    files = sorted(logs.glob("*/attempt_0/0/error.json"), key=lambda path: path.stat().st_mtime)
    try:
        return str(json.loads(files[-1].read_text())["message"]["message"])
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return None


def _environment(plan: Launch) -> dict[str, str]:
    """What the ranks find in their environment."""
    values = child_environment() | {LAUNCHED: "1"}
    return values | threads_of(plan.per_node)


def _config(plan: Launch, logs: Path, endpoint: str) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    hidden = range(1 if plan.node_rank == 0 else 0, plan.per_node)  # rank 0 has the terminal
    redirects = {rank: Std.ALL if rank in hidden else Std.NONE for rank in range(plan.per_node)}
    settings: dict[str, Any] = {
        "min_nodes": plan.nodes,
        "max_nodes": plan.nodes,
        "nproc_per_node": plan.per_node,
        "run_id": "lovasz-repro",
        "rdzv_backend": "static" if plan.nodes > 1 else "c10d",
        "rdzv_endpoint": endpoint,
        "max_restarts": 0,
        "monitor_interval": 0.2,
        "logs_specs": DefaultLogsSpecs(str(logs), redirects=redirects),
    }
    if plan.nodes > 1:
        settings["rdzv_configs"] = {
            "rank": plan.node_rank,
            "timeout": int(PATIENCE.total_seconds()),
        }
    else:
        settings["local_addr"] = "127.0.0.1"
    known = {field.name for field in dataclasses.fields(LaunchConfig)}
    if "signals_to_handle" in known:  # torch 2.8
        settings["signals_to_handle"] = SIGNALS
    if "shutdown_timeout" in known:
        settings["shutdown_timeout"] = SAVING
    return LaunchConfig(**settings)


def first_cause(failures: dict[int, Any]) -> Failure:
    """Of the ranks that failed, the one that the others followed.

    Args:
        failures: rank -> torch's ProcessFailure.
    """
    order = {"user": 0, "failed": 0, "stopped": 1, "died": 2, "unexpected": 2, "lost": 3}
    causes = []
    for rank, failure in failures.items():
        message, kind = failure.message, "died"
        if isinstance(message, dict):
            kind = message["extraInfo"].get("kind", "unexpected")
            message = message["message"]
            if kind == "unexpected" and rank:
                message += f" (see {Path(failure.error_file).with_name('stderr.log')})"
        elif failure.exitcode < 0:
            message = killed_by(failure.exitcode)
            if failure.exitcode == -signal.SIGTERM:  # the launcher ends the others so
                kind = "lost"
        else:
            message = f"ended with exit code {failure.exitcode}"
        moment = (order[kind], failure.timestamp, rank)
        causes.append((moment, Failure(rank, kind, failure.exitcode, message)))
    return min(causes, key=lambda cause: cause[0])[1]


def check_devices(gpus: int) -> None:
    """Make sure that this machine has the GPUs.

    Raises:
        UserError: how many there are.
    """
    import torch

    count = torch.cuda.device_count()
    if gpus > count:
        raise UserError(f"--gpus {gpus}: this machine has {count}. On CPUs: --procs {gpus}.")
