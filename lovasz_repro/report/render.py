"""Tables as Markdown, LaTeX, CSV and JSON, and on the terminal; the same runs, the same bytes."""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text as RichText

from lovasz_repro.errors import UserError
from lovasz_repro.host.output import no_formula, visible
from lovasz_repro.host.terminal import has_room, print_note, print_sections
from lovasz_repro.host.terminal import print_table as print_rows
from lovasz_repro.report.latex import to_latex
from lovasz_repro.report.layout import Grid, Text, flat_heads, layout, precise, stacked
from lovasz_repro.report.model import Cell, Column, Table
from lovasz_repro.report.runs import Remembered, RunStore
from lovasz_repro.report.tables import TABLES


def build_tables(store: RunStore, names: Sequence[str] | None = None) -> list[Table]:
    """Tables by name, or all.

    Raises:
        UserError: an unknown table; says which there are.
    """
    names = [chosen(name, TABLES, "table") for name in names or TABLES]
    remembered = Remembered(store)
    return [TABLES[name](remembered) for name in names]


def rendered(table: Table, formats: Sequence[str]) -> dict[str, str]:
    """The files of a table: name and text.

    Raises:
        UserError: an unknown format; says which there are.
    """
    formats = [chosen(form, RENDERERS, "format") for form in formats]
    return {f"{table.name}.{form}": RENDERERS[form](table) for form in formats}


def chosen(name: str, known: Iterable[str], what: str) -> str:
    """``name`` if it is known.

    Raises:
        UserError: it is not; names the nearest one and all others.
    """
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"No {what} {name!r}{hint}. There are: {', '.join(known)}.")
    return name


def to_markdown(table: Table) -> str:
    """GitHub's Markdown: title, caption, table, notes."""
    grid = layout(table)
    heads = [grid.row_title, *flat_heads(grid)]
    lines = [f"### {md_text(table.title)}", "", md_text(table.caption), ""]
    lines.append(md_line(md_escape(head) for head in heads))
    lines.append("|---|" + "---:|" * grid.width)
    for section in grid.sections:
        if section.heading:
            heading = f"**{md_escape(section.heading)}**"
            lines.append(md_line([heading, *[""] * grid.width]))
        for line in section.lines:
            lines.append(md_line([md_escape(line.label), *map(_md_cell, line.cells)]))
    for note in grid.notes:
        lines += ["", md_text(note)]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line per cell: for spreadsheets and data frames. Missing numbers are empty fields.

    Text that a spreadsheet would take for a formula has an apostrophe in front.
    """
    fields = ("block", "row", "column", "unit", "value", "spread", "n", "published", "difference",
              "runs", "command")  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for cell in _cells(table):
        runs = " ".join(source["run_id"] for source in cell.pop("sources"))
        values = {key: cell.get(key) for key in fields} | {"runs": runs}
        writer.writerow({key: no_formula(value) for key, value in values.items()})
    return out.getvalue()


def to_json(table: Table) -> str:
    """Every cell with its provenance: run, commit, config hash, data, seed, device."""
    content = {
        "name": table.name,
        "title": table.title,
        "caption": table.caption,
        "columns": [asdict(column) for column in table.columns],
        "cells": list(_cells(table)),
        "notes": list(layout(table).notes),
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


RENDERERS: dict[str, Callable[[Table], str]] = {
    "md": to_markdown,
    "tex": to_latex,
    "csv": to_csv,
    "json": to_json,
}


def md_escape(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    return re.sub(r"([\\`|*_<>\[\]#~])", r"\\\1", visible(text))


def md_text(text: str) -> str:
    """Escaped text with `commands` as they are."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0 or "" in parts[1:-1]:  # somebody's name has a backtick
        return md_escape(text)
    return "`".join(part if i % 2 else md_escape(part) for i, part in enumerate(parts))


def md_line(cells: Iterable[str]) -> str:
    """A row of a table, of escaped cells."""
    return f"| {' | '.join(cells)} |"


def print_table(table: Table, console: Console) -> None:
    """Show a table; published, own and difference move under each other where space is short."""
    grid = layout(table)
    if grid.sides and not has_room(console, _rich_heads(grid), _sections(grid)):
        grid = stacked(grid)
    console.print(RichText(visible(table.title), style="bold"))
    print_sections(console, _rich_heads(grid), _sections(grid))
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


def _rich_heads(grid: Grid) -> list[str]:
    return [
        visible(grid.row_title),
        *(visible(head).replace(": ", "\n") for head in flat_heads(grid)),
    ]


def _sections(grid: Grid) -> list[tuple[str, list[list[RichText]]]]:
    return [
        (
            section.heading,
            [[RichText(line.label), *map(_rich, line.cells)] for line in section.lines],
        )
        for section in grid.sections
    ]


def _rich(cell: Text) -> RichText:
    shown = f"{cell.text} ({cell.mark})" if cell.mark else cell.text
    return RichText(shown, style="bold" if cell.bold else "")


def _md_cell(cell: Text) -> str:
    mark = f" ({cell.mark})" if cell.mark else ""
    return f"**{cell.text}**" if cell.bold else cell.text + mark


def _cells(table: Table) -> Iterable[dict[str, Any]]:
    for block in table.blocks:
        for row in block.rows:
            for cell, column in zip(row.cells, table.columns, strict=True):
                if cell is not None:
                    where = {"block": block.heading, "row": row.key, "column": column.key}
                    yield where | _numbers(cell, column)


def _numbers(cell: Cell, column: Column) -> dict[str, Any]:
    return {
        "unit": column.unit,
        "value": precise(cell.value),
        "spread": precise(cell.spread),
        "n": cell.n,
        "published": cell.published,
        "published_spread": cell.published_spread,
        "difference": precise(cell.difference),
        "command": "" if cell.value is not None else cell.command,
        "sources": [asdict(source) for source in cell.sources],
    }
