"""Every kind of photograph becomes the same upright 8-bit RGB picture."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lovasz_repro.evaluation.photo import read_photo

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    photo = read_photo(path)
    assert photo.mode == "RGB"
    return np.asarray(photo)


def test_rgb_comes_back_exactly(tmp_path: Path) -> None:
    assert np.array_equal(pixels(saved(tmp_path, Image.fromarray(RGB))), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path: Path, orientation: int) -> None:
    # How the file stores an upright picture, by the EXIF specification's eight cases.
    stored = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, 1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored))
    assert np.array_equal(pixels(saved(tmp_path, image, exif=exif)), RGB)


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_greyscale_becomes_three_equal_channels(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    expected = np.asarray(image.convert("L"))
    for channel in np.moveaxis(pixels(saved(tmp_path, image)), 2, 0):
        assert np.array_equal(channel, expected)


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257, 32_896, 65_535, 128, 129]], dtype=np.uint16)
    result = pixels(saved(tmp_path, Image.fromarray(values)))
    assert result[0, :, 0].tolist() == [0, 1, 128, 255, 0, 1]  # nearest of value / 257
    assert (result == result[..., :1]).all()


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    alpha = np.array([[0, 255, 51]], dtype=np.uint8)
    colour = np.full((1, 3, 3), (10, 200, 0), dtype=np.uint8)
    result = pixels(saved(tmp_path, Image.fromarray(np.dstack([colour, alpha]))))
    assert result[0].tolist() == [[255, 255, 255], [10, 200, 0], [206, 244, 204]]


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([1, 2, 3, 40, 50, 60])
    opaque, path = saved(tmp_path, image, "b.png"), saved(tmp_path, image, transparency=0)
    assert pixels(opaque)[0].tolist() == [[1, 2, 3], [40, 50, 60]]
    assert pixels(path)[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = np.zeros((16, 16, 4), np.uint8)
    flat[..., 0] = 255  # full cyan: no red
    path = saved(tmp_path, Image.fromarray(flat, "CMYK"), "a.jpg", quality=100)
    assert np.abs(pixels(path).astype(int) - (0, 255, 255)).max() <= 3


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (pixels(path) == (255, 0, 0)).all()


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_32_bits_are_refused(tmp_path: Path, dtype: str) -> None:
    path = saved(tmp_path, Image.fromarray(np.zeros((2, 2), dtype)), "a.tif")
    with pytest.raises(ValueError, match="32-bit pixels"):
        read_photo(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_photo(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="is a directory"):
        read_photo(tmp_path)
    path = tmp_path / "a.jpg"
    for content in (b"", b"hello", b"\xff\xd8\xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="read"):
            read_photo(path)


def test_image_that_claims_too_many_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6\n30000 30000\n255\n")
    with pytest.raises(ValueError, match="too many pixels"):
        read_photo(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    noise = RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="read"):
        read_photo(path)


@settings(max_examples=80)
@given(data=st.data())
def test_damaged_file_never_does_worse_than_a_value_error(tmp_path_factory, data) -> None:
    folder = tmp_path_factory.getbasetemp()
    name = data.draw(st.sampled_from(["a.png", "a.jpg", "a.tif", "a.gif", "a.webp"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if name == "a.gif" else {"exif": exif}
    path = saved(folder, Image.fromarray(RGB), name, **options)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        assert read_photo(path).mode == "RGB"
    except ValueError as error:
        assert str(error).isprintable()  # noqa: PT017
