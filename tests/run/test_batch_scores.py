"""Batches with every class in a run: scored after training, by any number of ranks, once each."""

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import distributed

from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.data.datasets import dataset
from lovasz_repro.data.voc import read_labels
from lovasz_repro.errors import UserError
from lovasz_repro.host.processes import Interrupted
from lovasz_repro.host.progress import Progress
from lovasz_repro.models.deeplab import EvidenceNet
from lovasz_repro.models.snapshot import load_evidence_net
from lovasz_repro.run import regimes as module
from lovasz_repro.run.inputs import Place
from lovasz_repro.run.regimes import batches_of_run, score_batches_of_run
from lovasz_repro.store import Store
from lovasz_repro.training.distributed import ALONE, Team
from tests.ranks import RankPool
from tests.tiny_voc import write_voc

CPU = torch.device("cpu")
SCORES = ("miou", "miou_decision_rule", "expected_miou", "expected_miou_decision_rule")
History = dict[str, list[tuple[int, float]]]


def tiny_cell(**changes: Any) -> CellConfig:
    """Two steps of a run on evidence, and five batches of four images: bird, cat and person."""
    overrides = {
        "data.folder": "tiny",
        "data.size": [33, 33],
        "model.weights": None,
        "training.iterations": 2,
        "training.validate_every": 2,
        "training.checkpoint_every": 2,
        "evaluation.examples": 0,
        "evaluation.batches": {"count": 5, "size": 4},
    } | changes
    (cell,) = load_experiment("voc-multiclass").cells(
        "features", variants=["x-loss"], seeds=[0], batch_sizes=[3], overrides=overrides
    )
    return cell


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_voc(tmp_path / "data" / "tiny", photographs=False)
    return tmp_path / "data"


def run(cell: CellConfig, data: Path, store: Store) -> tuple[Any, str]:
    """The whole run -> its outcome and what was on the screen."""
    from lovasz_repro.run.experiment import run_experiment

    screen = io.StringIO()
    progress = Progress(Console(file=screen, width=200))
    place = Place(store.results, data, None, CPU)
    outcome = run_experiment(load_experiment("voc-multiclass"), [cell], place, store, progress)
    return outcome, screen.getvalue()


def histories(store: Store) -> History:
    (stored,) = store.runs("voc-multiclass")
    names = [prefix + name for prefix in ("", "mean_") for name in SCORES]
    return {name: store.history(stored.run_id, f"batches/{name}") for name in names}


def test_a_run_scores_its_batches_after_training(
    data: Path, make_store: Callable[..., Store]
) -> None:
    store, cell = make_store(), tiny_cell()
    outcome, screen = run(cell, data, store)
    assert outcome.finished == ["x-loss-b3-s0"]
    found = histories(store)
    for name in SCORES:
        assert [step for step, _ in found[name]] == [0, 1, 2, 3, 4]
        mean = np.mean([value for _, value in found[name]])
        assert found[f"mean_{name}"] == [(2, pytest.approx(mean, rel=1e-12))]
    (stored,) = store.runs("voc-multiclass")
    model = EvidenceNet(21)
    load_evidence_net(model, store.artifact(stored.run_id, "best.safetensors"))
    batches = batches_of_run(cell, data / "tiny")
    for (_, value), batch in zip(found["miou"], batches, strict=True):
        assert value == pytest.approx(by_hand(model, data / "tiny", cell, batch), abs=1e-12)
    values = [100 * value for _, value in found["miou"]]
    expected = f"5 batches of 4 images: batch-mIoU {np.mean(values):.2f} ± "
    assert f"{expected}{np.std(values, ddof=1):.2f} %, by the decision rule " in screen


def by_hand(model: EvidenceNet, root: Path, cell: CellConfig, batch: list[int]) -> float:
    """Batch-mIoU by counting the pixels of three birds, cats and persons."""
    scored = dataset("voc").scored(root, "val", cell.data)
    predicted, truth = [], []
    for index in batch:
        evidence, _ = scored[index]
        mask = root / "VOC2012" / "SegmentationClassAug" / f"2007_{9 + index:06}.png"
        labels = np.asarray(read_labels(mask))
        with torch.no_grad():
            logits = model(evidence[None])
        size = [8 * (points - 1) + 1 for points in logits.shape[-2:]]
        full = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=True)
        answer = full[0].argmax(dim=0).numpy()[: labels.shape[0], : labels.shape[1]]
        predicted.append(answer[labels != 255])
        truth.append(labels[labels != 255])
    y, t = np.concatenate(predicted), np.concatenate(truth)
    assert set(t.tolist()) == {0, 3, 8, 15}
    scores = [((y == c) & (t == c)).sum() / ((y == c) | (t == c)).sum() for c in (0, 3, 8, 15)]
    return float(np.mean(scores))


