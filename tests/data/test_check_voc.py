"""The check of a Pascal VOC: a whole one passes, and every fault of a broken one is listed."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lovasz_repro.data.check import TreeNote, write_note
from lovasz_repro.data.check_voc import check_voc
from lovasz_repro.data.voc import list_images
from lovasz_repro.errors import UserError
from tests.conftest import real_data
from tests.tiny_voc import put

SIZE = (8, 12)
N = [f"2008_{number:06d}" for number in range(14)]
LISTED = {  # list -> images; 9 is in VOC's val and in SBD, 0 in VOC's train and in SBD
    "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt": [0, 1, 2],
    "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt": [8, 9, 10],
    "VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt": [12, 13],
    "benchmark_RELEASE/dataset/train.txt": [0, 3, 4, 5],
    "benchmark_RELEASE/dataset/val.txt": [6, 9],
}
COUNTS = {"train_aug": 7, "val": 3, "test": 2}
LISTS, SBD = "VOCdevkit/VOC2012/ImageSets/Segmentation", "benchmark_RELEASE/dataset"


def photograph(root: Path, number: int) -> Path:
    return root / "VOCdevkit/VOC2012/JPEGImages" / f"{N[number]}.jpg"


def png(root: Path, number: int) -> Path:
    return root / "VOCdevkit/VOC2012/SegmentationClass" / f"{N[number]}.png"


def mat(root: Path, number: int) -> Path:
    return root / SBD / "cls" / f"{N[number]}.mat"


def labels_of(number: int) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[2:6, 2:9] = number + 1
    return labels


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A whole tree in the official layout that says what it is."""
    root = tmp_path / "tree"
    for file, numbers in LISTED.items():
        put(root / file, [N[number] for number in numbers])
    for number in (0, 1, 2, 8, 9, 10):
        put(png(root, number), labels_of(number))
    for number in (0, 3, 4, 5, 6, 9):
        put(mat(root, number), labels_of(number))
    for number in (*range(7), 8, 9, 10, 11, 12, 13):  # 11 is a photograph without a mask
        put(photograph(root, number), np.full((*SIZE, 3), 90, np.uint8))
    write_note(root, TreeNote("demo", "a test", SIZE, COUNTS))
    return root


@pytest.fixture
def merged(tree: Path) -> Path:
    """The same in the popular layout, without the test set."""
    root = tree.parent / "merged"
    shutil.copytree(tree / "VOCdevkit/VOC2012/JPEGImages", root / "VOC2012/JPEGImages")
    lists = root / "VOC2012/ImageSets/Segmentation"
    put(lists / "train_aug.txt", N[:7])
    put(lists / "val.txt", N[8:11])
    for number in (*range(7), 8, 9, 10):
        file = root / "VOC2012/SegmentationClassAug" / f"{N[number]}.png"
        put(file, labels_of(number))
    write_note(root, TreeNote("demo", "a test", SIZE, {"train_aug": 7, "val": 3}))
    return root


def lines(root: Path, **options: bool) -> list[str]:
    return [str(problem) for problem in check_voc(root, **options).problems]


# ---- whole trees ---------------------------------------------------------------------------------


def test_a_whole_tree_is_whole(tree: Path) -> None:
    steps: list[int] = []

    def begin(images: int) -> Callable[[int], None]:
        assert images == 12
        return steps.append

    report = check_voc(tree, begin)
    assert report.problems == ()
    assert report.ok
    assert (report.content, report.size, report.advice) == ("demo", None, "")
    rows = [(r.split, r.images, r.expected, r.masks, r.photographs) for r in report.splits]
    assert rows == [("train_aug", 7, 7, 7, 7), ("val", 3, 3, 3, 3), ("test", 2, 2, 0, 2)]
    assert steps == [1] * 12


def test_the_popular_layout_is_checked_as_well(merged: Path) -> None:
    report = check_voc(merged)
    assert report.ok, report.problems
    rows = [(r.split, r.images, r.masks, r.photographs) for r in report.splits]
    assert rows == [("train_aug", 7, 7, 7), ("val", 3, 3, 3)]


