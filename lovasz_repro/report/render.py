"""Tables as Markdown, LaTeX, CSV and JSON, and on the terminal; the same runs, the same bytes."""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from textwrap import wrap
from typing import Any

from rich.console import Console
from rich.text import Text as RichText

from lovasz_repro.config.read import known_name
from lovasz_repro.host.output import has_room, no_formula, print_note, print_sections, visible
from lovasz_repro.host.output import print_table as print_rows
from lovasz_repro.report.layout import (
    Grid,
    Line,
    Section,
    Text,
    flat_heads,
    layout,
    precise,
    stacked,
)
from lovasz_repro.report.model import Cell, Column, Table
from lovasz_repro.report.runs import RunStore, remember
from lovasz_repro.report.tables import TABLES

# ---- LaTeX ---------------------------------------------------------------------------------------
#
# Tables as LaTeX that fits its page: heads wrap, columns move below each other, long ones go on.
#
# Needs ``\usepackage{booktabs,adjustbox}``; nothing else, in one column or two.

LATEX_SPELLED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "–": "--", "×": r"$\times$", "→": r"$\rightarrow$",
    "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "*": "{*}",
}  # fmt: skip
"""Characters that LaTeX reads otherwise, or that its standard fonts lack. After the end of a row it
takes a bracket or an asterisk for an option of that end."""
MOST_COLUMNS = 9
"""Of a table whose published numbers stand beside ours; of wider ones they stand above them."""
MOST_TABLE_LINES = 34
"""Of a page."""
HEADING = 2
"""Lines of a section's heading."""
LEAST_HEAD = 9
"""Characters in a line of a head."""


