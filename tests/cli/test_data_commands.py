"""The ``data`` commands: what they print, write and refuse."""

import json
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lovasz_repro.cli.data import DRAWABLE, data_app, parse_counts, print_report
from lovasz_repro.config.read import parse_overrides
from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.check import CheckReport, Fault, SplitReport
from lovasz_repro.data.demo import DEMOS
from lovasz_repro.errors import UserError
from tests.tiny_camvid import write_camvid
from tests.tiny_cityscapes import write_cityscapes
from tests.tiny_own import drawn_masks, write_own


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, without the environment's data folder."""
    monkeypatch.delenv("LOVASZ_REPRO_DATA", raising=False)
    monkeypatch.chdir(tmp_path)


def run(command: str) -> Result:
    return CliRunner().invoke(data_app, shlex.split(command), catch_exceptions=True)


def refused(command: str) -> str:
    """The error of a command that refuses what the user gave."""
    result = run(command)
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_what_can_be_drawn_is_listed() -> None:
    assert [*DRAWABLE] == [*DEMOS]
    assert "camvid" not in run("demo --help").stdout.lower()


def test_demo_then_check(tmp_path: Path) -> None:
    result = run("demo cityscapes --images 2,1,1 --size 64x128")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "wrote: data/cityscapes-demo (2 train, 1 val and 1 test images of drawn streets). "
        "Next: lovasz-repro run cityscapes-enet --profile demo\n"
    )
    assert run("demo cityscapes --images 2,1,1 --size 64x128").stdout.startswith(
        "there already: data/city"
    )
    assert "--seed 0 --images 2,1,1 --size 64x128" in refused(
        "demo cityscapes --images 2,1,1 --size 64x128 --seed 1"
    )
    result = run("check cityscapes --root data/cityscapes-demo --processes 1")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if "─" not in line]
    assert lines[:4] == [
        ["split", "images", "expected", "cities", "problems"],
        ["train", "2", "2", "2", "0"],
        ["val", "1", "1", "1", "0"],
        ["test", "1", "1", "1", "0"],
    ]
    assert result.stdout.splitlines()[-1] == "data/cityscapes-demo: whole (demo, 64x128)"


def test_demo_then_check_of_voc(tmp_path: Path) -> None:
    result = run("demo voc --images 3,2,1 --size 64")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "wrote: data/voc-demo (3 train, 2 val and 1 test images of drawn objects). "
        "Next: lovasz-repro run voc-binary --profile demo\n"
    )
    result = run("check voc --root data/voc-demo --processes 1")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines() if "─" not in line]
    assert lines[:4] == [
        ["split", "images", "expected", "masks", "photographs", "problems"],
        ["train_aug", "3", "3", "3", "3", "0"],
        ["val", "2", "2", "2", "2", "0"],
        ["test", "1", "1", "0", "1", "0"],
    ]
    assert result.stdout.splitlines()[5:] == ["data/voc-demo: whole (demo)"]
    for photograph in Path("data/voc-demo").rglob("*.jpg"):
        photograph.unlink()
    result = run("check voc --root data/voc-demo --processes 1")
    assert result.exit_code == 1
    assert "--masks-only" in result.stdout.splitlines()[-2]
    assert result.stdout.splitlines()[-1] == "data/voc-demo: 6 problems (demo)"
    result = run("check voc --root data/voc-demo --processes 1 --masks-only --json")
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert (content["ok"], content["content"]) == (True, "demo, masks only")
    assert content["splits"][0]["masks"] == 3
    assert "--masks-only is for voc" in refused("check cityscapes --masks-only")
    assert "host.robots.ox.ac.uk" in refused("check voc --root nothing")


def test_a_report_counts_its_problems(capsys: pytest.CaptureFixture[str]) -> None:
    splits = (SplitReport("val", 1234, 1, 1235),)
    problem = Fault("val", "lists/val.txt", "1,234 images, not 1,235")
    print_report(CheckReport("tree", "official", None, splits, (problem,), "Get it."), False)
    head, _, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split() == ["split", "images", "expected", "problems"]
    assert row.split() == ["val", "1,234", "1,235", "1"]
    assert rest == [str(problem), "Get it.", "tree: 1 problem (official)"]


def test_the_next_command_finds_a_tree_elsewhere(tmp_path: Path) -> None:
    result = run("demo cityscapes --images 1,1,1 --size 64x128 --data mine --out 'my streets'")
    command = shlex.split(result.stdout.split("Next: ")[1])
    assert command[:5] == ["lovasz-repro", "run", "cityscapes-enet", "--profile", "demo"]
    assert command[5:8] == ["--data", str(tmp_path), "--set"]
    cells = load_experiment("cityscapes-enet").cells("demo", overrides=parse_overrides(command[8:]))
    folder = cells[0].data.folder
    assert folder is not None
    assert (Path(command[6]) / folder / "leftImg8bit" / "train").is_dir()


