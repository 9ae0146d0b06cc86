"""A DeepLab on photographs of Pascal VOC at several scales and with the CRF (Sec. 4.3, Table 2).

    <root>/<key>/probabilities.json       of which network, photographs and scales
    <root>/<key>/2007_000033.png          the fused probabilities of one photograph
    <root>/<key>/crf/<key>/2007_000033.png    the labels after the CRF (``crf.py``)

    "multi_scale"   the class of the highest of the fused probabilities
    "crf"           the labels after mean-field inference from these probabilities

The network passes each photograph at several scales once. Its scores, the labels of the CRF and the
search for the CRF's parameters take the files (``probabilities.py``), which keep the class exactly:
what was computed before a process was killed and what is computed now are scored alike.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.nn.modules.batchnorm import _BatchNorm

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.classes import VOC, VOID
from lovasz_repro.data.images import ImagePair, photograph_size, read_photograph
from lovasz_repro.data.voc import read_labels
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.crf import CrfInput, refine_all
from lovasz_repro.evaluation.predictor import MultiScale
from lovasz_repro.evaluation.probabilities import (
    holds_probabilities,
    png_file,
    read_classes,
    write_probabilities,
)
from lovasz_repro.evaluation.scoring import SegmentationScoring
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.processes import Map, mapped

NOTE_FILE = "probabilities.json"
CHUNK = 32
"""Photographs between two chances to stop, at most; as many predictions wait to be written."""
CHUNK_EACH = 4
"""Photographs for each process, so that a chunk of the CRF takes some ten seconds."""
Advance = Callable[[int], None]


# -- probabilities as files ---------------------------------------------------------------------


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

    Raises:
        UserError: it holds something else.
        RunFailed: the disk refuses.
    """
    about = about_probabilities(predictor, data)
    folder = root / prediction_key(about)
    note, expected = folder / NOTE_FILE, (json.dumps(about, indent=2) + "\n").encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not note.is_file() and next(folder.glob("*.png"), None) is None:
            write_durably(note, expected)
        whose = note.is_file() and note.read_bytes() == expected
    except OSError as error:
        raise RunFailed(f"cannot write {folder}: {error.strerror or error}.") from error
    if not whose:
        raise UserError(
            f"{folder} holds other probabilities than those of this network ({NOTE_FILE} says "
            "which). Remove the folder."
        )
    return folder


