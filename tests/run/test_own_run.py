"""Losses on data of one's own: the same runs as of a known data set, and from a command."""

import math
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from lovasz_repro.cli import app
from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.data.classes import CAMVID
from lovasz_repro.data.datasets import kind_of
from lovasz_repro.errors import UserError
from lovasz_repro.host.progress import Progress
from lovasz_repro.launch.tune import FACTORS, at_rates, best_rates, searched
from lovasz_repro.run.build import build_model, build_optimizer, open_data, training_batches
from lovasz_repro.run.experiment import run_experiment
from lovasz_repro.run.inputs import Place, find_inputs
from lovasz_repro.run.own import filled_in
from lovasz_repro.store import Store
from lovasz_repro.training.distributed import ALONE
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import build_objective
from tests.data.test_own import as_own
from tests.tiny_camvid import EXPERIMENT, write_camvid, write_experiment

CPU = torch.device("cpu")
NETS = """
from torch import nn

def small(classes):
    first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, classes, 1))
"""


@pytest.fixture
def results(store: Store) -> Path:
    return store.results


def write_shapes(root: Path, *classes: str) -> Path:
    """A folder of six noisy images of squares, one class each, split by lists."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    generator = np.random.default_rng(0)
    for number in range(6):
        labels = generator.integers(0, len(classes), (5, 6)).repeat(8, 0).repeat(8, 1)
        photograph = 40 + 60 * labels[..., None] + generator.integers(0, 30, (40, 48, 3))
        Image.fromarray(photograph.astype(np.uint8)).save(root / "images" / f"im {number}.png")
        Image.fromarray(labels.astype(np.uint8)).save(root / "masks" / f"im {number}.png")
    for split, numbers in {"train": range(4), "val": (4, 5)}.items():
        (root / f"{split}.txt").write_text("".join(f"im {number}\n" for number in numbers))
    (root / "classes.txt").write_text("\n".join(classes))
    return root


# -- CamVid by this way ------------------------------------------------------------------------


def check_same(cells: tuple[CellConfig, CellConfig], places: tuple[Place, Place]) -> None:
    """Both runs have the same losses at every step, and the same scores at the end."""
    found = []
    for cell, place in zip(cells, places, strict=True):
        experiment = load_experiment("camvid-enet")
        run_experiment(experiment, [cell], place, Store(place.results), Progress())
        store = Store(place.results)
        (run,) = (r for r in store.runs(cell.experiment) if r.tags["identity"] ==
                  find_inputs(cell, place).identity)  # fmt: skip
        metrics = {k: v for k, v in run.metrics.items() if k.startswith(("val/", "test/"))}
        found.append((store.history(run.run_id, "train/loss"), metrics))
    (losses, scores), (others, own_scores) = found
    assert len(losses) == cells[0].training.iterations
    assert dict(others) == pytest.approx(dict(losses), rel=1e-6)
    for name, score in scores.items():
        assert own_scores[name] == pytest.approx(score, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize("variant", ["weighted-cross-entropy", "lovasz-softmax"])
def test_camvid_by_this_way_trains_as_camvid_does(
    tmp_path: Path, results: Path, variant: str
) -> None:
    data = write_camvid(tmp_path / "data")
    as_own(data / "camvid", data / "own")
    experiment = load_experiment(str(write_experiment(tmp_path, EXPERIMENT)))
    own = {"data.name": "own", "data.classes": [*CAMVID.names], "data.resize": True}
    pair = tuple(experiment.cells("demo", variants=[variant], overrides=o)[0] for o in ({}, own))
    place = Place(results, data, None, CPU)
    check_same(pair, (place, place))  # type: ignore[arg-type]


def losses_of(cell: CellConfig, place: Place, steps: int) -> list[float]:
    """The losses of the first steps, without any scoring."""
    inputs, kind = find_inputs(cell, place), kind_of(cell.data)
    torch.manual_seed(cell.seed)
    train_set, _ = open_data(cell, inputs)
    model = build_model(cell, inputs, CPU)
    state = TrainingState(model, build_optimizer(model, cell.training))
    objective = build_objective(cell.loss, kind.ignore_index)
    batches = training_batches(cell, train_set, None, place, ALONE, start=0)
    return [
        training_step(state, model, *batch, objective, cell.training, 2.5e-4, CPU)
        for batch in islice(batches, steps)
    ]


@pytest.mark.slow
def test_the_real_camvid_by_this_way_trains_as_camvid_does(
    tmp_path: Path, camvid_root: Path, enet_weights: Path
) -> None:
    """From the released network, whose outputs the classes' names choose."""
    cell = load_experiment("camvid-enet").cells("demo", variants=["lovasz-softmax"])[0]
    folder = as_own(camvid_root, tmp_path / "own")
    data = {"name": "own", "classes": CAMVID.names, "resize": True}
    own = cell.model_copy(update={"data": cell.data.model_copy(update=data)})
    places = [Place(tmp_path, root.parent, enet_weights, CPU) for root in (camvid_root, folder)]
    known, found = (losses_of(*pair, 3) for pair in zip((cell, own), places, strict=True))
    assert found == pytest.approx(known, rel=1e-6)


