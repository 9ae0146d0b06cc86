"""Drawn data sets: repeatable, complete, annotated like the real ones, and worth learning from."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat  # type: ignore[import-untyped]

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data import demo
from lovasz_repro.data.check import TreeNote, read_note
from lovasz_repro.data.check_own import check_own_folder
from lovasz_repro.data.check_voc import check_voc
from lovasz_repro.data.cityscapes import (
    TO_CLASS,
    check_cityscapes,
    list_frames,
    read_instances,
    read_label_ids,
)
from lovasz_repro.data.classes import CITYSCAPES, VOC_CLASSES, VOID, colourise
from lovasz_repro.data.datasets import dataset
from lovasz_repro.data.demo import draw_objects, draw_small, draw_street, name_images
from lovasz_repro.data.demo_scene import LOOKS, with_border
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.own_files import (
    decode_mask,
    folder_palette,
    list_pairs,
    read_classes,
    read_own_mask,
)
from lovasz_repro.data.own_look import prepare_own
from lovasz_repro.data.voc import list_images
from lovasz_repro.data.voc_training import whole_images
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import fingerprint_files

VOC, SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"
THINGS = range(24, 34)
"""Official label ids whose objects are told apart."""
DEMOS: dict[str, tuple[Callable[..., bool], Callable[..., Any], tuple[int, ...], Any, str]] = {
    "cityscapes": (demo.write_cityscapes, check_cityscapes, (7, 4, 2), (96, 192), "96x192"),
    "voc": (demo.write_voc, check_voc, (24, 10, 3), 80, "80"),
    "own": (partial(demo.write_own_demo, kinds=3), check_own_folder, (7, 3, 2), 96, "96 --kinds 3"),
}
"""Layout -> what draws it, what checks it, images of each split, their size, and that in words."""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small tree of each layout."""
    found = {}
    for layout, (write, _, images, size, _) in DEMOS.items():
        steps: list[int] = []
        found[layout] = tmp_path_factory.mktemp("demo") / layout
        assert write(found[layout], 3, images, size, steps.append)
        assert len(steps) == sum(steps) == sum(images)
    return found


@pytest.fixture
def streets(trees: dict[str, Path]) -> Path:
    return trees["cityscapes"]


@pytest.fixture
def voc(trees: dict[str, Path]) -> Path:
    return trees["voc"]


# ---- every layout --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", DEMOS)
def test_the_tree_is_whole_and_says_what_it_is(trees: dict[str, Path], layout: str) -> None:
    _, check, images, size, shape = DEMOS[layout]
    report, root = check(trees[layout]), trees[layout]
    assert report.ok, report.problems
    assert [row.images for row in report.splits] == list(images)
    counts = ",".join(map(str, images))
    made_by = f"lovasz-repro data demo {layout} --seed 3 --images {counts} --size {shape}"
    splits = dict(zip([row.split for row in report.splits], images, strict=True))
    sides = size if layout == "cityscapes" else (size, size)
    assert read_note(root) == TreeNote("demo", made_by, sides, splits)
    photographs = {"cityscapes": "leftImg8bit/**/*.png", "voc": "**/*.jpg", "own": "images/*.jpg"}
    assert len([*root.glob(photographs[layout])]) == sum(images)


