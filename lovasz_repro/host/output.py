"""What leaves the tool as text: on stdout and stderr, and into files for people.

Names, tags, paths, keys and the replies of servers come from strangers. Whatever they hold, the
reader sees it and nothing obeys it: no escape sequence, no line that somebody else wrote, no
markup, no formula. What is drawn (tables, bars) goes out by ``host.terminal``.
"""

import codecs
import io
import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
