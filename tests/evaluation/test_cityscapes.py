"""The Cityscapes scores against their definitions, written out pixel by pixel."""

import math
import signal
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, distributed

from lovasz_repro.data.cityscapes import Frame
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.cityscapes import (
    AVERAGE_SIZES,
    CATEGORIES,
    CLASSES,
    CityscapesCounts,
    CityscapesScores,
    score_files,
)
from lovasz_repro.host import processes

Scene = tuple[np.ndarray, np.ndarray, np.ndarray]
CATEGORY_OF = {name: category for category, names in CATEGORIES.items() for name in names}
NAME_OF = {label: name for name, label in CLASSES.items()}


# -- the oracle: one pixel at a time ---------------------------------------------------------------


def mean(scores: dict[str, float]) -> float:
    valid = [score for score in scores.values() if not math.isnan(score)]
    return sum(valid) / len(valid) if valid else math.nan


def divide(above: float, below: float) -> float:
    return above / below if below else math.nan


def category_of(label: int, *, unscored: bool) -> str | None:
    """Of a predicted id; caravan and trailer are vehicles where instances are scored."""
    if label in (29, 30):
        return "vehicle" if unscored else None
    return CATEGORY_OF.get(NAME_OF.get(label, ""))


def by_definition(scenes: list[Scene]) -> CityscapesScores:
    tp, fp, fn = (defaultdict(float) for _ in range(3))
    loose_fp: dict[str, int] = defaultdict(int)  # of category iIoU
    itp, ifn = defaultdict(float), defaultdict(float)
    for prediction, labels, instances in scenes:
        pixels = list(zip(*(a.flatten().tolist() for a in (prediction, labels, instances)),
                          strict=True))  # fmt: skip
        for p, label, _ in pixels:
            name = NAME_OF.get(label)
            if name is None:
                continue
            told = NAME_OF.get(p)
            (tp if told == name else fn)[name] += 1
            if told != name and told:
                fp[told] += 1
            mine, other = CATEGORY_OF[name], category_of(p, unscored=False)
            (tp if mine == other else fn)[mine + "/"] += 1
            if mine != other and other:
                fp[other + "/"] += 1
            loose = category_of(p, unscored=True)
            if mine != loose and loose:
                loose_fp[loose] += 1
        for instance in {i for _, _, i in pixels if i > 1000}:
            name = NAME_OF.get(instance // 1000)
            if name is None:
                continue
            told_here = [p for p, _, i in pixels if i == instance]
            weight = AVERAGE_SIZES[name] / len(told_here)
            for p in told_here:
                (itp if p == CLASSES[name] else ifn)[name] += weight
                right = category_of(p, unscored=True) == CATEGORY_OF[name]
                (itp if right else ifn)[CATEGORY_OF[name] + "/"] += weight
    classes = {n: divide(tp[n], tp[n] + fp[n] + fn[n]) for n in CLASSES}
    class_instances = {n: divide(itp[n], itp[n] + fp[n] + ifn[n]) for n in AVERAGE_SIZES}
    categories = {
        n: divide(tp[n + "/"], tp[n + "/"] + fp[n + "/"] + fn[n + "/"]) for n in CATEGORIES
    }
    category_instances = {
        n: divide(itp[n + "/"], itp[n + "/"] + loose_fp[n] + ifn[n + "/"])
        for n in ("human", "vehicle")
    }
    parts = (classes, class_instances, categories, category_instances)
    return CityscapesScores(*(mean(part) for part in parts), *parts)


def agree(own: CityscapesScores, expected: CityscapesScores, tolerance: float = 1e-12) -> None:
    ours, theirs = own.as_metrics("val"), expected.as_metrics("val")
    assert ours.keys() == theirs.keys()
    for name, score in theirs.items():
        assert ours[name] == pytest.approx(score, rel=0, abs=tolerance, nan_ok=True), name


# -- scenes ----------------------------------------------------------------------------------------


def random_scene(seed: int, size: tuple[int, int] = (13, 17)) -> Scene:
    """Everything that may occur, at random: instances, groups, void, ids that are not scored."""
    generator = np.random.default_rng(seed)
    present = generator.choice(34, 14, replace=False)
    labels = generator.choice(present, size)
    numbers = generator.integers(0, 4, size)
    alone = (labels >= 24) & (generator.random(size) < 0.8)
    instances = np.where(alone, labels * 1000 + numbers, labels)
    told = generator.choice(present, size)
    prediction = np.where(generator.random(size) < 0.5, labels, told)
    return prediction, labels, instances


def tensors(*scenes: Scene) -> tuple[Tensor, ...]:
    """As a batch; all of one size."""
    return tuple(torch.from_numpy(np.stack(images)) for images in zip(*scenes, strict=True))


def counted(*scenes: Scene) -> CityscapesCounts:
    counts = CityscapesCounts()
    for scene in scenes:
        counts.update(*tensors(scene))
    return counts


@st.composite
def tiny_scenes(draw: st.DrawFn) -> list[Scene]:
    """A few images of few ids, so that coincidences are frequent."""
    ids = draw(st.lists(st.integers(0, 33), min_size=1, max_size=5))
    ids += draw(st.sampled_from([[], [24, 25], [26, 29, 30], [24, 26, 33]]))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    pixel = st.tuples(st.sampled_from(ids), st.sampled_from(ids), st.sampled_from([-1, 0, 1, 999]))
    images = st.lists(pixel, min_size=height * width, max_size=height * width)
    scenes = []
    for drawn in draw(st.lists(images, min_size=1, max_size=3)):
        prediction, labels, number = np.array(drawn).T.reshape(3, height, width)
        alone = (labels >= 24) & (number >= 0)
        instances = np.where(alone, labels * 1000 + number, labels)
        scenes.append((prediction, labels, instances))
    return scenes


# -- scores ----------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(tiny_scenes())
def test_scores_are_those_of_the_definitions(scenes: list[Scene]) -> None:
    agree(counted(*scenes).scores(), by_definition(scenes))


@pytest.mark.parametrize("seed", range(4))
def test_scores_of_busy_scenes(seed: int) -> None:
    scenes = [random_scene(10 * seed + number) for number in range(3)]
    agree(counted(*scenes).scores(), by_definition(scenes))


def scene(prediction: list[int], labels: list[int], instances: list[int]) -> Scene:
    return tuple(np.array([row]) for row in (prediction, labels, instances))  # type: ignore[return-value]


def test_by_hand_small_and_large_instances_count_alike() -> None:
    """A car of one pixel, found; one of three, missed: half of the cars, a quarter of the area."""
    scores = counted(scene([26, 7, 7, 7], [26] * 4, [26001, 26002, 26002, 26002])).scores()
    assert scores.classes["car"] == pytest.approx(1 / 4)
    assert scores.class_instances["car"] == pytest.approx(1 / 2)
    assert scores.category_instances["vehicle"] == pytest.approx(1 / 2)
    assert scores.class_iou == pytest.approx((1 / 4 + 0) / 2)  # of car and road
    assert math.isnan(scores.classes["person"])
    assert math.isnan(scores.category_instances["human"])


def test_by_hand_false_positives_are_not_weighted() -> None:
    size = AVERAGE_SIZES["person"]
    scores = counted(scene([24, 24, 24], [24, 7, 23], [24000, 7, 23])).scores()
    assert scores.class_instances["person"] == pytest.approx(size / (size + 2))


def test_by_hand_groups_are_no_instances() -> None:
    scores = counted(scene([26, 7, 26], [26, 26, 26], [26000, 26, 26])).scores()
    assert scores.class_instances["car"] == 1
    assert scores.classes["car"] == pytest.approx(2 / 3)


def test_by_hand_unscored_pixels_do_not_count() -> None:
    """Void, and a caravan with its number: whatever is said there is not wrong."""
    scores = counted(scene([26, 26, 26], [26, 0, 29], [26000, 0, 29001])).scores()
    assert scores.classes["car"] == scores.class_instances["car"] == 1
    assert scores.category_iiou == 1


def test_by_hand_caravans_are_vehicles_when_predicted() -> None:
    """On a car: right as a category with instances, wrong as one without; on road: wrong."""
    scores = counted(scene([29, 30], [26, 7], [26000, 7])).scores()
    size = AVERAGE_SIZES["car"]
    assert scores.categories["vehicle"] == 0
    assert scores.category_instances["vehicle"] == pytest.approx(size / (size + 1))
    assert scores.class_instances["car"] == 0


def test_the_same_number_in_two_images_is_two_instances() -> None:
    found = scene([26, 26], [26, 26], [26000, 26000])
    missed = scene([7, 7], [26, 26], [26000, 26000])
    counts = CityscapesCounts()
    counts.update(*tensors(found, missed))
    assert counts.instances.sum() == 2
    assert counts.scores().class_instances["car"] == pytest.approx(1 / 2)


def test_a_batch_and_one_by_one_in_any_order() -> None:
    scenes = [random_scene(seed) for seed in range(5)]
    together = CityscapesCounts()
    together.update(*tensors(*scenes))
    agree(together.scores(), counted(*scenes[::-1]).scores(), 1e-14)


@pytest.mark.parametrize("cut", range(4))
def test_parts_merge(cut: int) -> None:
    scenes = [random_scene(seed) for seed in range(3)]
    first, second = counted(*scenes[:cut]), counted(*scenes[cut:])
    first.merge(second)
    agree(first.scores(), counted(*scenes).scores(), 1e-14)
    assert second.pairs.sum() == 13 * 17 * (3 - cut)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_any_integers_of_any_layout(dtype: torch.dtype) -> None:
    prediction, labels, instances = tensors(random_scene(0))
    counts = CityscapesCounts()
    turned = (image.mT.contiguous().mT for image in (prediction.to(dtype), labels, instances))
    counts.update(*turned)
    agree(counts.scores(), counted(random_scene(0)).scores(), 0)


def test_nothing_has_no_score() -> None:
    counts = CityscapesCounts()
    counts.update(*(torch.zeros(0, 4, 4, dtype=torch.int64),) * 3)
    counts.update(*(torch.zeros(2, 0, 4, dtype=torch.int64),) * 3)
    assert all(math.isnan(score) for score in counts.scores().as_metrics("val").values())
    one = CityscapesCounts()
    one.update(*tensors(scene([7], [7], [7])))
    assert one.scores().class_iou == one.scores().category_iou == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    counts = CityscapesCounts()
    scenes = [random_scene(seed) for seed in range(3)]
    counts.update(*(image.cuda() for image in tensors(*scenes)))
    agree(counts.scores(), counted(*scenes).scores(), 1e-14)


def test_names_of_metrics_and_summary() -> None:
    metrics = counted(random_scene(0)).scores().as_metrics("test")
    assert len(metrics) == 4 + 19 + 8 + 7 + 2
    for name in (
        "dataset_miou", "class_iiou", "category_iou", "category_iiou", "iou/traffic light",
        "iiou/rider", "categories/iou/sky", "categories/iiou/human",
    ):  # fmt: skip
        assert f"test/{name}" in metrics
    scores = CityscapesScores(0.604, 0.362, 0.8, 0.639, {}, {}, {}, {})
    assert scores.summary() == ("Class IoU 60.40%, iIoU 36.20%, Category IoU 80.00%, iIoU 63.90%")
    assert list(scores.as_metrics("val").values()) == [0.604, 0.362, 0.8, 0.639]


# -- ranks -----------------------------------------------------------------------------------------


def work(rank: int, group: distributed.ProcessGroup, shares: tuple[int, ...]) -> dict:
    own = range(sum(shares[:rank]), sum(shares[: rank + 1]))
    part = counted(*(random_scene(seed) for seed in own))
    before = part.scores()
    total = part.over_ranks(group)
    agree(part.scores(), before, 0)
    return {"scores": total.scores(), "pairs": total.pairs, "instances": total.instances}


@pytest.mark.parametrize("shares", [(2, 3), (0, 5), (1, 3, 1)], ids=str)
def test_all_ranks_get_the_scores_of_the_whole(shares: tuple[int, ...], rank_pool) -> None:
    whole = counted(*(random_scene(seed) for seed in range(5)))
    for found in rank_pool.run(work, len(shares), shares):
        assert torch.equal(found["pairs"], whole.pairs)
        assert torch.equal(found["instances"], whole.instances)
        agree(found["scores"], whole.scores(), 1e-14)


# -- bad input -------------------------------------------------------------------------------------


def ones(*shape: int, value: int = 7, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.full(shape, value, dtype=dtype)


GOOD = ones(2, 3, 4)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ((GOOD.float(), GOOD, GOOD), TypeError, "predictions must be integer ids, got .*float32"),
        ((GOOD, GOOD.bool(), GOOD), TypeError, "label_ids must be integer"),
        ((GOOD[0],) * 3, ValueError, r"predictions must be \(B, H, W\).*got \(3, 4\)"),
        ((GOOD, GOOD[:, :2], GOOD), ValueError, r"label_ids .*got \(2, 2, 4\)"),
        ((GOOD, GOOD, GOOD[:1]), ValueError, r"instance_ids .*got \(1, 3, 4\)"),
        ((GOOD, GOOD, GOOD.to("meta")), ValueError, "instance_ids must be on cpu, got meta"),
        ((ones(2, 3, 4, value=34), GOOD, GOOD), ValueError, r"predictions: 34 is no id in 0\.\.33"),
        ((GOOD, ones(2, 3, 4, value=-1), GOOD), ValueError, "label_ids: -1 is no id"),
        ((GOOD, ones(2, 3, 4, value=255), GOOD), ValueError, "label_ids: 255 is no id"),
        ((GOOD, GOOD, ones(2, 3, 4, value=34000)), ValueError, "34000 is no id in 0..33999"),
        ((GOOD, GOOD, ones(2, 3, 4, value=11003)), ValueError, "11003 is of a class without"),
    ],
)
def test_bad_images_are_named(images: tuple[Tensor, ...], error: type, message: str) -> None:
    counts = CityscapesCounts()
    with pytest.raises(error, match=message):
        counts.update(*images)
    assert counts.pairs.sum() == 0


