"""The losses and the data sets that an experiment may name.

A new loss is a function in ``losses/`` and a line here: settings, objective, scores and the titles
of tables and figures have its name from there. A new data set is a file of ``data/`` with a
``KIND`` (see ``data/datasets.py``) and a line here.
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


# ---- Data sets -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetLine:
    """Where a data set is described, and which settings go with it; light to import."""

    file: str
    """The module of ``data/`` that has its ``KIND``."""
    crops: bool = False
    """Whether networks are trained on square crops of images that differ in size; else on whole
    images, resized."""
    grid: bool = False
    """Whether its crops are of 8 n + 1 pixels a side, DeepLab's grid, whatever the network."""
    settings: tuple[str, ...] = ()
    """Settings that only data sets have which name them here."""


DATASET_LINES = {
    "camvid": DatasetLine("camvid"),
    "cityscapes": DatasetLine("cityscapes_training", settings=("evaluation.unlabelled",)),
    "voc": DatasetLine(
        "voc_training",
        crops=True,
        grid=True,
        settings=(
            "data.category",
            "data.images",
            "data.crop_with_class",
            "data.train_split",
            "data.augmentation",
            "evaluation.least_side",
            "evaluation.multi_scale",
            "evaluation.batches",
        ),
    ),
    "own": DatasetLine(
        "own",
        crops=True,
        settings=("data.classes", "data.resize", "data.category", "data.augmentation"),
    ),
}

OWN_SETTINGS = {
    setting: [name for name, line in DATASET_LINES.items() if setting in line.settings]
    for setting in dict.fromkeys(s for line in DATASET_LINES.values() for s in line.settings)
}
"""Each of these settings, with the data sets that have it."""


def check_dataset(name: str) -> str:
    """The name, if a data set has it; else raises ValueError."""
    if name not in DATASET_LINES:
        raise ValueError(f"the data sets are {', '.join(DATASET_LINES)}")
    return name
