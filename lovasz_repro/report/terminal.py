"""Tables on the terminal."""

from rich.console import Console
from rich.text import Text as RichText

from lovasz_repro.host.terminal import has_room, print_note, print_sections
from lovasz_repro.report.layout import Grid, Line, Section, Text, flat_heads, layout
from lovasz_repro.report.model import Table


def print_table(table: Table, console: Console) -> None:
    """Show a table; published, own and difference move under each other where space is short."""
    grid = layout(table)
    if grid.sides and not has_room(console, _heads(grid), _sections(grid)):
        grid = _stacked(grid)
    console.print(RichText(table.title, style="bold"))
    print_sections(console, _heads(grid), _sections(grid))
    console.print()
    for text in (table.caption, *grid.notes):
        print_note(console, text.replace("`", ""), "dim")
    console.print()


def _heads(grid: Grid) -> list[str]:
    return [grid.row_title, *(head.replace(": ", "\n") for head in flat_heads(grid))]


def _sections(grid: Grid) -> list[tuple[str, list[list[RichText]]]]:
    return [
        (
            section.heading,
            [[RichText(line.label), *map(_text, line.cells)] for line in section.lines],
        )
        for section in grid.sections
    ]


def _stacked(grid: Grid) -> Grid:
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


def _text(cell: Text) -> RichText:
    shown = f"{cell.text} ({cell.mark})" if cell.mark else cell.text
    return RichText(shown, style="bold" if cell.bold else "")
