"""``bench loading`` on a small CamVid, through the command line."""

import json
import sys
from pathlib import Path

import pytest

from lovasz_repro import cli
from tests.tiny_camvid import write_camvid, write_experiment
from tests.tiny_cityscapes import EXPERIMENT, write_cityscapes


def bench(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> int:
    experiment = str(write_experiment(folder))
    data = str(write_camvid(folder / "data") if not (folder / "data").exists() else folder / "data")
    command = ["lovasz-repro", "bench", "loading", experiment, "--data", data, "--profile", "demo"]
    command += ["--results", str(folder / "results"), "--device", "cpu", *options]
    monkeypatch.setattr(sys, "argv", command)
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_it_reports_every_number_of_workers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--workers", "0", "--workers", "1", "--batches", "2", "--rounds", "2", "--json")
    assert bench(monkeypatch, tmp_path, *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert [loader["workers"] for loader in report["loaders"]] == [0, 1]
    steps = report["step_images_per_second"]
    assert len(steps) == 2
    assert min(steps) > 0
    for loader in report["loaders"]:
        ratios = [a / b for a, b in zip(loader["images_per_second"], steps, strict=True)]
        assert min(ratios) <= loader["in_steps"]["median"] <= max(ratios)


def test_tables_for_people_and_for_documents(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--workers", "0", "--batches", "1", "--rounds", "1")
    assert bench(monkeypatch, tmp_path, *options) == 0
    assert "loader alone, the same process" in capsys.readouterr().out
    assert bench(monkeypatch, tmp_path, *options, "--markdown") == 0
    assert "| training step alone |" in capsys.readouterr().out


def test_more_batches_than_there_are_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert bench(monkeypatch, tmp_path, "--batches", "4") == 2
    assert "--batches 4: lovasz-softmax-b2-s0 has no more" in capsys.readouterr().err


def test_a_grid_that_ends_with_equibatch_is_measured_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "tiny-streets.yaml"
    file.write_text(EXPERIMENT)
    data = str(write_cityscapes(tmp_path / "data"))
    command = ["lovasz-repro", "bench", "loading", str(file), "--profile", "demo", "--data", data]
    command += ["--results", str(tmp_path / "results"), "--device", "cpu", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", [*command, "--batches", "1", "--rounds", "1"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "tiny-streets, 3×24×32" in capsys.readouterr().out
