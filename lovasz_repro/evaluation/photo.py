"""Photographs as a network wants them: upright, 8-bit RGB, whatever the file holds."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def read_photo(path: Path) -> Image.Image:
    """The image in a file, turned upright by its EXIF orientation, in mode RGB.

    Greyscale becomes three equal channels, 16 bits are scaled to 8, CMYK and palettes are
    converted, transparency is laid over white. Of several frames the first is read.

    Raises ValueError saying what is wrong with the file, without its name.
    """
    if path.is_dir():
        raise ValueError("is a directory")
    if not path.exists():
        raise ValueError("no such file")
    if not path.is_file():  # a pipe would be waited for
        raise ValueError("is no regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, harmless here
            with Image.open(path) as image:
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ValueError("is not an image that can be read") from None
    except Image.DecompressionBombError:
        raise ValueError("has too many pixels to be a photograph") from None
    except Exception as error:  # damaged files make decoders raise almost anything
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot be read ({problem})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Mode RGB, 8 bits; raises ValueError for 32-bit pixels, whose range is not known."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.float32) * (255 / 65535)
        image = Image.fromarray(values.round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit pixels; convert it to 8 or 16 bits")
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        white = Image.new("RGBA", coloured.size, "white")
        image = Image.alpha_composite(white, coloured)
    return image.convert("RGB")
