"""What ``bench validation`` reports: for people, in a terminal or in Markdown, and as JSON."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console

from lovasz_repro.bench.formats import number, with_quartiles
from lovasz_repro.bench.measure import Spread, ratio
from lovasz_repro.bench.page import Page, page_markdown, print_page

WHOLE, NETWORK, LOADING, METRIC = "whole pass", "network alone", "loading alone", "metric alone"
NEAR = 1.1
"""A whole pass that takes at most so many times as long as its slowest part is limited by it."""
CAPTION = (
    "Validation images, {images} in each of {rounds} rounds, beside some that are not timed. Whole "
    "pass: images are decoded by {workers}. Network: from images on the device to classes at the "
    "size of the labels, with random weights, which cost as much. Metric: from classes on the "
    "device to counts. Parts: time in that of the whole pass of the same round; median (quartiles)."
)
DRAWN = "The photographs are drawn, in the size and the files of Pascal VOC."


def loading_by(workers: int) -> str:
    """The name of loading alone with so many processes."""
    where = {0: "the same process", 1: "1 worker"}.get(workers, f"{workers} workers")
    return f"{LOADING}, {where}"


@dataclass(frozen=True)
class Part:
    """The whole pass or a part of it."""

    name: str
    times_ms: tuple[float, ...]
    """Of an image, by round."""
    shares: dict[str, Spread]
    """Regime -> time in that of its whole pass, of the same round."""


@dataclass(frozen=True)
class Limit:
    """What a whole pass waits for."""

    part: str
    """The slower of the network and the loader, in the median."""
    whole_in_slowest: Spread
    """Time of the whole pass in that of whichever is the slower in the same round."""
    parts_in_whole: Spread
    """Sum of loading, network and metric in the whole: 1 where they take turns, more where they are
    at work at once."""


@dataclass(frozen=True)
class Report:
    """What was measured."""

    title: str
    device: str
    torch_version: str
    git_commit: str
    regimes: tuple[str, ...]
    """How predictions are made; the first at one scale."""
    workers: int
    """Of the whole passes."""
    parts: tuple[Part, ...]
    drawn: bool
    """Whether photographs were drawn for lack of others."""
    images: int
    rounds: int
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""

    def times(self, name: str) -> tuple[float, ...]:
        """Milliseconds an image of a part, by round."""
        return next(part.times_ms for part in self.parts if part.name == name)

    def limit(self, regime: str) -> Limit:
        """What the whole pass of a regime waits for."""
        whole, network = self.times(f"{WHOLE}, {regime}"), self.times(f"{NETWORK}, {regime}")
        loading, metric = self.times(loading_by(self.workers)), self.times(METRIC)
        slowest = [max(pair) for pair in zip(network, loading, strict=True)]
        by_network = statistics.median(network) >= statistics.median(loading)
        sums = [sum(parts) for parts in zip(network, loading, metric, strict=True)]
        return Limit(NETWORK if by_network else LOADING, ratio(whole, slowest), ratio(sums, whole))


def print_report(report: Report, console: Console) -> None:
    """The table, for people."""
    print_page(_page(report), console)


def to_markdown(report: Report) -> str:
    """The same in Markdown."""
    return page_markdown(_page(report))


def to_json(report: Report) -> str:
    """Everything, every time of every round included."""
    content = asdict(report) | {
        "parts": [
            asdict(part) | {"shares": {name: s._asdict() for name, s in part.shares.items()}}
            for part in report.parts
        ],
        "limits": {
            regime: {
                "part": limit.part,
                "whole_in_slowest": limit.whole_in_slowest._asdict(),
                "parts_in_whole": limit.parts_in_whole._asdict(),
            }
            for regime in report.regimes
            for limit in [report.limit(regime)]
        },
    }
    return json.dumps(content, indent=2, allow_nan=False)


def _page(report: Report) -> Page:
    workers = loading_by(report.workers).removeprefix(f"{LOADING}, ")
    caption = CAPTION.format(images=report.images, rounds=report.rounds, workers=workers)
    return Page(
        f"Validation of {report.title}, {report.device}, torch {report.torch_version}",
        ("", "images / s", "ms / image", *(f"part of the\npass, {r}" for r in report.regimes)),
        [_cells(report, part) for part in report.parts],
        list(_remarks(report)),
        caption,
        report.load,
    )


def _cells(report: Report, part: Part) -> tuple[str, ...]:
    median = statistics.median(part.times_ms)
    shares = []
    for regime in report.regimes:
        other = part.name.startswith((WHOLE, NETWORK)) and not part.name.endswith(f", {regime}")
        whole = part.name == f"{WHOLE}, {regime}"
        shares.append("" if other else "1" if whole else with_quartiles(part.shares[regime]))
    return part.name, number(1000 / median), number(median), *shares


def _remarks(report: Report) -> Iterator[str]:
    for regime in report.regimes:
        limit = report.limit(regime)
        part = f"the {limit.part.removesuffix(' alone')}"
        limited = limit.whole_in_slowest.median <= NEAR
        verdict = "limited by" if limited else "the slowest part is"
        yield (
            f"{regime}: {verdict} {part}. The pass takes {with_quartiles(limit.whole_in_slowest)} "
            "times as long as its slowest part; loading, network and metric add up to "
            f"{with_quartiles(limit.parts_in_whole)} of it."
        )
    if report.drawn:
        yield DRAWN
