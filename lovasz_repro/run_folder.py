"""The folder in which one run works: its config, checkpoints, metric journal and best weights.

    <results>/work/<experiment>/<profile>/<run name>-<identity>/
      config.yaml  journal.jsonl  checkpoint-*.pt  best.safetensors

One process at a time works in it; the lock goes with the process, however that ends.
"""

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import IO

import yaml

from lovasz_repro.config import CellConfig
from lovasz_repro.errors import RunFailed, UserError


class RunFolder:
    """The folder of one run; entering it makes it, locks it and writes ``config.yaml``.

    Args:
        results: the results folder.
        cell: the run's resolved config.
        identity: hash of config and data; the same run finds the same folder again.

    Raises:
        UserError: another process is working in it.
        RunFailed: the folder cannot be written.
    """

    def __init__(self, results: Path, cell: CellConfig, identity: str) -> None:
        name = f"{cell.name}-{identity[:8]}"
        self.path = results / "work" / cell.experiment / cell.profile / name
        self.cell = cell
        self._lock: IO[str] | None = None

    @property
    def journal(self) -> Path:
        """Where metric points are appended."""
        return self.path / "journal.jsonl"

    @property
    def best_weights(self) -> Path:
        """The snapshot that scored best on validation."""
        return self.path / "best.safetensors"

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    def __enter__(self) -> "RunFolder":
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / "lock", "a+")  # noqa: SIM115
            self._take_lock(self._lock)
            content = yaml.safe_dump(self.cell.model_dump(mode="json"), sort_keys=False)
            self.config.write_text(content, encoding="utf-8")
        except OSError as error:
            raise RunFailed(f"{self.path}: cannot be written ({error.strerror}).") from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock:
            self._lock.close()

    def _take_lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise UserError(
                f"{self.cell.name} is being run by process {owner}; wait for it, or stop it."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
