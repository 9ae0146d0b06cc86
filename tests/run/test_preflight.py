"""What a grid lacks is said before a run is stored, whichever of its runs lacks it."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.voc import MERGED_MASKS, VOC_LISTS
from lovasz_repro.errors import UserError
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.experiment import run_experiment
from lovasz_repro.run.inputs import Place
from lovasz_repro.store import Store
from tests.tiny_camvid import write_camvid, write_experiment
from tests.tiny_cityscapes import EXPERIMENT, write_cityscapes
from tests.tiny_voc import write_binary_experiment, write_multiclass_experiment, write_voc

Refused = Callable[..., str]


@pytest.fixture
def refused(store: Store, tmp_path: Path) -> Refused:
    """``refused(file, **grid)``: why its demo does not start; checks that nothing was stored."""

    def call(file: Path, profile: str = "demo", **grid: Any) -> str:
        loaded = load_experiment(str(file))
        cells = loaded.cells(profile, **grid)
        place = Place(store.results, tmp_path / "data", None, torch.device("cpu"))
        with pytest.raises(UserError) as caught:
            run_experiment(loaded, cells, place, store, Progress())
        assert store.runs() == []
        assert not list(store.results.glob("work/*/*/*/"))
        return str(caught.value)

    return call


def spoil(mask: Path, value: int) -> Path:
    """Give every pixel of a mask another id."""
    pixels = np.asarray(Image.open(mask))
    Image.fromarray(np.full_like(pixels, value)).save(mask)
    return mask


def spell(file: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change what stands in an experiment file."""
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(yaml.safe_dump(content))
    return file


def test_a_package_that_only_the_last_run_needs(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_basis(content: dict[str, Any]) -> None:
        content["profiles"]["demo"]["recipe"]["model"]["weights"] = "basis"
        content["profiles"]["demo"]["variants"]["basis"] = {
            "model": {"weights": None}, "evaluation": {"multi_scale": None, "crf": None},
        }  # fmt: skip

    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    write_voc(tmp_path / "data" / "tiny")
    file = spell(write_multiclass_experiment(tmp_path), with_basis)
    assert next(cell.variant for cell in load_experiment(str(file)).cells("demo")) == "basis"
    assert "pip install -c constraints.txt '.[crf]'" in refused(file)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_camvid_mask_with_an_unknown_id(refused: Refused, tmp_path: Path, split: str) -> None:
    root = write_camvid(tmp_path / "data", images=3) / "camvid"
    mask = spoil(root / f"{split}annot" / "2.png", 77)
    message = refused(write_experiment(tmp_path), variants=["lovasz-softmax"])
    assert str(mask) in message
    assert "77" in message


def test_instances_of_an_unknown_class(refused: Refused, tmp_path: Path) -> None:
    masks = write_cityscapes(tmp_path / "data") / "cityscapes" / "gtFine" / "val"
    mask = spoil(sorted(masks.glob("*/*_instanceIds.png"))[1], 60_000)
    file = write_experiment(tmp_path, EXPERIMENT)
    assert str(mask) in refused(file, variants=["lovasz-softmax"])


@pytest.mark.parametrize("split", ["train_aug", "val"])
def test_a_voc_mask_with_an_unknown_id(refused: Refused, tmp_path: Path, split: str) -> None:
    folder = write_voc(tmp_path / "data" / "tiny") / "VOC2012"
    name = (folder / VOC_LISTS / f"{split}.txt").read_text().split()[-1]
    mask = spoil(folder / MERGED_MASKS / f"{name}.png", 30)
    file = write_multiclass_experiment(tmp_path, multi_scale=None, crf=None)
    assert str(mask) in refused(file, variants=["x-loss"])


def test_a_class_that_no_image_shows(refused: Refused, tmp_path: Path) -> None:
    write_voc(tmp_path / "data" / "tiny")
    file = write_binary_experiment(tmp_path)
    assert "dog" in refused(file, variants=["hinge"], categories=["cat", "dog"])


def test_batches_that_cannot_show_every_class(refused: Refused, tmp_path: Path) -> None:
    write_voc(tmp_path / "data" / "tiny")
    few = {"count": 2, "size": 1}
    file = write_multiclass_experiment(tmp_path, multi_scale=None, crf=None, batches=few)
    assert "evaluation.batches" in refused(file, variants=["x-loss"])


def test_weights_that_are_none(refused: Refused, tmp_path: Path) -> None:
    write_camvid(tmp_path / "data", images=3)
    file = tmp_path / "data" / "weights" / "enet-model.net"
    file.parent.mkdir()
    file.write_bytes(b"no weights")
    changes = {"model.weights": "enet-cityscapes"}
    assert str(file) in refused(write_experiment(tmp_path), overrides=changes)


def test_what_is_done_lacks_nothing(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_voc(tmp_path / "data" / "tiny")
    loaded = load_experiment(str(write_multiclass_experiment(tmp_path, multi_scale=None, crf=None)))
    cells = loaded.cells("demo", variants=["x-loss"])
    place = Place(store.results, tmp_path / "data", None, torch.device("cpu"))
    assert run_experiment(loaded, cells, place, store, Progress()).finished
    monkeypatch.setattr("lovasz_repro.run.experiment.check_masks", pytest.fail)
    assert run_experiment(loaded, cells, place, store, Progress()).skipped
