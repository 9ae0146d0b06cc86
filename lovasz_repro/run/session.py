"""One run at work: its folder, checkpoints, metric journal, stored run and place on the screen.

    <results>/work/<experiment>/<profile>/<run name>-<identity>/
      config.yaml  journal.jsonl  checkpoint-*.pt  best.safetensors

Entering a session locks the folder and opens the stored run; leaving it ends the stored run as
FINISHED, KILLED or FAILED. Training meets the store only through ``log`` and ``save``, which never
wait for it. One process has the session; ``shared_session.py`` shares it with other ranks.
"""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.progress import Progress, ProgressTask
from lovasz_repro.host.stopping import Interrupted
from lovasz_repro.run.inputs import WEIGHTS
from lovasz_repro.store import Store
from lovasz_repro.store.journal import Journal
from lovasz_repro.store.shipping import Shipper
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.loop import TrainingState


class RunSession:
    """Everything a run needs around its training; use as a context.

    Args:
        store: where the run is kept.
        run_id: the stored run, open.
        folder: where the run works.
        cell: the run's resolved config.
        progress: the screen.
        label: what the run is called there.

    Raises:
        UserError: another process is working on the run.
        RunFailed: the folder cannot be written.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        folder: Path,
        cell: CellConfig,
        progress: Progress,
        label: str,
    ) -> None:
        self.folder, self.cell, self.progress, self.label = folder, cell, progress, label
        self._store, self._run_id = store, run_id
        self._task: ProgressTask | None = None

    def __enter__(self) -> "RunSession":
        self._journal = Journal(self.folder / "journal.jsonl")
        self._checkpoints = Checkpoints(self.folder)
        self._write_config()
        self._shipper = Shipper(self._store, self._run_id, self._journal, say=self.progress.line)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._task:
            self._task.close()
        interrupted = isinstance(error, Interrupted | KeyboardInterrupt)
        self._shipper.close("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")
        self._journal.close()

    def last_checkpoint(self) -> dict[str, Any] | None:
        """Content of the last checkpoint, on the CPU, or None where there is none."""
        return self._checkpoints.load_latest()

    def go_on_from(self, iteration: int) -> None:
        """Bring journal and screen to the iteration at which training begins."""
        if iteration:
            self.line(f"goes on from iteration {iteration}")
        self._journal.rewind(iteration)
        total = self.cell.training.iterations
        self._task = self.progress.task(self.label, total, completed=iteration)

    def log(self, iteration: int, values: dict[str, float]) -> None:
        """Note metric values; moves the bar when they are a training step's."""
        self._journal.log(iteration, values)
        if self._task and "train/loss" in values:
            self._task.advance(note=f"loss {values['train/loss']:.3f}")

    def save(self, state: TrainingState) -> None:
        """Write a checkpoint; only then may the metrics up to it go to the store."""
        self._journal.sync()
        self._checkpoints.save(state.iteration, state.to_checkpoint())
        self._shipper.commit(state.iteration)

    def keep_weights(self, write: Callable[[Path], None]) -> None:
        """Have ``write`` write the weights file; the stored run gets it and the config.

        Raises:
            RunFailed: the disk refuses.
        """
        weights = self.folder / WEIGHTS
        try:
            write(weights)
        except OSError as error:
            raise RunFailed(f"{weights}: not written ({error.strerror}). Run again.") from error
        for file in (self.folder / "config.yaml", weights):
            self._journal.artifact(file)

    def keep_files(self, folder: str, write: Callable[[Path], list[Path]]) -> None:
        """Have ``write`` write files into a folder; the stored run gets them, under its name.

        Raises:
            RunFailed: the disk refuses.
        """
        try:
            files = write(self.folder / folder)
        except OSError as error:
            where = self.folder / folder
            raise RunFailed(f"{where}: not written ({error.strerror}). Run again.") from error
        for file in files:
            self._journal.artifact(file, folder)

    def line(self, text: str) -> None:
        """A line about this run that stays on the screen."""
        self.progress.line(f"{self.label}  {text}")

    def _write_config(self) -> None:
        content = yaml.safe_dump(self.cell.model_dump(mode="json"), sort_keys=False)
        try:
            (self.folder / "config.yaml").write_text(content, encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"{self.folder}: cannot be written ({error.strerror}).") from error