def test_convert(tmp_path: Path) -> None:
    write_camvid(tmp_path / "data", images=2)
    result = run("convert camvid cityscapes")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "wrote: data/camvid-cityscapes (6 images of CamVid). "
        "Next: lovasz-repro run camvid-as-cityscapes --profile reduced\n"
    )
    assert run("check cityscapes --root data/camvid-cityscapes --processes 1").exit_code == 0
    assert "there already" in run("convert camvid cityscapes").stdout
    assert "elsewhere/camvid" in refused("convert camvid cityscapes --data elsewhere")


def test_check_lists_every_problem_and_fails(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "data") / "cityscapes"  # 48x64, without a note
    result = run("check cityscapes --processes 2")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[2].split() == ["train", "4", "2,975", "2", "5"]
    assert "leftImg8bit/train: 4 photographs, not 2,975" in lines
    wrong = [line for line in lines if line.endswith("48x64; all must be 1024x2048")]
    assert len(wrong) == 12
    assert lines[-1] == "data/cityscapes: 15 problems (official, 1024x2048)"
    report = run(f"check cityscapes --root {root} --json --processes 1")
    assert report.exit_code == 1
    content = json.loads(report.stdout)
    assert content["ok"] is False
    assert content["content"] == "official"
    assert [row["expected"] for row in content["splits"]] == [2975, 500, 1525]
    assert len(content["problems"]) == 15
    assert set(content["problems"][0]) == {"split", "file", "what"}


def test_what_is_not_there_is_one_line(tmp_path: Path) -> None:
    for command in ("check cityscapes", "check cityscapes --root nothing"):
        assert "www.cityscapes-dataset.com" in refused(command)
        assert "csDownload" in refused(command)
    assert "camvid not found at data/camvid" in refused("convert camvid cityscapes")
    assert refused("demo cityscapes --images 4,0,1").startswith("--images 4,0,1: three whole")
    for size in ("64", "63x128", "64x127", "axb"):
        assert refused(f"demo cityscapes --size {size}").startswith(f"--size {size}: HEIGHTxWIDTH")
    for size in ("63", "64x128", "10000", "-64", "many"):
        assert refused(f"demo voc --size={size}").startswith(f"--size {size}: long side in pixels")


@pytest.mark.parametrize("command", ["check", "demo", "convert"])
def test_errors_list_the_names(command: str) -> None:
    result = run(f"{command} nonsense cityscapes")
    assert result.exit_code == 2
    assert "cityscapes" in result.output or "camvid" in result.output


@pytest.mark.parametrize("text", ["", "1,2", "1,2,3,4", "1,2,x", "1,-2,3", "1,2,0", "1.5,2,3"])
def test_counts_that_make_no_sense(text: str) -> None:
    with pytest.raises(UserError, match=r"three whole numbers of at least 1"):
        parse_counts(text)


def test_own_data_are_checked_and_prepared(tmp_path: Path) -> None:
    root = write_own(tmp_path / "data" / "own", drawn_masks(10))
    result = run("check own --processes 1")
    assert (result.exit_code, "prepare" in result.stdout) == (0, True)
    elsewhere = write_own(tmp_path / "some photos", drawn_masks(3))
    told = run(f"check own --processes 1 --root '{elsewhere}'").stdout.split("`")[1]
    assert run(told.removeprefix("lovasz-repro data ")).exit_code == 0
    assert (elsewhere / "classes.txt").is_file()
    result = run("prepare own --seed 2 --share 0.3 --processes 1")
    assert result.exit_code == 0, result.output
    assert "7 train, 3 val; 2 classes: background: 0; object: 255" in result.stdout
    assert "wrote" not in run("prepare own").stdout
    result = run("check own --processes 1 --sheet out/sheet.png")
    assert result.stdout.splitlines()[-1] == "data/own: whole (own)"
    assert Path("out/sheet.png").is_file()
    assert "wrote out/sheet.png" in result.output
    (root / "masks" / "m1.png").unlink()
    result = run("check own --processes 1 --json")
    assert result.exit_code == 1
    assert [fault["file"] for fault in json.loads(result.stdout)["problems"]] == ["masks"]
    assert run("check own --data data/own").stdout == run("check own").stdout
    assert "neither" in refused("check own --root out")
    assert "nowhere: no such folder" in refused("prepare own --root nowhere")
    assert "nowhere: no such folder" in refused("check own --data nowhere")
    assert "--sheet is of own" in refused("check voc --sheet x.png")
