"""Every kind of photograph becomes the same upright 8-bit RGB picture, every mask its ids.

Masks are written here byte by byte, as the PNG specification has it, not by the library that
reads them.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lovasz_repro.data.classes import (
    CAMVID,
    CAMVID_IDS,
    CITYSCAPES,
    CITYSCAPES_IDS,
    CITYSCAPES_INSTANCES,
    VOC,
    VOC_IDS,
    MaskIds,
    voc_colour,
)
from lovasz_repro.data.images import (
    by_name,
    mirror,
    photograph_size,
    read_mask,
    read_photograph,
    resize_image,
    resize_mask,
)
from lovasz_repro.errors import UserError
from tests.conftest import real_data

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "a.png", **options) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def pixels(path: Path) -> np.ndarray:
    photograph = read_photograph(path)
    assert photograph.dtype == np.uint8
    assert photograph.shape[2:] == (3,)
    return photograph


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
    with pytest.raises(UserError, match="no known range"):
        read_photograph(path)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_photograph(tmp_path / "absent.png")
    with pytest.raises(UserError, match="Is a directory"):
        read_photograph(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="Not a regular file"):
        read_photograph(tmp_path / "pipe.png")
    path = tmp_path / "a.jpg"
    for content in (b"", b"hello", b"\xff\xd8\xff"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="unreadable"):
            read_photograph(path)


def test_image_that_claims_too_many_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6\n30000 30000\n255\n")
    with pytest.raises(UserError, match="too many pixels"):
        read_photograph(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    noise = RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="unreadable"):
        read_photograph(path)


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_file_never_does_worse_than_one_line(tmp_path_factory, data) -> None:
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
        pixels(path)
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017


# ---- masks ---------------------------------------------------------------------------------------

Colours = dict[int, tuple[int, int, int]]
GREYS: Colours = {value: (value, value, value) for value in range(256)}
PASCAL: Colours = {index: voc_colour(index) for index in (*range(21), 255)}
SEGNET: Colours = dict(enumerate(CAMVID.colours)) | {11: (0, 0, 0)}
STREETS: Colours = dict(zip(CITYSCAPES.label_ids, CITYSCAPES.colours, strict=True))
STREETS |= {5: (111, 74, 0), 9: (250, 170, 160), 16: (150, 120, 90), 30: (0, 0, 110)}
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
         (1, 0, 2, 1))  # fmt: skip
"""First row, first column and steps of each pass."""


def png(
    values: np.ndarray, depth: int = 8, palette: list[tuple[int, int, int]] | None = None, *,
    interlaced: bool = False,
) -> bytes:  # fmt: skip
    """A PNG of samples (H, W): grey, or indices into a palette."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    rows = b""
    for top, left, down, right in ADAM7 if interlaced else [(0, 0, 1, 1)]:
        part = values[top::down, left::right].astype(np.uint8)
        if part.size:
            bits = np.unpackbits(part[..., None], axis=2)[..., 8 - depth :]
            packed = np.packbits(bits.reshape(len(part), -1), axis=1)
            rows += np.insert(packed, 0, 0, axis=1).tobytes()  # each row after its filter, none
    height, width = values.shape
    header = struct.pack(">IIBBBBB", width, height, depth, 3 if palette else 0, 0, 0, interlaced)
    plte = chunk(b"PLTE", bytes(c for colour in palette for c in colour)) if palette else b""
    chunks = chunk(b"IHDR", header) + plte + chunk(b"IDAT", zlib.compress(rows, 1))
    return b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b"")


def few_bits(highest: int) -> int:
    """Bits of a sample that the value fits in."""
    return next(depth for depth in (1, 2, 4, 8) if highest < 2**depth)


