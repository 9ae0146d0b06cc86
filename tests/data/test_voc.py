"""Pascal VOC with SBD: both layouts, which mask counts, and what is refused."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]
from scipy.sparse import csc_matrix  # type: ignore[import-untyped]

from lovasz_repro.data.classes import voc_colour
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.voc import (
    VOID,
    list_images,
    read_labels,
)
from lovasz_repro.data.voc_training import whole_images
from lovasz_repro.errors import UserError
from tests.tiny_voc import put

A, B, C, D, E, F, G = (f"2008_00000{number}" for number in range(7))
VOC_TRAIN, VOC_VAL, TEST = (B, A), (D, C), (G,)
SBD_TRAIN, SBD_VAL = (E, D), (B, F)  # D is validation for VOC, and B has masks of both
TRAIN_AUG = [A, B, E, F]
VOC_ID, SBD_ID = 7, 12  # whose mask it is
SIZE = (6, 8)


def put_png(file: Path, labels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(labels)
    picture.putpalette([value for index in range(256) for value in voc_colour(index)])
    picture.save(file)
    with Image.open(file) as written:
        assert written.mode == "P"


def put_mat(file: Path, labels: np.ndarray, compressed: bool = True) -> None:
    """With the fields of SBD: boundaries per class, the segmentation and the classes present."""
    file.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    boundaries[:, 0] = [csc_matrix(labels == index) for index in range(1, 21)]
    fields = {"Boundaries": boundaries, "Segmentation": labels, "CategoriesPresent": [[SBD_ID]]}
    savemat(file, {"GTother": labels, "GTcls": fields}, do_compression=compressed)


def put_photographs(voc: Path) -> None:
    (voc / "JPEGImages").mkdir(parents=True)
    for name in (A, B, C, D, E, F, G):
        photograph = np.full((*SIZE, 3), (200, 100, 50), np.uint8)
        Image.fromarray(photograph).save(voc / "JPEGImages" / f"{name}.jpg", quality=100)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """The two official trees."""
    voc, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    put_photographs(voc)
    lists = {"train": VOC_TRAIN, "val": VOC_VAL, "trainval": VOC_TRAIN + VOC_VAL, "test": TEST}
    for split, names in lists.items():
        put(voc / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    for name in VOC_TRAIN + VOC_VAL:
        labels = np.full(SIZE, VOC_ID, np.uint8)
        labels[0] = VOID
        put_png(voc / "SegmentationClass" / f"{name}.png", labels)
    put(sbd / "train.txt", SBD_TRAIN)
    put(sbd / "val.txt", SBD_VAL)
    for name in SBD_TRAIN + SBD_VAL:
        put_mat(sbd / "cls" / f"{name}.mat", np.full(SIZE, SBD_ID, np.uint8))
    return tmp_path


@pytest.fixture
def popular(tmp_path: Path) -> Path:
    """The merged tree, with masks that are grey."""
    voc = tmp_path / "VOC2012"
    put_photographs(voc)
    put(voc / "ImageSets" / "Segmentation" / "train_aug.txt", TRAIN_AUG)
    put(voc / "ImageSets" / "Segmentation" / "val.txt", VOC_VAL)
    (voc / "SegmentationClassAug").mkdir()
    for number, name in enumerate((A, B, C, D, E, F)):
        mask = Image.fromarray(np.full(SIZE, number, np.uint8))
        mask.save(voc / "SegmentationClassAug" / f"{name}.png")
    return tmp_path


def names_of(root: Path, split: str) -> list[str]:
    return [image.name for image in list_images(root, split)]


# ---- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "popular"])
def test_splits_are_derived_and_sorted(layout: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(layout)
    assert names_of(root, "train_aug") == TRAIN_AUG
    assert names_of(root, "val") == [C, D]
    assert names_of(root, "trainval_aug") == [A, B, C, D, E, F]
    for image in list_images(root, "trainval_aug"):
        assert image.image.stem == image.mask.stem == image.name
        photograph, labels = whole_images([image]).both(0)
        assert photograph.shape == (*SIZE, 3)
        assert photograph.dtype == labels.dtype == np.uint8
        assert np.abs(photograph.astype(int) - (200, 100, 50)).max() <= 3
        assert np.array_equal(read_photograph(image.image), photograph)


def test_what_the_test_list_names_is_not_trained_on(official: Path) -> None:
    """As jaccardSegment's loadvoc.py subtracts it; without the list, which is another download,
    nothing is."""
    lists = official / VOC_AT / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text(f"{TRAIN_AUG[0]}\n{G}\n")
    assert names_of(official, "train_aug") == TRAIN_AUG[1:]
    assert names_of(official, "trainval_aug") == sorted([*TRAIN_AUG[1:], C, D])
    (lists / "test.txt").unlink()
    assert names_of(official, "train_aug") == TRAIN_AUG


def test_vocs_own_mask_counts_before_that_of_sbd(official: Path) -> None:
    masks = {i.name: read_labels(i.mask) for i in list_images(official, "trainval_aug")}
    for name, labels in masks.items():
        if name in VOC_TRAIN + VOC_VAL:
            assert np.all(labels[0] == VOID)
            assert np.all(labels[1:] == VOC_ID)
        else:
            assert np.all(labels == SBD_ID)


def test_merged_masks_are_those_of_their_image(popular: Path) -> None:
    for image in list_images(popular, "trainval_aug"):
        assert np.all(read_labels(image.mask) == int(image.name[-1]))


def test_validation_does_without_sbd_and_the_test_set_without_masks(official: Path) -> None:
    shutil.rmtree(official / "benchmark_RELEASE")
    assert names_of(official, "val") == [C, D]
    (image,) = list_images(official, "test")
    assert image.name == G
    assert image.image.is_file()
    assert not image.mask.exists()


def test_statistics_of_masks_do_without_photographs(popular: Path) -> None:
    shutil.rmtree(popular / "VOC2012" / "JPEGImages")
    assert len(list_images(popular, "val", photographs=False)) == 2
    with pytest.raises(UserError, match=r"2008_000002\.jpg: missing \(2 of 2 photographs are\)"):
        list_images(popular, "val")


# ---- labels --------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_every_kind_of_mask_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "kinds"
    labels = np.random.default_rng(seed).choice([*range(21), VOID], (height, width))
    labels = labels.astype(np.uint8)
    put_png(folder / "palette.png", labels)
    put_mat(folder / "sbd.mat", labels)
    put_mat(folder / "stored.mat", labels, compressed=False)
    Image.fromarray(labels).save(folder / "grey.png")
    for name in ("palette.png", "sbd.mat", "stored.mat", "grey.png"):
        found = read_labels(folder / name)
        assert found.dtype == np.uint8
        assert np.array_equal(found, labels), name


@pytest.mark.parametrize(("unknown", "ending"), [(21, "png"), (254, "png"), (21, "mat")])
def test_unknown_ids_are_named(tmp_path: Path, unknown: int, ending: str) -> None:
    labels = np.full(SIZE, 20, np.uint8)
    labels[3, 4] = unknown
    labels[0, 0] = VOID
    {"png": put_png, "mat": put_mat}[ending](tmp_path / f"m.{ending}", labels)
    with pytest.raises(UserError, match=rf"m\.{ending}: class id {unknown}; VOC has 0-20 and 255"):
        read_labels(tmp_path / f"m.{ending}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"GTcls": {"Segmentation": np.zeros((2, 3))}}, r".*not a uint8 matrix"),
        ({"GTcls": {"Segmentation": np.zeros((2, 3, 4), np.uint8)}}, r".*not a uint8 matrix"),
        ({"GTcls": {"Segmentation": np.zeros((0, 0), np.uint8)}}, "a mask without pixels"),
        ({"GTcls": {"Segmentation": "text"}}, r".*not a uint8 matrix"),
        ({"GTcls": {"Boundaries": 1}}, "no readable GTcls.Segmentation"),
        ({"GTcls": np.zeros((2, 3), np.uint8)}, "no readable GTcls.Segmentation"),
        ({"GTinst": {"Segmentation": np.zeros((2, 3), np.uint8)}}, "no readable GTcls.Segm"),
    ],
)
def test_other_mat_files_are_refused(tmp_path: Path, content: dict, words: str) -> None:
    savemat(tmp_path / "m.mat", content)
    with pytest.raises(UserError, match=rf"m\.mat: {words}"):
        read_labels(tmp_path / "m.mat")


@given(st.data())
def test_damaged_mat_files_are_read_or_named_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Cut anywhere, and with up to three bytes overwritten, stored and deflated."""
    content = {"GTcls": {"Segmentation": np.arange(20, dtype=np.uint8).reshape(4, 5)}}
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=data.draw(st.booleans()))
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.mat"
    file.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    refusal, labels = None, np.zeros((1, 1), np.uint8)
    try:
        labels = read_labels(file)
    except UserError as error:
        refusal = str(error)
    assert labels.dtype == np.uint8
    assert set(labels.ravel()) <= {*range(21), VOID}
    assert refusal is None or refusal.startswith(f"{file}: ")
    assert refusal is None or "\n" not in refusal


