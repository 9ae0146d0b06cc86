"""The dense CRF with which DeepLab-v2 post-processes its predictions (Table 2, "CRF").

A fully connected CRF over the pixels of a photograph (Krähenbühl & Koltun, NIPS 2011): the unary
energies are -log of the predicted probabilities, and each pair of pixels with different labels pays
a Gaussian of their distance ("smoothness") and one of distance and colour ("bilateral"). Mean-field
inference is that of the package ``pydensecrf2``, an optional extra (facts.md 1.5 and 5).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from lovasz_repro.data.images import read_pixels
from lovasz_repro.durable import write_durably
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.probability_cache import (
    check_probabilities,
    png_file,
    read_note,
    read_probabilities,
    unary_energies,
    write_png,
)
from lovasz_repro.processes import mapped

Normalization = Literal["after", "symmetric"]
NORMALIZATIONS = {"after": "NORMALIZE_AFTER", "symmetric": "NORMALIZE_SYMMETRIC"}
"""Their names in pydensecrf."""


@dataclass(frozen=True)
class CrfParameters:
    """Of the CRF; the defaults are those of DeepLab-v2 on ResNet-101 (facts.md 1.5).

    Raises:
        UserError: a value out of its range.
    """

    iterations: int = 10
    """Of mean-field inference, at least 1."""
    smoothness_weight: float = 3.0
    """Energy of the kernel of distance alone, at least 0 ("POS_W")."""
    smoothness_xy: float = 1.0
    """Standard deviation in pixels ("POS_XY_STD")."""
    bilateral_weight: float = 4.0
    """Energy of the kernel of distance and colour, at least 0 ("BI_W")."""
    bilateral_xy: float = 67.0
    """Standard deviation in pixels ("BI_XY_STD")."""
    bilateral_rgb: float = 3.0
    """Standard deviation in each of R, G and B, of 0..255 ("BI_RGB_STD")."""
    normalization: Normalization = "after"
    """Kernels sum to 1 at the pixel that listens, as DeepLab's library has it ("after"), or are
    divided by the roots of the sums at both pixels, pydensecrf's default ("symmetric")."""

    def __post_init__(self) -> None:
        if self.normalization not in NORMALIZATIONS:
            known = " or ".join(NORMALIZATIONS)
            raise UserError(f"CRF normalization {self.normalization!r}: give {known}.")
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise UserError(f"CRF iterations {self.iterations}: give a whole number from 1.")
        for name in ("smoothness_weight", "bilateral_weight"):
            if not 0 <= getattr(self, name) < inf:
                raise UserError(f"CRF {name} {getattr(self, name)}: give a number from 0.")
        for name in ("smoothness_xy", "bilateral_xy", "bilateral_rgb"):
            if not 0 < getattr(self, name) < inf:
                raise UserError(f"CRF {name} {getattr(self, name)}: give a number above 0.")

    @property
    def key(self) -> str:
        """12 hexadecimal digits that name these values; 4 and 4.0 are one value."""
        values = {name: v if isinstance(v, str) else float(v) for name, v in asdict(self).items()}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class CrfInput:
    """What the CRF needs of one photograph."""

    name: str
    """Like ``2007_000033``; no two photographs share one."""
    image: Path
    probabilities: Path
    """See ``probability_cache``."""


def refine_all(
    inputs: Sequence[CrfInput],
    out: Path,
    parameters: CrfParameters,
    *,
    processes: int = 1,
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
        processes: how many share the photographs; the files are the same.
        advance: called with 1 after each photograph, also after those that were done before.

    Returns:
        The file of each photograph, in the order of ``inputs``.

    Raises:
        UserError: the extra is not installed, two photographs share a name, or a file cannot be
            read or is not what it should be.
        RunFailed: the disk refuses, or a process died.
    """
    _library()
    if len({item.name for item in inputs}) < len(inputs):
        raise UserError("two photographs for the CRF share a name: their files would, too.")
    folder = out / parameters.key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps(asdict(parameters), indent=2) + "\n"
        write_durably(folder / "crf.json", content.encode())
    except OSError as error:
        raise RunFailed(f"cannot write {folder}: {error.strerror or error}.") from error
    files = [png_file(folder, item.name) for item in inputs]
    with mapped(min(processes, len(inputs)), "refined predictions") as map_:
        for _ in map_(partial(_refine_file, parameters), inputs, files):
            advance(1)
    return files


def _refine_file(parameters: CrfParameters, item: CrfInput, file: Path) -> None:
    """Refine one prediction, unless its file is there."""
    fingerprint = _fingerprint(item, parameters)
    if _is_done(file, fingerprint):
        return
    image = read_pixels(item.image, "RGB")
    probabilities = read_probabilities(item.probabilities, item.name)
    if probabilities.shape[1:] != image.shape[:2]:
        found, expected = (f"{h}x{w}" for h, w in (probabilities.shape[1:], image.shape[:2]))
        raise UserError(f"{item.probabilities}: probabilities of {found} pixels; {item.image} "
                        f"is {expected}. Predict {item.name} again.")  # fmt: skip
    write_png(file, refine(image, probabilities, parameters), fingerprint)


def _fingerprint(item: CrfInput, parameters: CrfParameters) -> str:
    """SHA-256 of all that the labels of a photograph depend on."""
    whole = hashlib.sha256(f"{parameters.key} {item.name}".encode())
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


def refine(image: np.ndarray, probabilities: np.ndarray, parameters: CrfParameters) -> np.ndarray:
    """The class of every pixel after inference, (H, W) uint8; arguments as ``marginals``."""
    return marginals(image, probabilities, parameters).argmax(0).astype(np.uint8)


def marginals(
    image: np.ndarray, probabilities: np.ndarray, parameters: CrfParameters
) -> np.ndarray:
    """Mean-field marginals of the classes, (C, H, W) float32, summing to 1 at each pixel.

    Args:
        image: the photograph, RGB (H, W, 3) uint8.
        probabilities: (C, H, W) float in [0, 1]; those below 1e-5 count as 1e-5.
        parameters: of the CRF.

    Raises:
        UserError: the extra is not installed.
        ValueError: another shape, dtype or range, or NaN.
    """
    library = _library()
    check_probabilities(probabilities)
    classes, height, width = probabilities.shape
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise ValueError(f"image {image.shape} {image.dtype}, not ({height}, {width}, 3) uint8")
    normalization = getattr(library, NORMALIZATIONS[parameters.normalization])
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


def _library() -> ModuleType:
    """pydensecrf.

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
            "Run: pip install 'lovasz-repro[crf]'"
        )
    return library
