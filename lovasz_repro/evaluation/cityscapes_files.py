"""Official Cityscapes scores of predictions that lie in files, on one core or several."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from lovasz_repro.data.cityscapes import Frame, read_instances, read_label_ids
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.cityscapes import CityscapesCounts, CityscapesScores


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
    total = CityscapesCounts()
    with _counted(predictions, frames, processes) as counted:
        for counts in counted:
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


@contextmanager
def _counted(
    predictions: Sequence[Path], frames: Sequence[Frame], processes: int
) -> Iterator[Iterable[CityscapesCounts]]:
    """The counts of each image, in order: that sums come out alike whoever counted them."""
    if min(processes, len(frames)) <= 1:
        yield map(_count_file, predictions, frames)
        return
    pool = ProcessPoolExecutor(
        min(processes, len(frames)), get_context("spawn"), initializer=_start_process
    )
    try:
        yield pool.map(_count_file, predictions, frames)
    except BrokenProcessPool:
        raise RunFailed("a process that scored images died (killed, or out of memory).") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Ctrl-C reaches every process of a terminal; only the first is to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
