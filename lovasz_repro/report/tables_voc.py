"""Tables of Pascal VOC: one category against the rest (Sec. 4.2), all classes (Sec. 4.3).

Scores are those of the last iteration, as in the paper; metrics are fractions, shown ×100. Runs on
features that are drawn from the masks, and those of other scales, never enter the paper's tables.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lovasz_repro.config.losses import SCORE_TITLES
from lovasz_repro.config.schema import BASIS
from lovasz_repro.data.classes import VOC
from lovasz_repro.report.model import (
    Better,
    Block,
    Cell,
    Column,
    Score,
    Table,
    TableRow,
    count,
    measured,
    once,
    over_seeds,
)
from lovasz_repro.report.published import Cells, fullest, paper_table, published_tables
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    command,
    fill_of,
    finite_history,
    frame,
    having,
    seed,
    variant,
    with_batch_size,
)
from lovasz_repro.report.sets import (
    BINARY,
    CATEGORIES,
    MULTICLASS,
    PAPER_BATCH,
    TRAINED,
    Found,
    category,
    loss_title,
    named_cohorts,
    named_sets,
    on_features,
    planned_variants,
    server_sets,
    shared_categories,
)
from lovasz_repro.report.style import variant_order, variant_title
from lovasz_repro.report.words import starting_point

SEEDS = Column("seeds", "seeds", digits=0)

# -- one category against the rest -------------------------------------------------------------

IOU = "val/image_iou"
BASIS_IOU = "basis/image_iou"
MEASURES: dict[str, tuple[str, str, Better]] = {
    **{
        score.replace("_", "-"): (f"val/{score}", title, "lower")
        for score, title in SCORE_TITLES.items()
    },
    "image-iou": (IOU, "image-IoU", "higher"),
}
"""TableRow of the tables -> metric, title, which is better."""


def table_1(store: RunStore) -> Table:
    """Validation losses after training with each loss; paper-scale runs on photographs alone."""

    def cells_of(cohort: Cohort) -> Cells:
        fill = command(BINARY)
        cells = {
            (row, name): _all_over_seeds(cohort.select(name), key, fill)
            for row, (key, *_) in MEASURES.items()
            for name in TRAINED
        }
        return cells | {("image-iou", BASIS): _all_over_seeds(cohort.runs, BASIS_IOU, fill)}

    ours, note = fullest(named_sets(store, BINARY), cells_of, BINARY)
    if note:
        note += (
            f" Mean over the {len(CATEGORIES)} categories, a dash where one is missing; ± is over "
            "seeds."
        )
    return paper_table("table-1", ours, note)


def voc_binary(store: RunStore) -> Table:
    """Validation losses of every stored set of binary runs, at any scale."""
    blocks = []
    for cohort, heading in named_sets(store, BINARY):
        classes = shared_categories(cohort)
        if len(classes) < len(CATEGORIES):
            noun = "category" if len(classes) == 1 else "categories"
            heading += f", {len(classes)} {noun} of {len(CATEGORIES)}"
        blocks.append(Block(heading, _measure_rows(cohort, classes)))
    return Table(
        name=BINARY,
        title="Binary segmentation on Pascal VOC, by scale",
        caption=(
            f"Every stored set of runs of `{BINARY}`, whatever its data and scale, each under a "
            "heading that names them. This is not the paper's table: only paper-scale runs on "
            "photographs enter Table 1. Where a heading says features, these are noise drawn from "
            "the masks in the place of photographs, as Sec. 4.1 does for circles. Losses and "
            "image-IoU (×100) on validation images half of which show the category, after training "
            "with each loss; the basis network is the one trained for all categories. Mean ± "
            "standard deviation over the categories that every loss of the set has, each category "
            f"first averaged over seeds. Filled by `{command(BINARY)}`."
        ),
        row_title="validation measure",
        columns=_loss_columns("trained with "),
        blocks=tuple(blocks) or (Block("", _measure_rows(None, ())),),
    )


def voc_binary_classes(store: RunStore) -> Table:
    """Validation image-IoU of every category under each loss."""
    found = named_sets(store, BINARY)
    blocks = [Block(heading, _category_rows(cohort)) for cohort, heading in found]
    empty = TableRow("mean", "mean", (Cell(command=command(BINARY)),) * (len(TRAINED) + 1))
    return Table(
        name=f"{BINARY}-classes",
        title="Binary segmentation on Pascal VOC: image-IoU per category",
        caption=(
            f"Validation image-IoU (×100) per category of the runs in the table `{BINARY}`, with "
            "its headings: on features, no network has seen a photograph. Mean ± standard "
            "deviation over seeds. The last row is the mean over the categories that every loss "
            f"of the set has. Not a table of the paper. Filled by `{command(BINARY)}`."
        ),
        row_title="category",
        columns=_loss_columns(""),
        blocks=tuple(blocks) or (Block("", (empty,)),),
    )


def _over_categories(runs: Sequence[Run], key: str, classes: Sequence[str], fill: str) -> Cell:
    """Mean and spread over categories, each averaged over seeds; missing where one of them is."""
    used = [run for run in having(runs, key) if category(run) in classes]
    if not used:
        return Cell(command=fill)
    means = frame(used).groupby("data.category")[key].mean().reindex(list(classes))
    return Cell(command=fill) if means.hasnans else measured(means, used, fill, factor=100)


def _all_over_seeds(runs: Sequence[Run], key: str, fill: str) -> Cell:
    """Mean over all 20 categories of each seed that has them; mean and spread over those seeds."""
    scored = having(runs, key)
    if not scored:
        return Cell(command=fill)
    grid = frame(scored).pivot_table(key, "seed", "data.category").reindex(columns=CATEGORIES)
    means = grid.dropna().mean(axis="columns")
    used = [run for run in scored if seed(run) in means.index]
    return measured(means, used, fill, factor=100)


def _measure_rows(cohort: Cohort | None, classes: Sequence[str]) -> tuple[TableRow, ...]:
    fill, every = fill_of(BINARY, cohort), cohort.runs if cohort else ()
    rows = []
    for row, (key, title, better) in MEASURES.items():
        chosen = [cohort.select(name) if cohort else [] for name in TRAINED]
        cells = [_over_categories(runs, key, classes, fill) for runs in chosen]
        basis = _over_categories(every, BASIS_IOU, classes, fill) if row == "image-iou" else None
        rows.append(TableRow(row, title, (*cells, basis), better))
    return tuple(rows)


def _category_rows(cohort: Cohort) -> tuple[TableRow, ...]:
    fill = fill_of(BINARY, cohort)
    rows = []
    for name in CATEGORIES:
        runs = [run for run in cohort.runs if category(run) == name]
        if runs:
            cells = [over_seeds([r for r in runs if variant(r) == t], IOU, fill) for t in TRAINED]
            basis = [(run, run.metrics[BASIS_IOU]) for run in having(runs, BASIS_IOU)]
            rows.append(TableRow(name, name, (*cells, once(basis, fill)), "higher"))
    shared = shared_categories(cohort)
    means = [_over_categories(cohort.select(t), IOU, shared, fill) for t in TRAINED]
    means.append(_over_categories(cohort.runs, BASIS_IOU, shared, fill))
    label = "mean" if len(shared) == len(rows) else f"mean of {len(shared)} categories"
    return (*rows, TableRow("mean", label, tuple(replace(m, spread=None) for m in means), "higher"))


def _loss_columns(prefix: str) -> tuple[Column, ...]:
    trained = (Column(name, prefix + loss_title(name)) for name in TRAINED)
    return (*trained, Column(BASIS, loss_title(BASIS)))


# -- all classes -------------------------------------------------------------------------------

REGIMES = {
    "val-single": ("val/", "single-scale", ""),
    "val-multi": ("val/multi_scale/", "multi-scale", "evaluation.multi_scale"),
    "val-crf": ("val/crf/", "multi-scale + CRF", "evaluation.crf"),
}
"""Columns of Table 2 -> what the names of their metrics begin with, how they are called, and the
setting without which a run has no such score."""
MULTICLASS_SCORES = (
    *(
        Score(key, f"val, {name}", (f"{prefix}dataset_miou",))
        for key, (prefix, name, _) in REGIMES.items()
    ),
    Score("image", "val image-mIoU", ("val/image_miou",)),
    Score("batch", "val batch-mIoU", ("val/batch_miou",)),
)
"""Columns of the table by scale; the last two are single-scale."""
SERVER = "server/"
PRINTED = {
    "airplane": "aeroplane",
    "cycle": "bicycle",
    "d-table": "diningtable",
    "mbike": "motorbike",
    "plant": "pottedplant",
    "tv": "tvmonitor",
}
"""Classes that Table 3 spells otherwise than Pascal VOC."""
MEAN = "dataset-mIoU"
LONGER_IS = "30K: trained half as long again, as the 30K iterations of the paper beside its 20K."


def table_2(store: RunStore) -> Table:
    """Validation and test mIoU under each regime; paper-scale runs on photographs alone."""
    variants = list(published_tables()["table-2"].rows)

    def validation(cohort: Cohort) -> Cells:
        return {
            (name, column): over_seeds(cohort.select(name), f"{prefix}dataset_miou", "")
            for name in variants
            for column, (prefix, *_) in REGIMES.items()
        }

    def on_server(cohort: Cohort) -> Cells:
        key = f"{SERVER}dataset_miou"
        return {(n, "test-crf"): over_seeds(cohort.select(n), key, "") for n in variants}

    val, val_note = fullest(_of_ten(named_sets(store, MULTICLASS)), validation)
    test, test_note = fullest(_of_ten(server_sets(store)), on_server, about="on the test set")
    return paper_table("table-2", val | test, val_note, test_note)


def table_3(store: RunStore) -> Table:
    """Test IoU of every class, of paper-scale runs that trained on the validation images too."""
    printed = published_tables()["table-3"]

    def cells_of(cohort: Cohort) -> Cells:
        return {
            (row, name): over_seeds(cohort.select(name), f"{SERVER}iou/{PRINTED.get(row, row)}", "")
            for row in printed.rows
            for name in printed.columns
        }

    found = _of_ten(server_sets(store))
    return paper_table("table-3", *fullest(found, cells_of, about="on the test set"))


def voc_multiclass(store: RunStore) -> Table:
    """Validation scores of every stored set of runs, at any scale."""
    return Table(
        name=MULTICLASS,
        title="Multiclass segmentation on Pascal VOC, by scale",
        caption=(
            f"Every stored set of runs of `{MULTICLASS}`, whatever its data and scale, each under "
            "a heading that names them. This is not the paper's table: only paper-scale runs on "
            "photographs enter Table 2. Where a heading says features, these are noise drawn from "
            "the masks in the place of photographs, as Sec. 4.1 does for circles. Validation "
            "dataset-mIoU under each way of evaluating, and single-scale the image-mIoU and the "
            "batch-mIoU over present classes, in batches as large as those of the training; at "
            f"the last iteration. {LONGER_IS} Mean ± standard deviation over seeds. "
            f"Filled by `{command(MULTICLASS)}` (`--profile demo` on a laptop)."
        ),
        row_title="training",
        columns=(*(score.column for score in MULTICLASS_SCORES), SEEDS),
        blocks=tuple(
            Block(heading, _scale_rows(store, cohort))
            for cohort, heading in named_sets(store, MULTICLASS)
        )
        or (Block("", _scale_rows(store, None)),),
    )


def voc_multiclass_classes(store: RunStore) -> Table:
    """Validation IoU of every class under the last way of evaluating that a set has."""
    found = named_sets(store, MULTICLASS)
    names = {name for cohort, _ in found for name in planned_variants(MULTICLASS, cohort)}
    shown = variant_order(names or set(planned_variants(MULTICLASS, None)))
    blocks = []
    for cohort, heading in found:
        prefix, regime, _ = REGIMES[_last_regime(cohort)]
        blocks.append(Block(f"{heading}, {regime}", _class_rows(cohort, prefix, shown)))
    empty = TableRow(MEAN, MEAN, (Cell(command=command(MULTICLASS)),) * len(shown))
    return Table(
        name=f"{MULTICLASS}-classes",
        title="Multiclass segmentation on Pascal VOC: IoU per class",
        caption=(
            f"Validation IoU (%) per class of the runs in the table `{MULTICLASS}`, with its "
            "headings: on features, no network has seen a photograph. At the last iteration, "
            f"evaluated as the heading says. {LONGER_IS} Mean ± standard deviation over seeds. "
            f"Not a table of the paper. Filled by `{command(MULTICLASS)}`."
        ),
        row_title="class",
        columns=tuple(Column(name, variant_title(name), "%") for name in shown),
        blocks=tuple(blocks) or (Block("", (empty,)),),
    )


def _of_ten(found: Found) -> Found:
    return [pair for pair in found if pair[0].batch_sizes == [PAPER_BATCH]]


def _scale_rows(store: RunStore, cohort: Cohort | None) -> tuple[TableRow, ...]:
    fill = fill_of(MULTICLASS, cohort)
    rows = _start(store, cohort, MULTICLASS_SCORES)
    for name in planned_variants(MULTICLASS, cohort):
        chosen = cohort.select(name) if cohort else []
        cells = [
            score.after(store, chosen, fill) if _applies(cohort, score.key) else None
            for score in MULTICLASS_SCORES
        ]
        seeds = count(cells[0]) if cells[0] else None
        rows.append(TableRow(name, variant_title(name), (*cells, seeds)))
    return tuple(rows)


def _start(store: RunStore, cohort: Cohort | None, scores: Sequence[Score]) -> list[TableRow]:
    """What the network scored before the first step; nothing where that is not known."""
    if cohort is None:
        return []
    found = [score.before(store, cohort.runs, "") for score in scores]
    cells = [cell if cell.value is not None else None for cell in found]
    return [TableRow("initial", starting_point(cohort), (*cells, None))] if any(cells) else []


def _applies(cohort: Cohort | None, column: str) -> bool:
    """Whether the runs of a set are evaluated in this way at all."""
    *_, needed = REGIMES.get(column, ("",))
    return cohort is None or not needed or cohort.setting(needed, "") is not None


def _last_regime(cohort: Cohort) -> str:
    """The last way of evaluating of which a set has the IoU of a class."""
    scored = [
        regime
        for regime, (prefix, *_) in REGIMES.items()
        if any(key.startswith(f"{prefix}iou/") for run in cohort.runs for key in run.metrics)
    ]
    return scored[-1] if scored else "val-single"


def _class_rows(cohort: Cohort, prefix: str, shown: Sequence[str]) -> tuple[TableRow, ...]:
    """A row per class, and their mean; blank where a variant or a class is not of the set."""
    fill = fill_of(MULTICLASS, cohort)
    planned, mean = planned_variants(MULTICLASS, cohort), f"{prefix}dataset_miou"
    keys = {name: f"{prefix}iou/{name}" for name in VOC.names} | {MEAN: mean}

    def cell(name: str, key: str) -> Cell | None:
        runs = cohort.select(name)
        found = over_seeds(runs, key, fill)
        scored = any(mean in run.metrics for run in runs)  # then the class does not occur
        return None if name not in planned or (found.value is None and scored) else found

    return tuple(
        TableRow(label, label, tuple(cell(name, key) for name in shown), better="higher")
        for label, key in keys.items()
    )


# -- what optimising each measure does to the others (Sec. 3.1) --------------------------------

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
STUDY_SCORES = tuple(Score(name, f"val {name}-mIoU", (key,)) for name, key in KEYS.items())


def voc_measures(store: RunStore) -> Table:
    """Three measures after optimising each of them, of every set of runs on features."""
    blocks = []
    for cohort, heading in studies(store):
        size = studied_batch(cohort)
        rows = _study_rows(store, cohort.of_batch_size(size))
        blocks.append(Block(with_batch_size(heading, size), rows))
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
        columns=(*(score.column for score in STUDY_SCORES), SEEDS),
        blocks=tuple(blocks) or (Block("", _study_rows(store, None)),),
    )


def studies(store: RunStore) -> Found:
    """Sets of runs on features with a variant of the study, all batch sizes, with headings."""
    return [
        (cohort, heading)
        for cohort, heading in named_cohorts(store, MULTICLASS)
        if on_features(cohort) and set(cohort.variants) & set(STUDIED)
    ]


def studied_batch(cohort: Cohort) -> int:
    """Batches of 10, as in the paper; where there are none, the largest."""
    sizes = cohort.batch_sizes
    return PAPER_BATCH if PAPER_BATCH in sizes else max(sizes)


def _study_rows(store: RunStore, cohort: Cohort | None) -> tuple[TableRow, ...]:
    fill = command(MULTICLASS, cohort.profile if cohort else FEATURES)
    rows = _start(store, cohort, STUDY_SCORES)
    others = sorted(set(cohort.variants) - set(STUDIED)) if cohort else []
    for name, title in (STUDIED | {name: variant_title(name) for name in others}).items():
        chosen = cohort.select(name) if cohort else []
        cells = [score.after(store, chosen, fill) for score in STUDY_SCORES]
        rows.append(TableRow(name, title, (*cells, count(cells[0]))))
    return tuple(rows)


# -- the decision rule of Nowozin [20] ---------------------------------------------------------
# A run scores the same random batches of validation images, which show every class, by the arg max
# and by the rule. Step k of both metrics is batch k, so differences are taken batch by batch.

ARG_MAX, RULE = "batches/miou", "batches/miou_decision_rule"
RULE_REFERENCE = "x-loss-equibatch"
"""The network that the paper applies the rule to, its best one trained with cross-entropy."""
PAPER_ROWS = {
    "cross-entropy": (RULE_REFERENCE, ARG_MAX),
    "decision-rule": (RULE_REFERENCE, RULE),
    "lovasz-softmax": ("lovasz-equibatch-30k", ARG_MAX),
}
"""Rows of the paper's comparison -> variant and metric."""
BY_SCALE = "decision-rule-by-scale"


