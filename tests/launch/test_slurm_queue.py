"""The record of submitted tasks, and squeue's answers."""

import json
import threading
from pathlib import Path

import pytest

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.launch import slurm
from lovasz_repro.launch.slurm import SubmittedTask, record, states, submitted


def task(key: str, job_id: str) -> SubmittedTask:
    return SubmittedTask(key, f"run {key}", job_id, 1.5, f"logs/{job_id}_0_log.out")


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shell script in the place of squeue."""
    programs = tmp_path / "programs"
    programs.mkdir()
    script = programs / "squeue"
    script.write_text("#!/bin/sh\nexit 77\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return script


def test_nothing_submitted_asks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert states(tmp_path) == {}


def test_a_torn_line_is_passed_over_and_not_continued(tmp_path: Path) -> None:
    record(tmp_path, [task("a", "1_0"), task("b", "1_1")])
    with open(tmp_path / "tasks.jsonl", "a") as file:
        file.write('{"key": "c", "na')
    assert set(submitted(tmp_path)) == {"a", "b"}
    record(tmp_path, [task("d", "2")])
    assert set(submitted(tmp_path)) == {"a", "b", "d"}


def test_the_last_submission_of_a_key_counts(tmp_path: Path) -> None:
    record(tmp_path, [task("a", "1_0"), task("b", "1_1")])
    record(tmp_path, [task("a", "2")])
    assert {key: each.job_id for key, each in submitted(tmp_path).items()} == {"a": "2", "b": "1_1"}


def test_several_may_record_at_once(tmp_path: Path) -> None:
    def write(writer: int) -> None:
        for number in range(20):
            record(tmp_path, [task(f"{writer}-{number}-{i}", "1") for i in range(5)])

    writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = (tmp_path / "tasks.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == 400


def test_what_cannot_be_recorded_can_be_cancelled(tmp_path: Path) -> None:
    (tmp_path / "tasks.jsonl").mkdir()
    with pytest.raises(RunFailed, match=r"`scancel 12`$"):
        record(tmp_path, [task("a", "12_0"), task("b", "12_1")])


def test_words_of_slurm(tmp_path: Path, squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {
        "PENDING": "queued",
        "REQUEUED": "queued",
        "RUNNING": "running",
        "COMPLETING": "running",
        "SUSPENDED": "running",
        "A_NEW_ONE": "running",
        "COMPLETED": "gone",
        "TIMEOUT": "gone",
        "NODE_FAIL": "gone",
    }
    record(tmp_path, [task(word, f"5_{i}") for i, word in enumerate(words)])
    record(tmp_path, [task("plain", "6"), task("forgotten", "4_2")])
    said = "".join(f"5_{i} {word}\n" for i, word in enumerate(words)) + "6 RUNNING\n"
    (tmp_path / "said").write_text(said)
    squeue.write_text(
        f'#!/bin/sh\necho "$SQUEUE_USERS" "$@" >> {tmp_path}/asked\ncat {tmp_path}/said\n'
    )
    monkeypatch.setenv("SQUEUE_USERS", "somebody")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/6_0_log.out").touch()

    found = states(tmp_path)
    assert {key: each.state for key, each in found.items()} == words | {
        "plain": "running",
        "forgotten": "gone",
    }
    assert found["plain"].log == tmp_path / "logs/6_0_log.out"
    assert found["forgotten"].log is None
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert asked.endswith("--jobs=4,5,6")
    assert "somebody" not in asked


def test_no_answer_is_not_gone(
    tmp_path: Path, squeue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(tmp_path, [task("a", "1")])
    squeue.write_text("#!/bin/sh\necho 'cannot reach\n the controller' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"^squeue failed: cannot reach the controller$"):
        states(tmp_path)
    squeue.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(slurm, "ANSWER_SECONDS", 0.2)
    with pytest.raises(UserError, match="does not answer"):
        states(tmp_path)
    squeue.unlink()
    monkeypatch.setenv("PATH", str(squeue.parent))
    with pytest.raises(UserError, match="no squeue on the PATH"):
        states(tmp_path)
