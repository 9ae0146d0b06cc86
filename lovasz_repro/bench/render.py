"""Measurements as tables for people, in a terminal or in Markdown, and as JSON for programs."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from lovasz_repro.bench.formats import md_heads, md_line, number, with_quartiles
from lovasz_repro.bench.losses import Case, Report
from lovasz_repro.bench.machine import warning
from lovasz_repro.bench.measure import Measured
from lovasz_repro.host.terminal import print_note, print_sections

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


def print_report(report: Report, console: Console) -> None:
    """One table a case, the caption once."""
    for case in report.cases:
        console.print(Text(title(report, case), style="bold"))
        print_sections(console, HEADS, list(sections(case)))
        if case.contended:
            console.print(Text(f"{warning(case.load)}\n", style="yellow"))
    print_note(console, CAPTION.format(repeats=report.repeats), "dim")


def to_markdown(report: Report) -> str:
    """The same tables for a README."""
    lines: list[str] = []
    for case in report.cases:
        lines += [f"**{title(report, case)}**", "", *md_heads(HEADS)]
        for heading, rows in sections(case):
            lines.append(md_line((f"*{heading}*", *[""] * 5)))
            lines += [md_line(row) for row in rows]
        lines += ["", warning(case.load), ""] if case.contended else [""]
    return "\n".join([*lines, CAPTION.format(repeats=report.repeats), ""])


def to_json(report: Report) -> str:
    """Everything, every time of every round included."""
    content = asdict(report) | {"cases": [_case_content(case) for case in report.cases]}
    return json.dumps(content, indent=2, allow_nan=False)


def title(report: Report, case: Case) -> str:
    """ "2 x 21 x 321 x 321, random logits, CPU (2 threads)"."""
    return f"{case.size}, {case.logits} logits, {report.device}"


def sections(case: Case) -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """The two parts of a table: a heading, and rows of cells in the order of HEADS."""
    size = case.size
    yield f"{size.classes} classes", _rows(case.multiclass)
    binary = f"{size.batch} x {size.height} x {size.width}"
    yield f"2 classes, logits {binary}", _rows(case.binary)


def _rows(rows: Sequence[Measured]) -> list[tuple[str, ...]]:
    unit = f"1 = {number(rows[0].median_ms)} ms"
    times = [unit, *(with_quartiles(row.unit_ratio) for row in rows[1:])]
    return [
        (
            row.name,
            time,
            number(row.loop_ratio.median),
            f"{row.peak_memory:.1f}",
            f"{row.loss_error:.0e}",
            f"{row.gradient_error:.0e}",
        )
        for row, time in zip(rows, times, strict=True)
    ]


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
