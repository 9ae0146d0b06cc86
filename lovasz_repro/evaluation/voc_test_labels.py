"""Label files of photographs whose masks are not public, from a DeepLab's probabilities."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.voc import VocImage, read_labels
from lovasz_repro.evaluation.multiscale import MultiScale
from lovasz_repro.evaluation.probability_cache import read_classes
from lovasz_repro.evaluation.voc_probabilities import predict_probabilities
from lovasz_repro.evaluation.voc_regimes import chunks_of, refine_photographs
from lovasz_repro.evaluation.voc_submission import write_prediction
from lovasz_repro.host.processes import mapped


def write_predictions(
    predictor: MultiScale,
    images: Sequence[VocImage],
    folder: Path,
    crf: CrfConfig | None,
    out: Path,
    *,
    processes: int = 1,
    predicted: Callable[[int], None] = lambda images: None,
    refined: Callable[[int], None] = lambda images: None,
) -> None:
    """Predict photographs, refine them where parameters are given, and write all label files anew.

    Args:
        predictor: what predicts.
        images: the photographs; masks are not read.
        folder: see ``open_folder``; what is there is not computed again.
        crf: parameters of the CRF; None: without it.
        out: see ``voc_submission.write_prediction``.
        processes: that write and refine.
        predicted, refined: called with a number of photographs.

    Raises:
        UserError: a photograph cannot be read, a label file not be written, or the CRF is not
            installed.
        RunFailed: the disk refuses, or a process died.
    """
    with mapped(processes, "wrote and refined predictions") as map_:
        for chunk in chunks_of(len(images), processes):
            some = images[chunk]
            names = [image.name for image in some]
            files = predict_probabilities(predictor, some, folder, map_, predicted)
            labels: Iterable[np.ndarray]
            if crf:
                refined_files = refine_photographs(some, files, folder, crf, map_, refined)
                labels = map(read_labels, refined_files)
            else:
                labels = map_(read_classes, files, names)
            for name, classes in zip(names, labels, strict=True):
                write_prediction(out, name, classes)
