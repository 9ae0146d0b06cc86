"""What the official Cityscapes scores cost: ``score_files`` beside the official script.

Both read the same files and must give the same numbers. The scenes are generated, at the size of
the data set: streets of polygons with 60 to 140 instances, groups, and regions that are not scored.
Predictions are the annotation with its outlines moved by a few pixels and some objects mistaken.

A machine is not equally fast all the time, so the ways to score take turns, once each a round, and
times are compared within the round.
"""

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from lovasz_repro.bench.machine import load
from lovasz_repro.bench.measure import ratio
from lovasz_repro.bench.scoring_render import Measured, Report
from lovasz_repro.data.cityscapes import FULL_SIZE, Frame
from lovasz_repro.errors import RunFailed
from lovasz_repro.evaluation.cityscapes import CityscapesScores
from lovasz_repro.evaluation.cityscapes_files import read_pair, score_files
from lovasz_repro.evaluation.official import official_scores
from lovasz_repro.host.provenance import device_name, git_commit

SAME = 1e-6
"""How far a score may be from the official one."""
STUFF = (1, 3, 4, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)  # label ids; 1, 3, 4 are void
REGIONS = 60
THINGS = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
INSTANCES = (60, 140)  # fewest and most of a scene
GROUPS = 5
SHIFT, BLOCK = 3, 16  # pixels: how far a prediction is off, in blocks of which size
MISTAKEN = 0.1  # share of pixels, in blocks, of another class

Files = tuple[Sequence[Path], Sequence[Frame]]


@dataclass(frozen=True)
class Settings:
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


def run_bench(settings: Settings, advance: Callable[[str], None] = lambda name: None) -> Report:
    """Measure the official script and ours on the same files, in a folder for temporary ones.

    Args:
        settings: what to measure.
        advance: told what was done after each of the ``settings.passes``.

    Raises:
        UserError: the official script is not installed or does not run here.
        RunFailed: the scores differ.
    """
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        files = make_scenes(Path(folder), settings, advance)
        times: dict[str, list[float]] = {name: [] for name in ways(settings)}
        difference = 0.0
        for number in range(settings.rounds + 1):
            found: dict[str, CityscapesScores | None] = {}
            for name, way in ways(settings).items():
                began = time.perf_counter()
                found[name] = way(*files)
                if number:
                    times[name].append(1000 * (time.perf_counter() - began) / settings.images)
                advance(name)
            official, *others = (scores for scores in found.values() if scores)
            difference = max(difference, *(check_same(own, official) for own in others))
    unit = times["official script"]
    return Report(
        device_name("cpu"),
        torch.__version__,
        np.__version__,
        git_commit(),
        settings.images,
        settings.size,
        settings.rounds,
        settings.seed,
        tuple(Measured(name, tuple(own), ratio(unit, own)) for name, own in times.items()),
        difference,
        load(),
    )


def ways(settings: Settings) -> dict[str, Callable[..., CityscapesScores | None]]:
    """What is compared, by name: the official script first, what reading alone takes last."""
    several = {}
    if settings.processes > 1:
        several[f"score_files, {settings.processes} processes"] = lambda predictions, frames: (
            score_files(predictions, frames, processes=settings.processes)
        )
    return {
        "official script": official_scores,
        "score_files": score_files,
        **several,
        "reading the files alone": _read,
    }


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


def make_scenes(
    folder: Path, settings: Settings, advance: Callable[[str], None] = lambda name: None
) -> Files:
    """Write scenes into a folder: predictions and frames, without photographs."""
    generator = np.random.default_rng(settings.seed)
    predictions, frames = [], []
    for number in range(settings.images):
        name = f"street_{number:06d}_000000"
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
    for number in range(generator.integers(INSTANCES[0], INSTANCES[1] + 1)):
        outline = _outline(size, (0.005, 0.05), generator)
        draw.polygon(outline, fill=int(generator.choice(THINGS)) * 1000 + number)
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
