"""What a training step costs: in other precisions and memory formats, with checkpoints.

Every variant trains the same network on the same batch, through the functions that a run trains
with, with Lovász-Softmax.

A variant that computes something else would be worth nothing, however fast. So the loss of every
variant's first step is compared with that of the first variant.
"""

import re
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch

from lovasz_repro.bench import harness
from lovasz_repro.bench.harness import (
    QUIET,
    Advance,
    Column,
    Machine,
    Page,
    Report,
    Row,
    number,
    quartiles,
    ratio,
)
from lovasz_repro.bench.trainee import (
    TRAINEES,
    NetworkName,
    StepVariant,
    Timed,
    TrainedNetwork,
    Trainee,
)
from lovasz_repro.bench.yardsticks import Size, check_memory
from lovasz_repro.data.classes import VOID
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.output import plural
from lovasz_repro.models.enet import ENET_STRIDE
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.loop import TrainingState, keep_best

CHECKPOINT = "checkpoint"
CHECKPOINT_EVERY = (25, 250)  # iterations
STEP_COLUMNS: tuple[Column, ...] = (
    ("training step", itemgetter("name")),
    ("images / s", lambda row: number(row["images_per_second"])),
    ("ms / step", harness.median("times_ms")),
    ("time /\nfirst row", quartiles("time_ratio")),
    ("loss in\nthe step", lambda row: f"{row['loss_share'].median:.0%}"),
)
PEAK: Column = ("GPU\nmemory", lambda row: f"{row['peak_bytes'] / 2**30:.1f} GiB")
PAPERS_BATCH, PAPERS_CROP, PAPERS_ITERATIONS = 10, 321, (20_000, 30_000)  # Sec. 4.3
CAPTION = (
    "Forward, backward and {optimizer}, on one batch from memory. Time: divided by that of the "
    "first row in the same round; median (quartiles) over the rounds ({rounds}, of {steps} each). "
    "Loss: Lovász-Softmax, forward and backward, by its share of the step."
)


def run_bench(
    network: NetworkName,
    size: str | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    steps: int | None,
    advance: Advance = QUIET,
) -> Report:
    """Measure every variant and the checkpoints; defaults are for what is None.

    Args:
        network: what is trained.
        size: of a batch, see ``parse_batch``.
        device: where.
        threads: of the CPU.
        rounds: that count, beside the first.
        steps: of each variant in a round.
        advance: told of each variant after its first step, and of each turn.

    Raises:
        UserError: a size that the network does not take or that does not fit the memory of the
            device.
        RunFailed: a variant computed something else than the first.
    """
    trained = TRAINEES[network]
    rhythm = trained.rhythms[device.type]
    rounds, steps = rounds or rhythm.rounds, steps or rhythm.steps
    chosen = parse_batch(size or rhythm.size, trained)
    shape = f"{chosen.batch} x {chosen.height} x {chosen.width}"
    needed = chosen.batch * chosen.height * chosen.width * trained.bytes_a_pixel
    check_memory(shape, needed, device)
    compared = variants(device)
    advance.expect(len(compared) + (len(compared) + 1) * (rounds + 1))
    torch.set_num_threads(threads or torch.get_num_threads())
    with harness.enough_memory(shape, device), tempfile.TemporaryDirectory() as folder:
        entries, notes = _prepare(network, compared, chosen, device, advance)
        state = entries[0].trainee.state
        keep_best(state, 0.0)  # a checkpoint has the best weights so far
        ways: dict[str, Callable[[int], Any]] = {
            entry.name: partial(entry.trainee.run, steps) for entry in entries
        }
        ways[CHECKPOINT] = lambda _: _save(state, Path(folder))
        times = harness.in_turn(ways, rounds, advance, warm_up=1)
    took, sizes = zip(*times.pop(CHECKPOINT), strict=True)
    unit = [timed.step for timed in times[entries[0].name]]
    machine = harness.this_machine(device)
    found = {
        "network": network,
        "size": chosen,
        "rounds": rounds,
        "steps": steps,
        "rows": [_measured(network, chosen, entry, times[entry.name], unit) for entry in entries],
        "checkpoint": checkpoint_cost(took, unit, sizes[-1]),
        "notes": notes,
    }
    return Report(machine, found, [page(machine, found)])


def parse_batch(text: str, trained: TrainedNetwork) -> Size:
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


def variants(device: torch.device) -> list[StepVariant]:
    """Everything that is compared; the first is the unit."""
    rows = [
        StepVariant("float32"),
        StepVariant("bfloat16", precision="bfloat16"),
        StepVariant("channels last", channels_last=True),
        StepVariant("bfloat16, channels last", "bfloat16", channels_last=True),
    ]
    if device.type == "cuda":
        rows += [
            StepVariant("compiled", compiled=True),
            StepVariant("bfloat16, channels last, compiled", "bfloat16", True, True),
        ]
    return rows


