"""A folder of one's own: its check, and what is written down of it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from lovasz_repro.data.check_own import OwnReport, check_own_folder
from lovasz_repro.data.own_files import list_everything, list_pairs, own_splits, read_classes
from lovasz_repro.data.own_look import prepare_own, split_images
from lovasz_repro.errors import UserError
from tests.tiny_own import drawn_masks, write_own

LISTS = {"train_txt": "m0\nm1\nm2\nm3\n", "val_txt": "m4\nm5\n"}
CLASSES = "sound\ncrack: 255\n"


@given(
    arrays.arrays(bool, st.tuples(st.integers(2, 12), st.integers(1, 4))),
    st.integers(0, 5),
    st.sampled_from([0.1, 0.2, 0.5]),
)
def test_a_split_leaves_every_class_to_train_on_where_it_can(
    presence: np.ndarray, seed: int, share: float
) -> None:
    contents = [str(index) for index in range(len(presence))]
    val = np.array(split_images(presence, contents, seed, share))
    assert val.any()
    assert not val.all()
    counts = presence.sum(axis=0)
    if any((counts[image] > 1).all() for image in presence):  # one that can be spared
        assert np.array_equal(presence[~val].any(axis=0), presence.any(axis=0))
    else:
        assert val.sum() == 1
    assert val.tolist() == split_images(presence, contents, seed, share)


def test_where_every_class_has_images_enough_both_halves_show_it() -> None:
    generator = np.random.default_rng(0)
    for seed in range(50):
        presence = generator.random((20, 6)) < 0.25
        presence[:4] = True
        val = np.array(split_images(presence, [*map(str, range(20))], seed, 0.2))
        assert presence[val].any(axis=0).all()
        assert presence[~val].any(axis=0).all()
        assert 3 <= val.sum() <= 6


def test_the_same_photographs_stay_together() -> None:
    contents = ["a", "b", "a", "c", "b", "d", "e", "a"]
    for seed in range(20):
        val = split_images(np.ones((8, 1), bool), contents, seed, 0.4)
        for letter in "abcde":
            assert len({v for v, c in zip(val, contents, strict=True) if c == letter}) == 1
    with pytest.raises(UserError, match="two different"):
        split_images(np.ones((3, 1), bool), ["a"] * 3, 0, 0.2)


def test_what_a_folder_lacks_is_written_down(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", drawn_masks(12))
    found = prepare_own(root, seed=3)
    assert {file.name for file in found.wrote} == {"classes.txt", "train.txt", "val.txt"}
    assert found.classes == read_classes(root)
    assert found.classes.names == ("background", "object")
    assert found.images == {split: len(list_pairs(root, split)) for split in ("train", "val")}
    assert sum(found.images.values()) == 12
    assert "--seed 3" in (root / "val.txt").read_text()
    before = {file: file.read_bytes() for file in found.wrote}
    assert prepare_own(root, seed=4).wrote == ()
    assert before == {file: file.read_bytes() for file in found.wrote}
    shutil.rmtree(root / "masks")
    (root / "masks").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="masks"):
        prepare_own(root)


@pytest.mark.parametrize(
    ("values", "names", "ignore"),
    [
        ((0, 255), ("background", "object"), ()),
        ((4, 9), ("background", "object"), ()),
        ((0, 1, 255), ("class 0", "class 1"), ((255,) * 3,)),
        ((0, 128, 255), ("class 0", "class 128", "class 255"), ()),
        ((7, 8, 11), ("class 7", "class 8", "class 11"), ()),
    ],
)
def test_classes_are_found_in_masks(
    tmp_path: Path, values: tuple[int, ...], names: tuple[str, ...], ignore: object
) -> None:
    found = prepare_own(write_own(tmp_path / "own", drawn_masks(9, values))).classes
    assert (found.names, found.ignore) == (names, ignore)


def check(root: Path, **how: object) -> OwnReport:
    return check_own_folder(root, **how)  # type: ignore[arg-type]


def test_a_check_counts_what_is_there(tmp_path: Path) -> None:
    masks = drawn_masks(6, (0, 255, 3))
    root = write_own(tmp_path / "own", masks, classes_txt=CLASSES + "ignore: 3", **LISTS)
    report = check(root, sheet=tmp_path / "sheet.png")
    assert report.ok, report.problems
    train = np.stack([masks[f"m{number}"] for number in range(4)])
    of_name = {one.name: one for one in report.classes}
    assert of_name["crack"].value == "255"
    assert of_name["crack"].shares["train"] == pytest.approx((train == 255).mean())
    assert of_name["sound"].shares["train"] == pytest.approx((train == 0).mean())
    assert of_name["crack"].images["train"] == (train == 255).any((1, 2)).sum()
    assert report.sizes == ((12, 16),)
    ignored = f"{(train == 3).mean():.1%} of the pixels are ignored"
    assert any(ignored in note for note in report.notes)
    empty = [f"m{n}" for n in range(4) if not (train[n] == 255).any()]
    assert any(note.endswith(", ".join(empty)) for note in report.notes if "nothing but" in note)
    assert json.loads(json.dumps(asdict(report)))["splits"][0]["images"] == 4
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_a_check_writes_nothing_and_says_what_would_be(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", drawn_masks(6))
    before = sorted(root.rglob("*"))
    report = check(root)
    assert report.ok
    assert sorted(root.rglob("*")) == before
    assert "prepare" in report.advice
    assert [row.split for row in report.splits] == ["all"]
    assert [one.name for one in report.classes] == ["background", "object"]


def copied(root: Path) -> None:
    photograph = Image.open(root / "images" / "m1.png")
    photograph.save(root / "images" / "m4.tif")
    (root / "images" / "m4.png").unlink()


def saved(file: str, picture: Image.Image) -> Callable[[Path], None]:
    return lambda root: picture.save(root / file)


def written(file: str, text: str) -> Callable[[Path], object]:
    return lambda root: (root / file).write_text(text)


FAULTS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no mask": (lambda root: (root / "masks/m1.png").unlink(), "masks", "m1; .*name"),
    "empty split": (written("val.txt", "# none\n"), "val.txt", "empty"),
    "in two splits": (written("val.txt", "m1\nm4\n"), "val.txt", "m1.*train.txt"),
    "not there": (written("val.txt", "m4\n../../etc/passwd\n"), "images", "passwd; .*list"),
    "size": (saved("masks/m1.png", Image.new("L", (5, 5))), "masks/m1.png", "5x5.*12x16; "),
    "value": (
        saved("masks/m1.png", Image.new("L", (16, 12), 77)), "masks/m1.png", "77.*classes.txt",
    ),
    "cut short": (written("images/m1.png", "\x89PNG"), "images/m1.png", "unreadable"),
    "no image": (written("masks/m1.png", "<html>"), "masks/m1.png", "unreadable"),
    "copied": (copied, "images/m4.tif", "images/m1.png of train"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_and_a_run_finds_those_of_lists_too(
    tmp_path: Path, fault: str
) -> None:
    spoil, where, told = FAULTS[fault]
    root = write_own(tmp_path / "own", drawn_masks(6), classes_txt=CLASSES, **LISTS)
    assert check(root).ok
    assert len(list_everything(root)) == 15
    spoil(root)
    report = check(root)
    told_of = [str(found) for found in report.problems if found.file == where]
    assert any(re.search(told, line) for line in told_of), report.problems
    assert not any("\n" in line for line in told_of)
    if fault in [*FAULTS][:4]:
        with pytest.raises(UserError, match=re.escape(str(root))):
            list_everything(root)


def test_folders_for_splits(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        write_own(tmp_path / "own" / split, drawn_masks(count, seed=count))
    root = tmp_path / "own"
    assert own_splits(root) == ("train", "val", "test")
    assert prepare_own(root).images == {"train": 3, "val": 2, "test": 1}
    assert [file.name for file in root.iterdir() if file.is_file()] == ["classes.txt"]
    shutil.rmtree(root / "test" / "masks")
    assert own_splits(root) == ("train", "val")
    (root / "images").mkdir()
    with pytest.raises(UserError, match="both"):
        own_splits(root)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", " a", "#a", "a\u202e"])
def test_hostile_names_are_refused(tmp_path: Path, name: str) -> None:
    masks = drawn_masks(3)
    root = write_own(tmp_path / "own", masks | {name: masks["m0"]})
    with pytest.raises(UserError, match="rename"):
        prepare_own(root)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("lovasz_repro.data.own_look.write_durably", refuse)
    with pytest.raises(UserError, match=r"Permission denied.*links"):
        prepare_own(write_own(tmp_path / "own", drawn_masks(4)))


def test_a_name_may_look_like_a_file(tmp_path: Path) -> None:
    masks = {f"{name}.jpg": mask for name, mask in drawn_masks(4).items()}
    root = write_own(tmp_path / "own", masks, classes_txt=CLASSES)
    prepare_own(root)
    listed = [pair.name for split in ("train", "val") for pair in list_pairs(root, split)]
    assert sorted(listed) == sorted(masks)


def test_a_photograph_that_its_file_turns_is_told(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", drawn_masks(6), classes_txt=CLASSES, **LISTS)
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "images" / "m1.png") as photograph:
        photograph.save(root / "images" / "m1.png", exif=exif)
    (fault,) = check(root).problems
    assert (fault.file, "orientation" in fault.what) == ("masks/m1.png", True)


def test_files_that_nobody_reads_are_told(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", drawn_masks(7), classes_txt=CLASSES, **LISTS)
    (root / "images" / "m9.webp").write_bytes(b"")
    (root / "masks" / ".hidden").write_bytes(b"")
    notes = [note for note in check(root).notes if "not used" in note]
    assert notes == ["images: 2 files not used: m6.png, m9.webp", "masks: 1 file not used: m6.png"]


def test_what_is_wrong_with_every_file_is_said_once(tmp_path: Path) -> None:
    root = write_own(tmp_path / "own", drawn_masks(30), classes_txt="sound\ncrack\n")
    (fault,) = check(root).problems
    assert fault.file == "masks"
    assert re.search(r"files: .*255.*`NAME: 255`.* more", fault.what)


@pytest.mark.parametrize("sheet", ["/proc/sheet.png", "sheet.jpg", "."])
def test_a_sheet_that_cannot_be_is_told_first(tmp_path: Path, sheet: str) -> None:
    root = write_own(tmp_path / "own", drawn_masks(6), classes_txt=CLASSES, **LISTS)
    with pytest.raises(UserError, match="--sheet"):
        check(root, sheet=Path(sheet), begin=lambda images: pytest.fail("read images"))
