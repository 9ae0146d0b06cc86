"""Files that after a crash are whole or not there, what it left of others, and files to read."""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path

from lovasz_repro.errors import UserError

_UNFINISHED = re.compile(r"\.(.*)-(\d+)-[0-9a-f]{8}\.tmp(-\w+)?")  # -journal: SQLite's
DAY = 24 * 3600  # seconds, after which what another machine left unchanged counts as left over


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that after a crash it is either whole or not there: tmp, fsync, rename."""
    with unfinished(path) as place:
        with open(place, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename_durably(place, path)


def rename_durably(temporary: Path, path: Path) -> None:
    """Give a file that is on the disk its name so that it survives a crash."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to make a file or folder that then takes its name.

    What is still there in the end is removed, after a SIGKILL by the next process that writes into
    the same folder.
    """
    _remove_left_over_once(path.parent)
    place = path.with_name(f".{machine()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield place
    finally:
        _remove(place)


def try_writing(file: Path) -> None:
    """Make the folder of a file and, for a moment, a file in it; raises OSError if refused."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(file) as place:
        place.touch()


def remove_left_over(folder: Path) -> None:
    """Remove what processes left unfinished in a folder that are no longer there."""
    for name in os.listdir(folder) if folder.is_dir() else ():
        match = _UNFINISHED.fullmatch(name)
        if match and is_gone(match[1], int(match[2]), folder / name):
            _remove(folder / name)


_remove_left_over_once = cache(remove_left_over)  # folders can hold thousands of files


def machine() -> str:
    """Name of this machine, as part of a file name."""
    return socket.gethostname()[:64]


def is_gone(host: str, process: int, file: Path) -> bool:
    """Whether a process on a machine has ended that wrote a file."""
    if host != machine():
        with suppress(OSError):
            return time.time() - file.stat().st_mtime > DAY
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # somebody else's
        return False
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; a folder, a pipe or a device, which may never end, is an OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file as 64 hex digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, most: int) -> str:
    """The text of a file that a person names.

    Args:
        path: UTF-8, with or without a byte order mark.
        most: bytes that such a file may have.

    Raises:
        UserError: one line; not to be read, no regular file, too large, or no text.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise UserError(f"{path}: too large, more than {most:,} bytes.")
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no UTF-8 text ({error.reason}).") from None
