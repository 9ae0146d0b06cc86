"""What strangers' text can do on the way out: nothing."""

import io
import json
import math
import shlex
import sys
from pathlib import Path

import pytest

from lovasz_repro.errors import UserError
from lovasz_repro.host.output import (
    Terminal,
    never_fail_to_encode,
    plural,
    print_table,
    say,
    say_json,
    store_option,
    visible,
    write_files,
)
from lovasz_repro.host.progress import Progress

HOSTILE = (
    "\x1b[2J\x1b]0;owned\x07[red]x[/red]\r\nFINISHED all\x9b31m\u202etxt.exe\udcff\u2028:smile:"
)


def test_one_is_singular() -> None:
    told = [plural(*pair) for pair in ((1, "class"), (2, "class"), (0, "batch"), (1200, "run"))]
    assert told == ["1 class", "2 classes", "0 batches", "1,200 runs"]


def test_a_later_command_is_told_of_another_store() -> None:
    assert store_option(Path("results"), None) == ""
    assert shlex.split(store_option(Path("my runs"), "sqlite:///a.db")) == [
        "--results", "my runs", "--tracking-uri", "sqlite:///a.db"
    ]  # fmt: skip


def harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_nothing_hostile_is_printed_and_nothing_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"run {HOSTILE}")
    say(f"run {HOSTILE}", err=True)
    for shown in capsys.readouterr():
        assert harmless(shown)
        assert shown.count("\n") == 1
        assert r"\x1b[2J\x1b]0;owned\x07[red]x[/red]\r\nFINISHED all\x9b31m\u202etxt" in shown
        assert r".exe\udcff\u2028:smile:" in shown
    assert visible("Lovász – −0.20 ± 1") == "Lovász – −0.20 ± 1"


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_tables_and_prose_of_a_terminal_obey_nothing(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    console = Terminal(width=width)
    for words in ((0,), (0, 1)):
        print_table(console, ["run", "score"], [[HOSTILE, "44.21"]], words)
    console.print(HOSTILE)
    shown = screen.getvalue()
    assert harmless(shown)
    assert "44.21" in shown
    assert "[red]x[/red]" in shown.replace("\n", "").replace(" ", "")


def test_bars_and_lines_of_progress_obey_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("lovasz_repro.host.progress.LINE_EVERY_SECONDS", 0.0)
    with Progress() as progress:
        progress.line(HOSTILE)
        progress.task(HOSTILE, 2).advance(note=HOSTILE)
    assert harmless(screen.getvalue())
    assert screen.getvalue().count("\n") == 2
    assert screen.getvalue().count("[red]x[/red]") == 3


def test_the_rate_does_not_count_what_came_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """90 s of scoring, then steps of 40 s, of which 17 are left after three."""
    screen, clock = io.StringIO(), iter([0.0, 130.0, 170.0, 210.0])
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("lovasz_repro.host.progress.time.monotonic", lambda: next(clock))
    task = Progress().task("training", 20)
    for _ in range(3):
        task.advance()
    first, *others = screen.getvalue().splitlines()
    assert first.split() == ["training", "1/20", "?", "left"]
    assert others[-1].split() == ["training", "3/20", "40.0", "s", "each", "0:11:20", "left"]


def test_json_stays_json(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"name": HOSTILE + "\x7f", "scores": (math.nan, -math.inf, 0.5)})
    shown = capsys.readouterr().out
    assert harmless(shown)
    assert json.loads(shown) == {"name": HOSTILE + "\x7f", "scores": [None, None, 0.5]}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_every_encoding_can_say_everything(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    never_fail_to_encode()
    say("Lovász −0.20 ± 0.10 猫")
    print_table(Terminal(width=40), ["a", "b"], [["x", "−1.5 ± 0.2"]])
    sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    values = {"ascii": "Lovasz -0.20 +- 0.10", "latin-1": "Lovász -0.20 ± 0.10"}
    assert values.get(encoding, "Lovász −0.20 ± 0.10 猫") in shown
    assert "1.5" in shown


def test_a_full_disk_costs_no_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, {"a.md": "good", "b.md": "good"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_files(tmp_path, {"a.md": "new", "b.md": "new"})
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {
        "a.md": "good",
        "b.md": "good",
    }


def test_a_folder_that_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into .*file.*--out"):
        write_files(tmp_path / "file" / "report", {"a.md": ""})
