"""Data of one's own: what networks are trained on, against the readers of known data sets."""

import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lovasz_repro.config.schema import CellConfig, load_experiment
from lovasz_repro.data.classes import CAMVID, VOC
from lovasz_repro.data.datasets import kind_of
from lovasz_repro.data.own_files import (
    OWN_VOID,
    OwnClasses,
    decode_mask,
    folder_palette,
    read_own_mask,
)
from lovasz_repro.data.sampling import Draw
from lovasz_repro.data.voc import JPEGS, MERGED_MASKS, VOC_LISTS, list_images, read_labels
from lovasz_repro.data.voc_training import crops_of
from lovasz_repro.errors import UserError
from lovasz_repro.run.build import draw_batches, open_data
from lovasz_repro.run.inputs import Inputs
from tests.conftest import real_data
from tests.tiny_camvid import EXPERIMENT, write_camvid, write_experiment
from tests.tiny_own import drawn_masks, write_own
from tests.tiny_voc import write_voc


def as_own(camvid: Path, root: Path) -> Path:
    """CamVid's files in the layout of data of one's own, by links."""
    for split in ("train", "val", "test"):
        (root / split).mkdir(parents=True)
        (root / split / "images").symlink_to(camvid / split)
        (root / split / "masks").symlink_to(camvid / f"{split}annot")
    (root / "classes.txt").write_text("\n".join([*CAMVID.names, "ignore: 11"]))
    return root


def cells(folder: Path, **more: Any) -> tuple[CellConfig, CellConfig]:
    """A run on CamVid, and the same on it as data of one's own."""
    experiment = load_experiment(str(write_experiment(folder, EXPERIMENT)))
    own = {"data.name": "own", "data.classes": [*CAMVID.names], "data.resize": True}
    return experiment.cells("demo", overrides=more)[0], experiment.cells(
        "demo", overrides=own | more
    )[0]


