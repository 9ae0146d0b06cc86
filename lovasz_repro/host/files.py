"""Files that after a crash are either whole or not there, and files that somebody else names."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from lovasz_repro.errors import UserError


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read; a folder, a pipe or a device, which may never end, is an OSError."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


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


def write_durably(path: Path, data: bytes | memoryview) -> None:
    """Write a file so that after a crash it is either whole or not there: tmp, fsync, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def rename_durably(temporary: Path, path: Path) -> None:
    """Give a file that is on the disk its name so that it survives a crash."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
