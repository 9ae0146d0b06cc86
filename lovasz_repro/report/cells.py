"""Cells of tables from stored runs: scores over seeds, at the best snapshot, before training."""

import math
from collections.abc import Sequence

from lovasz_repro.report.model import Cell, measured
from lovasz_repro.report.runs import Run, RunStore, at_best, before_training, sources


def over_seeds(runs: Sequence[Run], key: str, fill: str) -> Cell:
    """A metric that the runs ended with, in percent."""
    having = [run for run in runs if key in run.metrics]
    return measured([run.metrics[key] for run in having], having, fill, factor=100)


def at_best_over_seeds(store: RunStore, runs: Sequence[Run], key: str, fill: str) -> Cell:
    """A metric at the best snapshot of each run, in percent."""
    found = [(run, at_best(store, run, key)) for run in runs]
    having = [(run, value) for run, value in found if value is not None]
    return measured([value for _, value in having], [run for run, _ in having], fill, factor=100)


def initial(store: RunStore, runs: Sequence[Run], key: str, fill: str) -> Cell:
    """Score before training, in percent: one number, unless the seed or the machine changes it."""
    scores = [(run, before_training(store, run, key)) for run in runs]
    return once([(run, score) for run, score in scores if score is not None], fill)


def once(scores: Sequence[tuple[Run, float]], fill: str) -> Cell:
    """Scores of the same network in several runs: a single value where they agree."""
    having = [(run, score) for run, score in scores if math.isfinite(score)]
    runs = [run for run, _ in having]
    if len({round(score, 9) for _, score in having}) == 1:
        return Cell(100 * having[0][1], None, 1, sources(runs), command=fill)
    return measured([score for _, score in having], runs, fill, factor=100)


def count(cell: Cell) -> Cell | None:
    """How many values are behind a cell; None for a missing one."""
    return Cell(float(cell.n), n=cell.n, sources=cell.sources) if cell.n else None
