"""Files of runs in a local folder: copied in whole or not at all, never outside of it."""

import os
import shutil
from pathlib import Path, PurePosixPath

from lovasz_repro.store.tracking import StoreError

_UNFINISHED = ".new"


def inside(relative: str) -> PurePosixPath:
    """``relative`` as a path that cannot leave the folder it is joined to.

    Raises:
        StoreError: absolute, or with a ``..``, a drive or a backslash in it.
    """
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or any(c in relative for c in "\\:\0"):
        raise StoreError(f"{relative!r} is not a path inside a run")
    return path


def put(root: Path, source: Path, folder: str | None) -> None:
    """Copy the file ``source`` to ``root``/``folder``/; replaces one of the same name."""
    target = root / inside(folder or ".") / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(target.name + _UNFINISHED)
    shutil.copyfile(source, fresh)
    os.replace(fresh, target)


def names(root: Path) -> list[str]:
    """Relative paths of the regular files below ``root``, sorted: no links, no notes of macOS."""
    files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
    files = [p for p in files if p.name != ".DS_Store" and not p.name.startswith("._")]
    return sorted(p.relative_to(root).as_posix() for p in files if p.suffix != _UNFINISHED)
