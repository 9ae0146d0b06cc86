"""What the official Cityscapes scores cost: ``score_files`` beside the official script.

Both read the same files and must give the same numbers. The scenes are generated, at the size of
the data set: streets of polygons with 60 to 140 instances, groups, and regions that are not scored.
Predictions are the annotation with its outlines moved by a few pixels and some objects mistaken.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from lovasz_repro.bench.harness import (
    Advance,
    BenchReport,
    Machine,
    Page,
    Spread,
    count,
    in_turn,
    number,
    quiet,
    ratio,
    this_machine,
    with_quartiles,
)
from lovasz_repro.data.cityscapes import FULL_SIZE, Frame
from lovasz_repro.errors import RunFailed
from lovasz_repro.evaluation.cityscapes import CityscapesScores
from lovasz_repro.evaluation.cityscapes_files import official_scores, read_pair, score_files

SAME = 1e-6
"""How far a score may be from the official one."""
STUFF = (1, 3, 4, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)  # label ids; 1, 3, 4 are void
REGIONS = 60
THINGS = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
INSTANCES = (60, 140)  # fewest and most of a scene
GROUPS = 5
SHIFT, BLOCK = 3, 16  # pixels: how far a prediction is off, in blocks of which size
MISTAKEN = 0.1  # share of pixels, in blocks, of another class
OFFICIAL = "official script"
HEADS = ("scoring", "ms / image", "times as fast as\nthe official script")
CAPTION = (
    "Generated scenes with 60 to 140 instances, three PNG files each; every process on one thread. "
    "The official script: cityscapesscripts 2.3.0, already imported, one process. Times as fast: "
    "its time divided by that of the row in the same round; median (quartiles) over the rounds "
    "({rounds}). Several processes start anew each time, which counts."
)

Files = tuple[Sequence[Path], Sequence[Frame]]
Way = Callable[..., CityscapesScores | None]


@dataclass(frozen=True)
class ScoringSettings:
    """What to measure."""

    images: int
    processes: int
    """If more than 1, ``score_files`` is measured with as many too."""
    rounds: int
    """Beside the first, which is thrown away."""
    seed: int
    """Of the scenes."""
    size: tuple[int, int] = FULL_SIZE
    """Height and width, pixels."""

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return self.images + len(ways(self)) * (self.rounds + 1)


@dataclass(frozen=True)
class ScoringRow:
    """A way to score, or part of it."""

    name: str
    times_ms: tuple[float, ...]
    """Of an image, by round."""
    speedup: Spread
    """Time of the official script in that of this, of the same round."""

    @property
    def median_ms(self) -> float:
        """Of the times."""
        return statistics.median(self.times_ms)

    def cells(self) -> tuple[str, ...]:
        """Of the table, in the order of HEADS."""
        speedup = "1" if self.name == OFFICIAL else with_quartiles(self.speedup)
        return self.name, number(self.median_ms), speedup


@dataclass(frozen=True)
class ScoringReport(BenchReport):
    """Measurements and what they were made with."""

    machine: Machine
    numpy_version: str
    images: int
    size: tuple[int, int]
    """Height and width, pixels."""
    rounds: int
    seed: int
    rows: tuple[ScoringRow, ...]
    """The official script, score_files, reading alone last."""
    difference: float
    """The largest of any score from the official one, absolute."""

    @property
    def reading_shares(self) -> tuple[Spread, Spread]:
        """Of reading the files, in the times of the official script and of score_files."""
        reading = self.rows[-1].times_ms
        official, own = (ratio(reading, row.times_ms) for row in self.rows[:2])
        return official, own

    def pages(self) -> Iterator[Page]:
        """One table and, below it, how far the scores are apart."""
        official, own = self.reading_shares
        yield Page(
            f"Cityscapes scores of {count(self.images, 'image')}, {self.size[0]} x {self.size[1]}, "
            f"{self.machine.hardware}, NumPy {self.numpy_version}, "
            f"torch {self.machine.torch_version}",
            HEADS,
            {"": [row.cells() for row in self.rows]},
            self.machine.load,
            (
                "The largest difference of any score from the official one: "
                f"{self.difference:.1e}.",
                f"Reading the files takes {own.median:.0%} of the time of score_files, "
                f"{official.median:.0%} of that of the official script.",
            ),
            CAPTION.format(rounds=self.rounds),
        )


def choose_settings(images: int, processes: int, rounds: int, seed: int) -> ScoringSettings:
    """Settings at the size of the data set."""
    return ScoringSettings(images, processes, rounds, seed)


def run_bench(settings: ScoringSettings, advance: Advance = quiet) -> ScoringReport:
    """Measure the official script and ours on the same files, in a folder for temporary ones.

    Raises:
        UserError: the official script is not installed or does not run here.
        RunFailed: the scores differ.
    """
    torch.set_num_threads(1)
    differences = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_scenes(Path(folder), settings, advance)
        official: list[CityscapesScores] = []

        def timed(name: str, way: Way, round_: int) -> float:
            began = time.perf_counter()
            scores = way(*files)
            took = 1000 * (time.perf_counter() - began) / settings.images
            if scores and name == OFFICIAL:
                official.append(scores)
            elif scores:
                differences.append(check_same(scores, official[-1]))
            return took

        timers = {name: partial(timed, name, way) for name, way in ways(settings).items()}
        times = in_turn(timers, settings.rounds, advance, warm_up=1)
    return ScoringReport(
        this_machine(torch.device("cpu")),
        np.__version__,
        settings.images,
        settings.size,
        settings.rounds,
        settings.seed,
        tuple(ScoringRow(name, own, ratio(times[OFFICIAL], own)) for name, own in times.items()),
        max(differences),
    )


def ways(settings: ScoringSettings) -> dict[str, Way]:
    """What is compared, by name: the official script first, what reading alone takes last."""
    found: dict[str, Way] = {OFFICIAL: official_scores, "score_files": score_files}
    if settings.processes > 1:
        several = partial(score_files, processes=settings.processes)
        found[f"score_files, {settings.processes} processes"] = several
    return found | {"reading the files alone": _read}


def check_same(own: CityscapesScores, official: CityscapesScores) -> float:
    """The largest difference of two scores of one name.

    Raises:
        RunFailed: more than SAME, or only one of them is NaN.
    """
    ours, theirs = own.as_metrics("score"), official.as_metrics("score")
    largest = 0.0
    for name, score in theirs.items():
        both_missing = math.isnan(ours[name]) and math.isnan(score)
        difference = 0.0 if both_missing else abs(ours[name] - score)
        if not difference <= SAME:
            raise RunFailed(
                f"{name} is {ours[name]}, {score} by the official script. Nothing is reported."
            )
        largest = max(largest, difference)
    return largest


def make_scenes(folder: Path, settings: ScoringSettings, advance: Advance = quiet) -> Files:
    """Write scenes into a folder: predictions and frames, without photographs."""
    generator = np.random.default_rng(settings.seed)
    predictions, frames = [], []
    for index in range(settings.images):
        name = f"street_{index:06d}_000000"
        frame = Frame(
            name,
            "street",
            folder / f"{name}_leftImg8bit.png",
            folder / f"{name}_gtFine_labelIds.png",
            folder / f"{name}_gtFine_instanceIds.png",
        )
        instances = draw_instances(settings.size, generator)
        labels = np.where(instances < 1000, instances, instances // 1000).astype(np.uint8)
        prediction = folder / f"{name}_prediction.png"
        Image.fromarray(labels).save(frame.label_ids)
        Image.fromarray(instances).save(frame.instance_ids)
        Image.fromarray(mistake(labels, generator)).save(prediction)
        predictions.append(prediction)
        frames.append(frame)
        advance("scenes")
    return predictions, frames


def draw_instances(size: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    """Instance ids (H, W) uint16 of a street."""
    height, width = size
    picture = Image.new("I", (width, height), 7)
    draw = ImageDraw.Draw(picture)
    for _ in range(REGIONS):
        outline = _outline(size, (0.01, 0.2), generator)
        draw.polygon(outline, fill=int(generator.choice(STUFF)))
    for _ in range(GROUPS):
        outline = _outline(size, (0.005, 0.05), generator)
        draw.polygon(outline, fill=int(generator.choice(THINGS)))
    for index in range(generator.integers(INSTANCES[0], INSTANCES[1] + 1)):
        outline = _outline(size, (0.005, 0.05), generator)
        draw.polygon(outline, fill=int(generator.choice(THINGS)) * 1000 + index)
    return np.asarray(picture).astype(np.uint16)


def mistake(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A prediction (H, W) uint8 that is mostly right about the labels (H, W)."""
    height, width = labels.shape
    blocks = -(-height // BLOCK), -(-width // BLOCK)

    def full(values: np.ndarray) -> np.ndarray:
        return values.repeat(BLOCK, 0).repeat(BLOCK, 1)[:height, :width]

    down, right = (full(generator.integers(-SHIFT, SHIFT + 1, blocks)) for _ in range(2))
    rows, columns = np.mgrid[:height, :width]
    moved = labels[(rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)]
    other = np.arange(34, dtype=np.uint8)
    generator.shuffle(other)
    return np.where(full(generator.random(blocks) < MISTAKEN), other[moved], moved)


def _outline(
    size: tuple[int, int], radii: tuple[float, float], generator: np.random.Generator
) -> list[tuple[float, float]]:
    """A round polygon somewhere in the picture; radii are shares of its width."""
    height, width = size
    x, y = generator.uniform(0, width), generator.uniform(0, height)
    wide, high = generator.uniform(*radii, 2) * width
    angles = np.linspace(0, 2 * math.pi, 40, endpoint=False)
    rough = 1 + 0.15 * generator.standard_normal(len(angles))
    points = x + wide * rough * np.cos(angles), y + high * rough * np.sin(angles)
    return [(float(right), float(down)) for right, down in zip(*points, strict=True)]


def _read(predictions: Sequence[Path], frames: Sequence[Frame]) -> None:
    for prediction, frame in zip(predictions, frames, strict=True):
        read_pair(prediction, frame)
