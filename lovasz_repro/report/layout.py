"""A table as text: what every format shows, before the format's own punctuation.

Text is Unicode ("52.71 ± 0.34", "−0.20", "–" for a missing number); the formats escape it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lovasz_repro.report.model import Block, Cell, Column, Table, TableRow

DASH, MINUS = "–", "−"
COMPARED_COLUMNS = ("paper", "here", "difference")


@dataclass(frozen=True)
class Text:
    """A cell as it is shown."""

    text: str
    bold: bool = False
    mark: str = ""
    """Letter of the note that says what fills a missing number."""


@dataclass(frozen=True)
class Line:
    """A row of the body: a label and its cells."""

    label: str
    cells: tuple[Text, ...]


@dataclass(frozen=True)
class Section:
    """Lines under a heading ("" for none)."""

    heading: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Grid:
    """A table as text.

    ``heads`` has one entry per column of the table; where published numbers stand beside ours,
    each column of the table takes three of the grid (``COMPARED_COLUMNS``).
    """

    row_title: str
    heads: tuple[str, ...]
    sides: tuple[str, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...]

    @property
    def width(self) -> int:
        """Number of columns beside the label."""
        return len(self.heads) * max(1, len(self.sides))


def layout(table: Table) -> Grid:
    """Lay a table out as text, best numbers marked, missing ones noted."""
    commands = _missing_commands(table)
    sections = tuple(_section(block, table, commands) for block in table.blocks)
    return Grid(
        row_title=table.row_title,
        heads=tuple(_head(column) for column in table.columns),
        sides=COMPARED_COLUMNS if table.compares else (),
        sections=sections,
        notes=(*_missing_notes(commands), *table.notes),
    )


def stacked(grid: Grid) -> Grid:
    """The grid with a line per side (paper, here, difference) instead of a column per side."""
    sections = tuple(
        Section(
            section.heading,
            tuple(
                Line(
                    f"{line.label}: {side}" if i == 0 else f"  {side}",
                    line.cells[i :: len(grid.sides)],
                )
                for line in section.lines
                for i, side in enumerate(grid.sides)
            ),
        )
        for section in grid.sections
    )
    return Grid(grid.row_title, grid.heads, (), sections, grid.notes)


def flat_heads(grid: Grid) -> list[str]:
    """One head per column of the grid: "val (%): paper", "here", "difference", and so on."""
    if not grid.sides:
        return list(grid.heads)
    first, *others = grid.sides
    return [text for head in grid.heads for text in (f"{head}: {first}", *others)]


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """A number with a true minus sign; "+" in front of a difference; no "−0.00"."""
    rounded = round(value, digits) + 0.0
    text = f"{abs(rounded):.{digits}f}"
    if rounded < 0:
        return MINUS + text
    return f"+{text}" if signed and rounded > 0 else text


def precise(value: Any, digits: int = 10) -> Any:
    """Floats, also inside lists and mappings, to so many digits: none of the float's noise."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    if isinstance(value, dict):
        return {key: precise(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [precise(item, digits) for item in value]
    return value


def value_text(cell: Cell, digits: int) -> str:
    """Our number: mean, and ± spread where there is one."""
    return DASH if cell.value is None else _with_spread(cell.value, cell.spread, digits)


def _with_spread(value: float, spread: float | None, digits: int) -> str:
    return number(value, digits) + ("" if spread is None else f" ± {number(spread, digits)}")


def _head(column: Column) -> str:
    return f"{column.title} ({column.unit})" if column.unit else column.title


def _missing_commands(table: Table) -> dict[str, str]:
    """Command -> letter of its note; no letter where one command fills every dash."""
    missing = [cell.command for cell in table.cells if cell.value is None]
    unique = list(dict.fromkeys(missing))
    letters = [""] if len(unique) == 1 else [chr(ord("a") + i) for i in range(len(unique))]
    return dict(zip(unique, letters, strict=True))


def _missing_notes(commands: dict[str, str]) -> Iterable[str]:
    for command, letter in commands.items():
        yield f"{DASH}{f' ({letter})' if letter else ''} not yet run; filled by `{command}`."


def _section(block: Block, table: Table, commands: dict[str, str]) -> Section:
    best_ours = _best(block, table.columns, lambda cell: cell.value)
    best_printed = _best(block, table.columns, lambda cell: cell.published)
    lines = []
    for r, row in enumerate(block.rows):
        cells: list[Text] = []
        for c, (cell, column) in enumerate(zip(row.cells, table.columns, strict=True)):
            ours = _ours(cell, column, (r, c) in best_ours, commands)
            if table.compares:
                cells += _compared(cell, column, ours, (r, c) in best_printed)
            else:
                cells.append(ours)
        lines.append(Line(row.label, tuple(cells)))
    return Section(block.heading, tuple(lines))


def _ours(cell: Cell | None, column: Column, bold: bool, commands: dict[str, str]) -> Text:
    if cell is None:
        return Text("")
    if cell.value is None:
        return Text(DASH, mark=commands[cell.command])
    return Text(value_text(cell, column.digits), bold)


def _compared(cell: Cell | None, column: Column, ours: Text, bold: bool) -> list[Text]:
    if cell is None or cell.published is None:
        return [Text(""), ours, Text("")]
    printed = Text(_with_spread(cell.published, cell.published_spread, column.digits), bold)
    if cell.difference is None:
        return [printed, ours, replace(ours, text=DASH, mark="")]
    return [printed, ours, Text(number(cell.difference, column.digits, signed=True))]


def _best(
    block: Block, columns: Sequence[Column], read: Callable[[Cell], float | None]
) -> set[tuple[int, int]]:
    """Positions of the best numbers of rows and columns that ask for it (two numbers or more)."""

    values: dict[tuple[int, int], float] = {}
    for r, row in enumerate(block.rows):
        for c, cell in enumerate(row.cells):
            value = read(cell) if cell is not None else None
            if value is not None:
                values[r, c] = value
    best: set[tuple[int, int]] = set()
    for r, row in enumerate(block.rows):
        best |= _best_of({k: v for k, v in values.items() if k[0] == r}, row)
    for c, column in enumerate(columns):
        best |= _best_of({k: v for k, v in values.items() if k[1] == c}, column)
    return best


def _best_of(values: dict[tuple[int, int], float], line: TableRow | Column) -> set[tuple[int, int]]:
    if line.better is None or len(values) < 2:
        return set()
    target = max(values.values()) if line.better == "higher" else min(values.values())
    return {key for key, value in values.items() if value == target}
