"""What a training step costs: on several processes, in other precisions, with checkpoints.

Every variant trains the same network on the same batch, through the functions that a run trains
with, and but for one row with Lovász-Softmax.

A variant that computes something else would be worth nothing, however fast. So the loss of every
variant's first step is compared with that of the first variant. Where ranks share the batch, loss
and gradient are so in float64 too, in which an untrained ENet does not blow up what rounding does
(in float32 its gradient is off by several per cent as soon as sums are in another order).
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lovasz_repro.bench.harness import (
    Advance,
    BenchReport,
    Machine,
    Page,
    Spread,
    count,
    enough_memory,
    in_turn,
    number,
    quiet,
    ratio,
    this_machine,
    with_quartiles,
)
from lovasz_repro.bench.samples import Size, check_memory
from lovasz_repro.bench.trainee import (
    ENET,
    TRAINED,
    VOID,
    First,
    NetworkName,
    StepVariant,
    Timed,
    TrainedNetwork,
    Trainee,
    TrainingRanks,
)
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.models.enet import ENET_STRIDE
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.loop import TrainingState, keep_best

DEFAULT_PROCS = (1, 2)
# How far the first loss may be from that of the first variant, absolute, where ranks share the
# batch. (In another precision or memory format: `TrainedNetwork.near_loss`.)
SAME_LOSS = 1e-5
SAME_GRADIENT = 1e-6  # 2-norm, relative, in float64
CHECKPOINT = "checkpoint"
ONE_THREAD = "Processes, which share the threads, are not compared: there is one thread."
CHECKPOINT_EVERY = (25, 250)  # iterations
HEADS = ("training step", "images / s", "ms / step", "time /\nfirst row", "loss in\nthe step")
PEAK = "GPU\nmemory"
PAPERS_BATCH, PAPERS_CROP, PAPERS_ITERATIONS = 10, 321, (20_000, 30_000)  # Sec. 4.3
CAPTION = (
    "Forward, backward and {optimizer}, on one batch from memory. Time: divided by that of the "
    "first row in the same round; median (quartiles) over the rounds ({rounds}, of {steps} each). "
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
class TrainingSettings:
    """What to measure, and where."""

    size: Size
    """Of the logits of a batch."""
    procs: tuple[int, ...]
    """Numbers of processes to compare with one, on the CPU; they share ``threads``."""
    device: torch.device
    threads: int
    """Of the CPU, of all processes together."""
    rounds: int
    """Beside the first, which is thrown away."""
    steps: int
    """Of each variant in a round."""
    network: NetworkName = "enet"

    @property
    def trained(self) -> TrainedNetwork:
        """What is known of the network."""
        return TRAINED[self.network]

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return len(variants(self)) + (len(variants(self)) + 1) * (self.rounds + 1)


@dataclass(frozen=True)
class MeasuredStep:
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
    peak_bytes: int | None
    """Of a GPU's memory, with weights and moments; None: on a CPU."""
    projected_hours: dict[int, float | None]
    """Iterations -> hours with the paper's batch (`projected_hours`)."""

    @property
    def median_ms(self) -> float:
        """Of the times."""
        return statistics.median(self.times_ms)

    def cells(self, unit: bool) -> tuple[str, ...]:
        """Of the table, in the order of HEADS."""
        time = "1" if unit else with_quartiles(self.time_ratio)
        share = f"{self.loss_share.median:.0%}"
        first = self.name, number(self.images_per_second), number(self.median_ms), time, share
        return first if self.peak_bytes is None else (*first, f"{self.peak_bytes / 2**30:.1f} GiB")

    def remarks(self) -> Iterator[str]:
        """What ranks spend on talking to each other, and how long the paper's training takes."""
        if self.communication_share is not None and self.communication_ms is not None:
            took = number(statistics.median(self.communication_ms))
            low, high = self.communication_share.low, self.communication_share.high
            yield (
                f"{self.name} ({count(self.threads, 'thread')} each): gradient averaging and batch "
                f"normalisation over ranks take {took} ms, {self.communication_share.median:.0%} "
                f"of the step ({low:.0%} to {high:.0%})."
            )
        hours = ", ".join(
            f"{iterations:,} iterations {number(hours)} h"
            for iterations, hours in self.projected_hours.items()
            if hours is not None
        )
        if hours:
            yield (
                f"{self.name}, time per step × iterations on this device, for batches of "
                f"{PAPERS_BATCH}: {hours}; reading and validation come on top."
            )


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

    def remark(self) -> str:
        """What it adds to the time of training."""
        rhythm = ", ".join(
            f"one every {every} adds {number(share)}%" for every, share in self.per_cent.items()
        )
        return (
            f"A checkpoint ({self.bytes / 1e6:.1f} MB) takes as long as "
            f"{number(self.steps.median)} steps of the first row. To the time of training, in "
            f"iterations, {rhythm}."
        )


