"""``--slurm``: a grid as array jobs of Slurm, one task a run, through submitit (extra ``slurm``).

``slurm_job.py`` is what runs on a node.
"""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from filelock import FileLock

from lovasz_repro.errors import RunFailed, UserError, install
from lovasz_repro.host.output import plural
from lovasz_repro.launch.request import GridRequest, cell_command
from lovasz_repro.launch.slurm_job import CommandJob
from lovasz_repro.run.inputs import Place, find_inputs
from lovasz_repro.store import Store

# ---- What was submitted --------------------------------------------------------------------------
#
# What was submitted to Slurm (``tasks.jsonl``), and what the queue says of it now.
#
# Needs no accounting: a job that Slurm has forgotten is gone, and whether its run finished is
# written where runs are kept, not here.

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


# ---- Submitting ----------------------------------------------------------------------------------

MINUTES_A_DAY = 24 * 60  # minutes
MAX_REQUEUES = 100
"""How often a task may meet its time limit and be requeued. submitit counts a pre-emption in the
last 20 % (or last 10 minutes) of the time limit too, and no other."""


@dataclass(frozen=True)
class SlurmOptions:
    """What each task asks of Slurm."""

    partition: str | None = None
    """None: the cluster's default."""
    time_minutes: int = MINUTES_A_DAY
    """Time limit of one start of a task; before it ends the task is stopped and requeued."""
    gpus: int = 0
    """GPUs on each node; 0 asks for none."""
    nodes: int = 1
    """Nodes of a task; its command is started once on each."""
    cpus: int | None = None
    """CPU cores on each node; None: the cluster's default."""
    at_once: int | None = None
    """How many tasks may run at the same time; None: all."""
    extra: dict[str, str] = field(default_factory=dict)
    """Further options of sbatch, ``{"account": "vision"}``; "" is an option without a value."""
    signal_delay_s: int = 90
    """Seconds before the time limit at which a task is asked to stop."""

    def after(self, job_id: str) -> "SlurmOptions":
        """The same, but not before a job has ended well; never, where it has not."""
        others = [self.extra["dependency"]] if "dependency" in self.extra else []
        dependency = ",".join([*others, f"afterok:{job_id}"])
        more = {"dependency": dependency, "kill-on-invalid-dep": "yes"}
        return replace(self, extra=self.extra | more)


@dataclass(frozen=True)
class Task:
    """One command to run."""

    key: str
    """The run's identity."""
    name: str
    """For people."""
    command: list[str]
    """The command line; it runs in the directory in which it was submitted. On SIGUSR2 or SIGTERM
    it writes a checkpoint and exits with 128 + the signal; started again, it goes on from there."""


def slurm_options(
    request: GridRequest,
    partition: str | None,
    time: str | None,
    cpus: int | None,
    at_once: int | None,
    sbatch: Sequence[str] | None,
) -> SlurmOptions:
    """Slurm's options, from the command line's; raises UserError for a time that is none."""
    extra = dict(option.removeprefix("--").partition("=")[::2] for option in sbatch or ())
    return SlurmOptions(
        partition=partition,
        time_minutes=minutes(time) if time else MINUTES_A_DAY,
        gpus=request.gpus or 0,
        nodes=request.nodes,
        cpus=cpus or request.procs,
        at_once=at_once,
        extra=extra,
    )


