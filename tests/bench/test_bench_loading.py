"""``bench loading`` on a small CamVid, through the command line."""

import json
from pathlib import Path

import pytest

from tests.bench.conftest import Command
from tests.tiny_camvid import write_camvid, write_experiment
from tests.tiny_cityscapes import EXPERIMENT, write_cityscapes


@pytest.fixture
def on_camvid(bench: Command, tmp_path: Path) -> Command:
    """Call ``bench loading`` for a small CamVid with these options."""
    experiment, data = write_experiment(tmp_path), write_camvid(tmp_path / "data")
    command = f"loading {experiment} --data {data} --profile demo --device cpu"
    return lambda options: bench(f"{command} --results {tmp_path}/results {options}")


def test_it_reports_every_number_of_workers(on_camvid: Command) -> None:
    code, out, err = on_camvid("--workers 0 --workers 1 --batches 2 --rounds 2 --json")
    assert code == 0, err
    report = json.loads(out)
    assert [loader["workers"] for loader in report["loaders"]] == [0, 1]
    steps = report["step_images_per_second"]
    assert len(steps) == 2
    assert min(steps) > 0
    for loader in report["loaders"]:
        ratios = [a / b for a, b in zip(loader["images_per_second"], steps, strict=True)]
        assert min(ratios) <= loader["in_steps"]["median"] <= max(ratios)


@pytest.mark.parametrize(
    ("form", "row"),
    [("", "loader alone, the same process"), ("--markdown", "| training step alone |")],
)
def test_tables_for_people_and_for_documents(on_camvid: Command, form: str, row: str) -> None:
    code, out, err = on_camvid(f"--workers 0 --batches 1 --rounds 1 {form}")
    assert code == 0, err
    assert row in out


def test_more_batches_than_there_are_is_a_mistake(on_camvid: Command) -> None:
    code, _, err = on_camvid("--batches 4")
    assert code == 2
    assert "--batches 4: lovasz-softmax-b2-s0 has no more" in err


def test_a_grid_that_ends_with_equibatch_is_measured_too(bench: Command, tmp_path: Path) -> None:
    file = tmp_path / "tiny-streets.yaml"
    file.write_text(EXPERIMENT)
    data = write_cityscapes(tmp_path / "data")
    command = f"loading {file} --profile demo --data {data} --results {tmp_path}/results"
    code, out, err = bench(f"{command} --device cpu --workers 0 --batches 1 --rounds 1")
    assert code == 0, err
    assert "tiny-streets, 3×24×32" in out