@pytest.mark.slow
def test_a_run_that_ends_among_its_batches_scores_them_again_and_stores_them_once(
    data: Path, make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked to stop in its third batch, then crashed in its second; then to the end."""
    whole, ended = make_store("whole"), make_store("ended")
    run(tiny_cell(), data, whole)
    real, calls = module.score_batch, []

    def scored(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        if len(calls) == 5:
            raise MemoryError
        return real(*arguments, **options)

    monkeypatch.setattr(module, "score_batch", scored)
    with pytest.raises(Interrupted, match=r"after 3 of 5 batches, training is saved\. Run the"):
        run(tiny_cell(), data, ended)
    assert len(calls) == 3
    with pytest.raises(MemoryError):
        run(tiny_cell(), data, ended)
    assert len(calls) == 5
    assert all(values == [] for values in histories(ended).values())
    outcome, screen = run(tiny_cell(), data, ended)
    assert outcome.finished == ["x-loss-b3-s0"]
    assert "goes on from iteration 2" in screen
    assert len(calls) == 10
    assert histories(ended) == histories(whole)


def test_batches_that_there_are_not_are_said_before_training(
    data: Path, make_store: Callable[..., Store]
) -> None:
    wrong = {"evaluation.batches": {"count": 5, "size": 7}}
    expected = (
        r"tiny: no batch of 7 different images can be drawn from 6\. "
        r"Set evaluation\.batches\.size, or do without: evaluation\.batches=null\."
    )
    store = make_store()
    with pytest.raises(UserError, match=expected):
        run(tiny_cell(**wrong), data, store)
    assert list(store.runs("voc-multiclass")) == []  # known before anything is stored
    assert batches_of_run(tiny_cell(**{"evaluation.batches": None}), data / "none") == []
    (data / "tiny" / "VOC2012" / "SegmentationClassAug" / "2007_000012.png").unlink()
    module.presence_of.cache_clear()
    with pytest.raises(UserError, match=r"2007_000012\.png"):
        batches_of_run(tiny_cell(), data / "tiny")


def test_every_run_has_the_same_batches(data: Path) -> None:
    first, other = tiny_cell(), tiny_cell(**{"training.lr": 0.5})
    batches = batches_of_run(first, data / "tiny")
    assert batches == batches_of_run(other.model_copy(update={"seed": 5}), data / "tiny")
    assert len({tuple(sorted(batch)) for batch in batches}) > 1
    for batch in batches:
        assert {index % 3 for index in batch} == {0, 1, 2}  # image k holds the class k % 3


# -- ranks -----------------------------------------------------------------------------------------


class Session:
    """What the stage needs of a session."""

    def __init__(self, team: Team, stop_at: int | None = None) -> None:
        self.team, self.progress, self.stop_at = team, Progress(Console(quiet=True)), stop_at
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.lines: list[str] = []
        self.asked = 0

    def log(self, iteration: int, values: dict[str, float]) -> None:
        self.logged.append((iteration, values))

    def line(self, text: str) -> None:
        self.lines.append(text)

    def stop_if_asked(self) -> None:
        pytest.fail("no image is left that a temperature could be fitted on")

    def stop_asked(self) -> int:
        self.asked += 1
        return self.team.largest(15 if self.asked == self.stop_at else 0)


class WithoutImage:
    """A split one of whose images cannot be read."""

    def __init__(self, images: Any, missing: int) -> None:
        self.images, self.missing = images, missing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        if index == self.missing:
            raise UserError("image 5 is unreadable")
        return self.images[index]


def score(
    rank: int, group: Any, root: Path, stop_at: int | None = None, missing: int = -1
) -> tuple[Any, ...]:
    """Score five batches on one of the ranks -> all that was logged and said, and the error."""
    size = distributed.get_world_size(group) if group else 1
    session: Any = Session(Team(rank, size, group) if group else ALONE, stop_at if rank else None)
    cell = tiny_cell()
    torch.manual_seed(1)
    model = EvidenceNet(21)
    images: Any = WithoutImage(dataset("voc").scored(root, "val", cell.data), missing)
    place = Place(root, root, None, CPU)
    batches = [[0, 1, 2, 3], [3, 4, 5, 0], [1, 2, 3], [2, 3, 4, 1], [0, 4, 2, 3]]
    error = ""
    try:
        score_batches_of_run(model, images, batches, cell, place, session, prefix="seen/")
    except (Interrupted, UserError) as raised:
        error = str(raised)
    return session.logged, session.lines, session.asked, error


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ranks_logs_the_same(ranks: int, data: Path, rank_pool: RankPool) -> None:
    logged, lines, _, _ = score(0, None, data / "tiny")
    assert [step for step, _ in logged] == [0, 1, 2, 3, 4, 2]
    assert {name for _, values in logged[:5] for name in values} == {
        f"seen/batches/{name}" for name in SCORES
    }
    for found, said, asked, error in rank_pool.run(score, ranks, data / "tiny"):
        assert [step for step, _ in found] == [step for step, _ in logged]
        for (_, values), (_, expected) in zip(found, logged, strict=True):
            assert values == pytest.approx(expected, abs=1e-9)  # other numbers of threads
        assert (said, asked, error) == (lines, -(-5 // ranks), "")


def test_a_rank_that_is_asked_to_stop_stops_all(data: Path, rank_pool: RankPool) -> None:
    for logged, _, asked, error in rank_pool.run(score, 2, data / "tiny", 2):
        assert (len(logged), asked) == (4, 2)
        assert error.startswith("Stopped after 4 of 5 batches")
    for logged, lines, _, error in rank_pool.run(score, 2, data / "tiny", 3):
        assert (len(logged), len(lines), error) == (6, 1, "")  # none is left


def test_an_image_that_a_rank_cannot_read_fails_all(data: Path, rank_pool: RankPool) -> None:
    for logged, _, _, error in rank_pool.run(score, 2, data / "tiny", None, 5):
        assert error == "image 5 is unreadable"
        assert logged == []  # it is in the second batch, which is that of rank 1
