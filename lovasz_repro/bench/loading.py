"""Whether an experiment's images are read as fast as they are trained on.

The loader alone, with one number of worker processes after the other, and the training step alone,
on a batch from memory, take turns; images per second are compared within a round. On a CPU the
workers share the cores with the training, so there the loader has to be much faster than the step.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from lovasz_repro.bench.formats import empty_table, md_heads, md_line, number, with_quartiles
from lovasz_repro.bench.machine import contended, device_title, load, synchronise, warning
from lovasz_repro.bench.measure import Spread, ratio
from lovasz_repro.building import build_model, build_optimizer, open_data, training_batches
from lovasz_repro.config import CellConfig, LossConfig
from lovasz_repro.datasets import DATASETS
from lovasz_repro.errors import UserError
from lovasz_repro.place import Place, find_inputs
from lovasz_repro.provenance import device_name, git_commit
from lovasz_repro.training.distributed import ALONE
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import build_objective

STEPS = 2  # of the training, in a round
HEADS = ("", "images / s", "loader / step")
CAPTION = (
    "Loader: read, decode, resize, put together. Step: forward, backward and Adam on a batch from "
    "memory. Loader / step: images per second in those of the step of the same round; median "
    "(quartiles) over {rounds} rounds of {batches} batches."
)


@dataclass(frozen=True)
class Settings:
    """What to measure, and where."""

    cell: CellConfig
    place: Place
    workers: tuple[int, ...]
    """Numbers of processes that decode images; 0 decodes in the process that trains."""
    batches: int
    """That are loaded in a round, beside the first, which is thrown away."""
    rounds: int

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return self.rounds * (1 + len(self.workers))


@dataclass(frozen=True)
class Loader:
    """The speed of the loader with so many workers, by round."""

    workers: int
    images_per_second: tuple[float, ...]
    in_steps: Spread
    """Images per second in those of the training step of the same round."""


@dataclass(frozen=True)
class Report:
    """What was measured."""

    title: str
    git_commit: str
    step_images_per_second: tuple[float, ...]
    loaders: tuple[Loader, ...]
    batches: int
    rounds: int
    load: float | None


def run_bench(settings: Settings, advance: Callable[[str], None] = lambda name: None) -> Report:
    """Measure; calls ``advance`` with the name of each thing measured.

    Raises:
        UserError: data or weights are missing, or there are fewer batches than are to be loaded.
    """
    cell, place = without_equibatch(settings.cell), settings.place
    inputs = find_inputs(cell, place)
    train_set, _ = open_data(cell, inputs)
    if cell.training.iterations <= settings.batches:
        raise UserError(f"--batches {settings.batches}: {cell.name} has no more batches than that.")
    step = _stepper(cell, inputs, place, train_set)
    steps: list[float] = []
    loaders: dict[int, list[float]] = {count: [] for count in settings.workers}
    for _ in range(settings.rounds):
        steps.append(cell.training.batch_size * STEPS / step())
        advance("training step")
        for count, rates in loaders.items():
            with_workers = replace(place, workers=count)
            batches = training_batches(cell, train_set, None, with_workers, ALONE, start=0)
            rates.append(_loaded_per_second(batches, settings.batches, cell))
            advance(f"loader, {count} workers")
    height, width = cell.data.size
    where = device_title(device_name(place.device), place.device, torch.get_num_threads())
    return Report(
        title=f"{cell.experiment}, {cell.training.batch_size}×{height}×{width}, {where}",
        git_commit=git_commit(),
        step_images_per_second=tuple(steps),
        loaders=tuple(Loader(n, tuple(r), ratio(r, steps)) for n, r in loaders.items()),
        batches=settings.batches,
        rounds=settings.rounds,
        load=load(),
    )


def without_equibatch(cell: CellConfig) -> CellConfig:
    """The same cell with images drawn at random, which cost as much and need no class counts."""
    return cell.model_copy(update={"data": cell.data.model_copy(update={"equibatch": False})})


def _stepper(cell: CellConfig, inputs: Any, place: Place, train_set: Any) -> Callable[[], float]:
    """A function that takes STEPS training steps and returns the seconds they took."""
    torch.manual_seed(cell.seed)
    model = build_model(cell, inputs, place.device)
    state = TrainingState(model, build_optimizer(model, cell.training))
    loss = LossConfig.model_validate(cell.loss.model_dump() | {"class_weights": "none"})
    objective = build_objective(loss, DATASETS[cell.data.name].ignore_index)
    images, labels = next(training_batches(cell, train_set, None, place, ALONE, start=0))

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            config, device = cell.training, place.device
            training_step(state, model, images, labels, objective, config, config.lr, device)
        synchronise(place.device)
        return time.perf_counter() - began

    steps()  # the first is slower
    return steps


def _loaded_per_second(batches: Iterator[Any], count: int, cell: CellConfig) -> float:
    next(batches)  # workers start
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * cell.training.batch_size / (time.perf_counter() - began)


def print_report(report: Report, console: Console) -> None:
    """The table, for people."""
    table = empty_table(HEADS)
    for row in _rows(report):
        table.add_row(*row)
    console.print(Text(report.title, style="bold"))
    console.print(table)
    console.print(Text(CAPTION.format(**asdict(report)), style="dim"))
    if report.load is not None and contended(report.load):
        console.print(Text(warning(report.load), style="yellow"))


def to_markdown(report: Report) -> str:
    """The same table in Markdown."""
    lines = [f"**{report.title}**", "", *md_heads(HEADS), *(md_line(row) for row in _rows(report))]
    lines += ["", CAPTION.format(**asdict(report))]
    if report.load is not None and contended(report.load):
        lines += ["", warning(report.load)]
    return "\n".join(lines)


def to_json(report: Report) -> str:
    """Everything, every round."""
    import json

    return json.dumps(asdict(report), indent=2)


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    yield "training step alone", number(statistics.median(report.step_images_per_second)), "1"
    for loader in report.loaders:
        where = f"{loader.workers} workers" if loader.workers else "the same process"
        rate = statistics.median(loader.images_per_second)
        yield f"loader alone, {where}", number(rate), with_quartiles(loader.in_steps)
