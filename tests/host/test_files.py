"""Durable writes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lovasz_repro.host.files import DAY, write_durably
from tests.left_overs import left_over


def test_a_durable_write_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old content")
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone, journal = left_over(tmp_path), Path(f"{left_over(tmp_path)}-journal")
    tree = left_over(tmp_path, host="elsewhere")
    tree.mkdir()
    (tree / "file").touch()
    os.utime(tree, (time.time() - 2 * DAY,) * 2)
    kept = [
        left_over(tmp_path, os.getpid()),
        left_over(tmp_path, 1),
        left_over(tmp_path, host="abroad"),
        gone.with_suffix(".txt"),
        tmp_path / ".notes.tmp",
    ]
    for file in (gone, journal, *kept):
        file.touch()
    write_durably(tmp_path / "file", b"content")
    assert set(tmp_path.iterdir()) == {*kept, tmp_path / "file"}


def test_a_process_killed_amid_a_write_is_tidied_up_after(tmp_path: Path) -> None:
    code = f"""if True:
        import os, signal
        from pathlib import Path
        from lovasz_repro.host.files import write_durably
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
        write_durably(Path({str(tmp_path)!r}, "file"), b"half")
    """
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    write_durably(tmp_path / "file", b"whole")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_the_longest_of_names_can_be_written(tmp_path: Path) -> None:
    name = "n" * 251 + ".png"
    write_durably(tmp_path / name, b"content")
    assert (tmp_path / name).read_bytes() == b"content"
