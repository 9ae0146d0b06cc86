"""The dense CRF with which DeepLab-v2 post-processes its predictions (Table 2, "CRF").

A fully connected CRF over the pixels of a photograph (Krähenbühl & Koltun, NIPS 2011): the unary
energies are -log of the predicted probabilities, and each pair of pixels with different labels pays
a Gaussian of their distance ("smoothness") and one of distance and colour ("bilateral"). Mean-field
inference is that of the package ``pydensecrf2``, an optional extra.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.images import read_photograph
from lovasz_repro.errors import RunFailed, UserError, install
from lovasz_repro.evaluation.probabilities import (
    check_probabilities,
    png_file,
    read_note,
    read_probabilities,
    unary_energies,
    write_png,
)
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.processes import Map


@dataclass(frozen=True)
class CrfInput:
    """What the CRF needs of one photograph."""

    name: str
    """Like ``2007_000033``; no two photographs share one."""
    image: Path
    probabilities: Path
    """See ``probabilities``."""


def crf_key(parameters: CrfConfig) -> str:
    """12 hexadecimal digits that name parameters of the CRF."""
    values = parameters.model_dump_json()  # its numbers are floats: 4 and 4.0 are one value
    return hashlib.sha256(values.encode()).hexdigest()[:12]


def refine_all(
    inputs: Sequence[CrfInput],
    out: Path,
    parameters: CrfConfig,
    *,
    map_: Map = map,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Refine the prediction of every photograph and write the labels as files.

    ``<out>/<key of the parameters>/<name>.png`` is the class of every pixel, 8 bits, with
    ``crf.json`` beside it for the parameters. A call that was cut short is continued by the next:
    a file stays if it is whole and of this photograph, these probabilities and parameters.

    Args:
        inputs: the photographs.
        out: folder, made where it does not exist.
        parameters: of the CRF.
        map_: that of a pool of processes, which share the photographs; the files are the same.
        advance: called with 1 after each photograph, also after those that were done before.

    Returns:
        The file of each photograph, in the order of ``inputs``.

    Raises:
        UserError: the extra is not installed, two photographs share a name, or a file cannot be
            read or is not what it should be.
        RunFailed: the disk refuses, or a process died.
    """
    check_installed()
    if len({item.name for item in inputs}) < len(inputs):
        raise UserError("two photographs for the CRF share a name: their files would, too.")
    folder = out / crf_key(parameters)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = parameters.model_dump_json(indent=2) + "\n"
        write_durably(folder / "crf.json", content.encode())
    except OSError as error:
        raise RunFailed(f"cannot write {folder}: {error.strerror or error}.") from error
    files = [png_file(folder, item.name) for item in inputs]
    for _ in map_(partial(_refine_file, parameters), inputs, files):
        advance(1)
    return files


def _refine_file(parameters: CrfConfig, item: CrfInput, file: Path) -> None:
    """Refine one prediction, unless its file is there."""
    fingerprint = _fingerprint(item, parameters)
    if _is_done(file, fingerprint):
        return
    image = read_photograph(item.image)
    probabilities = read_probabilities(item.probabilities, item.name)
    if probabilities.shape[1:] != image.shape[:2]:
        found, expected = (f"{h}x{w}" for h, w in (probabilities.shape[1:], image.shape[:2]))
        raise UserError(f"{item.probabilities}: probabilities of {found} pixels; {item.image} "
                        f"is {expected}. Predict {item.name} again.")  # fmt: skip
    write_png(file, refine(image, probabilities, parameters), fingerprint)


def _fingerprint(item: CrfInput, parameters: CrfConfig) -> str:
    """SHA-256 of all that the labels of a photograph depend on."""
    whole = hashlib.sha256(f"{crf_key(parameters)} {item.name}".encode())
    for file in (item.image, item.probabilities):
        try:
            with file.open("rb") as opened:
                whole.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise UserError(f"{file}: {error.strerror or error}.") from None
    return whole.hexdigest()


def _is_done(file: Path, fingerprint: str) -> bool:
    """Whether a file is there, of this fingerprint, and whole."""
    try:
        return read_note(file) == fingerprint
    except Exception:  # damaged files make decoders raise almost anything
        return False


def refine(image: np.ndarray, probabilities: np.ndarray, parameters: CrfConfig) -> np.ndarray:
    """The class of every pixel after inference, (H, W) uint8; arguments as ``marginals``."""
    return marginals(image, probabilities, parameters).argmax(0).astype(np.uint8)


def marginals(image: np.ndarray, probabilities: np.ndarray, parameters: CrfConfig) -> np.ndarray:
    """Mean-field marginals of the classes, (C, H, W) float32, summing to 1 at each pixel.

    Args:
        image: the photograph, RGB (H, W, 3) uint8.
        probabilities: (C, H, W) float in [0, 1]; those below 1e-5 count as 1e-5.
        parameters: of the CRF.

    Raises:
        UserError: the extra is not installed.
        ValueError: another shape, dtype or range, or NaN.
    """
    library = check_installed()
    check_probabilities(probabilities)
    classes, height, width = probabilities.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"image {image.shape} {image.dtype}, not ({height}, {width}, 3) uint8")
    normalization = getattr(library, f"NORMALIZE_{parameters.normalization.upper()}")
    crf = library.DenseCRF2D(width, height, classes)
    crf.setUnaryEnergy(np.ascontiguousarray(unary_energies(probabilities).reshape(classes, -1)))
    crf.addPairwiseGaussian(
        sxy=parameters.smoothness_xy,
        compat=parameters.smoothness_weight,
        normalization=normalization,
    )
    crf.addPairwiseBilateral(
        sxy=parameters.bilateral_xy,
        srgb=parameters.bilateral_rgb,
        rgbim=np.require(image, requirements=["C", "W"]),  # it takes no other buffer
        compat=parameters.bilateral_weight,
        normalization=normalization,
    )
    # The buffer that it returns ends with the object that owns it
    return np.array(crf.inference(parameters.iterations)).reshape(classes, height, width)


def check_installed(otherwise: str = "") -> ModuleType:
    """pydensecrf, the library of the CRF.

    Args:
        otherwise: another way out than to install it, for the message.

    Raises:
        UserError: it is not installed.
    """
    try:
        library: ModuleType | None = import_module("pydensecrf.densecrf")
    except ImportError:
        library = None
    if library is None or not hasattr(library, "DenseCRF2D"):  # or something else of the name
        raise UserError(
            "the dense CRF needs pydensecrf2, which is not installed. "
            f"Run: {install('crf')}{otherwise}"
        )
    return library
