"""The dense CRF: against mean-field by its definition, at a colour edge, and over many files."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.config.read import validate
from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.crf import (
    CrfInput,
    crf_key,
    marginals,
    refine,
    refine_all,
)
from lovasz_repro.evaluation.probabilities import write_probabilities
from lovasz_repro.host.processes import mapped

DEEPLAB = CrfConfig()


def changed(parameters: CrfConfig = DEEPLAB, **change: Any) -> CrfConfig:
    """Other parameters, checked as those of a file are."""
    return validate(CrfConfig, parameters.model_dump() | change, "crf")


@pytest.fixture
def densecrf() -> Any:
    return pytest.importorskip("pydensecrf.densecrf")


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(0))
    return (exponentials / exponentials.sum(0)).astype(np.float32)


def exact_marginals(
    image: np.ndarray, probabilities: np.ndarray, parameters: CrfConfig
) -> np.ndarray:
    """Algorithm 1 of Krähenbühl & Koltun with every pair of pixels summed, in float64.

    As in their code a pixel also hears itself, and the Potts energy of all but one label is
    written as a reward for that one.
    """
    classes, height, width = probabilities.shape
    rows, columns = np.mgrid[:height, :width]
    position = np.stack([rows, columns], -1).reshape(-1, 2).astype(float)
    colour = image.reshape(-1, 3).astype(float)

    def gaussian(features: np.ndarray) -> np.ndarray:
        difference = features[:, None] - features[None]
        kernel = np.exp(-0.5 * (difference**2).sum(-1))
        norm = kernel.sum(1)
        if parameters.normalization == "after":
            return kernel / norm[:, None]
        return kernel / np.sqrt(norm[:, None] * norm[None])

    near_and_alike = [position / parameters.bilateral_xy, colour / parameters.bilateral_rgb]
    kernel = parameters.smoothness_weight * gaussian(position / parameters.smoothness_xy)
    kernel += parameters.bilateral_weight * gaussian(np.concatenate(near_and_alike, 1))
    log_unary = np.log(np.clip(probabilities.reshape(classes, -1).astype(float), 1e-5, 1))
    q = softmax(log_unary).astype(float)
    for _ in range(parameters.iterations):
        q = softmax(log_unary + q @ kernel.T).astype(float)
    return q.reshape(classes, height, width)


def scene(seed: int, size: tuple[int, int] = (13, 17), classes: int = 4) -> tuple[np.ndarray, ...]:
    """A photograph of three patches with some noise, and noisy probabilities."""
    generator = np.random.default_rng(seed)
    height, width = size
    patch = np.zeros(size, dtype=int)
    patch[height // 3 :, : width // 2], patch[:, 2 * width // 3 :] = 1, 2
    colours = generator.integers(20, 236, (3, 3))
    image = colours[patch] + generator.normal(0, 2.5, (*size, 3))
    logits = generator.normal(0, 1.2, (classes, *size)) + 1.5 * np.eye(classes)[:, patch]
    return np.clip(image, 0, 255).astype(np.uint8), softmax(logits)


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"iterations": 1},
        {"iterations": 3},
        {"smoothness_weight": 2, "smoothness_xy": 2, "bilateral_weight": 0},
        {"smoothness_weight": 0, "bilateral_weight": 5, "bilateral_xy": 6, "bilateral_rgb": 13},
    ],
)
def test_marginals_are_those_of_mean_field_by_definition(
    densecrf: Any, change: dict[str, Any], normalization: str
) -> None:
    """To within the library's approximate filter: a lattice in place of the Gaussian."""
    parameters = changed(normalization=normalization, **change)
    differences = []
    for seed in range(4):
        image, probabilities = scene(seed)
        found = marginals(image, probabilities, parameters)
        expected = exact_marginals(image, probabilities, parameters)
        np.testing.assert_allclose(found.sum(0), 1, rtol=1e-5)
        differences.append(np.abs(found - expected))
        clear = expected.max(0) > 0.75
        labels = refine(image, probabilities, parameters)
        assert clear.any()
        np.testing.assert_array_equal(labels[clear], expected.argmax(0)[clear])
    assert np.mean(differences) < 0.005


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize(
    "change",
    [
        {"iterations": 2},
        {"smoothness_weight": 1.0},
        {"smoothness_xy": 3.0},
        {"bilateral_weight": 1.5},
        {"bilateral_xy": 4.0},
        {"bilateral_rgb": 30.0},
        {"normalization": None},
    ],
)
def test_each_parameter_reaches_the_library(
    densecrf: Any, change: dict[str, Any], normalization: str
) -> None:
    """Its result is much nearer to the definition with the new value than with the old one."""
    before = changed(iterations=1, normalization=normalization)
    if "normalization" in change:
        change = {"normalization": "symmetric" if normalization == "after" else "after"}
    after = changed(before, **change)
    image, probabilities = scene(5)
    found = marginals(image, probabilities, after)
    new, old = (
        np.abs(found - exact_marginals(image, probabilities, parameters)).mean()
        for parameters in (after, before)
    )
    assert new < 0.005
    assert old > 2 * new


