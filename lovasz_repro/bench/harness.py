"""What all benches share: who takes turns, the machine, and a report for people and for programs.

A machine that others use, or that changes its clock, is not equally fast all the time. So what a
bench compares takes turns, once each a round, and times are compared within the round.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from lovasz_repro.errors import UserError
from lovasz_repro.host.output import plural, print_note, print_sections
from lovasz_repro.host.provenance import device_name, git_commit

SHORTEST_MS = 20.0  # a single call of less would be timed poorly
Row = Mapping[str, Any]
"""What was found out about one of the things that took turns."""
Column = tuple[str, Callable[[Row], str]]
"""Head and cell."""
Name = TypeVar("Name")
Found = TypeVar("Found")


# -- time ------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


class Advance:
    """Told how many turns there will be, and the name of whoever has taken one; tells nobody."""

    def expect(self, turns: int) -> None:
        """There will be so many turns."""

    def __call__(self, name: str) -> None:
        """One of them is over."""


QUIET = Advance()


def in_turn(
    ways: Mapping[Name, Callable[[int], Found]],
    rounds: int,
    advance: Callable[[str], None] = QUIET,
    warm_up: int = 0,
) -> dict[Name, tuple[Found, ...]]:
    """What each way returns in each round.

    Args:
        ways: by name; given the number of the round.
        rounds: that count.
        advance: told the name after each turn.
        warm_up: rounds before, whose results are thrown away.
    """
    found: dict[Name, list[Found]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, way in ways.items():
            result = way(number)
            if number >= warm_up:
                found[name].append(result)
            advance(str(name))
    return {name: tuple(results) for name, results in found.items()}


def ratio(times: Sequence[float], unit: Sequence[float]) -> Spread:
    """Median and quartiles of times divided by those of the unit, round by round."""
    ratios = [own / other for own, other in zip(times, unit, strict=True)]
    if len(ratios) == 1:
        return Spread(*ratios * 3)
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Spread(median, low, high)


def both_ways(loss: Callable[[Tensor, Tensor], Tensor], leaf: Tensor, labels: Tensor) -> float:
    """Milliseconds of a forward and a backward: the mean of as many as fill SHORTEST_MS."""
    calls, elapsed = 0, 0.0
    synchronise(leaf.device)
    began = time.perf_counter()
    while elapsed < SHORTEST_MS:
        leaf.grad = None
        loss(leaf, labels).backward()
        synchronise(leaf.device)
        calls += 1
        elapsed = 1000 * (time.perf_counter() - began)
    return elapsed / calls


class ImageClock:
    """Milliseconds an image, from the end of the batch with which ``untimed`` images are done.

    Until then workers start and queues fill. ``now`` tells the time, in seconds.
    """

    def __init__(self, untimed: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.untimed, self.now = untimed, now
        self.done = 0
        self.first: tuple[int, float] | None = None
        self.last = 0.0

    def tick(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        self.last = self.now()
        if self.first is None and self.done >= self.untimed:
            self.first = self.done, self.last

    def milliseconds(self) -> float:
        """Of an image, those that are timed."""
        assert self.first is not None, "more images than are not timed"
        done, began = self.first
        return 1000 * (self.last - began) / (self.done - done)


def synchronise(device: torch.device) -> None:
    """Wait for what the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# -- machine ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Where and with what a bench ran."""

    device: str
    """As titles name it: "CPU (2 threads)", "NVIDIA H200"."""
    hardware: str
    """With the model of the CPU."""
    threads: int
    """Of the CPU."""
    torch_version: str
    git_commit: str
    """Of this package."""
    load: float
    """Processes that wanted a core in the last minute, this one included."""


def this_machine(device: torch.device) -> Machine:
    """The machine after a bench on one of its devices."""
    hardware, threads = device_name(device), torch.get_num_threads()
    on_cpu = f"CPU ({plural(threads, 'thread')})"
    title = on_cpu if device.type == "cpu" else hardware
    return Machine(title, hardware, threads, torch.__version__, git_commit(), os.getloadavg()[0])


