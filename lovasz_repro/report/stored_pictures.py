"""Pictures that a run stored, and the list of them, read with care.

A run may come from another machine, so nothing in its files is trusted: a list has a largest size,
and a picture is decoded only where its header says the mode and the size that are expected.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Run, RunStore

MOST_BYTES = 1_000_000
"""Size of a list."""


@dataclass(frozen=True)
class StoredPictures:
    """The folder of pictures of one run."""

    store: RunStore
    run: Run
    folder: str

    def where(self, name: str) -> str:
        """What a file is called in messages."""
        return f"{self.run.name}, {self.folder}/{name}"

    def has(self, name: str) -> bool:
        """Whether the run stored a file."""
        return self._path(name) is not None

    def listing(self, name: str) -> Any:
        """The content of a JSON file.

        Raises:
            UserError: missing, too large, or not JSON.
        """
        path = self._stored(name)
        try:
            if path.stat().st_size > MOST_BYTES:
                raise UserError(f"{self.where(name)}: larger than {MOST_BYTES} bytes")
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{self.where(name)}: not readable as JSON") from None

    def picture(self, name: str, mode: str, height: int, width: int) -> np.ndarray:
        """The pixels of a PNG, (height, width) uint8 in mode L, (height, width, 3) in RGB.

        Raises:
            UserError: missing, unreadable, or of another mode or size.
        """
        from PIL import Image

        path = self._stored(name)
        try:
            with Image.open(path, formats=["PNG"]) as image:
                if (image.mode, image.size) != (mode, (width, height)):
                    raise UserError(
                        f"{self.where(name)}: {image.mode} of {image.width}×{image.height}, "
                        f"not {mode} of {width}×{height}"
                    )
                return np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise UserError(f"{self.where(name)}: not a readable PNG") from None

    def _stored(self, name: str) -> Path:
        path = self._path(name)
        if path is None:
            raise UserError(f"{self.where(name)}: listed, but not stored")
        return path

    def _path(self, name: str) -> Path | None:
        try:
            path = self.store.artifact(self.run.run_id, f"{self.folder}/{name}")
        except UserError:
            return None
        return path if path.is_file() else None