def test_numbers_of_unscored_classes_are_no_instances() -> None:
    """As in the official script, which goes on where the class is not scored."""
    counts = counted(scene([7] * 5, [7] * 5, [999, 1000, 1001, 4003, 18999]))
    assert counts.instances.sum() == 0


# -- files -----------------------------------------------------------------------------------------


def write(folder: Path, name: str, scene: Scene) -> tuple[Path, Frame]:
    frame = Frame(
        name,
        "city",
        folder / f"{name}_leftImg8bit.png",
        folder / f"{name}_gtFine_labelIds.png",
        folder / f"{name}_gtFine_instanceIds.png",
    )
    prediction = folder / f"{name}_prediction.png"
    Image.fromarray(scene[0].astype(np.uint8)).save(prediction)
    Image.fromarray(scene[1].astype(np.uint8)).save(frame.label_ids)
    Image.fromarray(scene[2].astype(np.uint16)).save(frame.instance_ids)
    return prediction, frame


def write_all(folder: Path, scenes: list[Scene]) -> tuple[list[Path], list[Frame]]:
    pairs = [write(folder, f"city_{n:06d}_000000", scene) for n, scene in enumerate(scenes)]
    return [prediction for prediction, _ in pairs], [frame for _, frame in pairs]


def test_files_in_one_process_and_in_two(tmp_path: Path) -> None:
    scenes = [random_scene(seed, (13 + seed, 17)) for seed in range(3)]
    files = write_all(tmp_path, scenes)
    done: list[int] = []
    alone = score_files(*files, advance=done.append)
    assert done == [1, 1, 1]
    agree(alone, by_definition(scenes))
    together = score_files(*files, processes=2, advance=done.append)
    assert sum(done) == 6
    agree(together, alone, 0)


