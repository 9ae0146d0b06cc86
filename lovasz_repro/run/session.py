"""One run at work: its folder, checkpoints, metric journal, stored run and place on the screen.

    <results>/work/<experiment>/<profile>/<run name>-<identity>/
      config.yaml  journal.jsonl  checkpoint-*.pt  best.safetensors

Entering a session locks the folder and opens the stored run; leaving it ends the stored run as
FINISHED, KILLED or FAILED. Training meets the store only through ``log`` and ``save``, which never
wait for it.

Every rank of a team has the session, and its leader alone the files. What the leader cannot do
(read a checkpoint, write the journal, save) fails on every rank with the same error, at the same
step, so a run that fails leaves the team in order for the next run.
"""

import csv
import io
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import yaml

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.processes import Interrupted, StopRequest
from lovasz_repro.host.progress import Progress, ProgressTask
from lovasz_repro.run.inputs import WEIGHTS
from lovasz_repro.store import Store
from lovasz_repro.store.journal import JOURNAL, Journal, read_records
from lovasz_repro.store.shipping import Shipper
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.distributed import Team
from lovasz_repro.training.loop import TrainingState

STOPPING = "stopping after this step; Ctrl-C again stops at once, back to the last checkpoint"
LOG_FAILED = 1000  # what a rank brings to `stop_asked` when its log failed; above any signal
Given = ParamSpec("Given")
Result = TypeVar("Result")


def by_leader(
    method: Callable[Concatenate["Session", Given], Result],
) -> Callable[Concatenate["Session", Given], Result]:
    """A method that runs on the leader; every rank gets its result, or its error.

    An error of the log, which no rank was told yet, comes first. Such a method calls no other one.
    """

    @wraps(method)
    def shared(session: "Session", *given: Given.args, **named: Given.kwargs) -> Result:
        def on_leader() -> Result:
            if session._failure:
                raise session._failure
            return method(session, *given, **named)

        return session.team.on_leader(on_leader)

    return shared


