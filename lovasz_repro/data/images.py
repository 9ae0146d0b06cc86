"""Reading image files that may be damaged: pixels, or one line that names the file."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.errors import UserError


def read_pixels(file: Path, mode: str | None = None) -> np.ndarray:
    """The pixels of an image file: (H, W, 3) uint8 with mode "RGB", else as they are stored.

    Raises:
        UserError: missing, truncated or not an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return np.asarray(opened.convert(mode) if mode else opened)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.") from None
    except Exception as error:  # damaged files make decoders raise almost anything
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{file}: unreadable image ({problem}).") from None
