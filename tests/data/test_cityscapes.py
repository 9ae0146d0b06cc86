"""Cityscapes: the layout, the 20 classes, what comes out aligned, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lovasz_repro.data.cityscapes import (
    STREET_CLASSES,
    TO_CLASS,
    TO_LABEL_ID,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.cityscapes_training import ScoredCityscapes, training_images
from lovasz_repro.data.classes import CITYSCAPES
from lovasz_repro.data.sampling import Draw
from lovasz_repro.errors import UserError

HEIGHT, WIDTH = 16, 32
BLOCKS = (7, 26, 4, 23)  # road, car, a void id, sky: eight columns each


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four 16x32 images in two cities per split: red is 8 * column, green 8 * row."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.uint8)
    for split in ("train", "val"):
        for number in range(4):
            image = np.stack([8 * columns, 8 * rows, np.full_like(rows, number)], axis=-1)
            ids = np.array(BLOCKS, np.uint8)[columns // 8]
            instances = np.where(ids == 26, 26000 + number, ids.astype(int)).astype(np.uint16)
            write_frame(tmp_path, split, ("aa", "bb")[number % 2], number, image, ids, instances)
    return tmp_path


def write_frame(root: Path, split: str, city: str, number: int, *pixels: np.ndarray) -> None:
    names = ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds")
    for kind, mask in zip(names, pixels, strict=True):
        folder = root / kind.split("_")[0] / split / city
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / f"{city}_{number:06d}_000019_{kind}.png")


def file(root: Path, kind: str, split: str = "train") -> Path:
    """One file of the image bb_000001."""
    return root / kind.split("_")[0] / split / "bb" / f"bb_000001_000019_{kind}.png"


def column_of(image: torch.Tensor) -> torch.Tensor:
    """The place in the original image, 0..32, that each pixel's middle shows, from its red."""
    return image[0].double() / 8 + 0.5


# ---- classes -------------------------------------------------------------------------------------


def test_classes_are_the_official_train_ids_plus_one() -> None:
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    for label in labels:
        if label.id >= 0:
            scored = 0 <= label.trainId < 19
            assert TO_CLASS[label.id] == (label.trainId + 1 if scored else 0), label.name
            if scored:
                assert STREET_CLASSES[label.trainId + 1] == label.name
                assert TO_LABEL_ID[label.trainId + 1] == label.id
                assert CITYSCAPES.colours[label.trainId + 1] == label.color
    assert len(TO_CLASS) == 1 + max(label.id for label in labels)


