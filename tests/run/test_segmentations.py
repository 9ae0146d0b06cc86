"""What a run on all classes of VOC keeps of a few images, on a small tree."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.build import build_model, open_data
from lovasz_repro.run.experiment import run_experiment
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.scores import keep_pictures
from lovasz_repro.store import Store
from tests.plain_deeplab import fused, refined, single_scale
from tests.tiny_voc import write_voc

CPU = torch.device("cpu")
SMALL = {
    "data.folder": "tiny",
    "data.size": [33, 33],
    "model.weights": None,
    "evaluation.examples": 4,
    "evaluation.batches": None,
}
NAMES = [f"2007_{number:06}" for number in (9, 10, 11, 12)]
"""bird, cat and person, each with the background, then the next bird."""


def cell_of(profile: str, **changes: Any) -> CellConfig:
    """A cell of the experiment, shrunk; ``changes`` with "__" for the dots."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    overrides = SMALL | dotted
    [cell] = load_experiment("voc-multiclass").cells(
        profile, variants=["lovasz"], seeds=[0], batch_sizes=[3], overrides=overrides
    )
    return cell


class Keeper:
    """A session that keeps files in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.progress = folder, Progress()
        self.kept: dict[str, list[Path]] = {}

    def keep_files(self, folder: str, write: Callable[[Path], list[Path]]) -> None:
        self.kept[folder] = write(self.folder / folder)


def keep(tmp_path: Path, cell: CellConfig) -> tuple[Any, Any, Path]:
    """The network, the validation set, and the folder of what is kept of a network at random."""
    if not (tmp_path / "data").exists():
        write_voc(tmp_path / "data" / "tiny")
    place = Place(tmp_path / "results", tmp_path / "data", None, CPU)
    inputs = Inputs(tmp_path / "data" / "tiny", None, {"data_fingerprint": "tiny"}, "")
    torch.manual_seed(cell.seed)
    model = build_model(cell, inputs, CPU)
    _, scored = open_data(cell, inputs)
    keeper: Any = Keeper(tmp_path / cell.name)
    keep_pictures(model, scored["val"], cell, inputs, place, keeper)
    assert list(keeper.kept) == ["segmentations"]
    folder = tmp_path / cell.name / "segmentations"
    assert sorted(keeper.kept["segmentations"]) == sorted(folder.iterdir())
    return model, scored["val"], folder


def picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image)


def listed(folder: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((folder / "segmentations.json").read_text())[
        "segmentations"
    ]
    return entries


def present_miou(mask: np.ndarray, labels: np.ndarray) -> float:
    """IoU by sets of pixels, averaged over the classes in the labels."""
    found, wanted = mask[labels != 255], labels[labels != 255]
    ious = [
        np.sum((found == c) & (wanted == c)) / np.sum((found == c) | (wanted == c))
        for c in np.unique(wanted)
    ]
    return float(np.mean(ious))


def test_features_leave_labels_and_masks(tmp_path: Path) -> None:
    model, images, folder = keep(tmp_path, cell_of("features"))
    entries = listed(folder)
    assert [entry["name"] for entry in entries] == NAMES
    assert len(list(folder.iterdir())) == 1 + 2 * 4  # no photograph, no CRF
    for number, entry in enumerate(entries):
        labels = picture(folder / f"{number}-labels.png")
        seen, expected = images[number]
        np.testing.assert_array_equal(labels, expected.numpy())
        assert labels.shape == (entry["height"], entry["width"])
        height, width = labels.shape
        with torch.no_grad():
            logits = model(seen[None])
        full = [8 * (points - 1) + 1 for points in logits.shape[-2:]]
        large = functional.interpolate(logits, full, mode="bilinear", align_corners=True)
        wanted = large[0, :, :height, :width].argmax(0).numpy()
        mask = picture(folder / f"{number}-prediction.png")
        np.testing.assert_array_equal(mask, wanted)
        assert entry["batch_miou"] == {
            "prediction": pytest.approx(present_miou(mask, labels), abs=1e-4)
        }


def test_photographs_are_stored_with_masks_after_the_crf(tmp_path: Path) -> None:
    pytest.importorskip("pydensecrf.densecrf")
    scales = {"scales": [1.0, 0.5], "fusion": "probabilities", "least_side": 65}
    chosen = {"iterations": 3, "smoothness_weight": 2.0, "bilateral_xy": 9.0}
    changes = {"evaluation__multi_scale": scales, "evaluation__crf": chosen}
    cell = cell_of("demo", **changes)
    parameters = cell.evaluation.crf
    assert parameters
    model, images, folder = keep(tmp_path, cell)
    assert [entry["name"] for entry in listed(folder)] == NAMES
    differs = False
    for number, entry in enumerate(listed(folder)):
        photo, labels = (picture(folder / f"{number}-{k}.png") for k in ("photo", "labels"))
        seen, expected = images[number]
        np.testing.assert_array_equal(photo, seen.permute(1, 2, 0).numpy())
        np.testing.assert_array_equal(labels, expected.numpy())
        found = {k: picture(folder / f"{number}-{k}.png") for k in ("prediction", "crf")}
        assert entry["batch_miou"] == {
            kind: pytest.approx(present_miou(mask, labels), abs=1e-4)
            for kind, mask in found.items()
        }
        assert (found["prediction"] == single_scale(model, photo)).mean() > 0.999
        probabilities = fused(model, photo, scales=[1.0, 0.5])
        agree = (found["crf"] == refined(photo, probabilities, parameters)).mean()
        assert agree > 0.999, agree  # mean-field turns ties on rounding
        differs |= bool((found["crf"] != probabilities.argmax(0)).any())
    assert differs


def test_max_logits_are_made_probabilities_for_the_crf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []

    def refine(photo: np.ndarray, probabilities: np.ndarray, parameters: Any) -> np.ndarray:
        given.append(probabilities)
        return np.zeros(photo.shape[:2], np.uint8)

    monkeypatch.setattr("lovasz_repro.run.regimes.refine", refine)
    scales = {"scales": [1.0, 0.5], "fusion": "max-logits", "least_side": 65}
    keep(tmp_path, cell_of("demo", evaluation__multi_scale=scales))
    assert len(given) == 4
    for probabilities in given:
        np.testing.assert_allclose(probabilities.sum(0), 1, atol=1e-5)


def test_a_run_stores_them(tmp_path: Path, make_store: Callable[..., Store]) -> None:
    write_voc(tmp_path / "data" / "tiny", photographs=False)
    store, loaded = make_store(), load_experiment("voc-multiclass")
    changes = {"training.iterations": 1, "evaluation.examples": 99}
    cells = loaded.cells(
        "features", variants=["lovasz"], seeds=[0], batch_sizes=[3], overrides=SMALL | changes
    )
    place = Place(store.results, tmp_path / "data", None, CPU)
    outcome = run_experiment(loaded, cells, place, store, Progress())
    assert outcome.finished == ["lovasz-b3-s0"], outcome.failed
    [run] = store.runs("voc-multiclass")
    entries = listed(store.artifact(run.run_id, "segmentations/segmentations.json").parent)
    names = [entry["name"] for entry in entries]
    assert names[:4] == NAMES
    assert sorted(names) == [f"2007_{number:06}" for number in range(9, 15)]
