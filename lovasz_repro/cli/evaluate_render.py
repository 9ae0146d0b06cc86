"""How ``evaluate`` shows scores: tables on the terminal, and JSON."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lovasz_repro.cli.options import terminal

if TYPE_CHECKING:
    from rich.table import Table

    from lovasz_repro.evaluation.cityscapes import CityscapesScores


def show(scores: "CityscapesScores", theirs: "CityscapesScores | None") -> None:
    """Tables of classes and categories, and the four averages."""
    console = terminal()
    console.print(table("class", scores, theirs))
    console.print(table("category", scores, theirs))
    console.print(scores.summary(), soft_wrap=True)
    if theirs:
        difference = largest_difference(scores, theirs) or 0.0
        console.print(f"{theirs.summary()} by the official script", soft_wrap=True)
        console.print(f"largest difference of any score: {100 * difference:.2g} percentage points")


def table(what: str, scores: "CityscapesScores", theirs: "CityscapesScores | None") -> "Table":
    """IoU and iIoU of each class or category and their means; the official script's beside."""
    from rich.table import Table

    headers = ["IoU", "iIoU"] + (["official IoU", "official iIoU"] if theirs else [])
    shown = Table(what, box=None, pad_edge=False)
    for header in headers:
        shown.add_column(header, justify="right")
    columns = [column for one in (scores, theirs) if one for column in columns_of(what, one)]
    for name in columns[0]:
        shown.add_row(name, *(percent(column.get(name)) for column in columns))
    return shown


def columns_of(what: str, scores: "CityscapesScores") -> list[dict[str, float]]:
    """IoU and iIoU by name, the mean last."""
    if what == "class":
        return [
            scores.classes | {"mean": scores.class_iou},
            scores.class_instances | {"mean": scores.class_iiou},
        ]
    return [
        scores.categories | {"mean": scores.category_iou},
        scores.category_instances | {"mean": scores.category_iiou},
    ]


def percent(score: float | None) -> str:
    """In percent; empty for a class without instances, a dash for one that does not occur."""
    if score is None:
        return ""
    return "–" if math.isnan(score) else f"{100 * score:.2f}"


def largest_difference(
    scores: "CityscapesScores | None", theirs: "CityscapesScores | None"
) -> float | None:
    """Between any two scores; infinite where only one of them is a number."""
    if scores is None or theirs is None:
        return None
    ours, official = scores.as_metrics(""), theirs.as_metrics("")
    pairs = [(value, official[key]) for key, value in ours.items()]
    numbers = [(a, b) for a, b in pairs if not (math.isnan(a) and math.isnan(b))]
    gaps = [math.inf if math.isnan(a) or math.isnan(b) else abs(a - b) for a, b in numbers]
    return max(gaps, default=0.0)


def numbers(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """For JSON, which has no NaN."""
    return {key: None if math.isnan(value) else value for key, value in metrics.items()}
