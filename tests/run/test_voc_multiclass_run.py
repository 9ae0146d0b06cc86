"""Whole runs of the multiclass experiment on small trees: scores at three scales, with the CRF."""

import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import distributed

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.classes import VOC
from lovasz_repro.data.voc import list_images
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.crf import crf_key
from lovasz_repro.evaluation.predictor import MultiScale
from lovasz_repro.evaluation.regimes import open_folder, score_regimes
from lovasz_repro.host.processes import Interrupted
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.provenance import fingerprint_files
from lovasz_repro.launch.plan import print_plan
from lovasz_repro.launch.request import GridRequest
from lovasz_repro.run import regimes as run_regimes
from lovasz_repro.run.evaluate import load_voc_network
from lovasz_repro.run.experiment import Outcome, run_experiment
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.run.session import Session
from lovasz_repro.store import Store
from lovasz_repro.training.distributed import ALONE, Team
from tests.ranks import RankPool
from tests.tiny_voc import write_multiclass_experiment, write_voc

CPU = torch.device("cpu")
Run = Callable[..., tuple[Outcome, Store, Place]]


@pytest.fixture
def run(tmp_path: Path, make_store: Callable[..., Store]) -> Run:
    """``run()``: the variant x-loss on a fresh tree, or on the one that is there."""

    def runs(**evaluation: Any) -> tuple[Outcome, Store, Place]:
        loaded = load_experiment(str(write_multiclass_experiment(tmp_path, **evaluation)))
        if not (tmp_path / "data").exists():
            write_voc(tmp_path / "data" / "tiny", val=5)
        results = tmp_path / "results"
        store = Store(results) if results.exists() else make_store()
        place = Place(store.results, tmp_path / "data", None, CPU)
        cells = loaded.cells("demo", variants=["x-loss"])
        return run_experiment(loaded, cells, place, store, Progress()), store, place

    return runs