def minutes(text: str) -> int:
    """Slurm's times in minutes, rounded up: "90", "1:30:00", "2-12", "2-12:30", "2-12:30:00".

    One difference: "H:MM" is hours and minutes, where Slurm reads minutes and seconds. Another
    form is a UserError.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d\d))?(?::(\d\d))?", text)
    if not match:
        raise UserError(f"--time {text}: expected [D-]H:MM[:SS], or minutes.")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is None and match[3] is None:
        return first
    return days * MINUTES_A_DAY + first * 60 + second + (third > 0)


def submit_grid(request: GridRequest, options: SlurmOptions, place: Place) -> str:
    """Submit the runs that are neither done nor with Slurm already; returns what was done.

    Raises:
        UserError: data is missing, or Slurm is missing or refuses.
    """
    folder = slurm_folder(request.results.absolute())
    store = Store(request.results, request.tracking_uri)
    folder.mkdir(parents=True, exist_ok=True)
    done, there = 0, 0
    tasks = defaultdict[str, list[Task]](list)  # by the run that they wait for to start from it
    with FileLock(folder / "submit.lock"):  # two commands at once submit nothing twice
        known = states(folder)
        for cell in request.cells:
            identity = find_inputs(cell, place).identity
            if store.finished(cell.experiment, identity):
                done += 1
            elif identity in known and known[identity].state != "gone":
                there += 1
            else:
                name = f"{cell.experiment}/{cell.profile}/{cell.name}"
                task = Task(identity, name, cell_command(request, cell))
                start = find_inputs(cell.start, place).identity if cell.start else ""
                waits = start and not store.finished(cell.experiment, start)
                tasks[start if waits else ""].append(task)
        submitted = submit(tasks.pop("", []), options, folder)
        ids = {key: state.job_id for key, state in known.items()}
        ids |= {task.key: task.job_id for task in submitted}
        for start, waiting in tasks.items():
            submitted += submit(waiting, options.after(ids[start]), folder)
    words = [f"{plural(len(submitted), 'run')} submitted"]
    if submitted:
        words[0] += f" as job {submitted[0].job_id.partition('_')[0]}"
    words += [f"{there} queued or running"] if there else []
    words += [f"{done} done before"] if done else []
    return f"{', '.join(words)}. lovasz-repro runs shows how they stand; logs are in {folder}/logs."


def submit(tasks: Sequence[Task], options: SlurmOptions, folder: Path) -> list[SubmittedTask]:
    """Submit tasks as one array job and note them in ``folder/tasks.jsonl``.

    What they print comes to ``folder/logs``; the folder must be visible on the nodes. No tasks,
    no job.

    Raises:
        UserError: submitit or Slurm is missing, the options make no sense, or sbatch refuses.
        RunFailed: submitted, but it could not be noted.
    """
    if not tasks:
        return []
    submitit = check_slurm(options)
    logs = folder / "logs"
    jobs = [CommandJob(task.command, Path.cwd(), options.signal_delay_s) for task in tasks]
    with _quiet_and_outside_of_jobs(submitit):
        executor = submitit.AutoExecutor(logs, cluster="slurm", slurm_max_num_timeout=MAX_REQUEUES)
        executor.update_parameters(**_parameters(options, len(tasks)))
        handles = executor.submit_array(jobs)
    now = time.time()
    submitted = [
        SubmittedTask(
            task.key, task.name, handle.job_id, now, f"{logs.name}/{handle.paths.stdout.name}"
        )
        for task, handle in zip(tasks, handles, strict=True)
    ]
    record(folder, submitted)
    return submitted


def check_slurm(options: SlurmOptions) -> ModuleType:
    """submitit, where it and Slurm are there and the options make sense; else UserError."""
    if options.time_minutes * 60 < 2 * options.signal_delay_s:
        raise UserError(
            f"a time limit of {options.time_minutes} min leaves no time to work: a task is asked "
            f"to stop {options.signal_delay_s} s before the end"
        )
    try:
        import submitit
        import submitit.helpers
    except ImportError:
        raise UserError(f"--slurm needs submitit: {install('slurm')}") from None
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--slurm needs Slurm: there is no {program} on the PATH")
    return submitit


def _parameters(options: SlurmOptions, count: int) -> dict[str, Any]:
    """Options in submitit's words; it leaves out those that are None."""
    srun = []
    if options.cpus:
        srun.append(f"--cpus-per-task={options.cpus}")  # Slurm 22.05: srun no longer inherits it
    if options.nodes > 1:
        srun.append("--kill-on-bad-exit=1")  # the other nodes would wait for the failed one
    return {
        "name": "lovasz-repro",
        "timeout_min": options.time_minutes,
        "nodes": options.nodes,
        "tasks_per_node": 1,
        "gpus_per_node": options.gpus or None,
        "cpus_per_task": options.cpus,
        "stderr_to_stdout": True,
        "slurm_partition": options.partition,
        "slurm_array_parallelism": options.at_once or count,
        "slurm_signal_delay_s": options.signal_delay_s,
        "slurm_srun_args": srun,
        "slurm_additional_parameters": {
            "requeue": True,  # some clusters take it as forbidden if a job does not say so
            **{name: value or True for name, value in options.extra.items()},
        },
    }


@contextlib.contextmanager
def _quiet_and_outside_of_jobs(submitit: ModuleType) -> Iterator[None]:
    """sbatch's own words as a UserError, where submitit would print them and raise them again.

    And without the SLURM_* variables of a job in which we may be, which the new one would inherit;
    which Slurm is meant (SLURM_CONF) stays.
    """
    errors, config = submitit.core.utils, os.environ.get("SLURM_CONF")
    try:
        with contextlib.redirect_stderr(io.StringIO()), submitit.helpers.clean_env():
            if config is not None:
                os.environ["SLURM_CONF"] = config
            yield
    except (errors.FailedJobError, errors.FailedSubmissionError) as error:
        said = " ".join(str(error).replace("sbatch: error: ", "").split())
        raise UserError(f"sbatch refuses: {said}") from None
