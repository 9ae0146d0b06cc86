"""What a training step costs: on several processes, in other precisions, with checkpoints.

Every variant trains the same network on the same batch, through the functions that a run trains
with, and but for one row with Lovász-Softmax. A machine is not equally fast all the time, so
variants take turns, a few steps each a round, and times are compared within the round.

A variant that computes something else would be worth nothing, however fast. So the loss of every
variant's first step is compared with that of the first variant. Where ranks share the batch, loss
and gradient are so in float64 too, in which an untrained ENet does not blow up what rounding does
(in float32 its gradient is off by several per cent as soon as sums are in another order).
"""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from lovasz_repro.bench.machine import device_title, is_out_of_memory, load
from lovasz_repro.bench.measure import ratio
from lovasz_repro.bench.samples import Size, free_memory
from lovasz_repro.bench.trained_networks import ENET, TRAINED, NetworkName, Trained
from lovasz_repro.bench.trainee import VOID, First, Timed, Trainee, Variant
from lovasz_repro.bench.training_ranks import Ranks
from lovasz_repro.bench.training_render import CheckpointCost, Measured, Report
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.provenance import device_name, git_commit
from lovasz_repro.models.enet import STRIDE
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.loop import TrainingState, keep_best

DEFAULT_PROCS = (1, 2)
# How far the first loss may be from that of the first variant, absolute, where ranks share the
# batch. (In another precision or memory format: `Trained.near_loss`.)
SAME_LOSS = 1e-5
SAME_GRADIENT = 1e-6  # 2-norm, relative, in float64


@dataclass(frozen=True)
class Settings:
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
    def trained(self) -> Trained:
        """What is known of the network."""
        return TRAINED[self.network]

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return len(variants(self)) + (len(variants(self)) + 1) * (self.rounds + 1)


def choose_settings(
    size: str | None,
    procs: Sequence[int] | None,
    device: torch.device,
    threads: int | None,
    rounds: int | None,
    steps: int | None,
    network: NetworkName = "enet",
) -> Settings:
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
    for count in procs or ():
        if count > chosen.batch:
            raise UserError(f"--procs {count}: {chosen.batch} images leave some without one.")
        if count > threads:
            raise UserError(
                f"--procs {count}: they share {threads} CPU threads. Give more with --threads."
            )
    several = {count for count in procs or DEFAULT_PROCS if 1 < count <= threads}
    counts = tuple(sorted(several)) if kind == "cpu" and trained.compares_processes else ()
    # ranks are compared in float64
    _check_memory(chosen, device, trained.bytes_a_pixel * (2 if counts else 1))
    rounds, steps = rounds or rhythm.rounds, steps or rhythm.steps
    return Settings(chosen, counts, device, threads, rounds, steps, network)


def parse_batch(text: str, trained: Trained = ENET) -> Size:
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
    if {height % STRIDE, width % STRIDE} != {trained.rest} or height * width <= STRIDE**2:
        raise UserError(f"size {text!r}: height and width must be {trained.side}.")
    return Size(images, count, height, width)


def variants(settings: Settings) -> list[Variant]:
    """Everything that is compared; the first is the unit."""
    several = [Variant(f"{count} processes", processes=count) for count in settings.procs]
    rows = [
        Variant("1 process, float32" if several else "float32"),
        *several,
        Variant("bfloat16", precision="bfloat16"),
        Variant("channels last", channels_last=True),
        Variant("bfloat16, channels last", precision="bfloat16", channels_last=True),
    ]
    if settings.device.type == "cuda":
        rows += [
            Variant("compiled", compiled=True),
            Variant(f"{rows[-1].name}, compiled", 1, "bfloat16", True, True),
        ]
    if settings.trained.compares_losses:
        rows.append(Variant("float32, cross-entropy", loss="cross_entropy"))
        if settings.size.batch > 1:
            rows.append(Variant("float32, in 2 parts", iter_size=2))
    return [replace(row, network=settings.network) for row in rows]


@dataclass
class Entry:
    """A variant that takes part, and its times so far."""

    variant: Variant
    threads: int
    first_loss: float
    gradient_difference: float | None
    run: Callable[[int, int], tuple[Timed, float | None]]
    times: list[Timed] = field(default_factory=list)
    communication: list[float] = field(default_factory=list)
    """Milliseconds a step; empty for one process."""
    peak_bytes: int | None = None
    """Of a GPU's memory."""


