"""The command line's manners: help, errors in one line, exit codes, dry runs, JSON."""

import csv
import errno
import importlib.metadata
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from lovasz_repro import __version__, cli
from lovasz_repro.cli import MOST_CHARACTERS, describe, exit_code
from lovasz_repro.cli.run import complete_experiment
from lovasz_repro.config.schema import load_experiment
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.store import StoredRun
from tests.tiny_camvid import write_camvid, write_experiment

Command = Callable[..., tuple[int, str, str]]
LONG = "x" * 5_000


@pytest.fixture
def lovasz_repro(
    tmp_path: Path,
    empty_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Call the entry point in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "LOVASZ_REPRO_RESULTS", "LOVASZ_REPRO_DATA"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "results").mkdir()
    shutil.copy(empty_database, tmp_path / "results" / "mlflow.db")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lovasz-repro", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def tiny(tmp_path: Path, lovasz_repro: Command) -> Path:
    """The small experiment's file, its data in ./data."""
    write_camvid(tmp_path / "data", images=3)
    return write_experiment(tmp_path)


def test_help_and_version_are_no_mistakes(lovasz_repro: Command) -> None:
    code, out, _ = lovasz_repro("report", "tables", "--help")
    assert (code, "Usage" in out) == (0, True)
    assert lovasz_repro("--version") == (0, f"lovasz-repro {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "camvid-ent"], ["no experiment 'camvid-ent'", "did you mean camvid-enet?"]),
        (["run", "gone.yaml"], ["gone.yaml: No such file"]),
        (["run", "camvid-enet", "--profile", "dmeo"], ["did you mean demo?"]),
        (["run", "camvid-enet", "--variant", "lovasz"], ["did you mean lovasz-softmax?"]),
        (["run", "camvid-enet", "--set", "training.itertions=3"], ["did you mean iterations?"]),
        (["run", "camvid-enet", "--set", "training.lr=fast"], ["training.lr", "valid number"]),
        (["run", "camvid-enet", "--set", "training.lr"], ["expected key=value"]),
        (["run", "camvid-enet", "--device", "tpu"], ["device 'tpu'", "expected auto, cpu, cuda"]),
        (["run", "camvid-enet", "--device", "cuda:99"], ["CUDA devices"]),
        (["run", "camvid-enet"], ["camvid not found at data/camvid", "--data"]),
        (["synthetic", "--set", "circles.radus=[1,2]"], ["circles.radus", "radius"]),
        (["report", "tables", "table-9"], ["table-9", "table-1"]),
        (["report", "figures", "figure-99"], ["figure-99", "figure-1"]),
        (["predict", "a.jpg", "--weights", "no.net", "--out", "o"], ["no.net"]),
        (["runs", "import", "nowhere"], ["nowhere"]),
        (["run", f"{LONG}.yaml"], [".yaml: File name too long"]),
        (["run", "/dev/zero.yaml"], ["/dev/zero.yaml"]),
        (["run", "camvid-enet", "--data", LONG], ["File name too long"]),
        (["run", "camvid-enet", "--profile", LONG], ["no profile 'xxx"]),
        (["run", "camvid-enet", "--set", f"{LONG}={LONG}"], ["unknown key xxx"]),
        (["evaluate", LONG], ["File name too long"]),
        (["evaluate", "/dev/zero"], ["Not a regular file"]),
        (["predict", "a.jpg", "--weights", "/dev/zero", "--out", "o"], ["Not a regular file"]),
        (["predict", "a.jpg", "--weights", "/dev", "--out", "o"], ["Is a directory"]),
        (["weights", "convert", "/dev/zero", "o.safetensors"], ["Not a regular file"]),
        (["weights", "convert", LONG, "o.safetensors"], ["File name too long"]),
        (["runs", "--tracking-uri", "file:somewhere"], ["file:somewhere", "sqlite:///"]),
    ],
)
def test_each_mistake_is_one_line_and_exit_code_2(
    lovasz_repro: Command, arguments: list[str], words: list[str]
) -> None:
    code, out, err = lovasz_repro(*arguments)
    assert code == 2, err
    lines = err.splitlines()
    assert len(lines) == ("cuda:99" in arguments) + 1  # there the data are missing too
    assert all(line.startswith("Error: ") and len(line) <= MOST_CHARACTERS for line in lines)
    for word in words:
        assert word in err
    assert out == ""


