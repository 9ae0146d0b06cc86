"""CamVid in the layout of Cityscapes: no pixel lost, and instances that are connected regions."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lovasz_repro.data import camvid
from lovasz_repro.data.camvid import (
    CAMVID_SIZES,
    SMALLEST,
    camvid_images,
    convert_camvid,
    convert_labels,
)
from lovasz_repro.data.check import TreeNote, read_note
from lovasz_repro.data.cityscapes import (
    check_cityscapes,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.cityscapes_training import ScoredCityscapes
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import UserError
from tests.left_overs import left_over
from tests.tiny_camvid import write_camvid

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
        for _, *files in camvid.list_files(camvid_root, split)[::90]:
            for folder, path in zip((split, f"{split}annot"), files, strict=True):
                (tmp_path / "camvid" / folder / path.name).symlink_to(path)
    source, root = tmp_path / "camvid", tmp_path / "out"
    assert convert_camvid(source, root)
    report = check_cityscapes(root)
    assert report.ok, report.problems
    assert report.size == (360, 480)
    before: Counter[int] = Counter()
    after: Counter[int] = Counter()
    objects = 0
    for split in CAMVID_SIZES:
        images = camvid_images(source, split, (24, 32))
        for index, frame in enumerate(list_frames(root, split)):
            image, labels = images.both(index)
            assert np.array_equal(read_photograph(frame.image), image)
            before.update(IDS[label] for label in labels.ravel().tolist())
            after.update(read_label_ids(frame).ravel().tolist())
            objects += len(np.unique(read_instances(frame)[read_instances(frame) >= 1000]))
    assert before == after
    assert set(after) == set(IDS)
    assert objects > 20
    assert len(ScoredCityscapes(root, "test", (180, 240))[0]) == 2


def test_what_a_killed_command_left_is_removed(tmp_path: Path) -> None:
    alive, leftover = left_over(tmp_path, os.getpid()), left_over(tmp_path)
    for folder in (alive, leftover):
        (folder / "leftImg8bit").mkdir(parents=True)
    convert_camvid(write_camvid(tmp_path / "source", images=1) / "camvid", tmp_path / "tree")
    assert not leftover.exists()
    assert alive.exists()
    assert (tmp_path / "tree" / "lovasz-repro.json").is_file()
