"""A folder of pictures with a list of them, as runs store it for figures."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lovasz_repro.host.files import write_durably


def write_pictures(
    folder: Path, listing: str, content: Any, pictures: Mapping[str, np.ndarray]
) -> list[Path]:
    """Write a list and pictures as files into a folder, made if it is not there; returns them.

    Args:
        folder: for the files.
        listing: name of the list.
        content: what it says, as JSON.
        pictures: file name -> (H, W) or (H, W, 3) uint8.

    Raises:
        OSError: the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {listing: (json.dumps(content, indent=2) + "\n").encode()}
    files |= {name: _png(pixels) for name, pixels in pictures.items()}
    for name, data in files.items():
        write_durably(folder / name, data)
    return [folder / name for name in files]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
