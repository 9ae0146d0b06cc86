"""What ``bench scoring`` reports: for people, in a terminal or in Markdown, and as JSON."""

import json
import statistics
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from lovasz_repro.bench.formats import md_heads, md_line, number, with_quartiles
from lovasz_repro.bench.machine import contended, warning
from lovasz_repro.bench.measure import Spread, ratio
from lovasz_repro.host.terminal import print_note, print_table

HEADS = ("scoring", "ms / image", "times as fast as\nthe official script")
CAPTION = (
    "Generated scenes with 60 to 140 instances, three PNG files each; every process on one thread. "
    "The official script: cityscapesscripts 2.3.0, already imported, one process. Times as fast: "
    "its time divided by that of the row in the same round; median (quartiles) over the rounds "
    "({rounds}). Several processes start anew each time, which counts."
)


@dataclass(frozen=True)
class Measured:
    """A way to score, or part of it."""

    name: str
    times_ms: tuple[float, ...]
    """Of an image, by round."""
    speedup: Spread
    """Time of the official script in that of this, of the same round."""

    @property
    def median_ms(self) -> float:
        """Of the times."""
        return statistics.median(self.times_ms)


@dataclass(frozen=True)
class Report:
    """Measurements and what they were made with."""

    hardware: str
    torch_version: str
    numpy_version: str
    commit: str
    """Of this package."""
    images: int
    size: tuple[int, int]
    """Height and width, pixels."""
    rounds: int
    seed: int
    rows: tuple[Measured, ...]
    """The official script, score_files, reading alone last."""
    difference: float
    """The largest of any score from the official one, absolute."""
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""

    @property
    def contended(self) -> bool:
        """Whether that is more than there are."""
        return contended(self.load)

    @property
    def reading_shares(self) -> tuple[Spread, Spread]:
        """Of reading the files, in the times of the official script and of score_files."""
        reading = self.rows[-1].times_ms
        official, own = (ratio(reading, row.times_ms) for row in self.rows[:2])
        return official, own


def print_report(report: Report, console: Console) -> None:
    """The table and, below it, how far the scores are apart."""
    console.print(Text(title(report), style="bold"))
    print_table(console, HEADS, [cells(row, report.rows[0]) for row in report.rows])
    for line in lines(report):
        print_note(console, line)
    if report.contended:
        print_note(console, warning(report.load), "yellow")
    console.print()
    print_note(console, caption(report), "dim")


def to_markdown(report: Report) -> str:
    """The same for a README."""
    text = [f"**{title(report)}**", "", *md_heads(HEADS)]
    text += [md_line(cells(row, report.rows[0])) for row in report.rows]
    text += ["", *(f"- {line}" for line in lines(report))]
    text += ["", warning(report.load)] if report.contended else []
    return "\n".join([*text, "", caption(report), ""])


def to_json(report: Report) -> str:
    """Everything, every time of every round included."""
    content = asdict(report) | {
        "contended": report.contended,
        "rows": [
            asdict(row) | {"median_ms": row.median_ms, "speedup": row.speedup._asdict()}
            for row in report.rows
        ],
        "reading_shares": [share._asdict() for share in report.reading_shares],
    }
    return json.dumps(content, indent=2, allow_nan=False)


def title(report: Report) -> str:
    """ "Cityscapes scores of 10 images, 1024 x 2048, CPU ..., NumPy 2.3.5, torch 2.13.0"."""
    noun = "image" if report.images == 1 else "images"
    return (
        f"Cityscapes scores of {report.images} {noun}, {report.size[0]} x {report.size[1]}, "
        f"{report.hardware}, NumPy {report.numpy_version}, torch {report.torch_version}"
    )


def cells(row: Measured, official: Measured) -> tuple[str, ...]:
    """Of one row, in the order of HEADS."""
    speedup = "1" if row is official else with_quartiles(row.speedup)
    return row.name, number(row.median_ms), speedup


def lines(report: Report) -> tuple[str, ...]:
    """What does not fit into rows."""
    official, own = report.reading_shares
    return (
        f"The largest difference of any score from the official one: {report.difference:.1e}.",
        f"Reading the files takes {own.median:.0%} of the time of score_files, "
        f"{official.median:.0%} of that of the official script.",
    )


def caption(report: Report) -> str:
    """How to read the numbers."""
    return CAPTION.format(rounds=report.rounds)
