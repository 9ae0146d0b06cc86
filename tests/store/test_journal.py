"""The journal against a plain list: what was logged before a commit is there, once, in order."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.store.journal import (
    InUse,
    Journal,
    Point,
    last_step,
    note_shipped,
    read_records,
    shipped_offsets,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "journal.jsonl"


def final(journal: Journal) -> list[Point]:
    """Every point that may be shipped."""
    records = read_records(journal.path, 0, journal.committed)
    return [point for record, _ in records for point in record.points]


def triples(journal: Journal) -> list[tuple[str, int, float]]:
    return [(p.key, p.step, p.value) for p in final(journal)]


def test_only_committed_points_are_final(path: Path) -> None:
    with Journal(path) as journal:
        journal.log(1, {"loss": 0.5, "lr": 0.1})
        assert triples(journal) == []
        journal.commit(1)
        first = [("loss", 1, 0.5), ("lr", 1, 0.1)]
        assert triples(journal) == first
        journal.log(2, {"loss": 0.4})
        assert triples(journal) == first
        journal.commit(2)
        assert triples(journal) == [*first, ("loss", 2, 0.4)]


def test_every_float_comes_back_as_it_was_and_the_file_is_strict_json(path: Path) -> None:
    values = [0.1, 1e-320, 1.7976931348623157e308, -0.0, math.nan, math.inf, -math.inf]
    with Journal(path) as journal:
        journal.log(0, {f"m{i}": value for i, value in enumerate(values)})
        journal.commit(0)
        back = [value for _, _, value in triples(journal)]
    assert [repr(value) for value in back] == [repr(value) for value in values]

    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def test_time_is_taken_once_in_milliseconds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: 1_763_884_800_123_456_789)
    with Journal(path) as journal:
        journal.log(3, {"loss": 1.0})
        journal.commit(3)
    monkeypatch.undo()
    with Journal(path) as journal:
        assert final(journal)[0].timestamp == 1_763_884_800_123


@settings(max_examples=50)
@given(steps=st.integers(0, 12), every=st.integers(1, 5), data=st.data())
def test_resumed_at_any_point_equals_never_stopped(
    steps: int, every: int, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut the file at any byte, resume from the last checkpoint: the points are those of one go."""

    def train(path: Path, upto: int) -> None:
        with Journal(path) as journal:
            commits = [record.commit or 0 for record, _ in read_records(path)]
            start = max(commits, default=0)
            journal.rewind(start)
            if start == 0:
                journal.log(0, {"val": 0.0})
            for step in range(start + 1, upto + 1):
                journal.log(step, {"loss": 1 / step})
                if step % every == 0:
                    journal.commit(step)
            journal.log(upto, {"test": 1.0})
            journal.finish()

    folder = tmp_path_factory.mktemp("journals")
    whole, cut = folder / "whole.jsonl", folder / "cut.jsonl"
    train(whole, steps)
    content = whole.read_bytes()
    cut.write_bytes(content[: data.draw(st.integers(0, len(content)), label="cut")])
    train(cut, steps)
    with Journal(whole) as one, Journal(cut) as other:
        assert triples(one) == triples(other)
        assert len(set(triples(other))) == len(triples(other))


def test_rewind_without_a_commit_line_keeps_what_the_checkpoint_covers(path: Path) -> None:
    """Killed between the checkpoint's rename and the commit line: nothing of it is lost."""
    with Journal(path) as journal:
        for step in (1, 2, 3):
            journal.log(step, {"loss": float(step)})
    with Journal(path) as journal:
        journal.rewind(2)
        journal.commit(2)
        assert triples(journal) == [("loss", 1, 1.0), ("loss", 2, 2.0)]


def test_a_run_that_starts_anew_begins_with_an_empty_journal(path: Path) -> None:
    with Journal(path) as journal:
        journal.log(0, {"val": 0.1})
        journal.log(1, {"loss": 1.0})
    with Journal(path) as journal:
        journal.rewind(0)
        assert path.read_bytes() == b""


def test_a_finished_run_takes_nothing_back(path: Path) -> None:
    """Killed between its end and the store's word of it; the values may be shipped already."""
    with Journal(path) as journal:
        journal.log(3, {"loss": 1.0})
        journal.commit(3)
        journal.log(3, {"test": 0.5})
        journal.finish()
    with Journal(path) as journal:
        journal.rewind(3)
        journal.log(3, {"test": 0.5})
        journal.finish()
        assert triples(journal) == [("loss", 3, 1.0), ("test", 3, 0.5)]


def test_rewind_behind_what_was_shipped_ships_again_from_there(path: Path) -> None:
    """The last checkpoint was damaged, so training goes on from the one before it."""
    with Journal(path) as journal:
        for step in (1, 2):
            journal.log(step, {"loss": float(step)})
            journal.commit(step)
            if step == 1:
                first = journal.committed
        note_shipped(path, "run", journal.committed)
        journal.rewind(1)
        assert shipped_offsets(path) == {"run": first}
        assert triples(journal) == [("loss", 1, 1.0)]


