"""Cached probabilities: what comes back, and which files are refused."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.probabilities import (
    decode,
    encode,
    png_file,
    read_probabilities,
    write_probabilities,
)

NAME = "2007_000033"
STEP = np.log(1e5) / 255  # 255 steps from p = 1 to 1e-5


def random_probabilities(
    seed: int, shape: tuple[int, int, int] = (5, 9, 12), spread: float = 3
) -> np.ndarray:
    exponentials = np.exp(np.random.default_rng(seed).normal(0, spread, shape))
    return (exponentials / exponentials.sum(0)).astype(np.float32)


def energies(probabilities: np.ndarray) -> np.ndarray:
    return -np.log(np.maximum(probabilities.astype(np.float64), 1e-5))


@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 0.01, 0.1, 1, 5, 30]), st.sampled_from([1, 2, 7])
)
def test_the_arg_max_comes_back_and_energies_within_the_bound(
    seed: int, spread: float, classes: int
) -> None:
    probabilities = random_probabilities(seed, (classes, 6, 7), spread)
    found = decode(encode(probabilities))
    np.testing.assert_array_equal(found.argmax(0), probabilities.argmax(0))
    error = np.abs(energies(found) - energies(probabilities))
    best = np.sort(energies(probabilities), 0)[0]
    near = energies(probabilities) - best <= STEP  # may have tied with the first
    assert error.max() <= 1.5 * STEP + 1e-5
    assert error[~near].max(initial=0) <= STEP / 2 + 1e-5
    first = np.take_along_axis(error, probabilities.argmax(0)[None], 0)
    assert first.max() <= STEP / 2 + 1e-5


def test_extreme_probabilities_come_back() -> None:
    """All in one class, exact ties (the first wins), values that sum to less or a bit more."""
    probabilities = np.array(
        [[1, 0.5, 0.25, 0, 1e-9, 1.000001], [0, 0.5, 0.25, 0, 1e-8, 0], [0, 0, 0.25, 0, 1e-9, 0]],
        dtype=np.float32,
    )[:, None]
    found = decode(encode(probabilities))
    np.testing.assert_array_equal(found.argmax(0), probabilities.argmax(0))
    assert np.abs(energies(found) - energies(probabilities)).max() <= 1.5 * STEP
    np.testing.assert_allclose(found[:, 0, 0], [1, 1e-5, 1e-5], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_file_holds_what_was_written(tmp_path: Path, dtype: type) -> None:
    probabilities = random_probabilities(1, (21, 30, 40)).astype(dtype)
    file = png_file(tmp_path, NAME)
    write_probabilities(file, NAME, probabilities[:, ::-1])
    found = read_probabilities(file, NAME)
    assert file.name == f"{NAME}.png"
    assert (found.shape, found.dtype) == ((21, 30, 40), np.float32)
    np.testing.assert_array_equal(found, decode(encode(probabilities[:, ::-1])))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("classes", [1, 256])
def test_one_class_and_the_most(tmp_path: Path, classes: int) -> None:
    write_probabilities(tmp_path / "p.png", NAME, random_probabilities(2, (classes, 1, 1)))
    assert read_probabilities(tmp_path / "p.png", NAME).shape == (classes, 1, 1)


def test_predictions_take_a_fraction_of_their_pixels(tmp_path: Path) -> None:
    """Smooth maps, most of them almost nothing, as networks predict them."""
    rows, columns = np.mgrid[:100, :120]
    logits = np.full((21, 100, 120), -6.0)
    logits[0] = 3
    logits[7] = 9 - np.hypot(rows - 50, columns - 60) / 5
    exponentials = np.exp(logits)
    write_probabilities(tmp_path / "p.png", NAME, exponentials / exponentials.sum(0))
    assert (tmp_path / "p.png").stat().st_size < 21 * 100 * 120 / 10


@pytest.mark.parametrize(
    "probabilities",
    [
        np.zeros((4, 5), np.float32),
        np.zeros((2, 0, 5), np.float32),
        np.zeros((257, 1, 1), np.float32),
        np.zeros((2, 4, 5), np.uint8),
        np.full((2, 4, 5), np.nan, np.float32),
        np.full((2, 4, 5), 1.1, np.float32),
        np.full((2, 4, 5), -0.1, np.float32),
        np.full((2, 4, 5), np.inf, np.float32),
    ],
)
def test_what_is_no_prediction_is_not_written(tmp_path: Path, probabilities: np.ndarray) -> None:
    with pytest.raises(ValueError, match="probabilities"):
        write_probabilities(tmp_path / "p.png", NAME, probabilities)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["", ".", "../2007", "a/b", "/etc/passwd"])
def test_a_name_does_not_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain name"):
        png_file(tmp_path, name)


def test_a_disk_that_refuses_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"cannot write .*No such file"):
        write_probabilities(tmp_path / "gone" / "p.png", NAME, random_probabilities(0))


def refused(file: Path, content: bytes) -> str:
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_probabilities(file, NAME)
    message = str(caught.value)
    assert "\n" not in message
    assert str(file) in message
    return message


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    write_probabilities(file, NAME, random_probabilities(3))
    whole = file.read_bytes()
    for content in (
        b"",
        b"PK\x03\x04",
        whole[:8],
        whole[:40],
        whole[:-200],
        whole[:-12],
        b"\0" + whole[1:],
    ):
        assert f"predict {NAME} again" in refused(file, content)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x10
    refused(file, bytes(flipped))
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        read_probabilities(file, NAME)


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.png"
    write_probabilities(file, "2007_000034", random_probabilities(3))
    assert "those of '2007_000034'" in refused(file, file.read_bytes())
    cases = [
        ("L", None, "a file of something else"),
        ("L", "[]", "a file of something else"),
        ("L", "{", "not the probabilities"),
        ("L", json.dumps({"name": NAME, "classes": "2"}), "a file of something else"),
        ("L", json.dumps({"name": NAME, "classes": 0}), "0 classes"),
        ("L", json.dumps({"name": NAME, "classes": 5}), "6 rows of mode L for 5 classes"),
        ("L", json.dumps({"name": NAME, "classes": 10**6}), "1000000 classes"),
        ("RGB", json.dumps({"name": NAME, "classes": 2}), "mode RGB"),
        ("L", json.dumps({"name": NAME}), "a file of something else"),
    ]
    for mode, note, expected in cases:
        text = PngInfo()
        if note is not None:
            text.add_text("lovasz-repro", note)
        Image.new(mode, (4, 6)).save(file, "PNG", pnginfo=text)
        assert expected in refused(file, file.read_bytes())
    Image.new("L", (4, 6)).save(tmp_path / "p.gif", "GIF")
    refused(file, (tmp_path / "p.gif").read_bytes())


def test_a_small_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    """Before memory is taken for it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    note = json.dumps({"name": NAME, "classes": 2}).encode()
    content = b"\x89PNG\r\n\x1a\n"
    content += chunk(b"IHDR", struct.pack(">IIBBBBB", 2**30, 2**30, 8, 0, 0, 0, 0))
    content += chunk(b"tEXt", b"lovasz-repro\0" + note)
    content += chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    assert "decompression bomb" in refused(tmp_path / "p.png", content)
