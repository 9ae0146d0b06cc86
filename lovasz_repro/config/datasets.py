"""The data sets that an experiment may name.

A new one is a file of ``data/`` with a ``KIND`` (see ``data/datasets.py``) and a line here.
"""

from dataclasses import dataclass


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
