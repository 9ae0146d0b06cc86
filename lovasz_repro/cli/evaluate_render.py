"""How ``evaluate`` shows scores: tables on the terminal, and JSON."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lovasz_repro.host.output import say
from lovasz_repro.host.terminal import Terminal, print_table

if TYPE_CHECKING:
    from lovasz_repro.evaluation.cityscapes import CityscapesScores


def show(scores: "CityscapesScores", theirs: "CityscapesScores | None") -> None:
    """Tables of classes and categories, and the four averages."""
    console = Terminal()
    for what in ("class", "category"):
        heads = [what, "IoU", "iIoU"] + (["official IoU", "official iIoU"] if theirs else [])
        columns = [column for one in (scores, theirs) if one for column in columns_of(what, one)]
        rows = [[name, *(percent(column.get(name)) for column in columns)] for name in columns[0]]
        print_table(console, heads, rows)
        console.print()
    say(scores.summary())
    if theirs:
        difference = largest_difference(scores, theirs) or 0.0
        say(f"{theirs.summary()} by the official script")
        say(f"largest difference of any score: {100 * difference:.2g} percentage points")


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
