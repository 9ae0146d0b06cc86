"""What ``bench training`` reports: for people, in a terminal or in Markdown, and as JSON."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from lovasz_repro.bench.formats import md_heads, md_line, number, with_quartiles
from lovasz_repro.bench.machine import contended, warning
from lovasz_repro.bench.measure import Spread
from lovasz_repro.bench.samples import Size
from lovasz_repro.bench.trained_networks import TRAINED, NetworkName
from lovasz_repro.host.terminal import print_note, print_table

CHECKPOINT_EVERY = (25, 250)  # iterations
HEADS = ("training step", "images / s", "ms / step", "time /\nfirst row", "loss in\nthe step")
PEAK = "GPU\nmemory"
PAPERS_BATCH, PAPERS_CROP, PAPERS_ITERATIONS = 10, 321, (20_000, 30_000)  # Sec. 4.3
CAPTION = (
    "Forward, backward and {optimizer}, on one batch from memory. Time: divided by that of the "
    "first row in the same round; median (quartiles) over the rounds ({rounds}, of {steps} {noun} "
    "each). "
    "Loss: Lovász-Softmax, forward and backward, by its share of the step."
)
OTHER_LOSSES = (
    " (in one row cross-entropy), on labels at the network's output grid. In 2 parts: half of the "
    "batch passes the network at a time, and the loss stays that of the whole batch."
)
PROCESSES = (
    " Processes share the batch and the threads, and compute what one computes alone. What "
    "averaging gradients and batch normalisation over ranks take is the difference, loss aside, "
    "from the same ranks each alone with its images; waiting for each other counts."
)


@dataclass(frozen=True)
class Measured:
    """What was found out about a variant; times are milliseconds a step, by round."""

    name: str
    processes: int
    threads: int
    """CPU threads of each process."""
    times_ms: tuple[float, ...]
    loss_ms: tuple[float, ...]
    """Of the loss, forward and backward; part of the step."""
    communication_ms: tuple[float, ...] | None
    """What gradient averaging and batch normalisation over ranks add to the rest of the step: its
    difference from that of the same ranks, each alone with its images. None: one process."""
    time_ratio: Spread
    """Time of a step in that of the first variant, of the same round."""
    loss_share: Spread
    """Of the loss in the step."""
    communication_share: Spread | None
    """Of the communication in the step; a difference, which noise can make negative."""
    images_per_second: float
    """At the median time."""
    first_loss: float
    """Before the first step."""
    loss_difference: float
    """Of the first step's loss from that of the first variant, absolute."""
    gradient_difference: float | None
    """Where ranks share the batch, of the first step's gradient from that of one process, both in
    float64: 2-norm, relative."""
    peak_bytes: int | None = None
    """Of a GPU's memory, with weights and moments; None: on a CPU."""

    @property
    def median_ms(self) -> float:
        """Of the times."""
        return statistics.median(self.times_ms)


@dataclass(frozen=True)
class CheckpointCost:
    """What it takes to make a checkpoint and write it into a folder for temporary files."""

    times_ms: tuple[float, ...]
    """By round."""
    steps: Spread
    """Time in that of a step of the first variant, of the same round."""
    bytes: int

    @property
    def per_cent(self) -> dict[int, float]:
        """Iterations between checkpoints -> per cent that they add to the steps, in the median."""
        return {every: 100 * self.steps.median / every for every in CHECKPOINT_EVERY}


@dataclass(frozen=True)
class Report:
    """Measurements and what they were made with."""

    device: str
    """As titles name it: "CPU (2 threads)", "NVIDIA H200"."""
    hardware: str
    """With the model of the CPU."""
    threads: int
    """CPU threads of all processes together."""
    torch_version: str
    commit: str
    """Of this package."""
    size: Size
    rounds: int
    steps: int
    """Of each variant in a round."""
    rows: tuple[Measured, ...]
    """The first is the unit."""
    checkpoint: CheckpointCost
    notes: tuple[str, ...]
    """What was not measured, and why."""
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""
    network: NetworkName = "enet"

    def hours(self, row: Measured, iterations: int) -> float | None:
        """Of so many iterations with the paper's batch of 10 crops of 321×321, at the median time.

        Without reading, validation and checkpoints; None for another network or crop.
        """
        crop = self.size.height, self.size.width
        if self.network != "deeplab-v2" or crop != (PAPERS_CROP, PAPERS_CROP):
            return None
        return iterations * PAPERS_BATCH / row.images_per_second / 3600

    @property
    def contended(self) -> bool:
        """Whether that is more than there are."""
        return contended(self.load)


