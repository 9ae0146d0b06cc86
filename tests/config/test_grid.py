"""A grid that is printed as a file is the same grid: the same runs, by every setting."""

import pytest
import yaml

from lovasz_repro.config.grid import experiment_of
from lovasz_repro.config.read import validate
from lovasz_repro.config.schema import (
    CellConfig,
    ExperimentConfig,
    experiment_names,
    load_experiment,
)

TRAINING = [name for name in experiment_names() if name != "synthetic"]


def read_back(text: str, profile: str) -> list[CellConfig]:
    return validate(ExperimentConfig, yaml.safe_load(text), "printed").cells(profile)


@pytest.mark.parametrize(
    ("name", "profile"),
    [(name, profile) for name in TRAINING for profile in load_experiment(name).profiles],
)
def test_every_grid_comes_back(name: str, profile: str) -> None:
    loaded = load_experiment(name)
    cells = loaded.cells(profile)
    again = read_back(yaml.safe_dump(experiment_of(loaded, cells)), profile)
    assert {cell.model_dump_json() for cell in again} == {c.model_dump_json() for c in cells}
    assert len(again) == len(cells)


def test_a_part_of_a_grid_with_changes_comes_back() -> None:
    loaded, changes = load_experiment("voc-binary"), {"training.lr": 1e-5, "evaluation.examples": 3}
    part = {"variants": ["hinge"], "categories": ["cat", "dog"], "seeds": [4, 2]}
    cells = loaded.cells("demo", overrides=changes, **part)  # type: ignore[arg-type]
    again = read_back(yaml.safe_dump(experiment_of(loaded, cells)), "demo")
    assert again == cells
