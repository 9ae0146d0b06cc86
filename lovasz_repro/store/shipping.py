"""Brings a run's journal into the store, in the background, without ever holding training up.

The shipper sends committed journal lines in batches and notes how far it came. A store that is
locked, full or away for a while costs nothing: the journal keeps everything, and what has not
arrived is sent later, by this process or by `ship_pending` in the next one. Sending a batch twice
is harmless, because a point carries the time at which it was first logged and the store holds
each (key, step, time, value) once.
"""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import Timeout

from lovasz_repro.config.read import below
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.output import to_stderr
from lovasz_repro.store.journal import (
    Journal,
    Point,
    Record,
    committed_end,
    lock_of,
    note_shipped,
    read_records,
    shipped_offsets,
)
from lovasz_repro.store.mlflow_store import MAX_BATCH, Store
from lovasz_repro.store.stored import HEARTBEAT


class Shipper:
    """Ships ``journal`` to the run ``run_id`` of ``store`` every ``every`` seconds.

    ``say`` receives one line when the store fails, one when it is back, and one at the end if
    something is left. The run's heartbeat tag is renewed every ``heartbeat`` seconds.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        journal: Journal,
        *,
        every: float = 5.0,
        heartbeat: float = 30.0,
        say: Callable[[str], None] = to_stderr,
    ):
        self._store, self._run_id, self._journal = store, run_id, journal
        self._every, self._heartbeat, self._say = every, heartbeat, say
        self._next_beat = 0.0
        self._failure: Exception | None = None
        self._stop = threading.Event()
        try:
            note_shipped(journal.path, run_id, shipped_offsets(journal.path).get(run_id, 0))
        except OSError as error:
            raise RunFailed(
                f"cannot write beside {journal.path}: {error.strerror}; make room and run again"
            ) from None
        self._thread = threading.Thread(target=self._work, name="ship-metrics", daemon=True)
        self._thread.start()

    def close(self, status: str | None = None, *, patience: float = 10.0) -> bool:
        """Stop; send what is committed; end the run as ``status`` (MLflow's names) if given.

        FINISHED makes everything in the journal final; after another status the values since
        the last checkpoint stay in the journal only, since the resumed run computes them again.
        Returns whether the store has it all. If not, after ``patience`` seconds, one line says
        where the metrics lie and how they get in.
        """
        if status == "FINISHED":
            self._journal.finish()
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + patience
        while not self._attempt(status):
            if time.monotonic() >= deadline:
                self._say(
                    f"not everything reached the store ({self._failure}); it is safe in"
                    f" {self._journal.path} and the next `lovasz-repro run` sends it"
                )
                return False
            time.sleep(min(1.0, patience))
        return True

    def _work(self) -> None:
        wait = self._every
        while not self._stop.wait(wait):
            wait = self._every if self._attempt() else min(2 * wait, 60.0)

    def _attempt(self, status: str | None = None) -> bool:
        try:
            with self._journal.guard:
                stop = self._journal.committed
                ship(self._store, self._run_id, self._journal.path, stop, self._say)
            if not self._stop.is_set():
                self._beat()
            elif status not in (None, "FINISHED"):  # `ship` ends a finished run
                self._store.close(self._run_id, str(status))
        except Exception as error:  # training must not die of its log
            if self._failure is None and not self._stop.is_set():
                self._say(f"the store fails ({error}); metrics wait in {self._journal.path}")
            self._failure = error
            return False
        if self._failure is not None:
            self._say("the store is back and has every metric")
            self._failure = None
        return True

    def _beat(self) -> None:
        if time.monotonic() >= self._next_beat:
            self._store.set_tags(self._run_id, {HEARTBEAT: str(int(time.time()))})
            self._next_beat = time.monotonic() + self._heartbeat


def ship(
    store: Store,
    run_id: str,
    journal: Path,
    stop: int,
    say: Callable[[str], None] = to_stderr,
) -> int:
    """Send what of ``journal``, up to byte ``stop``, has not reached ``run_id`` yet.

    Returns the number of points sent. Raises what the store raises; the rest is then sent by
    the next call.
    """
    offset = shipped_offsets(journal).get(run_id, 0)
    sent, batch = 0, list[Point]()

    def flush() -> None:
        nonlocal sent
        if batch:
            store.log(run_id, batch)
            note_shipped(journal, run_id, offset)
            sent += len(batch)
            batch.clear()

    for record, after in read_records(journal, offset, stop):
        points = record.points
        if len(batch) + len(points) > MAX_BATCH:
            flush()
        batch += points
        if not points and record.commit is None:
            flush()
            _ship_other(store, run_id, journal, record, say)
        offset = after
    flush()
    if offset > shipped_offsets(journal).get(run_id, 0):
        note_shipped(journal, run_id, offset)
    return sent


def _ship_other(
    store: Store, run_id: str, journal: Path, record: Record, say: Callable[[str], None]
) -> None:
    """Tags, files and the end of the run."""
    if record.artifact is not None:
        path = below(journal.parent, record.artifact)
        if path.is_file() and not path.is_symlink():
            store.add_artifact(run_id, path, record.folder)
        else:
            say(f"{path} is gone before it reached the store; run {run_id} lacks it")
    elif record.finished is not None:
        store.close(run_id, "FINISHED", record.finished / 1000)
    elif record.tags:
        store.set_tags(run_id, record.tags)


def ship_pending(
    store: Store, journals: Iterable[Path], say: Callable[[str], None] = to_stderr
) -> int:
    """Send what earlier processes could not; call before deciding what is left to run.

    Journals of runs that train right now or that live in another store are passed over.
    Returns the number of points sent.
    """
    sent = 0
    for journal in journals:
        try:
            with lock_of(journal):
                stop = committed_end(journal)
                for run_id, offset in shipped_offsets(journal).items():
                    if offset < stop and store.get(run_id):
                        sent += ship(store, run_id, journal, stop, say)
        except Timeout:
            continue
        except UserError as error:
            say(str(error))
        except OSError as error:
            say(f"{journal} cannot be sent: {error.strerror or error}")
    return sent
