"""The local journal of one run: what it measured, on disk before the store hears of it.

A JSONL file beside the checkpoints, only ever appended to. Each line is one of

    {"step": 20, "time": 1763884800000, "values": {"train/loss": 0.41, "val/x": "nan"}}
    {"tags": {"resume.count": "1"}}      {"artifact": "curves.csv", "folder": "plots"}
    {"commit": 20}                       {"finished": 1763884900000}

A ``commit`` line says that the checkpoint of that step is on disk: what stands before it is
final and may be shipped (see ``shipping.py``), what stands after it is taken back when the
run resumes from that checkpoint. So the store never sees a value that is computed twice.
"""

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lovasz_repro.config.read import Relative
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import unfinished

JOURNAL = "journal.jsonl"  # its name in a run's folder
TAIL = 16_384  # bytes, room for a line of scores
Count = Annotated[int, Field(ge=0, lt=2**63)]
Value = Annotated[float, Field(strict=False)]  # NaN and infinities are words, JSON has none


class Point(NamedTuple):
    """One value of one metric; ``timestamp`` in milliseconds since the epoch."""

    key: str
    value: float
    step: int
    timestamp: int


class Record(BaseModel):
    """One line of a journal."""

    model_config = ConfigDict(strict=True, ser_json_inf_nan="strings")
    step: Count | None = None
    time: Count | None = None
    values: dict[str, Value] = {}
    tags: dict[str, str] = {}
    artifact: Relative | None = None
    folder: Relative | None = None
    commit: Count | None = None
    finished: Count | None = None

    @model_validator(mode="after")
    def _values_have_a_moment(self) -> "Record":
        if "values" in self.model_fields_set and None in (self.step, self.time):
            raise ValueError("values without step and time")
        return self

    @property
    def points(self) -> list[Point]:
        """In the order they were logged; none for other records."""
        return [Point(key, v, self.step or 0, self.time or 0) for key, v in self.values.items()]

    @property
    def settles(self) -> bool:
        """Whether everything before this record is final."""
        return self.commit is not None or self.finished is not None


class InUse(UserError):
    """Another process trains this run."""


