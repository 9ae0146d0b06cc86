"""VOC as it is trained and scored on: labels of one category, crops, whole photographs, files."""

import json
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch.utils.data import DataLoader

from lovasz_repro import cli
from lovasz_repro.bench.yardsticks import PlainVoc
from lovasz_repro.data.classes import VOID
from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.sampling import Draw, ShuffledBatches, class_counts
from lovasz_repro.data.voc import binary_labels
from lovasz_repro.data.voc_training import balanced_validation, crops_of, shuffle, whole_images
from lovasz_repro.errors import UserError

SIZES = ((60, 90), (90, 60), (41, 47), (100, 100))
CROP = 49
masks = arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 3, 7, VOID]))


@pytest.fixture
def images(tmp_path: Path) -> list[ImagePair]:
    """Photographs of which red is twice the column, green twice the row and blue 1, stored exactly.

    Their labels are column % 21, with void in the last row; the third has no class but 0.
    """
    found = []
    for number, (height, width) in enumerate(SIZES):
        rows, columns = np.mgrid[:height, :width]
        photograph = np.stack([2 * columns, 2 * rows, np.ones_like(rows)], axis=-1)
        labels = np.zeros((height, width)) if number == 2 else columns % 21
        labels[-1] = VOID
        name = f"2008_00000{number}"
        file = ImagePair(name, tmp_path / f"{name}-photo.png", tmp_path / f"{name}.png")
        Image.fromarray(photograph.astype(np.uint8)).save(file.image)
        Image.fromarray(labels.astype(np.uint8)).save(file.mask)
        found.append(file)
    return found


