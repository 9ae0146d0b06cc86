"""What a process that was killed left in a folder."""

import subprocess
import sys
from functools import cache
from pathlib import Path

from lovasz_repro.host.files import machine


@cache
def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def left_over(folder: Path, process: int = 0, host: str = "") -> Path:
    """A name as `unfinished` gives it, of a process that has ended if none is named."""
    number = sum(1 for _ in folder.iterdir())
    return folder / f".{host or machine()}-{process or gone()}-{number:08x}.tmp"