def digests(root: Path) -> dict[str, str]:
    """Content of every file, by its path."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files}  # fmt: skip


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from lovasz_repro.data import demo; "
        "[getattr(demo, f'write_{name}')(Path(sys.argv[1], name), 3, (2, 1, 1), size) "
        "for name, size in (('cityscapes', (64, 128)), ('voc', 64), ('own_demo', 64))]"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(
        [*command, str(tmp_path / "again")], env=os.environ | {"PYTHONHASHSEED": "77"}, check=True
    )
    found: dict[int, dict[str, str]] = {}
    for seed in (3, 4):
        root = tmp_path / str(seed)
        demo.write_cityscapes(root / "cityscapes", seed, (2, 1, 1), (64, 128))
        demo.write_voc(root / "voc", seed, (2, 1, 1), 64)
        demo.write_own_demo(root / "own_demo", seed, (2, 1, 1), 64)
        found[seed] = digests(root)
    assert digests(tmp_path / "again") == found[3]
    shown = [{digest for path, digest in of_it.items() if "leftImg8bit" in path or ".jpg" in path}
             for of_it in found.values()]  # fmt: skip
    assert len(shown[0]) == 12
    assert shown[0].isdisjoint(shown[1])


@pytest.mark.parametrize("layout", DEMOS)
def test_a_tree_that_is_there_is_left_alone_or_kept(
    trees: dict[str, Path], layout: str, tmp_path: Path
) -> None:
    (write, _, images, size, shape), root = DEMOS[layout], trees[layout]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert not write(root, 3, images, size)
    with pytest.raises(UserError, match=rf"there is what `.*--size {shape}` wrote.*--out"):
        write(root, 4, images, size)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("mine")
    with pytest.raises(UserError, match="there is something else"):
        write(tmp_path / "mine", 3, images, size)
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "work.txt"]


@pytest.mark.parametrize("layout", DEMOS)
def test_a_stopped_command_leaves_nothing(layout: str, tmp_path: Path) -> None:
    def stop(images: int) -> None:
        assert not (tmp_path / "demo").exists()
        raise KeyboardInterrupt

    write, size = DEMOS[layout][0], (64, 128) if layout == "cityscapes" else 64
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "demo", 0, (1, 1, 1), size, stop)
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write(tmp_path / "file" / "demo", 0, (1, 1, 1), size)


@pytest.mark.parametrize("layout", DEMOS)
@pytest.mark.parametrize(("images", "smaller"), [((0, 1, 1), 0), ((1, 1), 0), ((1, 1, 1), 1)])
def test_impossible_trees_are_refused(
    tmp_path: Path, layout: str, images: tuple[int, ...], smaller: int
) -> None:
    size = (64 - smaller, 128) if layout == "cityscapes" else 64 - smaller
    with pytest.raises(ValueError, match="at least"):
        DEMOS[layout][0](tmp_path / "demo", 0, images, size)


def nearest_mean_colour(
    seen: list[tuple[np.ndarray, np.ndarray]], asked: list[tuple[np.ndarray, np.ndarray]]
) -> float:
    """Mean recall of the classes by the nearest of their mean colours."""
    (pixels, classes), (others, truth) = (
        (
            np.concatenate([photograph.reshape(-1, 3) for photograph, _ in images]).astype(float),
            np.concatenate([labels.ravel() for _, labels in images]),
        )
        for images in (seen, asked)
    )
    labels = np.unique(classes)
    means = np.stack([pixels[classes == label].mean(axis=0) for label in labels])
    guess = labels[((others[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)]
    return float(np.mean([np.mean(guess[truth == label] == label) for label in labels]))


# ---- streets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_classes_and_void_occur(streets: Path, split: str) -> None:
    ids = np.stack([read_label_ids(frame) for frame in list_frames(streets, split)])
    pixels = np.bincount(ids.ravel(), minlength=34)
    scored = pixels[list(CITYSCAPES.label_ids[1:])]
    assert min(scored) / ids[0].size > 2e-4
    assert pixels[1] > 0  # ego vehicle
    assert pixels[3] > 0  # out of roi
    assert 0.03 < np.mean(TO_CLASS[ids] == 0) < 0.3
    assert CITYSCAPES.names[1 + int(np.argmax(scored))] in ("road", "building")
    _, ids, _ = draw_street(11, split, 0, 1, (96, 192))
    assert set(range(1, 20)) <= set(TO_CLASS[ids].ravel().tolist())  # one image shows all, too


def test_instances_are_numbered_within_their_class_and_groups_are_not(streets: Path) -> None:
    groups = 0
    for split in ("train", "val"):
        for frame in list_frames(streets, split):
            ids, instances = read_label_ids(frame), read_instances(frame)
            numbered = instances >= 1000
            assert np.array_equal(np.where(numbered, instances // 1000, instances), ids)
            assert set((instances[numbered] // 1000).tolist()) <= set(THINGS)
            groups += int((~numbered & np.isin(ids, THINGS)).any())
            assert len(np.unique(instances[numbered])) >= 5
    assert groups >= 2


def test_colours_are_those_of_the_palette(streets: Path) -> None:
    for frame in list_frames(streets, "val"):
        picture = np.asarray(Image.open(str(frame.label_ids).replace("labelIds", "color")))
        classes = TO_CLASS[read_label_ids(frame)]
        assert np.array_equal(picture, colourise(classes, CITYSCAPES))


def test_the_test_set_has_ignore_regions_and_no_labels(streets: Path) -> None:
    for frame in list_frames(streets, "test"):
        ids = read_label_ids(frame)
        assert set(np.unique(ids).tolist()) <= {0, 1, 2, 3}
        assert not TO_CLASS[ids].any()
        assert np.array_equal(read_instances(frame), ids)


def test_the_colours_of_streets_tell_something_and_not_all(streets: Path) -> None:
    """The nearest mean colour finds more than chance would, and far less than a network can."""
    train, val = (
        [(read_photograph(frame.image)[known], TO_CLASS[read_label_ids(frame)][known])
         for frame in list_frames(streets, split)
         for known in [TO_CLASS[read_label_ids(frame)] != 0]]
        for split in ("train", "val")
    )  # fmt: skip
    assert 1.5 / 19 < nearest_mean_colour(train, val) < 0.5
    assert np.std([photograph.mean() for photograph, _ in val]) > 5  # the light changes


def test_the_usual_size() -> None:
    photograph, ids, instances = draw_street(0, "train", 0, demo.STREET_COUNTS[0])
    assert photograph.shape == (*demo.STREET_SIZE, 3)
    assert photograph.dtype == ids.dtype == np.uint8
    assert ids.shape == instances.shape == demo.STREET_SIZE
    assert instances.dtype == np.uint16
    assert 60 < photograph.mean() < 200


# ---- objects of VOC ------------------------------------------------------------------------------


def listed(root: Path, file: str) -> set[str]:
    return set((root / file).read_text().splitlines())


def test_images_and_masks_overlap_as_in_the_real_trees(voc: Path) -> None:
    train, val, test = (
        listed(voc, f"{VOC}/ImageSets/Segmentation/{split}.txt")
        for split in ("train", "val", "test")
    )
    sbd_train, sbd_val = (listed(voc, f"{SBD}/{split}.txt") for split in ("train", "val"))
    sbd = sbd_train | sbd_val
    assert not sbd_train & sbd_val
    assert not (train & val) | (train & test) | (val & test) | (sbd & test)
    assert all((train & sbd, train - sbd, val & sbd, val - sbd))
    train_aug = {image.name for image in list_images(voc, "train_aug")}
    assert train_aug == (train | sbd) - val
    assert len(train_aug) == 24
    assert {file.stem for file in voc.glob(f"{VOC}/SegmentationClass/*.png")} == train | val
    assert {file.stem for file in voc.glob(f"{SBD}/cls/*.mat")} == sbd
    for name in train_aug | val | test:
        assert 2007 <= int(name[:4]) <= 2011
        assert len(name) == 11


@pytest.mark.slow
def test_the_usual_tree_is_the_one_that_the_kept_runs_saw(tmp_path: Path) -> None:
    root = tmp_path / "voc-demo"
    demo.write_voc(root)
    data = load_experiment("voc-multiclass").cells("demo")[0].data
    found = fingerprint_files(dataset("voc").files(root, data), root)
    kept = Path(__file__).parents[2] / "results" / "reference" / "runs" / "voc-multiclass"
    runs = [json.loads(file.read_text()) for file in kept.glob("*/run.json")]
    seen = {run["tags"]["data_fingerprint"] for run in runs
            if run["params"]["data.folder"] == "voc-demo"}  # fmt: skip
    assert seen == {found}


def near_an_outline(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels (H, W) bool that see two classes at most so many rows and columns away."""
    padded = np.pad(labels, distance, mode="edge")
    width = 2 * distance + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width, width))
    return windows.max(axis=(2, 3)) != windows.min(axis=(2, 3))


