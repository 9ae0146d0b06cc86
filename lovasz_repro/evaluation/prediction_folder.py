"""A folder of predictions: what is in it, and whose they are.

``predictions.json`` is written first. It names weights, photographs and settings, so that a folder
is gone on with by the command that it belongs to and by no other.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lovasz_repro.data.cityscapes import Frame
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predict import make_folder
from lovasz_repro.host.files import remove_left_over, write_durably

ENDING = "_labelIds.png"
MANIFEST = "predictions.json"
PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
DIFFERENT = {
    "weights": "other weights",
    "split": "another split",
    "data": "another data set",
    "size": "another --size",
    "upsample": "another --upsample",
}
"""What it means when an entry of the manifest differs."""


def prediction_files(frames: Iterable[Frame], out: Path) -> list[Path]:
    """Where the prediction of each photograph is written, there or not."""
    return [out / f"{frame.name}{ENDING}" for frame in frames]


def is_complete(file: Path) -> bool:
    """Whether a prediction is there with its first and last bytes; it is not decoded."""
    try:
        with file.open("rb") as opened:
            start = opened.read(len(PNG_START))
            opened.seek(-len(PNG_END), io.SEEK_END)
            return start == PNG_START and opened.read() == PNG_END
    except OSError:
        return False


def write_file(file: Path, content: bytes) -> None:
    """Write a file whole or not at all; raises UserError where that cannot be."""
    try:
        write_durably(file, content)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}") from error


@contextmanager
def claimed(out: Path, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Hold a folder alone, after making sure that it holds these predictions or none.

    Raises:
        UserError: it holds others, another process is at work in it, or it cannot be written.
    """
    make_folder(out)
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{out} is in use: another process predicts into it.") from None
    except OSError as error:
        raise UserError(f"output folder {out}: {error.strerror or error}") from error
    try:
        before = _read_manifest(out, manifest)
        if before != manifest:
            for name, length in manifest["bytes"].items():
                if before.get("bytes", {}).get(name) != length:  # another photograph
                    (out / f"{name}{ENDING}").unlink(missing_ok=True)
            write_file(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
        remove_left_over(out)
        yield
    finally:
        lock.release()


def _read_manifest(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says of its predictions; empty where it has none.

    Raises:
        UserError: it has predictions that are not those of ``manifest``.
    """
    file = out / MANIFEST
    try:
        before = json.loads(file.read_bytes())
        changed = [words for key, words in DIFFERENT.items() if before[key] != manifest[key]]
        dict(before["bytes"])
    except FileNotFoundError:
        if next(out.glob("*.png"), None):
            raise UserError(f"{out} holds PNG files and no {MANIFEST}: they are not of this "
                            "command. Choose another --out.") from None  # fmt: skip
        return {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: unreadable ({error}). Choose another --out.") from None
    if changed:
        raise UserError(f"{out} holds predictions of {', '.join(changed)} ({MANIFEST} says which). "
                        "Choose another --out.")  # fmt: skip
    return dict(before)


def digest(file: Path) -> str:
    """SHA-256 of a file."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def sizes(frames: Iterable[Frame]) -> dict[str, int]:
    """Length in bytes of every photograph, which tells one from another and takes no time."""
    try:
        return {frame.name: frame.image.stat().st_size for frame in frames}
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}.") from error