def same(first: tuple[torch.Tensor, ...], second: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---- one category --------------------------------------------------------------------------------


@given(masks, st.sampled_from([0, 3, 7, 12]))
def test_labels_of_one_category(labels: np.ndarray, category: int) -> None:
    """Pixel by pixel: 1, 0 and 255 for void; all 0 without the class, void included."""
    binary = binary_labels(labels, category)
    shows_it = category in labels
    assert binary.dtype == np.uint8
    assert binary.shape == labels.shape
    for label, answer in zip(labels.flat, binary.flat, strict=True):
        if not shows_it:
            assert answer == 0
        elif label == VOID:
            assert answer == VOID
        else:
            assert answer == (label == category)


def test_the_whole_photograph_decides_what_void_becomes(tmp_path: Path) -> None:
    """The category is in one corner; crops that miss it have void all the same."""
    image = ImagePair("2008_000000", tmp_path / "photo.png", tmp_path / "mask.png")
    labels = np.full((120, 120), VOID, np.uint8)
    Image.fromarray(np.ones((120, 120, 3), np.uint8)).save(image.image)
    labels[:2, :2] = 5
    Image.fromarray(labels).save(image.mask)
    crops = crops_of([image], crop=33, seed=0, category=5)
    shown = [crops[Draw(0, position)][1] for position in range(30)]
    missing = [crop for crop in shown if not (crop == 1).any()]
    assert len(missing) > 5
    assert all((crop == VOID).all() for crop in missing)
    absent = crops_of([image], crop=33, seed=0, category=6)
    for position in range(30):
        photograph, crop = absent[Draw(0, position)]
        outside = photograph[2] != 1
        assert torch.equal(crop == VOID, outside)  # padding is void whatever the photograph shows
        assert (crop[~outside] == 0).all()


# ---- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", [None, 4])
def test_crops_are_aligned_and_invent_no_id(images: list[ImagePair], category: int | None) -> None:
    """Labels say which column the photograph shows there, after any scale, flip and padding."""
    crops = crops_of(images, crop=CROP, seed=1, category=category)
    mirrored, padded = 0, 0
    for position in range(80):
        index = position % len(images)
        photograph, labels = crops[Draw(index, position)]
        assert photograph.shape == (3, CROP, CROP)
        assert labels.shape == (CROP, CROP)
        assert photograph.dtype == labels.dtype == torch.uint8
        assert photograph.is_contiguous()
        assert labels.is_contiguous()
        pixels, ids = photograph.numpy().astype(np.float64), labels.numpy()
        inside = pixels[2] == 1
        assert (ids[~inside] == VOID).all()
        assert set(np.unique(ids)) <= {*range(21), VOID}
        padded += not inside.all()
        mirrored += pixels[0][inside].ravel()[:2].argmax() == 0
        columns = pixels[0] / 2  # to within half a pixel, and a quarter of rounding
        known = inside & (ids != VOID)
        expected = whole_labels(index, category)
        allowed = [expected[np.clip(np.rint(columns + shift), 0, SIZES[index][1] - 1).astype(int)]
                   for shift in (-0.75, -0.25, 0.25, 0.75)]  # fmt: skip
        assert np.any([near == ids for near in allowed], axis=0)[known].all()
    assert 10 < mirrored < 70
    assert 5 < padded < 75


def whole_labels(index: int, category: int | None) -> np.ndarray:
    """Label of each column of a photograph of the fixture, its last row apart."""
    columns = np.arange(SIZES[index][1]) % 21 * (index != 2)
    return columns if category is None else (columns == category) * 1


def test_an_item_is_a_function_of_seed_and_draw(images: list[ImagePair]) -> None:
    crops, again = (crops_of(images, crop=CROP, seed=5) for _ in range(2))
    draws = [Draw(position % 4, position) for position in range(24)]
    forward = [crops[draw] for draw in draws]
    backward = [again[draw] for draw in reversed(draws)][::-1]
    assert all(same(a, b) for a, b in zip(forward, backward, strict=True))
    assert same(crops[2], crops[Draw(2, 0)])
    other = crops_of(images, crop=CROP, seed=6)
    assert sum(same(other[draw], item) for draw, item in zip(draws, forward, strict=True)) < 6


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_any_number_of_processes(
    images: list[ImagePair], workers: int
) -> None:
    crops = pickle.loads(pickle.dumps(crops_of(images, crop=CROP, seed=2)))
    batches = ShuffledBatches(4, 3, 4, seed=7)
    loaded = list(DataLoader(crops, batch_sampler=batches, num_workers=workers))
    for (photographs, labels), batch in zip(loaded, batches, strict=True):
        assert photographs.shape == (3, 3, CROP, CROP)
        for k, draw in enumerate(batch):
            assert same(crops[draw], (photographs[k], labels[k]))


def test_classes_are_counted_in_whole_masks_whatever_the_category(images: list[ImagePair]) -> None:
    crops = crops_of(images, crop=CROP, seed=0, category=4)
    assert len(crops) == 4
    counts = class_counts(crops)
    assert counts.sum(axis=1).tolist() == [height * width for height, width in SIZES]
    assert counts[:, VOID].tolist() == [width for _, width in SIZES]
    assert counts[0, 4] == 59 * len(range(4, 90, 21))
    assert counts[2, 1:21].sum() == 0


# ---- scoring -------------------------------------------------------------------------------------


def test_photographs_are_scored_whole(images: list[ImagePair]) -> None:
    scored = pickle.loads(pickle.dumps(whole_images(images)))
    assert len(scored) == 4
    assert scored.name(3) == "2008_000003"
    for index, (height, width) in enumerate(SIZES):
        photograph, labels = scored[index]
        assert photograph.shape == (3, height, width)
        assert photograph.dtype == labels.dtype == torch.uint8
        assert np.array_equal(photograph.numpy().transpose(1, 2, 0), scored.photograph(index))
        assert np.array_equal(labels.numpy(), scored.label_ids(index))
        assert (labels[:-1].numpy() == whole_labels(index, None)).all()
        assert (labels[-1] == VOID).all()


def test_photographs_are_scored_on_one_category(images: list[ImagePair]) -> None:
    scored = whole_images(images, category=4)
    for index in range(4):
        labels = scored[index][1].numpy()
        assert (labels[:-1] == whole_labels(index, 4)).all()
        assert (labels[-1] == (0 if index == 2 else VOID)).all()
        assert scored.label_ids(index).max() == VOID


# ---- the balanced validation set of the authors' code --------------------------------------------


def test_the_shuffle_is_that_of_python_2() -> None:
    """By hand: 0.966, 0.441, 0.007, the first numbers of the Mersenne twister seeded with 1234."""
    stream = random.Random(1234)
    assert [round(stream.random(), 3) for _ in range(3)] == [0.966, 0.441, 0.007]
    items = [10, 11, 12]
    shuffle(items, random.Random(1234))  # 2 with int(0.966 * 3) = 2, then 1 with int(0.441 * 2) = 0
    assert items == [11, 10, 12]
    items = [10, 11, 12, 13]
    shuffle(items, random.Random(1234))  # 3 with 3, 2 with int(0.441 * 3) = 1, 1 with 0
    assert items == [12, 10, 11, 13]


def test_one_stream_serves_the_classes_in_turn() -> None:
    presence = np.array([[True, False, True], [True, True, False], [False, False, False]] * 4)
    stream, expected = random.Random(1234), []
    for category in range(3):
        negatives = [image for image in range(12) if not presence[image, category]]
        for last in reversed(range(1, len(negatives))):
            other = int(stream.random() * (last + 1))
            negatives[last], negatives[other] = negatives[other], negatives[last]
        positives = [image for image in range(12) if presence[image, category]]
        expected.append(positives + negatives[: len(positives)])
    assert [balanced_validation(presence, category) for category in range(3)] == expected
    assert len(expected[0]) == 12  # 8 positives, and all there is of negatives
    assert len(expected[2]) == 8


def test_a_class_that_no_image_contains_has_no_images() -> None:
    assert balanced_validation(np.zeros((5, 2), dtype=bool), 1) == []


# ---- files that are wrong ------------------------------------------------------------------------


def test_wrong_files_are_named(images: list[ImagePair]) -> None:
    crops, scored = crops_of(images, crop=CROP, seed=0), whole_images(images)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(images[0].mask)
    images[1].image.write_bytes(b"not a picture")
    Image.fromarray(np.full(SIZES[2], 30, np.uint8)).save(images[2].mask)
    images[3].mask.unlink()
    problems = ("5x5, its photograph is 60x90", "unreadable image", "class id 30", "no such file")
    for index, problem in enumerate(problems):
        for items in (crops, scored):
            with pytest.raises(UserError, match=problem) as error:
                items[index]
            assert images[index].name in str(error.value)


# ---- the plain version that speed is compared with -----------------------------------------------


def test_the_plain_version_shows_the_same_kind_of_crop(images: list[ImagePair]) -> None:
    """Its range, its alignment and its padding; Pillow's own resampling apart."""
    plain = PlainVoc(images, CROP)
    assert len(plain) == 4
    for position in range(40):
        pixels, labels = plain[Draw(position % 4, position)]
        assert pixels.shape == (3, CROP, CROP)
        assert pixels.dtype == torch.float32
        assert labels.shape == (CROP, CROP)
        assert labels.dtype == torch.int64
        inside = (pixels[0] - (1 - 104.008)).abs() < 1e-3
        assert (labels[~inside] == VOID).all()
        assert (pixels[:, ~inside].abs() < 0.5).all()
        assert set(labels.unique().tolist()) <= {*range(21), VOID}
        assert inside.any()


TINY = """
experiment: tiny
kind: training
title: tiny
section: none
claim: none
cost: seconds
seeds: [0]
batch_sizes: [2]
categories: [bird]
recipe:
  data: {name: voc, size: [33, 33], flip: true}
  model: {name: deeplab-v2-small, weights: basis}
  loss: {resolution: output}
  training: {iterations: 4, lr: 1.0e-4, validate_every: 4, checkpoint_every: 4,
             batch_norm: frozen}
variants:
  basis: {categories: [], model: {weights: null}, loss: {terms: {cross_entropy: 1.0}}}
  lovasz-hinge: {loss: {terms: {lovasz_hinge: 1.0}}}
profiles:
  paper: {scale: paper, about: small}
  demo: {scale: demo, about: small}
"""


def test_bench_loading_measures_both(
    images: list[ImagePair],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of one category against the rest it measures the basis network's run."""
    voc = tmp_path / "data" / "voc" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for image in images:
        image.mask.rename(voc / "SegmentationClassAug" / f"{image.name}.png")
        photograph = Image.open(image.image)
        photograph.save(voc / "JPEGImages" / f"{image.name}.jpg")
        photograph.close()
    for split in ("train_aug", "val"):
        names = "".join(f"{image.name}\n" for image in images)
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(names)
    (tmp_path / "tiny.yaml").write_text(TINY)
    command = ["lovasz-repro", "bench", "loading", str(tmp_path / "tiny.yaml"), "--profile", "demo"]
    command += ["--data", str(tmp_path / "data"), "--results", str(tmp_path / "results")]
    command += ["--device", "cpu", "--workers", "0", "--batches", "1", "--rounds", "2"]
    for form in ("--json", "--markdown"):
        monkeypatch.setattr(sys, "argv", [*command, form])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        out = capsys.readouterr().out
        if form == "--json":
            ours, plain = json.loads(out)["loaders"]
            rounds = zip(ours["images_per_second"], plain["images_per_second"], strict=True)
            ratios = [own / other for own, other in rounds]
            assert ours["in_plain"]["median"] == pytest.approx(sum(ratios) / 2)
            assert set(plain["in_plain"].values()) == {1}
        else:
            assert "| loader / step | loader / plain PIL |" in out
            assert "| plain PIL, the same process |" in out
