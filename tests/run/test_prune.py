"""``runs prune``: only what the store has all of is deleted."""

import io
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from lovasz_repro.cli.runs import prune as prune_command
from lovasz_repro.cli.runs import runs_app
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import machine
from lovasz_repro.run import prune
from lovasz_repro.run.inputs import START
from lovasz_repro.run.prune import remove, work_folders
from lovasz_repro.store import Store
from lovasz_repro.store.journal import Journal, committed_end, note_shipped
from lovasz_repro.store.shipping import ship


def work(
    store: Store, identity: str, *, finish: bool = True, weights: bool = True, send: bool = True
) -> Path:
    """A run that was trained here: its work folder, with a checkpoint of 1,000 bytes."""
    run_id = store.open_child("tiny", None, f"run-{identity}", identity, {}, {"seed": "0"})
    folder = store.results / "work" / "tiny" / "demo" / f"run-{identity}"
    with Journal(folder / "journal.jsonl") as journal:
        (folder / "checkpoint-1.pt").write_bytes(bytes(1000))
        (folder / "best.safetensors").write_bytes(bytes(10))
        journal.log(1, {"loss": 0.5})
        if weights:
            journal.artifact(folder / "best.safetensors")
        if finish:
            journal.finish()
    note_shipped(journal.path, run_id, 0)
    if send:
        ship(store, run_id, journal.path, committed_end(journal.path))
    elif finish:
        store.close(run_id, "FINISHED")
    return folder


def kept(store: Store) -> dict[str, str | None]:
    return {found.path.name: found.kept for found in work_folders(store.results, store)}


def call(store: Store, *options: str) -> Result:
    app = typer.Typer()
    app.add_typer(runs_app, name="runs")
    given = ["runs", "prune", "--results", str(store.results), *options]
    result = CliRunner().invoke(app, given)
    if result.exception and not isinstance(result.exception, UserError | RunFailed):
        raise result.exception
    return result


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_only_finished_runs_that_the_store_has_whole_may_go(store: Store) -> None:
    done = work(store, "done")
    work(store, "unfinished", finish=False)
    work(store, "unsent", send=False)
    work(store, "weightless", weights=False)
    elsewhere = work(store, "elsewhere")
    (elsewhere / "journal.jsonl.shipped").write_text('{"of-another-store": 5}')
    damaged = work(store, "damaged")
    (damaged / "journal.jsonl").write_text("no\nrecord\n")
    reasons = kept(store)
    assert reasons.pop(done.name) is None
    assert len(reasons) == 5
    assert len({reason for reason in reasons.values() if reason}) == 5


def test_a_run_in_work_keeps_its_folder_and_that_of_the_run_it_starts_from(store: Store) -> None:
    basis, other = work(store, "basis"), work(store, "other")
    tags = {"weights_fingerprint": f"{START}basis"}
    starting = store.open_child("tiny", None, "starting", "starting", {}, tags)
    assert [name for name, why in kept(store).items() if why is None] == [other.name]
    store.close(starting, "KILLED")
    assert kept(store) == {basis.name: None, other.name: None}
    with Journal(other / "journal.jsonl"):
        assert kept(store)[other.name] == prune.IN_WORK
        [found] = [each for each in work_folders(store.results, store) if each.path == other]
        with pytest.raises(RunFailed, match="another process"):
            remove(found)
    assert len(list(other.iterdir())) > 3


def test_it_says_what_and_how_much_and_deletes_that_alone(store: Store) -> None:
    done, unfinished = work(store, "done"), work(store, "unfinished", finish=False)
    size = sum(file.stat().st_size for file in done.iterdir())
    assert size > 1000
    result = call(store)  # nobody to ask: no terminal
    assert done.is_dir()
    assert done.name in result.output
    assert f"{size:,}" in result.output
    assert "1 (not finished)" in result.output
    assert isinstance(result.exception, UserError)
    assert "--yes" in str(result.exception)
    assert call(store, "--yes").exit_code == 0
    assert not done.exists()
    assert unfinished.is_dir()
    assert [run.status for run in store.runs()] == ["RUNNING", "FINISHED"]
    assert "best.safetensors" in store.artifact_names(store.runs()[1].run_id)
    assert "no work folders" in call(store, "--yes").output


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_on_a_terminal_it_asks(
    store: Store, monkeypatch: pytest.MonkeyPatch, answer: str, gone: bool
) -> None:
    done = work(store, "done")

    class Typed(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Typed(io.BytesIO(answer.encode())))
    prune_command(results=store.results)
    assert done.exists() is not gone


def test_a_folder_that_the_disk_does_not_give_up_is_told(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = work(store, "first"), work(store, "second")
    replace = os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(source) == first:
            raise PermissionError(13, "Permission denied", str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    result = call(store, "--yes")
    assert isinstance(result.exception, RunFailed)
    assert "1 of 2" in str(result.exception)
    assert f"{first}: not deleted (Permission denied)" in result.output
    assert (first.exists(), second.exists()) == (True, False)


def test_what_was_cut_short_is_gone_next_time(store: Store) -> None:
    done = work(store, "done")
    half = done.with_name(f".{machine()}-999999999-0123abcd.tmp")
    done.rename(half)
    assert work_folders(store.results, store) == []
    assert not half.exists()
