"""Tables on the terminal, with rich."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text as RichText

from lovasz_repro.report.layout import Grid, Line, Section, Text, flat_heads, layout
from lovasz_repro.report.model import Table

GAP = 2


def print_table(table: Table, console: Console) -> None:
    """Show a table; published, own and difference move under each other where space is short."""
    grid = layout(table)
    if grid.sides and sum(_widths(grid)) + GAP * grid.width > console.width:
        grid = _stacked(grid)
    console.print(RichText(table.title, style="bold"))
    widths = _widths(grid)
    for section in grid.sections:
        if section.heading:
            console.print(RichText(section.heading, style="italic"))
        console.print(_section(grid, section, widths))
    for text in (table.caption, *grid.notes):
        console.print(Padding(RichText(text.replace("`", ""), style="dim"), (0, 0, 0, 1)))
    console.print()


def _section(grid: Grid, section: Section, widths: Sequence[int]) -> RichTable:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP, 0, 0))
    shown.add_column(grid.row_title, width=widths[0], overflow="fold")
    for head, width in zip(_heads(grid), widths[1:], strict=True):
        shown.add_column(head, justify="right", vertical="bottom", min_width=width)
    for line in section.lines:
        cells = [RichText(_text(cell), "bold" if cell.bold else "") for cell in line.cells]
        shown.add_row(RichText(line.label), *cells)
    return shown


def _stacked(grid: Grid) -> Grid:
    """The grid with a line per side (paper, here, difference) instead of a column per side."""
    sections = tuple(
        Section(
            section.heading,
            tuple(
                Line(
                    line.label if i == 0 else "",
                    (Text(side), *line.cells[i :: len(grid.sides)]),
                )
                for line in section.lines
                for i, side in enumerate(grid.sides)
            ),
        )
        for section in grid.sections
    )
    return Grid(grid.row_title, ("", *grid.heads), (), sections, grid.notes)


def _heads(grid: Grid) -> list[str]:
    return [head.replace(": ", "\n") for head in flat_heads(grid)]


def _text(cell: Text) -> str:
    return f"{cell.text} ({cell.mark})" if cell.mark else cell.text


def _widths(grid: Grid) -> list[int]:
    """Characters that the label and each column need; heads may wrap between words."""
    lines = [line for section in grid.sections for line in section.lines]
    widths = [max(len(text) for text in (grid.row_title, *(line.label for line in lines)))]
    for i, head in enumerate(_heads(grid)):
        words = max((len(word) for word in head.split()), default=0)
        widths.append(max([words, *(len(_text(line.cells[i])) for line in lines)]))
    return widths
