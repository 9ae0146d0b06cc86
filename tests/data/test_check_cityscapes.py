"""The check of a tree: a whole one passes, and every fault of a broken one is listed."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.check import FilesOfImage, TreeNote, check_image, write_note
from lovasz_repro.data.cityscapes import check_cityscapes
from lovasz_repro.data.classes import CITYSCAPES_IDS
from lovasz_repro.data.images import opened, read_mask
from lovasz_repro.errors import UserError

SIZE = (32, 64)
COUNTS = {"train": 6, "val": 4, "test": 3}


def write_frame(root: Path, split: str, number: int, size: tuple[int, int] = SIZE) -> None:
    """A photograph of noise, with a car (26) on a road (7) below the sky (23)."""
    city = ("aa", "bb")[number % 2]
    noise = np.random.default_rng(number).integers(0, 256, (*size, 3))
    ids = np.full(size, 7, np.uint8)
    ids[: size[0] // 2] = 23
    ids[10:20, 10:30] = 26
    instances = np.where(ids == 26, 26001, ids.astype(int)).astype(np.uint16)
    for kind, pixels in (
        ("leftImg8bit", noise.astype(np.uint8)),
        ("gtFine_labelIds", ids),
        ("gtFine_instanceIds", instances),
    ):
        path = file(root, kind, split, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    assert city == path.parent.name


def file(root: Path, kind: str, split: str, number: int) -> Path:
    city = ("aa", "bb")[number % 2]
    return root / kind.split("_")[0] / split / city / f"{city}_{number:06d}_000019_{kind}.png"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A whole tree that says what it is."""
    root = tmp_path / "tree"
    for split, count in COUNTS.items():
        for number in range(count):
            write_frame(root, split, number)
    write_note(root, TreeNote("demo", "a test", SIZE, COUNTS))
    return root


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
    images[4].write_bytes(images[4].read_bytes()[:-2000])
    rewrite(images[1], lambda pixels: pixels[:-1])
    rewrite(ids[4], lambda mask: assign(mask, (0, 0), 34))
    rewrite(instances[3], lambda mask: assign(mask, (31, slice(0, 7)), 24002))
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
        "leftImg8bit/train/bb/bb_000001_000019_leftImg8bit.png: 31x64; all must be 32x64",
        "gtFine/train/bb/bb_000001_000019_gtFine_labelIds.png: 32x64; its photograph is 31x64",
        "gtFine/train/bb/bb_000001_000019_gtFine_instanceIds.png: 32x64; its photograph is 31x64",
        "gtFine/train/bb/bb_000003_000019_gtFine_instanceIds.png: instance ids contradict label "
        "ids on 7 pixels (instance id on label id: 24002 on 7)",
        "gtFine/train/bb/bb_000005_000019_gtFine_instanceIds.png: instance id 34001; "
        "Cityscapes has classes 0-33",
        "gtFine/val/bb: no such folder, but the city has 2 photographs",
        "gtFine/val/aa/aa_000000_000019_gtFine_labelIds.png: not a mask of one 8-bit label id",
        "gtFine/val/aa/aa_000002_000019_gtFine_labelIds.png: 32x32; its photograph is 32x64",
        "gtFine/val/aa/aa_000002_000019_gtFine_instanceIds.png: unreadable image",
        "leftImg8bit/test: 2 photographs, not 3",
        "gtFine/test/aa/aa_000002_000019_gtFine_labelIds.png: its photograph is missing",
    ]


@pytest.mark.parametrize("processes", [1, 2])
def test_every_fault_is_listed_in_order(tree: Path, processes: int) -> None:
    expected = break_everything(tree)
    report = check_cityscapes(tree, processes=processes)
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
    wrong_size = [line for line in lines if line.endswith("32x64; all must be 1024x2048")]
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


def test_instance_files_without_instances_may_have_8_bits(tree: Path) -> None:
    for kind in ("gtFine_labelIds", "gtFine_instanceIds"):
        rewrite(file(tree, kind, "val", 0), lambda mask: np.full(SIZE, 26, np.uint8))
    assert check_cityscapes(tree).ok


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
        "sys.exit(', '.join({'torch', 'pandas', 'mlflow'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
