"""What a table and a figure are: every number and every curve knows the runs behind it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lovasz_repro.report.runs import Provenance

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
    published_spread: float | None = None
    """What the paper prints after ±; mostly nothing."""
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
    parts: tuple["Table", ...] = ()
    """Tables in which people read it, where its blocks may not be compared with each other."""

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