class Journal:
    """Open (or create) the journal at ``path`` and hold it alone until `close`.

    A last line that a crash tore is cut off. ``committed`` is the byte offset up to which the
    content is final. Who reads that part while `rewind` may run holds ``guard``.

    Raises:
        InUse: another process writes this journal.
        UserError: the folder cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.guard = threading.Lock()
        self._lock = lock_of(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115
        except Timeout:
            raise InUse(
                f"{path.parent} is in use: another process trains this run; wait for it or stop it"
            ) from None
        except OSError as error:
            self._lock.release()
            raise UserError(f"cannot open the metric journal {path}: {error.strerror}") from None
        try:
            self._read_back()
        except BaseException:
            self.close()
            raise

    def _read_back(self) -> None:
        """Cut a torn tail, find the last commit and the values that are final."""
        self.committed = 0
        self._final: set[tuple[str, int]] = set()
        end = 0
        for record, after in read_records(self.path):
            end = after
            if record.settles:
                self._settle(end)
        self._cut(end)

    def _cut(self, offset: int) -> None:
        os.ftruncate(self._file.fileno(), offset)
        self._end = offset

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Note values at ``step`` with the present time. The process may die right after.

        A value whose key and step are already committed is the same one computed again after a
        resume (a test score after the last checkpoint): the first one stands.

        Raises:
            RunFailed: the disk is full or gone.
        """
        fresh = {k: float(v) for k, v in values.items() if (k, step) not in self._final}
        if fresh:
            self._append(step=int(step), time=_now(), values=fresh)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Note tags for the stored run."""
        self._append(tags=dict(tags))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Note a file for the stored run; it must stay where it is until it is shipped."""
        self._append(artifact=os.path.relpath(path, self.path.parent), folder=folder)

    def sync(self) -> None:
        """Force the content to the disk; call before the checkpoint of this step is renamed."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None

    def commit(self, step: int) -> None:
        """Declare everything so far final: the checkpoint of ``step`` is on disk."""
        self._append(commit=int(step))
        self._settle(self._end)

    def finish(self) -> None:
        """Declare everything final and the run finished now."""
        self._append(finished=_now())
        self.sync()
        self._settle(self._end)

    def _settle(self, end: int) -> None:
        for record, _ in read_records(self.path, self.committed, end):
            self._final.update((point.key, point.step) for point in record.points)
        self.committed = end

    def rewind(self, step: int) -> None:
        """Take back what was noted after the checkpoint of ``step``, before going on from it.

        That is everything after the last ``commit`` of ``step``. Where a crash came between
        checkpoint and commit, it is everything from the first value of a later step on. A run
        that starts anew at step 0 takes back everything, one that had finished nothing. The file
        is cut once: a crash leaves the old content or the new one.
        """
        with self.guard:
            cut = self._end_of(step)
            if cut < self._end:
                for run_id, offset in shipped_offsets(self.path).items():
                    note_shipped(self.path, run_id, min(offset, cut))
                self._cut(cut)
                self.sync()
            self._read_back()

    def _end_of(self, step: int) -> int:
        """Byte offset at which the content that the checkpoint of ``step`` covers ends."""
        committed = finished = later = None
        previous = 0
        for record, offset in read_records(self.path):
            if record.commit == step:
                committed = offset
            if record.finished is not None:
                finished = offset
            elif later is None and (record.step or record.commit or 0) > step:
                later = previous
            previous = offset
        if step == 0 and committed is None:
            return 0
        return next(end for end in (finished, committed, later, previous) if end is not None)

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        self._file.close()
        self._lock.release()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, **content: Any) -> None:
        line = Record(**content).model_dump_json(exclude_unset=True).encode() + b"\n"
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._cut(self._end)
            raise self._failed(error) from None
        self._end += len(line)

    def _failed(self, error: OSError) -> RunFailed:
        return RunFailed(
            f"cannot write the metric journal {self.path}: {error.strerror}; make room and run the"
            " same command again, it goes on from the last checkpoint"
        )


def lock_of(path: Path) -> FileLock:
    """What the process holds that works on the run of the journal at ``path``.

    To acquire it raises ``filelock.Timeout`` at once where another one has it.
    """
    return FileLock(path.with_name(path.name + ".lock"), timeout=0)


def read_records(
    path: Path, start: int = 0, stop: int | None = None
) -> Iterator[tuple[Record, int]]:
    """Yield each whole line of a journal as (record, offset after it), from byte ``start`` on.

    Ends before ``stop``, at a torn last line, or where the file does not exist.

    Raises:
        UserError: a line inside the file is not a journal line.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no plain file: move it away to start this run anew")
        file = path.open("rb")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    with file:
        file.seek(start)
        offset = start
        for line in file:
            if not line.endswith(b"\n") or (stop is not None and offset >= stop):
                return
            offset += len(line)
            try:
                record = Record.model_validate_json(line)
            except ValueError:
                raise UserError(
                    f"{path} is damaged before byte {offset}: move it away to start this run anew"
                ) from None
            yield record, offset


def last_step(path: Path) -> int:
    """The step of the last value in the journal at ``path``, without reading all of it; 0 if none.

    Other processes may ask while the run is at work.
    """
    if not path.is_file():
        return 0
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        with suppress(ValueError):  # a line that is cut or being written
            if (step := Record.model_validate_json(line).step) is not None:
                return step
    return 0


def committed_end(path: Path) -> int:
    """Byte offset up to which the journal at ``path`` is final; 0 where there is none."""
    return max((offset for record, offset in read_records(path) if record.settles), default=0)


def shipped_offsets(path: Path) -> dict[str, int]:
    """How far the journal at ``path`` has reached each stored run: {run id: byte offset}."""
    try:
        offsets = json.loads(_shipped_file(path).read_text())
        return {str(run_id): int(offset) for run_id, offset in offsets.items()}
    except (OSError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError):
        return {}  # unknown: everything is sent again, which the store does not hold twice


def note_shipped(path: Path, run_id: str, offset: int) -> None:
    """Remember how far the journal at ``path`` has reached the stored run ``run_id``."""
    offsets = shipped_offsets(path) | {run_id: offset}
    with unfinished(_shipped_file(path)) as fresh:
        fresh.write_text(json.dumps(offsets))
        os.replace(fresh, _shipped_file(path))


def _shipped_file(path: Path) -> Path:
    return path.with_name(path.name + ".shipped")


def _now() -> int:
    return time.time_ns() // 1_000_000
