"""Checkpoints that are whole or not there at all.

A checkpoint is written to a temporary file, synced, then renamed; its name carries the iteration
and the first 16 hex digits of its SHA-256, so a file that was damaged later is recognised and
the one before it is taken. Files are read with ``weights_only=True``: nothing in them is executed.
"""

import hashlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lovasz_repro.errors import RunFailed
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.output import to_stderr

_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
        folder: made if missing.
        keep: how many of the newest stay on disk.
        say: is told of a damaged one.
    """

    def __init__(self, folder: Path, keep: int = 2, say: Callable[[str], None] = to_stderr) -> None:
        self.folder, self.keep, self.say = folder, keep, say
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, iteration: int, content: dict[str, Any]) -> Path:
        """Write ``content`` durably as the checkpoint of ``iteration``; drop the oldest ones.

        Raises:
            RunFailed: the disk refuses; the checkpoints before it are untouched.
        """
        buffer = io.BytesIO()
        torch.save(content, buffer)
        data = buffer.getbuffer()
        digest = hashlib.sha256(data).hexdigest()[:16]
        path = self.folder / f"checkpoint-{iteration:08d}-{digest}.pt"
        try:
            write_durably(path, data)
        except OSError as error:
            raise RunFailed(
                f"Checkpoint of iteration {iteration} not written to {self.folder}: "
                f"{error.strerror}. Earlier checkpoints are intact: make room and run again."
            ) from error
        for _, old in self._files()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def load_latest(self) -> dict[str, Any] | None:
        """Content of the newest undamaged checkpoint, or None where there is none.

        Damaged ones are renamed: `save` would keep them in place of those of fewer iterations.

        Raises:
            RunFailed: it cannot be read, or is whole and no checkpoint of its iteration.
        """
        for digest, path in self._files():
            try:
                data = path.read_bytes()
            except OSError as error:
                raise RunFailed(f"{path} cannot be read: {error.strerror}.") from None
            if hashlib.sha256(data).hexdigest()[:16] == digest:
                return _load(path, data)
            path.replace(path.with_suffix(".damaged"))
            self.say(f"{path} is damaged and passed over; it is renamed to *.damaged")
        return None

    def latest_iteration(self) -> int | None:
        """Iteration of the newest checkpoint by name, or None; nothing is read."""
        files = self._files()
        return int(files[0][1].name.split("-")[1]) if files else None

    def _files(self) -> list[tuple[str, Path]]:
        """(digest, path) of every checkpoint, newest first."""
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        files = [(int(m[1]), m[2], path) for m, path in matches if m and path.is_file()]
        files.sort(key=lambda file: (file[0], file[2].stat().st_mtime_ns), reverse=True)
        return [(digest, path) for _, digest, path in files]


def _load(path: Path, data: bytes) -> dict[str, Any]:
    """The content of a file that is as it was written, whoever wrote it."""
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if content["iteration"] == int(path.name.split("-")[1]):
            return dict(content)
    except Exception:  # the reader of foreign bytes raises whatever it meets
        pass
    raise RunFailed(f"{path} is no checkpoint of this run; move it away and run again.")
