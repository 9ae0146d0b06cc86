"""What optimising each measure does to the others (Sec. 3.1), on the masks of Pascal VOC.

Lovász-Softmax over the classes of the batch or over all, over the batch or image by image: two by
two variants, trained on features that are drawn from the real masks. This needs no photograph and
is no result of the paper.
"""

from lovasz_repro.report.cells import count, over_seeds
from lovasz_repro.report.model import Block, Column, Row, Table
from lovasz_repro.report.runs import Cohort, RunStore, command, with_batch_size
from lovasz_repro.report.style import variant_title
from lovasz_repro.report.voc_binary_runs import on_features
from lovasz_repro.report.voc_multiclass import before_training
from lovasz_repro.report.voc_multiclass_runs import MULTICLASS, PAPER_BATCH, named_cohorts

FEATURES = "features"
"""Profile of the study."""
STUDIED = {
    "x-loss": "cross-entropy",
    "x-loss-equibatch": "cross-entropy + equibatch",
    "lovasz": "Lovász-Softmax, batch, present classes",
    "lovasz-equibatch": "Lovász-Softmax, batch, present classes + equibatch",
    "lovasz-all-classes": "Lovász-Softmax, batch, all classes",
    "lovasz-per-image-present": "Lovász-Softmax, image, present classes",
    "lovasz-per-image": "Lovász-Softmax, image, all classes",
}
"""Variants of the study, in order, and titles: the loss is taken over the batch or image by image,
averaged over present or all classes."""
KEYS = {
    "dataset": "val/dataset_miou",
    "image": "val/image_miou",
    "batch": "val/batch_miou",
}
TITLES = {"dataset": "dataset-mIoU", "image": "image-mIoU", "batch": "batch-mIoU"}


def voc_measures(store: RunStore) -> Table:
    """Three measures after optimising each of them, of every set of runs on features."""
    blocks = [
        Block(with_batch_size(heading, size), _rows(store, cohort.of_batch_size(size)))
        for cohort, heading in studies(store)
        for size in [studied_batch(cohort)]
    ]
    return Table(
        name="voc-measures",
        title="Sec. 3.1 on the masks of Pascal VOC: what optimising a measure does to others",
        caption=(
            "Validation measures after training with cross-entropy and with Lovász-Softmax over "
            "the batch or image by image, averaged over the classes that are present or over all. "
            "The networks saw features: noise drawn from the masks in the place of photographs, as "
            "Sec. 4.1 does for circles, so that the masks and their classes are real and nothing "
            "else is. This is not a result of the paper. The image-mIoU gives 1 to a class that "
            "neither the mask nor the prediction has (Eq. 3); the batch-mIoU is over the classes "
            "that the masks of a batch have. At the last iteration; mean ± standard deviation over "
            f"seeds. Other batch sizes: figure `voc-measures` and table `{MULTICLASS}`. "
            f"Filled by `{command(MULTICLASS, FEATURES)}`."
        ),
        row_title="trained with",
        columns=(
            *(Column(name, f"val {title}", "%", better="higher") for name, title in TITLES.items()),
            Column("seeds", "seeds", digits=0),
        ),
        blocks=tuple(blocks) or (Block("", _rows(store, None)),),
    )


def studies(store: RunStore) -> list[tuple[Cohort, str]]:
    """Sets of runs on features with a variant of the study, all batch sizes, with headings."""
    return [
        (cohort, heading)
        for cohort, heading in named_cohorts(store)
        if on_features(cohort) and set(cohort.variants) & set(STUDIED)
    ]


def studied_batch(cohort: Cohort) -> int:
    """Batches of 10, as in the paper; where there are none, the largest."""
    sizes = cohort.batch_sizes
    return PAPER_BATCH if PAPER_BATCH in sizes else max(sizes)


def _rows(store: RunStore, cohort: Cohort | None) -> tuple[Row, ...]:
    fill = command(MULTICLASS, cohort.profile if cohort else FEATURES)
    start = before_training(store, cohort, KEYS) if cohort else None
    others = sorted(set(cohort.variants) - set(STUDIED)) if cohort else []
    rows = [start] if start else []
    for name, title in (STUDIED | {name: variant_title(name) for name in others}).items():
        chosen = cohort.select(name) if cohort else []
        cells = [over_seeds(chosen, key, fill) for key in KEYS.values()]
        rows.append(Row(name, title, (*cells, count(cells[0]))))
    return tuple(rows)