def contended(load: float) -> bool:
    """Whether a load is more than there are cores: who waits for others then waits long."""
    return load > (os.cpu_count() or 1) + 0.5


@contextmanager
def enough_memory(size: object, device: torch.device) -> Iterator[None]:
    """Tell a user of memory that does not suffice.

    Raises:
        UserError: it does not.
    """
    try:
        yield
    except RuntimeError as error:  # a CPU allocation that fails has no exception of its own
        cpu = "can't allocate memory", "not enough memory"
        if not (isinstance(error, torch.OutOfMemoryError) or any(t in str(error) for t in cpu)):
            raise
        raise UserError(
            f"size {size}: not enough memory on {device}. Give a smaller --size."
        ) from error


# -- report ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A table and what is said below it."""

    title: str
    columns: Sequence[Column]
    """The first tells rows apart."""
    sections: Mapping[str, Sequence[Row]]
    """Heading ("": none) -> rows."""
    load: float
    """Of the machine when the table was measured."""
    remarks: Sequence[str] = ()
    """Sentences that do not fit into rows."""
    caption: str = ""
    """How to read the numbers."""

    @property
    def heads(self) -> list[str]:
        """Of the columns."""
        return [head for head, _ in self.columns]

    def cells(self) -> list[tuple[str, list[list[str]]]]:
        """Headings and the cells below them."""
        return [
            (heading, [[cell(row) for _, cell in self.columns] for row in rows])
            for heading, rows in self.sections.items()
        ]

    def warnings(self) -> Iterator[str]:
        """What to think of the times, where the machine was busy."""
        if contended(self.load):
            yield (
                f"Other programs kept the machine busy (load average {self.load:.1f}, "
                f"{os.cpu_count()} cores): these times may mislead."
            )


@dataclass(frozen=True)
class Report:
    """What a bench found out."""

    machine: Machine
    found: Mapping[str, Any]
    """By name, every time of every round included."""
    pages: Sequence[Page]
    """The same for people."""


def print_report(report: Report, console: Console) -> None:
    """The tables, on a terminal."""
    for page in report.pages:
        console.print(Text(page.title, style="bold"))
        print_sections(console, page.heads, page.cells())
        for remark in page.remarks:
            print_note(console, remark)
        for text in page.warnings():
            print_note(console, text, "yellow")
        console.print()
        if page.caption:
            print_note(console, page.caption, "dim")


def to_markdown(report: Report) -> str:
    """The same for a document."""
    lines: list[str] = []
    for page in report.pages:
        names = [head.replace("\n", " ") for head in page.heads]
        lines += [f"**{page.title}**", "", _line(names), "|---" + "|---:" * len(names[1:]) + "|"]
        for heading, rows in page.cells():
            lines += [_line([f"*{heading}*", *[""] * len(names[1:])])] if heading else []
            lines += map(_line, rows)
        lines += ["", *(f"- {remark}" for remark in page.remarks)]
        lines += [""] if page.remarks else []
        for text in (*page.warnings(), page.caption):
            lines += [text, ""] if text else []
    return "\n".join(lines)


def to_json(report: Report) -> str:
    """Everything that was found, beside the machine."""
    machine = asdict(report.machine) | {"contended": contended(report.machine.load)}
    return json.dumps(_named(machine | dict(report.found)), indent=2, allow_nan=False)


def _named(value: Any) -> Any:
    """A value as JSON has it: a size or a spread as an object."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _named(item) for key, item in value.items()}
    return [_named(item) for item in value] if isinstance(value, (list, tuple)) else value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def median(name: str) -> Callable[[Row], str]:
    """The cell with the median of a row's numbers, one a round."""
    return lambda row: number(statistics.median(row[name]))


def quartiles(name: str) -> Callable[[Row], str]:
    """The cell with a spread of a row; empty where there is none."""
    return lambda row: with_quartiles(row[name]) if row[name] else ""


def with_quartiles(spread: Spread) -> str:
    """ "2.41 (1.41–2.53)"; "1" of what is divided by itself."""
    if spread == (1, 1, 1):
        return "1"
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def number(value: float) -> str:
    """Three significant digits at most, never in powers of ten."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{decimals}f}"
