"""Masks of one's own: the list of classes, and every way in which files show them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.data.classes import voc_colour
from lovasz_repro.data.own_files import (
    OWN_VOID,
    OwnClasses,
    decode_mask,
    folder_palette,
    read_classes,
    read_own_mask,
)
from lovasz_repro.errors import UserError

LABELS = np.random.default_rng(3).choice(np.array([0, 1, 2, OWN_VOID], np.uint8), (9, 14))
NAMES = ("sound", "crack", "rust")
GREYS = OwnClasses(NAMES, ((0, 0, 0), (1, 1, 1), (2, 2, 2)), ((255, 255, 255),))
FAR = OwnClasses(NAMES, ((7, 7, 7), (255, 255, 255), (0, 0, 0)), ((3, 3, 3),))
COLOURS = OwnClasses(NAMES, ((0, 0, 0), (200, 30, 0), (0, 30, 200)), ((255, 255, 255),))
VOC_PALETTE = [value for index in range(256) for value in voc_colour(index)]


def values(classes: OwnClasses) -> np.ndarray:
    """The picture of ``LABELS``, (H, W, 3)."""
    table = np.zeros((256, 3), np.uint8)
    table[:3], table[OWN_VOID] = classes.values, classes.ignore[0]
    return table[LABELS]


def palette_of(image: Image.Image, entries: list[int]) -> Image.Image:
    image.putpalette(entries)
    return image


def renumbered(classes: OwnClasses) -> Image.Image:
    """The same picture with a palette in an order of its own."""
    return Image.fromarray(values(classes)).quantize(colors=4, dither=Image.Dither.NONE)


@pytest.mark.parametrize(
    ("classes", "draw", "ending"),
    [
        (GREYS, lambda: Image.fromarray(LABELS), "png"),
        (FAR, lambda: Image.fromarray(values(FAR)[..., 0]), "png"),
        (FAR, lambda: Image.fromarray(values(FAR)[..., 0]), "tif"),
        (FAR, lambda: Image.fromarray(values(FAR)[..., 0].astype(np.uint16)), "png"),
        (FAR, lambda: Image.fromarray(values(FAR)), "png"),
        (COLOURS, lambda: Image.fromarray(values(COLOURS)), "png"),
        (COLOURS, lambda: Image.fromarray(values(COLOURS)), "tiff"),
        (COLOURS, lambda: Image.fromarray(values(COLOURS)).convert("RGBA"), "png"),
        (COLOURS, lambda: renumbered(COLOURS), "png"),
        (FAR, lambda: renumbered(FAR), "png"),
    ],
)
def test_every_way_to_show_labels(
    classes: OwnClasses, draw: Callable[[], Image.Image], ending: str, tmp_path: Path
) -> None:
    draw().save(tmp_path / f"mask.{ending}")
    assert np.array_equal(read_own_mask(tmp_path / f"mask.{ending}", classes), LABELS)


def test_a_palette_is_read_by_the_colours_of_the_folder(tmp_path: Path) -> None:
    first, other = tmp_path / "first.png", tmp_path / "other.png"
    palette_of(Image.fromarray(LABELS), VOC_PALETTE).save(first)
    shown = palette_of(Image.fromarray(LABELS), VOC_PALETTE).convert("RGB")
    shown.quantize(colors=4, dither=Image.Dither.NONE).save(other)
    assert not np.array_equal(np.asarray(Image.open(other)), LABELS)
    classes = folder_palette(decode_mask(first), GREYS)
    assert np.array_equal(read_own_mask(first, classes), LABELS)
    assert np.array_equal(read_own_mask(other, classes), LABELS)
    with pytest.raises(UserError, match=r"128, 0, 0.*no class"):
        read_own_mask(first, GREYS)


def test_one_bit_is_read_as_0_and_1_or_as_black_and_white(tmp_path: Path) -> None:
    truth = LABELS == 1
    Image.fromarray(truth).save(tmp_path / "mask.png")
    for white in (1, 255):
        classes = OwnClasses(("sound", "crack"), ((0, 0, 0), (white,) * 3))
        assert np.array_equal(read_own_mask(tmp_path / "mask.png", classes), truth)
    both = OwnClasses(("a", "b", "c"), ((0, 0, 0), (1, 1, 1), (255, 255, 255)))
    with pytest.raises(UserError, match="two classes"):
        read_own_mask(tmp_path / "mask.png", both)


def jpeg(path: Path) -> None:
    Image.fromarray((LABELS == 1).astype(np.uint8) * 255).save(path, "JPEG", quality=60)


def twice_the_colour(path: Path) -> None:
    palette_of(Image.fromarray(LABELS), [9] * 768).save(path, "PNG")


def several(path: Path) -> None:
    one = Image.fromarray(LABELS)
    one.save(path, "TIFF", save_all=True, append_images=[one])


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (jpeg, "JPEG.*PNG"),
        (twice_the_colour, "one colour for several"),
        (several, "several pictures"),
        (lambda p: Image.fromarray(LABELS.astype(np.float32)).save(p, "TIFF"), "neither grey"),
        (lambda p: Image.fromarray(LABELS.astype(np.uint16) * 9).save(p, "PNG"), "8 bits"),
        (lambda p: Image.new("RGBA", (4, 4)).save(p, "PNG"), "transparent"),
        (lambda p: Image.fromarray(LABELS + 7).save(p, "PNG"), "value 6; 7; 8.*no class.*ignore"),
        (lambda p: p.write_bytes(b"GIF89a"), "unreadable"),
        (lambda p: Image.fromarray(LABELS).save(p, "GIF"), "unreadable"),
        (lambda p: p.mkdir(), "unreadable"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    write: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    write(tmp_path / "mask")
    classes = OwnClasses(NAMES[:2], ((0, 0, 0), (255, 255, 255)))
    with pytest.raises(UserError, match=told) as caught:
        read_own_mask(tmp_path / "mask", classes)
    assert str(caught.value).startswith(str(tmp_path / "mask"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "values", "ignore"),
    [
        ("classes.txt", "sound\ncrack\n", [(0, 0, 0), (1, 1, 1)], ()),
        ("classes.txt", "# my\nsound:7\n\ncrack : 255\nvoid: 3", [(7,) * 3, (255,) * 3],
         ((3,) * 3,)),
        ("classes.txt", "sound\ncrack\nvoid: 3\nignore: 9, 8, 7", [(0,) * 3, (1,) * 3],
         ((3,) * 3, (9, 8, 7))),
        ("classes.txt", "sound: 1,2,3\ncrack: 4, 5, 6\n", [(1, 2, 3), (4, 5, 6)], ()),
        ("classes.yaml", "classes: [sound, crack]\nignore_index: 255", [(0,) * 3, (1,) * 3],
         ((255,) * 3,)),
        ("classes.yml", "classes: {sound: 4, crack: [9, 8, 7]}", [(4,) * 3, (9, 8, 7)], ()),
    ],
)  # fmt: skip
def test_lists_of_classes(
    tmp_path: Path, name: str, text: str, values: list[object], ignore: object
) -> None:
    (tmp_path / name).write_text(text)
    found = read_classes(tmp_path)
    assert found
    assert (found.names, [*found.values], found.ignore) == (("sound", "crack"), values, ignore)
    (tmp_path / name).unlink()
    (tmp_path / "classes.txt").write_text("\n".join(found.lines()))
    assert read_classes(tmp_path) == found


def test_a_class_of_several_values(tmp_path: Path) -> None:
    """One class against the rest: the others share a name."""
    (tmp_path / "classes.txt").write_text("rest\ncrack\nrest: 2\nrest: 9, 8, 7\nrust\nignore: 5\n")
    found = read_classes(tmp_path)
    assert found
    Image.fromarray(np.array([[0, 1, 2, 4, 5]], np.uint8)).save(tmp_path / "grey.png")
    assert read_own_mask(tmp_path / "grey.png", found).tolist() == [[0, 1, 0, 2, OWN_VOID]]
    coloured = np.array([[[1, 1, 1], [9, 8, 7], [2, 2, 2]]], np.uint8)
    Image.fromarray(coloured).save(tmp_path / "coloured.png")
    assert read_own_mask(tmp_path / "coloured.png", found).tolist() == [[1, 0, 0]]
    (tmp_path / "classes.txt").write_text("\n".join(found.lines()))
    assert read_classes(tmp_path) == found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sound\n", "listed: 1"),
        ("sound\ncrack\nsound: 1\n", "value 1"),
        ("sound\nsound\n", "name sound"),
        ("sound: 1\ncrack: 1\n", "value 1"),
        ("sound\ncrack\nignore: 1\n", "value 1"),
        ("sound\nignore\n", "ignore needs a value"),
        ("sound: 256\ncrack\n", "'256'"),
        ("sound: 1, 2\ncrack\n", "1, 2"),
        ("sound: -1\ncrack\n", "-1"),
        ("sound: red\ncrack\n", "red"),
        ("so/und\ncrack\n", "so/und"),
        ("\x1b[31m\ncrack\n", "letters"),
        ("x" * 70 + "\ncrack\n", "60"),
    ],
)
def test_lists_that_cannot_be_understood(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=told) as caught:
        read_classes(tmp_path)
    assert "classes.txt" in str(caught.value)


def test_two_lists_are_one_too_many(tmp_path: Path) -> None:
    for name in ("classes.txt", "classes.yaml"):
        (tmp_path / name).write_text("classes: [a, b]")
    with pytest.raises(UserError, match="remove one"):
        read_classes(tmp_path)
