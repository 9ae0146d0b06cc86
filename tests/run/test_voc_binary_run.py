"""Whole runs of the binary experiment on small trees: from the basis network to stored masks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.voc import read_labels
from lovasz_repro.errors import UserError
from lovasz_repro.host.progress import Progress
from lovasz_repro.models.snapshot import load_deeplab_weights
from lovasz_repro.run.experiment import Outcome, run_experiment
from lovasz_repro.run.inputs import Place, find_inputs, run_folder
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.store import Store
from tests.tiny_voc import write_binary_experiment, write_voc

CPU = torch.device("cpu")
Ran = tuple[Outcome, Store, Place]
Run = Callable[..., Ran]


def runs_in(folder: Path, database: Path) -> Run:
    """``run("features", variants=[...])``: three classes on one tree."""
    file, results = write_binary_experiment(folder), folder / "results"
    write_voc(folder / "data" / "tiny")
    results.mkdir()
    shutil.copy(database, results / "mlflow.db")

    def runs(profile: str, basis: Path | None = None, **grid: Any) -> Ran:
        store = Store(results, f"sqlite:///{results / 'mlflow.db'}")
        place = Place(results, folder / "data", None, CPU, basis=basis)
        loaded = load_experiment(str(file))
        cells = loaded.cells(profile, with_basis=basis is None, **grid)
        return run_experiment(loaded, cells, place, store, Progress()), store, place

    return runs


@pytest.fixture
def run(tmp_path: Path, empty_database: Path) -> Run:
    return runs_in(tmp_path, empty_database)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Run:
    """``grid(profile)``: two losses for two classes, run once."""
    run = runs_in(tmp_path_factory.mktemp("binary"), empty_database)
    ran: dict[str, Ran] = {}

    def of_profile(profile: str, again: bool = False) -> Ran:
        if again or profile not in ran:
            ran[profile] = run(profile, variants=["hinge", "lovasz-hinge"])
        return ran[profile]

    return of_profile


def test_only_the_category_and_the_backbone_are_trained(grid: Run) -> None:
    """The classifier's other outputs stay those of the basis network."""
    _, store, _ = grid("demo")
    weights = {
        stored.name: load_deeplab_weights(store.artifact(stored.run_id, "best.safetensors"))
        for stored in store.runs("voc-binary")
        if stored.name in ("basis-b3-s0", "hinge-cat-b3-s0") and stored.tags["profile"] == "demo"
    }
    before, after = weights["basis-b3-s0"].tensors, weights["hinge-cat-b3-s0"].tensors
    others = [index for index in range(21) if index != 8]
    for branch in range(4):
        name = f"aspp.{branch}.weight"
        assert torch.equal(before[name][others], after[name][others])
        assert not torch.equal(before[name][8], after[name][8])
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])
    assert torch.equal(before["bn1.running_var"], after["bn1.running_var"])
    assert torch.equal(before["bn1.weight"], after["bn1.weight"])


@pytest.mark.parametrize("profile", ["features", "demo"])
def test_a_grid_from_the_basis_network_to_the_scores(grid: Run, profile: str) -> None:
    outcome, store, place = grid(profile)
    assert outcome.finished == [
        "basis-b3-s0",
        "hinge-bird-b3-s0",
        "lovasz-hinge-bird-b3-s0",
        "hinge-cat-b3-s0",
        "lovasz-hinge-cat-b3-s0",
    ]
    runs = [run for run in store.runs("voc-binary") if run.tags["profile"] == profile]
    stored = {run.name: run for run in runs}
    hinge = stored["hinge-bird-b3-s0"]
    assert hinge.params["data.category"] == "bird"
    assert not any(key.startswith("start") for key in hinge.params)
    names = ["cross_entropy", "hinge", "lovasz_hinge", "soft_iou", "image_iou"]
    for name in names:
        steps = [step for step, _ in store.history(hinge.run_id, f"val/{name}")]
        assert steps == [0, 4]
    first = [
        store.history(stored[name].run_id, "val/hinge")[0]
        for name in ("hinge-bird-b3-s0", "lovasz-hinge-bird-b3-s0")
    ]
    assert first[0] == first[1]  # both start from the basis network
    assert 0 <= hinge.metrics["basis/image_iou"] <= 1
    assert hinge.metrics["best/iteration"] == 4  # the last one
    again, _, _ = grid(profile, again=True)
    assert again.skipped == outcome.finished

    entries = json.loads(store.artifact(hinge.run_id, "masks/masks.json").read_text())["masks"]
    assert [entry["name"] for entry in entries] == ["2007_000009", "2007_000012"]  # birds of val
    for number, entry in enumerate(entries):
        labels = read_labels(
            place.data / "tiny" / "VOC2012" / "SegmentationClassAug" / f"{entry['name']}.png"
        )
        kept, found = (
            np.asarray(Image.open(store.artifact(hinge.run_id, f"masks/{number}-{kind}.png")))
            for kind in ("labels", "prediction")
        )
        expected = np.where(labels == 255, 255, labels == 3)
        np.testing.assert_array_equal(kept, expected)
        known = kept != 255
        both, any_ = (found & kept)[known] == 1, ((found == 1) | (kept == 1))[known]
        assert entry["image_iou"] == pytest.approx(both.sum() / any_.sum(), abs=1e-4)


