"""The losses that an experiment may name.

Settings, objective, scores and the titles of tables and figures have their names from this table:
a new loss is a function in ``losses/`` and a line here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class LossKind:
    """Where the function of a loss is, what it takes and how it is called in tables."""

    title: str
    file: str
    """The module of ``losses/`` whose function has the name of the loss."""
    options: tuple[str, ...] = ()
    """Settings of ``loss`` that the function takes, beside its ignore_index and group."""
    score: str | None = None
    """Of a loss of one logit per pixel, for one category against the rest (Sec. 4.2): its name
    among the scores of a split and, with hyphens, the variant that trains with it. None: a loss of
    all classes."""


LOSSES = {
    "cross_entropy": LossKind("cross-entropy", "baselines", ("class_weights",)),
    "lovasz_softmax": LossKind("Lovász-Softmax", "lovasz", ("classes", "per_image")),
    "soft_dice": LossKind("soft Dice", "baselines", ("classes", "per_image")),
    "soft_jaccard": LossKind("soft Jaccard", "baselines", ("classes", "per_image")),
    "binary_cross_entropy": LossKind("cross-entropy", "baselines", score="cross_entropy"),
    "hinge": LossKind("hinge", "baselines", score="hinge"),
    "lovasz_hinge": LossKind("Lovász hinge", "lovasz", score="lovasz_hinge"),
    "soft_iou": LossKind("soft IoU", "baselines", score="soft_iou"),
}

BINARY_LOSSES = {name: kind for name, kind in LOSSES.items() if kind.score}
"""Losses of one logit per pixel, in the order of tables."""

SCORE_TITLES = {kind.score: kind.title for kind in BINARY_LOSSES.values() if kind.score}
"""Their scores, as a reader sees them."""


def loss_function(name: str) -> Callable[..., Any]:
    """The function of a loss."""
    function: Callable[..., Any] = getattr(
        import_module(f"lovasz_repro.losses.{LOSSES[name].file}"), name
    )
    return function


def check_loss(name: str) -> str:
    """The name, if a loss has it; else raises ValueError."""
    if name not in LOSSES:
        raise ValueError(f"the losses are {', '.join(LOSSES)}")
    return name