def predict_probabilities(
    predictor: MultiScale,
    images: Sequence[ImagePair],
    folder: Path,
    map_: Map = map,
    advance: Advance = lambda images: None,
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
    missing = [(image, file) for image, file in pairs if not _is_there(image, file)]
    advance(len(images) - len(missing))

    def predictions() -> Iterator[np.ndarray]:
        for image, _ in missing:
            photograph = read_photograph(image.image)
            batch = torch.from_numpy(np.array(photograph.transpose(2, 0, 1))[None])
            found = predictor.probabilities(batch, photograph.shape[:2])
            yield found[0].float().cpu().numpy()

    names = [image.name for image, _ in missing]
    for _ in map_(write_probabilities, [file for _, file in missing], names, predictions()):
        advance(1)
    return files


def _is_there(image: ImagePair, file: Path) -> bool:
    """Whether a file is whole, and of a photograph of this name and size."""
    try:
        return holds_probabilities(file, image.name, photograph_size(image.image))
    except UserError:  # whoever reads it says what is wrong with it
        return False


# -- labels and their scores --------------------------------------------------------------------


def labels_of(
    predictor: MultiScale,
    images: Sequence[ImagePair],
    folder: Path,
    crf: CrfConfig | None,
    map_: Map,
    predicted: Advance,
    refined: Advance,
) -> dict[str, Iterable[np.ndarray]]:
    """Predict and refine photographs; by regime the labels of each, (H, W) uint8."""
    files = predict_probabilities(predictor, images, folder, map_, predicted)
    names = [image.name for image in images]
    labels: dict[str, Iterable[np.ndarray]] = {"multi_scale": map_(read_classes, files, names)}
    if crf:
        labels["crf"] = map(read_labels, _refined(images, files, folder, crf, map_, refined))
    return labels


def _refined(
    images: Sequence[ImagePair],
    files: Sequence[Path],
    folder: Path,
    crf: CrfConfig,
    map_: Map,
    advance: Advance,
) -> list[Path]:
    """The file of each photograph's labels after the CRF, see ``refine_all``."""
    inputs = [CrfInput(i.name, i.image, file) for i, file in zip(images, files, strict=True)]
    return refine_all(inputs, folder / "crf", crf, map_=map_, advance=advance)


def score_regimes(
    predictor: MultiScale,
    images: Sequence[ImagePair],
    folder: Path,
    crf: CrfConfig | None,
    *,
    processes: int = 1,
    batch_size: int | None = None,
    chunks: Sequence[slice] | None = None,
    do: Callable[[Callable[[], None]], None] = lambda work: work(),
    group: distributed.ProcessGroup | None = None,
    predicted: Advance = lambda images: None,
    refined: Advance = lambda images: None,
) -> dict[str, SegmentationScoring]:
    """Predict, refine and score photographs, chunk by chunk; what is there as a file stays.

    Args:
        predictor: what predicts.
        images: photographs and masks, this rank's share of them.
        folder: see ``open_folder``.
        crf: parameters of the CRF; None: without it.
        processes: that write and refine.
        batch_size: see ``SegmentationScoring``.
        chunks: of ``images``, each done after the other; by default see ``chunks_of``.
        do: is given the work of each chunk to do. It may look around before and after, and raise.
        group: ranks that have a part of the images each, in as many chunks; every rank gets the
            scores of all images.
        predicted, refined: called with a number of photographs, as soon as they are.

    Returns:
        The scores by regime: "multi_scale", and "crf" where there are parameters.

    Raises:
        UserError: a photograph or mask cannot be read, or the CRF is not installed.
        RunFailed: the disk refuses, or a process died.
    """
    regimes = ["multi_scale"] + (["crf"] if crf else [])
    scorings = {name: SegmentationScoring(VOC.names, VOID, batch_size) for name in regimes}

    def work(some: Sequence[ImagePair], map_: Map) -> None:
        labels = labels_of(predictor, some, folder, crf, map_, predicted, refined)
        for regime, of_regime in labels.items():
            count(scorings[regime], some, of_regime)

    with mapped(processes, "wrote and refined predictions") as map_:
        for chunk in chunks_of(len(images), processes) if chunks is None else chunks:
            do(partial(work, images[chunk], map_))
    if group:
        return {name: scoring.over_ranks(group) for name, scoring in scorings.items()}
    return scorings


def chunks_of(images: int, processes: int, most: int | None = None) -> list[slice]:
    """Cut photographs into chunks.

    Args:
        images: how many.
        processes: that share a chunk.
        most: the largest number of photographs that any rank has; there are as many chunks as they
            need, the last ones without photographs where this rank has fewer.
    """
    size = min(CHUNK, CHUNK_EACH * processes)
    return [
        slice(start, start + size) for start in range(0, images if most is None else most, size)
    ]


def count(
    scoring: SegmentationScoring, images: Sequence[ImagePair], predictions: Iterable[np.ndarray]
) -> None:
    """Count predicted classes, (H, W) uint8 each, against the masks of the photographs.

    Raises:
        UserError: a mask cannot be read or has another size.
    """
    for image, predicted in zip(images, predictions, strict=True):
        labels = read_labels(image.mask)
        if labels.shape != predicted.shape:
            raise UserError(f"{image.mask}: {labels.shape[0]}x{labels.shape[1]}, its photograph is "
                            f"{predicted.shape[0]}x{predicted.shape[1]}.")  # fmt: skip
        both = (torch.from_numpy(np.array(array))[None] for array in (predicted, labels))
        scoring.update(*both)


class Compared(NamedTuple):
    """What one set of parameters of the CRF reaches."""

    crf: CrfConfig
    scoring: SegmentationScoring

    @property
    def dataset_miou(self) -> float:
        """In [0, 1]; what sets are compared by."""
        return self.scoring.confusion.mean_iou()


def compare_crfs(
    images: Sequence[ImagePair],
    folder: Path,
    crfs: Sequence[CrfConfig],
    *,
    processes: int = 1,
    refined: Advance = lambda images: None,
) -> list[Compared]:
    """Refine the photographs with each set of parameters and score the labels.

    DeepLab's authors choose them by the mIoU on some validation images. The network is not asked.

    Args:
        images: photographs and masks.
        folder: of their probabilities; labels that are there already stay.
        crfs: sets of parameters.
        processes: that refine.
        refined: called with 1 after each photograph of each set.

    Returns:
        One for each set, the highest dataset-mIoU first; of equal ones the first given.

    Raises:
        UserError: a file cannot be read, or the CRF is not installed.
        RunFailed: the disk refuses, or a process died.
    """
    compared = []
    files = [png_file(folder, image.name) for image in images]
    with mapped(min(processes, len(images)), "refined predictions") as map_:
        for crf in crfs:
            labels = _refined(images, files, folder, crf, map_, refined)
            scoring = SegmentationScoring(VOC.names, VOID)
            count(scoring, images, map(read_labels, labels))
            compared.append(Compared(crf, scoring))
    return sorted(compared, key=lambda one: one.dataset_miou, reverse=True)