# -- from a command ----------------------------------------------------------------------------


def run_own(folder: Path, results: Path, *more: str) -> Result:
    given = ["run", "own", "--data", str(folder), "--results", str(results)]
    small = ["training.iterations=2", "training.validate_every=2", "data.size=[16,16]"]
    given += [part for setting in small for part in ("--set", setting)]
    return CliRunner().invoke(app, [*given, "--batch-size", "2", *more], catch_exceptions=True)


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny_own_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "tiny_own_nets.py"


VARIANTS = [
    "--variant", "cross-entropy", "--variant", "lovasz-softmax", "--variant",
    "cross-entropy-then-lovasz",
]  # fmt: skip


def test_a_strangers_network_is_compared_and_the_answer_is_told(
    tmp_path: Path, results: Path, nets: Path
) -> None:
    folder = write_shapes(tmp_path / "my shapes", "ground", "disc", "dot")
    options = ["--network", "tiny_own_nets:small", "--seed", "0", "--seed", "1", *VARIANTS]
    done = run_own(folder, results, *options)
    assert done.exit_code == 0, done.output
    assert "8 finished" in done.output
    assert "Lovász-Softmax" in done.output
    store = Store(results)
    runs = {run.name: run for run in store.runs("own")}
    assert len(runs) == 8  # two seeds of the three, and of what the third starts from
    for run in runs.values():
        share = sum(run.metrics[f"train/share/{name}"] for name in ("ground", "disc", "dot"))
        assert share == pytest.approx(1)
    steps = {name: run.params["training.iterations"] for name, run in runs.items()}
    assert (steps["basis-b2-s0"], steps["cross-entropy-b2-s0"]) == ("1", "2")
    begun = dict(store.history(runs["basis-b2-s0"].run_id, "val/dataset_miou"))[1]
    fine = runs["cross-entropy-then-lovasz-b2-s0"]
    assert dict(store.history(fine.run_id, "val/dataset_miou"))[0] == pytest.approx(begun)
    assert (results / "report" / "figures" / "own.png").is_file()
    again = run_own(folder, results, *options)
    assert "8 done before" in again.output
    nets.write_text(NETS.replace("nn.ReLU", "nn.Tanh"))
    planned = run_own(folder, results, *options, "--dry-run")
    assert "done" not in planned.output  # the code of the network is part of what a run is


def test_two_classes_get_the_binary_losses(tmp_path: Path, results: Path) -> None:
    folder = write_shapes(tmp_path / "discs", "ground", "disc")
    for lacking in (["--tune", "--procs", "2"], ["--network", "json:nothere"]):
        refused = run_own(folder, results, "--dry-run", "--seed", "0", *lacking).exception
        assert isinstance(refused, UserError)
        assert lacking[0].strip("-") in str(refused)
    planned = run_own(folder, results, "--dry-run", "--seed", "0")
    for variant in ("binary-cross-entropy", "hinge", "lovasz-hinge", "soft-iou"):
        assert f"{variant}-b2-s0" in planned.output
    assert "lovasz-softmax" not in planned.output
    done = run_own(folder, results, "--seed", "0", "--variant", "lovasz-hinge")
    assert done.exit_code == 0, done.output


