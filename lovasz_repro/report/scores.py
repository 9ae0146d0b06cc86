"""Cells of tables from stored runs: over seeds, over categories, over batches.

Metrics are fractions, shown in percent. What is not a number, or was not stored, is missing.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lovasz_repro.report.model import Cell, Column
from lovasz_repro.report.runs import (
    Cohort,
    Moment,
    Run,
    RunStore,
    finite_history,
    frame,
    having,
    mean_and_spread,
    score_at,
    seed,
    sources,
)
from lovasz_repro.report.sets import VOC_CATEGORIES, category

REGIMES = {
    "val-single": ("val/", "single-scale", ""),
    "val-multi": ("val/multi_scale/", "multi-scale", "evaluation.multi_scale"),
    "val-crf": ("val/crf/", "multi-scale + CRF", "evaluation.crf"),
}
"""Columns of Table 2 -> what the names of their metrics begin with, how they are called, and the
setting without which a run has no such score."""


def measured(
    values: Iterable[float], runs: Iterable[Run], command: str, *, factor: float = 100.0
) -> Cell:
    """Cell for values over seeds; missing where there are none, or none that is a number."""
    numbers = [factor * value for value in values if math.isfinite(value)]
    if not numbers:
        return Cell(command=command)
    mean, spread = mean_and_spread(numbers)
    return Cell(mean, spread, len(numbers), sources(runs), command=command)


def over_seeds(runs: Sequence[Run], key: str, fill: str = "") -> Cell:
    """A metric that the runs ended with."""
    kept = having(runs, key)
    return measured([run.metrics[key] for run in kept], kept, fill)


def once(scores: Sequence[tuple[Run, float]], fill: str) -> Cell:
    """Scores of the network that several runs start from: a single value where they agree, else
    one a seed, however many runs start from it."""
    known = [(run, score) for run, score in scores if math.isfinite(score)]
    by_seed: dict[str, list[float]] = {}
    for run, score in known:
        by_seed.setdefault(seed(run), []).append(score)
    agree = len({round(score, 9) for _, score in known}) == 1
    values = [statistics.fmean(of_one) for of_one in by_seed.values()]
    return measured(values[:1] if agree else values, [run for run, _ in known], fill)


def count(cell: Cell | None) -> Cell | None:
    """How many values are behind a cell; None for a missing one."""
    return Cell(float(cell.n), n=cell.n, sources=cell.sources) if cell and cell.n else None


@dataclass(frozen=True)
class Score:
    """A column of scores: which metrics of a run it shows (of several their mean), and when."""

    key: str
    title: str
    metrics: tuple[str, ...]
    at: Literal["last", "best"] = "last"
    needs: str = ""
    """A setting without which a run has no such score."""

    @property
    def column(self) -> Column:
        """In percent, the best in bold."""
        return Column(self.key, self.title, "%", better="higher")

    def applies(self, cohort: Cohort | None) -> bool:
        """Whether the runs of a set are scored in this way at all."""
        return cohort is None or not self.needs or cohort.setting(self.needs, "") is not None

    def after(self, store: RunStore, runs: Sequence[Run], fill: str) -> Cell:
        """What the runs reached, over seeds."""
        found = self._of(store, runs, self.at)
        return measured([score for _, score in found], [run for run, _ in found], fill)

    def before(self, store: RunStore, runs: Sequence[Run], fill: str) -> Cell:
        """Before training: one number, unless the seed or the machine changes it."""
        return once(self._of(store, runs, "start"), fill)

    def _of(self, store: RunStore, runs: Sequence[Run], at: Moment) -> list[tuple[Run, float]]:
        found = []
        for run in runs:
            values = [score_at(store, run, metric, at) for metric in self.metrics]
            known = [value for value in values if value is not None and math.isfinite(value)]
            if len(known) == len(values):
                found.append((run, math.fsum(known) / len(known)))
        return found


# -- one category against the rest -------------------------------------------------------------


def over_categories(runs: Sequence[Run], key: str, classes: Sequence[str], fill: str) -> Cell:
    """Mean and spread over categories, each averaged over seeds; missing where one of them is."""
    used = [run for run in having(runs, key) if category(run) in classes]
    if not used:
        return Cell(command=fill)
    means = frame(used).groupby("data.category")[key].mean().reindex(list(classes))
    return Cell(command=fill) if means.hasnans else measured(means, used, fill)


def all_over_seeds(runs: Sequence[Run], key: str, fill: str) -> Cell:
    """Mean over all 20 categories of each seed that has them; mean and spread over those seeds."""
    scored = having(runs, key)
    if not scored:
        return Cell(command=fill)
    grid = frame(scored).pivot_table(key, "seed", "data.category").reindex(columns=VOC_CATEGORIES)
    means = grid.dropna().mean(axis="columns")
    return measured(means, [run for run in scored if seed(run) in means.index], fill)


# -- the decision rule of Nowozin [20] ---------------------------------------------------------
# A run scores the same random batches of validation images, which show every class, by the arg max
# and by the rule. Step k of both metrics is batch k, so differences are taken batch by batch.

ARG_MAX, RULE = "batches/miou", "batches/miou_decision_rule"
OTHER_RULES = {
    "batches/miou_calibrated_rule": "rule on calibrated probabilities",
    "batches/miou_rankseg": "rankseg",
}
"""Decision rules beside it, which not every run was scored by."""
RULE_REFERENCE = "x-loss-equibatch"
"""The network that the paper applies the rule to, its best one trained with cross-entropy."""


@dataclass(frozen=True)
class OverBatches:
    """What the runs of a variant reached on each batch, the mean over seeds."""

    by_batch: dict[Any, float]
    runs: tuple[Run, ...]

    @classmethod
    def of(cls, store: RunStore, runs: Sequence[Run], metric: str) -> "OverBatches":
        """Of the batches that every run with this metric has."""
        import pandas as pd

        found = [(run, dict(finite_history(store, run, metric))) for run in runs]
        scored = [(run, history) for run, history in found if history]
        grid = pd.DataFrame([history for _, history in scored], dtype=float)
        means = grid.dropna(axis="columns").mean().sort_index()
        return cls(means.to_dict(), tuple(run for run, _ in scored))

    def cell(self, fill: str) -> Cell:
        """Mean and standard deviation over batches."""
        return measured(self.by_batch.values(), self.runs, fill)

    def above(self, other: "OverBatches", fill: str) -> Cell:
        """Mean difference to other scores of the same batches, ± its standard error."""
        shared = [batch for batch in self.by_batch if batch in other.by_batch]
        differences = [self.by_batch[batch] - other.by_batch[batch] for batch in shared]
        cell = measured(differences, (*self.runs, *other.runs), fill)
        error = cell.spread / math.sqrt(cell.n) if cell.spread is not None else None
        return replace(cell, spread=error)
