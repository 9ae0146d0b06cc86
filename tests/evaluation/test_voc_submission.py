"""Submissions to Pascal VOC, read back with tarfile, zlib and Pillow alone."""

import io
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.voc import IMAGES, LISTS, VocImage, list_images
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.voc_submission import (
    check_predictions,
    find_problems,
    how_to_submit,
    write_prediction,
    write_submission,
)
from tests.left_overs import left_over

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
SIZES = [(50, 30), (37, 50), (33, 40), (50, 50), (41, 28)]  # height, width


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[VocImage]:
    """A test set of five photographs, from its test.txt."""
    voc = tmp_path_factory.mktemp("data") / "VOCdevkit" / "VOC2012"
    (voc / IMAGES).mkdir(parents=True)
    (voc / LISTS).mkdir(parents=True)
    names = [f"2008_{number:06}" for number in range(1, 6)]
    for name, (height, width) in zip(names, SIZES, strict=True):
        Image.new("RGB", (width, height), (90, 120, 40)).save(voc / IMAGES / f"{name}.jpg")
    (voc / LISTS / "test.txt").write_text("".join(f"{name}\n" for name in names))
    return list_images(voc.parents[1], "test")


@pytest.fixture
def classes(images: list[VocImage]) -> dict[str, np.ndarray]:
    """Every class, in every photograph."""
    generator = np.random.default_rng(5)
    return {
        image.name: generator.permutation(np.arange(height * width) % 21).reshape(height, width)
        for image, (height, width) in zip(images, SIZES, strict=True)
    }