@pytest.mark.parametrize("number", [errno.EROFS, errno.EPERM, errno.EACCES])
def test_a_folder_that_takes_nothing_is_a_mistake(number: int) -> None:
    error = OSError(number, os.strerror(number), "results/work")
    assert describe(error) == f"Error: results/work: {os.strerror(number)}."
    assert exit_code(error) == 2


def test_a_photograph_that_is_a_pipe_is_a_mistake(
    lovasz_repro: Command, tiny: Path, tmp_path: Path
) -> None:
    photograph = next((tmp_path / "data").rglob("train/*.png"))
    photograph.unlink()
    os.mkfifo(photograph)
    code, _, err = lovasz_repro("run", str(tiny), "--profile", "demo")
    assert (code, err.count("\n")) == (2, 1)
    assert f"{photograph.relative_to(tmp_path)}: Not a regular file" in err


@pytest.mark.parametrize("kind", [UserError, RunFailed, KeyError, OSError])
def test_an_error_is_cut_in_its_middle(kind: type[Exception]) -> None:
    line = describe(kind("file.yaml: " + "x \x1b" * 50_000 + "do this"))
    assert MOST_CHARACTERS - 10 < len(line) <= MOST_CHARACTERS
    assert r"file.yaml: x \x1bx" in line
    assert "do this" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "camvid-enet", "--profil", "demo"], "--profile"),
        (["data", "check", "own", "--sheet"], "--help"),
        (["\x1b]0;x\x07[red]"], r"\x1b]0;x\x07[red]"),
        (["report", "tables", "--format", "\x1b[31m"], r"\x1b[31m"),
        (["run", "\x1b[31m.yaml"], r"\x1b[31m.yaml"),
    ],
)
def test_usage_errors_exit_with_2_too(
    lovasz_repro: Command, arguments: list[str], words: str
) -> None:
    code, _, err = lovasz_repro(*arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


def test_a_run_that_fails_is_told_once_and_no_report_is_offered(
    lovasz_repro: Command, tiny: Path
) -> None:
    endless = ["--variant", "lovasz-softmax", "--set", "training.lr=1.0e+30"]
    code, out, err = lovasz_repro("run", str(tiny), *endless)
    assert code == 1
    assert (out + err).count("The loss is nan") == 1
    assert "1 failed" in out
    assert "report" not in out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["data.size=[25,32]"], ["data.size", "multiples of 8", "25x32"]),
        (["data.size=[24,31]", "model.name=enet"], ["multiples of 8"]),
    ],
)
def test_a_size_that_enet_cannot_halve_is_refused_and_nothing_is_stored(
    lovasz_repro: Command, tiny: Path, changes: list[str], words: list[str]
) -> None:
    given = [argument for change in changes for argument in ("--set", change)]
    code, out, err = lovasz_repro("run", str(tiny), *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert all(word in err for word in words)
    assert json.loads(lovasz_repro("runs", "--json")[1]) == []


def test_a_printed_config_is_a_file_of_the_same_runs(
    lovasz_repro: Command, tiny: Path, tmp_path: Path
) -> None:
    given = ["--profile", "demo", "--set", "training.lr=0.25", "--seed", "3"]
    code, out, _ = lovasz_repro("run", str(tiny), *given, "--print-config")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    expected = load_experiment(str(tiny)).cells("demo", overrides={"training.lr": 0.25}, seeds=[3])
    assert load_experiment(str(tmp_path / "mine.yaml")).cells("demo") == expected
    code, out, _ = lovasz_repro("run", "mine.yaml", "--dry-run")  # its only profile
    assert code == 0
    assert out.count("new, 4 iterations") == 2


def test_experiments_are_listed_with_their_sizes(lovasz_repro: Command) -> None:
    code, listed, _ = lovasz_repro("experiments")
    assert code == 0
    for name in ("synthetic", "voc-multiclass"):
        assert f"\n{name}: " in listed
    for profile, of_size in load_experiment("voc-multiclass").profiles.items():
        assert " ".join(of_size.about.split()) in " ".join(listed.split()), profile
    code, out, err = lovasz_repro("run")
    assert (code, out) == (2, listed)
    assert err.count("\n") == 1


def test_gpus_are_planned_for_where_there_are_none(
    lovasz_repro: Command, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = lovasz_repro("run", str(tiny), "--gpus", "2", "--dry-run")
    assert (code, out.count("new, 12 iterations")) == (2, 2)
    assert err.startswith("Error: --gpus 2: this machine has 0")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setitem(sys.modules, "submitit", MagicMock())
    monkeypatch.setitem(sys.modules, "submitit.helpers", MagicMock())
    code, out, err = lovasz_repro("run", str(tiny), "--gpus", "2", "--slurm", "--dry-run")
    assert (code, err) == (0, "")
    assert "Slurm" in out
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, out, err = lovasz_repro("run", str(tiny), "--slurm", "--dry-run")
    assert (code, out.count("new, 12 iterations"), err.count("\n")) == (2, 2, 1)
    assert "submitit" in err
    code, _, err = lovasz_repro("run", "voc-multiclass", "--gpus", "4")
    assert code == 2
    words = ["has 0", "--procs 4", "voc not found", "data check voc", "--profile demo"]
    assert [word for word in words if word not in err] == []
    whole = [
        line for line in err.splitlines() if line.startswith("Error: ") and " ... " not in line
    ]
    assert whole == err.splitlines()  # each missing thing in a line of its own, none of it cut


def test_extras_keep_their_brackets(
    lovasz_repro: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    _, out, _ = lovasz_repro("doctor")
    text = " ".join(out.split())
    for extra in ("crf", "cityscapes", "slurm"):
        assert f"pip install -c constraints.txt '.[{extra}]'" in text
    assert "`run voc-multiclass` and `evaluate --crf`" in text


def test_run_synthetic_is_synthetic(lovasz_repro: Command) -> None:
    small = ["--set", "seeds=2", "--set", "circles.images=3"]
    code, out, _ = lovasz_repro("run", "synthetic", *small, "--dry-run")
    assert code == 0
    assert "2 seeds, new" in out
    code, out, err = lovasz_repro("run", "synthetic", *small)
    assert code == 0, err
    assert "Lovász hinge" in out
    code, out, _ = lovasz_repro("synthetic", *small)
    assert code == 0
    assert "stored before" in out
    code, _, err = lovasz_repro("run", "synthetic", "--profile", "demo")
    assert code == 2
    assert "--profile is not for a bias search" in err


def test_numbers_that_json_has_not_are_null(
    lovasz_repro: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = StoredRun("a1", "x", "n", "FINISHED", None, 0.0, 1.0, {}, {}, {"nan": float("nan")})
    monkeypatch.setattr("lovasz_repro.store.Store.runs", lambda self, experiment: [run])
    _, out, _ = lovasz_repro("runs", "--json")
    (found,) = json.loads(out, parse_constant=pytest.fail)
    assert found["metrics"] == {"nan": None}


def test_ctrl_c_is_one_line_and_exit_code_130(
    lovasz_repro: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: object) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("lovasz_repro.synthetic.experiment.search", press)
    code, out, err = lovasz_repro("synthetic", "--set", "seeds=2")
    assert (code, out, err) == (130, "", "Stopped.\n")
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_an_import_is_not_taken_for_a_missing_module(tmp_path: Path) -> None:
    """As an extension module does that imports NumPy if it is there."""
    (tmp_path / "slow.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    code = (
        "from lovasz_repro.cli import stopped_by_ctrl_c\n"
        "with stopped_by_ctrl_c():\n"
        "    try:\n        import slow\n    except BaseException: print('swallowed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Stopped.\n")


def test_debug_adds_the_traceback_alone(
    lovasz_repro: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, line = lovasz_repro("run", "camvid-ent")
    monkeypatch.setenv("LOVASZ_REPRO_DEBUG", "")  # what the option sets is taken back
    again, _, err = lovasz_repro("run", "camvid-ent", "--debug")
    assert (again, err.startswith("Traceback"), err.endswith(line)) == (code, True, True)


def test_an_unexpected_error_is_one_line_and_exit_code_1(
    lovasz_repro: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("lovasz_repro.config.schema.load_experiment", broken)
    code, _, err = lovasz_repro("run", "camvid-enet")
    assert code == 1
    assert err == "Error: unexpected ZeroDivisionError: two lines (--debug shows where)\n"


def test_dry_run_tells_and_runs_nothing(lovasz_repro: Command, tiny: Path, tmp_path: Path) -> None:
    before = {path for path in tmp_path.rglob("*") if "mlflow.db" not in path.name}
    code, out, err = lovasz_repro("run", str(tiny), "--dry-run", "--set", "training.lr=0.5")
    assert code == 0, err
    assert "training.lr=0.5" in out
    assert out.count("new, 12 iterations") == 2
    assert "training:" not in out  # the plan alone; the YAML is asked for
    after = {path for path in tmp_path.rglob("*") if "mlflow.db" not in path.name}
    work = tmp_path / "results" / "work"
    cache = {work / "fingerprints.json", work / "class-counts"}  # of the data's content
    assert {path for path in after - before if path.parent not in cache} <= {work, *cache}
    assert lovasz_repro("runs")[1].startswith("No runs stored yet")


def test_dry_run_plans_and_ends_as_the_run_would(
    lovasz_repro: Command, tiny: Path, tmp_path: Path
) -> None:
    mask = next((tmp_path / "data" / "camvid" / "testannot").iterdir())
    mask.write_bytes(b"no picture")  # which only its reader sees
    code, out, err = lovasz_repro("run", str(tiny), "--dry-run")
    assert (code, out.count("new, 12 iterations"), err.count("\n")) == (2, 2, 1)
    assert mask.name in err
    assert lovasz_repro("run", str(tiny))[0::2] == (2, err)
    shutil.rmtree(mask.parent)
    code, out, err = lovasz_repro("run", str(tiny), "--dry-run")
    assert (code, out.count("not ready"), err.count("\n")) == (2, 2, 1)
    assert "CamVid not found: no folder data/camvid/testannot" in err
    assert lovasz_repro("run", str(tiny))[0::2] == (2, err)


def test_run_then_list_then_report(lovasz_repro: Command, tiny: Path, tmp_path: Path) -> None:
    code, out, err = lovasz_repro("run", str(tiny), "--profile", "demo")
    assert code == 0, err
    assert "2 finished" in out
    code, out, _ = lovasz_repro("run", str(tiny), "--profile", "demo", "--dry-run")
    assert out.count("done (run ") == 2
    code, out, _ = lovasz_repro("runs")
    assert out.count("FINISHED") == 2
    assert out.count("test mIoU") == 2
    code, out, _ = lovasz_repro("runs", "--json")
    assert {run["name"] for run in json.loads(out)} == {
        "weighted-cross-entropy-b2-s0",
        "lovasz-softmax-b2-s0",
    }
    one, two = (run["run_id"] for run in json.loads(out))
    code, out, _ = lovasz_repro("runs", "show", one[:8])
    assert code == 0
    assert all(
        word in out for word in (one, "best.safetensors", "training.lr", "test/dataset_miou")
    )
    code, out, _ = lovasz_repro("runs", "compare", one, two, "--json")
    assert {"variant", "loss.terms.lovasz_softmax"} <= {
        r["name"] for r in json.loads(out)["settings"]
    }
    code, out, _ = lovasz_repro("runs", "compare", one, two)
    assert "difference" in out
    code, out, _ = lovasz_repro("runs", "compare", one, two, "--markdown")
    parts = [part.splitlines() for part in out.strip().split("\n\n")]
    assert [part[1] for part in parts] == ["|---" * columns + "|" for columns in (4, 3, 4)]
    assert "| variant | lovasz-softmax | weighted-cross-entropy |" in parts[1]
    code, out, _ = lovasz_repro("runs", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert {row["run_id"] for row in rows} == {one, two}
    assert all(0 <= float(row["test/dataset_miou"]) <= 1 for row in rows)
    run_id = json.loads(lovasz_repro("runs", "--json")[1])[0]["run_id"]
    for told in (run_id, run_id[:12]):  # a run is no folder to write all of them to
        code, _, err = lovasz_repro("runs", "export", told)
        assert (code, f"export FOLDER --run {told}" in err) == (2, True)
        assert not Path(told).exists()
    assert lovasz_repro("runs", "export", "exported")[1] == "2 runs in exported\n"
    code, out, _ = lovasz_repro("runs", "import", "exported", "--results", "other")
    assert out.startswith("2 added")
    weights = next((tmp_path / "results" / "work").rglob("best.safetensors"))
    photo = tmp_path / "data" / "camvid" / "test" / "0.png"
    code, out, err = lovasz_repro(
        "predict", str(photo), "--weights", str(weights), "--out", "seen", "--device", "cpu"
    )
    assert code == 0, err
    assert len(list((tmp_path / "seen").iterdir())) == 2


def test_label_out_of_range_names_the_file(
    lovasz_repro: Command, tiny: Path, tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    mask = tmp_path / "data" / "camvid" / "trainannot" / "1.png"
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(mask)
    code, _, err = lovasz_repro("run", str(tiny), "--profile", "demo")
    assert code == 2
    assert err.splitlines()[-1].startswith("Error: data/camvid/trainannot/1.png: class id 77")


def test_reports_without_runs_say_what_would_fill_them(lovasz_repro: Command) -> None:
    code, out, _ = lovasz_repro("report", "tables", "synthetic", "--format", "md")
    assert code == 0
    assert "lovasz-repro synthetic" in out
    code, out, err = lovasz_repro("report", "figures", "figure-3")
    assert (code, out) == (1, "")
    assert "figure-3: not drawn" in err
    assert "lovasz-repro synthetic" in err


def test_doctor_finds_and_says_what_is_missing(lovasz_repro: Command, tiny: Path) -> None:
    code, out, _ = lovasz_repro("doctor", "--json")
    assert code == 0
    listed = json.loads(out)
    findings = {finding["name"]: finding for finding in listed}
    assert len(findings) == len(listed)
    assert {"voc", "pydensecrf2", "deeplab weights", "cityscapesscripts"} <= set(findings)
    assert findings["torch"]["ok"]
    assert findings["store"]["ok"]
    assert not findings["camvid"]["ok"]
    assert "367/101/233" in findings["camvid"]["detail"]
    assert "CC BY-NC" in findings["enet weights"]["detail"]


def test_module_and_completion_start_without_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lovasz_repro.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    heavy = {"torch", "mlflow", "pandas", "matplotlib", "numpy", "PIL", "scipy"}
    assert not imported & heavy
    assert list(complete_experiment("cam")) == ["camvid-as-cityscapes", "camvid-enet"]
    assert list(complete_experiment("city")) == ["cityscapes-enet"]


def test_an_empty_store_is_a_screen_of_commands_and_no_file(
    lovasz_repro: Command, tmp_path: Path
) -> None:
    for report in ("tables", "claims"):
        code, out, err = lovasz_repro("report", report)
        assert (code, err) == (0, "")
        assert out.count("\n") < (30 if report == "tables" else 200)
    assert "lovasz-repro run voc-binary" in out
    assert not (tmp_path / "results" / "report" / "tables").exists()
    code, out, err = lovasz_repro("report", "tables", "table-1")
    assert "80.50" in out
    assert len(list((tmp_path / "results" / "report" / "tables").iterdir())) == 4


def test_report_alone_writes_everything(
    lovasz_repro: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lovasz_repro.report.figures import FIGURES
    from lovasz_repro.report.model import Missing

    for name in ("figure-1", "figure-2"):  # take seconds to draw
        monkeypatch.setitem(FIGURES, name, lambda store: Missing("left out", "a test"))
    code, _, err = lovasz_repro("synthetic", "--seeds", "1")
    assert code == 0, err
    code, out, err = lovasz_repro("report", "--out", "all")
    assert code == 0, err
    written = {path.name for path in (tmp_path / "all").rglob("*") if path.is_file()}
    assert {"synthetic.md", "figure-3.pdf", "claims.json", "index.html"} <= written
    assert "all/index.html" in out.splitlines()[-1]
    page = (tmp_path / "all" / "index.html").read_bytes()
    code, out, err = lovasz_repro("report", "page", "--out", "to/all.html")
    assert (code, out) == (0, f"to/all.html ({len(page) / 1e6:.1f} MB)\n"), err
    assert (tmp_path / "to" / "all.html").read_bytes() == page


@pytest.mark.parametrize("report", ["tables", "claims", "figures", "page"])
def test_a_report_into_a_folder_that_refuses_is_one_line(
    lovasz_repro: Command, tmp_path: Path, report: str
) -> None:
    (tmp_path / "file").write_text("")
    name = {"tables": ["table-1"], "figures": ["figure-1"]}.get(report, [])
    code, _, err = lovasz_repro("report", report, *name, "--out", "file/report")
    assert code == 2
    assert err.startswith("Error: cannot write into file/report: ")
    assert err.count("\n") == 1


def test_what_is_new_is_shown_on_a_terminal(
    lovasz_repro: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lovasz_repro.host import output

    class Screen(output.Terminal):
        is_terminal = property(lambda self: True)

    monkeypatch.setattr(output, "Terminal", lambda: Screen(width=100))
    code, _, err = lovasz_repro("synthetic", "--seeds", "1")
    assert code == 0, err
    for report, new in (("tables", "above the minimum"), ("claims", "asked above")):
        out = lovasz_repro("report", report)[1]
        assert new in out
        assert out.count("\n") < 80  # of 130 claims
        out = lovasz_repro("report", report)[1]
        assert new not in out
        assert "new" not in out.split()


def test_a_full_disk_is_told_in_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lovasz_repro.cli", "doctor"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the output: No space left on device.")
    assert done.stderr.count("\n") == 1