def test_an_annotation_that_inflates_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 kB that would take 1 MB."""
    monkeypatch.setattr("lovasz_repro.data.voc.MAT_LIMIT", 500_000)
    savemat(tmp_path / "m.mat", {"GTcls": {"Segmentation": np.zeros((1000, 1000), np.uint8)}},
            do_compression=True)  # fmt: skip
    assert (tmp_path / "m.mat").stat().st_size < 2000
    with pytest.raises(UserError, match=r"m\.mat: .*too large"):
        read_labels(tmp_path / "m.mat")


def test_one_changed_byte_that_crashes_scipys_reader_does_no_harm(tmp_path: Path) -> None:
    """Every third byte of the stored file in turn, the size of an element among them."""
    put_mat(tmp_path / "m.mat", np.full(SIZE, SBD_ID, np.uint8), compressed=False)
    content = (tmp_path / "m.mat").read_bytes()
    refused = 0
    for place in range(128, len(content), 3):
        damaged = content[:place] + bytes([content[place] ^ 0xD5]) + content[place + 1 :]
        (tmp_path / "m.mat").write_bytes(damaged)
        try:
            assert read_labels(tmp_path / "m.mat").size == SIZE[0] * SIZE[1]
        except UserError:
            refused += 1
    assert refused > 16


def test_damaged_files_and_sizes_that_differ_are_named(official: Path) -> None:
    image = list_images(official, "val")[0]
    put_png(image.mask, np.zeros((5, 8), np.uint8))
    with pytest.raises(UserError, match=r"000002\.png: 5x8, its photograph is 6x8\."):
        whole_images([image]).both(0)
    image.mask.write_bytes(image.mask.read_bytes()[:60])
    with pytest.raises(UserError, match=r"000002\.png: unreadable"):
        read_labels(image.mask)
    image.image.write_bytes(b"")
    with pytest.raises(UserError, match=r"000002\.jpg: unreadable"):
        read_photograph(image.image)
    for ending in ("png", "mat"):
        with pytest.raises(UserError, match=rf"none\.{ending}: no such file"):
            read_labels(official / f"none.{ending}")
    with pytest.raises(UserError, match=r"none\.jpg: no such file"):
        read_photograph(official / "none.jpg")


# ---- what is missing -----------------------------------------------------------------------------

VOC_AT, SBD_AT = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
LISTS_AT = f"{VOC_AT}/ImageSets/Segmentation"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: shutil.rmtree(root / VOC_AT),
         r"VOC 2012 not found: no folder .*VOCdevkit/VOC2012 or .*host\.robots\.ox\.ac\.uk"),
        (lambda root: shutil.rmtree(root / SBD_AT), r"SBD not found: .*SBD/download\.html"),
        (lambda root: (root / LISTS_AT / "val.txt").unlink(), r"val\.txt: no such list.*robots"),
        (lambda root: (root / LISTS_AT / "train.txt").unlink(), r"n\.txt: no such list.*robots"),
        (lambda root: (root / SBD_AT / "val.txt").unlink(), r"t/val\.txt: no such list.*SBD/"),
        (lambda root: put(root / SBD_AT / "train.txt", []), r"train\.txt: an empty list"),
        (lambda root: put(root / SBD_AT / "train.txt", [A, "../x"]), r"'\.\./x' is no image"),
        (lambda root: (root / SBD_AT / "train.txt").write_bytes(b"\xff\xfe"), "unreadable list"),
        (lambda root: (root / SBD_AT / "cls" / f"{F}.mat").unlink(),
         r"000005\.mat: missing \(1 of 4 masks are\).*SBD/download"),
        (lambda root: shutil.rmtree(root / VOC_AT / "SegmentationClass"),
         r"000000\.png: missing \(2 of 4 masks are\).*robots"),
        (lambda root: (root / VOC_AT / "JPEGImages" / f"{E}.jpg").unlink(),
         r"000004\.jpg: missing \(1 of 4 photographs are\).*robots"),
    ],
)  # fmt: skip
def test_missing_parts_are_named_with_their_source(
    official: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(official)
    with pytest.raises(UserError, match=words) as caught:
        list_images(official, "train_aug")
    assert "\n" not in str(caught.value)


def test_missing_parts_of_the_popular_layout_are_named(popular: Path) -> None:
    with pytest.raises(UserError, match="no split 'train'; it has train_aug, val, trainval_aug, t"):
        list_images(popular, "train")
    with pytest.raises(UserError, match=r"test\.txt: no such list.*robots"):
        list_images(popular, "test")
    (popular / "VOC2012" / "SegmentationClassAug" / f"{B}.png").unlink()
    with pytest.raises(UserError, match=r"Aug/2008_000001\.png: missing.*robots.*SBD/download"):
        list_images(popular, "train_aug")
    (popular / "VOC2012" / "ImageSets" / "Segmentation" / "train_aug.txt").unlink()
    with pytest.raises(UserError, match=r"train_aug\.txt: no such list.*robots.*SBD/download"):
        list_images(popular, "trainval_aug")
