"""``evaluate``: scores as the official script's, predictions kept, submissions, one-line errors."""

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from lovasz_repro.cli.evaluate import evaluate, say_how_to_submit
from lovasz_repro.data.check import TreeNote, write_note
from lovasz_repro.data.cityscapes import STREET_CLASSES, list_frames
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import official_scores
from lovasz_repro.evaluation.submission import CITYSCAPES_SERVER, VOC_SERVER, Server
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.snapshot import save_weights
from lovasz_repro.run.evaluate import Network, Request
from lovasz_repro.store import Store
from tests.tiny_cityscapes import write_cityscapes

Call = Callable[..., Result]
MakeStore = Callable[..., Store]


def save(file: Path, outputs: int = 20, seed: int = 0, **notes: object) -> Path:
    torch.manual_seed(seed)
    names = STREET_CLASSES if outputs == 20 else [f"c{index}" for index in range(outputs)]
    file.parent.mkdir(parents=True, exist_ok=True)
    save_weights(ENet(outputs), file, {"dataset": "x", "class_names": names, **notes})
    return file


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a small tree of four images per split; its test set is not annotated."""
    return write_cityscapes(tmp_path / "data")


@pytest.fixture
def call(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """The command in an empty folder; an error that is not the user's fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("LOVASZ_REPRO_RESULTS", raising=False)
    app = typer.Typer()
    app.command()(evaluate)

    def run(*arguments: object, size: str = "24x32") -> Result:
        given = [str(argument) for argument in arguments]
        given += ["--data", str(data), "--device", "cpu"] + (["--size", size] if size else [])
        result = CliRunner().invoke(app, given)
        if result.exception and not isinstance(result.exception, UserError):
            raise result.exception
        return result

    return run


def refused(result: Result) -> str:
    assert isinstance(result.exception, UserError)
    text = str(result.exception)
    assert "\n" not in text
    return text


def put_run(store: Store, weights: Path | None, status: str = "FINISHED", **params: str) -> str:
    """A stored run on the small tree."""
    params = {"data.name": "cityscapes", "data.folder": "None", "data.size": "[48, 64]"} | params
    number = len(store.runs())
    run_id = store.open_child("e", None, f"lovasz-b2-s{number}", f"id{number}", params, {})
    if weights:
        store.add_artifact(run_id, weights)
    store.close(run_id, status)
    return run_id


def test_scores_are_those_of_the_official_script(call: Call, data: Path, tmp_path: Path) -> None:
    weights = save(tmp_path / "net.safetensors")
    result = call(weights, "--official")
    assert "Class IoU" in result.output
    assert "traffic light" in result.output
    assert "vehicle" in result.output
    assert "official iIoU" in result.output
    assert "largest difference of any score:" in result.output
    out = tmp_path / "results" / "evaluate" / "net-val"
    assert f"4 predictions in {out.relative_to(tmp_path)}" in result.output
    answer = json.loads(call(weights, "--official", "--json", "--processes", 2).stdout)
    frames = list_frames(data / "cityscapes", "val")
    files = [out / f"{frame.name}_labelIds.png" for frame in frames]
    expected = official_scores(files, frames).as_metrics("val")
    assert answer["official"].keys() == answer["scores"].keys() == expected.keys()
    for key, value in expected.items():
        if value != value:
            assert answer["scores"][key] is None
        else:
            assert answer["scores"][key] == pytest.approx(value, abs=1e-9)
    assert answer["largest_difference"] < 1e-9
    assert (answer["split"], answer["images"], answer["run_id"]) == ("val", 4, None)
    assert answer["submission"] is None