def test_the_defaults_are_those_of_deeplab_v2_on_resnet_101() -> None:
    """kazuto1011/deeplab-pytorch, configs/voc12.yaml."""
    expected = {
        "iterations": 10,
        "smoothness_weight": 3,
        "smoothness_xy": 1,
        "bilateral_weight": 4,
        "bilateral_xy": 67,
        "bilateral_rgb": 3,
        "normalization": "after",  # as DeepLab's own library
    }
    assert DEEPLAB.model_dump() == expected


def test_labels_snap_to_the_edge_between_two_colours(densecrf: Any) -> None:
    """The predicted edge is 3 pixels off, ragged, and salted with wrong pixels."""
    generator = np.random.default_rng(0)
    height, width, edge = 40, 60, 27
    image = np.full((height, width, 3), (200, 60, 40), dtype=np.uint8)
    image[:, edge:] = (30, 90, 180)
    truth = np.arange(width)[None].repeat(height, 0) >= edge
    offset = edge + 3 + generator.integers(-3, 4, (height, 1))
    predicted = (np.arange(width)[None] >= offset) ^ (generator.random(truth.shape) < 0.1)
    confidence = generator.uniform(0.55, 0.8, truth.shape)
    right = np.where(predicted, confidence, 1 - confidence)
    probabilities = np.stack([1 - right, right]).astype(np.float32)
    assert (predicted != truth).mean() > 0.1
    np.testing.assert_array_equal(refine(image, probabilities, DEEPLAB), truth)
    no_colour = changed(bilateral_weight=0)
    assert (refine(image, probabilities, no_colour) != truth).any()


def test_views_and_single_pixels_are_taken(densecrf: Any) -> None:
    image, probabilities = scene(3)
    image.flags.writeable = False
    turned = refine(image[::-1, ::-1], probabilities[:, ::-1, ::-1].astype(np.float64), DEEPLAB)
    copied = refine(
        image[::-1, ::-1].copy(), np.ascontiguousarray(probabilities[:, ::-1, ::-1]), DEEPLAB
    )
    assert turned.dtype == np.uint8
    np.testing.assert_array_equal(turned, copied)
    one = refine(image[:1, :1], np.array([0.2, 0.7, 0.1], dtype="f4").reshape(3, 1, 1), DEEPLAB)
    np.testing.assert_array_equal(one, [[1]])


@pytest.mark.parametrize(
    ("image", "probabilities"),
    [
        (np.zeros((4, 5, 3), np.uint8), np.full((2, 5, 4), 0.5, np.float32)),
        (np.zeros((4, 5), np.uint8), np.full((2, 4, 5), 0.5, np.float32)),
        (np.zeros((4, 5, 3), np.float32), np.full((2, 4, 5), 0.5, np.float32)),
        (np.zeros((4, 5, 3), np.uint8), np.full((4, 5), 0.5, np.float32)),
        (np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), np.nan, np.float32)),
        (np.zeros((4, 5, 3), np.uint8), np.full((2, 4, 5), -3.0, np.float32)),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((2, 0, 5), np.float32)),
    ],
)
def test_bad_arrays_are_refused(
    densecrf: Any, image: np.ndarray, probabilities: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="not"):
        refine(image, probabilities, DEEPLAB)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iterations": 0}, "crf: iterations: .* greater than 0, not 0"),
        ({"iterations": 2.5}, r"iterations: .* valid integer"),
        ({"bilateral_rgb": 0.0}, "bilateral_rgb: .* greater than 0"),
        ({"smoothness_xy": float("nan")}, "smoothness_xy: .* finite"),
        ({"bilateral_weight": float("inf")}, "bilateral_weight: .* finite"),
        ({"smoothness_weight": -1}, "smoothness_weight: .* greater than or equal to 0"),
        ({"normalization": "before"}, "normalization: .* 'after' or 'symmetric'"),
    ],
)
def test_bad_parameters_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(**change)


def test_a_key_names_the_values() -> None:
    changes: list[dict[str, Any]] = [
        {}, {"iterations": 9}, {"smoothness_weight": 4}, {"smoothness_xy": 3},
        {"bilateral_weight": 3}, {"bilateral_xy": 4}, {"bilateral_rgb": 4},
        {"normalization": "symmetric"},
    ]  # fmt: skip
    assert len({crf_key(changed(**change)) for change in changes}) == len(changes)
    assert crf_key(changed(bilateral_xy=67, smoothness_weight=3)) == crf_key(DEEPLAB)


@pytest.mark.parametrize("module", [None, SimpleNamespace()])
def test_without_the_extra_one_line_says_how_to_get_it(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", module)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '\.\[crf\]'"):
        refine(*scene(0), DEEPLAB)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '\.\[crf\]'"):
        refine_all([], tmp_path / "out", DEEPLAB)
    assert not (tmp_path / "out").exists()


# -- many files ----------------------------------------------------------------------------------


@pytest.fixture
def inputs(densecrf: Any, tmp_path: Path) -> list[CrfInput]:
    """Three photographs of different sizes with their cached probabilities."""
    items = []
    for number in range(3):
        name = f"2007_00000{number}"
        image, probabilities = scene(number, (12 + number, 16))
        item = CrfInput(name, tmp_path / f"{name}-photo.png", tmp_path / f"{name}.png")
        Image.fromarray(image).save(item.image)
        write_probabilities(item.probabilities, name, probabilities)
        items.append(item)
    return items


