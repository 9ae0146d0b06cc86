"""``--jobs N``: N runs of a grid side by side on this machine, each a process of its own.

Each run is the command that would run it alone, with its output in ``run.log`` beside its
checkpoints. What the screen shows is read from the runs' journals.
"""

import os
import subprocess
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import plural
from lovasz_repro.host.processes import (
    Interrupted,
    StopRequest,
    child_environment,
    end_all,
    threads_of,
)
from lovasz_repro.host.progress import Progress, ProgressTask
from lovasz_repro.launch.rank import (
    Attempts,
    Failure,
    RankFailed,
    killed_by,
    newest_checkpoints,
)
from lovasz_repro.launch.request import GridRequest, cell_command
from lovasz_repro.run.experiment import Outcome, Overview
from lovasz_repro.run.inputs import Place, find_inputs, run_folder
from lovasz_repro.store import Store
from lovasz_repro.store.journal import JOURNAL, last_step

LOOK_EVERY = 0.5  # seconds


@dataclass
class Job:
    """One run at work."""

    cell: CellConfig
    folder: Path
    environment: dict[str, str]
    """What its process finds beside this process's environment: its GPUs, its threads."""
    process: "subprocess.Popen[bytes]"
    bar: ProgressTask
    attempts: Attempts

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.folder / "run.log"


class SideBySide:
    """Runs the cells of a request that are not done, several at a time.

    Args:
        request: the grid.
        place: where it runs.
        jobs: how many at a time.
        max_restarts: how often in a row a run that is killed starts again without having written
            a checkpoint in between.
        progress: shows a bar for each run at work and one for the grid.

    Raises:
        UserError: this machine has too few GPUs.
    """

    def __init__(
        self, request: GridRequest, place: Place, jobs: int, max_restarts: int, progress: Progress
    ) -> None:
        self._request, self._place, self._progress = request, place, progress
        self._max_restarts = max_restarts
        self._free = environments(request, jobs)
        self._running: list[Job] = []
        self._overview = Overview([], progress)
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Run them all; one that fails does not keep the others from running.

        Raises:
            UserError: data or weights are missing.
            Interrupted: a signal asked for it; every run has saved.
        """
        overview = self._overview = Overview(self._request.cells, self._progress)
        waiting = self._undone()
        total = self._progress.task(
            f"{self._request.experiment.experiment}: runs",
            len(self._request.cells),
            completed=len(self.outcome.skipped),
        )
        with StopRequest(self._say_stopping) as stop:
            try:
                while waiting or self._running:
                    while self._free and (ready := self._next(waiting)):
                        self._start(*ready)
                    time.sleep(LOOK_EVERY)
                    if stop.number:
                        what = f"Stopped {plural(len(self._running), 'run')}, saved."
                        raise Interrupted(stop.number, f"{what} Run the same command to go on.")
                    total.advance(self._look(), note=f"{len(waiting)} waiting")
            finally:
                end_all([job.process for job in self._running])
                for job in self._running:
                    job.bar.close()
                total.close()
                overview.close()
        return self.outcome

    def _say_stopping(self) -> None:
        self._progress.line(f"stopping {plural(len(self._running), 'run')}, each after its step")

    def _undone(self) -> deque[tuple[CellConfig, Path]]:
        """The cells that are not done, and the folders of their runs."""
        store = Store(self._request.results, self._request.tracking_uri)
        undone = deque[tuple[CellConfig, Path]]()
        for cell in self._request.cells:
            inputs = find_inputs(cell, self._place)
            stored = store.finished(cell.experiment, inputs.identity)
            if stored:
                self._progress.line(f"{cell.name}  done before (run {stored.run_id})")
                self.outcome.skipped.append(cell.name)
                self._overview.done(cell, stored.metrics)
            else:
                undone.append((cell, run_folder(self._place.results, cell, inputs.identity)))
        return undone

    def _next(self, waiting: deque[tuple[CellConfig, Path]]) -> tuple[CellConfig, Path] | None:
        """Take out the next run that does not start from one that is not done."""
        undone = [cell for cell, _ in waiting] + [job.cell for job in self._running]
        for item in list(waiting):
            cell, start = item[0], item[0].start
            if start is None or start not in undone:
                waiting.remove(item)
                if start is None or start.name not in self.outcome.failed:
                    return item
                self.outcome.failed[cell.name] = f"it starts from {start.name}, which failed."
                self._overview.failed(cell)
        return None

    def _start(self, cell: CellConfig, folder: Path) -> None:
        self._overview.running(cell)
        environment = self._free.pop()
        folder.mkdir(parents=True, exist_ok=True)
        mark = partial(newest_checkpoints, [folder])
        job = Job(
            cell,
            folder,
            environment,
            self._process(cell, folder, environment),
            self._progress.task(
                f"  {cell.name}",
                cell.training.iterations,
                completed=last_step(folder / JOURNAL),
            ),
            Attempts(self._max_restarts, mark),
        )
        self._running.append(job)

    def _process(
        self, cell: CellConfig, folder: Path, environment: dict[str, str]
    ) -> "subprocess.Popen[bytes]":
        with open(folder / "run.log", "ab") as log:
            return subprocess.Popen(
                cell_command(self._request, cell),
                env=os.environ | child_environment() | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is ours to hand on, once
            )

    def _look(self) -> int:
        """See how the runs stand; returns how many ended."""
        ended = 0
        for job in list(self._running):
            job.bar.reach(last_step(job.folder / JOURNAL))
            code = job.process.poll()
            if code is None or (code < 0 and self._restarted(job, code)):
                continue
            self._end(job, code)
            ended += 1
        return ended

    def _restarted(self, job: Job, code: int) -> bool:
        """Start a run anew whose process was killed, unless that happened too often."""
        failure = Failure(0, code, message=killed_by(code))
        try:
            time.sleep(job.attempts.next_wait(failure))
        except RankFailed:
            return False
        self._progress.line(f"{job.cell.name}  {failure.message}; it starts again")
        job.process = self._process(job.cell, job.folder, job.environment)
        return True

    def _end(self, job: Job, code: int) -> None:
        name = job.cell.name
        if code == 0:
            self.outcome.finished.append(name)
            self._overview.done(job.cell, {})
            self._progress.line(f"{name}  finished")
        else:
            why = last_line(job.log) if code > 0 else killed_by(code)
            self.outcome.failed[name] = why
            self._overview.failed(job.cell)
            self._progress.line(f"{name}  failed: {why} ({job.log})")
        self._running.remove(job)
        self._free.append(dict(job.environment))
        job.bar.close()


def environments(request: GridRequest, jobs: int) -> list[dict[str, str]]:
    """What each of ``jobs`` processes is given of this machine: its own GPUs, its threads.

    Raises UserError where there are too few GPUs.
    """
    import torch

    base = threads_of(jobs * (request.procs or 1))
    count = torch.cuda.device_count()
    on_cpu = request.procs or request.gpus == 0 or request.device == "cpu" or not count
    if on_cpu and not request.gpus:
        return [dict(base) for _ in range(jobs)]
    each = request.gpus or 1
    if jobs * each > count:
        raise UserError(
            f"--jobs {jobs} with {each} GPUs each needs {jobs * each}; this machine has {count}."
        )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if len(visible) >= count and visible[0] else [str(n) for n in range(count)]
    groups = [",".join(names[job * each : (job + 1) * each]) for job in range(jobs)]
    return [base | {"CUDA_VISIBLE_DEVICES": group} for group in groups]


def last_line(log: Path) -> str:
    """The last line that a process printed, without the word Error."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "").removeprefix("Error: ")
