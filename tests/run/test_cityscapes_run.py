"""Whole runs on a small tree in the layout of Cityscapes: grid, scores, examples, equibatch."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.data.cityscapes import TO_LABEL_ID, list_frames
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import official_scores
from lovasz_repro.host.progress import Progress
from lovasz_repro.models.snapshot import load_weights
from lovasz_repro.run.build import scoring_of
from lovasz_repro.run.experiment import Outcome, run_experiment
from lovasz_repro.run.inputs import Place
from lovasz_repro.store import Store
from tests.tiny_camvid import write_experiment
from tests.tiny_cityscapes import EXPERIMENT, IDS, write_cityscapes

CPU = torch.device("cpu")
Ran = tuple[Outcome, Store, Place]
Run = Callable[..., Ran]
FOUR = ("val/dataset_miou", "val/class_iiou", "val/category_iou", "val/category_iiou")


def runs_in(folder: Path, store: Store) -> Run:
    """``run("demo", variants=[...])``: runs on a fresh tree."""
    file = folder / "tiny-streets.yaml"
    file.write_text(EXPERIMENT)

    def runs(profile: str = "demo", labelled_test: bool = False, **grid: Any) -> Ran:
        data = write_cityscapes(folder / "data", labelled_test=labelled_test)
        place = Place(store.results, data, None, CPU)
        loaded = load_experiment(str(file))
        cells = loaded.cells(profile, **grid)
        return run_experiment(loaded, cells, place, store, Progress()), store, place

    return runs


@pytest.fixture
def run(tmp_path: Path, store: Store) -> Run:
    return runs_in(tmp_path, store)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Ran:
    """Every variant on a tree whose test split has labels."""
    results = tmp_path_factory.mktemp("streets") / "results"
    results.mkdir()
    shutil.copy(empty_database, results / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return runs_in(results.parent, Store(results))(labelled_test=True)


def test_variants_may_name_their_batch_sizes(tmp_path: Path) -> None:
    experiment = load_experiment(str(write_experiment(tmp_path, EXPERIMENT)))
    assert [cell.name for cell in experiment.cells("demo")] == [
        "lovasz-softmax-b2-s0",
        "weighted-cross-entropy-b3-s0",
        "lovasz-softmax-b3-s0",
        "lovasz-softmax-equibatch-b3-s0",
    ]
    wanted = experiment.cells("demo", variants=["weighted-cross-entropy"], batch_sizes=[2])
    assert [cell.name for cell in wanted] == ["weighted-cross-entropy-b2-s0"]


def test_batch_sizes_that_no_variant_runs_with_are_told(tmp_path: Path) -> None:
    file = tmp_path / "tiny-streets.yaml"
    file.write_text(EXPERIMENT.replace("batch_sizes: [2, 3]", "batch_sizes: [2]"))
    experiment = load_experiment(str(file))
    assert [cell.name for cell in experiment.cells("demo")] == ["lovasz-softmax-b2-s0"]
    with pytest.raises(UserError, match="none of the batch sizes that weighted-cross-entropy"):
        experiment.cells("demo", variants=["weighted-cross-entropy"])
    file.write_text(EXPERIMENT.replace("batch_sizes: [3]", "batch_sizes: 3"))
    with pytest.raises(UserError, match=r"variants\.weighted-cross-entropy\.batch_sizes"):
        load_experiment(str(file))


def test_every_variant_is_trained_and_scored(grid: Ran) -> None:
    """A test split that has labels before and after training."""
    outcome, store, _ = grid
    assert len(outcome.finished) == 4
    for stored in store.runs("tiny-streets"):
        for key in FOUR:
            assert [step for step, _ in store.history(stored.run_id, key)] == [0, 3, 6], key
            name = key.removeprefix("val/")
            assert 0 <= stored.metrics[f"test/{name}"] <= 1
            assert 0 <= stored.metrics[f"initial/test/{name}"] <= 1
        for key, steps in (("calibration_error", [0, 3, 6]), ("boundary_miou", [0, 6])):
            assert [step for step, _ in store.history(stored.run_id, f"val/{key}")] == steps
            assert 0 <= stored.metrics[f"test/{key}"] <= 1
        assert stored.metrics["best/iteration"] in (3, 6)
        again = load_weights(store.artifact(stored.run_id, "best.safetensors")).build()
        assert again.num_classes == 20


def test_the_best_snapshot_scores_what_the_official_script_says(grid: Ran, tmp_path: Path) -> None:
    _, store, place = grid
    stored = store.runs("tiny-streets")[-1]
    model = load_weights(store.artifact(stored.run_id, "best.safetensors")).build().eval()
    frames = list_frames(place.data / "cityscapes", "val")
    files, losses, pixels = [], 0.0, 0
    of_id = {int(label): of_class for of_class, label in enumerate(TO_LABEL_ID) if of_class}
    for frame in frames:
        with Image.open(frame.image) as photo:
            small = np.asarray(photo.resize((32, 24), Image.Resampling.BILINEAR))
        inputs = torch.from_numpy(small.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.no_grad():
            logits = model(inputs)[:, 1:]
        large = torch.nn.functional.interpolate(logits, size=(48, 64), mode="bilinear")
        answer = TO_LABEL_ID[large.argmax(1)[0].numpy() + 1]
        with Image.open(frame.label_ids) as mask:
            wanted = [[of_id.get(int(label), 0) for label in row] for row in np.asarray(mask)]
        labels = torch.tensor(wanted)[None] - 1  # -1: not scored
        nll = torch.nn.functional.cross_entropy(large, labels, ignore_index=-1, reduction="sum")
        losses, pixels = losses + nll.item(), pixels + int((labels >= 0).sum())
        files.append(tmp_path / f"{frame.name}_labelIds.png")
        Image.fromarray(answer).save(files[-1])
    expected = official_scores(files, frames).as_metrics("val")
    expected["val/cross_entropy"] = losses / pixels
    best = int(stored.metrics["best/iteration"])
    for key, value in expected.items():
        if value == value:
            history = dict(store.history(stored.run_id, key))
            assert history[best] == pytest.approx(value, abs=1e-6), key


@pytest.mark.parametrize(("unlabelled", "first"), [("dropped", 1), ("kept", 0)])
def test_measures_know_which_outputs_are_answers(unlabelled: str, first: int) -> None:
    given = {"evaluation.unlabelled": unlabelled}
    (cell, *_) = load_experiment("cityscapes-enet").cells("demo", overrides=given)
    scoring = scoring_of(cell)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, len(TO_LABEL_ID) - first, 4, 6, generator=generator)
    labels = torch.randint(1, len(TO_LABEL_ID), (1, 4, 6), generator=generator)
    ids = torch.from_numpy(TO_LABEL_ID)[labels]
    scoring.update(scores.argmax(1) + first, (ids, ids), scores)
    expected = torch.nn.functional.cross_entropy(scores, labels - first)
    assert scoring.as_metrics("val")["val/cross_entropy"] == pytest.approx(expected.item())


@pytest.mark.slow
def test_two_processes_score_what_one_does(
    run: Run, tmp_path: Path, make_store: Callable[..., Store]
) -> None:
    """Equibatch and the counts of classes reach every rank; scores add up."""
    variants = ["lovasz-softmax-equibatch"]
    double = {"training.precision": "float64"}
    _, alone, place = run(variants=variants, batch_sizes=[3], overrides=double)
    together = make_store("two")
    command = [sys.executable, "-m", "lovasz_repro.cli", "run", str(tmp_path / "tiny-streets.yaml")]
    command += ["--profile", "demo", "--batch-size", "3", "--procs", "2", "--device", "cpu"]
    command += [option for variant in variants for option in ("--variant", variant)]
    command += ["--set", "training.precision=float64", "--data", str(place.data)]
    command += ["--results", str(together.results)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for stored in alone.runs("tiny-streets"):
        (twin,) = (r for r in together.runs("tiny-streets") if r.name == stored.name)
        assert twin.tags["ranks"] == "2"
        for key in (*FOUR, "train/loss", "val/iou/road"):
            expected, found = (
                dict(store.history(run_.run_id, key))
                for store, run_ in ((alone, stored), (together, twin))
            )
            assert found == pytest.approx(expected, rel=1e-9, nan_ok=True), key


def test_examples_are_stored_with_the_run(grid: Ran) -> None:
    _, store, place = grid
    stored = store.runs("tiny-streets")[-1]
    entries = json.loads(store.artifact(stored.run_id, "examples/examples.json").read_text())
    assert len(entries) == 2
    assert entries[0]["differs"] >= entries[1]["differs"] > 0
    frames = {frame.name: frame for frame in list_frames(place.data / "cityscapes", "val")}
    for number, entry in enumerate(entries):
        top, left, height, width = entry["window"]
        crop = np.s_[top : top + height, left : left + width]
        names = {"photo": "image", "labels": "label_ids"}
        for kind, attribute in names.items():
            original = np.asarray(Image.open(getattr(frames[entry["name"]], attribute)))
            kept = Image.open(store.artifact(stored.run_id, f"examples/{number}-{kind}.png"))
            np.testing.assert_array_equal(np.asarray(kept), original[crop])
        before, after, labels = (
            np.asarray(Image.open(store.artifact(stored.run_id, f"examples/{number}-{kind}.png")))
            for kind in ("before", "after", "labels")
        )
        scored = np.isin(labels, TO_LABEL_ID[1:])
        share = ((before != after) & scored).sum() / scored.sum()
        assert entry["differs"] == pytest.approx(share, abs=1e-4)


def test_paper_scale_wants_the_papers_data(run: Run) -> None:
    with pytest.raises(UserError, match=r"4 images in train, but the paper's cityscapes has 2975"):
        run("paper")


def test_missing_trees_say_which_command_makes_them(tmp_path: Path) -> None:
    from lovasz_repro.data.locate import dataset_folder

    with pytest.raises(UserError, match=r"Run: lovasz-repro data demo cityscapes$"):
        dataset_folder(tmp_path, "cityscapes-demo")
    with pytest.raises(UserError, match=r"Run: lovasz-repro data convert camvid cityscapes$"):
        dataset_folder(tmp_path, "camvid-cityscapes")


def test_equibatch_batches_come_from_the_counts(tmp_path: Path) -> None:
    from lovasz_repro.data.cityscapes_training import training_images
    from lovasz_repro.data.sampling import class_counts
    from lovasz_repro.run.build import draw_batches

    experiment = load_experiment(str(write_experiment(tmp_path, EXPERIMENT)))
    (cell,) = experiment.cells("demo", variants=["lovasz-softmax-equibatch"])
    assert isinstance(cell, CellConfig)
    root = write_cityscapes(tmp_path / "data") / "cityscapes"
    train_set = training_images(root, "train", (24, 32))
    counts = class_counts(train_set)
    drawn = [d.image for batch in draw_batches(cell, 4, counts, 0) for d in batch]
    present = [set(np.unique(train_set.labels(index))) - {0} for index in range(4)]
    scored = {label for label in IDS if label in TO_LABEL_ID[1:]}
    classes = set.union(*present)
    assert len(classes) == len(scored)
    for first in range(len(drawn) - len(classes) + 1):
        window = drawn[first : first + len(classes)]
        assert set.union(*(present[index] for index in window)) == classes


def test_a_lost_city_is_named(run: Run, tmp_path: Path) -> None:
    _, store, place = run(variants=["lovasz-softmax"], batch_sizes=[2])
    (stored,) = store.runs("tiny-streets")  # without labels of the test split
    assert not [key for key in stored.metrics if key.startswith(("test/", "initial/"))]
    shutil.rmtree(place.data / "cityscapes" / "gtFine" / "train" / "there")
    experiment = load_experiment(str(tmp_path / "tiny-streets.yaml"))
    with pytest.raises(UserError, match="no folder there"):
        run_experiment(experiment, experiment.cells("demo"), place, store, Progress())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_photograph_is_told_in_one_line(tmp_path: Path, workers: int) -> None:
    from lovasz_repro.data.cityscapes_training import ScoredCityscapes
    from lovasz_repro.run.build import evaluation_batches
    from lovasz_repro.training.distributed import ALONE

    root = write_cityscapes(tmp_path) / "cityscapes"
    file = list_frames(root, "val")[-1].image
    file.write_bytes(file.read_bytes()[:300])
    images = ScoredCityscapes(root, "val", (24, 32))
    with pytest.raises(UserError) as told:
        list(evaluation_batches(images, (24, 32), ALONE, workers))
    assert str(told.value).startswith(f"{file}: unreadable image (")
    assert "\n" not in str(told.value)


def test_a_photograph_of_another_size_is_named(tmp_path: Path) -> None:
    from lovasz_repro.data.cityscapes_training import ScoredCityscapes

    root = write_cityscapes(tmp_path) / "cityscapes"
    last = list_frames(root, "val")[-1]
    for file in (last.image, last.label_ids, last.instance_ids):
        Image.open(file).resize((32, 24), Image.Resampling.NEAREST).save(file)
    with pytest.raises(UserError, match=r"leftImg8bit\.png: 24x32, others of its split are 48x64"):
        ScoredCityscapes(root, "val", (24, 32))[3]


def test_weights_with_other_outputs_are_refused(tmp_path: Path) -> None:
    from lovasz_repro.data.classes import CAMVID
    from lovasz_repro.models.enet import ENet
    from lovasz_repro.models.snapshot import save_weights
    from lovasz_repro.run.networks import load_released

    file = tmp_path / "other.safetensors"
    save_weights(ENet(11), file, {"dataset": "camvid", "class_names": CAMVID.names})
    with pytest.raises(UserError, match=r"11 outputs; training starts from a network with the 20"):
        load_released(file, "prelu")
    names = [f"class {index}" for index in range(20)]
    save_weights(ENet(20, "relu"), file, {"dataset": "cityscapes", "class_names": names})
    with pytest.raises(UserError, match=r"the decoder is relu, model\.decoder is prelu"):
        load_released(file, "prelu")