@dataclass(frozen=True)
class OverBatches:
    """What the runs of a variant reached on each batch, the mean over seeds."""

    by_batch: dict[Any, float]
    runs: tuple[Run, ...]

    def cell(self, fill: str) -> Cell:
        """Mean and standard deviation over batches, in percent."""
        return measured(list(self.by_batch.values()), self.runs, fill, factor=100)

    def above(self, other: "OverBatches", fill: str) -> Cell:
        """Mean difference to other scores of the same batches, in points, ± its standard error."""
        shared = [batch for batch in self.by_batch if batch in other.by_batch]
        differences = [self.by_batch[batch] - other.by_batch[batch] for batch in shared]
        cell = measured(differences, (*self.runs, *other.runs), fill, factor=100)
        error = cell.spread / math.sqrt(cell.n) if cell.spread is not None else None
        return replace(cell, spread=error)


def decision_rule(store: RunStore) -> Table:
    """The paper's three numbers; paper-scale runs on photographs alone."""

    def cells_of(cohort: Cohort) -> Cells:
        return {
            (row, "batch-miou"): _batch_scores(store, cohort.select(name), metric).cell("")
            for row, (name, metric) in PAPER_ROWS.items()
        }

    ours, note = fullest(_of_ten(named_sets(store, MULTICLASS)), cells_of, BY_SCALE)
    note += " ± is the standard deviation over batches." if note else ""
    return paper_table("decision-rule", ours, note)