def test_binary_losses_of_two_classes_see_the_difference_of_the_logits() -> None:
    """Binary cross-entropy is then the cross-entropy of both."""
    folder_cells = load_experiment("own").model_copy(
        update={"recipe": load_experiment("own").recipe | {
            "data": {"name": "own", "size": [16, 16], "classes": ["a", "b"]}}}
    ).cells("short", seeds=[0])  # fmt: skip
    losses = {cell.variant: cell.loss for cell in folder_cells}
    logits, labels = torch.randn(2, 2, 5, 6), torch.randint(2, (2, 5, 6))
    found = build_objective(losses["binary-cross-entropy"], 255)(logits, labels)
    torch.testing.assert_close(found, nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("network", "weights", "expected"),
    [
        (None, None, {"name": "enet"}),
        ("enet", Path("w"), {"name": "enet", "weights": "enet-cityscapes"}),
        ("deeplab-v2", Path("w"), {"name": "deeplab-v2", "weights": "deeplab-coco"}),
        ("a.b:c", Path("w"), {"name": "callable", "callable": "a.b:c", "weights": "file"}),
    ],
)
def test_the_folder_and_the_network_are_filled_in(
    tmp_path: Path, network: str | None, weights: Path | None, expected: dict[str, str]
) -> None:
    folder = write_shapes(tmp_path / "shapes", "ground", "disc", "dot")
    cells = filled_in(load_experiment("own"), folder, network, weights).cells("short")
    assert cells[0].data.classes == ("ground", "disc", "dot")
    assert cells[0].data.folder == "shapes"
    model = cells[1].model.model_dump()
    assert {key: model[key] for key in expected} == expected
    fine = next(cell for cell in cells if cell.variant == "cross-entropy-then-lovasz")
    assert fine.start == cells[0]
    assert fine.training.iterations + cells[0].training.iterations == cells[1].training.iterations


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--network", "mobilenet"], "package.module:function"),
        (["--network", "no_such_nets:f"], "no_such_nets"),
        (["--network", "os.path:join"], "os.path:join"),
        (["--network", "deeplab-v2-small", "--weights", "w.safetensors"], "random"),
        (["--network", "a.b:c", "--weights", "w.safetensors"], "w.safetensors"),
        (["--variant", "hinge"], "two classes"),
        (["--tune", "--procs", "2"], "--procs"),
        (["--set", "data.category=disc"], "classes.txt"),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    tmp_path: Path, results: Path, options: list[str], told: str
) -> None:
    folder = write_shapes(tmp_path / "shapes", "ground", "disc", "dot")
    done = run_own(folder, results, *options)
    assert isinstance(done.exception, UserError), done.output
    assert told in str(done.exception)
    assert not Store(results).runs("own")


@pytest.mark.parametrize("option", ["--network", "--tune"])
def test_options_of_own_data_are_refused_elsewhere(option: str) -> None:
    value = ["enet"] if option == "--network" else []
    done = CliRunner().invoke(app, ["run", "camvid-enet", option, *value])
    assert option in str(done.exception)


# -- learning rates ----------------------------------------------------------------------------


def test_rates_are_searched_with_the_first_seed_and_kept_for_all(
    tmp_path: Path, results: Path, nets: Path
) -> None:
    folder = write_shapes(tmp_path / "shapes", "ground", "disc", "dot")
    options = ["--network", "tiny_own_nets:small", "--seed", "3", "--seed", "4", "--tune"]
    done = run_own(folder, results, *options, "--variant", "cross-entropy")
    assert done.exit_code == 0, done.output
    runs = Store(results).runs("own")
    tried = {run.params["training.lr"]: run for run in runs if run.tags["seed"] == "3"}
    assert sorted(map(float, tried)) == [0.00033, 0.001, 0.003]
    (other,) = (run for run in runs if run.tags["seed"] == "4")
    best = max(run.metrics["val/dataset_miou"] for run in tried.values())
    assert tried[other.params["training.lr"]].metrics["val/dataset_miou"] == best


def test_what_fine_tuning_starts_from_has_its_rate(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", "ground", "disc", "dot")
    cells = filled_in(load_experiment("own"), folder, None, None).cells("short")
    for tried, factor in zip(searched(cells), FACTORS, strict=True):
        assert {cell.seed for cell in tried} == {0}
        rates = {cell.training.lr for cell in tried}
        assert len(rates) == 1
        assert math.isclose(rates.pop(), 1e-3 * factor, rel_tol=0.05)
        assert all(cell.start in tried for cell in tried if cell.start)
    names = [cell.variant for cell in cells]
    rates_of: dict[str, Any] = dict.fromkeys(names, 1e-3)
    rates_of["cross-entropy-then-lovasz"] = 3e-3
    final = at_rates(cells, rates_of)
    assert len(final) == len(cells)
    fine = [cell for cell in final if cell.start]
    assert {cell.start.training.lr for cell in fine if cell.start} == {3e-3}
    assert all(cell.start in final[: final.index(cell)] for cell in fine)


def test_without_scores_each_loss_keeps_its_rate(tmp_path: Path, results: Path) -> None:
    folder = write_shapes(tmp_path / "shapes", "ground", "disc", "dot")
    cells = filled_in(load_experiment("own"), folder, None, None).cells("short", seeds=[0])
    place = Place(results, folder.parent, None, CPU)
    assert set(best_rates(cells, place, Store(results)).values()) == {1e-3}
