"""Our Cityscapes scores against the official script, and how that script is run."""

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.cityscapes import Frame
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import (
    AVERAGE_SIZES,
    CATEGORIES,
    CLASSES,
    CityscapesScores,
    official_scores,
    score_files,
)

labels_py = pytest.importorskip("cityscapesscripts.helpers.labels")
script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")

pytestmark = pytest.mark.skipif(not hasattr(np, "in1d"), reason="NumPy is too new for the script")

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
Files = tuple[list[Path], list[Frame]]
INSTANCES = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)


def write(folder: Path, scenes: list[Scene]) -> Files:
    predictions, frames = [], []
    for number, (prediction, labels, instances) in enumerate(scenes):
        name = f"city_{number:06d}_000000"
        masks = folder / f"{name}_gtFine"
        frame = Frame(
            name, "city", folder / f"{name}_leftImg8bit.png",
            Path(f"{masks}_labelIds.png"), Path(f"{masks}_instanceIds.png"),
        )  # fmt: skip
        predictions.append(folder / f"{name}_prediction.png")
        frames.append(frame)
        Image.fromarray(prediction.astype(np.uint8)).save(predictions[-1])
        Image.fromarray(labels.astype(np.uint8)).save(frame.label_ids)
        Image.fromarray(instances.astype(np.uint16)).save(frame.instance_ids)
    return predictions, frames


def noise(generator: np.random.Generator, ids: int) -> Scene:
    """Pixels at random, of some of the ids: others are absent."""
    present, size = generator.choice(34, ids, replace=False), (23, 31)
    labels, told = generator.choice(present, size), generator.choice(present, size)
    prediction = np.where(generator.random(size) < 0.6, labels, told)
    alone = np.isin(labels, INSTANCES) & (generator.random(size) < 0.8)
    instances = np.where(alone, labels * 1000 + generator.integers(0, 5, size), labels)
    return prediction, labels, instances


def street(generator: np.random.Generator) -> Scene:
    """Rectangles: regions, groups, objects that hide each other; all predicted with an offset."""
    size = (60, 90)
    instances = np.full(size, 7)
    for number in range(40):
        top, left = generator.integers(0, size[0]), generator.integers(0, size[1])
        high, wide = generator.integers(2, 25, 2)
        label = generator.integers(0, 34)
        alone = label in INSTANCES and generator.random() < 0.8
        instances[top : top + high, left : left + wide] = label * 1000 + number if alone else label
    labels = np.where(instances < 1000, instances, instances // 1000)
    prediction = np.roll(labels, generator.integers(-4, 5, 2), (0, 1))
    wrong = generator.permutation(34)[prediction]
    return np.where(generator.random(size) < 0.2, wrong, prediction), labels, instances


def agree(files: Files) -> CityscapesScores:
    own, official = score_files(*files), official_scores(*files)
    ours, theirs = own.as_metrics("val"), official.as_metrics("val")
    assert ours.keys() == theirs.keys()
    for name, score in theirs.items():
        assert ours[name] == pytest.approx(score, rel=0, abs=1e-12, nan_ok=True), name
    return official


# -- the same numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", [1, 3, 10, 34])
@pytest.mark.parametrize("seed", range(5))
def test_noise(seed: int, ids: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(100 * ids + seed)
    agree(write(tmp_path, [noise(generator, ids) for _ in range(3)]))


@pytest.mark.parametrize("seed", range(5))
def test_streets(seed: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(seed)
    scores = agree(write(tmp_path, [street(generator) for _ in range(4)]))
    assert not any(math.isnan(score) for score in scores.as_metrics("val").values())
    assert 0 < scores.category_iiou < 1


def full(prediction: int, label: int, instance: int) -> Scene:
    return np.full((4, 6), prediction), np.full((4, 6), label), np.full((4, 6), instance)


@pytest.mark.parametrize(
    "scene",
    [
        full(0, 0, 0),  # nothing scored
        full(26, 0, 0),
        full(26, 26, 26),  # a group alone
        full(29, 26, 26001),  # a caravan that is a car
        full(30, 7, 7),  # a trailer that is road
        full(26, 29, 29001),  # a car that is a caravan
        full(29, 29, 29001),
        full(26, 26, 24001),  # masks that contradict each other
        full(7, 7, 1000),
        full(7, 7, 1001),  # numbers of what is not scored
        full(24, 24, 24000),
        full(33, 33, 33999),
        full(0, 26, 26005),
        full(25, 24, 24007),  # another class of the category
    ],
    ids=lambda scene: "-".join(str(mask[0, 0]) for mask in scene),
)
def test_corners(scene: Scene, tmp_path: Path) -> None:
    agree(write(tmp_path, [scene]))
    agree(write(tmp_path, [scene, noise(np.random.default_rng(0), 8)]))


def test_tables_are_the_official_ones() -> None:
    scored = {label.name: label for label in labels_py.labels if not label.ignoreInEval}
    assert {name: label.id for name, label in scored.items()} == CLASSES
    assert set(AVERAGE_SIZES) == {name for name, label in scored.items() if label.hasInstances}
    for name, size in AVERAGE_SIZES.items():
        assert script.args.avgClassSize[name] == size
    by_category = {name: category for category, names in CATEGORIES.items() for name in names}
    assert by_category == {name: label.category for name, label in scored.items()}


# -- how the script is run -------------------------------------------------------------------------


def test_it_leaves_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing printed, nothing written, its settings as they were; a second call is as good."""
    monkeypatch.chdir(tmp_path)
    files = write(tmp_path, [noise(np.random.default_rng(0), 20)])
    before, present = json.dumps(vars(script.args), default=str), set(tmp_path.iterdir())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = official_scores(*files)
    with pytest.raises(UserError):
        official_scores([tmp_path / "gone.png"], files[1])
    assert repr(official_scores(*files)) == repr(first)  # NaN is not equal to itself
    assert not caught
    assert capsys.readouterr() == ("", "")
    assert json.dumps(vars(script.args), default=str) == before
    assert set(tmp_path.iterdir()) == present


def test_its_errors_name_the_file(tmp_path: Path) -> None:
    predictions, frames = write(tmp_path, [full(7, 7, 7), full(7, 99, 7), full(200, 7, 7)])
    with pytest.raises(UserError, match=r"stops: Unable to load .*gone\.png$"):
        official_scores([tmp_path / "gone.png"], frames[:1])
    with pytest.raises(UserError, match="stops: Unknown label with id 99"):
        official_scores(predictions[1:2], frames[1:2])
    with pytest.raises(UserError, match=r"fails with IndexError: .*200"):
        official_scores(predictions[2:], frames[2:])
    small = tmp_path / "small.png"
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(small)
    with pytest.raises(UserError, match=r"stops: Image widths of .*small\.png"):
        official_scores([small], frames[:1])
    with pytest.raises(ValueError, match="0 predictions for 3 frames"):
        official_scores([], frames)


def test_it_finds_instances_beside_labels_only(tmp_path: Path) -> None:
    folder = tmp_path / "labelIds"
    folder.mkdir()
    with pytest.raises(UserError, match=r"labelIds/.*: the official script would read .*instanceI"):
        official_scores(*write(folder, [full(7, 7, 7)]))


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, [full(7, 7, 7)])
    for name in [name for name in sys.modules if name.startswith("cityscapesscripts")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cityscapesscripts", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '\.\[cityscapes\]'"):
        official_scores(*files)


def test_numpy_too_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write(tmp_path, [full(7, 7, 7)])
    monkeypatch.delattr(np, "in1d", raising=False)
    with pytest.raises(UserError, match=r"does not run on NumPy \d.*in1d"):
        official_scores(*files)
