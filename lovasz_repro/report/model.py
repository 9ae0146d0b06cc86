"""What a table is: rows of cells, each of which knows the runs behind its number."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lovasz_repro.report.runs import Run, Source, mean_and_spread, sources

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
    sources: tuple[Source, ...] = ()
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
class Row:
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
    rows: tuple[Row, ...]


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


def measured(
    values: Sequence[float], runs: Iterable[Run], command: str, *, factor: float = 1.0
) -> Cell:
    """Cell for values over seeds; missing where there are none, or none that is a number."""
    numbers = [factor * value for value in values if math.isfinite(value)]
    if not numbers:
        return Cell(command=command)
    mean, spread = mean_and_spread(numbers)
    return Cell(mean, spread, len(numbers), sources(runs), command=command)