def print_report(report: Report, console: Console) -> None:
    """The table and, below it, what does not fit into rows."""
    console.print(Text(title(report), style="bold"))
    rows = [cells(row, report.rows[0]) for row in report.rows]
    print_table(console, heads(report), rows)
    for line in lines(report):
        print_note(console, line)
    if report.contended:
        print_note(console, warning(report.load), "yellow")
    console.print()
    print_note(console, caption(report), "dim")


def to_markdown(report: Report) -> str:
    """The same for a README."""
    text = [f"**{title(report)}**", "", *md_heads(heads(report))]
    text += [md_line(cells(row, report.rows[0])) for row in report.rows]
    text += ["", *(f"- {line}" for line in lines(report))]
    text += ["", warning(report.load)] if report.contended else []
    return "\n".join([*text, "", caption(report), ""])


def to_json(report: Report) -> str:
    """Everything, every time of every round included."""
    content = asdict(report) | {
        "size": {name: getattr(report.size, name) for name in ("batch", "height", "width")},
        "classes": report.size.classes,
        "contended": report.contended,
        "rows": [_row_content(report, row) for row in report.rows],
        "checkpoint": asdict(report.checkpoint)
        | {"steps": report.checkpoint.steps._asdict(), "per_cent": report.checkpoint.per_cent},
    }
    return json.dumps(content, indent=2, allow_nan=False)


def title(report: Report) -> str:
    """ "ENet, 4 x 3 x 176 x 240, 11 classes, CPU (2 threads), torch 2.13.0"."""
    size = report.size
    shape = f"{size.batch} x 3 x {size.height} x {size.width}"
    name = TRAINED[report.network].title
    return f"{name}, {shape}, {size.classes} classes, {report.device}, torch {report.torch_version}"


def heads(report: Report) -> tuple[str, ...]:
    """Of the columns; memory where it was measured."""
    return HEADS if report.rows[0].peak_bytes is None else (*HEADS, PEAK)


def cells(row: Measured, unit: Measured) -> tuple[str, ...]:
    """Of one row, in the order of HEADS."""
    time = "1" if row is unit else with_quartiles(row.time_ratio)
    share = f"{row.loss_share.median:.0%}"
    first = row.name, number(row.images_per_second), number(row.median_ms), time, share
    return first if row.peak_bytes is None else (*first, f"{row.peak_bytes / 2**30:.1f} GiB")


def lines(report: Report) -> Iterator[str]:
    """What ranks spend on talking to each other, what a checkpoint costs, what is missing."""
    for row in report.rows:
        if row.communication_share is not None and row.communication_ms is not None:
            took = number(statistics.median(row.communication_ms))
            low, high = row.communication_share.low, row.communication_share.high
            yield (
                f"{row.name} ({_count(row.threads, 'thread')} each): gradient averaging and batch "
                f"normalisation over ranks take {took} ms, {row.communication_share.median:.0%} "
                f"of the step ({low:.0%} to {high:.0%})."
            )
    cost = report.checkpoint
    share = cost.per_cent
    rhythm = ", ".join(f"one every {every} adds {number(share[every])}%" for every in share)
    yield (
        f"A checkpoint ({cost.bytes / 1e6:.1f} MB) takes as long as {number(cost.steps.median)} "
        f"steps of the first row. To the time of training, in iterations, {rhythm}."
    )
    yield from _projections(report)
    yield from report.notes


def _projections(report: Report) -> Iterator[str]:
    for row in report.rows:
        hours = [report.hours(row, iterations) for iterations in PAPERS_ITERATIONS]
        times = [
            f"{iterations:,} iterations {number(of_them)} h"
            for iterations, of_them in zip(PAPERS_ITERATIONS, hours, strict=True)
            if of_them is not None
        ]
        if times:
            yield (
                f"{row.name}, time per step × iterations on this device, for batches of "
                f"{PAPERS_BATCH}: {', '.join(times)}; reading and validation come on top."
            )


def caption(report: Report) -> str:
    """How to read the numbers."""
    noun = "step" if report.steps == 1 else "steps"
    trained = TRAINED[report.network]
    text = CAPTION.format(
        rounds=report.rounds, steps=report.steps, noun=noun, optimizer=trained.optimizer
    )
    if trained.compares_losses:
        text = text.removesuffix(".") + OTHER_LOSSES
    several = any(row.processes > 1 for row in report.rows)
    return text + PROCESSES if several else text


def _row_content(report: Report, row: Measured) -> dict[str, object]:
    shared = row.communication_share
    return asdict(row) | {
        "median_ms": row.median_ms,
        "time_ratio": row.time_ratio._asdict(),
        "loss_share": row.loss_share._asdict(),
        "communication_share": shared and shared._asdict(),
        "projected_hours": {n: report.hours(row, n) for n in PAPERS_ITERATIONS},
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
