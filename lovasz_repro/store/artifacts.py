"""Files of runs in a local folder: copied in whole or not at all, never outside of it."""

import os
import shutil
from pathlib import Path

from lovasz_repro.host.files import unfinished


def put(target: Path, source: Path) -> None:
    """Copy the file ``source`` to ``target``; replaces what was there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(target) as fresh:
        shutil.copyfile(source, fresh)
        os.replace(fresh, target)


def names(root: Path) -> list[str]:
    """Relative paths of the regular files below ``root``, sorted.

    Links are passed over, and so is what begins with a dot: unfinished copies, and what a Mac
    leaves in every folder.
    """
    files = [p.relative_to(root) for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
    return sorted(p.as_posix() for p in files if not any(part[0] == "." for part in p.parts))
