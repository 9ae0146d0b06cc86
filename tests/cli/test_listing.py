"""The list of runs: what is stored, and what waits with Slurm."""

import json
from pathlib import Path

import pytest

from lovasz_repro.cli.runs import compare, print_runs, status_of
from lovasz_repro.launch.slurm import TaskState
from lovasz_repro.store import StoredRun


def stored(identity: str, status: str) -> StoredRun:
    tags = {"identity": identity, "profile": "demo", "heartbeat": "99999999999"}
    return StoredRun(f"id-{identity}", "tiny", identity, status, None, 0.0, None, {}, tags, {})


def task(key: str, state: str, log: Path | None = None) -> TaskState:
    return TaskState(key, f"tiny/demo/{key}", "12_3", state, log)  # type: ignore[arg-type]


def test_a_run_that_waits_with_slurm_is_queued() -> None:
    assert status_of(stored("a", "KILLED"), task("a", "queued")) == "QUEUED"
    assert status_of(stored("a", "RUNNING"), task("a", "running")) == "RUNNING"
    assert status_of(stored("a", "FAILED"), task("a", "gone")) == "FAILED"
    assert status_of(stored("a", "FINISHED"), task("a", "queued")) == "FINISHED"
    assert status_of(stored("a", "KILLED"), None) == "STOPPED"


def test_what_goes_on_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    print_runs([stored("a", "FINISHED")], as_json=False)
    assert "goes on" not in capsys.readouterr().out
    print_runs([stored("a", "FINISHED"), stored("b", "KILLED")], as_json=False)
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("STOPPED: ")
    assert "goes on" in said


def test_tasks_that_never_reached_the_store_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks = {
        "b": task("b", "queued"), "c": task("c", "running"),
        "d": task("d", "gone", Path("logs/12.out")), "a": task("a", "gone"),
    }  # fmt: skip
    print_runs([stored("a", "FINISHED")], as_json=False, tasks=tasks)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["QUEUED", "STARTING", "LOST", "FINISHED"]
    assert rows[0][1:] == ["tiny/demo/b", "Slurm", "12_3"]
    assert rows[2][-1] == "logs/12.out"
    print_runs([stored("a", "FINISHED")], as_json=True, tasks=tasks)
    content = json.loads(capsys.readouterr().out)
    assert [run["shown_status"] for run in content] == ["FINISHED", "QUEUED", "STARTING", "LOST"]


def test_a_run_that_is_not_finished_says_so_beside_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {"a": stored("a", "FINISHED"), "b": stored("b", "KILLED")}
    monkeypatch.setattr("lovasz_repro.store.Store.by_id", lambda self, run: runs[run])
    compare(["a", "b"])
    out, err = capsys.readouterr()
    assert "STOPPED" in out
    assert err.startswith("run 2 (tiny/demo/b) is not finished")
    assert err.count("\n") == 1
