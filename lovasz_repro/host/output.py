"""What leaves the tool as text: on stdout and stderr, and into files for people.

Names, tags, paths, keys and the replies of servers come from strangers. Whatever they hold, the
reader sees it and nothing obeys it: no escape sequence, no line that somebody else wrote, no
markup, no formula. What is drawn (tables, bars) goes out by ``Terminal``.
"""

import codecs
import io
import json
import math
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.text import Text

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import write_durably

if TYPE_CHECKING:
    import pandas as pd

SPELLED = {"–": "-", "−": "-", "±": "+-", "×": "x", "→": "->", "≥": ">=", "≤": "<=", "·": "*",
           "…": "...", "▸": ">"}  # fmt: skip
"""Our own characters where an encoding lacks them: a number's sign is never lost."""


def visible(text: object) -> str:
    """Text in one line of which every character can be seen; others are spelled out.

    Spelled out are control characters, line breaks, what turns the direction of writing or has no
    width, and bytes of file names that are no text.
    """
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def plural(number: int, noun: str) -> str:
    """ "1 thread", "1,200 threads", "2 classes", "2 batches"."""
    several = noun + ("es" if noun.endswith(("s", "ch")) else "s")
    return f"{number:,} {noun if number == 1 else several}"


def store_option(results: Path, tracking_uri: str | None) -> str:
    """What a later command must be told to find the same store: " --results demo"."""
    usual = results == Path("results")
    given = {"--results": None if usual else results, "--tracking-uri": tracking_uri}
    return "".join(f" {name} {shlex.quote(str(at))}" for name, at in given.items() if at)


def say(*lines: object, err: bool = False) -> None:
    """Print lines on stdout or stderr, each of them as one line."""
    for line in lines:
        print(visible(line), file=sys.stderr if err else sys.stdout, flush=True)


def to_stderr(line: str) -> None:
    """Print one line where progress and warnings go."""
    say(line, err=True)


def say_json(content: Any) -> None:
    """Print JSON for programs; a number that JSON does not have is null."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    print(text.replace("\x7f", "\\u007f"), flush=True)


def say_csv(table: "pd.DataFrame") -> None:
    """Print a data frame as CSV, without its index; what is missing is empty."""
    text = table.map(no_formula).rename(columns=no_formula).to_csv(index=False)
    print(text, end="", flush=True)


def no_formula(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: such text has an apostrophe in front."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def never_fail_to_encode() -> None:
    """Let stdout and stderr write what their encoding lacks in other characters."""
    codecs.register_error("spelled", _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spelled")


def write_files(folder: Path, files: Mapping[str, str | bytes]) -> list[Path]:
    """Write files into a folder, which is made; each is either whole or as it was before.

    Raises:
        UserError: the folder or the disk refuses.
    """
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            data = (
                content.encode(errors="backslashreplace") if isinstance(content, str) else content
            )
            write_durably(folder / name, data)
            written.append(folder / name)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(
            f"cannot write into {folder}: {reason}. Choose another folder with --out."
        ) from error
    return written


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(_in_ascii(character) for character in wrong), error.end


def _in_ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return SPELLED.get(character) or plain or ascii(character)[1:-1]


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    return value


# ---- Drawn on a terminal -------------------------------------------------------------------------
#
# Tables of which nothing is cut, at any width.

GAP = 2
LEAST = 12
"""Characters to which a column of words may shrink before the table continues below."""
UNBOUNDED = 100_000
"""Width of a pipe or file: whoever reads it wraps, or does not."""

Cell = str | Text
Rows = Sequence[Sequence[Cell]]


class Terminal(Console):
    """stdout or stderr: no markup in any text, nothing of it obeyed; full width in a pipe."""

    def __init__(self, *, err: bool = False, quiet: bool = False, width: int | None = None) -> None:
        super().__init__(
            stderr=err, quiet=quiet, width=width, markup=False, emoji=False, highlight=False
        )
        if width is None and not self.is_terminal:
            self.width = UNBOUNDED

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Segments whose text is safe; rich's own control sequences pass."""
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                text = "\n".join(map(visible, segment.text.split("\n")))
                yield Segment(text, segment.style)


def print_note(console: Console, text: str, style: str = "", indent: int = 1) -> None:
    """Print a sentence beside a table, indented where it wraps too."""
    console.print(Padding(Text(visible(text), style), (0, 0, 0, indent), expand=False))


def print_table(
    console: Console, heads: Sequence[str], rows: Rows, words: Sequence[int] = (0,)
) -> None:
    """Print rows under heads.

    Args:
        console: where.
        heads: of the columns.
        rows: cells; a row of a single one is a heading.
        words: columns of words, which may wrap; those of numbers never do. Where all are of words
            and there is no room for columns, each row is printed as a list.
    """
    print_sections(console, heads, [("", rows)], words)


