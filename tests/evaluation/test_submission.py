"""Submissions, read back with zipfile, tarfile, zlib and Pillow alone."""

import copy
import io
import os
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.submission import (
    CITYSCAPES_SERVER,
    VOC_SERVER,
    Server,
    check_predictions,
    write_prediction,
    write_tar,
    write_zip,
)

FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"
SIZES = [(50, 30), (37, 50), (33, 40), (50, 50), (41, 28)]  # height, width
NAMES = [f"2008_{number:06}" for number in range(1, 6)]


@dataclass
class Predicted:
    """Five photographs and a good label file for each, of every class."""

    server: Server
    files: list[Path]
    photographs: list[Path]
    ids: list[np.ndarray]

    @property
    def problems(self) -> str:
        """What is said of them; empty where they pass."""
        try:
            check_predictions(self.server, self.files, self.photographs)
        except UserError as error:
            return str(error)
        return ""


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photographs")
    files = [folder / f"{name}.jpg" for name in NAMES]
    for file, (height, width) in zip(files, SIZES, strict=True):
        Image.new("RGB", (width, height), (90, 120, 40)).save(file)
    return files


def predict(server: Server, photographs: list[Path], out: Path) -> Predicted:
    generator = np.random.default_rng(5)
    scored = sorted(server.ids)
    ids = [
        np.array(scored)[generator.permutation(np.arange(h * w) % len(scored)).reshape(h, w)]
        for h, w in SIZES
    ]
    if server is VOC_SERVER:
        files = [write_prediction(out, *pair) for pair in zip(NAMES, ids, strict=True)]
    else:
        out.mkdir()
        files = [out / f"{name}_labelIds.png" for name in NAMES]
        for file, of_file in zip(files, ids, strict=True):
            Image.fromarray(of_file.astype(np.uint8)).save(file)
    return Predicted(server, files, list(photographs), ids)


@pytest.fixture
def voc(photographs: list[Path], tmp_path: Path) -> Predicted:
    return predict(VOC_SERVER, photographs, tmp_path / "out")


@pytest.fixture(params=[CITYSCAPES_SERVER, VOC_SERVER], ids=["cityscapes", "voc"])
def either(request: pytest.FixtureRequest, photographs: list[Path], tmp_path: Path) -> Predicted:
    return predict(request.param, photographs, tmp_path / "out")


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


# -- label files of VOC --------------------------------------------------------------------------


def test_a_label_file_is_8_bit_indices_into_the_official_palette(voc: Predicted) -> None:
    for file, ids in zip(voc.files, voc.ids, strict=True):
        parts = chunks(file.read_bytes())
        height, width = ids.shape
        assert struct.unpack(">IIBBBBB", parts[b"IHDR"]) == (width, height, 8, 3, 0, 0, 0)
        assert b"".join(bytes(official_colour(k)) for k in range(256)) == parts[b"PLTE"]
        assert len(zlib.decompress(parts[b"IDAT"])) == height * (width + 1)
        with Image.open(file) as opened:
            assert opened.mode == "P"
            assert np.array_equal(np.array(opened), ids)
            colours = np.array(opened.convert("RGB"))
        assert np.array_equal(colours, np.array([official_colour(k) for k in range(21)])[ids])
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


# -- what a server would refuse ------------------------------------------------------------------


def test_good_predictions_pass(either: Predicted) -> None:
    seen: list[int] = []
    check_predictions(either.server, either.files, either.photographs, seen.append)
    assert seen == [1] * 5


def test_the_official_script_finds_each_prediction(tmp_path: Path) -> None:
    script = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    settings = copy.copy(script.args)
    settings.predictionPath, settings.predictionWalk = str(tmp_path), None
    names = ["aachen_000000_000019", "aachen_000000_000119"]
    files = [tmp_path / f"{name}_labelIds.png" for name in names]
    for file in files:
        file.touch()
    found = [script.getPrediction(settings, f"/gt/{name}_gtFine_labelIds.png") for name in names]
    assert found == [str(file) for file in files]


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
    elif way == "indexed":
        picture.putpalette([value for value in range(256) for _ in "RGB"])
    elif way == "train ids":
        ids[0, :3] = (0, 1, 255)
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
        file.write_bytes(content + bytes(8 << 20))
    elif way == "folder":
        file.unlink()
        file.mkdir()


