"""Many processes and one store, some of them killed: every metric arrives, and arrives once.

Each worker is a training run in small, with the real `Store`, `Journal` and `Shipper`. What is
stored is read back past them: with MLflow's client and from the rows of its database.
"""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import pytest

from lovasz_repro.store import Point, Store, StoreError
from lovasz_repro.store.journal import (
    Journal,
    read_records,
    shipped_offsets,
)
from lovasz_repro.store.shipping import Shipper, ship_pending
from lovasz_repro.store.tracking import check_server
from lovasz_repro.store.transfer import export_runs, import_runs

PATIENCE = 180.0  # seconds that a test waits for anything before it fails
STEPS, COMMIT_EVERY, SCORE_EVERY = 90, 9, 10
HOLD = 63  # the step at which a worker can be made to wait; the one before it is committed

PRELOAD = ["mlflow.store.tracking.sqlalchemy_store", "pytest", "lovasz_repro.store.transfer"]
ACTIVE_RUNS = "SELECT count(*) FROM runs WHERE lifecycle_stage = 'active'"

Row = tuple[str, str, int, float]  # identity, metric, step, value

context = multiprocessing.get_context("forkserver")


# -- one training run in small ---------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One worker. Several names may share an identity, and so a run; each has its own journal."""

    results: Path
    name: str
    identity: str
    uri: str | None = None
    pace: float = 0.004  # seconds a step takes
    start: Any = None  # barrier before the run is opened
    hold: Path | None = None  # file to wait for at step HOLD
    impatient: bool = False  # give a locked database up after 50 ms, not MLflow's 20 s
    die: str = ""  # "inside" or "after" the fourth shipment

    @property
    def journal(self) -> Path:
        return self.results / "work" / self.name / "journal.jsonl"

    def metrics(self, step: int) -> dict[str, float]:
        values = {f"{self.name}/loss": 1 / (step + 1)}
        return values | ({f"{self.name}/score": step / 7} if step % SCORE_EVERY == 0 else {})

    def rows(self) -> list[Row]:
        """What the store must hold of this worker, and nothing else."""
        steps = [(self.identity, k, s, v) for s in range(STEPS) for k, v in self.metrics(s).items()]
        return [*steps, (self.identity, f"{self.name}/test", STEPS, 0.5)]

    def said(self) -> str:
        said = self.journal.with_name("said")
        return said.read_text() if said.exists() else ""


class DyingStore(Store):
    """Kills its process inside the transaction of the fourth shipment, or right after it."""

    die, shipments = "", 0

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        from sqlalchemy import Engine, event

        self.shipments += 1
        if self.shipments == 4 and self.die == "inside":
            event.listen(Engine, "commit", _kill_myself)
        super().log(run_id, points)
        if self.shipments == 4:
            _kill_myself()


