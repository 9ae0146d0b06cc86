"""What a run on all classes of VOC keeps of a few images, on a small tree."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
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
from lovasz_repro.run.inputs import Place
from lovasz_repro.run.scores import keep_pictures
from lovasz_repro.store import Store
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
    inputs: Any = SimpleNamespace(data=tmp_path / "data" / "tiny", weights=None)
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
    crf = pytest.importorskip("pydensecrf.densecrf")
    scales = {"scales": [1.0, 0.5], "fusion": "probabilities", "least_side": 65}
    chosen = {"iterations": 3, "smoothness_weight": 2.0, "bilateral_xy": 9.0}
    changes = {"evaluation__multi_scale": scales, "evaluation__crf": chosen}
    model, images, folder = keep(tmp_path, cell_of("demo", **changes))
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
        sides = [-(-(side - 1) // 8) * 8 + 1 for side in labels.shape]
        single = logits_at(model, photo, sides, 1.0).argmax(0).numpy()
        assert (found["prediction"] == single).mean() > 0.999
        probabilities = fused(model, photo)
        refined = refine(crf, photo, probabilities)
        agree = (found["crf"] == refined).mean()
        assert agree > 0.999, agree  # mean-field turns ties on rounding
        differs |= bool((found["crf"] != probabilities.argmax(0)).any())
    assert differs


def logits_at(model: Any, photo: np.ndarray, sides: list[int], scale: float) -> torch.Tensor:
    """Logits (21, H, W) of a photograph continued to ``sides`` with the mean and shrunk."""
    height, width = photo.shape[:2]
    bgr = torch.zeros(1, 3, *sides)
    mean = np.array([104.008, 116.669, 122.675], np.float32)
    bgr[0, :, :height, :width] = torch.from_numpy(
        (photo[..., ::-1].astype(np.float32) - mean).transpose(2, 0, 1).copy()
    )
    points = [(side - 1) // 8 + 1 for side in sides]
    small = [round(scale * (side - 1)) + 1 for side in sides]
    with torch.no_grad():
        logits = model(resized(bgr, small))
    return resized(resized(logits, points), sides)[0, :, :height, :width]


def resized(maps: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """Bilinear, corners on corners."""
    return functional.interpolate(maps, sides, mode="bilinear", align_corners=True)


def fused(model: Any, photo: np.ndarray) -> np.ndarray:
    """Mean of the softmax over two scales of a photograph continued to 65 x 65 (Sec. 4.3)."""
    whole, half = (logits_at(model, photo, [65, 65], scale).softmax(0) for scale in (1.0, 0.5))
    probabilities: np.ndarray = ((whole + half) / 2).numpy()
    return probabilities


def refine(library: Any, photo: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Three iterations of the dense CRF, as the configuration of the test has it."""
    height, width = photo.shape[:2]
    crf = library.DenseCRF2D(width, height, 21)
    energies = -np.log(np.maximum(probabilities, 1e-5)).astype(np.float32)
    crf.setUnaryEnergy(np.ascontiguousarray(energies.reshape(21, -1)))
    crf.addPairwiseGaussian(sxy=1.0, compat=2.0, normalization=library.NORMALIZE_AFTER)
    crf.addPairwiseBilateral(
        sxy=9.0, srgb=3.0, rgbim=photo.copy(), compat=4.0, normalization=library.NORMALIZE_AFTER
    )
    found: np.ndarray = np.array(crf.inference(3)).reshape(21, height, width).argmax(0)
    return found


def test_max_logits_are_made_probabilities_for_the_crf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[np.ndarray] = []

    def refine(photo: np.ndarray, probabilities: np.ndarray, parameters: Any) -> np.ndarray:
        given.append(probabilities)
        return np.zeros(photo.shape[:2], np.uint8)

    monkeypatch.setattr("lovasz_repro.run.scores.refine", refine)
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