def contents(files: list[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files]


def test_two_processes_write_what_one_does(inputs: list[CrfInput], tmp_path: Path) -> None:
    advanced: list[int] = []
    alone = refine_all(inputs, tmp_path / "alone", DEEPLAB, advance=advanced.append)
    with mapped(2, "refined predictions") as map_:
        shared = refine_all(inputs, tmp_path / "shared", DEEPLAB, map_=map_)
    assert advanced == [1, 1, 1]
    assert contents(alone) == contents(shared)
    for number, (item, file) in enumerate(zip(inputs, alone, strict=True)):
        assert file == tmp_path / "alone" / crf_key(DEEPLAB) / f"{item.name}.png"
        image, probabilities = scene(number, (12 + number, 16))
        with Image.open(file) as opened:  # the cache's rounding is far below what decides here
            labels = np.asarray(opened)
        assert labels.dtype == np.uint8
        expected = exact_marginals(image, probabilities, DEEPLAB)
        clear = expected.max(0) > 0.7
        np.testing.assert_array_equal(labels[clear], expected.argmax(0)[clear])
    described = json.loads((alone[0].parent / "crf.json").read_text())
    assert CrfConfig(**described) == DEEPLAB


def test_a_call_that_was_cut_short_is_continued(inputs: list[CrfInput], tmp_path: Path) -> None:
    whole = refine_all(inputs, tmp_path / "whole", DEEPLAB)

    class Interrupted(Exception):
        pass

    def interrupt(images: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        refine_all(inputs, tmp_path / "out", DEEPLAB, advance=interrupt)
    folder = tmp_path / "out" / crf_key(DEEPLAB)
    assert [file.name for file in folder.glob("*.png")] == [f"{inputs[0].name}.png"]
    os.utime(folder / f"{inputs[0].name}.png", (1, 1))
    continued = refine_all(inputs, tmp_path / "out", DEEPLAB)
    assert contents(continued) == contents(whole)
    assert continued[0].stat().st_mtime == 1  # stayed
    assert sorted(path.name for path in folder.iterdir()) == [
        *(f"{item.name}.png" for item in inputs),
        "crf.json",
    ]


def test_truncated_and_foreign_files_are_done_again(inputs: list[CrfInput], tmp_path: Path) -> None:
    files = refine_all(inputs, tmp_path / "out", DEEPLAB)
    right = contents(files)
    damaged = bytearray(right[2])
    damaged[len(damaged) * 3 // 4] ^= 1
    for wrong in (
        [right[0][:-20], b"", bytes(damaged)],
        [right[1], b"no image", right[0]],
        [inputs[0].image.read_bytes(), inputs[1].probabilities.read_bytes(), right[2]],
    ):
        for file, content in zip(files, wrong, strict=True):
            file.write_bytes(content)
        assert contents(refine_all(inputs, tmp_path / "out", DEEPLAB)) == right


def test_other_inputs_and_parameters_are_told_apart(inputs: list[CrfInput], tmp_path: Path) -> None:
    files = refine_all(inputs, tmp_path / "out", DEEPLAB)
    before = contents(files)
    _, probabilities = scene(9, (12, 16))
    write_probabilities(inputs[0].probabilities, inputs[0].name, probabilities)
    image, _ = scene(9, (13, 16))
    Image.fromarray(image).save(inputs[1].image)
    after = contents(refine_all(inputs, tmp_path / "out", DEEPLAB))
    assert [a == b for a, b in zip(after, before, strict=True)] == [False, False, True]
    others = refine_all(inputs, tmp_path / "out", changed(bilateral_rgb=5))
    assert {file.parent for file in others}.isdisjoint({file.parent for file in files})
    assert contents(files) == after


def test_an_unusable_input_ends_it_with_one_line(inputs: list[CrfInput], tmp_path: Path) -> None:
    wrong = replace(inputs[1], probabilities=inputs[0].probabilities)
    with pytest.raises(UserError, match=r"2007_000000\.png: not the probabilities of 2007_000001"):
        refine_all([inputs[0], wrong], tmp_path / "out", DEEPLAB)


def test_what_is_missing_or_of_another_size_is_named(
    inputs: list[CrfInput], tmp_path: Path
) -> None:
    gone = replace(inputs[0], image=tmp_path / "gone.jpg")
    with pytest.raises(UserError, match=r"gone\.jpg: No such file"):
        refine_all([gone], tmp_path / "out", DEEPLAB)
    larger = replace(inputs[0], image=inputs[1].image)
    with pytest.raises(UserError, match=r"of 12x16 pixels; .* is 13x16"):
        refine_all([larger], tmp_path / "out", DEEPLAB)
    with pytest.raises(UserError, match="share a name"):
        refine_all([inputs[0], inputs[0]], tmp_path / "out", DEEPLAB)
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match="cannot write"):
        refine_all(inputs, tmp_path / "file", DEEPLAB)
