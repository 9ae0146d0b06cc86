"""Whether an experiment's images are read as fast as they are trained on.

The loader alone, with one number of worker processes after the other, and the training step alone,
on a batch from memory. On a CPU the workers share the cores with the training, so there the loader
has to be much faster than the step. On the photographs of VOC a plain loader takes its turn as well
(``PlainVoc``).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lovasz_repro.bench import harness
from lovasz_repro.bench.yardsticks import PlainVoc
from lovasz_repro.config.schema import CellConfig, LossConfig
from lovasz_repro.data.datasets import category_of, kind_of
from lovasz_repro.data.examples import CroppedImages
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import plural
from lovasz_repro.run.build import build_model, build_optimizer, open_data, training_batches
from lovasz_repro.run.inputs import Place, find_inputs
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import ALONE
from lovasz_repro.training.loop import TrainingState, training_step
from lovasz_repro.training.objective import build_objective

STEPS_A_ROUND = 2  # of the training, in a round
TRAINING_STEP, LOADER, PLAIN = "training step", "loader alone", "plain PIL"
CAPTION = (
    "Loader: read, decode, resize, put together. Step: forward, backward and update on a batch "
    "from memory. Loader / step: images per second in those of the step of the same round; median "
    "(quartiles) over {rounds} of {batches}."
)
PLAIN_CAPTION = (
    "Plain PIL: the whole photograph resized by Pillow, made float and the mean subtracted in the "
    "loader, as most ports of DeepLab do."
)


def run_bench(
    cell: CellConfig,
    place: Place,
    workers: Sequence[int] | None,
    batches: int,
    rounds: int,
    advance: harness.Advance = harness.QUIET,
) -> harness.Report:
    """Measure.

    Args:
        cell: what is trained.
        place: where.
        workers: numbers of processes that decode images; 0 decodes in the process that trains.
        batches: that are loaded in a round, beside the first, which is thrown away.
        rounds: that count.
        advance: told of each loader and of the step, a round.

    Raises:
        UserError: data or weights are missing, or there are fewer batches than are to be loaded.
    """
    cell = cell.start or cell
    inputs = find_inputs(cell, place)
    train_set, _ = open_data(cell, inputs)
    if cell.training.iterations <= batches:
        raise UserError(f"--batches {batches}: {cell.name} has no more batches than that.")
    sets: dict[str, Any] = {LOADER: train_set}
    if cell.data.name == "voc" and cell.data.images == "photographs":
        assert isinstance(train_set, CroppedImages)
        sets[PLAIN] = PlainVoc(train_set.pairs, train_set.crop)
    batch_size = cell.training.batch_size

    def load(name: str, workers: int, round_: int) -> float:
        given = _batches(cell, sets[name], replace(place, workers=workers))
        next(given)  # workers start
        began = time.perf_counter()
        for _ in range(batches):
            next(given)
        return batches * batch_size / (time.perf_counter() - began)

    step = _stepper(cell, inputs, place, train_set)
    ways: dict[tuple[str, int], Callable[[int], float]] = {
        (TRAINING_STEP, 0): lambda _: batch_size * STEPS_A_ROUND / step()
    }
    ways |= {(name, n): partial(load, name, n) for n in workers or (0, 1, 2) for name in sets}
    advance.expect(rounds * len(ways))
    rates = harness.in_turn(ways, rounds, advance)
    steps = rates.pop((TRAINING_STEP, 0))
    machine, (height, width) = harness.this_machine(place.device), cell.data.size
    found = {
        "title": f"{cell.experiment}, {batch_size}×{height}×{width}, {machine.device}",
        "step_images_per_second": steps,
        "loaders": [
            {
                "name": name,
                "workers": n,
                "images_per_second": own,
                "in_steps": harness.ratio(own, steps),
                "in_plain": harness.ratio(own, rates[PLAIN, n]) if PLAIN in sets else None,
            }
            for (name, n), own in rates.items()
        ],
        "batches": batches,
        "rounds": rounds,
    }
    return harness.Report(machine, found, [_page(machine, found)])


def _page(machine: harness.Machine, found: harness.Row) -> harness.Page:
    """One table: the step, then every loader."""
    steps, loaders = found["step_images_per_second"], found["loaders"]
    unit = {"name": f"{TRAINING_STEP} alone", "images_per_second": steps,
            "in_steps": harness.ratio(steps, steps), "in_plain": None}  # fmt: skip
    columns: list[harness.Column] = [
        ("", lambda row: row["name"] if row is unit else loaded_by(row["name"], row["workers"])),
        ("images / s", harness.median("images_per_second")),
        ("loader / step", harness.quartiles("in_steps")),
    ]
    rounds, batches = plural(found["rounds"], "round"), plural(found["batches"], "batch")
    caption = CAPTION.format(rounds=rounds, batches=batches)
    if any(loader["in_plain"] for loader in loaders):
        columns.append(("loader / plain PIL", harness.quartiles("in_plain")))
        caption = f"{caption} {PLAIN_CAPTION}"
    sections = {"": [unit, *loaders]}
    return harness.Page(found["title"], columns, sections, machine.load, caption=caption)


def loaded_by(what: str, workers: int) -> str:
    """What is loaded and with how many processes."""
    return f"{what}, {plural(workers, 'worker') if workers else 'the same process'}"


def _batches(cell: CellConfig, images: Any, place: Place) -> Iterator[Any]:
    """Images drawn at random, which costs as much as any rule and needs no class counts."""
    data = cell.data.model_copy(update={"equibatch": False, "category": None})
    at_random = cell.model_copy(update={"data": data})
    return training_batches(at_random, images, None, place, ALONE, start=0)


def _stepper(cell: CellConfig, inputs: Any, place: Place, train_set: Any) -> Callable[[], float]:
    """A function that takes STEPS_A_ROUND training steps and returns the seconds they took."""
    torch.manual_seed(cell.seed)
    network, config = NETWORKS[cell.model.name], cell.training
    model = build_model(cell, inputs, place.device)
    state = TrainingState(model, build_optimizer(model, config, cell.model.name))
    objective = build_objective(
        LossConfig.model_validate(cell.loss.model_dump() | {"class_weights": "none"}),
        kind_of(cell.data).ignore_index,
        category=category_of(cell.data),
        to_size=network.to_size,
    )
    images, labels = next(_batches(cell, train_set, place))

    def steps() -> float:
        began = time.perf_counter()
        for _ in range(STEPS_A_ROUND):
            training_step(state, model, images, labels, objective, config, config.lr,
                          place.device, network.prepare)  # fmt: skip
        harness.synchronise(place.device)
        return time.perf_counter() - began

    steps()  # the first is slower
    return steps
