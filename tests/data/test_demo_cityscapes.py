"""Drawn streets: repeatable, complete, annotated like the real ones, and worth learning from."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.check import TreeNote, read_note
from lovasz_repro.data.cityscapes import (
    IGNORE,
    TO_CLASS,
    check_cityscapes,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.classes import CITYSCAPES, colourise
from lovasz_repro.data.demo import STREET_COUNTS, STREET_SIZE, draw_street, write_cityscapes
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import UserError

SMALL, FEW = (96, 192), (7, 4, 2)
THINGS = range(24, 34)
"""Official label ids whose objects are told apart."""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo tree."""
    root = tmp_path_factory.mktemp("demo") / "cityscapes-demo"
    assert write_cityscapes(root, 3, FEW, SMALL)
    return root


def digests(root: Path) -> dict[str, str]:
    """Content of every file, by its path."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files}  # fmt: skip


def test_the_tree_is_whole_and_says_what_it_is(tree: Path) -> None:
    report = check_cityscapes(tree)
    assert report.ok, report.problems
    assert [row.images for row in report.splits] == list(FEW)
    assert [row.cities for row in report.splits] == [3, 2, 2]
    made_by = "lovasz-repro data demo cityscapes --seed 3 --images 7,4,2 --size 96x192"
    counts = {"train": 7, "val": 4, "test": 2}
    assert read_note(tree) == TreeNote("demo", made_by, SMALL, counts)
    assert len([*tree.rglob("*.png")]) == 4 * sum(FEW)  # photograph, two masks and colours


def test_the_same_seed_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from lovasz_repro.data.demo import write_cityscapes; "
        f"write_cityscapes(Path(sys.argv[1]), 3, {FEW}, {SMALL})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "again")]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "77"}, check=True)
    assert digests(tmp_path / "again") == digests(tree)
    write_cityscapes(tmp_path / "other", 4, (1, 1, 1), SMALL)
    photographs = [
        {digest for path, digest in digests(root).items() if path.startswith("leftImg8bit")}
        for root in (tree, tmp_path / "other")
    ]
    assert photographs[0].isdisjoint(photographs[1])


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_classes_and_void_occur(tree: Path, split: str) -> None:
    ids = np.stack([read_label_ids(frame) for frame in list_frames(tree, split)])
    pixels = np.bincount(ids.ravel(), minlength=34)
    rarest = min(pixels[list(CITYSCAPES.label_ids[1:])]) / ids[0].size
    assert rarest > 2e-4
    assert pixels[1] > 0  # ego vehicle
    assert pixels[3] > 0  # out of roi
    assert 0.03 < np.mean(TO_CLASS[ids] == IGNORE) < 0.3
    largest = CITYSCAPES.names[1 + int(np.argmax(pixels[list(CITYSCAPES.label_ids[1:])]))]
    assert largest in ("road", "building")


def test_one_image_a_split_still_shows_every_class() -> None:
    for split in ("train", "val"):
        _, ids, _ = draw_street(11, split, 0, 1, SMALL)
        assert set(range(1, 20)) <= set(TO_CLASS[ids].ravel().tolist())


def test_instances_are_numbered_within_their_class_and_groups_are_not(tree: Path) -> None:
    groups = 0
    for split in ("train", "val"):
        for frame in list_frames(tree, split):
            ids, instances = read_label_ids(frame), read_instances(frame)
            numbered = instances >= 1000
            assert np.array_equal(np.where(numbered, instances // 1000, instances), ids)
            assert set((instances[numbered] // 1000).tolist()) <= set(THINGS)
            groups += int((~numbered & np.isin(ids, THINGS)).any())
            assert len(np.unique(instances[numbered])) >= 5
    assert groups >= 2


def test_colours_are_those_of_the_palette(tree: Path) -> None:
    for frame in list_frames(tree, "val"):
        picture = np.asarray(Image.open(str(frame.label_ids).replace("labelIds", "color")))
        classes = TO_CLASS[read_label_ids(frame)]
        assert np.array_equal(picture, colourise(classes, CITYSCAPES))


def test_the_test_set_has_ignore_regions_and_no_labels(tree: Path) -> None:
    for frame in list_frames(tree, "test"):
        ids = read_label_ids(frame)
        assert set(np.unique(ids).tolist()) <= {0, 1, 2, 3}
        assert not TO_CLASS[ids].any()
        assert np.array_equal(read_instances(frame), ids)


def test_colour_alone_tells_something_and_not_all(tree: Path) -> None:
    """The nearest mean colour finds more than chance would, and far less than a network can."""
    pixels, classes = (
        np.concatenate([kind(frame) for frame in list_frames(tree, "train")])
        for kind in (
            lambda frame: read_photograph(frame.image).reshape(-1, 3).astype(float),
            lambda frame: TO_CLASS[read_label_ids(frame)].ravel(),
        )
    )
    means = np.stack([pixels[classes == index].mean(axis=0) for index in range(1, 20)])
    frames = list_frames(tree, "val")
    seen = np.concatenate([read_photograph(frame.image).reshape(-1, 3) for frame in frames]).astype(
        float
    )
    truth = np.concatenate([TO_CLASS[read_label_ids(frame)].ravel() for frame in frames])
    guess = 1 + ((seen[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    right = [np.mean(guess[truth == index] == index) for index in range(1, 20)]
    assert 1.5 / 19 < np.mean(right) < 0.5
    spread = np.std([read_photograph(frame.image).mean() for frame in frames])
    assert spread > 5  # the light changes


def test_the_usual_size(tmp_path: Path) -> None:
    photograph, ids, instances = draw_street(0, "train", 0, STREET_COUNTS[0])
    assert photograph.shape == (*STREET_SIZE, 3)
    assert photograph.dtype == ids.dtype == np.uint8
    assert ids.shape == instances.shape == STREET_SIZE
    assert instances.dtype == np.uint16
    assert 60 < photograph.mean() < 200


def test_a_tree_that_is_there_is_left_alone_or_kept(tree: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert not write_cityscapes(tree, 3, FEW, SMALL)
    with pytest.raises(
        UserError, match=r"there is what `.*--seed 3 --images 7,4,2 --size 96x192` wrote"
    ):
        write_cityscapes(tree, 4, FEW, SMALL)
    with pytest.raises(UserError, match="--out"):
        write_cityscapes(tree, 3, FEW, (64, 128))
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something else"):
        write_cityscapes(tmp_path / "mine", 3, FEW, SMALL)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "work.txt"]


def test_a_stopped_command_leaves_nothing(tmp_path: Path) -> None:
    def stop(images: int) -> None:
        assert not (tmp_path / "demo").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cityscapes(tmp_path / "demo", 0, (1, 1, 1), (64, 128), stop)
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_cityscapes(tmp_path / "file" / "demo", 0, (1, 1, 1), (64, 128))


@pytest.mark.parametrize(
    ("images", "size"), [((0, 1, 1), SMALL), ((1, 1), SMALL), ((1, 1, 1), (32, 128))]
)
def test_impossible_trees_are_refused(
    tmp_path: Path, images: tuple[int, ...], size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="at least"):
        write_cityscapes(tmp_path / "demo", 0, images, size)