def test_bad_files_are_named(tmp_path: Path) -> None:
    good = random_scene(0)
    prediction, frame = write(tmp_path, "a_0_0", good)

    def check(message: str, prediction: Path = prediction, frame: Frame = frame) -> None:
        with pytest.raises(UserError, match=message) as caught:
            score_files([prediction], [frame])
        assert "\n" not in str(caught.value)

    check("gone.png: no such file", tmp_path / "gone.png")
    check("gone.png: no such file", frame=replace(frame, instance_ids=tmp_path / "gone.png"))
    small, other = write(tmp_path, "b_0_0", random_scene(0, (13, 16)))
    check("b_0_0_prediction.png: 13x16, the label ids of a_0_0 are 13x17", small)
    wrong = replace(frame, instance_ids=other.instance_ids)
    check("b_0_0_gtFine_instanceIds.png: 13x16", frame=wrong)
    unknown, _ = write(tmp_path, "c_0_0", (good[1] + 200, *good[1:]))
    check("c_0_0_prediction.png: label id", unknown)
    _, bad = write(tmp_path, "d_0_0", (good[0], good[1] + 34, good[2]))
    check("d_0_0_gtFine_labelIds.png: label id", frame=bad)
    _, bad = write(tmp_path, "e_0_0", (good[0], good[1], good[2] * 0 + 8001))
    check("e_0_0_gtFine_instanceIds.png: instance id 8001 is of a class without", frame=bad)
    colours = tmp_path / "colours.png"
    Image.fromarray(np.zeros((13, 17, 3), np.uint8)).save(colours)
    check("colours.png: not a mask", colours)
    colours.write_bytes(b"no image")
    check("colours.png: unreadable image", colours)


def test_files_must_match(tmp_path: Path) -> None:
    prediction, frame = write(tmp_path, "a_0_0", random_scene(0))
    for files in ([], []), ([prediction], []), ([], [frame]), ([prediction] * 2, [frame]):
        with pytest.raises(ValueError, match=r"predictions for \d frames"):
            score_files(*files)


def test_a_dead_process_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_all(tmp_path, [random_scene(seed) for seed in range(2)])
    monkeypatch.setattr(processes, "_start_process", partial(signal.raise_signal, 9))
    with pytest.raises(RunFailed, match="a process that scored images died"):
        score_files(*files, processes=2)
