"""``runs record``: which server scores a run's predictions, and what it gave them."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lovasz_repro.errors import UserError

if TYPE_CHECKING:
    from lovasz_repro.store import StoredRun


class Given(NamedTuple):
    """Scores that a person brings."""

    scores: dict[str, float]
    """Name in the store, without ``server/``, -> fraction."""
    words: str
    """The most important of them, to print."""


def read_scores(run: "StoredRun", file: Path, *, initial: bool) -> Given:
    """The scores in a file, of the server that scores a run's data set.

    Args:
        run: stored.
        file: see ``server_scores.py``.
        initial: they are of the network before training.

    Raises:
        UserError: no server scores such runs, or the file is not of its scores.
    """
    title = f"run {run.run_id} ({run.name})"
    match run.params.get("data.name"):
        case "cityscapes":
            return of_cityscapes(file)
        case "voc":
            check_voc_run(run, title, initial=initial)
            return of_voc(file)
        case other:
            raise UserError(f"{title} is of {other or 'no data set'}; only scores of the "
                            "Cityscapes server and of Pascal VOC's can be recorded.")  # fmt: skip


def of_cityscapes(file: Path) -> Given:
    """Four averages, and classes where they are known."""
    from lovasz_repro.data.classes import CITYSCAPES
    from lovasz_repro.store.server_scores import read_server_scores

    scores = read_server_scores(file, CITYSCAPES.names[1:])
    four = ("dataset_miou", "class_iiou", "category_iou", "category_iiou")
    values = " / ".join(f"{100 * scores[name]:.2f}" for name in four)
    return Given(scores, f"Class IoU / iIoU / Category IoU / iIoU {values}")


def check_voc_run(run: "StoredRun", title: str, *, initial: bool) -> None:
    """Raise UserError unless VOC's server can have scored a run's predictions."""
    from lovasz_repro.report.runs import setting

    if run.params.get("data.images") == "features":
        raise UserError(f"{title} has seen no photograph, only features drawn from masks: no "
                        "server scores it.")  # fmt: skip
    category = setting(run, "data.category")
    if category is not None:
        raise UserError(f"{title} tells {category} from the rest: the server scores all classes.")
    if run.tags.get("scale") == "demo":
        raise UserError(f"{title} is of drawn pictures: no server scores it.")
    if initial:
        raise UserError(f"{title}: before training its classifier is random, so --initial is for "
                        "Cityscapes alone.")  # fmt: skip


def of_voc(file: Path) -> Given:
    """The mean over 21 classes, and the classes where they are known."""
    from lovasz_repro.data.classes import VOC
    from lovasz_repro.store.server_scores import implied_background, read_voc_server_scores

    scores = read_voc_server_scores(file, VOC.names)
    words = f"dataset-mIoU {100 * scores['dataset_miou']:.2f}"
    background = implied_background(scores, VOC.names)
    if background is not None:
        words += f", 20 objects (which leave {100 * background:.2f} for the background)"
    elif len(scores) > 1:
        words += ", 21 classes"
    return Given(scores, words)