# ---- items ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 32), (8, 16), (32, 64), (24, 48)])
def test_image_and_classes_stay_aligned_when_resized(tree: Path, size: tuple[int, int]) -> None:
    image, classes = training_images(tree, "train", size)[1]
    assert image.shape == (3, *size)
    assert classes.shape == size
    assert image.dtype == classes.dtype == torch.uint8
    blocks = (column_of(image) // 8).long()
    assert torch.equal(torch.from_numpy(TO_CLASS[list(BLOCKS)])[blocks], classes)


@given(st.integers(1, 70), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_resizing_never_makes_up_a_class(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    root = tmp_path_factory.mktemp("tree")
    ids = np.random.default_rng(seed).choice([0, 7, 33], (13, 17)).astype(np.uint8)
    write_frame(root, "val", "aa", 0, np.zeros((13, 17, 3), np.uint8), ids, ids.astype(np.uint16))
    dataset = training_images(root, "val", (height, width))
    _, classes = dataset[0]
    assert classes.shape == (height, width)
    assert set(classes.unique().tolist()) <= {0, 1, 19}
    assert np.array_equal(dataset.labels(0), classes)
    shutil.rmtree(root)


def test_mirroring_is_fair_aligned_and_a_function_of_seed_and_position(tree: Path) -> None:
    dataset = training_images(tree, "train", (HEIGHT, WIDTH), flip=True, seed=3)
    items = [dataset[Draw(1, position)] for position in range(400)]
    flipped = [bool(image[0, 0, 0] > image[0, 0, -1]) for image, _ in items]
    assert 150 < sum(flipped) < 250  # 200 +- 5 standard deviations of 10
    expected = torch.from_numpy(TO_CLASS[list(BLOCKS)])
    for image, classes in items[:20]:
        assert torch.equal(expected[(column_of(image) // 8).long()], classes)
    again = training_images(tree, "train", (HEIGHT, WIDTH), flip=True, seed=3)
    other = training_images(tree, "train", (HEIGHT, WIDTH), flip=True, seed=4)
    assert all(torch.equal(again[Draw(1, k)][0], items[k][0]) for k in (17, 5, 0))
    assert not all(torch.equal(other[Draw(1, k)][0], items[k][0]) for k in range(40))
    plain = training_images(tree, "train", (HEIGHT, WIDTH))
    assert all(torch.equal(plain[Draw(1, k)][0], plain[1][0]) for k in range(10))


def test_scored_items_keep_their_annotation_as_it_is(tree: Path) -> None:
    dataset = ScoredCityscapes(tree, "val", (8, 16))
    image, (ids, instances) = dataset[2]
    assert image.shape == (3, 8, 16)
    assert ids.dtype == torch.uint8
    assert instances.dtype == torch.int32
    assert dataset.full_size == ids.shape == instances.shape == (HEIGHT, WIDTH)
    assert ids.unique().tolist() == sorted(BLOCKS)
    assert instances.unique().tolist() == [4, 7, 23, 26000 + int(image[2, 0, 0])]
    assert np.array_equal(dataset.label_ids(2), ids)
    assert dataset.photograph(2).shape == (HEIGHT, WIDTH, 3)


def test_frames_are_sorted_by_name_over_all_cities(tree: Path) -> None:
    names = [frame.name for frame in list_frames(tree, "train")]
    assert names == sorted(names)
    assert [frame.city for frame in list_frames(tree, "train")] == ["aa", "aa", "bb", "bb"]
    assert ScoredCityscapes(tree, "train", (8, 16)).name(2) == "bb_000001_000019"


def test_what_a_mac_leaves_is_no_frame_and_capitals_are_no_other(tree: Path) -> None:
    names = [frame.name for frame in list_frames(tree, "train")]
    image = file(tree, "leftImg8bit")
    image.with_name(f"._{image.name}").write_bytes(b"\0\5\x16\7")
    (image.parent.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    image.rename(image.with_suffix(".PNG"))
    assert [frame.name for frame in list_frames(tree, "train")] == names
    assert training_images(tree, "train", (8, 16))[names.index("bb_000001_000019")][0].shape
    image.write_bytes(image.with_suffix(".PNG").read_bytes())
    with pytest.raises(UserError, match=r"_leftImg8bit\.png: .* has the same name"):
        list_frames(tree, "train")


# ---- what is refused -----------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def put(path: Path, mask: np.ndarray) -> None:
    Image.fromarray(mask).save(path)


FULL = np.full((HEIGHT, WIDTH), 7)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: cut(file(root, "leftImg8bit")), "bb_000001_000019_leftImg8bit.png: unread"),
        (lambda root: cut(file(root, "gtFine_labelIds")), "labelIds.png: unreadable"),
        (lambda root: put(file(root, "gtFine_labelIds"), np.uint16(FULL)), "8-bit label id"),
        (lambda root: put(file(root, "gtFine_labelIds"), np.uint8(FULL + 27)), "label id 34"),
        (lambda root: put(file(root, "gtFine_labelIds"), np.uint8(FULL[1:])), "15x32, its photo"),
        (lambda root: put(file(root, "gtFine_labelIds"), np.zeros((HEIGHT, WIDTH, 3), np.uint8)),
         "not a mask"),
    ],
)  # fmt: skip
def test_damaged_items_are_named(tree: Path, damage: Callable[[Path], None], words: str) -> None:
    damage(tree)
    dataset = training_images(tree, "train", (8, 16))
    assert dataset[0][0].shape == (3, 8, 16)
    with pytest.raises(UserError, match=words):
        dataset[2]
    with pytest.raises(UserError, match=words):
        ScoredCityscapes(tree, "train", (8, 16))[2]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.uint16(FULL + 34000), "instance id 34007; Cityscapes has classes 0-33"),
        (np.uint16(FULL[:, 1:]), "16x31, its photograph is 16x32"),
        (np.zeros((HEIGHT, WIDTH, 3), np.uint8), "not a mask of one 16-bit"),
    ],
)
def test_damaged_instances_are_named(tree: Path, mask: np.ndarray, words: str) -> None:
    put(file(tree, "gtFine_instanceIds"), mask)
    with pytest.raises(UserError, match=words):
        ScoredCityscapes(tree, "train", (8, 16))[2]


def test_scored_photographs_are_of_one_size(tree: Path) -> None:
    larger = [np.zeros((20, 40, 3), np.uint8), np.zeros((20, 40), np.uint8)]
    write_frame(tree, "val", "bb", 1, *larger, np.zeros((20, 40), np.uint16))
    with pytest.raises(UserError, match=r"leftImg8bit\.png: 20x40, others of its split are 16x32"):
        ScoredCityscapes(tree, "val", (8, 16))[2]


def test_missing_parts_are_named(tree: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*leftImg8bit/test.*data check cityscapes"):
        list_frames(tree, "test")
    file(tree, "gtFine_labelIds").unlink()
    with pytest.raises(UserError, match=r"bb_000001_000019_gtFine_labelIds\.png: missing"):
        training_images(tree, "train", (8, 16))
    file(tree, "gtFine_instanceIds").unlink()
    with pytest.raises(UserError, match=r"and 1 more such files"):
        training_images(tree, "train", (8, 16))
    shutil.rmtree(tree / "gtFine" / "train" / "bb")
    with pytest.raises(UserError, match="no folder bb, whose photographs are in"):
        training_images(tree, "train", (8, 16))
    assert len(list_frames(tree, "train", labelled=False)) == 4
    shutil.rmtree(tree / "leftImg8bit" / "train" / "aa")
    shutil.rmtree(tree / "leftImg8bit" / "train" / "bb")
    with pytest.raises(UserError, match="no city folders"):
        list_frames(tree, "train", labelled=False)


def test_masks_may_be_stored_with_fewer_bits_or_a_palette(tree: Path) -> None:
    """What programs that save small numbers may do; the values are the same."""
    frame = list_frames(tree, "train")[2]
    coloured = Image.fromarray(np.uint8(FULL))
    coloured.putpalette([value for value in range(256) for _ in "RGB"])
    coloured.save(frame.label_ids)
    put(frame.instance_ids, np.uint8(FULL))
    assert np.array_equal(read_label_ids(frame), FULL)
    assert np.array_equal(read_instances(frame), FULL)
