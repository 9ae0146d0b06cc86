"""Downloads of large files: they go on where they broke off, and end whole and checked or not.

What has come lies in ``<target>.part``; ``<target>.part.json`` says of which address and which
version, so that a later call can go on.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.http_file import (
    Answer,
    Beginning,
    BrokenOffError,
    OtherFileError,
    UnavailableError,
    ask,
    check_address,
)

MOST_BYTES = 4 * 2**30  # of a file whose size nobody has told
ATTEMPTS = 4  # in a row that bring nothing
TIMEOUT_SECONDS = 60.0

Progress = Callable[[int, int | None], object]
"""Takes the bytes that are there, and the bytes of the whole file where they are known."""


def download(
    url: str,
    target: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout: float = TIMEOUT_SECONDS,
    sleep: Callable[[float], object] = time.sleep,
) -> Path:
    """Fetch a file; ``target`` appears when all of it is there and right.

    Arguments:
        url: http or https.
        target: an older file of this name is replaced.
        size: bytes of the file, where known; without it at most `MOST_BYTES`.
        sha256: hex digits of its SHA-256, or the first of them, where known.
        progress: see `Progress`.
        timeout: seconds of silence after which a connection counts as broken.
        sleep: waits between attempts, seconds.

    Returns `target`.

    Raises:
        UserError: this is no such address, or another process fetches the same file.
        UnavailableError: nothing is there, the connection breaks again and again, or what came
            is not the file.
        RunFailed: the disk is full, or `target` cannot be written.
    """
    check_address(url)
    part = Part(target, url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            _receive(part, size, sha256, progress or (lambda done, total: None), timeout, sleep)
            _verify(part, size, sha256)
            _publish(part, target)
    except OSError as error:  # of the disk: those of the network have other names by now
        raise RunFailed(
            f"cannot write {target}: {error.strerror or error}. {part}; once that is mended, the "
            "same command goes on."
        ) from error
    return target


def sha256_of(file: Path) -> str:
    """SHA-256 of a file as 64 hex digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


class Part:
    """What has come of a file, and a note beside it of what it is a part of."""

    def __init__(self, target: Path, url: str) -> None:
        self.url = url
        self.file = target.with_name(f"{target.name}.part")
        self._note = target.with_name(f"{target.name}.part.json")

    def find(self) -> Beginning:
        """What an earlier call left of this address; anything else is removed."""
        length = self.file.stat().st_size if self.file.exists() else 0
        try:
            note = json.loads(self._note.read_text())
            version, total = str(note["version"]), note["total"]
            fits = note["url"] == self.url and (total is None or length <= int(total))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if length and fits:
            return Beginning(length, version, total if total is None else int(total))
        self.remove()
        return Beginning()

    def begin(self, answer: Answer) -> Beginning:
        """Start over with an answer that begins at the first byte."""
        self.remove()
        if answer.version:
            note = {"url": self.url, "version": answer.version, "total": answer.total}
            write_durably(self._note, json.dumps(note).encode())
        return Beginning(0, answer.version, answer.total)

    def remove(self) -> None:
        """Forget what has come."""
        self.file.unlink(missing_ok=True)
        self.forget_note()

    def forget_note(self) -> None:
        """Remove the note alone."""
        self._note.unlink(missing_ok=True)

    def __str__(self) -> str:
        if not os.path.exists(self.file):
            return "Nothing has come"
        return f"{self.file.stat().st_size:,} bytes are kept in {self.file}"


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a file's name alone; raises UserError where another process does."""
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{target} is being fetched by another process.") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _receive(
    part: Part,
    size: int | None,
    sha256: str | None,
    progress: Progress,
    timeout: float,
    sleep: Callable[[float], object],
) -> None:
    """Fetch what is missing, with as many connections as it takes."""
    there = part.find()
    furthest, in_vain = there.length, 0
    while there.total is None or there.length < there.total:
        try:
            with ask(part.url, there, timeout) as answer:
                _check_size(part, answer, size, sha256)
                if answer.start == 0:
                    there = part.begin(answer)
                _append(part, answer, there, size, progress)
            return
        except BrokenOffError as error:
            if isinstance(error, OtherFileError):
                part.remove()
            there = part.find()
            in_vain = 0 if there.length > furthest else in_vain + 1
            furthest = max(furthest, there.length)
            if in_vain == ATTEMPTS:
                raise UnavailableError(
                    f"{part.url}: {error}; {ATTEMPTS} attempts in a row brought nothing. {part}; "
                    "the same command goes on."
                ) from error
            sleep(2.0**in_vain)


def _check_size(part: Part, answer: Answer, size: int | None, sha256: str | None) -> None:
    """Raise UnavailableError where another file is offered, RunFailed where there is no room."""
    total = answer.total if answer.total is not None else size
    if size is not None and total != size:
        raise UnavailableError(f"{part.url}: has {total:,} bytes, expected {size:,}.")
    if total is None and sha256 is None and not answer.ends_clearly:
        raise UnavailableError(f"{part.url}: nobody says how long the file is. Give its --sha256.")
    if total is not None and total > (size or MOST_BYTES):
        raise UnavailableError(f"{part.url}: has {total:,} bytes, more than any weights.")
    free = shutil.disk_usage(part.file.parent).free
    missing = (total or 0) - answer.start
    if missing > free:
        raise RunFailed(f"{part.file.parent}: {free:,} bytes are free, {missing:,} are missing.")


def _append(
    part: Part, answer: Answer, there: Beginning, size: int | None, progress: Progress
) -> None:
    """Write what comes to the end of the part."""
    length = there.length
    whole = answer.total if answer.total is not None else size
    most = MOST_BYTES if whole is None else whole
    with part.file.open("ab") as file:
        progress(length, whole)
        for block in answer.blocks():
            length += len(block)
            if length > most:
                part.remove()
                raise UnavailableError(
                    f"{part.url}: sends more than the {most:,} bytes of the file."
                )
            file.write(block)
            progress(length, whole)
    if whole is not None and length < whole:
        raise BrokenOffError(f"broke off after {length:,} of {whole:,} bytes")


def _verify(part: Part, size: int | None, sha256: str | None) -> None:
    """Make sure that what came is the file; else remove it and raise UnavailableError."""
    length, found = part.file.stat().st_size, sha256_of(part.file)
    with part.file.open("rb") as file:
        page = file.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if sha256 is not None and not found.startswith(sha256.lower()):
        problem = f"SHA-256 is {found}, expected {sha256.lower()}"
    elif size is not None and length != size:
        problem = f"{length:,} bytes came, expected {size:,}"
    elif page or not length:
        problem = "a web page came in place of a file" if page else "an empty file came"
    else:
        return
    part.remove()
    raise UnavailableError(
        f"{part.url}: {problem}. It was removed{' (a web page)' if page else ''}."
    )


def _publish(part: Part, target: Path) -> None:
    """Give the file its name so that it survives a crash."""
    with part.file.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part.file, target)
    part.forget_note()
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