REFUSED_BY_BOTH = [
    ("small", ".png is 12x10, its photograph 33x40"),
    ("turned", ".png is 40x33, its photograph 33x40"),
    ("jpeg", ".png: unreadable image (it is no PNG)"),
    ("empty", ".png: unreadable image (it is no PNG)"),
    ("truncated", ".png: unreadable image ("),
    ("flipped", ".png: unreadable image ("),
    ("huge", ".png: unreadable image (it has too many pixels)"),
    ("folder", ".png is no file"),
]
REFUSED = {
    "cityscapes": [
        ("train ids", ".png holds 0, 1, 255, no label id of the 19 scored classes"),
        ("colours", ".png is not of one 8-bit label id per pixel"),
        ("indexed", ".png is not of one 8-bit label id per pixel"),
        ("long", ".png has more than 8,388,608 bytes"),
    ],
    "voc": [
        ("grey", ".png is not of one 8-bit palette index per pixel"),
        ("colours", ".png is not of one 8-bit palette index per pixel"),
        ("4 bits", ".png is not of one 8-bit palette index per pixel"),
        ("void", ".png holds 255, no class id 0-20"),
        ("many", ".png holds 21, 30, 40, ..., no class id 0-20"),
        ("palette", ".png has another palette than VOC's"),
        ("long", ".png has more than 1,048,576 bytes"),
    ],
}


def test_a_file_that_the_server_would_refuse(either: Predicted) -> None:
    good, name = (
        either.files[2].read_bytes(),
        "voc" if either.server is VOC_SERVER else "cityscapes",
    )
    for way, told in REFUSED_BY_BOTH + REFUSED[name]:
        spoil(either.files[2], way)
        found = either.problems
        assert found.startswith("no submission: 1 problem: "), way
        assert f"2008_000003{'' if name == 'voc' else '_labelIds'}{told}" in found, way
        if way == "folder":
            either.files[2].rmdir()
        either.files[2].write_bytes(good)
    assert either.problems == ""


def test_what_is_missing_is_named(either: Predicted, tmp_path: Path) -> None:
    for file in (either.files[1], either.files[4]):
        file.unlink()
    broken, gone = tmp_path / "broken.jpg", tmp_path / "gone.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    either.photographs[0], either.photographs[2] = broken, gone
    found = either.problems
    assert found.startswith(f"no submission: 4 problems: {broken}: unreadable image (")
    assert f"no prediction {either.files[1].name}; {gone}: no such file (and 1 more)." in found
    assert "\n" not in found


# -- archives ------------------------------------------------------------------------------------


def test_the_archive_unpacks_to_what_the_server_reads(either: Predicted, tmp_path: Path) -> None:
    """And the same files give the same bytes, whenever and in whichever order they are packed."""
    is_voc = either.server is VOC_SERVER
    write, ending = (write_tar, ".tar.gz") if is_voc else (write_zip, ".zip")
    first, second = tmp_path / "new" / f"first{ending}", tmp_path / f"second{ending}"
    write(either.files, first)
    for file in either.files:
        os.utime(file, (1, 1))
        file.chmod(0o600)
    write(either.files[::-1], second)
    assert first.read_bytes() == second.read_bytes()
    if is_voc:
        assert first.read_bytes()[4:8] == b"\0\0\0\0"  # no time
        with tarfile.open(fileobj=io.BytesIO(first.read_bytes())) as tar:
            members = tar.getmembers()
            assert {(m.uid, m.gid, m.uname, m.mtime, m.mode) for m in members} == {
                (0, 0, "", 0, 0o644)
            }
            assert all(member.isreg() for member in members)
            assert [m.name for m in members] == [f"{FOLDER}/{name}.png" for name in NAMES]
            tar.extractall(tmp_path / "server", filter="data")
    else:
        with zipfile.ZipFile(first) as archive:
            assert archive.testzip() is None
            assert archive.namelist() == [f"{name}_labelIds.png" for name in NAMES]
            archive.extractall(tmp_path / "server")
    for file in either.files:
        there = tmp_path / "server" / (FOLDER if is_voc else "") / file.name
        assert there.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_no_half_archive_is_left(write: Any, voc: Predicted, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"zzz\.png: No such file or directory\.$"):
        write([*voc.files, tmp_path / "zzz.png"], tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*a: Is a directory"):
        write(voc.files, tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out"]


def test_the_steps_name_page_task_and_command() -> None:
    told = {
        CITYSCAPES_SERVER: ("https://www.cityscapes-dataset.com/submit", "pixel-level semantic"),
        VOC_SERVER: ("http://host.robots.ox.ac.uk:8080/", "comp6", "Tables 2 and 3"),
    }
    for server, words in told.items():
        text = server.steps.format(archive="sub.zip", run="0123abcd")
        assert "lovasz-repro runs record 0123abcd --server-scores FILE" in text
        assert all(word in text for word in (*words, "sub.zip"))