@pytest.fixture
def densecrf() -> Any:
    return pytest.importorskip("pydensecrf.densecrf")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of photographs that are predicted, chunk by chunk of two."""
    monkeypatch.setattr("lovasz_repro.evaluation.regimes.CHUNK", 2)
    counted: list[int] = []
    plain = MultiScale.probabilities

    def counting(*arguments: Any) -> Any:
        counted.append(1)
        return plain(*arguments)

    monkeypatch.setattr(MultiScale, "probabilities", counting)
    return counted


def test_a_run_is_scored_at_three_scales_and_with_the_crf(
    densecrf: Any, run: Run, passes: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, store, place = run()
    assert outcome.finished == ["x-loss-b3-s0"]
    assert len(passes) == 5
    (stored,) = store.runs("voc-multiclass")
    told = capsys.readouterr().err
    for regime, words in (("multi_scale", "scales"), ("crf", "scales with the CRF")):
        names = ["dataset_miou", "image_miou", *(f"iou/{name}" for name in VOC.names)]
        for name in names[:2]:
            ((step, value),) = store.history(stored.run_id, f"val/{regime}/{name}")
            assert step == 4
            assert 0 <= value <= 1
        logged = {
            key.removeprefix(f"val/{regime}/")
            for key in stored.metrics
            if key.startswith(f"val/{regime}/")
        }
        assert {"dataset_miou", "image_miou", "iou/background"} <= logged <= set(names)
        percent = f"{stored.metrics[f'val/{regime}/dataset_miou']:.2%}"
        assert f"val at several {words}: mIoU {percent}" in told

    # From the stored weights, with nothing of the run's files, come the same scores ...
    root = place.data / "tiny"
    cell = load_experiment(str(place.results.parent / "voc-multiclass.yaml")).cells("demo")[0]
    images, network = list_images(root, "val"), NETWORKS["deeplab-v2-small"]
    assert cell.evaluation.multi_scale
    predictor = MultiScale(
        load_voc_network(store.artifact(stored.run_id, "best.safetensors")),
        network,
        CPU,
        multi_scale=cell.evaluation.multi_scale,
    )
    data = fingerprint_files([image.image for image in images], root)
    elsewhere = open_folder(place.results / "elsewhere", predictor, data)
    scorings = score_regimes(predictor, images, elsewhere, cell.evaluation.crf)
    assert len(passes) == 10
    for regime, scoring in scorings.items():
        for name, value in scoring.as_metrics(f"val/{regime}").items():
            if name in stored.metrics:
                assert stored.metrics[name] == pytest.approx(value, abs=1e-9, nan_ok=True)
    # ... and its folder is found by these weights
    folder = open_folder(place.results / "work" / "probabilities", predictor, data)
    assert str(folder) in told
    assert cell.evaluation.crf
    labels = folder / "crf" / crf_key(cell.evaluation.crf)
    assert len(list(folder.glob("*.png"))) == len(list(labels.glob("*.png"))) == 5
    assert f"({sum(f.stat().st_size for f in folder.rglob('*.png')) / 1e6:,.0f} MB)" in told
    assert run()[0].skipped == ["x-loss-b3-s0"]


def test_a_run_that_is_stopped_while_scoring_goes_on_there(
    densecrf: Any, run: Run, passes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_regimes.do_and_look
    chunks: list[int] = []

    def stop_after_two(work: Callable[[], None], session: Session) -> None:
        chunks.append(1)
        if len(chunks) == 2:
            signal.raise_signal(signal.SIGTERM)
        plain(work, session)

    monkeypatch.setattr(run_regimes, "do_and_look", stop_after_two)
    with pytest.raises(Interrupted, match="predictions so far are kept") as stopped:
        run()
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert len(passes) == 4
    monkeypatch.setattr(run_regimes, "do_and_look", plain)
    outcome, store, _ = run()
    assert outcome.finished == ["x-loss-b3-s0"]
    assert len(passes) == 5
    (stored,) = store.runs("voc-multiclass")
    assert len(store.history(stored.run_id, "val/crf/dataset_miou")) == 1


def test_without_the_crf_only_scales_are_scored(run: Run, passes: list[int]) -> None:
    outcome, store, _ = run(crf=None)
    assert outcome.finished == ["x-loss-b3-s0"]
    (stored,) = store.runs("voc-multiclass")
    assert "val/multi_scale/dataset_miou" in stored.metrics
    assert not [name for name in stored.metrics if "crf" in name]


def test_a_missing_crf_is_told_before_training(
    run: Run,
    tmp_path: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    ways_out = (
        r"pip install -c constraints.txt '\.\[crf\]', or score without .* evaluation\.crf=null"
    )
    with pytest.raises(UserError, match=ways_out):
        run()
    assert not list((tmp_path / "results" / "work").rglob("journal.jsonl"))
    loaded = load_experiment(str(tmp_path / "voc-multiclass.yaml"))
    request = GridRequest("", loaded, loaded.cells("demo"), [], store.results, tmp_path / "data")
    print_plan(request)
    assert "not ready" in capsys.readouterr().out
    without = loaded.cells("demo", variants=["x-loss"], overrides={"evaluation.crf": None})
    print_plan(replace(request, cells=without))
    assert "not ready" not in capsys.readouterr().out


# -- ranks ---------------------------------------------------------------------------------------


class Log(Session):
    """A session that keeps what is logged."""

    def __init__(self, team: Team) -> None:
        cell = load_experiment("voc-multiclass").cells("demo")[0]
        super().__init__(team, cast(Store, None), "", Path(), cell, Progress(), "run")
        self.logged: dict[str, float] = {}

    def log(self, iteration: int, values: dict[str, float]) -> None:
        assert iteration == 4
        self.logged |= values


def scores_of(team: Team, experiment: Path, data: Path, results: Path) -> dict[str, float]:
    cell = load_experiment(str(experiment)).cells("demo", variants=["x-loss"])[0]
    torch.manual_seed(3)
    model = NETWORKS["deeplab-v2-small"].build(21, cell.model)
    session = Log(team)
    place = Place(results, data, None, CPU)
    inputs = Inputs(data, None, {}, "")
    run_regimes.score_regimes_of_run(model, cell, inputs, place, session, split="seen/val")
    return session.logged


def on_ranks(rank: int, group: distributed.ProcessGroup, *paths: Path) -> dict[str, float]:
    return scores_of(Team(rank, group.size(), group), *paths)


@pytest.mark.slow
def test_two_ranks_score_what_one_does(densecrf: Any, rank_pool: RankPool, tmp_path: Path) -> None:
    experiment = write_multiclass_experiment(tmp_path)
    data = write_voc(tmp_path / "data", val=5)
    alone = scores_of(ALONE, experiment, data, tmp_path / "alone")
    assert {name.rsplit("/", 1)[0] for name in alone} >= {"seen/val/multi_scale", "seen/val/crf"}
    answers = rank_pool.run(on_ranks, 2, experiment, data, tmp_path / "shared")
    for answer in answers:
        assert answer == pytest.approx(alone, nan_ok=True)
