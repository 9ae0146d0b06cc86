"""A DeepLab's probabilities of VOC photographs, kept as files (Sec. 4.3).

    <root>/<key>/probabilities.json   which network, photographs and scales they are of
    <root>/<key>/2007_000033.png      the probabilities of one photograph (``probability_cache``)

The network passes each photograph at several scales once. Its scores, the labels of the CRF and the
search for the CRF's parameters take the files. What a killed process left is gone on with.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from lovasz_repro.data.images import photograph_size, read_photograph
from lovasz_repro.data.voc import VocImage
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.multiscale import MultiScale
from lovasz_repro.evaluation.probability_cache import (
    holds_probabilities,
    png_file,
    write_probabilities,
)
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.processes import Map

NOTE = "probabilities.json"


def about_probabilities(predictor: MultiScale, data: str) -> dict[str, Any]:
    """Everything that probabilities depend on.

    Args:
        predictor: its floating-point weights count, in float32, the epsilons of its normalisations,
            its scales and how they are fused, and autocast.
        data: fingerprint of the photographs.
    """
    model = predictor.network
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.is_floating_point():
            weights.update(f"{name} {tuple(tensor.shape)} ".encode())
            weights.update(tensor.detach().float().cpu().contiguous().numpy())
    epsilons = sorted({module.eps for module in model.modules() if isinstance(module, _BatchNorm)})
    weights.update(repr(epsilons).encode())
    return {
        "weights": weights.hexdigest(),
        "data": data,
        "multi_scale": predictor.multi_scale.model_dump(mode="json"),
        "bfloat16": predictor.bfloat16,
    }


def prediction_key(about: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that name what ``about_probabilities`` gives."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def open_folder(root: Path, predictor: MultiScale, data: str) -> Path:
    """The folder of a network's probabilities below ``root``, made where it does not exist.

    Args:
        root: of all such folders.
        predictor, data: see ``about_probabilities``.

    Raises:
        UserError: it holds something else.
        RunFailed: the disk refuses.
    """
    about = about_probabilities(predictor, data)
    folder = root / prediction_key(about)
    note, expected = folder / NOTE, json.dumps(about, indent=2) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if note.is_file():
            whose = note.read_bytes() == expected.encode()
        else:
            whose = next(folder.glob("*.png"), None) is None
        if whose and not note.is_file():
            write_durably(note, expected.encode())
    except OSError as error:
        raise RunFailed(f"cannot write {folder}: {error.strerror or error}.") from error
    if not whose:
        raise UserError(f"{folder} holds other probabilities than those of this network ({NOTE} "
                        "says which). Remove the folder.")  # fmt: skip
    return folder


def predict_probabilities(
    predictor: MultiScale,
    images: Sequence[VocImage],
    folder: Path,
    map_: Map = map,
    advance: Callable[[int], None] = lambda images: None,
) -> list[Path]:
    """Predict every photograph whose file is not there, and write the files.

    A file stays if it is whole and of a photograph of this name and size.

    Args:
        predictor: what predicts.
        images: the photographs; masks are not read.
        folder: see ``open_folder``.
        map_: that of a pool of processes, which write while the network goes on; it then holds all
            probabilities that are not written yet, 16 MB for a photograph of 375x500.
        advance: called with 1 after each photograph, also after those that were there.

    Returns:
        The file of each photograph, in the order of ``images``.

    Raises:
        UserError: a photograph cannot be read.
        RunFailed: the disk refuses.
    """
    files = [png_file(folder, image.name) for image in images]
    pairs = zip(images, files, strict=True)
    missing = [(image, file) for image, file in pairs if not is_there(image, file)]
    advance(len(images) - len(missing))
    predictions: Iterator[np.ndarray] = (
        of_photograph(read_photograph(image.image), predictor) for image, _ in missing
    )
    names = [image.name for image, _ in missing]
    for _ in map_(write_probabilities, [file for _, file in missing], names, predictions):
        advance(1)
    return files


def is_there(image: VocImage, file: Path) -> bool:
    """Whether a file is whole, and of a photograph of this name and size."""
    try:
        return holds_probabilities(file, image.name, photograph_size(image.image))
    except UserError:  # whoever reads it says what is wrong with it
        return False


def of_photograph(photograph: np.ndarray, predictor: MultiScale) -> np.ndarray:
    """Probabilities (C, H, W) float32 of a photograph, RGB (H, W, 3) uint8."""
    batch = torch.from_numpy(np.array(photograph.transpose(2, 0, 1))[None])
    return predictor.probabilities(batch, photograph.shape[:2])[0].float().cpu().numpy()
