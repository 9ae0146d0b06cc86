"""All 12,031 masks of Pascal VOC and SBD, where they are: lists, ids, statistics, crops."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lovasz_repro.data.images import ImagePair
from lovasz_repro.data.sampling import Draw, class_counts, class_shares
from lovasz_repro.data.voc import (
    VOC_CLASSES,
    VOC_LISTS,
    VOC_SIZES,
    VOID,
    binary_labels,
    check_train_aug,
    list_images,
    presence_of,
    read_labels,
)
from lovasz_repro.data.voc_training import balanced_validation, crops_of, whole_images
from lovasz_repro.errors import UserError
from tests.conftest import real_data
from tests.tiny_voc import put

PUBLISHED_SHARES = (
    69.845, 0.905, 0.774, 0.889, 0.658, 0.552, 1.289, 1.935, 3.158, 1.264, 0.632,
    1.072, 2.814, 0.932, 1.17, 7.493, 0.615, 0.634, 1.234, 1.358, 0.777,
)  # fmt: skip
"""Of the labelled pixels of train_aug and val, percent."""
PUBLISHED_VOID = 1.326
"""Of all pixels, percent."""


@pytest.fixture
def root() -> Path:
    return real_data("voc")


def masks_of(root: Path, split: str) -> list[ImagePair]:
    return list_images(root, split, photographs=False)


def test_the_lists_are_the_published_ones(root: Path) -> None:
    train, val = ([image.name for image in masks_of(root, s)] for s in ("train_aug", "val"))
    check_train_aug(train)
    with pytest.raises(UserError, match="10,581 images, not 10,582"):
        check_train_aug(train[1:])
    with pytest.raises(UserError, match="not the published ones in sorted order"):
        check_train_aug(train[::-1])
    assert VOC_SIZES == {"train_aug": 10582, "val": 1449, "trainval_aug": 12031, "test": 1456}
    assert (len(train), len(val)) == (VOC_SIZES["train_aug"], VOC_SIZES["val"])
    assert not set(train) & set(val)
    assert [image.name for image in masks_of(root, "trainval_aug")] == sorted(train + val)


def test_the_real_list_follows_from_the_official_ones(root: Path, tmp_path: Path) -> None:
    """VOC's and SBD's lists cut from the published one, with val as far as SBD has it."""
    lists = root / "VOC2012" / "ImageSets" / "Segmentation"
    train_aug = (lists / "train_aug.txt").read_text().split()
    val = (lists / "val.txt").read_text().split()
    voc, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    put(voc / VOC_LISTS / "train.txt", train_aug[:1464])
    put(voc / VOC_LISTS / "val.txt", val)
    put(sbd / "train.txt", [*train_aug[:900:-2], *val[:700]])
    put(sbd / "val.txt", [*train_aug[:900:-1][1::2], *val[700:1100]])
    for folder, ending, names in (
        (voc / "SegmentationClass", "png", [*train_aug[:1464], *val]),
        (sbd / "cls", "mat", train_aug[1464:]),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.{ending}").touch()
    images = list_images(tmp_path, "train_aug", photographs=False)
    check_train_aug(image.name for image in images)
    assert Counter(image.mask.suffix for image in images) == {".png": 1464, ".mat": 9118}
    assert len(list_images(tmp_path, "trainval_aug", photographs=False)) == 12031


@pytest.mark.slow
def test_every_mask_is_read_and_the_shares_are_the_published_ones(root: Path) -> None:
    masks = masks_of(root, "trainval_aug")
    counts = class_counts(crops_of(masks, crop=321, seed=0))
    total = counts.sum(axis=0, dtype=np.int64)
    assert total[len(VOC_CLASSES) : VOID].sum() == 0
    labelled = total[: len(VOC_CLASSES)]
    np.testing.assert_allclose(100 * labelled / labelled.sum(), PUBLISHED_SHARES, atol=6e-4)
    assert abs(100 * total[VOID] / total.sum() - PUBLISHED_VOID) < 6e-4
    shares = class_shares(counts, len(VOC_CLASSES)).numpy()  # among all pixels
    np.testing.assert_allclose(shares, labelled / total.sum())
    assert (counts[:, 1 : len(VOC_CLASSES)].sum(axis=1) > 0).all()  # an object in every image


def test_labels_of_a_category_partition_a_real_mask(root: Path) -> None:
    """Over the classes that an image shows, the foregrounds are its labelled pixels, once each."""
    for image in masks_of(root, "val")[::100]:
        labels = read_labels(image.mask)
        binary = [binary_labels(labels, category) for category in range(len(VOC_CLASSES))]
        shown = [b for category, b in enumerate(binary) if category in labels]
        assert np.array_equal(sum((b == 1).astype(int) for b in shown), labels != VOID)
        assert all(np.array_equal(b == VOID, labels == VOID) for b in shown)
        assert all(not b.any() for c, b in enumerate(binary) if c not in labels)


def test_real_photographs_come_with_their_masks(root: Path) -> None:
    images = [image for image in masks_of(root, "trainval_aug") if image.image.is_file()]
    if not images:
        pytest.skip("no photographs")
    crops, scored = crops_of(images, crop=321, seed=0), whole_images(images)
    for index in range(len(images)):
        photograph, labels = scored[index]
        assert labels.shape == photograph.shape[1:]
        assert np.array_equal(labels.numpy(), crops.labels(index))
        for position in range(6):
            photograph, shown = crops[Draw(index, position)]
            assert photograph.shape == (3, 321, 321)
            assert set(shown.unique().tolist()) <= {*labels.unique().tolist(), VOID}


@pytest.mark.slow
def test_the_balanced_validation_sets(root: Path) -> None:
    """Half of each set holds the category; 442 of the 1,449 images show a person."""
    presence = presence_of(root, "val")
    images = list_images(root, "val", photographs=False)
    assert presence.shape == (1449, 21)
    for number in (0, 700, 1448):
        found = set(np.unique(read_labels(images[number].mask)).tolist()) - {255}
        assert set(np.flatnonzero(presence[number]).tolist()) == found
    for category in range(1, 21):
        chosen = balanced_validation(presence, category)
        assert len(set(chosen)) == len(chosen) == 2 * presence[:, category].sum()
        assert presence[chosen, category].sum() * 2 == len(chosen)
    sizes = presence.sum(axis=0)
    assert sizes[15] == max(sizes[1:]) == pytest.approx(442, abs=8)
