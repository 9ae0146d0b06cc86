"""Image files: a photograph as upright 8-bit RGB, a mask as ids, or a line about the file.

What a program that stores pictures may change without changing a picture changes nothing here:
the order of a palette, grey for a palette, fewer bits, interlacing. A file that can be understood
in two ways is refused.
"""

import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from lovasz_repro.data.classes import MaskIds
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import open_regular

PNG_HEADER = struct.Struct(">8s4x4sIIBB")
"""Signature, chunk type, width, height, bit depth, colour type."""
GREYSCALE, INDEXED = 0, 3
"""Colour types of a PNG."""
GREYS = bytes(value for value in range(256) for _ in "RGB")
GREY_VALUES: dict[tuple[int, ...], int] = {(v, v, v): v for v in range(256)}
NO_ID = 254  # in no data set
SHOWN = 5
"""Ids, names or files that are named one by one; of more, the first and how many there are."""


class ImagePair(NamedTuple):
    """A photograph and its mask, there or not."""

    name: str
    """Like ``2007_000032``."""
    image: Path
    mask: Path


@contextmanager
def opened(file: Path, formats: list[str] | None = None) -> Iterator[ImageFile]:
    """An image file, of these formats or any; its first frame where there are several.

    Raises:
        UserError: missing, or (also inside the ``with``) damaged, too large or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, harmless here
            with open_regular(file) as content, Image.open(content, formats=formats) as image:
                yield image
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.") from None
    except UnidentifiedImageError:
        what = " or ".join(formats or ["image"])
        raise UserError(f"{file}: unreadable image (it is no {what}); replace it.") from None
    except Image.DecompressionBombError:
        raise UserError(f"{file}: unreadable image (it has too many pixels).") from None
    except Exception as error:  # damaged files make decoders raise almost anything
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        problem = " ".join(problem.split()) or type(error).__name__
        raise UserError(f"{file}: unreadable image ({problem[:200]}); replace it.") from None


def read_photograph(file: Path) -> np.ndarray:
    """RGB (H, W, 3) uint8, upright by the orientation that the file notes.

    Greyscale becomes three equal channels, 16 bits are scaled to 8, CMYK and palettes are
    converted, transparency is laid over white.

    Raises:
        UserError: as ``opened``, or pixels whose range is not known, as of 32 bits.
    """
    with opened(file) as image:
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I", "F"):
            raise UserError(
                f"{file}: no known range of its pixels; save it as PNG of 8 or 16 bits."
            )
        return np.asarray(to_rgb(image))


def to_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB of 8 or 16 bits a channel."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) * (255 / 65535)
        image = Image.fromarray(values.round().astype(np.uint8))
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured)
    return image if image.mode == "RGB" else image.convert("RGB")


def photograph_size(file: Path) -> tuple[int, int]:
    """Height and width of an upright photograph, by its header alone.

    Raises:
        UserError: as ``opened``.
    """
    with opened(file) as image:
        # The method of PNG files would decode all of it for a note that may follow the pixels
        turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size if turned else image.size[::-1]


def read_mask(file: Path, ids: MaskIds) -> np.ndarray:
    """The ids of a mask, (H, W) uint8; of instances, (H, W) int32.

    Args:
        file: a PNG whose grey values are the ids, or whose palette shows them: in the colours of
            the data set, or as grey values. With any other palette nobody knows what is what.
        ids: of the data set.

    Raises:
        UserError: as ``opened``, not one id per pixel, an id that there is not, or a palette or
            grey values of few bits that do not say which ids are meant.
    """
    with opened(file, ["PNG"]) as image:
        depth, colour_type = png_form(image)
        palette = bytes(image.palette.palette) if image.palette else b""
        if getattr(image, "is_animated", False):
            raise UserError(f"{file}: an animation, not a mask.")
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(image.convert("L") if image.mode == "1" else image)
    types = (np.uint8, np.uint16, np.int32) if ids.instances else (np.uint8,)
    if pixels.ndim != 2 or pixels.dtype not in types:
        bits = 16 if ids.instances else 8
        raise UserError(f"{file}: not a mask of one {bits}-bit {ids.kind} per pixel.")
    readings = [pixels]
    if colour_type == INDEXED and not shows_its_ids(palette, ids):
        readings = by_palette(pixels, palette, ids)
    elif colour_type == GREYSCALE and depth < 8:
        readings.append(pixels // (255 // (2**depth - 1)))  # decoders stretch them to 0-255
    known = [reading for reading in readings if not ids.unknown(reading).size]
    if not known and len(readings) == 1:
        check_known(file, pixels, ids)
    if not known:
        raise UserError(f"{file}: neither its colours nor its grey values are those of the "
                        f"{ids.kind}s of {ids.dataset}.")  # fmt: skip
    if len(known) > 1 and not np.array_equal(known[0], known[1]):
        raise UserError(f"{file}: its pixels may mean two different {ids.kind}s each; save it in "
                        "grey of 8 bits.")  # fmt: skip
    return known[0].astype(np.int32) if ids.instances else known[0]


def shows_its_ids(palette: bytes, ids: MaskIds) -> bool:
    """Whether a palette has the colours of the ids, or the greys of their values, in order."""
    entries = palette[: 3 * (ids.highest + 1)]
    in_colour = len(entries) >= 3 and ids.palette.startswith(entries)
    return in_colour or (len(entries) > 3 and GREYS.startswith(entries))


def by_palette(indices: np.ndarray, palette: bytes, ids: MaskIds) -> list[np.ndarray]:
    """What indices (H, W) into a palette may mean: ids by their colours, ids as grey values.

    Nothing where two indices have one colour: then the picture does not show what they say.
    """
    content, used = indices.tobytes(), []
    rest = content
    while rest:  # several times as fast as to count them
        used.append(rest[0])
        rest = rest.translate(None, rest[:1])
    colours: list[tuple[int, ...]] = [tuple(palette[3 * i : 3 * i + 3]) for i in used]
    if len({*colours}) < len(colours):
        return []
    readings = []
    for known in (ids.of_colour, GREY_VALUES):
        meant = np.full(256, NO_ID, np.uint8)
        meant[used] = [known.get(colour, NO_ID) for colour in colours]
        if not ids.unknown(meant[used]).size:
            read = np.frombuffer(content.translate(meant.tobytes()), np.uint8)
            readings.append(read.reshape(indices.shape))
    return readings


def png_form(image: ImageFile) -> tuple[int, int]:
    """Bit depth and colour type of a PNG that is open and not decoded yet."""
    assert image.fp is not None
    place = image.fp.tell()
    image.fp.seek(0)
    *_, depth, colour_type = PNG_HEADER.unpack(image.fp.read(PNG_HEADER.size))
    image.fp.seek(place)
    return depth, colour_type


def check_known(file: Path, labels: np.ndarray, ids: MaskIds) -> None:
    """Raise UserError if an id of a mask (H, W) is none, naming the first few."""
    if (wrong := ids.unknown(labels)).size:
        values = np.unique(wrong)
        shown = ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
        raise UserError(f"{file}: {ids.kind} {shown}; {ids}.")


def check_same_size(mask: Path, labels: np.ndarray, photograph: np.ndarray) -> None:
    """Raise UserError unless a mask has the size of its photograph."""
    if labels.shape != photograph.shape[:2]:
        raise UserError(f"{mask}: {labels.shape[0]}x{labels.shape[1]}, its photograph is "
                        f"{photograph.shape[0]}x{photograph.shape[1]}.")  # fmt: skip


def by_name(files: Iterable[Path], endings: tuple[str, ...]) -> dict[str, Path]:
    """Name without ending -> file, sorted by path, of those that have one of the endings.

    Upper and lower case of an ending are one; hidden files, such as the ``._*`` that macOS leaves
    beside others, are no images.

    Raises:
        UserError: two files of one name.
    """
    named: dict[str, Path] = {}
    for file in sorted(files):
        ending = next((e for e in endings if file.name.lower().endswith(e.lower())), None)
        if ending is None or file.name.startswith("."):
            continue
        name = file.name[: -len(ending)]
        if (other := named.setdefault(name, file)) is not file:
            raise UserError(f"{file}: {other} has the same name; remove one of the two.")
    return named


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an RGB image (H, W, 3) uint8 to ``size`` = (height, width), bilinear.

    Pillow widens the bilinear kernel when it shrinks, so nothing aliases. An image that already
    has the size is returned as it is.
    """
    return _resize(image, size, Image.Resampling.BILINEAR)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a label mask (H, W) uint8 to ``size`` = (height, width), nearest: no new ids."""
    return _resize(mask, size, Image.Resampling.NEAREST)


def mirror(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flip an image (H, W, 3) and its mask (H, W) left to right."""
    return image[:, ::-1], mask[:, ::-1]


def _resize(pixels: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    height, width = size
    if pixels.shape[:2] == (height, width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))
