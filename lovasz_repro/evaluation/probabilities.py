"""Predicted probabilities as files, so that CRF parameters are searched without the network.

One grey PNG for each photograph: the C maps of a prediction (C, H, W) below each other, C H rows of
W pixels. A pixel holds the unary energy -log p of the dense CRF (``crf.py``) in 255 equal steps
from p = 1 to ``SMALLEST_PROBABILITY``, below which the CRF tells no two apart. The PNG's own
prediction filters, compression and checksums serve a map as they serve a photograph.

The class with the highest probability comes back exactly, and every energy to within half a
``STEP``. Only where rounding would tie another class with the highest one, that class is put one
step behind, which leaves its energy within one and a half.
"""

import io
import json
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import write_durably

SMALLEST_PROBABILITY = 1e-5
"""Probabilities below count as this one, as in pydensecrf's ``unary_from_softmax``."""
STEP = -np.log(SMALLEST_PROBABILITY) / 255
"""Of energies, 0.045; a probability comes back within 2.3 % of itself."""
MOST_KEPT_CLASSES = 256
NOTE = "lovasz-repro"
"""Text chunk of the files, for what they are of."""
COMPRESSION = 3  # zlib's level; 6 takes four times as long for a seventh less


def png_file(folder: Path, name: str) -> Path:
    """Where the file of a photograph lies, there or not.

    Raises:
        ValueError: the name would leave the folder.
    """
    if not name or name != Path(name).name:
        raise ValueError(f"photograph {name!r}: not a plain name")
    return folder / f"{name}.png"


def write_probabilities(file: Path, name: str, probabilities: np.ndarray) -> None:
    """Write the probabilities of one photograph; after a crash the file is whole or not there.

    Args:
        file: in a folder that exists.
        name: what the photograph is called.
        probabilities: (C, H, W) float in [0, 1], at the photograph's own size.

    Raises:
        ValueError: another shape, dtype or range, or NaN.
        RunFailed: the disk refuses.
    """
    check_probabilities(probabilities)
    classes, height, width = probabilities.shape
    note = json.dumps({"name": name, "classes": classes})
    write_png(file, encode(probabilities).reshape(classes * height, width), note)


def read_probabilities(file: Path, name: str) -> np.ndarray:
    """The probabilities of one photograph, (C, H, W) float32 in [1e-5, 1].

    They are not scaled to a sum of 1 again, which would move the energies.

    Raises:
        UserError: missing, damaged, too large, of another photograph, or not such a file.
    """
    return decode(_read_codes(file, name))


def read_classes(file: Path, name: str) -> np.ndarray:
    """The class of the highest probability at every pixel, exactly, (H, W) uint8.

    Raises:
        UserError: as ``read_probabilities``.
    """
    return _read_codes(file, name).argmin(0).astype(np.uint8)


def holds_probabilities(file: Path, name: str, size: tuple[int, int]) -> bool:
    """Whether a file is there, whole, and of a photograph of this name, height and width.

    Its checksums are compared; it is not decoded.
    """
    try:
        read_note(file)
        with Image.open(file, formats=["PNG"]) as opened:
            return (opened.height // _classes(opened, name), opened.width) == size
    except Exception:  # damaged files make decoders raise almost anything
        return False


def _read_codes(file: Path, name: str) -> np.ndarray:
    """Energies in steps, (C, H, W) uint8; raises UserError as ``read_probabilities``."""
    try:
        read_note(file)
        with Image.open(file, formats=["PNG"]) as opened:
            classes = _classes(opened, name)  # before anything is decoded
            codes = np.asarray(opened)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file. Predict {name} again.") from None
    except Exception as error:  # damaged files make decoders raise almost anything
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file}: not the probabilities of {name} ({problem}). Remove it and predict {name} "
            "again."
        ) from None
    return codes.reshape(classes, -1, codes.shape[1])


def _classes(opened: Image.Image, name: str) -> int:
    """How many maps a file holds; raises ValueError unless it is of this photograph."""
    note = json.loads(str(opened.info[NOTE])) if NOTE in opened.info else {}
    if not isinstance(note, dict) or not isinstance(note.get("classes"), int):
        raise ValueError("a file of something else")
    if note.get("name") != name:
        raise ValueError(f"those of {str(note.get('name'))[:60]!r}")
    classes: int = note["classes"]
    if opened.mode != "L" or not 1 <= classes <= MOST_KEPT_CLASSES or opened.height % classes:
        raise ValueError(f"{opened.height} rows of mode {opened.mode} for {classes} classes")
    return classes


def check_probabilities(probabilities: np.ndarray) -> None:
    """Raise ValueError unless they are (C, H, W), floats, in [0, 1] and some."""
    shape, dtype = probabilities.shape, probabilities.dtype
    if (
        len(shape) != 3
        or not probabilities.size
        or shape[0] > MOST_KEPT_CLASSES
        or dtype.kind != "f"
    ):
        raise ValueError(f"probabilities {shape} {dtype}, not (C, H, W) floats")
    lowest, highest = probabilities.min(), probabilities.max()  # NaN if any is
    if not (lowest >= 0 and highest <= 1 + 1e-5):  # sums of float32 exceed 1 by some 1e-7
        raise ValueError(f"probabilities between {lowest} and {highest}, not 0 and 1")


def encode(probabilities: np.ndarray) -> np.ndarray:
    """Energies in steps, (C, H, W) uint8; the arg min is the arg max of the probabilities."""
    energies = unary_energies(probabilities)
    codes = np.rint(energies / np.float32(STEP)).astype(np.uint8)
    best = probabilities.argmax(0)[None]
    # Rounding keeps the order, so nothing lies below the best; what ties is put behind it.
    lowest = np.minimum(np.take_along_axis(codes, best, 0), 254)
    codes[codes == lowest] += 1
    np.put_along_axis(codes, best, lowest, 0)
    return codes


def decode(codes: np.ndarray) -> np.ndarray:
    """Probabilities (C, H, W) float32 of energies in steps."""
    return np.exp(-STEP * np.arange(256)).astype(np.float32)[codes]


def unary_energies(probabilities: np.ndarray) -> np.ndarray:
    """-log p, float32, of (C, H, W) probabilities of at least ``SMALLEST_PROBABILITY``."""
    clipped = np.clip(probabilities, SMALLEST_PROBABILITY, 1).astype(np.float32)
    return -np.log(clipped)


def write_png(file: Path, pixels: np.ndarray, note: str) -> None:
    """Write pixels (H, W) uint8 as a PNG with a note, whole or not at all.

    Raises:
        RunFailed: the disk refuses.
    """
    content, text = io.BytesIO(), PngInfo()
    text.add_text(NOTE, note)
    Image.fromarray(pixels).save(content, "PNG", pnginfo=text, compress_level=COMPRESSION)
    try:
        write_durably(file, content.getvalue())
    except OSError as error:
        raise RunFailed(f"cannot write {file}: {error.strerror or error}.") from error


def read_note(file: Path) -> str | None:
    """The note of a PNG that is whole and not huge, None without one; it is not decoded.

    Raises:
        Exception: of almost any kind, where it is not. (Decoders overlook damage; this does not.)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=["PNG"]) as opened:
            opened.verify()  # the checksums of all chunks, to the last
            note = opened.info.get(NOTE)
            return None if note is None else str(note)
