"""The scores of the official Cityscapes script itself, which ours are compared with.

The script is evaluation/evalPixelLevelSemanticLabeling.py of the package ``cityscapesscripts``, run
inside this process as a library. It is slow, and no dependency of this project; nothing but the
comparison needs it.
"""

import copy
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lovasz_repro.data.cityscapes import Frame
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.cityscapes import (
    AVERAGE_SIZES,
    CATEGORIES,
    CLASSES,
    INSTANCE_CATEGORIES,
    CityscapesScores,
)
from lovasz_repro.evaluation.cityscapes_files import check_pairing


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
