"""What all benches share: who takes turns, the machine, and a report for people and for programs.

A machine that others use, or that changes its clock, is not equally fast all the time. So what a
bench compares takes turns, once each a round, and times are compared within the round.
"""

import json
import os
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.text import Text

from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import device_name, git_commit
from lovasz_repro.host.terminal import print_note, print_sections

SHORTEST_MS = 20.0  # a single call of less would be timed poorly
Advance = Callable[[str], None]
"""Told the name of each thing that was measured."""
Name = TypeVar("Name")
Found = TypeVar("Found")


# -- time ------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float


def quiet(name: str) -> None:
    """Tell nobody of the progress."""


def in_turn(
    ways: Mapping[Name, Callable[[int], Found]],
    rounds: int,
    advance: Advance = quiet,
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


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """The mean of as many calls as fill SHORTEST_MS, at least one."""
    calls, elapsed = 0, 0.0
    synchronise(device)
    began = time.perf_counter()
    while elapsed < SHORTEST_MS:
        call()
        synchronise(device)
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
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""

    @property
    def commit(self) -> str:
        """The same: readers of JSON know it by either name."""
        return self.git_commit

    @property
    def contended(self) -> bool:
        """Whether there are more of them than cores: who waits for others then waits long."""
        return contended(self.load)


def this_machine(device: torch.device) -> Machine:
    """The machine after a bench on one of its devices."""
    hardware, threads = device_name(device), torch.get_num_threads()
    on_cpu = f"CPU ({count(threads, 'thread')})"
    title = on_cpu if device.type == "cpu" else hardware
    return Machine(title, hardware, threads, torch.__version__, git_commit(), load())


def load() -> float | None:
    """Processes that wanted a core in the last minute, this one included; None: not known."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        return None


def contended(load: float | None) -> bool:
    """Whether that is more than there are cores."""
    return load is not None and load > (os.cpu_count() or 1) + 0.5


def is_out_of_memory(error: RuntimeError) -> bool:
    """A CPU allocation that fails has no exception of its own."""
    cpu = "can't allocate memory", "not enough memory"
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in cpu)


@contextmanager
def enough_memory(size: object, device: torch.device) -> Iterator[None]:
    """Tell a user of memory that does not suffice.

    Raises:
        UserError: it does not.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"size {size}: not enough memory on {device}. Give a smaller --size."
        ) from error


# -- report ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """A table and what is said below it."""

    title: str
    heads: Sequence[str]
    sections: Mapping[str, Sequence[Sequence[str]]]
    """Heading ("": none) -> rows of cells in the order of ``heads``."""
    load: float | None
    """Of the machine when the table was measured."""
    remarks: Sequence[str] = ()
    """Sentences that do not fit into rows."""
    caption: str = ""
    """How to read the numbers."""

    def warnings(self) -> Iterator[str]:
        """What to think of the times, where the machine was busy."""
        if contended(self.load):
            yield (
                f"Other programs kept the machine busy (load average {self.load:.1f}, "
                f"{os.cpu_count()} cores): these times may mislead."
            )


class BenchReport(ABC):
    """What a bench found out: a dataclass, of whose fields and properties JSON consists."""

    machine: Machine
    names_of_tuples: ClassVar[bool] = True
    """Whether JSON has sizes and spreads as objects, or as lists."""

    @abstractmethod
    def pages(self) -> Iterator[Page]:
        """Its tables."""


def print_report(report: BenchReport, console: Console) -> None:
    """The tables, for people."""
    for page in report.pages():
        console.print(Text(page.title, style="bold"))
        print_sections(console, page.heads, list(page.sections.items()))
        for remark in page.remarks:
            print_note(console, remark)
        for text in page.warnings():
            print_note(console, text, "yellow")
        console.print()
        if page.caption:
            print_note(console, page.caption, "dim")


def to_markdown(report: BenchReport) -> str:
    """The same for a document."""
    lines: list[str] = []
    for page in report.pages():
        names = [head.replace("\n", " ") for head in page.heads]
        lines += [f"**{page.title}**", "", _line(names), "|---" + "|---:" * len(names[1:]) + "|"]
        for heading, rows in page.sections.items():
            lines += [_line([f"*{heading}*", *[""] * len(names[1:])])] if heading else []
            lines += map(_line, rows)
        lines += ["", *(f"- {remark}" for remark in page.remarks)]
        lines += [""] if page.remarks else []
        for text in (*page.warnings(), page.caption):
            lines += [text, ""] if text else []
    return "\n".join(lines)


def to_json(report: BenchReport) -> str:
    """Everything, every time of every round included."""
    content = _content(report, report.names_of_tuples)
    content = content.pop("machine") | content
    return json.dumps(content, indent=2, allow_nan=False)


def _content(value: Any, named: bool) -> Any:
    """A value as JSON has it: a dataclass as its fields and its properties."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        names += [
            name for name in dir(value) if isinstance(getattr(type(value), name, 0), property)
        ]
        value = {name: getattr(value, name) for name in names}
    elif named and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {key: _content(item, named) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_content(item, named) for item in value]
    return value


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_quartiles(spread: Spread) -> str:
    """ "2.41 (1.41–2.53)"."""
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def number(value: float) -> str:
    """Three significant digits at most, never in powers of ten."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{decimals}f}"


def count(number: int, noun: str) -> str:
    """ "1 thread", "2 threads"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
