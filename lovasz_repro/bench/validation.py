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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor, distributed

from lovasz_repro.bench.harness import (
    Advance,
    BenchReport,
    ImageClock,
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
from lovasz_repro.config.schema import CellConfig, MultiScaleConfig
from lovasz_repro.data.demo import write_voc
from lovasz_repro.data.locate import dataset_folder, find_dataset
from lovasz_repro.data.voc import list_images
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.multiscale import MultiScale
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.scoring import Scoring, evaluate
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.run.build import (
    EVALUATION_BATCH,
    build_model,
    predictor_of,
    scored_batches,
)
from lovasz_repro.run.datasets import DATASETS, ScoredSet, scoring_of
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.training.distributed import ALONE

DEFAULT_IMAGES = {"cpu": 1, "cuda": 100}
DEFAULT_ROUNDS = {"cpu": 3, "cuda": 5}
MOST_DRAWN = 24
"""Photographs that are drawn where there are none; they are then read several times."""
DRAWN_SIZE = 500
"""Long side of drawn photographs, pixels; VOC's."""
SINGLE = "single scale"
QUEUED = 2
"""Batches that each worker of a loader prepares ahead."""
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
class ValidationSettings:
    """What to measure, and where."""

    cell: CellConfig
    place: Place
    """Its ``workers`` decode images in the whole pass."""
    multi_scale: MultiScaleConfig | None
    """Measured too, if there."""
    images: int
    """That are timed in a round."""
    rounds: int

    @property
    def regimes(self) -> list[str]:
        """How predictions are made; the first at one scale."""
        if self.multi_scale is None:
            return [SINGLE]
        count = len(self.multi_scale.scales)
        return [SINGLE, f"{count} {'scale' if count == 1 else 'scales'} fused"]

    @property
    def workers(self) -> tuple[int, ...]:
        """Numbers of processes that decode images, when loading alone is measured."""
        return tuple(sorted({0, self.place.workers}))

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return 1 + self.rounds * (2 * len(self.regimes) + len(self.workers) + 1)


@dataclass(frozen=True)
class PassPart:
    """The whole pass or a part of it."""

    name: str
    times_ms: tuple[float, ...]
    """Of an image, by round."""
    shares: dict[str, Spread]
    """Regime -> time in that of its whole pass, of the same round."""


@dataclass(frozen=True)
class PassLimit:
    """What a whole pass waits for."""

    part: str
    """The slower of the network and the loader, in the median."""
    whole_in_slowest: Spread
    """Time of the whole pass in that of whichever is the slower in the same round."""
    parts_in_whole: Spread
    """Sum of loading, network and metric in the whole: 1 where they take turns, more where they are
    at work at once."""


@dataclass(frozen=True)
class ValidationReport(BenchReport):
    """What was measured."""

    machine: Machine
    title: str
    regimes: tuple[str, ...]
    """How predictions are made; the first at one scale."""
    workers: int
    """Of the whole passes."""
    parts: tuple[PassPart, ...]
    drawn: bool
    """Whether photographs were drawn for lack of others."""
    images: int
    rounds: int

    @property
    def limits(self) -> dict[str, PassLimit]:
        """Regime -> what its whole pass waits for."""
        return {regime: self.limit(regime) for regime in self.regimes}

    def times(self, name: str) -> tuple[float, ...]:
        """Milliseconds an image of a part, by round."""
        return next(part.times_ms for part in self.parts if part.name == name)

    def limit(self, regime: str) -> PassLimit:
        """What the whole pass of a regime waits for."""
        whole, network = self.times(f"{WHOLE}, {regime}"), self.times(f"{NETWORK}, {regime}")
        loading, metric = self.times(loading_by(self.workers)), self.times(METRIC)
        slowest = [max(pair) for pair in zip(network, loading, strict=True)]
        by_network = statistics.median(network) >= statistics.median(loading)
        sums = [sum(parts) for parts in zip(network, loading, metric, strict=True)]
        return PassLimit(
            NETWORK if by_network else LOADING, ratio(whole, slowest), ratio(sums, whole)
        )

    def pages(self) -> Iterator[Page]:
        """One table and, below it, what limits each regime."""
        workers = loading_by(self.workers).removeprefix(f"{LOADING}, ")
        machine = self.machine
        yield Page(
            f"Validation of {self.title}, {machine.device}, torch {machine.torch_version}",
            ("", "images / s", "ms / image", *(f"part of the\npass, {r}" for r in self.regimes)),
            {"": [_cells(self, part) for part in self.parts]},
            machine.load,
            list(_remarks(self)),
            CAPTION.format(images=self.images, rounds=self.rounds, workers=workers),
        )


def choose_settings(
    cell: CellConfig,
    place: Place,
    scales: Sequence[float] | None,
    images: int | None,
    rounds: int | None,
) -> ValidationSettings:
    """Settings from what was given, defaults for what was not.

    Raises:
        UserError: several scales of a network that is no DeepLab.
    """
    several = cell.evaluation.multi_scale
    if scales:
        if not cell.model.name.startswith("deeplab"):
            raise UserError(f"--scales: {cell.model.name} is no DeepLab, which alone is fused over "
                            "scales.")  # fmt: skip
        several = (several or MultiScaleConfig()).model_copy(update={"scales": list(scales)})
    kind = place.device.type
    return ValidationSettings(
        cell, place, several, images or DEFAULT_IMAGES[kind], rounds or DEFAULT_ROUNDS[kind]
    )


@torch.inference_mode()
def run_bench(settings: ValidationSettings, advance: Advance = quiet) -> ValidationReport:
    """Measure.

    Raises:
        UserError: data are missing and cannot be drawn, or are unreadable.
    """
    cell, place = settings.cell, settings.place
    with ExitStack() as stack:
        root, drawn = _find_or_draw(settings, stack)
        images = DATASETS[cell.data.name].scored(root, "val", cell.data)
        bench = _Bench(settings, root, images)
        advance("first pass")
        times = in_turn(bench.ways(), settings.rounds, advance)
    wholes = {name: times[f"{WHOLE}, {name}"] for name in settings.regimes}
    parts = tuple(
        PassPart(name, own, {regime: ratio(own, whole) for regime, whole in wholes.items()})
        for name, own in times.items()
    )
    return ValidationReport(
        this_machine(place.device),
        f"{cell.experiment} ({cell.profile}), {cell.model.name}, {cell.training.precision}",
        tuple(settings.regimes),
        place.workers,
        parts,
        drawn,
        settings.images,
        settings.rounds,
    )


class Repeated:
    """The first images of a set, again and again, ``count`` in all."""

    def __init__(self, images: ScoredSet, count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index >= self.count:
            raise IndexError(index)
        return self.images[index % len(self.images)]

    def name(self, index: int) -> str:
        """What the image is called."""
        return self.images.name(index % len(self.images))


class Unscored:
    """A scoring that counts nothing, so that the network alone is measured."""

    def update(self, predictions: Tensor, targets: Any) -> None:
        """Leave the batch alone."""

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """Nothing is added up."""
        return self

    def as_metrics(self, split: str) -> dict[str, float]:
        """No numbers."""
        return {}

    def summary(self) -> str:
        """No scores."""
        return ""


class Seen(Unscored):
    """Keeps what a scoring would be given."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Any]] = []

    def update(self, predictions: Tensor, targets: Any) -> None:
        """Keep the batch."""
        self.batches.append((predictions, targets))


class _Bench:
    """The network, the images and what is timed; made once, which passes every image once."""

    def __init__(self, settings: ValidationSettings, root: Path, images: ScoredSet) -> None:
        self.settings, self.cell, self.place = settings, settings.cell, settings.place
        self.kind = DATASETS[self.cell.data.name]
        torch.manual_seed(self.cell.seed)
        network = build_model(self.cell, Inputs(root, None, {}, ""), self.place.device)
        single = predictor_of(network, self.cell, self.place.device)
        self.predictors: dict[str, Predictor] = {SINGLE: single}
        if settings.multi_scale:
            self.predictors[settings.regimes[-1]] = _fused(single, self.cell, settings.multi_scale)
        batch = 1 if self.kind.sizes_differ else EVALUATION_BATCH
        self.untimed = batch * max(1, QUEUED * self._workers())
        self.images = Repeated(images, self.untimed + settings.images)
        self.on_device = self._on_device()
        seen = Seen()
        self._evaluate(single, iter(self.on_device), seen)
        self.seen = seen.batches

    def ways(self) -> dict[str, Callable[[int], float]]:
        """What is timed, by name: round -> milliseconds an image."""
        found: dict[str, Callable[[int], float]] = {}
        for regime, predictor in self.predictors.items():
            found[f"{WHOLE}, {regime}"] = partial(self._whole, predictor)
            found[f"{NETWORK}, {regime}"] = partial(self._network, predictor)
        for workers in self.settings.workers:
            found[loading_by(workers)] = partial(self._loading, workers)
        found[METRIC] = self._metric
        return found

    def _whole(self, predictor: Predictor, round_: int) -> float:
        clock = ImageClock(self.untimed)
        self._evaluate(predictor, self._batches(self.place), self._scoring(), clock)
        return clock.milliseconds()

    def _network(self, predictor: Predictor, round_: int) -> float:
        clock = ImageClock(self.untimed)
        self._evaluate(predictor, iter(self.on_device), Unscored(), clock)
        return clock.milliseconds()

    def _loading(self, workers: int, round_: int) -> float:
        clock = ImageClock(self.untimed)
        for images, _ in self._batches(replace(self.place, workers=workers)):
            clock.tick(len(images))
        return clock.milliseconds()

    def _metric(self, round_: int) -> float:
        clock, scoring = ImageClock(self.untimed), self._scoring()
        for predictions, targets in self.seen:
            scoring.update(predictions, targets)
            synchronise(self.place.device)
            clock.tick(len(predictions))
        return clock.milliseconds()

    def _evaluate(
        self,
        predictor: Predictor,
        batches: Iterator[Any],
        scoring: Scoring,
        clock: ImageClock | None = None,
    ) -> None:
        advance = clock.tick if clock else lambda images: None
        evaluate(predictor, batches, scoring, advance=advance)

    def _scoring(self) -> Scoring:
        return scoring_of(self.cell)

    def _batches(self, place: Place) -> Iterator[Any]:
        return scored_batches(self.cell, self.images, place, ALONE)

    def _workers(self) -> int:
        return 0 if self.kind.in_memory else self.place.workers

    def _on_device(self) -> list[Any]:
        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(self.place.device)
            return tuple(moved(part) for part in value)

        alone = replace(self.place, workers=0)
        return [(moved(images), moved(targets)) for images, targets in self._batches(alone)]


def _fused(single: Predictor, cell: CellConfig, config: MultiScaleConfig) -> MultiScale:
    if not isinstance(single.network, DeepLab):
        raise UserError(f"{cell.model.name} is no DeepLab, which alone is fused over scales. "
                        "Add --set evaluation.multi_scale=null.")  # fmt: skip
    return MultiScale(**vars(single), multi_scale=config)


def _find_or_draw(settings: ValidationSettings, stack: ExitStack) -> tuple[Path, bool]:
    """The data, or photographs drawn into a folder that the stack removes; and which it is."""
    cell, place = settings.cell, settings.place
    folder = cell.data.folder or cell.data.name
    found = find_dataset(place.data, folder)
    if cell.data.name != "voc" or (found and _has_images(found, cell)):
        return dataset_folder(place.data, folder), False
    root = Path(stack.enter_context(TemporaryDirectory())) / "voc"
    write_voc(root, images=(1, min(settings.images, MOST_DRAWN), 1), size=DRAWN_SIZE)
    return root, True


def _has_images(root: Path, cell: CellConfig) -> bool:
    """Whether what a VOC cell reads is there; masks alone are no photographs."""
    try:
        images = list_images(root, "val", photographs=False)
    except UserError:
        return False
    return cell.data.images == "features" or any(image.image.is_file() for image in images)


def _cells(report: ValidationReport, part: PassPart) -> tuple[str, ...]:
    median = statistics.median(part.times_ms)
    shares = []
    for regime in report.regimes:
        other = part.name.startswith((WHOLE, NETWORK)) and not part.name.endswith(f", {regime}")
        whole = part.name == f"{WHOLE}, {regime}"
        shares.append("" if other else "1" if whole else with_quartiles(part.shares[regime]))
    return part.name, number(1000 / median), number(median), *shares


def _remarks(report: ValidationReport) -> Iterator[str]:
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
