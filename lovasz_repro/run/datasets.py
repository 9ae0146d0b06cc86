"""The data sets that experiments can train on, and what each is scored with.

``data/`` reads files and ``evaluation/`` scores; this is where the two meet.
"""

from lovasz_repro.config.datasets import DATASET_LINES
from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.cityscapes import TO_LABEL_ID
from lovasz_repro.data.datasets import ScoredSet as ScoredSet
from lovasz_repro.data.datasets import TrainingSet as TrainingSet
from lovasz_repro.data.datasets import category_of as category_of
from lovasz_repro.data.datasets import dataset
from lovasz_repro.evaluation.scoring import (
    BinaryScoring,
    CityscapesScoring,
    Scoring,
    SegmentationScoring,
)

DATASETS = {name: dataset(name) for name in DATASET_LINES}


def scoring_of(cell: CellConfig) -> Scoring:
    """An empty scoring of what a cell trains for."""
    kind, category = DATASETS[cell.data.name], category_of(cell.data)
    if category is not None:
        return BinaryScoring(category, kind.ignore_index)
    if kind.official_scores:
        return CityscapesScoring(TO_LABEL_ID)
    return SegmentationScoring(kind.table.names, kind.ignore_index, cell.training.batch_size)
