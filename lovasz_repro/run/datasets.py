"""The data sets that experiments can train on, and what each is scored with.

``data/`` reads files and ``evaluation/`` scores; this is where the two meet.
"""

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.cityscapes import TO_LABEL_ID
from lovasz_repro.data.datasets import ScoredSet as ScoredSet
from lovasz_repro.data.datasets import TrainingSet as TrainingSet
from lovasz_repro.data.datasets import category_of as category_of
from lovasz_repro.data.datasets import kind_of as kind_of
from lovasz_repro.evaluation.measures import Measures
from lovasz_repro.evaluation.scoring import (
    BinaryScoring,
    CityscapesScoring,
    Scoring,
    SegmentationScoring,
)


def first_answer(cell: CellConfig) -> int:
    """The first output that is an answer: those before it are "unlabelled"."""
    kept = cell.evaluation.unlabelled == "kept"
    return 0 if kept else kind_of(cell.data).first_class


def scoring_of(cell: CellConfig, shapes: bool = False) -> Scoring:
    """An empty scoring of what a cell trains for, and of the measures beside.

    Args:
        cell: the run.
        shapes: see ``Measures``.
    """
    kind, category = kind_of(cell.data), category_of(cell.data)
    void = kind.ignore_index
    if category is not None:
        beside = Measures(2, void, objects=(1,), uncounted=0, shapes=shapes)
        return BinaryScoring(category, void, beside)
    table = kind.table
    beside = Measures(
        len(table),
        void,
        table.objects,
        first_class=first_answer(cell),
        uncounted=0 if table.first_class else None,
        shapes=shapes,
    )
    if kind.official_scores:
        return CityscapesScoring(TO_LABEL_ID, beside)
    return SegmentationScoring(table.names, void, cell.training.batch_size, beside)