def decision_rule_by_scale(store: RunStore) -> Table:
    """Arg max and decision rule side by side, of every stored set of runs."""
    reference = variant_title(RULE_REFERENCE)
    return Table(
        name=BY_SCALE,
        title="Arg max and decision rule on batches of validation images, by scale",
        caption=(
            f"Every stored set of runs of `{MULTICLASS}` that scored single batches, under the "
            f"headings of the table `{MULTICLASS}`. This is not the paper's comparison: only "
            "paper-scale runs on photographs enter the table `decision-rule`. Mean mIoU of random "
            "batches of validation images in which every class is represented, the same batches "
            "for all runs, by the arg max and by the decision rule of highest expected IoU; ± is "
            "the standard deviation over batches, each first averaged over seeds. Differences are "
            "taken batch by batch, and their ± is the standard error of the mean. The last one is "
            f"between the arg max of a variant and that of {reference}. "
            f"Filled by `{command(MULTICLASS)}`."
        ),
        row_title="training",
        columns=(
            Column("arg-max", "arg max", "%", better="higher"),
            Column("rule", "decision rule", "%", better="higher"),
            Column("difference", "rule − arg max, ± standard error", "points"),
            Column("gain", f"arg max − that of {reference}, ± standard error", "points"),
            Column("batches", "batches", digits=0),
            SEEDS,
        ),
        blocks=tuple(
            Block(heading, _rule_rows(store, cohort))
            for cohort, heading in named_sets(store, MULTICLASS)
            if any(ARG_MAX in run.metrics for run in cohort.runs)
        )
        or (Block("", _rule_rows(store, None)),),
    )


