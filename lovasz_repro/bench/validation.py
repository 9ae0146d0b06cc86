"""What a whole validation pass costs as a run makes it, and what its parts cost on the same images.

The network has random weights of the right shapes, whatever ``model.weights`` says: the time does
not depend on them. What takes turns is the whole pass and its parts:

* loading: decode photographs and masks, in this process or in others, and nothing else;
* network: images that are on the device already, to predicted classes at the size of the labels;
* metric: predictions and labels that are on the device already, counted.

Each begins with some images that are not timed, until workers have started and their queues are
what they will stay.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import starmap
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from lovasz_repro.bench import harness
from lovasz_repro.bench.loading import loaded_by
from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.datasets import kind_of
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.scoring import evaluate
from lovasz_repro.host.output import plural
from lovasz_repro.run.build import (
    EVALUATION_BATCH,
    build_model,
    multi_scale_of,
    predictor_of,
    scored_batches,
    scoring_of,
)
from lovasz_repro.run.inputs import Inputs, Place, folder_of
from lovasz_repro.training.distributed import ALONE

DEFAULT_IMAGES = {"cpu": 1, "cuda": 100}
VALIDATION_ROUNDS = {"cpu": 3, "cuda": 5}
SINGLE = "single scale"
QUEUED_BATCHES = 2
"""Batches that each worker of a loader prepares ahead."""
WHOLE, NETWORK, LOADING, METRIC = "whole pass", "network alone", "loading alone", "metric alone"
NEAR = 1.1
"""A whole pass that takes at most so many times as long as its slowest part is limited by it."""
CAPTION = (
    "Validation images, {images} in each of {rounds}, beside some that are not timed. Whole "
    "pass: images are decoded by {workers}. Network: from images on the device to classes at the "
    "size of the labels, with random weights, which cost as much. Metric: from classes on the "
    "device to counts. Parts: time in that of the whole pass of the same round; median (quartiles)."
)


@torch.inference_mode()
def run_bench(
    cell: CellConfig,
    place: Place,
    images: int | None,
    rounds: int | None,
    advance: harness.Advance = harness.QUIET,
) -> harness.Report:
    """Measure.

    Args:
        cell: whose network and data.
        place: its ``workers`` decode images in the whole pass.
        images: that are timed in a round; None: DEFAULT_IMAGES.
        rounds: that count; None: VALIDATION_ROUNDS.
        advance: told of the first pass and of each turn.

    Raises:
        UserError: data are missing or unreadable.
    """
    kind = place.device.type
    images, rounds = images or DEFAULT_IMAGES[kind], rounds or VALIDATION_ROUNDS[kind]
    bench = _Bench(cell, place, images)
    ways = bench.ways()
    advance.expect(1 + rounds * len(ways))
    advance("first pass")
    times = harness.in_turn(ways, rounds, advance)
    machine = harness.this_machine(place.device)
    title = f"{cell.experiment} ({cell.profile}), {cell.model.name}, {cell.training.precision}"
    found = {"title": title, "workers": place.workers, "images": images, "rounds": rounds}
    found |= compare(times, list(bench.predictors), place.workers)
    return harness.Report(machine, found, [page(machine, found)])


def compare(
    times: Mapping[str, tuple[float, ...]], regimes: Sequence[str], workers: int
) -> dict[str, Any]:
    """Parts with their shares of each regime's whole pass, and what limits it.

    Args:
        times: milliseconds an image by part and round.
        regimes: how predictions are made.
        workers: of the whole passes.
    """
    wholes = {regime: times[f"{WHOLE}, {regime}"] for regime in regimes}
    parts = [
        {
            "name": name,
            "times_ms": own,
            "shares": {regime: harness.ratio(own, whole) for regime, whole in wholes.items()},
        }
        for name, own in times.items()
    ]
    loading, metric = times[loaded_by(LOADING, workers)], times[METRIC]
    limits = {}
    for regime, whole in wholes.items():
        network = times[f"{NETWORK}, {regime}"]
        slowest = [max(pair) for pair in zip(network, loading, strict=True)]
        by_network = statistics.median(network) >= statistics.median(loading)
        sums = [sum(of_round) for of_round in zip(network, loading, metric, strict=True)]
        limits[regime] = {
            "part": NETWORK if by_network else LOADING,  # the slower one, in the median
            "whole_in_slowest": harness.ratio(whole, slowest),  # whichever it is in the same round
            # 1 where they take turns, more where they are at work at once
            "parts_in_whole": harness.ratio(sums, whole),
        }
    return {"regimes": list(regimes), "parts": parts, "limits": limits}


def page(machine: harness.Machine, found: harness.Row) -> harness.Page:
    """One table and, below it, what limits each regime."""

    def share(row: harness.Row, regime: str) -> str:
        passes = row["name"].startswith((WHOLE, NETWORK))
        other = passes and not row["name"].endswith(f", {regime}")
        return "" if other else harness.with_quartiles(row["shares"][regime])

    columns: list[harness.Column] = [
        ("", itemgetter("name")),
        ("images / s", lambda row: harness.number(1000 / statistics.median(row["times_ms"]))),
        ("ms / image", harness.median("times_ms")),
        *((f"part of the\npass, {r}", partial(share, regime=r)) for r in found["regimes"]),
    ]
    workers = loaded_by(LOADING, found["workers"]).removeprefix(f"{LOADING}, ")
    return harness.Page(
        f"Validation of {found['title']}, {machine.device}, torch {machine.torch_version}",
        columns,
        {"": found["parts"]},
        machine.load,
        [*starmap(_remark, found["limits"].items())],
        CAPTION.format(
            images=found["images"], rounds=plural(found["rounds"], "round"), workers=workers
        ),
    )


def _remark(regime: str, limit: harness.Row) -> str:
    limited = limit["whole_in_slowest"].median <= NEAR
    times, share = (
        harness.with_quartiles(limit[name]) for name in ("whole_in_slowest", "parts_in_whole")
    )
    return (
        f"{regime}: {'limited by' if limited else 'the slowest part is'} "
        f"the {limit['part'].removesuffix(' alone')}. The pass takes {times} times as long as its "
        f"slowest part; loading, network and metric add up to {share} of it."
    )


class _Bench:
    """The network, the images and what is timed; made once, which passes every image once."""

    def __init__(self, cell: CellConfig, place: Place, images: int) -> None:
        self.cell, self.place = cell, place
        kind, root = kind_of(cell.data), folder_of(cell, place)
        scored = kind.scored(root, "val", cell.data)
        torch.manual_seed(cell.seed)
        network = build_model(cell, Inputs(root, None, {}, ""), place.device)
        single = predictor_of(network, cell, place.device)
        self.predictors: dict[str, Predictor] = {SINGLE: single}
        if several := cell.evaluation.multi_scale:
            name = f"{plural(len(several.scales), 'scale')} fused"
            self.predictors[name] = multi_scale_of(network, cell, place.device)
        batch = 1 if kind.sizes_differ else EVALUATION_BATCH
        self.untimed = batch * max(1, QUEUED_BATCHES * (0 if kind.in_memory else place.workers))
        again = [index % len(scored) for index in range(self.untimed + images)]
        self.images: Any = Subset(scored, again)  # type: ignore[arg-type]
        self.on_device = [
            (_moved(images, place.device), _moved(targets, place.device))
            for images, targets in self._batches(0)
        ]
        self.predictions = list(self._predictions(single))

    def ways(self) -> dict[str, Callable[[int], float]]:
        """What is timed, by name: round -> milliseconds an image."""
        found: dict[str, Callable[[int], float]] = {}
        for regime, predictor in self.predictors.items():
            found[f"{WHOLE}, {regime}"] = partial(self._whole, predictor)
            found[f"{NETWORK}, {regime}"] = partial(self._network, predictor)
        for workers in sorted({0, self.place.workers}):
            found[loaded_by(LOADING, workers)] = partial(self._loading, workers)
        found[METRIC] = self._metric
        return found

    def _whole(self, predictor: Predictor, round_: int) -> float:
        clock, scoring = harness.ImageClock(self.untimed), scoring_of(self.cell)
        evaluate(predictor, self._batches(self.place.workers), scoring, advance=clock.tick)
        return clock.milliseconds()

    def _network(self, predictor: Predictor, round_: int) -> float:
        clock = harness.ImageClock(self.untimed)
        for predictions in self._predictions(predictor):
            harness.synchronise(self.place.device)
            clock.tick(len(predictions))
        return clock.milliseconds()

    def _loading(self, workers: int, round_: int) -> float:
        clock = harness.ImageClock(self.untimed)
        for images, _ in self._batches(workers):
            clock.tick(len(images))
        return clock.milliseconds()

    def _metric(self, round_: int) -> float:
        clock, scoring = harness.ImageClock(self.untimed), scoring_of(self.cell)
        for predictions, (_, targets) in zip(self.predictions, self.on_device, strict=True):
            scoring.update(predictions, targets)
            harness.synchronise(self.place.device)
            clock.tick(len(predictions))
        return clock.milliseconds()

    def _batches(self, workers: int) -> Iterator[Any]:
        return scored_batches(self.cell, self.images, replace(self.place, workers=workers), ALONE)

    def _predictions(self, predictor: Predictor) -> Iterator[Tensor]:
        for images, targets in self.on_device:
            labels = targets if isinstance(targets, Tensor) else targets[0]
            yield predictor.classes(images, labels.shape[-2:])


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_moved(part, device) for part in value)