def print_sections(
    console: Console,
    heads: Sequence[str],
    sections: Sequence[tuple[str, Rows]],
    words: Sequence[int] = (0,),
) -> None:
    """Print rows under headings, in columns of the same widths.

    What does not fit beside each other continues below, under the first column again.
    """
    widths = _widths(heads, sections, str.splitlines)
    if _total(widths) > console.width:  # then heads wrap, and after them columns of words
        widths = _fitted(_widths(heads, sections, str.split), words, sections, console.width)
    listed = len(words) == len(heads) and _total(widths) > console.width
    for heading, rows in sections:
        if heading:
            console.print(Text(visible(heading), style="italic"))
        if listed:
            _print_lists(console, heads, rows)
            continue
        for number, group in enumerate(_beside_each_other(widths, console.width)):
            if number:
                console.print()
            _print_columns(console, heads, rows, group, set(range(len(heads))) - set(words))


def has_room(console: Console, heads: Sequence[str], sections: Sequence[tuple[str, Rows]]) -> bool:
    """Whether all columns stand beside each other, where no more than heads wrap."""
    return _total(_widths(heads, sections, str.split)) <= console.width


def _print_columns(
    console: Console, heads: Sequence[str], rows: Rows, widths: Mapping[int, int], right: set[int]
) -> None:
    _print_row(console, [Text(head) for head in heads], widths, right, at_bottom=True)
    if right:  # a list of words needs no line to be read along
        rule = "─" if console.encoding.startswith("utf") else "-"
        console.print(Text(rule * _total(list(widths.values())), "dim"), soft_wrap=True)
    for row in rows:
        _print_row(console, [_text(cell) for cell in row], widths, right)


def _print_row(
    console: Console,
    cells: Sequence[Text],
    widths: Mapping[int, int],
    right: set[int] | frozenset[int] = frozenset(),
    *,
    at_bottom: bool = False,
) -> None:
    """Print the cells of some columns, folded to their widths."""
    folded = [
        list(cells[column].wrap(console, width, overflow="fold")) if column < len(cells) else []
        for column, width in widths.items()
    ]
    height = max(map(len, folded))
    for lines in folded:
        missing = [Text() for _ in range(height - len(lines))]
        lines[:] = [*missing, *lines] if at_bottom else [*lines, *missing]
    for parts in zip(*folded, strict=True):
        for text, (column, width) in zip(parts, widths.items(), strict=True):
            text.align("right" if column in right else "left", width)
        line = Text(" " * GAP).join(parts)
        line.rstrip()
        console.print(line, soft_wrap=True)


def _print_lists(console: Console, heads: Sequence[str], rows: Rows) -> None:
    """Print each row as lines of a head and what is under it."""
    width = max(map(cell_len, heads))
    widths = {0: width, 1: max(console.width - width - GAP, 1)}
    for row in rows:
        for head, cell in zip(heads, row, strict=False):
            _print_row(console, [Text(head, "dim"), _text(cell)], widths)
        console.print()


def _text(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(visible(cell))
    return cell if cell.plain.isprintable() else Text(visible(cell.plain), cell.style)


def _widths(
    heads: Sequence[str],
    sections: Iterable[tuple[str, Rows]],
    parts_of: Callable[[str], list[str]],
) -> list[int]:
    """Characters that each column needs; a head as much as the longest of its parts."""
    widths = [max(map(cell_len, parts_of(head)), default=0) for head in heads]
    for row in (row for _, rows in sections for row in rows):
        for column, cell in enumerate(map(_text, row)):
            widths[column] = max(widths[column], cell_len(cell.plain))
    return widths


def _fitted(
    widths: Sequence[int],
    words: Sequence[int],
    sections: Iterable[tuple[str, Rows]],
    space: int,
) -> list[int]:
    """Widths where columns of words, the widest first, make room for the others: they wrap between
    words, and where that is not enough within them."""
    fitted = list(widths)
    longest = [LEAST] * len(widths)
    for row in (row for _, rows in sections for row in rows):
        for column, cell in enumerate(row):
            longest[column] = max(longest[column], *map(cell_len, _text(cell).plain.split()), 0)
    for least in (longest, [LEAST] * len(widths)):
        while _total(fitted) > space:
            wider = [column for column in words if fitted[column] > least[column]]
            if not wider:
                break
            fitted[max(wider, key=fitted.__getitem__)] -= 1
    return fitted if _total(fitted) <= space else list(widths)


def _beside_each_other(widths: Sequence[int], space: int) -> list[dict[int, int]]:
    """Columns and their widths in groups that fit, the first column in each of them."""
    label, *_ = widths
    least = label if _total(widths) <= space else min(label, max(LEAST, space // 3))
    groups: list[dict[int, int]] = [{0: least}]
    for column, width in enumerate(widths[1:], start=1):
        width = min(width, space - least - GAP)
        if _total([*groups[-1].values(), width]) > space:
            groups.append({0: least})
        groups[-1][column] = width
    for group in groups:
        group[0] = min(label, least + space - _total(list(group.values())))
    return groups


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)
