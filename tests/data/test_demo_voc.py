"""Drawn objects: repeatable, complete, annotated like the real ones, and worth learning from."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import loadmat  # type: ignore[import-untyped]

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.check import TreeNote, read_note
from lovasz_repro.data.check_voc import check_voc
from lovasz_repro.data.datasets import dataset
from lovasz_repro.data.demo import VOC_COUNTS, VOC_SIZE, draw_objects, name_images, write_voc
from lovasz_repro.data.demo_objects import LOOKS
from lovasz_repro.data.demo_scene import with_border
from lovasz_repro.data.voc import VOC_CLASSES, VOID, list_images
from lovasz_repro.data.voc_training import whole_images
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import fingerprint_files

FEW, SMALL = (24, 10, 3), 80
VOC, SBD = "VOCdevkit/VOC2012", "benchmark_RELEASE/dataset"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small demo tree."""
    root = tmp_path_factory.mktemp("demo") / "voc-demo"
    steps: list[int] = []
    assert write_voc(root, 3, FEW, SMALL, steps.append)
    assert len(steps) == sum(steps) == sum(FEW)
    return root


def digests(root: Path) -> dict[str, str]:
    """Content of every file, by its path."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files}  # fmt: skip


def listed(root: Path, file: str) -> list[str]:
    return (root / file).read_text().splitlines()


def test_the_tree_is_whole_and_says_what_it_is(tree: Path) -> None:
    report = check_voc(tree)
    assert report.ok, report.problems
    assert [(row.split, row.images) for row in report.splits] == [
        ("train_aug", 24), ("val", 10), ("test", 3)
    ]  # fmt: skip
    made_by = "lovasz-repro data demo voc --seed 3 --images 24,10,3 --size 80"
    counts = {"train_aug": 24, "val": 10, "test": 3}
    assert read_note(tree) == TreeNote("demo", made_by, (SMALL, SMALL), counts)
    assert len([*tree.rglob("*.jpg")]) == sum(FEW)


def test_images_and_masks_overlap_as_in_the_real_trees(tree: Path) -> None:
    train, val, test = (
        set(listed(tree, f"{VOC}/ImageSets/Segmentation/{split}.txt"))
        for split in ("train", "val", "test")
    )
    sbd_train, sbd_val = (set(listed(tree, f"{SBD}/{split}.txt")) for split in ("train", "val"))
    sbd = sbd_train | sbd_val
    assert not sbd_train & sbd_val
    assert not (train & val) | (train & test) | (val & test) | (sbd & test)
    assert train & sbd
    assert train - sbd
    assert val & sbd
    assert val - sbd
    train_aug = {image.name for image in list_images(tree, "train_aug")}
    assert train_aug == (train | sbd) - val
    assert len(train_aug) == 24
    assert {file.stem for file in tree.glob(f"{VOC}/SegmentationClass/*.png")} == train | val
    assert {file.stem for file in tree.glob(f"{SBD}/cls/*.mat")} == sbd
    for name in train_aug | val | test:
        assert 2007 <= int(name[:4]) <= 2011
        assert len(name) == 11


def test_the_same_seed_gives_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; "
        "from lovasz_repro.data.demo import write_voc; "
        f"write_voc(Path(sys.argv[1]), 3, {FEW}, {SMALL})"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "again")]
    subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "77"}, check=True)
    assert digests(tmp_path / "again") == digests(tree)
    write_voc(tmp_path / "other", 4, (2, 2, 1), SMALL)
    photographs = [
        {digest for path, digest in digests(root).items() if path.endswith(".jpg")}
        for root in (tree, tmp_path / "other")
    ]
    assert photographs[0].isdisjoint(photographs[1])


@pytest.mark.slow
def test_the_usual_tree_is_the_one_that_the_kept_runs_saw(tmp_path: Path) -> None:
    root = tmp_path / "voc-demo"
    write_voc(root)
    data = load_experiment("voc-multiclass").cells("demo")[0].data
    found = fingerprint_files(dataset("voc").files(root, data), root)
    kept = Path(__file__).parents[2] / "results" / "reference" / "runs" / "voc-multiclass"
    runs = [json.loads(file.read_text()) for file in kept.glob("*/run.json")]
    seen = {run["tags"]["data_fingerprint"] for run in runs
            if run["params"]["data.folder"] == "voc-demo"}  # fmt: skip
    assert seen == {found}


# ---- masks ---------------------------------------------------------------------------------------


def near_an_outline(labels: np.ndarray, distance: int) -> np.ndarray:
    """Pixels (H, W) bool that see two classes at most so many rows and columns away."""
    padded = np.pad(labels, distance, mode="edge")
    width = 2 * distance + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (width, width))
    return windows.max(axis=(2, 3)) != windows.min(axis=(2, 3))


def test_both_masks_of_an_image_agree_and_void_is_along_outlines(tree: Path) -> None:
    both = 0
    for png in sorted(tree.glob(f"{VOC}/SegmentationClass/*.png")):
        with Image.open(png) as opened:
            assert opened.mode == "P"
            palette = np.array(opened.getpalette()).reshape(256, 3)
            labels = np.asarray(opened)
        assert palette[[0, 1, 15, 20, VOID]].tolist() == [
            [0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128], [224, 224, 192]
        ]  # fmt: skip
        assert 0.005 < np.mean(labels == VOID) < 0.4
        mat = tree / SBD / "cls" / f"{png.stem}.mat"
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


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Some images of train_aug and val; the tree has more by default."""
    assert VOC_COUNTS[0] >= VOC_COUNTS[1] >= 60
    return {split: [draw_objects(0, split, number, 64) for number in range(60)]
            for split in ("train_aug", "val")}  # fmt: skip


