"""Cityscapes: the layout, the 20 classes, what comes out aligned, what is refused, its check."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lovasz_repro.data.check import FilesOfImage, TreeNote, check_image, write_note
from lovasz_repro.data.cityscapes import (
    STREET_CLASSES,
    TO_CLASS,
    TO_LABEL_ID,
    check_cityscapes,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.cityscapes_training import ScoredCityscapes, training_images
from lovasz_repro.data.classes import CITYSCAPES, CITYSCAPES_IDS
from lovasz_repro.data.images import opened, read_mask
from lovasz_repro.errors import UserError

SIZE = HEIGHT, WIDTH = 16, 32
BLOCKS = (7, 26, 4, 23)  # road, car, a void id, sky: eight columns each
COUNTS = {"train": 6, "val": 4, "test": 3}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A whole tree that says what it is, in two cities: red is 8 * column, green 8 * row."""
    root = tmp_path / "tree"
    for split, count in COUNTS.items():
        for number in range(count):
            write_frame(root, split, number)
    write_note(root, TreeNote("demo", "a test", SIZE, COUNTS))
    return root


def write_frame(root: Path, split: str, number: int, size: tuple[int, int] = SIZE) -> None:
    """Its car has the instance id 26000 + number; its photograph shows the number in blue."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    image = np.stack([8 * columns % 256, 8 * rows % 256, np.full_like(rows, number)], axis=-1)
    ids = np.array(BLOCKS, np.uint8)[columns * 4 // size[1]]
    instances = np.where(ids == 26, 26000 + number, ids.astype(int)).astype(np.uint16)
    kinds = {"leftImg8bit": image.astype(np.uint8), "gtFine_labelIds": ids,
             "gtFine_instanceIds": instances}  # fmt: skip
    for kind, pixels in kinds.items():
        path = file(root, kind, split, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


def file(root: Path, kind: str, split: str = "train", number: int = 1) -> Path:
    city = ("aa", "bb")[number % 2]
    return root / kind.split("_")[0] / split / city / f"{city}_{number:06d}_000019_{kind}.png"


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
    images = training_images(tree, "train", size)
    image, classes = images[1]
    assert image.shape == (3, *size)
    assert classes.shape == size
    assert image.dtype == classes.dtype == torch.uint8
    blocks = (column_of(image) // 8).long()
    assert torch.equal(torch.from_numpy(TO_CLASS[list(BLOCKS)])[blocks], classes)
    assert np.array_equal(images.labels(1), classes)


def test_scored_items_keep_their_annotation_as_it_is(tree: Path) -> None:
    dataset = ScoredCityscapes(tree, "val", (8, 16))
    image, (ids, instances) = dataset[2]
    assert image.shape == (3, 8, 16)
    assert ids.dtype == torch.uint8
    assert instances.dtype == torch.int32
    assert dataset.full_size == ids.shape == instances.shape == SIZE
    assert ids.unique().tolist() == sorted(BLOCKS)
    assert instances.unique().tolist() == [4, 7, 23, 26000 + int(image[2, 0, 0])]
    assert np.array_equal(dataset.label_ids(2), ids)
    assert dataset.photograph(2).shape == (*SIZE, 3)


def test_frames_are_sorted_by_name_over_all_cities(tree: Path) -> None:
    """What a Mac leaves is no frame, and capitals are no other."""
    frames = list_frames(tree, "train")
    names = [frame.name for frame in frames]
    assert names == sorted(names)
    assert [frame.city for frame in frames] == ["aa"] * 3 + ["bb"] * 3
    assert ScoredCityscapes(tree, "train", (8, 16)).name(3) == "bb_000001_000019"
    image = file(tree, "leftImg8bit")
    image.with_name(f"._{image.name}").write_bytes(b"\0\5\x16\7")
    (image.parent.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    image.rename(image.with_suffix(".PNG"))
    assert [frame.name for frame in list_frames(tree, "train")] == names
    assert training_images(tree, "train", (8, 16))[3][0].shape == (3, 8, 16)
    image.write_bytes(image.with_suffix(".PNG").read_bytes())
    with pytest.raises(UserError, match=r"_leftImg8bit\.png: .* has the same name"):
        list_frames(tree, "train")


# ---- what is refused -----------------------------------------------------------------------------

FULL = np.full(SIZE, 7)


@pytest.mark.parametrize(
    ("kind", "mask", "words"),
    [
        ("leftImg8bit", None, "bb_000001_000019_leftImg8bit.png: unread"),
        ("gtFine_labelIds", None, "labelIds.png: unreadable"),
        ("gtFine_labelIds", np.uint16(FULL), "8-bit label id"),
        ("gtFine_labelIds", np.uint8(FULL + 27), "label id 34"),
        ("gtFine_labelIds", np.uint8(FULL[1:]), "15x32, its photo"),
        ("gtFine_instanceIds", np.uint16(FULL + 34000),
         "instance id 34007; Cityscapes has classes 0-33"),
        ("gtFine_instanceIds", np.uint16(FULL[:, 1:]), "16x31, its photograph is 16x32"),
        ("gtFine_instanceIds", np.zeros((*SIZE, 3), np.uint8), "not a mask of one 16-bit"),
    ],
)  # fmt: skip
def test_damaged_items_are_named(
    tree: Path, kind: str, mask: np.ndarray | None, words: str
) -> None:
    path = file(tree, kind)
    if mask is None:
        path.write_bytes(path.read_bytes()[:60])
    else:
        Image.fromarray(mask).save(path)
    trained = training_images(tree, "train", (8, 16))
    assert trained[0][0].shape == (3, 8, 16)
    for images in [ScoredCityscapes(tree, "train", (8, 16))] + [trained] * ("inst" not in kind):
        with pytest.raises(UserError, match=words):
            images[3]


def test_scored_photographs_are_of_one_size(tree: Path) -> None:
    write_frame(tree, "val", 1, (20, 40))
    with pytest.raises(UserError, match=r"leftImg8bit\.png: 20x40, others of its split are 16x32"):
        ScoredCityscapes(tree, "val", (8, 16))[2]


def test_missing_parts_are_named(tree: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*leftImg8bit/none.*data check cityscapes"):
        list_frames(tree, "none")
    file(tree, "gtFine_labelIds").unlink()
    with pytest.raises(UserError, match=r"bb_000001_000019_gtFine_labelIds\.png: missing"):
        training_images(tree, "train", (8, 16))
    file(tree, "gtFine_instanceIds").unlink()
    with pytest.raises(UserError, match=r"and 1 more such files"):
        training_images(tree, "train", (8, 16))
    shutil.rmtree(tree / "gtFine" / "train" / "bb")
    with pytest.raises(UserError, match="no folder bb, whose photographs are in"):
        training_images(tree, "train", (8, 16))
    assert len(list_frames(tree, "train", labelled=False)) == 6
    shutil.rmtree(tree / "leftImg8bit" / "train" / "aa")
    shutil.rmtree(tree / "leftImg8bit" / "train" / "bb")
    with pytest.raises(UserError, match="no city folders"):
        list_frames(tree, "train", labelled=False)


def test_masks_may_be_stored_with_fewer_bits_or_a_palette(tree: Path) -> None:
    """What programs that save small numbers may do; the values are the same."""
    frame = list_frames(tree, "train")[3]
    coloured = Image.fromarray(np.uint8(FULL))
    coloured.putpalette([value for value in range(256) for _ in "RGB"])
    coloured.save(frame.label_ids)
    Image.fromarray(np.uint8(FULL)).save(frame.instance_ids)
    assert np.array_equal(read_label_ids(frame), FULL)
    assert np.array_equal(read_instances(frame), FULL)
    assert check_cityscapes(tree).ok


# ---- the check -----------------------------------------------------------------------------------


def test_a_whole_tree_is_whole(tree: Path) -> None:
    steps: list[int] = []

    def begin(images: int) -> Callable[[int], None]:
        assert images == 13
        return steps.append

    report = check_cityscapes(tree, begin)
    assert report.ok
    assert report.problems == ()
    assert (report.content, report.size) == ("demo", SIZE)
    rows = [(row.split, row.images, row.expected, row.cities) for row in report.splits]
    assert rows == [("train", 6, 6, 2), ("val", 4, 4, 2), ("test", 3, 3, 2)]
    assert steps == [1] * 13


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with opened(path) as image:
        pixels = np.array(image)
    Image.fromarray(change(pixels)).save(path)


def assign(ids: np.ndarray, where: tuple[int, ...], value: int) -> np.ndarray:
    ids[where] = value
    return ids


def break_everything(root: Path) -> list[str]:
    """Do one of each kind of harm; returns what the check must say, in order."""
    train = [[file(root, kind, "train", number) for number in range(6)]
             for kind in ("leftImg8bit", "gtFine_labelIds", "gtFine_instanceIds")]  # fmt: skip
    images, ids, instances = train
    ids[0].unlink()
    instances[2].unlink()
    images[4].write_bytes(images[4].read_bytes()[:-100])
    rewrite(images[1], lambda pixels: pixels[:-1])
    rewrite(ids[4], lambda mask: assign(mask, (0, 0), 34))
    rewrite(instances[3], lambda mask: assign(mask, (15, slice(0, 7)), 24002))
    rewrite(instances[5], lambda mask: assign(mask, (0, 0), 34001))
    (root / "gtFine/train/bb/bb_000009_000019_gtFine_labelIds.png").write_bytes(b"")
    shutil.rmtree(root / "gtFine" / "val" / "bb")
    rewrite(file(root, "gtFine_labelIds", "val", 0), lambda mask: mask.astype(np.uint16))
    rewrite(file(root, "gtFine_labelIds", "val", 2), lambda mask: mask[:, ::2])
    file(root, "gtFine_instanceIds", "val", 2).write_bytes(b"nothing")
    file(root, "leftImg8bit", "test", 2).unlink()
    file(root, "gtFine_labelIds", "test", 1).unlink()
    return [
        "gtFine/train/aa/aa_000000_000019_gtFine_labelIds.png: missing; its photograph is there",
        "gtFine/train/aa/aa_000002_000019_gtFine_instanceIds.png: missing; its photograph is there",
        "gtFine/train/bb/bb_000009_000019_gtFine_labelIds.png: its photograph is missing",
        "leftImg8bit/train/aa/aa_000004_000019_leftImg8bit.png: unreadable image",
        "gtFine/train/aa/aa_000004_000019_gtFine_labelIds.png: label id 34; Cityscapes has 0-33",
        "leftImg8bit/train/bb/bb_000001_000019_leftImg8bit.png: 15x32; all must be 16x32",
        "gtFine/train/bb/bb_000001_000019_gtFine_labelIds.png: 16x32; its photograph is 15x32",
        "gtFine/train/bb/bb_000001_000019_gtFine_instanceIds.png: 16x32; its photograph is 15x32",
        "gtFine/train/bb/bb_000003_000019_gtFine_instanceIds.png: instance ids contradict label "
        "ids on 7 pixels (instance id on label id: 24002 on 7)",
        "gtFine/train/bb/bb_000005_000019_gtFine_instanceIds.png: instance id 34001; "
        "Cityscapes has classes 0-33",
        "gtFine/val/bb: no such folder, but the city has 2 photographs",
        "gtFine/val/aa/aa_000000_000019_gtFine_labelIds.png: not a mask of one 8-bit label id",
        "gtFine/val/aa/aa_000002_000019_gtFine_labelIds.png: 16x16; its photograph is 16x32",
        "gtFine/val/aa/aa_000002_000019_gtFine_instanceIds.png: unreadable image",
        "leftImg8bit/test: 2 photographs, not 3",
        "gtFine/test/aa/aa_000002_000019_gtFine_labelIds.png: its photograph is missing",
    ]


def test_every_fault_is_listed_in_order(tree: Path) -> None:
    expected = break_everything(tree)
    report = check_cityscapes(tree, processes=2)
    found = [str(problem) for problem in report.problems]
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
    assert not report.ok
    assert [row.problems for row in report.splits] == [10, 4, 2]
    assert [row.images for row in report.splits] == [6, 4, 2]


def test_flipped_bits_are_found_even_where_decoding_goes_through(tree: Path) -> None:
    path = file(tree, "gtFine_labelIds", "val", 1)
    one = FilesOfImage(tree, "val", None, ((path, partial(read_mask, ids=CITYSCAPES_IDS)),))
    whole = path.read_bytes()
    first, last = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 8
    undetected = 0
    for place in range(first, last):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with suppress(UserError):
            read_mask(path, CITYSCAPES_IDS)
            undetected += 1
        (problem,) = check_image(one)
        assert problem.file == path.relative_to(tree).as_posix()
    assert check_cityscapes(tree).problems == (problem,)
    assert undetected, "decoding notices all by itself: no need to verify checksums"
    path.write_bytes(whole[:-12])  # decodes, but the end of the file is missing
    assert "unreadable image" in str(check_cityscapes(tree).problems[0])


def test_a_tree_without_a_note_is_held_against_the_official_release(tree: Path) -> None:
    (tree / "lovasz-repro.json").unlink()
    shutil.rmtree(tree / "gtFine" / "test")
    write_frame(tree, "val", 1, (1024, 2048))
    report = check_cityscapes(tree)
    assert report.content == "official"
    lines = [str(problem) for problem in report.problems]
    assert [line for line in lines if "photographs, not" in line] == [
        "leftImg8bit/train: 6 photographs, not 2,975",
        "leftImg8bit/val: 4 photographs, not 500",
        "leftImg8bit/test: 3 photographs, not 1,525",
    ]
    wrong_size = [line for line in lines if line.endswith("16x32; all must be 1024x2048")]
    assert len(wrong_size) == 12
    assert len(lines) == 3 + 12  # one photograph is right, and the test set needs no annotation
    assert [row.expected for row in report.splits] == [2975, 500, 1525]


def test_a_tree_made_of_an_annotated_set_needs_its_test_annotations(tree: Path) -> None:
    file(tree, "gtFine_labelIds", "test", 1).unlink()
    assert check_cityscapes(tree).ok  # of a demo tree nobody needs them
    write_note(tree, TreeNote("camvid", "a test", SIZE, COUNTS))
    assert [str(p) for p in check_cityscapes(tree).problems] == [
        "gtFine/test/bb/bb_000001_000019_gtFine_labelIds.png: missing; its photograph is there"
    ]


def test_a_missing_split_is_one_problem(tree: Path) -> None:
    shutil.rmtree(tree / "leftImg8bit" / "val")
    shutil.rmtree(tree / "gtFine" / "val")
    lines = [str(problem) for problem in check_cityscapes(tree).problems]
    assert lines == ["leftImg8bit/val: 0 photographs, not 4"]


def test_a_missing_tree_says_where_it_comes_from(tmp_path: Path) -> None:
    words = (
        rf"no folder {tmp_path}/cityscapes/leftImg8bit. Register at www.cityscapes-dataset.com, "
        r"run `csDownload leftImg8bit_trainvaltest.zip gtFine_trainvaltest.zip` .*"
        rf"unpack both into {tmp_path}/cityscapes$"
    )
    with pytest.raises(UserError, match=words):
        check_cityscapes(tmp_path / "cityscapes")


@pytest.mark.parametrize("content", ["{}", "[" * 100_000])
def test_a_broken_note_is_named(tree: Path, content: str) -> None:
    (tree / "lovasz-repro.json").write_text(content)
    with pytest.raises(UserError, match=r"lovasz-repro\.json: not a note of this tool"):
        check_cityscapes(tree)


def test_processes_that_decode_do_without_torch() -> None:
    code = (
        "import sys, lovasz_repro.data.cityscapes; "
        "sys.exit(', '.join({'torch', 'pandas', 'mlflow', 'scipy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
