"""One run in full, and several side by side."""

import shlex
from dataclasses import dataclass, field
from typing import Any

import pytest

from lovasz_repro.config.read import parse_overrides
from lovasz_repro.config.schema import CellConfig
from lovasz_repro.report.compare import again, of_moments, side_by_side
from lovasz_repro.report.runs import shipped
from tests.report.conftest import FakeStore


@dataclass
class Stored:
    """A run that holds what a cell would store."""

    params: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    run_id: str = "1" * 32
    name: str = "run"
    status: str = "FINISHED"
    started: float = 0.0


def stored(cell: CellConfig) -> Stored:
    tags = {"profile": cell.profile, "variant": cell.variant, "seed": str(cell.seed)}
    return Stored({k: v for k, v in cell.params.items() if k not in tags}, tags)


def cells_of(text: str) -> list[CellConfig]:
    """What ``lovasz-repro run ...`` trains."""
    program, run, name, *options = shlex.split(text)
    assert (program, run) == ("lovasz-repro", "run")
    given: dict[str, list[str]] = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        given.setdefault(option, []).append(value)
    return shipped(name).cells(
        given.get("--profile", ["paper"])[0],
        variants=given["--variant"],
        categories=given.get("--classes"),
        seeds=[int(seed) for seed in given["--seed"]],
        batch_sizes=[int(size) for size in given["--batch-size"]],
        overrides=parse_overrides(given.get("--set", [])),
    )


@pytest.mark.parametrize(
    ("experiment", "profile", "chosen", "overrides"),
    [
        ("camvid-enet", "reduced", {"variants": ["sum"], "seeds": [2]}, {}),
        (
            "camvid-enet",
            "reduced",
            {"variants": ["sum"], "seeds": [2], "batch_sizes": [4]},
            {"training.lr": 1e-5, "data.size": [88, 120], "model.weights": None},
        ),
        ("voc-binary", "demo", {"variants": ["hinge"], "categories": ["cat"]}, {}),
    ],
)
def test_the_command_that_repeats_a_run_trains_what_it_trained(
    experiment: str, profile: str, chosen: dict[str, Any], overrides: dict[str, Any]
) -> None:
    cell = shipped(experiment).cells(profile, overrides=overrides, **chosen)[-1]
    repeated = cells_of(again(stored(cell), experiment))[-1]
    assert repeated.params == cell.params


def test_of_an_older_run_what_it_lacks_is_not_set() -> None:
    cell = shipped("camvid-enet").cells("reduced", variants=["sum"], seeds=[0])[0]
    older = stored(cell)
    del older.params["training.power"]
    older.params["training.gone"] = "1"
    assert "--set" not in again(older, "camvid-enet")
    assert "mine.yaml" in again(older, "mine")


def test_settings_that_differ_and_metrics_with_their_difference() -> None:
    marks = {"seed": "0", "device": "cpu"}
    one = Stored({"training.lr": "0.1"}, marks | {"variant": "sum"})
    two = Stored({"training.lr": "0.2", "seed": "0"}, {"device": "cuda", "variant": "hinge"})
    one.metrics, two.metrics = {"val/dataset_miou": 0.5, "a": 1.0}, {"val/dataset_miou": 0.625}
    parts = side_by_side([one, two])
    assert parts["settings"] == [
        {"name": "training.lr", "1": 0.1, "2": 0.2},
        {"name": "variant", "1": "sum", "2": "hinge"},
    ]
    assert parts["metrics"] == [
        {"name": "a", "1": 1.0, "2": None, "difference": None},
        {"name": "val/dataset_miou", "1": 0.5, "2": 0.625, "difference": 0.125},
    ]


def test_moments_are_those_of_the_history(camvid: FakeStore) -> None:
    run = next(run for run in camvid.runs("camvid-enet") if "best/iteration" in run.metrics)
    moments = of_moments(camvid, run)
    history = dict(camvid.history(run.run_id, "val/dataset_miou"))
    best = int(run.metrics["best/iteration"])
    expected = {"start": history.get(0), "best": history[best], "last": history[max(history)]}
    assert moments["val/dataset_miou"] == expected
    assert moments["test/dataset_miou"]["last"] == run.metrics["test/dataset_miou"]
    assert not any(name.startswith("initial/") for name in moments)