class BatchSize(NamedTuple):
    """Of the images."""

    batch: int
    height: int
    width: int


@dataclass(frozen=True)
class TrainingReport(BenchReport):
    """Measurements and what they were made with; threads are those of all processes together."""

    machine: Machine
    network: NetworkName
    size: BatchSize
    classes: int
    rounds: int
    steps: int
    """Of each variant in a round."""
    rows: tuple[MeasuredStep, ...]
    """The first is the unit."""
    checkpoint: CheckpointCost
    notes: tuple[str, ...]
    """What was not measured, and why."""

    def pages(self) -> Iterator[Page]:
        """One table and, below it, what does not fit into rows."""
        batch, height, width = self.size
        trained, unit = TRAINED[self.network], self.rows[0]
        remarks = [remark for row in self.rows for remark in row.remarks()]
        yield Page(
            f"{trained.title}, {batch} x 3 x {height} x {width}, {self.classes} classes, "
            f"{self.machine.device}, torch {self.machine.torch_version}",
            HEADS if unit.peak_bytes is None else (*HEADS, PEAK),
            {"": [row.cells(row is unit) for row in self.rows]},
            self.machine.load,
            (*remarks, self.checkpoint.remark(), *self.notes),
            self._caption(trained),
        )

    def _caption(self, trained: TrainedNetwork) -> str:
        text = CAPTION.format(
            rounds=self.rounds, steps=count(self.steps, "step"), optimizer=trained.optimizer
        )
        if trained.compares_losses:
            text = text.removesuffix(".") + OTHER_LOSSES
        return text + PROCESSES if any(row.processes > 1 for row in self.rows) else text


def choose_settings(
    size: str | None,
    procs: Sequence[int] | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    steps: int | None,
    network: NetworkName = "enet",
) -> TrainingSettings:
    """Settings from what was given, defaults for what was not.

    Raises:
        UserError: a size that the network does not take or that does not fit the memory of the
            device; more processes than images or threads, or processes on a GPU or of a network
            that is not compared on several.
    """
    kind, trained = device.type, TRAINED[network]
    rhythm = trained.rhythms[kind]
    chosen = parse_batch(size or rhythm.size, trained)
    threads = threads or torch.get_num_threads()
    if procs and not trained.compares_processes:
        raise UserError(f"--procs: processes are compared on ENet, not on {network}.")
    if procs and kind == "cuda":
        raise UserError("--procs: processes share a CPU. Give --device cpu.")
    for number_ in procs or ():
        if number_ > chosen.batch:
            raise UserError(f"--procs {number_}: {chosen.batch} images leave some without one.")
        if number_ > threads:
            raise UserError(
                f"--procs {number_}: they share {threads} CPU threads. Give more with --threads."
            )
    several = {count for count in procs or DEFAULT_PROCS if 1 < count <= threads}
    counts = tuple(sorted(several)) if kind == "cpu" and trained.compares_processes else ()
    # ranks are compared in float64
    needed = chosen.batch * chosen.height * chosen.width * trained.bytes_a_pixel
    check_memory(_shape(chosen), needed * (2 if counts else 1), device)
    rounds, steps = rounds or rhythm.rounds, steps or rhythm.steps
    return TrainingSettings(chosen, counts, device, threads, rounds, steps, network)


