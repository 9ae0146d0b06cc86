"""`lovasz-repro bench scoring`: what is scored, that the scores agree, and what is reported."""

import inspect
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.bench import scoring
from lovasz_repro.bench.harness import Advance, Report, to_json, to_markdown
from lovasz_repro.bench.scoring import (
    check_same_scores,
    draw_instances,
    make_scenes,
    mistake,
    page,
    run_bench,
    shares,
)
from lovasz_repro.data.cityscapes import FULL_SIZE
from lovasz_repro.errors import RunFailed
from lovasz_repro.evaluation.cityscapes import CityscapesScores, score_files
from tests.bench.conftest import TOY, Command, Turns

pytest.importorskip("cityscapesscripts")
pytestmark = pytest.mark.skipif(not hasattr(np, "in1d"), reason="NumPy is too new for the script")

SMALL = (96, 160)
TIMES = {
    "official script": (400.0, 300.0),
    "score_files": (40.0, 50.0),
    "reading the files alone": (20.0, 25.0),
}


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], Turns]:
    """The command is on small scenes; what it asks for, and what it is told on the way."""
    called: dict[str, Any] = {}
    turns = Turns()

    def run(advance: Advance, **given: Any) -> Report:
        called.update(given)
        return run_bench(**given, size=SMALL, advance=turns)

    monkeypatch.setattr(scoring, "run_bench", run)
    return called, turns


def test_json_has_everything(
    bench: Command, small: tuple[dict[str, Any], Turns], monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[int] = []

    def alone(*files: Any, **given: int) -> CityscapesScores:
        processes.append(given.get("processes", 1))
        return score_files(*files)

    monkeypatch.setattr(scoring, "score_files", alone)
    code, printed, err = bench("scoring --json --images 2 --rounds 2 --processes 2 --seed 3")
    given, turns = small
    assert code == 0, err
    assert processes == [1, 2] * 3
    assert given == {"images": 2, "processes": 2, "rounds": 2, "seed": 3}
    assert len(turns.taken) == turns.expected
    content: Any = json.loads(printed)
    assert (content["images"], content["rounds"], content["seed"]) == (2, 2, 3)
    assert content["size"] == [96, 160]
    assert content["difference"] < 1e-12
    rows = content["rows"]
    names = [row["name"] for row in rows]
    assert names == [
        "official script", "score_files", "score_files, 2 processes", "reading the files alone",
    ]  # fmt: skip
    assert set(turns.taken) == {*names, "scenes"}
    for row in rows:
        assert len(row["times_ms"]) == 2
        assert row["median_ms"] == pytest.approx(statistics.median(row["times_ms"]))
        quotients = [a / b for a, b in zip(rows[0]["times_ms"], row["times_ms"], strict=True)]
        assert row["speedup"]["median"] == pytest.approx(statistics.median(quotients))


def test_a_table_for_people(bench: Command, small: tuple[dict[str, Any], Turns]) -> None:
    code, printed, err = bench("scoring --images 1 --rounds 1")
    assert code == 0, err
    assert small[0] == {"images": 1, "processes": 1, "rounds": 1, "seed": 0}
    assert "Cityscapes scores of 1 image, 96 x 160" in printed
    assert "score_files" in printed
    assert "processes," not in printed


def test_scenes_are_of_the_size_of_the_data_set() -> None:
    assert inspect.signature(run_bench).parameters["size"].default == FULL_SIZE


def test_a_difference_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "score_files", lambda *files: scores(0.5))
    with pytest.raises(RunFailed, match=r"by the official script\. Nothing is reported"):
        run_bench(2, 1, 2, 0, size=SMALL)


# -- its parts -------------------------------------------------------------------------------------


def scores(value: float) -> CityscapesScores:
    return CityscapesScores(*[value] * 4, {}, {}, {}, {})


def test_scores_must_be_the_same() -> None:
    nan = float("nan")
    assert check_same_scores(scores(0.5), scores(0.5)) == 0
    assert check_same_scores(scores(0.5 + 1e-7), scores(0.5)) == pytest.approx(1e-7)
    assert check_same_scores(scores(nan), scores(nan)) == 0
    for own, official in ((0.5 + 2e-6, 0.5), (nan, 0.5), (0.5, nan)):
        with pytest.raises(RunFailed, match=r"score/dataset_miou is .* by the official script"):
            check_same_scores(scores(own), scores(official))


def test_scenes_have_what_counts(tmp_path: Path) -> None:
    predictions, frames = make_scenes(tmp_path, 2, SMALL, 0)
    assert len(predictions) == len(frames) == 2
    labels = np.asarray(Image.open(frames[0].label_ids))
    instances = np.asarray(Image.open(frames[0].instance_ids))
    prediction = np.asarray(Image.open(predictions[0]))
    assert labels.shape == instances.shape == prediction.shape == SMALL
    assert labels.dtype == prediction.dtype == np.uint8
    assert np.array_equal(labels, np.where(instances < 1000, instances, instances // 1000))
    assert 0.5 < (prediction == labels).mean() < 1


def test_streets_have_instances_groups_and_void() -> None:
    generator = np.random.default_rng(0)
    instances = draw_instances((512, 1024), generator)
    assert 50 < len(np.unique(instances[instances > 1000])) <= 140
    assert ((instances >= 24) & (instances < 34)).any()
    assert ((instances > 0) & (instances < 7)).any()
    assert {29, 30} < set(instances[instances > 1000] // 1000)
    labels = np.where(instances < 1000, instances, instances // 1000).astype(np.uint8)
    told = mistake(labels, generator)
    assert np.isin(told, [0, 9, 10, 14, 15, 16, 18, 29, 30]).any()
    assert told.max() <= 33


def test_reports() -> None:
    found = {"numpy_version": "2.3.5", "images": 3, "size": (1024, 2048), "rounds": 2}
    found |= {"seed": 0, "difference": 2e-16, **shares(TIMES)}
    markdown = to_markdown(Report(TOY, found, [page(TOY, found)]))
    assert "| score_files | 45.0 | 8.00 (7.00–9.00) |" in markdown
    assert "| official script | 350 | 1 |" in markdown
    assert "official one: 2.0e-16" in markdown
    assert "takes 50% of the time of score_files, 7% of that of the official script" in markdown
    content = json.loads(to_json(Report(TOY, found, [])))
    official, own = content["reading_shares"]
    assert official["median"] == pytest.approx((20 / 400 + 25 / 300) / 2)
    assert own == {"median": 0.5, "low": 0.5, "high": 0.5}