@dataclass
class Entry:
    """A variant that takes part."""

    name: str
    trainee: Trainee
    first_loss: float
    peak_bytes: int | None
    """Of a GPU's memory."""


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


def page(machine: Machine, found: Row) -> Page:
    """One table and, below it, what does not fit into rows."""
    batch, classes, height, width = found["size"]
    trained, rows = TRAINEES[found["network"]], found["rows"]
    return Page(
        f"{trained.title}, {batch} x 3 x {height} x {width}, {classes} classes, {machine.device}, "
        f"torch {machine.torch_version}",
        STEP_COLUMNS if rows[0]["peak_bytes"] is None else (*STEP_COLUMNS, PEAK),
        {"": rows},
        machine.load,
        [*filter(None, map(_hours, rows)), _remark(found["checkpoint"]), *found["notes"]],
        CAPTION.format(
            rounds=found["rounds"],
            steps=plural(found["steps"], "step"),
            optimizer=trained.optimizer,
        ),
    )


def _hours(row: Row) -> str:
    """How long the paper's training takes, where that is known."""
    hours = ", ".join(
        f"{iterations:,} iterations {number(hours)} h"
        for iterations, hours in row["projected_hours"].items()
    )
    return hours and (
        f"{row['name']}, time per step × iterations on this device, for batches of "
        f"{PAPERS_BATCH}: {hours}; reading and validation come on top."
    )


def checkpoint_cost(times_ms: Sequence[float], steps_ms: Sequence[float], size: int) -> Row:
    """What it takes to make a checkpoint of so many bytes and write it, beside steps of a round."""
    steps = ratio(times_ms, steps_ms)
    added = {every: 100 * steps.median / every for every in CHECKPOINT_EVERY}
    return {"times_ms": times_ms, "steps": steps, "bytes": size, "per_cent": added}


def _remark(checkpoint: Row) -> str:
    """What it adds to the time of training."""
    rhythm = ", ".join(
        f"one every {every} adds {number(share)}%"
        for every, share in checkpoint["per_cent"].items()
    )
    return (
        f"A checkpoint ({checkpoint['bytes'] / 1e6:.1f} MB) takes as long as "
        f"{number(checkpoint['steps'].median)} steps of the first row. To the time of training, in "
        f"iterations, {rhythm}."
    )


def _prepare(
    network: NetworkName,
    compared: Sequence[StepVariant],
    size: Size,
    device: torch.device,
    advance: Advance,
) -> tuple[list[Entry], list[str]]:
    """Every variant after its first step, and why some do not take part."""
    entries: list[Entry] = []
    notes = []
    for variant in compared:
        try:
            trainee = Trainee(network, variant, size, device)
            entry = Entry(variant.name, trainee, trainee.first(), trainee.peak_bytes())
        except Exception as error:
            if not (variant.compiled and type(error).__module__.startswith("torch._")):
                raise
            notes.append(f"{variant.name}: not measured, {type(error).__name__} in torch.compile.")
        else:
            entries.append(entry)
            near = TRAINEES[network].near_loss
            check_same(variant.name, entry.first_loss, entries[0].first_loss, near)
        advance(variant.name)
    return entries, notes


def _save(state: TrainingState, folder: Path) -> tuple[float, int]:
    """Milliseconds to make and write a checkpoint, and its bytes."""
    began = time.perf_counter()
    path = Checkpoints(folder).save(state.iteration, state.to_checkpoint())
    return 1000 * (time.perf_counter() - began), path.stat().st_size


def _measured(
    network: NetworkName, size: Size, entry: Entry, timed: Sequence[Timed], unit: Sequence[float]
) -> Row:
    """What was found out about a variant.

    Times are milliseconds a step, by round. The loss, forward and backward, is part of the step.
    ``first_loss`` is that of the first step, ``peak_bytes`` are of a GPU's memory.
    """
    times, losses = zip(*timed, strict=True)
    median_ms = statistics.median(times)
    images_per_second = 1000 * size.batch / median_ms
    return {
        "name": entry.name,
        "times_ms": times,
        "median_ms": median_ms,
        "loss_ms": losses,
        "time_ratio": ratio(times, unit),
        "loss_share": ratio(losses, times),
        "images_per_second": images_per_second,
        "first_loss": entry.first_loss,
        "peak_bytes": entry.peak_bytes,
        "projected_hours": projected_hours(network, size, images_per_second),
    }


def projected_hours(network: NetworkName, size: Size, images_per_second: float) -> dict[int, float]:
    """Iterations -> hours with the paper's batch of 10 crops of 321×321.

    Without reading, validation and checkpoints; empty for another network or crop.
    """
    if network != "deeplab-v2" or size[2:] != (PAPERS_CROP, PAPERS_CROP):
        return {}
    return {
        iterations: iterations * PAPERS_BATCH / images_per_second / 3600
        for iterations in PAPERS_ITERATIONS
    }