class Session:
    """Everything a run needs around its training, on every rank; use as a context.

    Args:
        team: the ranks.
        store: where the run is kept.
        run_id: the stored run, open.
        folder: where the run works.
        cell: the run's resolved config.
        progress: the screen, silent on all ranks but the leader.
        label: what the run is called there.

    Raises:
        UserError: another process is working on the run.
        RunFailed: the folder cannot be written.
    """

    def __init__(
        self,
        team: Team,
        store: Store,
        run_id: str,
        folder: Path,
        cell: CellConfig,
        progress: Progress,
        label: str,
    ) -> None:
        self.team, self.folder, self.cell = team, folder, cell
        self.progress, self.label = progress, label
        self._store, self._run_id = store, run_id
        self._task: ProgressTask | None = None
        self._stop = StopRequest(lambda: self.line(STOPPING))
        self._failure: RunFailed | None = None

    def __enter__(self) -> "Session":
        self._open()
        self._stop.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._task:
                self._task.close()
            if self.team.leads:
                stopped = isinstance(error, Interrupted | KeyboardInterrupt)
                self._shipper.close("KILLED" if stopped else "FAILED" if error else "FINISHED")
                self._journal.close()
        finally:
            self._stop.__exit__()  # last: a second signal must not end a rank amid its farewell

    @by_leader
    def _open(self) -> None:
        self._journal = Journal(self.folder / JOURNAL)
        self._checkpoints = Checkpoints(self.folder, say=self.progress.line)
        content = yaml.safe_dump(self.cell.model_dump(mode="json"), sort_keys=False)
        try:
            (self.folder / "config.yaml").write_text(content, encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"{self.folder}: cannot be written ({error.strerror}).") from error
        self._shipper = Shipper(self._store, self._run_id, self._journal, say=self.progress.line)

    def resume(self, state: TrainingState) -> None:
        """Bring ``state`` to the last checkpoint, if there is one."""
        checkpoint = self._last_checkpoint()
        if checkpoint:
            try:
                state.restore(checkpoint)
            except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
                raise RunFailed(
                    f"the last checkpoint in {self.folder} is not of this run's network; move it "
                    "away and run again"
                ) from error
        self._go_on_from(state.iteration)

    @by_leader
    def _last_checkpoint(self) -> dict[str, Any] | None:
        return self._checkpoints.load_latest()

    @by_leader
    def _go_on_from(self, iteration: int) -> None:
        """Bring journal and screen to the iteration at which training begins."""
        if iteration:
            self.line(f"goes on from iteration {iteration}")
        self._journal.rewind(iteration)
        total = self.cell.training.iterations
        self._task = self.progress.task(self.label, total, completed=iteration)

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Note metric values; moves the bar when they are a training step's.

        All ranks learn of a failure when they meet next.
        """
        if not self.team.leads:
            return
        try:
            self._journal.log(iteration, values)
        except RunFailed as error:
            self._failure = error
        if self._task and "train/loss" in values:
            self._task.advance(note=f"loss {values['train/loss']:.3f}")

    @by_leader
    def save(self, state: TrainingState) -> None:
        """Write a checkpoint; only then may the metrics up to it go to the store."""
        self._journal.sync()
        self._checkpoints.save(state.iteration, state.to_checkpoint())
        self._journal.commit(state.iteration)

    def stop_asked(self) -> int:
        """The signal that asked any rank to stop, or 0; the same on every rank.

        Raises:
            RunFailed: the leader cannot write its log.
        """
        number = self.team.largest(LOG_FAILED if self._failure else self._stop.number or 0)
        if number == LOG_FAILED:
            self._raise_failure()
        return number

    @by_leader
    def _raise_failure(self) -> None:
        """``by_leader`` does it."""

    def stop_if_asked(self) -> None:
        """End a stretch without checkpoints at once, where no other rank would wait.

        Raises:
            Interrupted: a signal asked to stop.
        """
        if self._stop.number and self.team.size == 1:
            raise Interrupted(
                self._stop.number, "Stopped while scoring. Run the same command to go on."
            )

    def keep_weights(self, write: Callable[[Path], None]) -> None:
        """Have ``write`` write the weights file; the stored run gets it and the config."""

        def write_all(folder: Path) -> list[Path]:
            write(folder / WEIGHTS)
            return [folder / "config.yaml", folder / WEIGHTS]

        self.keep_files("", write_all)

    def keep_summary(self) -> None:
        """Draw the curves and write the scores of the run; the stored run gets them."""
        self.keep_files("summary", lambda folder: write_summary(self._journal.path, folder))

    @by_leader
    def keep_files(self, folder: str, write: Callable[[Path], list[Path]]) -> None:
        """Have ``write`` write files into a folder; the stored run gets them, under its name.

        Raises:
            RunFailed: the disk refuses.
        """
        where = self.folder / folder
        try:
            files = write(where)
        except OSError as error:
            place = error.filename2 or where  # of a file that did not get its name, this is it
            raise RunFailed(f"{place}: not written ({error.strerror}). Run again.") from error
        for file in files:
            self._journal.artifact(file, folder or None)

    def line(self, text: str) -> None:
        """A line about this run that stays on the screen."""
        self.progress.line(f"{self.label}  {text}")


# -- what a run came to, for who opens it in MLflow ---------------------------------------------

History = Mapping[int, float]
"""Step -> value."""


def write_summary(journal: Path, folder: Path) -> list[Path]:
    """Write ``scores.csv`` and ``curves.png`` of what a journal holds; returns the files.

    Raises:
        OSError: the disk refuses.
    """
    found: dict[str, dict[int, float]] = {}
    for record, _ in read_records(journal):
        for point in record.points:
            found.setdefault(point.key, {})[point.step] = point.value
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "scores.csv", folder / "curves.png"]
    for file, content in zip(files, (scores_table(found), curves_drawn(found)), strict=True):
        write_durably(file, content)
    return files


def scores_table(found: Mapping[str, History]) -> bytes:
    """Each score before training, at the best snapshot and at the end, where it was measured."""
    best = [*found.get("best/iteration", {0: 0}).values()][-1]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["score", "before training", "best snapshot", "end"])
    for key, history in sorted(found.items()):
        if not key.startswith(("train/", "initial/", "batches/", "best/")):
            start = found.get(f"initial/{key}", history).get(0)
            values = (start, history.get(int(best)), history[max(history)])
            rows.writerow([key, *("" if v is None else f"{v:.6g}" for v in values)])
    return text.getvalue().encode()


def curves_drawn(found: Mapping[str, History]) -> bytes:
    """The loss of each step, and the scores of each validation, as a PNG."""
    from matplotlib.figure import Figure

    shown = {key: history for key, history in sorted(found.items())
             if key.rpartition("/")[2] in ("dataset_miou", "image_miou", "image_iou")
             and len(history) > 1}  # fmt: skip
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    training, validation = figure.subplots(1, 2)
    loss = found.get("train/loss", {})
    training.plot(list(loss), list(loss.values()), linewidth=0.7)
    training.set(xlabel="iteration", ylabel="training loss")
    for key, history in shown.items():
        validation.plot(list(history), [100 * v for v in history.values()], ".-", label=key)
    validation.set(xlabel="iteration", ylabel="%")
    if shown:
        validation.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
