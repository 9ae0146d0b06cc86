"""Tables of the decision rule of Nowozin [20] (Sec. 4.3, comparison to prior work).

A run scores the same random batches of validation images, which show every class, by the arg max
and by the rule. Step k of both metrics is batch k, so that differences are taken batch by batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lovasz_repro.report.model import Block, Cell, Column, Row, Table, measured
from lovasz_repro.report.published import paper_table
from lovasz_repro.report.runs import Cohort, Run, RunStore, command
from lovasz_repro.report.style import variant_title
from lovasz_repro.report.voc_binary_runs import is_papers
from lovasz_repro.report.voc_multiclass_runs import (
    MULTICLASS,
    PAPER_BATCH,
    named_sets,
    planned_variants,
)

ARG_MAX, RULE = "batches/miou", "batches/miou_decision_rule"
REFERENCE = "x-loss-equibatch"
"""The network that the paper applies the rule to, its best one trained with cross-entropy."""
PAPER_ROWS = {
    "cross-entropy": (REFERENCE, ARG_MAX),
    "decision-rule": (REFERENCE, RULE),
    "lovasz-softmax": ("lovasz-equibatch-30k", ARG_MAX),
}
"""Rows of the paper's comparison -> variant and metric."""
BY_SCALE = "decision-rule-by-scale"


@dataclass(frozen=True)
class Scores:
    """What the runs of a variant reached on each batch, the mean over seeds."""

    by_batch: dict[int, float]
    runs: tuple[Run, ...]

    def cell(self, fill: str) -> Cell:
        """Mean and standard deviation over batches, in percent."""
        return measured(list(self.by_batch.values()), self.runs, fill, factor=100)

    def above(self, other: "Scores", fill: str) -> Cell:
        """Mean difference to other scores of the same batches, in points, ± its standard error."""
        shared = [batch for batch in self.by_batch if batch in other.by_batch]
        differences = [self.by_batch[batch] - other.by_batch[batch] for batch in shared]
        cell = measured(differences, (*self.runs, *other.runs), fill, factor=100)
        error = cell.spread / math.sqrt(cell.n) if cell.spread is not None else None
        return replace(cell, spread=error)


def decision_rule(store: RunStore) -> Table:
    """The paper's three numbers; paper-scale runs on photographs alone."""
    papers = [
        (_paper_cells(store, cohort), heading)
        for cohort, heading in named_sets(store)
        if is_papers(cohort) and cohort.batch_sizes == [PAPER_BATCH]
    ]
    if not papers:
        return paper_table("decision-rule")
    ours, heading = max(papers, key=lambda grid: sum(c.value is not None for c in grid[0].values()))
    table = paper_table("decision-rule", ours)
    others = f" {len(papers) - 1} more: table `{BY_SCALE}`." if len(papers) > 1 else ""
    note = f"Paper-scale runs here: {heading}.{others} ± is the standard deviation over batches."
    return replace(table, notes=(*table.notes, note))


def decision_rule_by_scale(store: RunStore) -> Table:
    """Arg max and decision rule side by side, of every stored set of runs."""
    found = [(cohort, heading) for cohort, heading in named_sets(store) if _has_batches(cohort)]
    blocks = [Block(heading, _rows(store, cohort)) for cohort, heading in found]
    reference = variant_title(REFERENCE)
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
            Column("seeds", "seeds", digits=0),
        ),
        blocks=tuple(blocks) or (Block("", _rows(store, None)),),
    )


def scores(store: RunStore, runs: Sequence[Run], metric: str) -> Scores:
    """Batch -> mean over seeds, of the batches that every run with this metric has."""
    histories = {run.run_id: _finite(store, run, metric) for run in runs}
    having = [run for run in runs if histories[run.run_id]]
    if not having:
        return Scores({}, ())
    shared = sorted(set.intersection(*(set(histories[run.run_id]) for run in having)))
    means = {batch: fmean(histories[run.run_id][batch] for run in having) for batch in shared}
    return Scores(means, tuple(having))


def _finite(store: RunStore, run: Run, metric: str) -> dict[int, float]:
    return {k: score for k, score in store.history(run.run_id, metric) if math.isfinite(score)}


def _has_batches(cohort: Cohort) -> bool:
    return any(ARG_MAX in run.metrics for run in cohort.runs)


def _paper_cells(store: RunStore, cohort: Cohort) -> dict[tuple[str, str], Cell]:
    return {
        (row, "batch-miou"): scores(store, cohort.select(name), metric).cell("")
        for row, (name, metric) in PAPER_ROWS.items()
    }


def _rows(store: RunStore, cohort: Cohort | None) -> tuple[Row, ...]:
    fill = command(MULTICLASS, cohort.profile) if cohort else command(MULTICLASS)
    reference = scores(store, cohort.select(REFERENCE) if cohort else [], ARG_MAX)
    rows = []
    for name in planned_variants(cohort):
        chosen = cohort.select(name) if cohort else []
        arg_max, rule = (scores(store, chosen, metric) for metric in (ARG_MAX, RULE))
        cells = [
            arg_max.cell(fill),
            rule.cell(fill),
            rule.above(arg_max, fill),
            None if name == REFERENCE else arg_max.above(reference, fill),
            _number(len(arg_max.by_batch), arg_max.cell(fill)),
            _number(len(arg_max.runs), arg_max.cell(fill)),
        ]
        rows.append(Row(name, variant_title(name), tuple(cells)))
    return tuple(rows)


def _number(value: int, of: Cell) -> Cell | None:
    """A count beside the score that it is of; None where there is none."""
    return Cell(float(value), n=value, sources=of.sources) if value else None
