"""The list of stored runs on the terminal."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from lovasz_repro.host.output import say, say_json
from lovasz_repro.host.terminal import Terminal, print_table
from lovasz_repro.launch.slurm_queue import TaskState
from lovasz_repro.store.stored import StoredRun, shown_status

SCORES = {
    "test/dataset_miou": "test mIoU",
    "val/dataset_miou": "val mIoU",
    "val/image_iou": "val image-IoU",
}
"""What a training run is judged by, best first."""
AWAY = {"queued": "QUEUED", "running": "STARTING", "gone": "LOST"}
"""Status of a run that is with Slurm and not in the store."""


def print_runs(
    runs: Sequence[StoredRun], as_json: bool, tasks: Mapping[str, TaskState] | None = None
) -> None:
    """Newest first: status, experiment/profile/run, best score, age, run id.

    Args:
        runs: stored runs, newest first.
        as_json: machine-readable.
        tasks: what was submitted to Slurm, by the run's identity. A run that waits there is
            QUEUED; one that Slurm has no more and that never reached the store is LOST.
    """
    tasks = tasks or {}
    status = {run.run_id: status_of(run, tasks.get(run.identity)) for run in runs}
    stored = {run.identity for run in runs}
    only_tasks = [task for task in tasks.values() if task.key not in stored]
    if as_json:
        content = [asdict(run) | {"shown_status": status[run.run_id]} for run in runs]
        content += [
            {"name": task.name, "shown_status": AWAY[task.state], "slurm_job": task.job_id}
            for task in only_tasks
        ]
        say_json(content)
        return
    if not runs and not only_tasks:
        say("No runs stored yet. Start with: lovasz-repro synthetic")
        return
    rows = [_task_row(task) for task in only_tasks]
    rows += [
        [
            status[run.run_id],
            "/".join([run.experiment, run.tags.get("profile", ""), run.name]),
            score(run),
            age(time.time() - run.started),
            run.run_id[:12],
        ]
        for run in runs
    ]
    heads = ["status", "run", "score", "age", "run id"]
    print_table(Terminal(), heads, rows, words=range(len(heads)))


def status_of(run: StoredRun, task: TaskState | None) -> str:
    """The status for people, QUEUED where a run that is not finished waits with Slurm."""
    if task and task.state == "queued" and run.status != "FINISHED":
        return AWAY["queued"]
    return shown_status(run)


def score(run: StoredRun) -> str:
    """The score that the run is judged by, in words."""
    for key, title in SCORES.items():
        if key in run.metrics:
            return f"{title} {100 * run.metrics[key]:.2f}"
    return ""


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _task_row(task: TaskState) -> list[str]:
    lost = task.state == "gone" and task.log
    where = f"see {task.log}" if lost else f"Slurm {task.job_id}"
    return [AWAY[task.state], task.name, "", "", where]
