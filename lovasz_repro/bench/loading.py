"""Whether an experiment's images are read as fast as they are trained on.

The loader alone, with one number of worker processes after the other, and the training step alone,
on a batch from memory, take turns; images per second are compared within a round. On a CPU the
workers share the cores with the training, so there the loader has to be much faster than the step.
On the photographs of VOC a plain loader takes its turn as well (``loading_yardstick``).
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from lovasz_repro.bench.formats import md_heads, md_line, number, with_quartiles
from lovasz_repro.bench.loading_yardstick import PlainVoc
from lovasz_repro.bench.machine import contended, device_title, load, synchronise, warning
from lovasz_repro.bench.measure import Spread, ratio
from lovasz_repro.config.schema import CellConfig, LossConfig
from lovasz_repro.data.voc_training import VocTraining
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import device_name, git_commit
from lovasz_repro.host.terminal import print_table
from lovasz_repro.run.build import build_model, build_optimizer, open_data, training_batches
from lovasz_repro.run.datasets import DATASETS, category_of
from lovasz_repro.run.inputs import Place, find_inputs
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import ALONE
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import build_objective

STEPS = 2  # of the training, in a round
HEADS = ("", "images / s", "loader / step")
LOADER, PLAIN = "loader alone", "plain PIL"
CAPTION = (
    "Loader: read, decode, resize, put together. Step: forward, backward and update on a batch "
    "from memory. Loader / step: images per second in those of the step of the same round; median "
    "(quartiles) over {rounds} rounds of {batches} batches."
)
PLAIN_CAPTION = (
    "Plain PIL: the whole photograph resized by Pillow, made float and the mean subtracted in the "
    "loader, as most ports of DeepLab do."
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
    def with_plain(self) -> bool:
        """Whether there is a plain loader to compare with."""
        return self.cell.data.name == "voc" and self.cell.data.images == "photographs"

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return self.rounds * (1 + len(self.workers) * (1 + self.with_plain))


@dataclass(frozen=True)
class Loader:
    """The speed of a loader with so many workers, by round."""

    name: str
    """LOADER or PLAIN."""
    workers: int
    images_per_second: tuple[float, ...]
    in_steps: Spread
    """Images per second in those of the training step of the same round."""
    in_plain: Spread | None
    """In those of the plain loader of the same round with as many workers; None: not measured."""


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
    cell, place = settings.cell.start or settings.cell, settings.place
    inputs = find_inputs(cell, place)
    train_set, _ = open_data(cell, inputs)
    if cell.training.iterations <= settings.batches:
        raise UserError(f"--batches {settings.batches}: {cell.name} has no more batches than that.")
    sets: dict[str, Any] = {LOADER: train_set}
    if settings.with_plain:
        assert isinstance(train_set, VocTraining)
        sets[PLAIN] = PlainVoc(train_set.images, train_set.crop)
    step = _stepper(cell, inputs, place, train_set)
    steps: list[float] = []
    rates: dict[tuple[str, int], list[float]] = {
        (name, count): [] for count in settings.workers for name in sets
    }
    for _ in range(settings.rounds):
        steps.append(cell.training.batch_size * STEPS / step())
        advance("training step")
        for (name, count), own in rates.items():
            batches = _batches(cell, sets[name], replace(place, workers=count))
            own.append(_loaded_per_second(batches, settings.batches, cell))
            advance(f"{name}, {count} workers")
    height, width = cell.data.size
    where = device_title(device_name(place.device), place.device, torch.get_num_threads())
    return Report(
        title=f"{cell.experiment}, {cell.training.batch_size}×{height}×{width}, {where}",
        git_commit=git_commit(),
        step_images_per_second=tuple(steps),
        loaders=tuple(_loaders(rates, steps)),
        batches=settings.batches,
        rounds=settings.rounds,
        load=load(),
    )


def _loaders(rates: Mapping[tuple[str, int], list[float]], steps: list[float]) -> Iterator[Loader]:
    for (name, count), own in rates.items():
        plain = rates.get((PLAIN, count))
        in_plain = ratio(own, plain) if plain else None
        yield Loader(name, count, tuple(own), ratio(own, steps), in_plain)


def _batches(cell: CellConfig, images: Any, place: Place) -> Iterator[Any]:
    """Images drawn at random, which costs as much as any rule and needs no class counts."""
    data = cell.data.model_copy(update={"equibatch": False, "category": None})
    at_random = cell.model_copy(update={"data": data})
    return training_batches(at_random, images, None, place, ALONE, start=0)


def _stepper(cell: CellConfig, inputs: Any, place: Place, train_set: Any) -> Callable[[], float]:
    """A function that takes STEPS training steps and returns the seconds they took."""
    torch.manual_seed(cell.seed)
    network = NETWORKS[cell.model.name]
    model = build_model(cell, inputs, place.device)
    state = TrainingState(model, build_optimizer(model, cell.training, cell.model.name))
    objective = build_objective(
        LossConfig.model_validate(cell.loss.model_dump() | {"class_weights": "none"}),
        DATASETS[cell.data.name].ignore_index,
        category=category_of(cell.data),
        to_size=network.to_size,
    )
    images, labels = next(_batches(cell, train_set, place))

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(STEPS):
            config, device = cell.training, place.device
            training_step(
                state, model, images, labels, objective, config, config.lr, device, network.prepare
            )
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
    console.print(Text(report.title, style="bold"))
    print_table(console, _heads(report), list(_rows(report)))
    console.print(Text(_caption(report), style="dim"))
    if report.load is not None and contended(report.load):
        console.print(Text(warning(report.load), style="yellow"))


def to_markdown(report: Report) -> str:
    """The same table in Markdown."""
    heads, rows = md_heads(_heads(report)), [md_line(row) for row in _rows(report)]
    lines = [f"**{report.title}**", "", *heads, *rows, "", _caption(report)]
    if report.load is not None and contended(report.load):
        lines += ["", warning(report.load)]
    return "\n".join(lines)


def to_json(report: Report) -> str:
    """Everything, every round."""
    import json

    return json.dumps(asdict(report), indent=2)


def _heads(report: Report) -> tuple[str, ...]:
    return (*HEADS, "loader / plain PIL") if _with_plain(report) else HEADS


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    step = number(statistics.median(report.step_images_per_second))
    yield ("training step alone", step, "1", "")[: len(_heads(report))]
    for loader in report.loaders:
        where = f"{loader.workers} workers" if loader.workers else "the same process"
        rate = number(statistics.median(loader.images_per_second))
        row = f"{loader.name}, {where}", rate, with_quartiles(loader.in_steps)
        yield (*row, with_quartiles(loader.in_plain)) if loader.in_plain else row


def _caption(report: Report) -> str:
    caption = CAPTION.format(rounds=report.rounds, batches=report.batches)
    return f"{caption} {PLAIN_CAPTION}" if _with_plain(report) else caption


def _with_plain(report: Report) -> bool:
    return any(loader.in_plain for loader in report.loaders)