def parse_batch(text: str, trained: TrainedNetwork = ENET) -> Size:
    """ "4x176x240" as images, height and width, "10x20x512x1024" with a number of classes.

    Raises:
        UserError: another form, too few images, or sides that the network does not take.
    """
    if not re.fullmatch(r"[0-9]{1,6}(x[0-9]{1,6}){2,3}", text.lower()):
        example = trained.rhythms["cpu"].size
        raise UserError(f"size {text!r}: give BxHxW, for example {example}, or BxCxHxW.")
    images, *classes, height, width = (int(side) for side in text.lower().split("x"))
    count = classes[0] if classes else trained.classes
    if not 2 <= count < VOID:
        raise UserError(f"size {text!r}: needs 2 to {VOID - 1} classes.")
    if images < trained.least_images:
        why = "batch normalisation needs" if trained.least_images > 1 else "a batch has"
        raise UserError(f"size {text!r}: {why} at least {trained.least_images} images.")
    if {height % ENET_STRIDE, width % ENET_STRIDE} != {
        trained.rest
    } or height * width <= ENET_STRIDE**2:
        raise UserError(f"size {text!r}: height and width must be {trained.side}.")
    return Size(images, count, height, width)


def variants(settings: TrainingSettings) -> list[StepVariant]:
    """Everything that is compared; the first is the unit."""
    several = [StepVariant(f"{count} processes", processes=count) for count in settings.procs]
    rows = [
        StepVariant("1 process, float32" if several else "float32"),
        *several,
        StepVariant("bfloat16", precision="bfloat16"),
        StepVariant("channels last", channels_last=True),
        StepVariant("bfloat16, channels last", precision="bfloat16", channels_last=True),
    ]
    if settings.device.type == "cuda":
        rows += [
            StepVariant("compiled", compiled=True),
            StepVariant(f"{rows[-1].name}, compiled", 1, "bfloat16", True, True),
        ]
    if settings.trained.compares_losses:
        rows.append(StepVariant("float32, cross-entropy", loss="cross_entropy"))
        if settings.size.batch > 1:
            rows.append(StepVariant("float32, in 2 parts", iter_size=2))
    return [replace(row, network=settings.network) for row in rows]


@dataclass
class Entry:
    """A variant that takes part."""

    variant: StepVariant
    threads: int
    first_loss: float
    run: Callable[[int, int], Timed]
    """Steps and a seed -> what they took."""
    gradient_difference: float | None = None
    peak_bytes: int | None = None
    """Of a GPU's memory."""


def run_bench(settings: TrainingSettings, advance: Advance = quiet) -> TrainingReport:
    """Measure every variant and the checkpoints.

    Raises:
        UserError: the memory does not suffice.
        RunFailed: a rank failed, or a variant computed something else than the first.
    """
    torch.set_num_threads(settings.threads)
    with enough_memory(_shape(settings.size), settings.device), ExitStack() as stack:
        return _run(settings, advance, stack)


def check_same(name: str, loss: float, unit: float, tolerance: float) -> None:
    """Make sure that a variant computes what the first one does.

    Raises:
        RunFailed: the losses of their first steps differ by more than the tolerance.
    """
    if not abs(loss - unit) <= tolerance:
        raise RunFailed(
            f"{name}: the first loss is {loss:.7f}, in the first row {unit:.7f}. That is another "
            "computation; nothing is reported."
        )


def check_same_gradient(name: str, step: First, unit: First) -> float:
    """Make sure that ranks compute in float64 what one process does.

    Returns:
        2-norm of the difference of the gradients, divided by the norm of the second.

    Raises:
        RunFailed: losses or gradients differ by more than SAME_GRADIENT, relative.
    """
    check_same(name, step.loss, unit.loss, SAME_GRADIENT * abs(unit.loss))
    own, other = torch.from_numpy(step.gradient), torch.from_numpy(unit.gradient)
    difference = float((own - other).norm() / other.norm())
    if not difference <= SAME_GRADIENT:
        raise RunFailed(
            f"{name}: the gradient differs from that of the first row by {difference:.1e} of its "
            "norm, in float64. That is another computation; nothing is reported."
        )
    return difference


def _run(settings: TrainingSettings, advance: Advance, stack: ExitStack) -> TrainingReport:
    unit = Trainee(variants(settings)[0], settings.size, settings.device)
    entries, notes = _prepare(settings, unit, advance, stack)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    keep_best(unit.state, 0.0)  # a checkpoint has the best weights so far
    ways: dict[str, Callable[[int], Any]] = {
        entry.variant.name: partial(entry.run, settings.steps) for entry in entries
    }
    ways[CHECKPOINT] = lambda _: _save(unit.state, folder)
    found = in_turn(ways, settings.rounds, advance, warm_up=1)
    took, sizes = zip(*found.pop(CHECKPOINT), strict=True)
    rows = [_measured(entry, found, entries[0], settings) for entry in entries]
    alone = settings.device.type == "cpu" and settings.threads == 1
    if alone and settings.trained.compares_processes:
        notes.append(ONE_THREAD)
    batch, classes, height, width = settings.size
    return TrainingReport(
        this_machine(settings.device),
        settings.network,
        BatchSize(batch, height, width),
        classes,
        settings.rounds,
        settings.steps,
        tuple(rows),
        CheckpointCost(took, ratio(took, rows[0].times_ms), sizes[-1]),
        tuple(notes),
    )


