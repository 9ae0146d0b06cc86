"""Shipping: whatever dies or fails in between, the store ends with each committed point once."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from lovasz_repro.store import Store
from lovasz_repro.store.journal import Journal, Point, shipped_offsets
from lovasz_repro.store.mlflow_store import MAX_BATCH
from lovasz_repro.store.shipping import Shipper, ship, ship_pending
from lovasz_repro.store.tracking import StoreError

SOON = 0.01  # seconds between two shipments in these tests


class Memory:
    """A store in memory that fails on demand, before or after it has taken the points."""

    def __init__(self) -> None:
        self.calls: list[list[Point]] = []
        self.tags: dict[str, str] = {}
        self.files: list[tuple[str, str | None]] = []
        self.closed: list[tuple[str, float | None]] = []
        self.down = False
        self.answers_lost = 0
        self.gate = threading.Event()
        self.gate.set()

    @property
    def points(self) -> list[Point]:
        return [point for call in self.calls for point in call]

    def _reach(self) -> None:
        self.gate.wait()
        if self.down:
            raise StoreError("store memory: locked by another process")

    def get(self, run_id: str) -> str | None:
        self._reach()
        return run_id if run_id == "run" else None

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        self._reach()
        self.calls.append(list(points))
        if self.answers_lost:
            self.answers_lost -= 1
            raise TimeoutError("the answer was lost")

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._reach()
        self.tags |= tags

    def add_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        self._reach()
        self.files.append((path.read_text(), folder))

    def close(self, run_id: str, status: str, ended: float | None = None) -> None:
        self._reach()
        self.closed.append((status, ended))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "work" / "journal.jsonl") as opened:
        yield opened


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def log_steps(journal: Journal, steps: Sequence[int]) -> list[tuple[str, int]]:
    for step in steps:
        journal.log(step, {"loss": 1.0, "lr": 0.1})
    return [(key, step) for step in steps for key in ("loss", "lr")]


def sent(memory: Memory) -> list[tuple[str, int]]:
    return [(point.key, point.step) for point in memory.points]


# -- in memory -----------------------------------------------------------------------------------


def test_ships_in_the_background_what_is_committed(journal: Journal) -> None:
    memory = Memory()
    shipper = Shipper(memory, "run", journal, every=SOON)
    first = log_steps(journal, range(5))
    journal.commit(4)
    until(lambda: memory.points)
    second = log_steps(journal, range(5, 8))
    assert sent(memory) == first
    assert shipper.close("FINISHED")
    assert sent(memory) == first + second
    [(status, ended)] = memory.closed
    assert status == "FINISHED"
    assert ended == pytest.approx(time.time(), abs=60)


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_an_unfinished_run_keeps_to_its_checkpoint(journal: Journal, status: str) -> None:
    memory = Memory()
    shipper = Shipper(memory, "run", journal, every=SOON)
    first = log_steps(journal, range(5))
    journal.commit(4)
    log_steps(journal, range(5, 8))
    assert shipper.close(status)
    assert sent(memory) == first
    assert memory.closed == [(status, None)]


def test_batches_are_as_large_as_mlflow_takes_and_no_larger(journal: Journal) -> None:
    memory = Memory()
    for step in range(1000):
        journal.log(step, {f"m{i}": 0.0 for i in range(7)})
        if step % 10 == 0:
            journal.commit(step)  # a commit does not end a batch
    journal.commit(999)
    assert ship(memory, "run", journal.path, journal.committed) == 7000
    assert len(memory.points) == 7000
    sizes = [len(call) for call in memory.calls]
    assert max(sizes) <= MAX_BATCH
    assert min(sizes[:-1]) > MAX_BATCH - 7


def test_training_does_not_wait_for_a_store_that_hangs(journal: Journal) -> None:
    memory = Memory()
    memory.gate.clear()
    shipper = Shipper(memory, "run", journal, every=SOON)
    logged = log_steps(journal, range(3))
    journal.commit(2)
    until(lambda: shipper._journal.guard.locked())  # the thread hangs in the store
    logged += log_steps(journal, range(3, 500))  # and training goes on
    journal.commit(499)
    assert memory.points == []
    memory.gate.set()
    assert shipper.close()
    assert sent(memory) == logged


def test_a_store_that_is_away_for_a_while_loses_nothing(journal: Journal) -> None:
    memory, said = Memory(), list[str]()
    memory.down = True
    shipper = Shipper(memory, "run", journal, every=SOON, say=said.append)
    logged = log_steps(journal, range(5))
    journal.commit(4)
    until(lambda: said)
    logged += log_steps(journal, range(5, 10))
    journal.commit(9)
    memory.down = False
    until(lambda: len(said) == 2)
    assert shipper.close("FINISHED")
    assert sent(memory) == logged
    assert "locked by another process" in said[0]
    assert str(journal.path) in said[0]
    assert said[1:] == ["the store is back and has every metric"]


def test_a_store_that_stays_away_gets_everything_from_the_next_process(journal: Journal) -> None:
    memory, said = Memory(), list[str]()
    memory.down = True
    shipper = Shipper(memory, "run", journal, every=3600, say=said.append)
    logged = log_steps(journal, range(5))
    ended = time.time()
    assert not shipper.close("FINISHED", patience=0)
    [line] = said
    assert str(journal.path) in line
    assert "`lovasz-repro run` sends it" in line
    assert "\n" not in line
    journal.close()

    assert ship_pending(memory, [journal.path], said.append) == 0  # still away
    assert len(said) == 2
    memory.down = False
    assert ship_pending(memory, [journal.path], said.append) == len(logged)
    assert sent(memory) == logged
    [(status, when)] = memory.closed
    assert status == "FINISHED"
    assert when == pytest.approx(ended, abs=60)
    assert ship_pending(memory, [journal.path]) == 0  # and only once
    assert len(memory.closed) == 1


def test_pending_passes_over_running_runs_other_stores_and_damage(journal: Journal) -> None:
    memory, said = Memory(), list[str]()
    Shipper(memory, "elsewhere", journal, every=3600).close()
    log_steps(journal, range(5))
    journal.commit(4)
    memory.down = True
    assert ship_pending(memory, [journal.path], said.append) == 0  # open: trains right now
    memory.down = False
    journal.close()
    assert ship_pending(memory, [journal.path], said.append) == 0  # of another store
    assert said == []
    journal.path.write_text("nonsense\n")
    assert ship_pending(memory, [journal.path], said.append) == 0
    assert "damaged" in said[0]


def test_a_lost_answer_sends_the_same_points_again_not_others(journal: Journal) -> None:
    memory = Memory()
    memory.answers_lost = 1
    shipper = Shipper(memory, "run", journal, every=SOON, say=lambda line: None)
    log_steps(journal, range(5))
    journal.commit(4)
    assert shipper.close(patience=60)
    assert memory.calls[0] == memory.calls[1]  # to the millisecond, so the store keeps one
    assert len(memory.calls) == 2


def test_the_heartbeat_beats_without_metrics(journal: Journal) -> None:
    memory = Memory()
    shipper = Shipper(memory, "run", journal, every=SOON, heartbeat=0.0)
    until(lambda: "heartbeat" in memory.tags)
    assert float(memory.tags.pop("heartbeat")) == pytest.approx(time.time(), abs=60)
    until(lambda: "heartbeat" in memory.tags)
    shipper.close()


def test_tags_and_files_travel_too_in_order(journal: Journal) -> None:
    memory, said = Memory(), list[str]()
    folder = journal.path.parent
    for name in ("kept.csv", "gone.csv"):
        (folder / name).write_text(name)
        journal.artifact(folder / name, "plots")
    (folder / "gone.csv").unlink()
    journal.tag({"best": "1"})
    journal.tag({"best": "2"})
    journal.commit(0)
    ship(memory, "run", journal.path, journal.committed, said.append)
    assert memory.files == [("kept.csv", "plots")]
    assert memory.tags == {"best": "2"}
    assert "gone.csv is gone" in said[0]


# -- a real store ----------------------------------------------------------------------------------


def test_a_locked_database_is_waited_for(store: Store, tmp_path: Path) -> None:
    """Another process holds the file while training goes on and ends."""
    run_id = store.open_child("e", None, "run", "id", {}, {})
    other = sqlite3.connect(store.results / "mlflow.db", isolation_level=None)
    with Journal(tmp_path / "journal.jsonl") as journal:
        shipper = Shipper(store, run_id, journal, every=SOON)
        other.execute("BEGIN EXCLUSIVE")
        for step in range(100):
            journal.log(step, {"loss": float(step)})
        journal.commit(99)
        assert shipped_offsets(journal.path) == {run_id: 0}
        other.execute("ROLLBACK")
        other.close()
        assert shipper.close("FINISHED")
    assert store.history(run_id, "loss") == [(step, float(step)) for step in range(100)]


def test_what_arrived_is_known_per_run_so_a_new_store_gets_it_all(
    make_store: Callable[..., Store], tmp_path: Path
) -> None:
    """The database was deleted between two processes: the journal fills the new one."""
    with Journal(tmp_path / "journal.jsonl") as journal:
        for store in (make_store("first"), make_store("second")):
            run_id = store.open_child("e", None, "run", "id", {}, {})
            shipper = Shipper(store, run_id, journal, every=3600)
            journal.log(1, {"loss": 0.5})
            journal.commit(1)
            assert shipper.close()
            assert store.history(run_id, "loss") == [(1, 0.5)]
