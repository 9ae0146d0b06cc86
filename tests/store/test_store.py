"""The store against MLflow's own database: what was put in is there, once, and can be found."""

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import lovasz_repro
from lovasz_repro.errors import UserError
from lovasz_repro.store import Store, StoredRun, StoreError, is_stale, mlflow_store, shown_status
from lovasz_repro.store.journal import Point
from lovasz_repro.store.mlflow_store import _make_database

MakeStore = Callable[..., Store]


def rows(results: Path, query: str) -> list[tuple[object, ...]]:
    """Ask the database itself, past MLflow."""
    with contextlib.closing(sqlite3.connect(results / "mlflow.db")) as database:
        return database.execute(query).fetchall()


def get(store: Store, run_id: str) -> StoredRun:
    run = store.get(run_id)
    assert run is not None
    return run


def child(store: Store, identity: str = "id1", **tags: str) -> str:
    name = f"run-{identity}"
    return store.open_child("synthetic", "synthetic-paper", name, identity, {"lr": 0.1}, tags)


# -- runs ----------------------------------------------------------------------------------------


def test_a_run_comes_back_as_it_was_stored(store: Store) -> None:
    before = time.time()
    group = "synthetic-paper"
    params = {"training.batch_size": 10, "loss": "lovasz-softmax"}
    run_id = store.open_child("synthetic", group, "a-b10-s0", "id1", params, {"seed": "0"})
    store.log(run_id, [Point("loss", 0.5, 1, 1000), Point("loss", 0.25, 2, 2000)])
    [run] = store.runs("synthetic")
    expected = (run_id, "synthetic", "a-b10-s0", group)
    assert (run.run_id, run.experiment, run.name, run.group) == expected
    assert run.params == {"training.batch_size": "10", "loss": "lovasz-softmax"}
    assert run.metrics == {"loss": 0.25}
    assert (run.tags["seed"], run.identity, run.status, run.ended) == ("0", "id1", "RUNNING", None)
    assert before - 1 < run.started < time.time() + 1
    store.close(run_id, "FINISHED")
    found = get(store, run_id)
    assert found == store.find("synthetic", "id1")
    assert (found.status, found.ended is None) == ("FINISHED", False)
    assert found.started <= (found.ended or 0) < time.time() + 1


def test_opening_again_finds_the_same_runs(store: Store) -> None:
    first, second = child(store), child(store)
    store.close(first, "FAILED")
    third = child(Store(store.results))
    assert first == second == third
    assert [run.status for run in store.runs()] == ["RUNNING"]
    assert child(store, "id2") != first
    assert rows(store.results, "SELECT count(*) FROM runs") == [(2,)]


def test_resuming_with_other_settings_hides_nothing(store: Store) -> None:
    def opened(commit: str, lr: float) -> StoredRun:
        params = {"lr": lr, f"new-{lr}": 1}
        return get(store, store.open_child("e", None, "run", "id1", params, {"commit": commit}))

    assert opened("aaa", 0.1).params == {"lr": "0.1", "new-0.1": "1"}
    opened("bbb", 0.2)
    run = opened("ccc", 0.2)
    assert run.params == {"lr": "0.1", "new-0.1": "1", "new-0.2": "1"}
    assert (run.tags["commit"], run.tags["previous/commit"]) == ("ccc", "aaa, bbb")
    assert run.tags["changed/lr"] == "0.2"


def test_runs_are_the_tools_alone_newest_first(store: Store) -> None:
    old = store.open_child("a", None, "old", "1", {}, {}, started=1000.0)
    new = store.open_child("b", None, "new", "2", {}, {}, started=2000.0)
    experiment = store._client.get_experiment_by_name("a").experiment_id
    store._client.create_run(experiment, 3_000_000, {"role": "parent"}, "of-an-earlier-version")
    assert [run.run_id for run in store.runs()] == [new, old]
    assert [run.run_id for run in store.runs("a")] == [old]
    assert store.runs("nothing") == []
    assert store.find("nothing", "1") is None
    assert store.find("a", "2") is None
    assert store.get("0" * 32) is None
    store._client.delete_run(old)
    assert store.runs("a") == []
    assert store.get(old) is None