@pytest.fixture
def out(classes: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A folder with a good label file for each."""
    for name, ids in classes.items():
        write_prediction(tmp_path / "out", name, ids)
    return tmp_path / "out"


def official_colour(index: int) -> tuple[int, int, int]:
    """VOCdevkit's VOClabelcolormap.m: r = r | bitget(id, 1) << 7 - j, and so on; id >>= 3."""
    red = green = blue = 0
    for place in range(8):
        red |= (index & 1) << (7 - place)
        green |= (index >> 1 & 1) << (7 - place)
        blue |= (index >> 2 & 1) << (7 - place)
        index >>= 3
    return red, green, blue


def chunks(png: bytes) -> dict[bytes, bytes]:
    """The chunks of a PNG by their types, those of one type joined."""
    found: dict[bytes, bytes] = {}
    start = 8
    while start < len(png):
        length, kind = struct.unpack_from(">I4s", png, start)
        found[kind] = found.get(kind, b"") + png[start + 8 : start + 8 + length]
        start += length + 12
    return found


def test_a_label_file_is_8_bit_indices_into_the_official_palette(
    out: Path, classes: dict[str, np.ndarray]
) -> None:
    for name, ids in classes.items():
        file = out / FOLDER / f"{name}.png"
        parts = chunks(file.read_bytes())
        height, width = ids.shape
        assert struct.unpack(">IIBBBBB", parts[b"IHDR"]) == (width, height, 8, 3, 0, 0, 0)
        assert b"".join(bytes(official_colour(k)) for k in range(256)) == parts[b"PLTE"]
        assert len(zlib.decompress(parts[b"IDAT"])) == height * (width + 1)
        with Image.open(file) as opened:
            assert opened.mode == "P"
            assert np.array_equal(np.array(opened), ids)
            colours = np.array(opened.convert("RGB"))
        assert all(
            tuple(colours[row, column]) == official_colour(ids[row, column])
            for row in range(0, height, 7)
            for column in range(width)
        )
    assert official_colour(15) == (192, 128, 128)  # a person
    assert official_colour(20) == (0, 64, 128)


def test_one_class_takes_8_bits_too(tmp_path: Path) -> None:
    file = write_prediction(tmp_path, "2008_000001", np.zeros((4, 6), dtype=np.uint8))
    assert chunks(file.read_bytes())[b"IHDR"][8:10] == bytes([8, 3])
    assert file == tmp_path / FOLDER / "2008_000001.png"


@pytest.mark.parametrize(
    ("ids", "told"),
    [
        (np.full((2, 2), 255), "2008_000001: classes must be integers in 0..20"),
        (np.full((2, 2), 21), "integers in 0..20"),
        (np.full((2, 2), -1), "integers in 0..20"),
        (np.full((2, 2), 3.0), "integers in 0..20"),
        (np.zeros((1, 2, 2), int), r"shape \(H, W\), got \(1, 2, 2\)"),
        (np.zeros((0, 2), int), r"shape \(H, W\)"),
    ],
)
def test_what_no_label_file_can_hold(ids: np.ndarray, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        write_prediction(tmp_path, "2008_000001", ids)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    with pytest.raises(UserError, match="results"):
        write_prediction(tmp_path, "2008_000001", np.zeros((2, 2), int))


def test_good_label_files_pass(out: Path, images: list[VocImage]) -> None:
    seen: list[int] = []
    check_predictions(out, images, count=5, advance=seen.append)
    assert seen == [1] * 5
    left_over(out / FOLDER).touch()  # of a process that was killed
    assert find_problems(out, images, count=5) == []


def test_a_part_of_the_test_set_is_no_submission(out: Path, images: list[VocImage]) -> None:
    assert find_problems(out, images) == ["test.txt names 5 images, the test set has 1,456"]


def spoil(file: Path, way: str) -> None:
    with Image.open(file) as opened:
        picture = opened.copy()
    ids = np.array(picture)
    if way == "small":
        picture = picture.resize((10, 12))
    elif way == "turned":
        picture = picture.transpose(Image.Transpose.ROTATE_90)
    elif way == "grey":
        picture = Image.fromarray(ids)
    elif way == "colours":
        picture = picture.convert("RGB")
    elif way in ("void", "many"):
        ids[0, :5] = 255 if way == "void" else (21, 30, 40, 50, 255)
        picture = Image.fromarray(ids)
        with Image.open(file) as opened:
            picture.putpalette(opened.getpalette() or [])
    elif way == "palette":
        picture.putpalette([channel for grey in range(256) for channel in (grey,) * 3])
    elif way == "4 bits":
        picture = Image.fromarray(ids % 16)
        picture.putpalette([channel for k in range(16) for channel in official_colour(k)])
    elif way == "jpeg":
        picture = picture.convert("RGB")
    picture.save(file, "JPEG" if way == "jpeg" else "PNG")
    content = file.read_bytes()
    if way == "truncated":
        file.write_bytes(content[:-60])
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "huge":  # a header of 50000x50000 pixels: nothing may be allocated for it
        header = content[12:16] + struct.pack(">II", 50000, 50000) + content[24:29]
        checksum = struct.pack(">I", zlib.crc32(header))
        file.write_bytes(content[:12] + header + checksum + content[33:])
    elif way == "flipped":
        middle = content.index(b"IDAT") + 40
        file.write_bytes(content[:middle] + b"\0\xff\0\xff" + content[middle + 4 :])
    elif way == "long":
        file.write_bytes(content + bytes(1 << 20))
    elif way == "folder":
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("small", "2008_000003.png is 12x10, its photograph 33x40"),
        ("turned", "2008_000003.png is 40x33, its photograph 33x40"),
        ("grey", "2008_000003.png is not of one 8-bit palette index per pixel"),
        ("colours", "2008_000003.png is not of one 8-bit palette index per pixel"),
        ("4 bits", "2008_000003.png is not of one 8-bit palette index per pixel"),
        ("void", "2008_000003.png holds 255, no class id 0-20"),
        ("many", "2008_000003.png holds 21, 30, 40, ..., no class id 0-20"),
        ("palette", "2008_000003.png has another palette than VOC's"),
        ("jpeg", "2008_000003.png: unreadable image (it is no PNG)"),
        ("empty", "2008_000003.png: unreadable image (it is no PNG)"),
        ("truncated", "2008_000003.png: unreadable image ("),
        ("flipped", "2008_000003.png: unreadable image ("),
        ("huge", "2008_000003.png: unreadable image (it has too many pixels)"),
        ("long", "2008_000003.png has more than 1,048,576 bytes"),
        ("folder", "2008_000003.png is no file"),
    ],
)
def test_a_file_that_the_server_would_refuse(
    out: Path, images: list[VocImage], way: str, told: str
) -> None:
    spoil(out / FOLDER / "2008_000003.png", way)
    [problem] = find_problems(out, images, count=5)
    assert told in problem
    with pytest.raises(UserError, match=r"^no submission: 1 problem: "):
        check_predictions(out, images, count=5)