def test_both_masks_of_an_image_agree_and_void_is_along_outlines(voc: Path) -> None:
    both = 0
    for png in sorted(voc.glob(f"{VOC}/SegmentationClass/*.png")):
        with Image.open(png) as opened:
            assert opened.mode == "P"
            palette = np.array(opened.getpalette()).reshape(256, 3)
            labels = np.asarray(opened)
        assert palette[[0, 1, 15, 20, VOID]].tolist() == [
            [0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]
        ]  # fmt: skip
        assert 0.005 < np.mean(labels == VOID) < 0.4
        mat = voc / SBD / "cls" / f"{png.stem}.mat"
        if mat.exists():
            both += 1
            content = loadmat(mat, squeeze_me=True, struct_as_record=False)["GTcls"]
            segmentation = content.Segmentation
            assert segmentation.dtype == np.uint8
            assert segmentation.shape == labels.shape
            void = near_an_outline(segmentation, 2)
            assert np.array_equal(labels, np.where(void, VOID, segmentation))
            present = np.atleast_1d(content.CategoriesPresent).tolist()
            assert present == sorted({*segmentation.ravel().tolist()} - {0})
    assert both >= 5


@settings(max_examples=15)
@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6), st.integers(64, 100))
def test_every_image_has_its_class_and_no_unknown_id(seed: int, number: int, size: int) -> None:
    photograph, labels = draw_objects(seed, "val", number, size)
    assert photograph.shape == (*labels.shape, 3)
    assert photograph.dtype == labels.dtype == np.uint8
    assert max(labels.shape) == size
    assert min(labels.shape) >= 0.6 * size
    ids = set(labels.ravel().tolist())
    assert ids <= set(range(21))
    assert {0, 1 + number % 20} <= ids
    assert len(ids) <= 4
    bordered = with_border(labels)
    assert np.array_equal(bordered == VOID, near_an_outline(labels, 2))
    assert set(bordered.ravel().tolist()) <= ids | {VOID}
    assert set(bordered.ravel().tolist()) >= ids - {0}


