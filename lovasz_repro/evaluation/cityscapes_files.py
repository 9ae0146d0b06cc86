"""Official Cityscapes scores of predictions that lie in files, on one core or several."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lovasz_repro.data.cityscapes import Frame, read_instances, read_label_ids
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import CityscapesCounts, CityscapesScores
from lovasz_repro.host.processes import mapped


def score_files(
    predictions: Sequence[Path],
    frames: Sequence[Frame],
    *,
    processes: int = 1,
    advance: Callable[[int], None] = lambda images: None,
) -> CityscapesScores:
    """Score label files against the annotations of their frames.

    Args:
        predictions: a PNG of 8-bit official label ids for each frame, of its annotation's size.
        frames: in the same order; their photographs are not read.
        processes: how many share the images; the scores are the same, bit by bit. One thread each.
        advance: called with the number of images scored, whenever there are more.

    Raises:
        UserError: a file that is missing, unreadable, of another size or with an unknown id.
        ValueError: no frames, or another number of predictions.
        RunFailed: a process died.
    """
    check_pairing(predictions, frames)
    total, processes = CityscapesCounts(), min(processes, len(frames))
    count = _count_file if processes <= 1 else _count_file_on_one_thread
    with mapped(processes, "scored images") as map_:
        for counts in map_(count, predictions, frames):  # in order: sums come out alike
            total.merge(counts)
            advance(1)
    return total.scores()


def check_pairing(predictions: Sequence[Path], frames: Sequence[Frame]) -> None:
    """Raise ValueError unless there is a prediction for each frame, and a frame."""
    if not frames or len(predictions) != len(frames):
        raise ValueError(f"{len(predictions)} predictions for {len(frames)} frames")


def read_pair(prediction: Path, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted label ids, label ids (both (H, W) uint8) and instance ids (H, W) int32.

    Raises:
        UserError: as in :func:`score_files`.
    """
    predicted = read_label_ids(replace(frame, label_ids=prediction))
    labels, instances = read_label_ids(frame), read_instances(frame)
    for file, ids in ((prediction, predicted), (frame.instance_ids, instances)):
        if ids.shape != labels.shape:
            raise UserError(f"{file}: {ids.shape[0]}x{ids.shape[1]}, the label ids of "
                            f"{frame.name} are {labels.shape[0]}x{labels.shape[1]}.")  # fmt: skip
    return predicted, labels, instances


def _count_file(prediction: Path, frame: Frame) -> CityscapesCounts:
    counts, images = CityscapesCounts(), read_pair(prediction, frame)
    try:
        # What a decoder hands out may be read-only, which torch warns of
        writable = (np.require(image, requirements="W") for image in images)
        counts.update(*(torch.from_numpy(image)[None] for image in writable))
    except ValueError as error:  # of the readers' checks, only this one is left to fail
        raise UserError(f"{frame.instance_ids}: {error}.") from None
    return counts


def _count_file_on_one_thread(prediction: Path, frame: Frame) -> CityscapesCounts:
    torch.set_num_threads(1)
    return _count_file(prediction, frame)