def test_files_that_are_missing_or_too_many(out: Path, images: list[VocImage]) -> None:
    folder = out / FOLDER
    for name in ("2008_000002", "2008_000005"):
        (folder / f"{name}.png").unlink()
    for name in ("2007_000033.png", "2008_000001.PNG", "notes.txt"):
        (folder / name).touch()
    problems = find_problems(out, images, count=5)
    assert problems == [
        "2007_000033.png is of no test photograph",
        "2008_000001.PNG is of no test photograph",
        "notes.txt is of no test photograph",
        "no prediction for 2008_000002",
        "no prediction for 2008_000005",
    ]
    with pytest.raises(UserError, match=r"5 problems: .*\(and 2 more\)\.$") as caught:
        check_predictions(out, images, count=5)
    assert "\n" not in str(caught.value)


def test_no_folder_and_no_photograph(out: Path, images: list[VocImage], tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    [problem] = find_problems(nowhere, images, count=5)
    assert problem == f"{nowhere / FOLDER}: No such file or directory"
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    gone = tmp_path / "gone.jpg"
    other = [VocImage(image.name, image.image, image.mask) for image in images]
    other[1] = VocImage(images[1].name, broken, images[1].mask)
    other[2] = VocImage(images[2].name, gone, images[2].mask)
    problems = find_problems(out, other, count=5)
    assert len(problems) == 2
    assert problems[0].startswith(f"{broken}: unreadable image (")
    assert problems[1].startswith(f"{gone}: no such file")


def test_the_archive_unpacks_to_what_the_server_reads(
    out: Path, images: list[VocImage], classes: dict[str, np.ndarray], tmp_path: Path
) -> None:
    archive = tmp_path / "new" / "submission.tar.gz"
    (out / FOLDER / "2007_000033.png").touch()  # of no test photograph
    write_submission(out, images, archive)
    with tarfile.open(archive, "r:gz") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [f"{FOLDER}/{name}.png" for name in classes]
        assert all(member.isreg() and member.mode == 0o644 for member in members)
        tar.extractall(tmp_path / "server", filter="data")
    for name, ids in classes.items():
        with Image.open(tmp_path / "server" / FOLDER / f"{name}.png") as opened:
            assert np.array_equal(np.array(opened), ids)


def test_the_same_files_give_the_same_bytes(
    out: Path, images: list[VocImage], tmp_path: Path
) -> None:
    first, second = tmp_path / "first.tar.gz", tmp_path / "elsewhere" / "second.tgz"
    write_submission(out, images, first)
    for image in images:
        file = out / FOLDER / f"{image.name}.png"
        os.utime(file, (1, 1))
        file.chmod(0o600)
    write_submission(out, images[::-1], second)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == b"\0\0\0\0"  # no time
    with tarfile.open(fileobj=io.BytesIO(first.read_bytes())) as tar:
        owners = {(member.uid, member.gid, member.uname, member.mtime) for member in tar}
    assert owners == {(0, 0, "", 0)}


def test_no_half_archive_is_left(out: Path, images: list[VocImage], tmp_path: Path) -> None:
    (out / FOLDER / "2008_000005.png").unlink()
    with pytest.raises(UserError, match=r"2008_000005\.png: No such file or directory\.$"):
        write_submission(out, images, tmp_path / "a.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_archive_that_cannot_be_written(
    out: Path, images: list[VocImage], tmp_path: Path
) -> None:
    (tmp_path / "a.tar.gz").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a\.tar\.gz: Is a directory"):
        write_submission(out, images, tmp_path / "a.tar.gz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.gz", "out"]


def test_how_to_submit_names_page_file_and_competition() -> None:
    text = how_to_submit(Path("sub.tar.gz"))
    for words in ("http://host.robots.ox.ac.uk:8080/", "sub.tar.gz", "comp6", "Tables 2 and 3"):
        assert words in text