def test_every_class_occurs_often_and_colours_tell_something_and_not_all() -> None:
    """Of some images of train_aug and val; the tree has more by default."""
    assert demo.VOC_COUNTS[0] >= demo.VOC_COUNTS[1] >= 60
    assert tuple(LOOKS) == VOC_CLASSES[1:]
    drawn = {split: [draw_objects(0, split, number, 64) for number in range(60)]
             for split in ("train_aug", "val")}  # fmt: skip
    for of_it in drawn.values():
        images = Counter(index for _, labels in of_it for index in np.unique(labels).tolist())
        assert set(images) == set(range(21))
        assert min(images.values()) >= 3
        shares = Counter(np.unique(labels).size - 1 for _, labels in of_it)
        assert set(shares) == {1, 2, 3}  # classes beside the background
    assert 2 / 21 < nearest_mean_colour(drawn["train_aug"], drawn["val"]) < 0.6


def test_sizes_vary_and_so_does_the_light(voc: Path) -> None:
    images = whole_images(list_images(voc, "train_aug"))
    pairs = [images.both(index) for index in range(len(images))]
    shapes = {labels.shape for _, labels in pairs}
    assert len(shapes) >= 4
    assert {max(shape) for shape in shapes} == {80}
    assert {height > width for height, width in shapes} == {True, False}
    assert np.std([photograph.mean() for photograph, _ in pairs]) > 5
    photograph, _ = draw_objects(0, "train_aug", 0)
    assert max(photograph.shape) == demo.VOC_SIZE


@pytest.mark.parametrize("images", [(1, 1, 1), (3, 2, 5)])
def test_the_smallest_trees_are_whole(tmp_path: Path, images: tuple[int, ...]) -> None:
    assert demo.write_voc(tmp_path / "demo", 0, images, 64)
    assert check_voc(tmp_path / "demo").ok
    assert len(list_images(tmp_path / "demo", "train_aug")) == images[0]


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(1, 400), min_size=3, max_size=3))
def test_names_are_unique(seed: int, images: list[int]) -> None:
    names = name_images(seed, images)
    assert [len(names[split]) for split in names] == images
    assert len({name for split in names for name in names[split]}) == sum(images)


# ---- a folder of one's own -----------------------------------------------------------------------


def test_masks_are_those_of_what_was_drawn(trees: dict[str, Path], tmp_path: Path) -> None:
    one, three = tmp_path / "one", trees["own"]
    demo.write_own_demo(one, 3, (7, 3, 2), 96)
    assert prepare_own(three).wrote == ()
    for root, kinds in ((one, 1), (three, 3)):
        report = check_own_folder(root)
        assert report.ok
        assert len(report.classes) == 1 + kinds
        assert len(report.sizes) > 1
        found, mask = read_classes(root), list_pairs(root, "val")[1].mask
        assert found
        classes = folder_palette(decode_mask(list_pairs(root, "train")[0].mask), found)
        drawn = draw_small(3, "val", 1, 96)[1]
        expected = np.where(drawn <= kinds, drawn, 0)
        assert np.array_equal(read_own_mask(mask, classes), expected)
    with Image.open(mask) as image:  # a stranger reads it alike
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), expected)
    assert digests(one / "images") == digests(three / "images")


def test_objects_are_small_and_some_images_have_none() -> None:
    drawn = [draw_small(0, "train", number, 96)[1] for number in range(14)]
    shares = np.array([(labels == 1).mean() for labels in drawn])
    assert (shares[[6, 13]] == 0).all()
    assert (np.delete(shares, [6, 13]) > 0).all()
    assert shares.mean() < 0.05