@pytest.mark.parametrize("split", ["train_aug", "val"])
def test_every_class_occurs_often(
    drawn: dict[str, list[tuple[np.ndarray, np.ndarray]]], split: str
) -> None:
    assert tuple(LOOKS) == VOC_CLASSES[1:]
    images = Counter(index for _, labels in drawn[split] for index in np.unique(labels).tolist())
    assert set(images) == set(range(21))
    assert min(images.values()) >= 3
    shares = Counter(np.unique(labels).size - 1 for _, labels in drawn[split])
    assert set(shares) == {1, 2, 3}  # classes beside the background


def test_sizes_vary_and_so_does_the_light(tree: Path) -> None:
    images = whole_images(list_images(tree, "train_aug"))
    pairs = [images.both(index) for index in range(len(images))]
    shapes = {labels.shape for _, labels in pairs}
    assert len(shapes) >= 4
    assert {max(shape) for shape in shapes} == {SMALL}
    assert any(height > width for height, width in shapes)
    assert any(height < width for height, width in shapes)
    assert np.std([photograph.mean() for photograph, _ in pairs]) > 5
    photograph, _ = draw_objects(0, "train_aug", 0)
    assert max(photograph.shape) == VOC_SIZE


def test_colour_alone_tells_something_and_not_all(
    drawn: dict[str, list[tuple[np.ndarray, np.ndarray]]],
) -> None:
    """The nearest mean colour finds more than chance would, and less than a network can."""
    (pixels, classes), (seen, truth) = (
        (
            np.concatenate([photograph.reshape(-1, 3) for photograph, _ in images]).astype(float),
            np.concatenate([labels.ravel() for _, labels in images]),
        )
        for images in (drawn["train_aug"], drawn["val"])
    )
    means = np.stack([pixels[classes == index].mean(axis=0) for index in range(21)])
    guess = ((seen[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    right = [np.mean(guess[truth == index] == index) for index in range(21)]
    assert 2 / 21 < np.mean(right) < 0.6


# ---- places and limits ---------------------------------------------------------------------------


def test_a_tree_that_is_there_is_left_alone_or_kept(tree: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert not write_voc(tree, 3, FEW, SMALL)
    with pytest.raises(UserError, match=r"there is what `.*--images 24,10,3 --size 80` wrote"):
        write_voc(tree, 4, FEW, SMALL)
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before

    def stop(images: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_voc(tmp_path / "demo", 0, (1, 1, 1), 64, stop)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("images", [(1, 1, 1), (2, 1, 1), (1, 3, 1), (3, 2, 5)])
def test_the_smallest_trees_are_whole(tmp_path: Path, images: tuple[int, ...]) -> None:
    assert write_voc(tmp_path / "demo", 0, images, 64)
    assert check_voc(tmp_path / "demo").ok
    assert len(list_images(tmp_path / "demo", "train_aug")) == images[0]


@given(st.integers(0, 2**63 - 1), st.lists(st.integers(1, 400), min_size=3, max_size=3))
def test_names_are_unique(seed: int, images: list[int]) -> None:
    names = name_images(seed, images)
    assert [len(names[split]) for split in names] == images
    assert len({name for split in names for name in names[split]}) == sum(images)


@pytest.mark.parametrize(("images", "size"), [((0, 1, 1), SMALL), ((1, 1), SMALL), ((1, 1, 1), 63)])
def test_impossible_trees_are_refused(tmp_path: Path, images: tuple[int, ...], size: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        write_voc(tmp_path / "demo", 0, images, size)
