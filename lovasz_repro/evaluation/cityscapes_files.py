"""Official Cityscapes scores of predictions that lie in files: ours, and the official script's.

The script is evaluation/evalPixelLevelSemanticLabeling.py of the package ``cityscapesscripts``, run
inside this process as a library. It is slow, and no dependency of this project; nothing but the
comparison needs it.
"""

import copy
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lovasz_repro.data.cityscapes import Frame, read_instances, read_label_ids
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import (
    AVERAGE_SIZES,
    CATEGORIES,
    CLASSES,
    INSTANCE_CATEGORIES,
    CityscapesCounts,
    CityscapesScores,
)
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


# -- the official script -------------------------------------------------------------------------


def official_scores(predictions: Sequence[Path], frames: Sequence[Frame]) -> CityscapesScores:
    """Score label files against the annotations of their frames, as ``score_files`` does.

    Args:
        predictions: a PNG of 8-bit official label ids for each frame, of its annotation's size.
        frames: in the same order. The script looks for instance ids beside the label ids.

    Raises:
        UserError: the package is not installed, NumPy is too new for it, or the script stops.
        ValueError: no frames, or another number of predictions.
    """
    check_pairing(predictions, frames)
    script = _script()
    for frame in frames:
        beside = str(frame.label_ids).replace("labelIds", "instanceIds")
        if beside != str(frame.instance_ids):
            raise UserError(f"{frame.instance_ids}: the official script would read {beside}.")
    results = _run(script, predictions, frames)
    return CityscapesScores(
        float(results["averageScoreClasses"]),
        float(results["averageScoreInstClasses"]),
        float(results["averageScoreCategories"]),
        float(results["averageScoreInstCategories"]),
        _select(results["classScores"], CLASSES),
        _select(results["classInstScores"], AVERAGE_SIZES),
        _select(results["categoryScores"], CATEGORIES),
        _select(results["categoryInstScores"], INSTANCE_CATEGORIES),
    )


def _script() -> ModuleType:
    """The script as a module.

    Raises:
        UserError: it cannot run here.
    """
    try:
        from cityscapesscripts.evaluation import (  # type: ignore[import-untyped]
            evalPixelLevelSemanticLabeling as script,
        )
    except ImportError:
        raise UserError(
            "the official Cityscapes script is not installed. "
            "Run: pip install 'lovasz-repro[cityscapes]'"
        ) from None
    except ValueError as error:  # CITYSCAPES_EXPORT_DIR is checked on import
        raise UserError(f"the official Cityscapes script does not start: {error}.") from None
    if not hasattr(np, "in1d"):
        raise UserError(
            f"the official Cityscapes script does not run on NumPy {np.__version__}: it calls "
            "in1d, which 2.4 dropped. Run: pip install 'lovasz-repro[cityscapes]'"
        )
    return script


def _run(script: ModuleType, predictions: Sequence[Path], frames: Sequence[Frame]) -> Any:
    """What it returns; it prints its errors and exits, or fails on what it did not expect."""
    settings = copy.copy(script.args)  # the script's own stay as they are
    settings.quiet, settings.JSONOutput, settings.evalInstLevelScore = True, False, True
    files = [str(path) for path in predictions], [str(frame.label_ids) for frame in frames]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in1d is deprecated; priors may be 0/0
            return script.evaluateImgLists(*files, settings)
    except SystemExit:
        said = " ".join(printed.getvalue().removeprefix("ERROR:").split())
        raise UserError(f"the official Cityscapes script stops: {said}") from None
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"the official Cityscapes script fails with {problem}") from error


def _select(scores: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: float(scores[name]) for name in names}