def check_equal(camvid: Path, own: Path, pair: tuple[CellConfig, CellConfig], batches: int) -> None:
    """The same tensors in the same order, but for the label of void."""
    sets = [
        open_data(cell, Inputs(root, None, {}, ""))
        for cell, root in zip(pair, (camvid, own), strict=True)
    ]
    (first, scored), (second, others) = sets
    drawn = [islice(draw_batches(cell, len(first), None, 0), batches) for cell in pair]
    for batch, same in zip(*drawn, strict=True):
        assert batch == same
        for draw in batch:
            check_item(first[draw], second[draw])
    assert [*scored] == [*others]
    for split, images in scored.items():
        assert len(images) == len(others[split])
        for index in range(0, len(images), max(1, len(images) // batches)):
            assert images.name(index) == others[split].name(index)
            check_item(images[index], others[split][index])


def check_item(camvid: Any, own: Any) -> None:
    labels = torch.where(camvid[1] == CAMVID.ignore_index, OWN_VOID, camvid[1])
    assert torch.equal(camvid[0], own[0])
    assert torch.equal(labels, own[1])


@pytest.mark.parametrize("size", [[24, 32], [16, 24]])
def test_camvid_by_this_way_gives_camvids_batches(tmp_path: Path, size: list[int]) -> None:
    camvid = write_camvid(tmp_path) / "camvid"
    own = as_own(camvid, tmp_path / "own")
    check_equal(camvid, own, cells(tmp_path, **{"data.size": size}), 12)


def test_the_real_camvid_by_this_way_gives_its_batches(tmp_path: Path, camvid_root: Path) -> None:
    pair = cells(tmp_path, **{"data.size": [176, 240]})
    check_equal(camvid_root, as_own(camvid_root, tmp_path / "own"), pair, 4)


def data_of(root: Path, *classes: str, **more: Any) -> Any:
    own = {"data.name": "own", "data.classes": [*classes], "data.size": [16, 16]}
    path = write_experiment(root.parent, EXPERIMENT)
    return load_experiment(str(path)).cells("demo", overrides=own | more)[0].data


def test_crops_of_a_binary_folder(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (4, 20, 30))
    root = write_own(
        tmp_path / "own",
        dict(zip("abcd", ids, strict=True)),
        classes_txt="sound\ncrack: 255\n",
        train_txt="b\na.png\n",
        val_txt="images/c.png\n\n",
    )
    data = data_of(root, "sound", "crack")
    kind = kind_of(data)
    train, val = kind.train(root, data, 0), kind.scored(root, "val", data)
    assert (len(train), len(val), kind.scored_splits(root)) == (2, 1, ("val",))
    assert np.array_equal(train.labels(1), ids[1] // 255)
    image, labels = train[0]
    assert image.shape == (3, 16, 16)
    assert labels.shape == (16, 16)
    assert np.array_equal(val[0][1].numpy(), ids[2] // 255)
    with pytest.raises(UserError, match=r"classes\.txt.*sound, crack.*crack, sound"):
        kind.train(root, data_of(root, "crack", "sound"), 0)


@pytest.mark.parametrize("augmentation", ["deeplab", "jaccard-segment", "deeplab-centres"])
def test_crops_are_those_of_voc(tmp_path: Path, augmentation: Any) -> None:
    voc = write_voc(tmp_path / "voc") / "VOC2012"
    root = tmp_path / "own"
    root.mkdir()
    (root / "images").symlink_to(voc / JPEGS)
    (root / "masks").symlink_to(voc / MERGED_MASKS)
    shutil.copy(voc / VOC_LISTS / "train_aug.txt", root / "train.txt")
    shutil.copy(voc / VOC_LISTS / "val.txt", root / "val.txt")
    (root / "classes.txt").write_text("\n".join([*VOC.names, "ignore: 255"]))
    settings = {"data.augmentation": augmentation, "data.flip": True}
    data = data_of(root, *VOC.names, **settings)
    own = kind_of(data).train(root, data, 7)
    theirs = crops_of(
        list_images(voc.parent, "train_aug"), crop=16, seed=7, augmentation=augmentation
    )
    unflipped = kind_of(data).train(root, data.model_copy(update={"flip": False}), 7)
    mirrored = 0
    for position in range(30):
        draw = Draw(position % len(theirs), position)
        for one, other in zip(own[draw], theirs[draw], strict=True):
            assert torch.equal(one, other)
        image = unflipped[draw][0]
        if not torch.equal(image, own[draw][0]):
            assert torch.equal(image.flip(-1), own[draw][0])
            mirrored += 1
    assert 5 < mirrored < 25
    assert np.array_equal(own.labels(3), theirs.labels(3))


def test_one_class_against_the_rest(tmp_path: Path) -> None:
    root = write_own(
        tmp_path / "own",
        drawn_masks(5, (0, 1, 2, 255)),
        classes_txt="sound\ncrack\nrust\nignore: 255",
        train_txt="m0\nm1\nm2\n",
        val_txt="m3\nm4\n",
    )
    classes = "sound", "crack", "rust"
    whole = data_of(root, *classes)
    data = whole.model_copy(update={"category": "rust"})
    kind = kind_of(data)
    for index, (_, labels) in enumerate(kind.scored(root, "val", data)):  # type: ignore[arg-type]
        ids = kind.scored(root, "val", whole)[index][1]
        expected = torch.where(ids == OWN_VOID, ids, (ids == 2).to(torch.uint8))
        assert torch.equal(labels, expected)
    assert set(np.unique(kind.train(root, data, 0).labels(0))) <= {0, 1, 2, OWN_VOID}


def test_real_masks_of_voc_are_read_alike() -> None:
    images = list_images(real_data("voc"), "val", photographs=False)[::60]
    ids = OwnClasses(VOC.names, tuple((i, i, i) for i in range(len(VOC))), ((255,) * 3,))
    classes = folder_palette(decode_mask(images[0].mask), ids)
    for image in images:
        assert np.array_equal(read_own_mask(image.mask, classes), read_labels(image.mask))