def _kill_myself(*_: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def _shorten_lock_timeout() -> None:
    from sqlalchemy import Engine, event

    def shorten(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> Any:
        return statement.replace("busy_timeout = 20000", "busy_timeout = 50"), parameters

    event.listen(Engine, "before_cursor_execute", shorten, retval=True)


def work(job: Job) -> None:
    """Open the run, go on from the last checkpoint, log, commit, finish."""
    store = DyingStore(job.results, job.uri) if job.die else Store(job.results, job.uri)
    if isinstance(store, DyingStore):
        store.die = job.die
    if job.start:
        job.start.wait()
    params = {"lr": 0.1, "identity": job.identity}
    run_id = store.open_child("e", "all", job.identity, job.identity, params, {})
    if job.impatient:
        _shorten_lock_timeout()
    told, checkpoint = job.journal.with_name("said"), job.journal.with_name("checkpoint")
    with Journal(job.journal) as journal, open(told, "a", buffering=1) as said:
        first = int(checkpoint.read_text()) if checkpoint.exists() else 0
        journal.rewind(first)
        shipper = Shipper(
            store,
            run_id,
            journal,
            every=0.03,
            heartbeat=0.5,
            say=lambda line: print(line, file=said),
        )
        for step in range(first, STEPS):
            time.sleep(job.pace)
            journal.log(step, job.metrics(step))
            if job.hold and step == HOLD:
                until(job.hold.exists)
            if step % (COMMIT_EVERY * 3) == 0:
                note(journal, job, f"{job.name}-middle.txt")
            if (step + 1) % COMMIT_EVERY == 0:
                journal.sync()
                save(checkpoint, str(step + 1))
                journal.commit(step + 1)
        journal.log(STEPS, {f"{job.name}/test": 0.5})
        note(journal, job, f"{job.name}-end.txt")
        assert shipper.close("FINISHED", patience=PATIENCE)


def note(journal: Journal, job: Job, name: str) -> None:
    file = job.journal.with_name(name)
    save(file, job.name)
    journal.artifact(file, "files")


def save(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)


# -- starting, killing, waiting --------------------------------------------------------------------


def start(job: Job) -> BaseProcess:
    """A worker; what all of them need is imported once."""
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=work, args=(job,))
    process.start()
    return process


def kill(process: BaseProcess) -> None:
    """SIGKILL; the process must have been in the middle of its work."""
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL, process.name


def join(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0, process.name


def until(condition: Callable[[], object], processes: Sequence[BaseProcess] = ()) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert not any(process.exitcode for process in processes), processes
        assert time.monotonic() < deadline
        time.sleep(0.02)


def last_step(job: Job) -> int:
    return max((record.step or 0 for record, _ in read_records(job.journal)), default=0)


def has_shipped(job: Job) -> bool:
    return any(shipped_offsets(job.journal).values())


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join(PATIENCE)


# -- what must be in the store ---------------------------------------------------------------------


def select(database: Path, query: str) -> list[Any]:
    """Ask the database itself, past MLflow."""
    with contextlib.closing(sqlite3.connect(database, timeout=PATIENCE)) as connection:
        return connection.execute(query).fetchall()


def check(store: Store, jobs: Sequence[Job], database: Path) -> None:
    """Every run has exactly its points and files, is one and finished; nothing waits."""
    expected = sorted(row for job in jobs for row in job.rows())
    identities = sorted({job.identity for job in jobs})
    check_rows(database, expected, identities)
    runs = {run.identity: run for run in store.runs("e")}
    assert sorted(run.identity for run in store.runs()) == identities
    assert {run.status for run in runs.values()} == {"FINISHED"}
    assert all(run.params["identity"] == identity for identity, run in runs.items())
    assert sorted(client_rows(store, runs)) == expected
    for identity, run in runs.items():
        names = [job.name for job in jobs if job.identity == identity]
        files = {f"files/{name}-{part}.txt": name for name in names for part in ("middle", "end")}
        assert store.artifact_names(run.run_id) == sorted(files)
        for path, content in files.items():
            assert store.artifact(run.run_id, path).read_text() == content
    assert ship_pending(store, [job.journal for job in jobs], pytest.fail) == 0
    for job in jobs:
        size = job.journal.stat().st_size
        assert shipped_offsets(job.journal) == {runs[job.identity].run_id: size}


def check_rows(database: Path, expected: list[Row], identities: list[str]) -> None:
    of_identity = "JOIN tags t ON t.run_uuid = m.run_uuid AND t.key = 'identity'"
    found = select(database, f"SELECT t.value, m.key, step, m.value FROM metrics m {of_identity}")
    assert sorted(found) == expected
    assert select(database, "SELECT count(*) FROM metrics") == [(len(expected),)]
    latest = {(identity, key): (step, value) for identity, key, step, value in expected}
    found = select(
        database, f"SELECT t.value, m.key, step, m.value FROM latest_metrics m {of_identity}"
    )
    assert {(identity, key): (step, value) for identity, key, step, value in found} == latest
    assert select(database, ACTIVE_RUNS) == [(len(identities),)]
    assert select(database, "PRAGMA integrity_check") == [("ok",)]


def client_rows(store: Store, runs: dict[str, Any]) -> Iterator[Row]:
    """The raw history of every metric, as MLflow tells it."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=store.uri)
    for identity, run in runs.items():
        for key in client.get_run(run.run_id).data.metrics:
            for metric in client.get_metric_history(run.run_id, key):
                yield identity, metric.key, metric.step, metric.value


# -- one SQLite file -------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_kills_neither_lose_nor_double_a_metric(store: Store) -> None:
    """Six runs, two of them shared by two processes, that begin at the same moment; whoever is
    killed goes on where it was."""
    dice, gate, shared = (
        random.Random(0),
        context.Barrier(8, timeout=PATIENCE),
        {"g": "a", "h": "b"},
    )
    jobs = {name: Job(store.results, name, shared.get(name, name)) for name in "abcdefgh"}
    running = {name: start(replace(job, start=gate)) for name, job in jobs.items()}
    until(lambda: all(map(last_step, jobs.values())))  # nobody waits at the gate for the dead
    for _ in range(20):
        name, moment = dice.choice(list(jobs)), dice.randrange(STEPS)
        until(lambda: not running[name].is_alive() or last_step(jobs[name]) >= moment)  # noqa: B023
        running[name].kill()
        running[name].join(PATIENCE)
        running[name] = start(jobs[name])
    join(list(running.values()))
    check(store, list(jobs.values()), store.results / "mlflow.db")


def test_machines_without_a_common_lock_open_one_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one looked before us and creates the runs after us, but began earlier."""
    monkeypatch.chdir(tmp_path)  # MLflow makes folders of a path that it takes the URI for
    uri = f"sqlite:///file:{store.results.as_posix()}/mlflow.db?uri=true"
    ours = Store(tmp_path / "machine", uri)
    real, theirs = ours._client.create_run, list[str]()

    def create(experiment_id: str, start: int | None, tags: dict[str, str], name: str) -> Any:
        made = real(experiment_id, start, tags, name)
        arrives = partial(real, experiment_id, made.info.start_time - 100, tags, name)
        monkeypatch.setattr(time, "sleep", lambda _: theirs.append(arrives().info.run_id))
        return made

    monkeypatch.setattr(ours._client, "create_run", create)
    run_id = ours.open_child("e", None, "run", "id", {}, {})
    assert theirs == [run_id]
    assert [run.run_id for run in ours.runs()] == [run_id]
    assert select(store.results / "mlflow.db", ACTIVE_RUNS) == [(1,)]


def test_a_server_that_made_a_run_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first answer was lost and MLflow's client asked again."""
    real = store._client.create_run

    def twice(*arguments: Any) -> Any:
        experiment_id, _, *rest = arguments
        real(experiment_id, 1000, *rest)
        return real(experiment_id, 1000, *rest)

    monkeypatch.setattr(store._client, "create_run", twice)
    for number in range(5):  # which of the twins stands is chance
        run_id = store.open_child("e", None, "run", f"id-{number}", {}, {})
        assert run_id == store.open_child("e", None, "run", f"id-{number}", {}, {})
    assert select(store.results / "mlflow.db", ACTIVE_RUNS) == [(5,)]


@pytest.mark.parametrize("moment", [pytest.param("inside", marks=pytest.mark.slow), "after"])
def test_killed_inside_a_transaction_or_before_it_is_noted(store: Store, moment: str) -> None:
    """The database rolls back what was half written; what is sent twice is stored once."""
    jobs = [Job(store.results, name, "one") for name in "ab"]
    never = store.results / "never"
    victim, other = start(replace(jobs[0], die=moment, hold=never)), start(jobs[1])
    victim.join(PATIENCE)
    assert victim.exitcode == -signal.SIGKILL
    join([start(jobs[0]), other])
    check(store, jobs, store.results / "mlflow.db")


@pytest.mark.slow
def test_a_database_that_stays_locked_for_a_while(store: Store, tmp_path: Path) -> None:
    """All of the last part is logged while no write succeeds, and one process is killed."""
    database, go_on = store.results / "mlflow.db", tmp_path / "go-on"
    jobs = [Job(store.results, name, name, hold=go_on, impatient=True) for name in "abc"]
    late = Job(store.results, "d", "d")
    processes = [start(job) for job in jobs]
    until(lambda: all(has_shipped(job) for job in jobs), processes)
    holder = sqlite3.connect(database, isolation_level=None, timeout=PATIENCE)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        until(lambda: all("locked" in job.said() for job in jobs), processes)
        until(lambda: all(last_step(job) == HOLD for job in jobs), processes)
        kill(processes.pop())
        go_on.touch()
        until(lambda: all(last_step(job) == STEPS for job in jobs[:2]), processes)
        processes += [start(replace(jobs[2], impatient=False)), start(late)]
    finally:
        holder.close()
    join(processes)
    check(store, [*jobs, late], database)


# -- one MLflow server -----------------------------------------------------------------------------


class Server:
    """An `mlflow server` on a free port, with a database beside its artifacts."""

    def __init__(self, folder: Path, database: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.database = folder, database
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database.as_posix()}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        log = self.folder / "log"
        with log.open("ab") as to:
            process = subprocess.Popen(command, stdout=to, stderr=to, start_new_session=True)
        self.process = process

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                check_server(self.uri)
            except StoreError:
                return False
            return True

        until(answers)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
            self.process = None


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "served"
    folder.mkdir()
    running = Server(folder, folder / "mlflow.db")
    shutil.copy(empty_database, running.database)
    try:
        running.start()
        yield running
    finally:
        running.kill()


@pytest.mark.slow
def test_a_server_that_is_killed_and_started_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes on two machines log to it, two of them to one run.

    It is killed in full swing, one process soon after; the others log their last part and end
    while there is no server.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    gate, go_on = context.Barrier(3, timeout=PATIENCE), tmp_path / "go-on"
    store = Store(tmp_path / "machine-1", server.uri)
    store.runs("e")
    template = Job(store.results, "a", "one", uri=server.uri, pace=0.05, hold=go_on)
    elsewhere = replace(template, results=tmp_path / "machine-2", name="c", identity="two")
    jobs = [template, replace(template, name="b"), elsewhere]
    processes = [start(replace(job, start=gate)) for job in jobs]
    until(lambda: all(has_shipped(job) for job in jobs), processes)
    server.kill()
    until(lambda: all("does not answer" in job.said() for job in jobs), processes)
    until(lambda: all(last_step(job) == HOLD for job in jobs), processes)
    kill(processes.pop())
    go_on.touch()
    until(lambda: all(last_step(job) == STEPS for job in jobs[:2]), processes)
    server.start()
    join([*processes, start(jobs[2])])
    assert all("the store is back" in job.said() for job in jobs[:2])
    check(store, jobs, server.database)


@pytest.mark.slow
def test_a_real_server_holds_runs_and_may_hang_for_a_while(
    server: Server,
    make_store: Callable[..., Store],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert server.process
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    store = Store(tmp_path / "results", server.uri)
    run_id = store.open_child("e", None, "run", "id", {"a": 1}, {"b": "c"})
    assert store.open_child("e", None, "run", "id", {"a": 1}, {"b": "c"}) == run_id
    said: list[str] = []
    with Journal(tmp_path / "work" / "journal.jsonl") as journal:
        shipper = Shipper(store, run_id, journal, every=0.1, say=said.append)
        journal.log(1, {"loss": 0.5})
        journal.commit(1)
        until(lambda: store.history(run_id, "loss"))
        os.killpg(server.process.pid, signal.SIGSTOP)
        for step in range(2, 3000):
            journal.log(step, {"loss": 1 / step})
        journal.commit(3000)
        until(lambda: said)
        os.killpg(server.process.pid, signal.SIGCONT)
        assert shipper.close("FINISHED", patience=60)
    expected = [(1, 0.5)] + [(step, 1 / step) for step in range(2, 3000)]
    assert store.history(run_id, "loss") == expected
    assert len(store.points(run_id)) == 2999
    (tmp_path / "a.txt").write_text("x")
    store.add_artifact(run_id, tmp_path / "a.txt", "sub")
    assert store.artifact_names(run_id) == ["sub/a.txt"]
    assert store.artifact(run_id, "sub/a.txt").read_text() == "x"
    with pytest.raises(StoreError, match="no artifact"):
        store.artifact(run_id, "sub/b.txt")
    assert export_runs(store, tmp_path / "out") == 1
    local = make_store("local")
    assert import_runs(local, tmp_path / "out").added == ["e/run"]
    assert local.history(local.runs()[0].run_id, "loss") == expected
    store.log(run_id, [Point("loss", float("inf"), 5000, 1)])
    assert store.runs()[0].tags["nonfinite/loss"] == "inf at step 5000"
    assert store.get("0" * 32) is None
