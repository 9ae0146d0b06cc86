"""The paper's own tables: numbers in ``experiments/published.yaml``, ours beside them."""

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from lovasz_repro.config.read import Strict, read_yaml, validate
from lovasz_repro.config.schema import experiments_folder
from lovasz_repro.report.model import Better, Block, Cell, Column, Table, TableRow
from lovasz_repro.report.runs import Cohort
from lovasz_repro.report.sets import Found, is_papers

Cells = dict[tuple[str, str], Cell]
"""(row key, column key) -> cell."""

Printed = float | Literal["none", "n/a"]
"""A number; "none": the paper leaves the cell empty; "n/a": the cell does not apply."""


class PublishedColumn(Strict):
    """A column of a printed table."""

    title: str
    better: Better | None = None
    command: str | None = None
    """What fills this column, where it is not the table's command."""


class PublishedRow(Strict):
    """A row of a printed table, with its numbers in the order of the columns."""

    title: str
    better: Better | None = None
    command: str | None = None
    block: str = ""
    """Heading that the row stands under."""
    values: list[Printed]


class PublishedTable(Strict):
    """A table as the paper prints it."""

    title: str
    place: str
    caption: str
    command: str
    """What fills the table."""
    unit: str
    row_title: str
    columns: dict[str, PublishedColumn] = Field(min_length=1)
    rows: dict[str, PublishedRow] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> "PublishedTable":
        for key, row in self.rows.items():
            if len(row.values) != len(self.columns):
                raise ValueError(f"row {key} has {len(row.values)} values, "
                                 f"the table {len(self.columns)} columns")  # fmt: skip
        return self


class PublishedFile(Strict):
    """``experiments/published.yaml``."""

    tables: dict[str, PublishedTable]


def published_tables() -> dict[str, PublishedTable]:
    """Every table of the paper, by name.

    Raises:
        UserError: the file is missing or holds something else.
    """
    path = experiments_folder() / "published.yaml"
    return validate(PublishedFile, read_yaml(path), path.name).tables


def fullest(
    found: Found, cells_of: Callable[[Cohort], Cells], table: str = "", about: str = "here"
) -> tuple[Cells, str]:
    """Cells of the paper's set that has the most numbers, and the note that says which it is.

    Args:
        found: sets and their headings; those that are not the paper's are left out.
        cells_of: what a set fills.
        table: which table shows all sets.
        about: what the runs are of.
    """
    grids = [(cells_of(cohort), heading) for cohort, heading in found if is_papers(cohort)]
    if not grids:
        return {}, ""
    cells, heading = max(grids, key=lambda grid: sum(c.value is not None for c in grid[0].values()))
    others = f". {len(grids) - 1} more: table `{table}`" if table else (
        f" ({len(grids) - 1} more sets are not shown)")  # fmt: skip
    return cells, f"Paper-scale runs {about}: {heading}{others if len(grids) > 1 else ''}."


def paper_table(name: str, ours: Cells | None = None, *notes: str) -> Table:
    """A table of the paper with our numbers beside the printed ones.

    Args:
        name: its key in the file.
        ours: cells from paper-scale runs; the rest are dashes.
        notes: more of them; empty ones are left out.

    Raises:
        ValueError: a cell comes from a run of another scale.
    """
    printed = published_tables()[name]
    headings = list(dict.fromkeys(row.block for row in printed.rows.values()))
    rows = {key: _row(printed, key, ours or {}) for key in printed.rows}
    return Table(
        name=name,
        title=f"{printed.place}: {printed.title}",
        caption=printed.caption,
        row_title=printed.row_title,
        columns=tuple(
            Column(key, column.title, printed.unit, better=column.better)
            for key, column in printed.columns.items()
        ),
        blocks=tuple(
            Block(
                heading, tuple(rows[k] for k, row in printed.rows.items() if row.block == heading)
            )
            for heading in headings
        ),
        notes=tuple(note for note in (*printed.notes, *notes) if note),
    )


def _row(printed: PublishedTable, key: str, ours: Cells) -> TableRow:
    row = printed.rows[key]
    cells = tuple(
        _cell(value, ours.get((key, name)), column.command or row.command or printed.command)
        for (name, column), value in zip(printed.columns.items(), row.values, strict=True)
    )
    return TableRow(key, row.title, cells, row.better)


def _cell(value: Printed, ours: Cell | None, command: str) -> Cell | None:
    if value == "n/a":
        return None
    published = value if isinstance(value, float) else None
    ours = ours or Cell(command=command)
    foreign = [s.name for s in ours.sources if s.scale != "paper"]
    if foreign:
        raise ValueError(f"{foreign[0]} is no paper-scale run: it cannot stand in a paper table")
    return Cell(ours.value, ours.spread, ours.n, ours.sources, published, command)