def optimised(labels: np.ndarray, colours: Colours) -> Iterator[bytes]:
    """The same picture as lossless optimisers store it: fewer entries, other orders, fewer bits."""
    ids, counts = np.unique(labels, return_counts=True)
    random = np.random.default_rng(len(ids)).permutation(len(ids))
    for order in (np.argsort(-counts), np.argsort([sum(colours[i]) for i in ids]), random):
        place = np.zeros(256, np.uint8)
        place[ids[order]] = np.arange(len(ids))
        palette = [colours[index] for index in ids[order]]
        for depth in {few_bits(len(ids) - 1), 8}:
            for interlaced in (False, True):
                yield png(place[labels], depth, palette, interlaced=interlaced)
    shown = np.array([colours.get(index, (0, 0, 0)) for index in range(256)], np.uint8)[labels]
    if (shown == shown[..., :1]).all():  # a picture of greys needs no palette
        grey = shown[..., 0]
        for depth, factor in ((1, 255), (2, 85), (4, 17)):
            if not (grey % factor).any():
                yield png(grey // factor, depth)


def read(content: bytes, ids: MaskIds, folder: Path) -> np.ndarray:
    (folder / "mask.png").write_bytes(content)
    return read_mask(folder / "mask.png", ids)


def refusal(content: bytes, ids: MaskIds, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(content, ids, folder)
    message = str(caught.value)
    assert message.startswith(f"{folder / 'mask.png'}: ")
    assert message.isprintable()
    assert len(message) < 300 + len(str(folder))
    return message


@settings(max_examples=30)
@given(
    which=st.sampled_from([(VOC_IDS, PASCAL), (VOC_IDS, GREYS), (CAMVID_IDS, SEGNET),
                           (CAMVID_IDS, GREYS), (CITYSCAPES_IDS, STREETS)]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_optimised_masks_are_read_alike_or_refused(tmp_path_factory, which, seed: int) -> None:
    (ids, colours), random = which, np.random.default_rng(seed)
    folder = tmp_path_factory.getbasetemp()
    known = [index for index in colours if not ids.unknown(np.array([index])).size]
    some = random.choice(known, random.integers(1, len(known) + 1), replace=False)
    labels = random.choice(some, random.integers(1, 30, 2)).astype(np.uint8)
    refused = 0
    for content in optimised(labels, colours):
        try:
            assert np.array_equal(read(content, ids, folder), labels)
        except UserError:
            refused += 1
    black = len(np.unique(labels)) == 1  # it may be the colour of one id, and the value of another
    few = set(np.unique(labels)) <= {0, 17, 255}  # in 4 bits, they may be 0, 1 and 15
    assert not refused or black or few


@pytest.mark.parametrize(
    ("count", "folder"), [(10, "voc/VOC2012/SegmentationClassAug"), (3, "camvid/trainannot")]
)
def test_optimised_real_masks_are_read_alike(tmp_path: Path, count: int, folder: str) -> None:
    files = sorted(real_data(folder).glob("*.png"))
    ids, colours = (VOC_IDS, PASCAL) if count == 10 else (CAMVID_IDS, GREYS)
    for file in files[:: len(files) // count][:count]:
        with Image.open(file) as image:
            labels = np.asarray(image)
        assert np.array_equal(read_mask(file, ids), labels)
        for content in optimised(labels, colours):
            assert np.array_equal(read(content, ids, tmp_path), labels), file


@pytest.mark.parametrize(("values", "ids", "meant"), [
    ([0, 3, 10, 11], CAMVID_IDS, [0, 3, 10, 11]),  # white would be 255
    ([0, 1], CAMVID_IDS, [0, 1]),
    ([1, 2, 15], VOC_IDS, [1, 2, 15]),  # 34 is no class
    ([7, 8, 11], CITYSCAPES_IDS, [7, 8, 11]),
    ([1, 15], VOC_IDS, None),  # or 17 and void
    ([0, 1], CITYSCAPES_IDS, None),  # or a pole, at 17
    ([0, 0], VOC_IDS, [0, 0]),
])  # fmt: skip
def test_grey_of_4_bits_is_never_stretched(tmp_path: Path, values, ids, meant) -> None:
    content = png(np.array([values]), 4)
    if meant is None:
        assert "two different" in refusal(content, ids, tmp_path)
    else:
        assert read(content, ids, tmp_path).tolist() == [meant]


def test_grey_of_1_bit(tmp_path: Path) -> None:
    assert read(png(np.zeros((2, 9)), 1), VOC_IDS, tmp_path).tolist() == [[0] * 9] * 2
    assert read(png(np.array([[0, 1]]), 1), CAMVID_IDS, tmp_path).tolist() == [[0, 1]]
    assert "two different" in refusal(png(np.array([[0, 1]]), 1), VOC_IDS, tmp_path)


def test_ids_beyond_a_palette_in_order_are_void(tmp_path: Path) -> None:
    """As programs write it that give the classes their colours, and void none."""
    labels = np.array([[0, 20, 255]])
    for palette in (list(VOC.colours), [*VOC.colours, *[(0, 0, 0)] * 235]):
        assert np.array_equal(read(png(labels, 8, palette), VOC_IDS, tmp_path), labels)


@pytest.mark.parametrize("ids", [VOC_IDS, CAMVID_IDS, CITYSCAPES_IDS], ids=lambda ids: ids.dataset)
@pytest.mark.parametrize("palette", [
    [(1, 2, 3), (4, 5, 6), (7, 8, 9)],
    [(128, 64, 128)] * 3,
    [(200, 200, 200), (0, 0, 0), (100, 100, 100)],
    [(128, 64, 128), (0, 0, 0)],
])  # fmt: skip
def test_palettes_that_fit_nothing_are_refused(tmp_path: Path, ids: MaskIds, palette) -> None:
    message = refusal(png(np.array([[0, 1, 2]]), 8, palette), ids, tmp_path)
    assert "neither its colours nor its grey values" in message


def test_a_black_picture_may_be_sky_or_void(tmp_path: Path) -> None:
    assert "two different" in refusal(png(np.zeros((2, 2)), 8, [(0, 0, 0)]), CAMVID_IDS, tmp_path)


def test_a_group_of_poles_and_black_void_are_as_good_as_lost(tmp_path: Path) -> None:
    palette = [(153, 153, 153), (0, 0, 0), (128, 64, 128)]
    content = png(np.array([[2, 0, 1]]), 8, palette)
    assert read(content, CITYSCAPES_IDS, tmp_path).tolist() == [[7, 17, 0]]


def test_colours_of_every_official_label_id() -> None:
    helpers = pytest.importorskip("cityscapesscripts.helpers.labels")
    assert CITYSCAPES_IDS.colours == tuple(x.color for x in helpers.labels if x.id >= 0)


def test_instances_have_16_bits_or_their_greys(tmp_path: Path) -> None:
    instances = np.array([[0, 33, 26001, 33999]], np.uint16)
    path = saved(tmp_path, Image.fromarray(instances))
    assert np.array_equal(read_mask(path, CITYSCAPES_INSTANCES), instances)
    content = png(np.array([[1, 0, 0]]), 1, [(7, 7, 7), (33, 33, 33)])
    assert read(content, CITYSCAPES_INSTANCES, tmp_path).tolist() == [[33, 7, 7]]
    for wrong in (34, 999, 34000):
        path = saved(tmp_path, Image.fromarray(np.array([[wrong]], np.uint16)))
        with pytest.raises(UserError, match=f"instance id {wrong}; Cityscapes has classes 0-33"):
            read_mask(path, CITYSCAPES_INSTANCES)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
def test_more_than_an_id_a_pixel_is_no_mask(tmp_path: Path, mode: str) -> None:
    content = saved(tmp_path, Image.new(mode, (4, 3))).read_bytes()
    assert "not a mask of one 8-bit class id" in refusal(content, VOC_IDS, tmp_path)


@pytest.mark.parametrize("name", ["a.jpg", "a.gif", "a.tif", "a.bmp", "a.webp"])
def test_other_formats_are_no_masks(tmp_path: Path, name: str) -> None:
    """JPEG makes up ids between two; the others have no single meaning of a palette."""
    content = saved(tmp_path, Image.new("L", (8, 8), 15), name).read_bytes()
    assert "no PNG" in refusal(content, VOC_IDS, tmp_path)


def test_damaged_masks_are_refused(tmp_path: Path) -> None:
    noise = RANDOM.integers(0, 21, (40, 40))
    whole = png(noise)
    for content in (b"", b"hello", whole[: len(whole) // 2], whole[:30]):
        assert "unreadable image" in refusal(content, VOC_IDS, tmp_path)
    frames = [Image.new("L", (4, 4), value) for value in (1, 2)]
    path = saved(tmp_path, frames[0], save_all=True, append_images=frames[1:])
    assert "animation" in refusal(path.read_bytes(), VOC_IDS, tmp_path)


def test_mask_and_photograph_are_turned_upright_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    labels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    path = saved(tmp_path, Image.fromarray(np.rot90(labels, 1).copy()), exif=exif)
    assert np.array_equal(read_mask(path, VOC_IDS), labels)
    assert photograph_size(path) == read_photograph(path).shape[:2] == (2, 3)
    path = saved(tmp_path, Image.fromarray(np.rot90(RGB, 1).copy()), "a.jpg", exif=exif)
    assert photograph_size(path) == read_photograph(path).shape[:2] == RGB.shape[:2]


# ---- names ---------------------------------------------------------------------------------------


def test_images_by_name_are_those_that_people_see() -> None:
    names = ("b.JPG", "a.jpg", "._a.jpg", ".DS_Store", ".c.png", "Thumbs.db", "d.jpeg", "notes")
    files = [Path("f", name) for name in names]
    found = by_name(files, (".png", ".jpg", ".jpeg"))
    assert found == {"a": Path("f/a.jpg"), "b": Path("f/b.JPG"), "d": Path("f/d.jpeg")}
    with pytest.raises(UserError, match=r"f/a\.png: f/a\.jpg has the same name"):
        by_name([*files, Path("f/a.png")], (".png", ".jpg"))


# ---- sizes ---------------------------------------------------------------------------------------

sides = st.integers(1, 40)


@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=st.integers(0, 99))
def test_a_resized_mask_invents_no_id(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    ids = np.array([0, 3, 10, 11, 255], dtype=np.uint8)
    mask = np.random.default_rng(seed).choice(ids, size=(height, width))
    resized = resize_mask(mask, (new_height, new_width))
    assert resized.shape == (new_height, new_width)
    assert set(np.unique(resized)) <= set(np.unique(mask))


@given(height=st.integers(4, 30), width=st.integers(4, 30), factor=st.integers(1, 4))
def test_image_and_mask_stay_aligned(height: int, width: int, factor: int) -> None:
    """Each pixel's column, written into both, is the same in both after shrinking."""
    columns = np.broadcast_to(np.arange(width * factor, dtype=np.uint8), (height, width * factor))
    image = np.repeat(columns[..., None], 3, axis=2).copy()
    small_image = resize_image(image, (height, width)).astype(int)[..., 0]
    small_mask = resize_mask(columns.copy(), (height, width)).astype(int)
    assert np.abs(small_image - small_mask).max() <= factor
    assert (np.diff(small_mask, axis=1) >= 0).all()


def test_a_fitting_size_is_not_resampled() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    assert resize_image(image, (8, 12)) is image


def test_mirror_flips_both() -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    mask = np.arange(8, dtype=np.uint8).reshape(2, 4)
    flipped_image, flipped_mask = mirror(image, mask)
    assert flipped_image[0, 0].tolist() == image[0, 3].tolist()
    assert flipped_mask.tolist() == [[3, 2, 1, 0], [7, 6, 5, 4]]
