"""Tables on the terminal."""

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.text import Text as RichText

from lovasz_repro.host.output import visible
from lovasz_repro.host.terminal import has_room, print_note, print_sections
from lovasz_repro.host.terminal import print_table as print_rows
from lovasz_repro.report.layout import Grid, Text, flat_heads, layout, stacked
from lovasz_repro.report.model import Table


def print_table(table: Table, console: Console) -> None:
    """Show a table; published, own and difference move under each other where space is short."""
    grid = layout(table)
    if grid.sides and not has_room(console, _heads(grid), _sections(grid)):
        grid = stacked(grid)
    console.print(RichText(visible(table.title), style="bold"))
    print_sections(console, _heads(grid), _sections(grid))
    console.print()
    for text in (table.caption, *grid.notes):
        print_note(console, text.replace("`", ""), "dim")
    console.print()


def print_overview(tables: Sequence[Table], news: Collection[str], console: Console) -> None:
    """A line for each table: how many numbers it has, and what gives it the next one.

    Args:
        tables: all of them.
        news: names of those whose numbers are not those of the report before.
        console: where.
    """
    rows = []
    for table in tables:
        missing = [cell.command for cell in table.cells if cell.value is None]
        state = "new" if table.filled and table.name in news else ""
        numbers = f"{table.filled} of {len(table.cells)}"
        rows.append([table.name, numbers, state, missing[0] if missing else ""])
    heads = ["table", "numbers", "", "what is missing comes from"]
    print_rows(console, heads, rows, words=range(4))
    console.print()


def _heads(grid: Grid) -> list[str]:
    return [
        visible(grid.row_title),
        *(visible(head).replace(": ", "\n") for head in flat_heads(grid)),
    ]


def _sections(grid: Grid) -> list[tuple[str, list[list[RichText]]]]:
    return [
        (
            section.heading,
            [[RichText(line.label), *map(_text, line.cells)] for line in section.lines],
        )
        for section in grid.sections
    ]


def _text(cell: Text) -> RichText:
    shown = f"{cell.text} ({cell.mark})" if cell.mark else cell.text
    return RichText(shown, style="bold" if cell.bold else "")