def to_latex(table: Table) -> str:
    """Floats with booktabs; wide tables span both columns of a two-column paper."""
    grid = layout(table)
    if grid.sides and grid.width > MOST_COLUMNS:
        grid = stacked(grid)
    pages = _pages(grid.sections)
    lines = [
        f"% {table.name}, by `lovasz-repro report tables`; needs \\usepackage{{booktabs,adjustbox}}"
    ]
    for number, sections in enumerate(pages):
        caption = f"\\caption{{{latex_text(_caption(table))}}}\n\\label{{tab:{table.name}}}"
        if number:
            caption = "\\addtocounter{table}{-1}\n\\caption[]{(continued)}"
        notes = grid.notes if number == len(pages) - 1 else ()
        lines += _float(replace(grid, sections=sections, notes=notes), caption)
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is; what its standard fonts lack by its code."""
    return "".join(map(_spelled, visible(text)))


def latex_text(text: str) -> str:
    """Escaped text with `commands` in typewriter, which may break between words."""
    parts = text.split("`")
    return "".join(
        f"\\texttt{{{latex_escape(part).replace('--', '-{}-')}}}" if i % 2 else latex_escape(part)
        for i, part in enumerate(parts)
    )


def _spelled(character: str) -> str:
    if character in LATEX_SPELLED:
        return LATEX_SPELLED[character]
    latin = character.isascii() or (character.isalpha() and ord(character) < 256)
    return character if latin else f"\\texttt{{U+{ord(character):04X}}}"


def _caption(table: Table) -> str:
    """Title and caption; LaTeX has numbers of its own."""
    title = re.sub(r"^(Table \d+): (.*)$", r"\2 (\1 of the paper)", table.title)
    return f"{title}. {table.caption}"


def _pages(sections: Sequence[Section]) -> list[tuple[Section, ...]]:
    """Sections, cut where they are longer than a page, in groups of a page each."""
    pages: list[list[Section]] = [[]]
    room = MOST_TABLE_LINES
    for section in sections:
        for start in range(0, len(section.lines), MOST_TABLE_LINES):
            part = Section(section.heading, section.lines[start : start + MOST_TABLE_LINES])
            if pages[-1] and len(part.lines) + HEADING > room:
                pages.append([])
                room = MOST_TABLE_LINES
            pages[-1].append(part)
            room -= len(part.lines) + HEADING
    return [tuple(page) for page in pages]


def _float(grid: Grid, caption: str) -> Iterator[str]:
    environment = "table*" if grid.width > 5 else "table"
    yield f"\\begin{{{environment}}}[tp]"
    yield r"\centering\small\setlength{\tabcolsep}{4pt}"
    yield caption
    yield r"\begin{adjustbox}{max width=\linewidth}"
    yield f"\\begin{{tabular}}{{l{'r' * grid.width}}}"
    yield r"\toprule"
    yield from _heads(grid)
    for section in grid.sections:
        yield r"\midrule"
        if section.heading:
            characters = sum(max(width, LEAST_HEAD) + 1 for width in _widths(grid))
            for part in wrap(section.heading, max(characters, 40)):
                heading = f"\\emph{{{latex_text(part)}}}"
                yield f"\\multicolumn{{{grid.width + 1}}}{{l}}{{{heading}}} \\\\"
        yield from map(_line, section.lines)
    yield "\\bottomrule\n\\end{tabular}\n\\end{adjustbox}"
    if grid.notes:
        notes = r" \\ ".join(latex_text(note) for note in grid.notes)
        yield f"\n\\smallskip\n\\parbox{{\\linewidth}}{{\\footnotesize\\raggedright {notes}}}"
    yield f"\\end{{{environment}}}"


def _heads(grid: Grid) -> list[str]:
    title = latex_text(grid.row_title)
    if not grid.sides:
        heads = map(_head, grid.heads, _widths(grid)[1:])
        return [" & ".join([title, *heads]) + r" \\"]
    span = len(grid.sides)
    spanning = [f"\\multicolumn{{{span}}}{{c}}{{{latex_text(head)}}}" for head in grid.heads]
    starts = range(2, 2 + grid.width, span)
    rules = "".join(f"\\cmidrule(lr){{{start}-{start + span - 1}}}" for start in starts)
    second = [title, *list(grid.sides) * len(grid.heads)]
    return [" & ".join(["", *spanning]) + r" \\", rules, " & ".join(second) + r" \\"]


def _head(text: str, width: int) -> str:
    """A head over several lines where its column is narrower."""
    parts = wrap(visible(text), max(width, LEAST_HEAD), break_long_words=False)
    return r"\shortstack[r]{" + r" \\ ".join(map(latex_text, parts)) + "}"


def _line(line: Line) -> str:
    return " & ".join([_label(line.label), *map(_cell, line.cells)]) + r" \\"


def _label(text: str) -> str:
    indent = r"\quad " if text.startswith(" ") else ""
    return indent + latex_text(text.strip())


def _cell(cell: Text) -> str:
    text = latex_text(cell.text)
    mark = f"\\textsuperscript{{{cell.mark}}}" if cell.mark else ""
    return f"\\textbf{{{text}}}" if cell.bold else text + mark


def _widths(grid: Grid) -> list[int]:
    """Characters of the label and of each column, without heads."""
    lines = [line for section in grid.sections for line in section.lines]
    columns = range(grid.width)
    return [
        max((len(line.label) for line in lines), default=0),
        *(max((len(line.cells[i].text) for line in lines), default=0) for i in columns),
    ]


# ---- Writing tables ------------------------------------------------------------------------------


def build_tables(store: RunStore, names: Sequence[str] | None = None) -> list[Table]:
    """Tables by name, or all.

    Raises:
        UserError: an unknown table; says which there are.
    """
    names = [known_name(name, TABLES, "table", "report") for name in names or TABLES]
    remembered = remember(store)
    return [TABLES[name](remembered) for name in names]


def rendered(table: Table, formats: Sequence[str]) -> dict[str, str]:
    """The files of a table: name and text.

    Raises:
        UserError: an unknown format; says which there are.
    """
    files = {}
    for form in formats:
        render = RENDERERS[known_name(form, RENDERERS, "format", "report")]
        parts = table.parts if form in FOR_PEOPLE else ()
        files[f"{table.name}.{form}"] = "\n".join(map(render, parts or [table]))
    return files


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
FOR_PEOPLE = ("md", "tex")
"""Formats in which the parts of a table stand apart."""


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
    for part in table.parts:
        print_table(part, console)
    if table.parts:
        return
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
