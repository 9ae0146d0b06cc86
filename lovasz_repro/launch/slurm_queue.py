"""What was submitted to Slurm (``tasks.jsonl``), and what the queue says of it now.

Needs no accounting: a job that Slurm has forgotten is gone, and whether its run finished is
written where runs are kept, not here.
"""

import json
import os
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from lovasz_repro.errors import RunFailed, UserError

RECORD = "tasks.jsonl"
ANSWER_SECONDS = 10  # how long squeue may take

State = Literal["queued", "running", "gone"]
QUEUED = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
GONE = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class SubmittedTask:
    """One task that sbatch took: a line of ``tasks.jsonl``."""

    key: str
    """The run's identity."""
    name: str
    """The run's name, for people."""
    job_id: str
    """``"12_3"``: task 3 of the array job 12, or ``"12"``: a plain job."""
    submitted: float
    """Seconds since 1970."""
    log: str
    """What the task prints, relative to the folder of ``tasks.jsonl``."""


@dataclass(frozen=True)
class TaskState:
    """What Slurm says now of the last submission of a run."""

    key: str
    name: str
    job_id: str
    state: State
    """``gone``: ended in whatever way, or too old for Slurm to remember."""
    log: Path | None
    """What the task has printed so far, or None before it starts."""


def slurm_folder(results: Path) -> Path:
    """Where a results folder keeps what was submitted, and what its tasks print."""
    return results / "slurm"


def record(folder: Path, tasks: Sequence[SubmittedTask]) -> None:
    """Append to ``folder/tasks.jsonl``; several processes may do so at once.

    Raises:
        RunFailed: the tasks are submitted, but it could not be noted.
    """
    path = folder / RECORD
    lines = "".join(json.dumps(asdict(task)) + "\n" for task in tasks).encode()
    try:
        with FileLock(path.with_name(RECORD + ".lock")), open(path, "a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":  # a crash tore the last line: do not go on in it
                    lines = b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        jobs = " ".join(sorted({task.job_id.partition("_")[0] for task in tasks}))
        raise RunFailed(
            f"{path} cannot be written ({error.strerror}), so the submitted jobs would be lost "
            f"sight of: end them with `scancel {jobs}`"
        ) from None


def submitted(folder: Path) -> dict[str, SubmittedTask]:
    """The last submission of every key in ``folder/tasks.jsonl``; a torn line is passed over."""
    try:
        lines = (folder / RECORD).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    tasks = {}
    for line in lines:
        try:
            task = SubmittedTask(**json.loads(line))
        except (ValueError, TypeError):
            continue
        tasks[task.key] = task
    return tasks


def states(folder: Path) -> dict[str, TaskState]:
    """What Slurm says now of the last submission of every key in ``folder/tasks.jsonl``.

    Without that file nothing is asked and nothing is returned.

    Raises:
        UserError: there is no squeue here, or it does not answer within 10 s.
    """
    tasks = submitted(folder)
    if not tasks:
        return {}
    words = _ask_squeue({task.job_id.partition("_")[0] for task in tasks.values()})
    found = {}
    for key, task in tasks.items():
        log = folder / task.log
        state = _state(words.get(task.job_id))
        found[key] = TaskState(key, task.name, task.job_id, state, log if log.exists() else None)
    return found


def _state(word: str | None) -> State:
    """Ours for Slurm's. A word that is new to us is of a job that may still be running."""
    if word is None or word in GONE:
        return "gone"
    return "queued" if word in QUEUED else "running"


def _ask_squeue(jobs: Iterable[str]) -> dict[str, str]:
    """Slurm's word for every task that it remembers of some jobs, by the task's job id."""
    command = ["squeue", "--noheader", "--array", "--all", "--states=all", "--format=%i %T"]
    # The user's SQUEUE_* variables could hide jobs (by partition, user, ...), which then seem gone.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SQUEUE_")}
    command.append(f"--jobs={','.join(sorted(jobs))}")
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=ANSWER_SECONDS
        )
    except FileNotFoundError:
        raise UserError("cannot ask Slurm for its jobs: there is no squeue on the PATH") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"squeue does not answer within {ANSWER_SECONDS} s; try later") from None
    if done.returncode != 0:
        if "Invalid job id specified" in done.stderr:  # one job only, and too old to be remembered
            return {}
        raise UserError(f"squeue failed: {' '.join(done.stderr.split())}")
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip())