def test_the_official_script_is_looked_for_first(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    monkeypatch.delitem(sys.modules, "cityscapesscripts.evaluation", raising=False)
    assert "not installed" in refused(call(save(tmp_path / "net.safetensors"), "--official"))
    assert not (tmp_path / "results").exists()


def test_a_run_says_how_its_network_sees(
    call: Call, make_store: MakeStore, data: Path, tmp_path: Path
) -> None:
    shutil.move(data / "cityscapes", data / "streets")
    store = make_store()
    weights = save(tmp_path / "best.safetensors")
    params = {"data.folder": "streets", "evaluation.upsample": "predictions"}
    run_id = put_run(store, weights, **params)
    result = call(run_id[:8], size="")
    assert "Class IoU" in result.output, result.exception
    out = tmp_path / "results" / "evaluate" / f"lovasz-b2-s0-{run_id[:8]}-val"
    manifest = json.loads((out / "predictions.json").read_text())
    assert (manifest["size"], manifest["upsample"]) == ("48x64", "predictions")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    assert len(before) == 4
    assert call(run_id, size="").output == result.output  # and nothing is predicted again
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == before
    text = refused(call(run_id, "--upsample", "logits", size=""))
    assert "holds predictions of another --upsample" in text
    assert call(run_id, "--size", "24x32", "--out", tmp_path / "o", size="").exit_code == 0


def test_a_snapshot_says_its_size_and_a_split_may_be_trained_on(call: Call, tmp_path: Path) -> None:
    weights = save(tmp_path / "net.safetensors", input_size="48x64")
    assert "Class IoU" in call(weights, "--split", "train", "--out", "o", size="").output
    manifest = json.loads((tmp_path / "o" / "predictions.json").read_text())
    assert (manifest["size"], manifest["split"]) == ("48x64", "train")


def test_a_test_set_without_annotations(
    call: Call, make_store: MakeStore, data: Path, tmp_path: Path
) -> None:
    note = TreeNote("demo", "a test", (48, 64), {"train": 4, "val": 4, "test": 4})
    write_note(data / "cityscapes", note)
    run_id = put_run(make_store(), save(tmp_path / "best.safetensors"))
    result = call(run_id[:6], "--split", "test")
    assert "4 predictions in results/evaluate/lovasz-b2-s0-" in result.output
    assert "No scores: " in result.output
    assert "--submission" not in result.output  # no server has annotations of drawn pictures
    assert "Class IoU" not in result.output
    result = call(run_id, "--split", "test", "--submission", "sub/net.zip")
    assert "sub/net.zip, which no server scores" in result.output
    assert "`a test`" in result.output
    assert "https://www.cityscapes-dataset.com/submit" not in result.output
    with zipfile.ZipFile(tmp_path / "sub" / "net.zip") as archive:
        names = archive.namelist()
    frames = list_frames(data / "cityscapes", "test", labelled=False)
    assert names == [f"{frame.name}_labelIds.png" for frame in frames]
    arguments = (run_id, "--split", "test", "--submission", "sub/net.zip", "--json")
    answer = json.loads(call(*arguments).stdout)
    assert (answer["scores"], answer["submission"]) == (None, "sub/net.zip")
    assert "no annotations of test" in refused(call(run_id, "--split", "test", "--official"))


@pytest.mark.parametrize("server", [CITYSCAPES_SERVER, VOC_SERVER])
def test_how_to_submit_names_archive_and_run(
    data: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    network = Network("net", Path("w"), "cityscapes", "cityscapes", run_id="0123456789abcdef")
    where = data, None, None, Path("my.zip"), None, "cpu", Path("results")
    say_how_to_submit(Request("net", network, "test", *where), server)
    said = capsys.readouterr().out
    assert "upload my.zip" in said.lower()
    assert "lovasz-repro runs record 01234567 --server-scores FILE" in said


def test_an_annotated_test_set_is_scored(call: Call, data: Path, tmp_path: Path) -> None:
    write_cityscapes(data, labelled_test=True)
    answer = json.loads(
        call(save(tmp_path / "net.safetensors"), "--split", "test", "--json").stdout
    )
    assert 0 <= answer["scores"]["test/dataset_miou"] <= 1


def test_predictions_that_were_changed_are_not_packed(
    call: Call, data: Path, tmp_path: Path
) -> None:
    write_note(data / "cityscapes", TreeNote("demo", "a test", (48, 64), {}))
    weights = save(tmp_path / "net.safetensors")
    call(weights, "--split", "test", "--out", "o")
    frames = list_frames(data / "cityscapes", "test", labelled=False)
    shutil.copy(frames[0].label_ids, tmp_path / "o" / f"{frames[0].name}_labelIds.png")
    text = refused(call(weights, "--split", "test", "--out", "o", "--submission", "s.zip"))
    assert "1 problem" in text
    assert "holds 3, no label id of the 19 scored classes" in text
    assert not (tmp_path / "s.zip").exists()


def test_runs_that_cannot_be_evaluated(
    call: Call, make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store()
    weights = save(tmp_path / "best.safetensors")
    failed = put_run(store, weights, "FAILED")
    empty = put_run(store, None)
    stayed = put_run(store, None)
    store.set_tags(stayed, {"left_out": '["best.safetensors"]'})
    camvid = put_run(store, weights, **{"data.name": "camvid"})
    assert "is FAILED, not FINISHED" in refused(call(failed))
    assert "has no best.safetensors in this store. Give" in refused(call(empty))
    assert "--max-artifact" in refused(call(stayed))
    assert "is of camvid; evaluate scores" in refused(call(camvid))
    assert "give at least 6 characters" in refused(call(empty[:5]))
    assert f"no run '{'0' * 32}' in this store" in refused(call("0" * 32))
    twins = [run for run in store.runs() if run.run_id == empty] * 2
    monkeypatch.setattr(Store, "runs", lambda self: twins)
    assert "2 runs begin with" in refused(call(empty[:6]))


def test_weights_and_settings_that_cannot_be(call: Call, data: Path, tmp_path: Path) -> None:
    weights = save(tmp_path / "net.safetensors")
    other = save(tmp_path / "other.safetensors", outputs=11)
    assert "neither a file of weights nor the id of a run" in refused(call("network"))
    assert "no.net: No such file" in refused(call("no.net"))
    assert "11 outputs (x); Cityscapes needs the 20" in refused(call(other))
    assert "must be multiples of 8" in refused(call(weights, size="25x32"))
    assert "add --split test" in refused(call(weights, "--submission", "a.zip"))
    assert "name a .zip" in refused(call(weights, "--split", "test", "--submission", "a.tar"))
    text = refused(call(weights, "--split", "test", "--submission", "a.zip"))
    assert "4 photographs in test, Cityscapes has 1,525" in text
    assert "cityscapes-demo not found" in refused(call(weights, "--folder", "cityscapes-demo"))
    assert not (tmp_path / "results").exists()


def test_data_that_is_missing(call: Call, data: Path, tmp_path: Path) -> None:
    weights, root = save(tmp_path / "net.safetensors"), data / "cityscapes"
    lonely = list_frames(root, "val")[0].label_ids
    lonely.unlink()
    assert f"{lonely}: missing" in refused(call(weights))
    shutil.rmtree(lonely.parent)
    assert f"no folder {lonely.parent.name}" in refused(call(weights))
    shutil.rmtree(root / "leftImg8bit" / "val")
    assert "Cityscapes not found" in refused(call(weights))
    shutil.rmtree(root)
    assert "cityscapes not found at" in refused(call(weights))


def test_a_part_of_a_split_is_told(call: Call, tmp_path: Path) -> None:
    result = call(save(tmp_path / "net.safetensors"))
    assert "4 photographs in val, Cityscapes has 500" in result.output


class Screen(io.StringIO):
    """stdout and stderr of a terminal, as one stream."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What a person sees in the end."""
        lines, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[?\d;]*[a-zA-Z]|[\r\n]|[^\x1b\r\n]+", self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif part.endswith("A"):
                row -= int(part[2:-1])
            elif part.endswith("K"):
                lines[row] = ""
            elif not part.startswith("\x1b"):
                lines[row] = (
                    lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                )
                column += len(part)
        return lines


def test_a_table_begins_on_a_line_of_its_own_where_its_bars_were(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, screen = save(tmp_path / "net.safetensors"), Screen()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, screen)
    for variable, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}.items():
        monkeypatch.setenv(variable, value)
    evaluate(str(weights), data=data, size="24x32", device="cpu", results=tmp_path / "results")
    assert "predicting val" in screen.getvalue()  # a bar was drawn
    lines = screen.lines()
    assert not [line for line in lines if "predicting" in line or line.startswith("scoring")]
    [head] = [number for number, line in enumerate(lines) if line.split()[:1] == ["class"]]
    assert lines[head].split() == ["class", "IoU", "iIoU"]
    assert lines[head + 2].startswith("road ")


def test_the_module_stays_light() -> None:
    code = (
        "import sys, lovasz_repro.cli.evaluate; "
        "heavy = {'torch', 'mlflow', 'pandas', 'matplotlib', 'numpy', 'PIL'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
