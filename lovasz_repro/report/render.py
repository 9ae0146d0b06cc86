"""Tables as Markdown, LaTeX, CSV and JSON. The same runs give the same bytes."""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lovasz_repro.errors import UserError
from lovasz_repro.report.layout import Grid, Line, Text, flat_heads, layout
from lovasz_repro.report.model import Cell, Column, Table
from lovasz_repro.report.runs import RunStore
from lovasz_repro.report.tables import TABLES
from lovasz_repro.report.terminal import print_table

__all__ = ["RENDERERS", "print_table", "write_tables"]

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "−": r"$-$", "–": "--", "×": r"$\times$", "→": r"$\rightarrow$",
    "≥": r"$\geq$", "≤": r"$\leq$", "·": r"$\cdot$", "<": r"\textless{}", ">": r"\textgreater{}",
}  # fmt: skip
"""Characters that LaTeX reads otherwise, or that its standard fonts lack."""


def write_tables(
    store: RunStore,
    out: Path,
    names: Sequence[str] | None = None,
    formats: Sequence[str] = ("md", "tex", "csv", "json"),
) -> list[Path]:
    """Write tables as ``<out>/<name>.<format>``; returns the files in that order.

    Args:
        store: where to read.
        out: folder, made if it is not there.
        names: tables to write; None: all of ``TABLES``.
        formats: any of "md", "tex", "csv", "json".

    Raises:
        UserError: an unknown table or format; says which there are.
    """
    names = [chosen(name, TABLES, "table") for name in names or TABLES]
    formats = [chosen(form, RENDERERS, "format") for form in formats]
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name in names:
        table = TABLES[name](store)
        for form in formats:
            files.append(out / f"{name}.{form}")
            files[-1].write_bytes(RENDERERS[form](table).encode())
    return files


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
    lines = [f"### {table.title}", "", table.caption, "", _md_line(heads)]
    lines.append("|---|" + "---:|" * grid.width)
    for section in grid.sections:
        if section.heading:
            lines.append(
                _md_line([f"**{md_escape(section.heading)}**", *[""] * grid.width], raw=True)
            )
        for line in section.lines:
            cells = [_md_cell(cell) for cell in line.cells]
            lines.append(_md_line([md_escape(line.label), *cells], raw=True))
    if grid.notes:
        lines += ["", *_separated(grid.notes)]
    return "\n".join(lines) + "\n"


def to_latex(table: Table) -> str:
    """A booktabs float; wide tables span both columns of a two-column paper."""
    grid = layout(table)
    environment = "table*" if grid.width > 5 else "table"
    lines = [
        f"% {table.name}, by `lovasz-repro report tables`; needs \\usepackage{{booktabs}}",
        f"\\begin{{{environment}}}[t]",
        r"\centering\small\setlength{\tabcolsep}{4pt}",
        f"\\caption{{{latex_text(f'{table.title}. {table.caption}')}}}",
        f"\\label{{tab:{table.name}}}",
        f"\\begin{{tabular}}{{l{'r' * grid.width}}}",
        r"\toprule",
        *_latex_heads(grid),
    ]
    for section in grid.sections:
        lines.append(r"\midrule")
        if section.heading:
            heading = latex_text(section.heading)
            lines.append(f"\\multicolumn{{{grid.width + 1}}}{{l}}{{\\emph{{{heading}}}}} \\\\")
        lines += [_latex_line(line) for line in section.lines]
    lines += [r"\bottomrule", r"\end{tabular}"]
    if grid.notes:
        notes = r" \\ ".join(latex_text(note) for note in grid.notes)
        lines += ["", r"\smallskip", f"\\parbox{{\\linewidth}}{{\\footnotesize {notes}}}"]
    lines.append(f"\\end{{{environment}}}")
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line per cell: for spreadsheets and data frames. Missing numbers are empty fields."""
    fields = ("block", "row", "column", "unit", "value", "spread", "n", "published", "difference",
              "runs", "command")  # fmt: skip
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for cell in _cells(table):
        runs = " ".join(source["run_id"] for source in cell.pop("sources"))
        writer.writerow({key: cell.get(key) for key in fields} | {"runs": runs})
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
    return re.sub(r"([\\|*_<>\[\]#~])", r"\\\1", text)


def latex_escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(character, character) for character in text)


def latex_text(text: str) -> str:
    """Escaped text with `commands` in typewriter."""
    parts = text.split("`")
    return "".join(
        f"\\texttt{{{latex_escape(part).replace('--', '-{}-')}}}" if i % 2 else latex_escape(part)
        for i, part in enumerate(parts)
    )


def _md_line(cells: Sequence[str], *, raw: bool = False) -> str:
    return "| " + " | ".join(cells if raw else [md_escape(cell) for cell in cells]) + " |"


def _md_cell(cell: Text) -> str:
    mark = f" ({cell.mark})" if cell.mark else ""
    return f"**{cell.text}**" if cell.bold else cell.text + mark


def _separated(notes: Sequence[str]) -> list[str]:
    return "\n\n".join(notes).split("\n")


def _latex_heads(grid: Grid) -> list[str]:
    if not grid.sides:
        return [" & ".join(latex_text(t) for t in (grid.row_title, *grid.heads)) + r" \\"]
    span = len(grid.sides)
    spanning = [f"\\multicolumn{{{span}}}{{c}}{{{latex_text(head)}}}" for head in grid.heads]
    starts = range(2, 2 + grid.width, span)
    rules = "".join(f"\\cmidrule(lr){{{start}-{start + span - 1}}}" for start in starts)
    second = [latex_text(grid.row_title), *list(grid.sides) * len(grid.heads)]
    return [" & ".join(["", *spanning]) + r" \\", rules, " & ".join(second) + r" \\"]


def _latex_line(line: Line) -> str:
    cells = []
    for cell in line.cells:
        text = latex_text(cell.text)
        mark = f"\\textsuperscript{{{cell.mark}}}" if cell.mark else ""
        cells.append(f"\\textbf{{{text}}}" if cell.bold else text + mark)
    return " & ".join([latex_text(line.label), *cells]) + r" \\"


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
        "value": _precise(cell.value),
        "spread": _precise(cell.spread),
        "n": cell.n,
        "published": cell.published,
        "difference": _precise(cell.difference),
        "command": "" if cell.value is not None else cell.command,
        "sources": [asdict(source) for source in cell.sources],
    }


def _precise(value: float | None) -> float | None:
    """Ten digits: every digit that means something, none of the float's noise."""
    return None if value is None else float(f"{value:.10g}")
