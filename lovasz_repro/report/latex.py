"""Tables as LaTeX that fits its page: heads wrap, columns move below each other, long ones go on.

Needs ``\\usepackage{booktabs,adjustbox}``; nothing else, in one column or two.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from textwrap import wrap

from lovasz_repro.host.output import visible
from lovasz_repro.report.layout import Grid, Line, Section, Text, layout, stacked
from lovasz_repro.report.model import Table

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
            for part in wrap(section.heading, max(_characters(grid), 40)):
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


def _characters(grid: Grid) -> int:
    return sum(max(width, LEAST_HEAD) + 1 for width in _widths(grid))