@pytest.mark.parametrize("layout", ["tree", "merged"])
def test_what_is_checked_is_what_is_trained_on(layout: str, request: pytest.FixtureRequest) -> None:
    """Damage each file that the loader reads, one at a time: each is found, alone."""
    root = request.getfixturevalue(layout)
    for split in ("train_aug", "val"):
        for image in list_images(root, split):
            for file in (image.image, image.mask):
                whole = file.read_bytes()
                file.write_bytes(whole[: len(whole) // 2])
                (problem,) = check_voc(root).problems
                assert (problem.split, root / problem.file) == (split, file)
                file.write_bytes(whole)
    assert check_voc(root).ok


# ---- faults --------------------------------------------------------------------------------------


def rewrite(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def edit(root: Path, name: str, change: Callable[[list[str]], list[str]]) -> None:
    put(root / name, change((root / name).read_text().split()))


def break_everything(root: Path) -> list[str]:
    """Do one of each kind of harm; returns how the lines of the check must begin, in order."""
    edit(root, f"{LISTS}/train.txt", lambda names: [*names, "../../x", N[7], N[1]])
    edit(root, f"{LISTS}/val.txt", lambda names: [names[0], names[0], names[2], N[2]])
    mat(root, 3).unlink()
    photograph(root, 0).unlink()
    put(mat(root, 11), labels_of(11))
    rewrite(photograph(root, 1), lambda content: content[:-100])
    put(png(root, 2), np.full(SIZE, 21, np.uint8))
    put(photograph(root, 4), np.zeros((8, 11, 3), np.uint8))
    rewrite(mat(root, 5), lambda content: content[:-9])
    rewrite(mat(root, 6), lambda content: content[:200] + b"~" + content[201:])
    put(png(root, 8), labels_of(8).astype(np.uint16))
    rewrite(png(root, 10), lambda content: content[:-12])
    photograph(root, 12).write_bytes(b"")
    photograph(root, 13).unlink()
    voc = "VOCdevkit/VOC2012"
    return [
        f"{LISTS}/train.txt: no image name like 2007_000032: '../../x'",
        f"{LISTS}/train.txt: listed twice: {N[1]}",
        f"{SBD}/cls/{N[11]}.mat: in no list",
        f"{voc}/SegmentationClass/{N[9]}.png: in no list",
        f"{LISTS}: train_aug has 9 images, not 7",
        f"{SBD}/cls/{N[3]}.mat: missing",
        f"{voc}/SegmentationClass/{N[7]}.png: missing",
        f"{voc}/JPEGImages/{N[0]}.jpg: missing",
        f"{voc}/JPEGImages/{N[7]}.jpg: missing",
        f"{voc}/JPEGImages/{N[1]}.jpg: unreadable image",
        f"{voc}/SegmentationClass/{N[2]}.png: class id 21; VOC has 0-20 and 255 = void",
        f"{SBD}/cls/{N[4]}.mat: 8x12; its photograph is 8x11",
        f"{SBD}/cls/{N[5]}.mat: no readable GTcls.Segmentation of SBD",
        f"{SBD}/cls/{N[6]}.mat: no readable GTcls.Segmentation of SBD",
        f"{LISTS}/val.txt: listed twice: {N[8]}",
        f"{LISTS}/val.txt: also in train.txt: {N[2]}",
        f"{LISTS}: val has 2 images, not 3",
        f"{voc}/SegmentationClass/{N[8]}.png: not a mask of one 8-bit class id per pixel",
        f"{voc}/SegmentationClass/{N[10]}.png: unreadable image",
        f"{voc}/JPEGImages/{N[13]}.jpg: missing",
        f"{voc}/JPEGImages/{N[12]}.jpg: unreadable image",
    ]


def test_every_fault_is_listed_in_order(tree: Path) -> None:
    expected = break_everything(tree)
    report = check_voc(tree, processes=2)
    found = [str(problem) for problem in report.problems]
    assert len(found) == len(expected), "\n".join(found)
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)
        assert "\n" not in line
    assert not report.ok
    assert [row.problems for row in report.splits] == [14, 5, 2]
    assert [row.images for row in report.splits] == [9, 2, 2]
    assert [row.masks for row in report.splits] == [7, 2, 0]
    assert [row.photographs for row in report.splits] == [7, 2, 1]


@pytest.mark.parametrize("which", [png, mat])
def test_every_flipped_bit_of_a_mask_is_found(
    tree: Path, which: Callable[[Path, int], Path]
) -> None:
    file = which(tree, 8 if which is png else 4)
    whole = file.read_bytes()
    # neither the text at the start of a .mat nor the last, empty chunk of a PNG says anything
    first, last = (0, len(whole) - 12) if which is png else (136, len(whole))
    for place in range(first, last, 3):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        (problem,) = check_voc(tree, masks_only=True).problems
        assert tree / problem.file == file


def test_a_missing_list_entry_is_found_by_its_mask(tree: Path) -> None:
    edit(tree, f"{LISTS}/train.txt", lambda names: names[1:])  # SBD has this one too
    assert lines(tree) == [f"VOCdevkit/VOC2012/SegmentationClass/{N[0]}.png: in no list"]
    edit(tree, f"{SBD}/val.txt", lambda names: names[1:])
    assert lines(tree) == [
        f"{SBD}/cls/{N[6]}.mat: in no list",
        f"VOCdevkit/VOC2012/SegmentationClass/{N[0]}.png: in no list",
        f"{LISTS}: train_aug has 6 images, not 7",
    ]


def test_missing_lists_say_where_they_come_from(tree: Path) -> None:
    (tree / LISTS / "val.txt").unlink()
    (tree / LISTS / "test.txt").unlink()  # the note says that there is one
    (tree / SBD / "val.txt").write_bytes(b"\xff")
    (tree / SBD / "train.txt").write_text(f"{N[3]}\n" * 100_000)
    found = lines(tree)
    assert [line for line in found if "val.txt: no such list. VOC 2012 comes from http" in line]
    assert [line for line in found if "test.txt: no such list. VOC 2012 comes from http" in line]
    assert [line for line in found if "dataset/val.txt: unreadable list ('ascii'" in line]
    assert f"{SBD}/train.txt: a list of 1,200,000 bytes" in found
    shutil.rmtree(tree / "benchmark_RELEASE")
    assert [line for line in lines(tree) if "train.txt: no such list. SBD (benchmark.tgz)" in line]


def test_many_files_with_one_fault_are_one_line(tree: Path) -> None:
    shutil.rmtree(tree / "VOCdevkit/VOC2012/JPEGImages")
    report = check_voc(tree)
    found = [str(problem) for problem in report.problems]
    first = ", ".join(f"{name}.jpg" for name in N[:5])
    assert found[0] == (
        "VOCdevkit/VOC2012/JPEGImages: 7 of 7 train_aug photographs are missing: "
        f"{first} and 2 more"
    )
    assert len(found) == 1 + 3 + 2  # up to five files have a line each
    assert report.advice.startswith("12 photographs are missing.")
    assert "--masks-only" in report.advice
    edit(tree, f"{SBD}/train.txt", lambda names: [])
    edit(tree, f"{SBD}/val.txt", lambda names: [])
    assert lines(tree, masks_only=True)[0].startswith(
        f"{SBD}/cls: 6 masks are in no list: {N[0]}.mat, "
    )


def test_masks_alone(tree: Path) -> None:
    shutil.rmtree(tree / "VOCdevkit/VOC2012/JPEGImages")
    (tree / LISTS / "test.txt").unlink()
    report = check_voc(tree, masks_only=True)
    assert report.ok
    assert (report.content, report.advice) == ("demo, masks only", "")
    assert [(row.split, row.photographs) for row in report.splits] == [("train_aug", 0), ("val", 0)]
    assert sum(row.images for row in report.splits) == 10
    png(tree, 8).unlink()
    assert lines(tree, masks_only=True) == [
        f"VOCdevkit/VOC2012/SegmentationClass/{N[8]}.png: missing"
    ]


def test_a_tree_without_a_note_is_held_against_the_published_numbers(tree: Path) -> None:
    (tree / "lovasz-repro.json").unlink()
    report = check_voc(tree)
    assert report.content == "official"
    assert [str(problem) for problem in report.problems] == [
        f"{LISTS}: train_aug has 7 images, not 10,582",
        f"{LISTS}: val has 3 images, not 1,449",
        f"{LISTS}: test has 2 images, not 1,456",
    ]
    (tree / LISTS / "test.txt").unlink()  # takes a download of its own
    assert [row.split for row in check_voc(tree).splits] == ["train_aug", "val"]


def test_other_names_than_the_published_ones_are_found(merged: Path) -> None:
    (merged / "lovasz-repro.json").unlink()
    names = [f"2009_{number:06d}" for number in range(10_582)]
    put(merged / "VOC2012/ImageSets/Segmentation/train_aug.txt", names)
    report = check_voc(merged, masks_only=True)
    assert report.content == "merged, masks only"
    start = "VOC2012/ImageSets/Segmentation: train_aug has 10,582 images but not the published ones"
    assert str(report.problems[1]).startswith(start)


def test_a_missing_tree_and_a_broken_note_are_one_line(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"VOC 2012 not found: .*host\.robots\.ox\.ac\.uk"):
        check_voc(tmp_path / "nothing")
    (tree / "lovasz-repro.json").write_text("{}")
    with pytest.raises(UserError, match=r"lovasz-repro\.json: not a note of this tool"):
        check_voc(tree)


# ---- the real thing ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_masks_are_whole() -> None:
    report = check_voc(real_data("voc"), masks_only=True, processes=2)
    assert report.ok, report.problems[:10]
    assert [(row.split, row.masks) for row in report.splits] == [
        ("train_aug", 10582), ("val", 1449)
    ]  # fmt: skip
