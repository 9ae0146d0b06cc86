"""Checkpoints: whole or not there, the newest undamaged one wins, nothing in them is executed."""

import errno
import hashlib
import io
import os
from pathlib import Path

import pytest
import torch

from lovasz_repro.errors import RunFailed
from lovasz_repro.training.checkpoint import Checkpoints
from tests.left_overs import left_over


def content(iteration: int) -> dict[str, object]:
    return {"iteration": iteration, "weights": torch.full((3,), float(iteration))}


def test_the_newest_is_loaded_and_old_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.load_latest() is None
    assert checkpoints.latest_iteration() is None
    for iteration in (5, 10, 15):
        checkpoints.save(iteration, content(iteration))
    assert len(list(tmp_path.iterdir())) == 2
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["iteration"] == checkpoints.latest_iteration() == 15
    assert loaded["weights"].tolist() == [15.0, 15.0, 15.0]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_gives_way_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, content(1))
    path = checkpoints.save(2, content(2))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    whole = {"truncated": data[:-7], "flipped": data, "empty": b""}[damage]
    path.write_bytes(whole)
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["iteration"] == 1
    assert path.name in capsys.readouterr().err


def test_damaged_files_do_not_outlast_whole_ones_of_fewer_iterations(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for iteration in (20, 30):
        checkpoints.save(iteration, content(iteration)).write_bytes(b"")
    assert checkpoints.load_latest() is None
    checkpoints.save(10, content(10))
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["iteration"] == 10


def test_leftovers_of_a_crash_are_passed_over_and_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    left_over(tmp_path).write_bytes(b"half")
    assert checkpoints.load_latest() is None
    path = checkpoints.save(1, content(1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_keeps_what_there_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, content(1))

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunFailed, match=r"iteration 2 not written.*No space left.*make room"):
        checkpoints.save(2, content(2))
    monkeypatch.undo()
    assert [path.name.split("-")[1] for path in tmp_path.iterdir()] == ["00000001"]
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["iteration"] == 1


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("hostile-was-here",)


def test_a_hostile_checkpoint_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    buffer = io.BytesIO()
    torch.save({"iteration": Hostile()}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    (tmp_path / f"checkpoint-00000001-{digest}.pt").write_bytes(buffer.getvalue())
    with pytest.raises(RunFailed, match="no checkpoint of this run"):
        Checkpoints(tmp_path).load_latest()
    assert not (tmp_path / "hostile-was-here").exists()


@pytest.mark.parametrize("written", [[1], "text", {"model": {}}, {"iteration": 2}, None])
def test_a_whole_file_of_another_content_is_one_line(tmp_path: Path, written: object) -> None:
    buffer = io.BytesIO()
    torch.save(written, buffer)
    data = b"nonsense" if written is None else buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()[:16]
    (tmp_path / f"checkpoint-00000001-{digest}.pt").write_bytes(data)
    with pytest.raises(RunFailed, match="move it away") as caught:
        Checkpoints(tmp_path).load_latest()
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    (tmp_path / f"checkpoint-00000009-{'0' * 16}.pt").mkdir()
    checkpoints.save(1, content(1))
    loaded = checkpoints.load_latest()
    assert loaded is not None
    assert loaded["iteration"] == 1