def test_a_value_computed_again_after_its_commit_does_not_count_twice(path: Path) -> None:
    """The test score is computed after the last checkpoint, so a resume computes it again."""
    with Journal(path) as journal:
        journal.log(5, {"test": 0.7})
        journal.commit(5)
    with Journal(path) as journal:
        journal.rewind(5)
        journal.log(5, {"test": 0.7, "other": 1.0})
        journal.commit(5)
        assert triples(journal) == [("test", 5, 0.7), ("other", 5, 1.0)]


def test_a_torn_last_line_is_cut_off(path: Path) -> None:
    with Journal(path) as journal:
        journal.log(1, {"loss": 0.5})
        journal.commit(1)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 2, "val')
    with Journal(path) as journal:
        assert path.read_bytes() == whole
        journal.log(2, {"loss": 0.4})
        journal.commit(2)
        assert triples(journal) == [("loss", 1, 0.5), ("loss", 2, 0.4)]


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        '{"commit": "x"}',
        "3",
        '{"step": 1}x',
        '{"values": {"a": 1}}',
        '{"values": 3, "step": 1}',
        '{"step": 1e999, "time": 1, "values": {}}',
        '{"step": 1.5, "time": 1, "values": {}}',
        '{"commit": 1e999}',
        '{"finished": "soon"}',
        '{"tags": {"a": 1}}',
        '{"artifact": "../../../etc/passwd", "folder": null}',
        '{"artifact": "/etc/passwd", "folder": null}',
        '{"artifact": "a.csv", "folder": "../up"}',
        '{"artifact": 1}',
        "[" * 100_000,
        '{"step": 1, "time": 1, "values": {"a": ' + "[" * 100_000 + "}}",
    ],
)
def test_a_damaged_line_is_one_clear_line(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_text(line + '\n{"commit": 1}\n')
    with pytest.raises(UserError, match=r"journal.jsonl is damaged") as caught:
        Journal(path)
    assert "\n" not in str(caught.value)
    path.unlink()
    Journal(path).close()  # the failure did not keep the lock


def test_a_killed_process_loses_nothing_that_it_logged_and_leaves_the_run_to_others(
    path: Path,
) -> None:
    """While it lives nobody else trains its run; a worker that it forked, and that lives on with
    its open files, does not keep the run from others."""
    code = f"""if True:
        import os, time
        from pathlib import Path
        from lovasz_repro.store.journal import Journal
        journal = Journal(Path({str(path)!r}))
        journal.log(1, {{"loss": 0.25}})
        if os.fork() == 0:
            print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            with pytest.raises(InUse, match="another process trains this run"):
                Journal(path)
            process.kill()
            process.wait(60)
            with Journal(path) as journal:
                journal.commit(1)
                assert triples(journal) == [("loss", 1, 0.25)]
        finally:
            os.kill(worker, signal.SIGKILL)


class FullDisk:
    """A file that takes a few bytes of a write, then none."""

    def __init__(self, file: object, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part, self.room = data[: self.room], 0
        return self.file.write(part)  # type: ignore[attr-defined, no-any-return]

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 7])
def test_a_full_disk_fails_the_run_clearly_and_leaves_the_journal_whole(
    path: Path, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(path) as journal:
        journal.log(1, {"loss": 0.5})
        journal.commit(1)
        before = path.read_bytes()
        monkeypatch.setattr(journal, "_file", FullDisk(journal._file, room))
        with pytest.raises(RunFailed, match="No space left on device; make room"):
            journal.log(2, {"loss": 0.4})
        assert path.read_bytes() == before
        monkeypatch.undo()
        journal.log(2, {"loss": 0.4})  # room was made
        journal.commit(2)
        assert triples(journal) == [("loss", 1, 0.5), ("loss", 2, 0.4)]


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot open the metric journal"):
        Journal(tmp_path / "file" / "run" / "journal.jsonl")


def test_a_lost_or_damaged_shipped_file_means_everything_is_sent_again(path: Path) -> None:
    with Journal(path):
        assert shipped_offsets(path) == {}
        note_shipped(path, "a", 3)
        note_shipped(path, "b", 5)
        assert shipped_offsets(path) == {"a": 3, "b": 5}
        path.with_name("journal.jsonl.shipped").write_text("[1]")
        assert shipped_offsets(path) == {}


def test_two_may_note_at_once_how_far_one_journal_came(path: Path) -> None:
    """Nobody takes another's unfinished file away, and none is left."""
    path.parent.mkdir()

    def note(run: str) -> None:
        for offset in range(200):
            note_shipped(path, run, offset)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(note, "abab"))
    assert set(shipped_offsets(path).values()) <= set(range(200))
    assert [file.name for file in path.parent.iterdir()] == ["journal.jsonl.shipped"]


def test_the_last_step_is_read_while_the_run_is_at_work(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    assert last_step(path) == 0
    with Journal(path) as journal:
        assert last_step(path) == 0
        for step in range(1, 1500):
            journal.log(step, {"train/loss": 0.5})
        journal.commit(1499)
        assert last_step(path) == 1499
        with path.open("ab") as torn:
            torn.write(b'{"step": 1500, "time": 17')
        assert last_step(path) == 1499


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_or_a_folder_in_the_place_of_a_journal_is_one_clear_line(
    path: Path, make: Callable[[Path], None]
) -> None:
    path.parent.mkdir()
    make(path)
    with pytest.raises(UserError, match="journal") as caught:
        Journal(path)
    assert "\n" not in str(caught.value)
    assert last_step(path) == 0
