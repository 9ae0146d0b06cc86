"""Probabilities as files: against a plain loop over scales, kept over kills, told apart."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from lovasz_repro.config.schema import MultiScaleConfig
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.voc import VocImage, list_images
from lovasz_repro.data.voc_crops import to_caffe
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.multiscale import MultiScale
from lovasz_repro.evaluation.probabilities import (
    STEP,
    read_classes,
    read_probabilities,
)
from lovasz_repro.evaluation.regimes import (
    NOTE,
    about_probabilities,
    open_folder,
    predict_probabilities,
    prediction_key,
)
from lovasz_repro.host.processes import mapped
from lovasz_repro.models.deeplab import DeepLab, small_deeplab
from lovasz_repro.models.snapshot import save_weights
from lovasz_repro.run.evaluate import load_voc_network
from lovasz_repro.run.networks import NETWORKS
from tests.tiny_voc import write_voc

CPU = torch.device("cpu")
SIDE = 65
SETTINGS = MultiScaleConfig(least_side=SIDE)


def network(seed: int = 0) -> DeepLab:
    """A network that is sure of some pixels."""
    torch.manual_seed(seed)
    model = small_deeplab(21).eval()
    with torch.no_grad():
        for branch in model.aspp:
            branch.weight *= 40
    return model


def plain_probabilities(model: nn.Module, photograph: np.ndarray, fusion: str) -> np.ndarray:
    """Facts 1.4 for one photograph of at most 65x65, scale by scale: (C, H, W)."""
    resize = partial(F.interpolate, mode="bilinear", align_corners=True)
    height, width, _ = photograph.shape
    caffe = to_caffe(torch.from_numpy(photograph.transpose(2, 0, 1).copy())[None])
    padded = torch.zeros(1, 3, SIDE, SIDE)
    padded[..., :height, :width] = caffe
    logits = []
    with torch.no_grad():
        for side in (65, 49, 33):
            logits.append(resize(model(resize(padded, (side, side))), (9, 9)))
    if fusion == "max-logits":
        logits = [torch.stack(logits).amax(0)]
    full = [resize(of_scale, (SIDE, SIDE))[0, :, :height, :width] for of_scale in logits]
    return np.mean([softmax(of_scale.double().numpy()) for of_scale in full], 0)


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def scorer(
    model: nn.Module, settings: MultiScaleConfig = SETTINGS, precision: str = "float32"
) -> MultiScale:
    return MultiScale(model, NETWORKS["deeplab-v2"], CPU, precision, multi_scale=settings)


def forwards(model: nn.Module) -> list[int]:
    """Grows by one for every pass of the network."""
    passes: list[int] = []
    model.register_forward_hook(lambda *_: passes.append(1))
    return passes


@pytest.fixture
def images(tmp_path: Path) -> list[VocImage]:
    return list_images(write_voc(tmp_path / "voc", val=4), "val")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("fusion", ["probabilities", "max-logits"])
def test_files_hold_what_a_plain_loop_over_scales_gives(
    images: list[VocImage], folder: Path, fusion: Any
) -> None:
    model = network()
    settings = MultiScaleConfig(least_side=SIDE, fusion=fusion)
    files = predict_probabilities(scorer(model, settings), images, folder)
    assert [file.name for file in files] == [f"{image.name}.png" for image in images]
    shown = set()
    for image, file in zip(images, files, strict=True):
        expected = plain_probabilities(model, read_photograph(image.image), fusion)
        found = read_probabilities(file, image.name)
        difference = np.abs(np.log(found) - np.log(np.clip(expected, 1e-5, 1)))
        assert (difference <= 1.5 * STEP + 1e-4).all()
        classes = read_classes(file, image.name)
        second, first = np.sort(expected, 0)[-2:]
        clear = first > second + 1e-5
        assert classes.dtype == np.uint8
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(classes[clear], expected.argmax(0)[clear])
        np.testing.assert_array_equal(classes, found.argmax(0))
        shown |= set(classes.ravel().tolist())
    assert len(shown) > 3


def test_what_is_there_and_whole_is_not_predicted_again(
    images: list[VocImage], folder: Path
) -> None:
    model = network()
    passes, advanced = forwards(model), list[int]()
    files = predict_probabilities(scorer(model), images, folder, advance=advanced.append)
    assert sum(advanced) == len(images)
    assert len(passes) == 3 * len(images)
    right = [file.read_bytes() for file in files]
    flipped = bytearray(right[2])
    flipped[len(flipped) // 2] ^= 1
    for wrong in (
        [],
        [right[0][:-20], b"", bytes(flipped), right[3]],
        [right[1], right[0], right[2], images[0].mask.read_bytes()],
    ):
        for file, content in zip(files, wrong, strict=False):
            file.write_bytes(content)
        damaged = sum(a != b for a, b in zip(wrong, right, strict=False))
        passes.clear()
        advanced.clear()
        again = predict_probabilities(scorer(model), images, folder, advance=advanced.append)
        assert len(passes) == 3 * damaged
        assert sum(advanced) == len(images)
        assert [file.read_bytes() for file in again] == right


def test_a_photograph_of_another_size_is_predicted_again(
    images: list[VocImage], folder: Path
) -> None:
    model = network()
    files = predict_probabilities(scorer(model), images, folder)
    kept = [file.stat().st_mtime_ns for file in files]
    with Image.open(images[1].image) as opened:
        turned = opened.transpose(Image.Transpose.ROTATE_90)
        if turned.size == opened.size:
            turned = turned.crop((0, 0, turned.width, turned.height - 1))
        turned.save(images[1].image)
    again = predict_probabilities(scorer(model), images, folder)
    assert [file.stat().st_mtime_ns == t for file, t in zip(again, kept, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
    assert read_classes(again[1], images[1].name).shape == turned.size[::-1]


def test_a_call_that_was_cut_short_is_continued(images: list[VocImage], folder: Path) -> None:
    model = network()
    plain = scorer(model)
    calls: list[int] = []

    def interrupt(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3 * 2 + 1:  # the first scale of the third photograph
            raise KeyboardInterrupt

    hook = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_probabilities(plain, images, folder)
    hook.remove()
    assert sorted(file.name for file in folder.iterdir()) == [
        f"{image.name}.png" for image in images[:2]
    ]
    passes = forwards(model)
    predict_probabilities(plain, images, folder)
    assert len(passes) == 3 * 2


def test_other_processes_write_the_same_files(images: list[VocImage], tmp_path: Path) -> None:
    model = network()
    for name in ("alone", "shared"):
        (tmp_path / name).mkdir()
    alone = predict_probabilities(scorer(model), images, tmp_path / "alone")
    with mapped(2, "wrote") as map_:
        shared = predict_probabilities(scorer(model), images, tmp_path / "shared", map_=map_)
        with pytest.raises(RunFailed, match="cannot write"):
            predict_probabilities(scorer(model), images, tmp_path / "none", map_=map_)
    assert [file.read_bytes() for file in shared] == [file.read_bytes() for file in alone]


def test_photographs_that_cannot_be_read_are_named(images: list[VocImage], folder: Path) -> None:
    images[1].image.write_bytes(images[1].image.read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{images[1].name}\.jpg: unreadable image"):
        predict_probabilities(scorer(network()), images, folder)
    images[0].image.unlink()
    with pytest.raises(UserError, match=rf"{images[0].name}\.jpg: no such file"):
        predict_probabilities(scorer(network()), images, folder)


# -- whose they are ------------------------------------------------------------------------------


def predictors() -> Iterator[tuple[MultiScale, str]]:
    """One by one, everything that makes other probabilities."""
    yield scorer(network()), "data"
    yield scorer(network(seed=1)), "data"
    for change in ({"scales": [1.0, 0.5]}, {"fusion": "max-logits"}, {"least_side": 97}):
        other = MultiScaleConfig.model_validate(SETTINGS.model_dump() | change)
        yield scorer(network(), other), "data"
    yield scorer(network()), "other data"
    yield scorer(network(), precision="bfloat16"), "data"
    for change in ("eps", "bias", "running_var"):
        model = network()
        with torch.no_grad():
            if change == "eps":
                model.layer1[0].bn1.eps = 1e-3
            elif change == "bias":
                model.aspp[3].bias[20] += 1e-6
            else:
                model.layer4[0].bn1.running_var[0] *= 1.0001
        yield scorer(model), "data"


def test_a_key_names_everything_that_probabilities_depend_on() -> None:
    keys = [prediction_key(about_probabilities(*given)) for given in predictors()]
    assert len(set(keys)) == len(keys) == 10
    assert all(len(key) == 12 for key in keys)


def test_a_network_keeps_its_key_in_its_file_and_in_other_formats(tmp_path: Path) -> None:
    model = network()
    key = prediction_key(about_probabilities(scorer(model, SETTINGS), "data"))
    file = tmp_path / "weights.safetensors"
    save_weights(model, file, {"dataset": "voc", "class_names": tuple("c" * 21)})
    model.train().double()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for same in (model, load_voc_network(file)):
        assert prediction_key(about_probabilities(scorer(same, SETTINGS), "data")) == key


def test_a_folder_is_of_one_network(tmp_path: Path) -> None:
    about, other, *_ = predictors()
    folder = open_folder(tmp_path, *about)
    assert json.loads((folder / NOTE).read_text()) == about_probabilities(*about)
    assert open_folder(tmp_path, *about) == folder
    assert open_folder(tmp_path, *other) != folder
    (folder / "2007_000033.png").touch()
    for content in (json.dumps(about_probabilities(*other)).encode(), b"", b"\xff"):
        (folder / NOTE).write_bytes(content)
        with pytest.raises(UserError, match=r"holds other probabilities .* Remove the folder"):
            open_folder(tmp_path, *about)
    (folder / NOTE).unlink()
    with pytest.raises(UserError, match="holds other probabilities"):
        open_folder(tmp_path, *about)
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match="cannot write"):
        open_folder(tmp_path / "file", *about)