def run_bench(settings: Settings, advance: Callable[[str], None] = lambda name: None) -> Report:
    """Measure every variant and the checkpoints.

    Args:
        settings: what to measure and where.
        advance: told what was measured after each of the ``settings.passes``.

    Raises:
        UserError: the memory does not suffice.
        RunFailed: a rank failed, or a variant computed something else than the first.
    """
    torch.set_num_threads(settings.threads)
    try:
        with ExitStack() as stack:
            return _run(settings, advance, stack)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"size {_shape(settings.size)}: not enough memory on {settings.device}. "
            "Give a smaller --size."
        ) from error


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


def _run(settings: Settings, advance: Callable[[str], None], stack: ExitStack) -> Report:
    unit = Trainee(variants(settings)[0], settings.size, settings.device)
    entries, notes = _prepare(settings, unit, advance, stack)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    keep_best(unit.state, 0.0)  # a checkpoint has the best weights so far
    checkpoints: list[float] = []
    for number in range(settings.rounds + 1):
        for entry in entries:
            timed, communication = entry.run(settings.steps, number)
            if number:
                entry.times.append(timed)
            if number and communication is not None:
                entry.communication.append(communication)
            advance(entry.variant.name)
        took, size = _save(unit.state, folder)
        if number:
            checkpoints.append(took)
        advance("checkpoint")
    steps = ratio(checkpoints, [timed.step for timed in entries[0].times])
    threads = settings.threads
    name = device_name(settings.device)
    if settings.device.type == "cpu" and threads == 1 and settings.trained.compares_processes:
        notes.append("Processes, which share the threads, are not compared: there is one thread.")
    return Report(
        device_title(name, settings.device, threads),
        name,
        threads,
        torch.__version__,
        git_commit(),
        settings.size,
        settings.rounds,
        settings.steps,
        tuple(_measured(entry, entries[0], settings.size.batch) for entry in entries),
        CheckpointCost(tuple(checkpoints), steps, size),
        tuple(notes),
        load(),
        settings.network,
    )


def _prepare(
    settings: Settings, unit: Trainee, advance: Callable[[str], None], stack: ExitStack
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
                ranks = stack.enter_context(Ranks(variant.processes, size, threads))
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


def _alone(variant: Variant, trainee: Trainee, threads: int) -> Entry:
    loss, peak = trainee.first().loss, trainee.peak_bytes()
    return Entry(
        variant,
        threads,
        loss,
        None,
        lambda *given: (trainee.run(*given), None),
        peak_bytes=peak,
    )


def _together(variant: Variant, ranks: Ranks, unit_loss: float, unit: First) -> Entry:
    loss, exact = ranks.first()
    check_same(variant.name, loss, unit_loss, SAME_LOSS)
    difference = check_same_gradient(variant.name, exact, unit)
    return Entry(variant, ranks.threads, loss, difference, ranks.run)


def _save(state: TrainingState, folder: Path) -> tuple[float, int]:
    """Milliseconds to make and write a checkpoint, and its bytes."""
    began = time.perf_counter()
    path = Checkpoints(folder).save(state.iteration, state.to_checkpoint())
    return 1000 * (time.perf_counter() - began), path.stat().st_size


def _measured(entry: Entry, unit: Entry, images: int) -> Measured:
    times = tuple(timed.step for timed in entry.times)
    losses = tuple(timed.loss for timed in entry.times)
    talk = tuple(entry.communication) or None
    median = ratio(times, [1.0] * len(times)).median
    return Measured(
        entry.variant.name,
        entry.variant.processes,
        entry.threads,
        times,
        losses,
        talk,
        ratio(times, [timed.step for timed in unit.times]),
        ratio(losses, times),
        ratio(talk, times) if talk else None,
        1000 * images / median,
        entry.first_loss,
        abs(entry.first_loss - unit.first_loss),
        entry.gradient_difference,
        entry.peak_bytes,
    )


def _check_memory(size: Size, device: torch.device, bytes_a_pixel: int) -> None:
    """Refuse a size that cannot fit.

    Raises:
        UserError: the device has less memory than a step needs.
    """
    needed = size.batch * size.height * size.width * bytes_a_pixel
    free = free_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"size {_shape(size)}: needs about {needed / 2**30:.1f} GiB on {device.type}, "
            f"{free / 2**30:.1f} GiB are free. Give a smaller --size."
        )


def _shape(size: Size) -> str:
    return f"{size.batch} x {size.height} x {size.width}"
