"""Measurements as tables for people, in a terminal or in Markdown, and as JSON for programs."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lovasz_repro.bench.losses import Case, Report
from lovasz_repro.bench.measure import Measured, Spread

HEADS = (
    "loss", "time /\ncross-entropy", "time /\nsort loop", "peak\nmemory", "loss\nerror",
    "gradient\nerror",
)  # fmt: skip
CAPTION = (
    "Time: forward and backward, divided by that of cross-entropy (2 classes: binary "
    "cross-entropy) and of the sort loop in the same round; median (quartiles) over the rounds "
    "({repeats}). Sort loop: Algorithm 1 in plain PyTorch with autograd, over the classes of the "
    "batch (2 classes: over the images). Peak memory: of what is allocated beyond the inputs, the "
    "gradient included, in tensors of the size of the logits. Errors: of the float32 loss "
    "(absolute) and of its gradient (2-norm, relative) against the same loss in float64 (Lovász "
    "losses: by sorting)."
)
CONTENDED = (
    "Other programs kept the machine busy (load average {load:.1f}, {cores} cores): these times "
    "may mislead."
)


def print_report(report: Report, console: Console) -> None:
    """One table a case, the caption once."""
    for case in report.cases:
        console.print(Text(title(report, case), style="bold"))
        console.print(_table(case))
        if case.contended:
            console.print(Text(f"{warning(case)}\n", style="yellow"))
    console.print(Padding(Text(CAPTION.format(repeats=report.repeats), "dim"), (0, 0, 0, 1)))


def to_markdown(report: Report) -> str:
    """The same tables for a README."""
    lines, heads = [], _md_line([head.replace("\n", " ") for head in HEADS])
    for case in report.cases:
        lines += [f"**{title(report, case)}**", "", heads, "|---" + "|---:" * 5 + "|"]
        for heading, rows in sections(case):
            lines.append(_md_line((f"*{heading}*", *[""] * 5)))
            lines += [_md_line(row) for row in rows]
        lines += ["", warning(case), ""] if case.contended else [""]
    return "\n".join([*lines, CAPTION.format(repeats=report.repeats), ""])


def to_json(report: Report) -> str:
    """Everything, every time of every round included."""
    content = asdict(report) | {"cases": [_case_content(case) for case in report.cases]}
    return json.dumps(content, indent=2, allow_nan=False)


def title(report: Report, case: Case) -> str:
    """ "2 x 21 x 321 x 321, random logits, CPU (2 threads)"."""
    return f"{case.size}, {case.logits} logits, {report.device}"


def warning(case: Case) -> str:
    """What to think of times that were measured on a busy machine."""
    return CONTENDED.format(load=case.load, cores=os.cpu_count())


def sections(case: Case) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """The two parts of a table: a heading, and rows of cells in the order of HEADS."""
    size = case.size
    yield f"{size.classes} classes", _rows(case.multiclass)
    binary = f"{size.batch} x {size.height} x {size.width}"
    yield f"2 classes, logits {binary}", _rows(case.binary)


def _rows(rows: Sequence[Measured]) -> list[tuple[str, ...]]:
    unit = f"1 = {_number(rows[0].median_ms)} ms"
    times = [unit, *(_with_quartiles(row.unit_ratio) for row in rows[1:])]
    return [
        (
            row.name,
            time,
            _number(row.loop_ratio.median),
            f"{row.peak_memory:.1f}",
            f"{row.loss_error:.0e}",
            f"{row.gradient_error:.0e}",
        )
        for row, time in zip(rows, times, strict=True)
    ]


def _table(case: Case) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for index, head in enumerate(HEADS):
        table.add_column(head, justify="right" if index else "left")
    for heading, rows in sections(case):
        table.add_row(Text(heading, style="italic"))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
    return table


def _with_quartiles(ratio: Spread) -> str:
    if ratio.low == ratio.high:
        return _number(ratio.median)
    return f"{_number(ratio.median)} ({_number(ratio.low)}–{_number(ratio.high)})"


def _number(value: float) -> str:
    """Three significant digits at most, never in powers of ten."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{decimals}f}"


def _md_line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _case_content(case: Case) -> dict[str, Any]:
    return {
        "size": case.size._asdict(),
        "logits": case.logits,
        "load": case.load,
        "contended": case.contended,
        "multiclass": [_row_content(row) for row in case.multiclass],
        "binary": [_row_content(row) for row in case.binary],
    }


def _row_content(row: Measured) -> dict[str, Any]:
    ratios = {"unit_ratio": row.unit_ratio._asdict(), "loop_ratio": row.loop_ratio._asdict()}
    return asdict(row) | {"median_ms": row.median_ms} | ratios