def test_the_basis_is_trained_once_and_only_its_weights_are_taken_on(run: Run) -> None:
    outcome, store, _ = run("demo", variants=["hinge"], categories=["bird"])
    assert outcome.finished == ["basis-b3-s0", "hinge-bird-b3-s0"]
    other, _, _ = run("demo", variants=["soft-iou"], categories=["bird"])
    assert other.skipped == ["basis-b3-s0"]
    basis = next(run for run in store.runs("voc-binary") if run.name == "basis-b3-s0")
    file = store.artifact(basis.run_id, "best.safetensors")
    third, _, _ = run("demo", basis=file, variants=["hinge"], categories=["bird"])
    assert third.finished == ["hinge-bird-b3-s0"]  # a run of its own: it knows only the file
    values = [
        store.history(run.run_id, "val/lovasz_hinge")
        for run in store.runs("voc-binary")
        if run.name == "hinge-bird-b3-s0"
    ]
    assert values[0] == values[1]  # from the same weights to the same scores


def test_the_basis_is_found_in_its_folder_or_in_the_store(
    run: Run, tmp_path: Path, make_store: Callable[..., Store]
) -> None:
    _, store, place = run("demo", variants=["basis"])
    loaded = load_experiment(str(tmp_path / "voc-binary.yaml"))
    basis, cell = loaded.cells("demo", variants=["hinge"], categories=["bird"])
    folder = run_folder(place.results, basis, find_inputs(basis, place).identity)
    (folder / "best.safetensors").unlink()
    bare = make_store("bare")
    without = Place(bare.results, place.data, None, CPU)
    outcome = run_experiment(loaded, [cell], without, bare, Progress())
    assert outcome.failed == {
        "hinge-bird-b3-s0": "it starts from basis-b3-s0, which has not finished here."
    }
    outcome = run_experiment(loaded, [cell], place, store, Progress())
    assert outcome.finished == ["hinge-bird-b3-s0"]
    assert (folder / "best.safetensors").is_file()


def test_classes_and_losses_that_there_are_not(run: Run) -> None:
    with pytest.raises(UserError, match=r"no class 'bycicle' \(did you mean bicycle\?\)"):
        run("demo", categories=["bycicle"])
    with pytest.raises(UserError, match=r"no basis network at .*none\.safetensors"):
        run("demo", basis=Path("none.safetensors"), variants=["hinge"])


def test_every_network_keeps_and_takes_its_weights(tmp_path: Path) -> None:
    cell = load_experiment("voc-binary").cells("demo")[1]
    metadata = {"dataset": "voc", "class_names": tuple(str(i) for i in range(21))}
    for name in ("deeplab-v2-small", "evidence-net"):
        network = NETWORKS[name]
        model, other = (network.build(21, cell.model) for _ in range(2))
        network.save(model, tmp_path / f"{name}.safetensors", metadata)
        network.load(other, tmp_path / f"{name}.safetensors", cell)
        for ours, theirs in zip(
            model.state_dict().values(), other.state_dict().values(), strict=True
        ):
            assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="evidence-net"):
        NETWORKS["evidence-net"].load(
            NETWORKS["evidence-net"].build(20, cell.model),
            tmp_path / "evidence-net.safetensors",
            cell,
        )
