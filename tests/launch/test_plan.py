"""How long a plan takes: from stored speeds of the same device and size, or not known."""

from dataclasses import replace
from pathlib import Path

import pytest

from lovasz_repro.config.read import dotted
from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.launch.plan import differences, estimate
from lovasz_repro.store import StoredRun
from lovasz_repro.training.loop import SPEED
from tests.tiny_camvid import write_experiment

SCALES = "evaluation.multi_scale"


@pytest.fixture
def cells(tmp_path: Path) -> list[CellConfig]:
    return load_experiment(str(write_experiment(tmp_path))).cells()


def stored(cell: CellConfig, speed: float, **tags: str) -> StoredRun:
    params = dotted(cell.model_dump(mode="json"))
    tags = {"device": "GPU", "ranks": "1"} | tags
    return StoredRun(
        "a1b2c3", "tiny", cell.name, "FINISHED", None, 0.0, 1.0, params, tags, {SPEED: speed}
    )


def test_hours_come_from_the_speed_of_a_run_of_the_same_size(cells: list[CellConfig]) -> None:
    run = stored(cells[0], speed=2.0)
    left = [(cells[0], 3600), (cells[1], 1800)]  # batches of 2: 5400 s at 2 images/s
    text = estimate(left, [run], "GPU", 1)
    assert text.startswith("Trains for about 1.5 h on GPU (2 images/s, measured in run a1b2c3)")
    assert "not measured" not in text


def test_the_speed_of_something_else_is_not_taken(cells: list[CellConfig]) -> None:
    left = [(cells[0], 100)]
    size = cells[0].model_copy(update={"data": cells[0].data.model_copy(update={"size": (1, 1)})})
    without = replace(stored(cells[0], 2.0), metrics={})
    for run in (
        stored(cells[0], 2.0, device="CPU"),
        stored(cells[0], 2.0, ranks="4"),
        stored(size, 2.0),
        without,
    ):
        assert "is not known: no stored run of this size on GPU" in estimate(left, [run], "GPU", 1)
    run = stored(cells[0], 2.0, ranks="4")
    assert "on 4 x GPU (2 images/s" in estimate(left, [run], "GPU", 4)


def test_what_is_done_takes_no_time(cells: list[CellConfig]) -> None:
    assert estimate([(cells[0], 0)], [], "GPU", 1) == "Nothing is left to train."
    larger = cells[1].model_copy(
        update={"training": cells[1].training.model_copy(update={"batch_size": 4})}
    )
    text = estimate([(cells[0], 60), (larger, 60)], [stored(cells[0], 2.0)], "GPU", 1)
    assert "not measured: the size of 1 run." in text
    assert "about 1 min on" in text  # 60 batches of 2 at 2 images/s


def test_a_section_that_one_run_lacks_is_told_once() -> None:
    several, *_ = load_experiment("voc-multiclass").cells()
    empty = several.evaluation.model_copy(update={"multi_scale": None})
    bare = several.model_copy(update={"evaluation": empty})
    told = differences(bare, several)
    assert "evaluation.multi_scale.scales=[1.0, 0.75, 0.5]" in told
    assert "evaluation.multi_scale=" not in told
    assert differences(several, bare) == f"evaluation.multi_scale={bare.params[SCALES]}"
