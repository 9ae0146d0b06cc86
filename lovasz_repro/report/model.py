"""What a table and a figure are: every number and every curve knows the runs behind it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lovasz_repro.report.runs import (
    Moment,
    Provenance,
    Run,
    RunStore,
    mean_and_spread,
    score_at,
    sources,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Cell:
    """One number of ours, in the unit of its column, beside the published one."""

    value: float | None = None
    """Mean over seeds; None: not yet run."""
    spread: float | None = None
    """Sample standard deviation over seeds; None for a single one."""
    n: int = 0
    """Number of values behind the mean."""
    sources: tuple[Provenance, ...] = ()
    published: float | None = None
    """The paper's number; None where the paper has none."""
    command: str = ""
    """What fills the cell when it is missing."""

    @property
    def difference(self) -> float | None:
        """Ours minus published, where both are there."""
        if self.value is None or self.published is None:
            return None
        return self.value - self.published


@dataclass(frozen=True)
class Column:
    """A column of numbers."""

    key: str
    title: str
    unit: str = ""
    digits: int = 2
    better: Better | None = None
    """Mark the best number of the column (within a block)."""


@dataclass(frozen=True)
class TableRow:
    """A row; a cell that is None does not apply."""

    key: str
    label: str
    cells: tuple[Cell | None, ...]
    better: Better | None = None
    """Mark the best number of the row."""


@dataclass(frozen=True)
class Block:
    """Rows that may be compared with each other, under one heading."""

    heading: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Table:
    """A table, ready to be rendered in any format."""

    name: str
    title: str
    caption: str
    row_title: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        """Every cell that applies."""
        rows = (row for block in self.blocks for row in block.rows)
        return [cell for row in rows for cell in row.cells if cell is not None]

    @property
    def compares(self) -> bool:
        """Whether published numbers stand beside ours."""
        return any(cell.published is not None for cell in self.cells)

    @property
    def filled(self) -> int:
        """How many cells have a number of ours."""
        return sum(cell.value is not None for cell in self.cells)


@dataclass(frozen=True)
class Curve:
    """One curve, surface or set of points, as drawn."""

    panel: str
    label: str
    data: Mapping[str, Sequence[float]]
    """Axis name -> values as drawn."""
    sources: tuple[Provenance, ...] = ()
    """Runs behind it; empty where it is computed from a definition alone."""
    computed: str = ""
    """What computes it, where no run is behind it."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption and provenance."""

    figure: "Figure"
    caption: str
    curves: tuple[Curve, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn yet."""

    reason: str
    command: str
    """What stores the runs that it needs."""


# -- cells from stored runs --------------------------------------------------------------------


def measured(
    values: Iterable[float], runs: Iterable[Run], command: str, *, factor: float = 1.0
) -> Cell:
    """Cell for values over seeds; missing where there are none, or none that is a number."""
    numbers = [factor * value for value in values if math.isfinite(value)]
    if not numbers:
        return Cell(command=command)
    mean, spread = mean_and_spread(numbers)
    return Cell(mean, spread, len(numbers), sources(runs), command=command)


def over_seeds(runs: Sequence[Run], key: str, fill: str) -> Cell:
    """A metric that the runs ended with, in percent."""
    having = [run for run in runs if key in run.metrics]
    return measured([run.metrics[key] for run in having], having, fill, factor=100)


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


@dataclass(frozen=True)
class Score:
    """A column of scores: which metrics of a run it shows (of several their mean), and when."""

    key: str
    title: str
    metrics: tuple[str, ...]
    at: Literal["last", "best"] = "last"

    @property
    def column(self) -> Column:
        """In percent, the best in bold."""
        return Column(self.key, self.title, "%", better="higher")

    def after(self, store: RunStore, runs: Sequence[Run], fill: str) -> Cell:
        """What the runs reached, over seeds."""
        found = self._of(store, runs, self.at)
        return measured([score for _, score in found], [r for r, _ in found], fill, factor=100)

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