def _prepare(
    settings: TrainingSettings, unit: Trainee, advance: Advance, stack: ExitStack
) -> tuple[list[Entry], list[str]]:
    """Every variant after its first step, and why some do not take part."""
    size, device, threads = settings.size, settings.device, settings.threads
    chosen, *others = variants(settings)
    entries, notes = [_alone(chosen, unit, threads)], []
    loss = entries[0].first_loss
    exact = None
    if settings.procs:
        exact = Trainee(replace(chosen, precision="float64"), size, device).first()
    advance(chosen.name)
    for variant in others:
        try:
            if exact and variant.processes > 1:
                ranks = stack.enter_context(TrainingRanks(variant.processes, size, threads))
                entries.append(_together(variant, ranks, loss, exact))
            else:
                entries.append(_alone(variant, Trainee(variant, size, device), threads))
                if variant.loss == chosen.loss:
                    check_same(
                        variant.name, entries[-1].first_loss, loss, settings.trained.near_loss
                    )
        except Exception as error:
            if not (variant.compiled and type(error).__module__.startswith("torch._")):
                raise
            notes.append(f"{variant.name}: not measured, {type(error).__name__} in torch.compile.")
        advance(variant.name)
    return entries, notes


def _alone(variant: StepVariant, trainee: Trainee, threads: int) -> Entry:
    loss = trainee.first().loss
    return Entry(variant, threads, loss, trainee.run, peak_bytes=trainee.peak_bytes())


def _together(variant: StepVariant, ranks: TrainingRanks, unit_loss: float, unit: First) -> Entry:
    loss, exact = ranks.first()
    check_same(variant.name, loss, unit_loss, SAME_LOSS)
    difference = check_same_gradient(variant.name, exact, unit)
    return Entry(variant, ranks.threads, loss, ranks.run, difference)


def _save(state: TrainingState, folder: Path) -> tuple[float, int]:
    """Milliseconds to make and write a checkpoint, and its bytes."""
    began = time.perf_counter()
    path = Checkpoints(folder).save(state.iteration, state.to_checkpoint())
    return 1000 * (time.perf_counter() - began), path.stat().st_size


def _measured(
    entry: Entry, found: Mapping[str, Sequence[Timed]], unit: Entry, settings: TrainingSettings
) -> MeasuredStep:
    own = found[entry.variant.name]
    times, losses = tuple(timed.step for timed in own), tuple(timed.loss for timed in own)
    talk = tuple(timed.communication for timed in own if timed.communication is not None) or None
    images_per_second = 1000 * settings.size.batch / statistics.median(times)
    return MeasuredStep(
        entry.variant.name,
        entry.variant.processes,
        entry.threads,
        times,
        losses,
        talk,
        ratio(times, [timed.step for timed in found[unit.variant.name]]),
        ratio(losses, times),
        ratio(talk, times) if talk else None,
        images_per_second,
        entry.first_loss,
        abs(entry.first_loss - unit.first_loss),
        entry.gradient_difference,
        entry.peak_bytes,
        projected_hours(settings.network, settings.size, images_per_second),
    )


def projected_hours(
    network: NetworkName, size: Size, images_per_second: float
) -> dict[int, float | None]:
    """Iterations -> hours with the paper's batch of 10 crops of 321×321.

    Without reading, validation and checkpoints; None for another network or crop.
    """
    known = network == "deeplab-v2" and size[2:] == (PAPERS_CROP, PAPERS_CROP)
    return {
        iterations: iterations * PAPERS_BATCH / images_per_second / 3600 if known else None
        for iterations in PAPERS_ITERATIONS
    }


def _shape(size: Size) -> str:
    return f"{size.batch} x {size.height} x {size.width}"
