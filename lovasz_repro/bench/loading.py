"""Whether an experiment's images are read as fast as they are trained on.

The loader alone, with one number of worker processes after the other, and the training step alone,
on a batch from memory. On a CPU the workers share the cores with the training, so there the loader
has to be much faster than the step. On the photographs of VOC a plain loader takes its turn as well
(``PlainVoc``).
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch

from lovasz_repro.bench.harness import (
    Advance,
    BenchReport,
    Machine,
    Page,
    Spread,
    in_turn,
    number,
    quiet,
    ratio,
    synchronise,
    this_machine,
    with_quartiles,
)
from lovasz_repro.bench.yardsticks import PlainVoc
from lovasz_repro.config.schema import CellConfig, LossConfig
from lovasz_repro.data.voc_training import VocTraining
from lovasz_repro.errors import UserError
from lovasz_repro.run.build import build_model, build_optimizer, open_data, training_batches
from lovasz_repro.run.datasets import DATASETS, category_of
from lovasz_repro.run.inputs import Place, find_inputs
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import ALONE
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import build_objective

STEPS = 2  # of the training, in a round
HEADS = ("", "images / s", "loader / step")
STEP, LOADER, PLAIN = "training step", "loader alone", "plain PIL"
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
class LoadingSettings:
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
class LoadingRow:
    """The speed of a loader with so many workers, by round."""

    name: str
    """LOADER or PLAIN."""
    workers: int
    images_per_second: tuple[float, ...]
    in_steps: Spread
    """Images per second in those of the training step of the same round."""
    in_plain: Spread | None
    """In those of the plain loader of the same round with as many workers; None: not measured."""

    def cells(self) -> tuple[str, ...]:
        """Of the table."""
        where = f"{self.workers} workers" if self.workers else "the same process"
        rate = number(statistics.median(self.images_per_second))
        row = f"{self.name}, {where}", rate, with_quartiles(self.in_steps)
        return (*row, with_quartiles(self.in_plain)) if self.in_plain else row


@dataclass(frozen=True)
class LoadingReport(BenchReport):
    """What was measured."""

    machine: Machine
    title: str
    step_images_per_second: tuple[float, ...]
    loaders: tuple[LoadingRow, ...]
    batches: int
    rounds: int
    names_of_tuples: ClassVar[bool] = False

    def pages(self) -> Iterator[Page]:
        """One table: the step, then every loader."""
        heads: tuple[str, ...] = HEADS
        caption = CAPTION.format(rounds=self.rounds, batches=self.batches)
        if any(loader.in_plain for loader in self.loaders):
            heads, caption = (*HEADS, "loader / plain PIL"), f"{caption} {PLAIN_CAPTION}"
        step = number(statistics.median(self.step_images_per_second))
        rows = [(f"{STEP} alone", step, "1", "")[: len(heads)]]
        rows += [loader.cells() for loader in self.loaders]
        yield Page(self.title, heads, {"": rows}, self.machine.load, caption=caption)


def choose_settings(
    cell: CellConfig, place: Place, workers: list[int] | None, batches: int, rounds: int
) -> LoadingSettings:
    """Settings from what was given, defaults for what was not."""
    return LoadingSettings(cell, place, tuple(workers or (0, 1, 2)), batches, rounds)


def run_bench(settings: LoadingSettings, advance: Advance = quiet) -> LoadingReport:
    """Measure.

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

    def load(name: str, workers: int, round_: int) -> float:
        batches = _batches(cell, sets[name], replace(place, workers=workers))
        return _loaded_per_second(batches, settings.batches, cell)

    step = _stepper(cell, inputs, place, train_set)
    ways: dict[tuple[str, int], Callable[[int], float]] = {
        (STEP, 0): lambda _: cell.training.batch_size * STEPS / step()
    }
    ways |= {(name, n): partial(load, name, n) for n in settings.workers for name in sets}
    rates = in_turn(ways, settings.rounds, advance)
    steps = rates.pop((STEP, 0))
    loaders = []
    for (name, workers), own in rates.items():
        plain = rates.get((PLAIN, workers))
        in_plain = ratio(own, plain) if plain else None
        loaders.append(LoadingRow(name, workers, own, ratio(own, steps), in_plain))
    machine, (height, width) = this_machine(place.device), cell.data.size
    title = f"{cell.experiment}, {cell.training.batch_size}×{height}×{width}, {machine.device}"
    return LoadingReport(machine, title, steps, tuple(loaders), settings.batches, settings.rounds)


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