def _batch_scores(store: RunStore, runs: Sequence[Run], metric: str) -> OverBatches:
    """Batch -> mean over seeds, of the batches that every run with this metric has."""
    import pandas as pd

    found = [(run, dict(finite_history(store, run, metric))) for run in runs]
    scored = [(run, history) for run, history in found if history]
    grid = pd.DataFrame([history for _, history in scored], dtype=float)
    means = grid.dropna(axis="columns").mean().sort_index()
    return OverBatches(means.to_dict(), tuple(run for run, _ in scored))


def _rule_rows(store: RunStore, cohort: Cohort | None) -> tuple[TableRow, ...]:
    fill = fill_of(MULTICLASS, cohort)
    reference = _batch_scores(store, cohort.select(RULE_REFERENCE) if cohort else [], ARG_MAX)
    rows = []
    for name in planned_variants(MULTICLASS, cohort):
        chosen = cohort.select(name) if cohort else []
        arg_max, rule = (_batch_scores(store, chosen, metric) for metric in (ARG_MAX, RULE))
        cells = [
            arg_max.cell(fill),
            rule.cell(fill),
            rule.above(arg_max, fill),
            None if name == RULE_REFERENCE else arg_max.above(reference, fill),
            _number(len(arg_max.by_batch), arg_max.cell(fill)),
            _number(len(arg_max.runs), arg_max.cell(fill)),
        ]
        rows.append(TableRow(name, variant_title(name), tuple(cells)))
    return tuple(rows)


def _number(value: int, of: Cell) -> Cell | None:
    """A count beside the score that it is of; None where there is none."""
    return Cell(float(value), n=value, sources=of.sources) if value else None
