"""Scores of a DeepLab on labelled VOC photographs at several scales, and with the CRF (Table 2).

    "multi_scale"   the class of the highest of the fused probabilities
    "crf"           the labels after mean-field inference from these probabilities

Both are taken from files (``voc_probabilities``, ``crf``), which keep the class exactly: what was
computed before a restart and what is computed now are scored alike.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import distributed

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.classes import VOC
from lovasz_repro.data.voc import VOID, VocImage, read_labels
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.crf import CrfInput, refine_all
from lovasz_repro.evaluation.multiscale import MultiScale
from lovasz_repro.evaluation.probability_cache import read_classes
from lovasz_repro.evaluation.scoring import SegmentationScoring
from lovasz_repro.evaluation.voc_probabilities import predict_probabilities
from lovasz_repro.host.processes import Map, mapped

CHUNK = 32
"""Photographs between two chances to stop, at most; as many predictions wait to be written."""
CHUNK_EACH = 4
"""Photographs for each process, so that a chunk of the CRF takes some ten seconds."""
Advance = Callable[[int], None]


def score_regimes(
    predictor: MultiScale,
    images: Sequence[VocImage],
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
        folder: see ``open_folder``; labels of the CRF go to ``crf/`` in it.
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

    def work(some: Sequence[VocImage], map_: Map) -> None:
        files = predict_probabilities(predictor, some, folder, map_, predicted)
        labels = map_(read_classes, files, [image.name for image in some])
        count(scorings["multi_scale"], some, labels)
        if crf:
            refined_files = refine_photographs(some, files, folder, crf, map_, refined)
            count(scorings["crf"], some, map(read_labels, refined_files))

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


def refine_photographs(
    images: Sequence[VocImage],
    files: Sequence[Path],
    folder: Path,
    crf: CrfConfig,
    map_: Map = map,
    advance: Advance = lambda images: None,
) -> list[Path]:
    """The file of each photograph's labels after the CRF, see ``refine_all``.

    Args:
        images: the photographs.
        files: their probabilities.
        folder: of the probabilities.
        crf: parameters.
        map_: that of a pool of processes.
        advance: called with 1 after each photograph.
    """
    inputs = [CrfInput(i.name, i.image, file) for i, file in zip(images, files, strict=True)]
    return refine_all(inputs, folder / "crf", crf, map_=map_, advance=advance)


def count(
    scoring: SegmentationScoring, images: Sequence[VocImage], predictions: Iterable[np.ndarray]
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