def test_more_runs_than_a_page(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        store.open_child("e", None, "run", f"id{number}", {}, {}, started=1000.0 + number)
    real = store._client.search_runs
    monkeypatch.setattr(
        store._client, "search_runs", lambda *a, **k: real(*a, **{**k, "max_results": 3})
    )
    assert [run.identity for run in store.runs()] == [f"id{n}" for n in reversed(range(7))]


def test_many_params_and_tags_and_long_values(store: Store) -> None:
    params = {f"p{n}": n for n in range(250)}
    tags = {f"t{n}": str(n) for n in range(250)}
    run = get(store, store.open_child("e", None, "run", "id1", params, tags))
    assert run.params == {key: str(value) for key, value in params.items()}
    assert tags.items() <= run.tags.items()
    with pytest.raises(StoreError, match="exceeds"):  # rather than cut short in silence
        store.set_tags(run.run_id, {"long": "x" * 10_000})


@pytest.mark.parametrize("name", ["", "../up", "a/b", "a'b", ".hidden", "x" * 600])
def test_names_that_cannot_be(store: Store, name: str) -> None:
    with pytest.raises(UserError):
        store.open_child(name, None, "run", "id1", {}, {})
    if len(name) < 500 and name not in (".hidden",):
        with pytest.raises(UserError):
            store.open_child("e", None, "run", name, {}, {})


# -- metrics -------------------------------------------------------------------------------------


def test_history_is_by_step_and_the_latest_value_of_a_step_counts(store: Store) -> None:
    run_id = child(store)
    store.log(run_id, [Point("m", float(s), s, 10 * s) for s in (3, 1, 2)])
    store.log(run_id, [Point("m", 9.0, 2, 5000), Point("m", 8.0, 2, 4000)])
    assert store.history(run_id, "m") == [(1, 1.0), (2, 9.0), (3, 3.0)]
    assert store.history(run_id, "unknown") == []
    floats = [0.1, 1 / 3, 1e-300, 1e100, -0.25, 5e-324, 123456789.123456789]  # to the last bit
    store.log(run_id, [Point("floats", value, step, 1) for step, value in enumerate(floats)])
    assert [value for _, value in store.history(run_id, "floats")] == floats
    assert store.points(run_id) == [
        *(Point("floats", value, step, 1) for step, value in enumerate(floats)),
        Point("m", 1.0, 1, 10),
        Point("m", 9.0, 2, 5000),
        Point("m", 3.0, 3, 30),
    ]


def test_the_same_points_sent_twice_are_stored_once(store: Store) -> None:
    """What a retry after a lost answer does; NaN and repeated keys included."""
    run_id = child(store)
    points = [Point("m", 0.1 * s, s, 1000 + s) for s in range(1500)]
    points += [Point("nan", math.nan, 1, 1), Point("inf", math.inf, 1, 1)]
    store.log(run_id, points)
    store.log(run_id, [*points[700:], Point("m", 7.0, 1500, 9999)])
    assert rows(store.results, "SELECT count(*) FROM metrics") == [(1503,)]
    assert store.history(run_id, "m") == [(s, 0.1 * s) for s in range(1500)] + [(1500, 7.0)]


def test_infinity_is_told_not_turned_into_a_number(store: Store) -> None:
    run_id = child(store)
    store.log(run_id, [Point("loss", 1.0, 1, 1), Point("loss", -math.inf, 2, 2)])
    store.log(run_id, [Point("loss", math.inf, 3, 3)])
    assert [math.isnan(value) for _, value in store.history(run_id, "loss")] == [False, True, True]
    run = get(store, run_id)
    assert run.tags["nonfinite/loss"] == "-inf at step 2"
    assert math.isnan(run.metrics["loss"])


# -- artifacts -----------------------------------------------------------------------------------


def test_artifacts_are_copied_replaced_and_listed(store: Store, tmp_path: Path) -> None:
    run_id = child(store)
    file = tmp_path / "curves.csv"
    file.write_text("one")
    store.add_artifact(run_id, file)
    store.add_artifact(run_id, file, "plots/deep")
    file.write_text("two")
    store.add_artifact(run_id, file)
    assert store.artifact(run_id, "curves.csv").read_text() == "two"
    assert store.artifact(run_id, "plots/deep/curves.csv").read_text() == "one"
    assert store.artifact_names(run_id) == ["curves.csv", "plots/deep/curves.csv"]
    told = store._client.list_artifacts(run_id, "plots/deep")  # MLflow finds them too
    assert [entry.path for entry in told] == ["plots/deep/curves.csv"]
    with pytest.raises(StoreError, match=r"no artifact missing\.csv"):
        store.artifact(run_id, "missing.csv")


@pytest.mark.parametrize("path", ["../../mlflow.db", "/etc/hosts", "a/../../b", "a\\..\\b", "C:x"])
def test_artifacts_stay_inside_their_run(store: Store, path: str) -> None:
    run_id = child(store)
    with pytest.raises(UserError, match="no path inside"):
        store.artifact(run_id, path)
    with pytest.raises(UserError, match="no path inside"):
        store.add_artifact(run_id, Path(__file__), path)


def test_a_moved_results_folder_still_has_its_files(store: Store, tmp_path: Path) -> None:
    run_id = child(store)
    (tmp_path / "a.txt").write_text("x")
    store.add_artifact(run_id, tmp_path / "a.txt")
    moved = store.results.rename(tmp_path / "else where")
    again = Store(moved)
    assert again.artifact(run_id, "a.txt") == moved.joinpath(
        "artifacts", "synthetic", run_id, "artifacts", "a.txt"
    )
    again.add_artifact(run_id, tmp_path / "a.txt", "later")
    assert again.artifact(run_id, "later/a.txt").read_text() == "x"
    assert not store.results.exists()


def test_another_database_than_the_default(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database elsewhere: files still go below results, and are found from other folders."""
    run_id = child(store)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    other = Store(tmp_path / "other")
    assert [run.run_id for run in other.runs()] == [run_id]
    (tmp_path / "a.txt").write_text("x")
    other.add_artifact(run_id, tmp_path / "a.txt", "sub")
    assert other.artifact_names(run_id) == ["sub/a.txt"]
    assert other.artifact(run_id, "sub/a.txt").read_text() == "x"
    assert store.artifact(run_id, "sub/a.txt").read_text() == "x"
    with pytest.raises(StoreError, match="no artifact"):
        other.artifact(run_id, "missing.txt")
    given = Store(tmp_path / "other", f"sqlite:///{tmp_path.as_posix()}/third.db")
    assert given.runs() == []  # the argument goes before the environment


# -- living and dead runs ------------------------------------------------------------------------


def run_with(status: str, started: float, beat: float | None) -> StoredRun:
    tags = {} if beat is None else {"heartbeat": str(beat)}
    return StoredRun("r", "e", "n", status, None, started, None, {}, tags, {})


def test_a_running_run_without_heartbeat_is_stale() -> None:
    now = 10_000.0
    assert is_stale(run_with("RUNNING", now - 1000, None), now)
    assert is_stale(run_with("RUNNING", now - 1000, now - 200), now)
    assert not is_stale(run_with("RUNNING", now - 1000, now - 100), now)
    assert not is_stale(run_with("RUNNING", now - 10, None), now)
    assert not is_stale(run_with("FINISHED", now - 1000, now - 200), now)
    assert shown_status(run_with("RUNNING", 0, 0), now) == "STALE"
    assert shown_status(run_with("KILLED", 0, 0), now) == "STOPPED"


def test_an_opened_run_is_alive_also_when_it_began_long_ago(store: Store) -> None:
    store.open_child("e", None, "n", "id", {}, {}, started=1000.0)
    assert is_stale(store.runs()[0])
    store.open_child("e", None, "n", "id", {}, {})
    assert not is_stale(store.runs()[0])


# -- stores that are not as they should be -------------------------------------------------------


def refused(act: Callable[[], object]) -> str:
    """The one line of a store that fails."""
    with pytest.raises(StoreError) as caught:
        act()
    text = str(caught.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_of_two_processes_at_once_one_makes_the_store_and_one_trains_the_run(
    tmp_path: Path,
) -> None:
    """Reading makes nothing. The first write makes a whole store, with MLflow silent and without
    telemetry; nothing beside it is left over."""
    results = tmp_path / "re sults#1"
    code = f"""if True:
        import os, sys
        from pathlib import Path
        from lovasz_repro.store import Store
        from lovasz_repro.store.journal import InUse, Journal
        store = Store(Path({str(results)!r}))
        assert store.runs() == [] and store.find("a", "b") is None and store.get("c") is None
        assert "mlflow" not in sys.modules
        assert not store.results.exists()
        print("ready", flush=True)
        input()
        run_id = store.open_child("e", None, "run", "id", {{}}, {{}})
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        try:
            journal = Journal(store.results / "journal.jsonl")
            print(run_id, "trains", flush=True)
        except InUse:
            print(run_id, "refused", flush=True)
        input()
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    environment["PYTHONPATH"] = str(Path(lovasz_repro.__file__).parents[1])
    pipe: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True, **pipe
        )
        for _ in range(2)
    ]
    said = list[list[str]]()
    for _ in range(2):
        said.append([process.stdout.readline() for process in both if process.stdout])
        for process in both:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
    assert [process.communicate(timeout=60) for process in both] == [("", "")] * 2
    assert said[0] == ["ready\n"] * 2
    [run] = Store(results, f"sqlite:///{results.as_posix()}/mlflow.db").runs()
    assert sorted(said[1]) == [f"{run.run_id} refused\n", f"{run.run_id} trains\n"]
    assert rows(results, "SELECT count(*) FROM runs") == [(1,)]
    left = {path.name for path in tmp_path.rglob("*")}
    assert {name for name in left if not name.endswith(".lock")} == {
        "re sults#1", "mlflow.db", "journal.jsonl",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, "damaged; restore a copy"),
        ("DROP TABLE alembic_version", "not an MLflow store"),
        ("UPDATE alembic_version SET version_num = 'f'", "another MLflow version; copy it, then"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(
    store: Store, script: str | None, told: str
) -> None:
    database = store.results / "mlflow.db"
    if script is None:
        database.write_bytes(b"not a database" * 1000)
    else:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.executescript(script)
    said = refused(store.runs)
    assert told in said
    assert str(store.results) in said


def test_a_locked_database_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lovasz_repro.store.tracking.LOCK_TIMEOUT", 0.2)
    other = sqlite3.connect(store.results / "mlflow.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        assert "locked by another process" in refused(store.runs)
    finally:
        other.close()
    assert store.runs() == []


def test_a_read_only_database_can_be_read_and_says_so_when_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.results)  # MLflow makes folders of a path that it takes the URI for
    run_id = child(store)
    reader = Store(store.results, f"sqlite:///file:{store.results}/mlflow.db?mode=ro&uri=true")
    assert [run.run_id for run in reader.runs()] == [run_id]
    said = refused(lambda: reader.log(run_id, [Point("m", 1.0, 1, 1)]))
    assert "cannot be written; check the rights" in said


def test_a_database_removed_while_in_use_is_noticed(store: Store, tmp_path: Path) -> None:
    """SQLite would go on writing into the deleted file, and the metrics would be gone."""
    run_id = child(store)
    shutil.move(store.results / "mlflow.db", tmp_path / "gone.db")
    said = refused(lambda: store.log(run_id, [Point("m", 1.0, 1, 1)]))
    assert "removed or replaced while in use" in said


def test_a_results_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(lambda: child(Store(tmp_path / "file" / "results")))


def test_an_experiment_deleted_in_mlflow_says_how_to_get_it_back(store: Store) -> None:
    child(store)
    client = store._client
    client.delete_experiment(client.get_experiment_by_name("synthetic").experiment_id)
    assert "mlflow experiments restore" in refused(lambda: child(Store(store.results)))


def test_a_file_system_without_links(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def client(tracking_uri: str) -> SimpleNamespace:
        """Makes its database by copying one, which is quicker."""
        copy = partial(shutil.copy, empty_database, tracking_uri.removeprefix("sqlite:///"))
        return SimpleNamespace(search_experiments=copy)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        patch.setattr(mlflow_store, "_mlflow", lambda: SimpleNamespace(MlflowClient=client))
        _make_database(tmp_path / "results" / "mlflow.db")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["mlflow.db"]
    assert Store(tmp_path / "results", f"sqlite:///{tmp_path}/results/mlflow.db").runs() == []
