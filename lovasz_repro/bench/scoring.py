"""What the official Cityscapes scores cost: ``score_files`` beside the official script.

Both read the same files and must give the same numbers. The scenes are generated, at the size of
the data set: streets of polygons with 60 to 140 instances, groups, and regions that are not scored.
Predictions are the annotation with its outlines moved by a few pixels and some objects mistaken.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from lovasz_repro.bench import harness
from lovasz_repro.bench.harness import QUIET, Advance, Machine, Page, Report, Row, ratio
from lovasz_repro.data.cityscapes import FULL_SIZE, Frame
from lovasz_repro.errors import RunFailed
from lovasz_repro.evaluation.cityscapes import (
    CityscapesScores,
    official_scores,
    read_pair,
    score_files,
)
from lovasz_repro.host.output import plural

SAME = 1e-6
"""How far a score may be from the official one."""
STUFF = (1, 3, 4, 7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)  # label ids; 1, 3, 4 are void
REGIONS = 60
THINGS = (24, 25, 26, 27, 28, 29, 30, 31, 32, 33)
INSTANCES = (60, 140)  # fewest and most of a scene
GROUPS = 5
SHIFT, BLOCK_SIDE = 3, 16  # pixels: how far a prediction is off, in blocks of which size
MISTAKEN = 0.1  # share of pixels, in blocks, of another class
OFFICIAL = "official script"
CAPTION = (
    "Generated scenes with 60 to 140 instances, three PNG files each; every process on one thread. "
    "The official script: cityscapesscripts 2.3.0, already imported, one process. Times as fast: "
    "its time divided by that of the row in the same round; median (quartiles) over the rounds "
    "({rounds}). Several processes start anew each time, which counts."
)

Files = tuple[Sequence[Path], Sequence[Frame]]
Way = Callable[..., CityscapesScores | None]


def run_bench(
    images: int,
    processes: int,
    rounds: int,
    seed: int,
    advance: Advance = QUIET,
    size: tuple[int, int] = FULL_SIZE,
) -> Report:
    """Measure the official script and ours on the same files, in a folder for temporary ones.

    Args:
        images: scenes to generate.
        processes: if more than 1, ``score_files`` is measured with as many too.
        rounds: that count, beside the first.
        seed: of the scenes.
        advance: told of each scene and of each turn.
        size: height and width, pixels.

    Raises:
        UserError: the official script is not installed or does not run here.
        RunFailed: the scores differ.
    """
    torch.set_num_threads(1)
    differences, compared = [], ways(processes)
    advance.expect(images + len(compared) * (rounds + 1))
    with tempfile.TemporaryDirectory() as folder:
        files = make_scenes(Path(folder), images, size, seed, advance)
        official: list[CityscapesScores] = []

        def timed(name: str, way: Way, round_: int) -> float:
            began = time.perf_counter()
            scores = way(*files)
            took = 1000 * (time.perf_counter() - began) / images
            if scores and name == OFFICIAL:
                official.append(scores)
            elif scores:
                differences.append(check_same_scores(scores, official[-1]))
            return took

        timers = {name: partial(timed, name, way) for name, way in compared.items()}
        times = harness.in_turn(timers, rounds, advance, warm_up=1)
    machine = harness.this_machine(torch.device("cpu"))
    found = {"numpy_version": np.__version__, "images": images, "size": size, "rounds": rounds}
    found |= {"seed": seed, "difference": max(differences), **shares(times)}
    return Report(machine, found, [page(machine, found)])


def shares(times: Mapping[str, tuple[float, ...]]) -> dict[str, Any]:
    """Rows, with how much faster than the official script; what reading takes of the first two."""
    official, own, *_, reading = times.values()
    rows = [
        {
            "name": name,
            "times_ms": took,
            "median_ms": statistics.median(took),
            "speedup": ratio(official, took),
        }
        for name, took in times.items()
    ]
    return {"rows": rows, "reading_shares": [ratio(reading, official), ratio(reading, own)]}


def page(machine: Machine, found: Row) -> Page:
    """One table and, below it, how far the scores are apart."""
    (official, own), apart = found["reading_shares"], found["difference"]
    height, width = found["size"]
    columns = (
        ("scoring", itemgetter("name")),
        ("ms / image", harness.median("times_ms")),
        ("times as fast as\nthe official script", harness.quartiles("speedup")),
    )
    return Page(
        f"Cityscapes scores of {plural(found['images'], 'image')}, {height} x {width}, "
        f"{machine.hardware}, NumPy {found['numpy_version']}, torch {machine.torch_version}",
        columns,
        {"": found["rows"]},
        machine.load,
        (
            f"The largest difference of any score from the official one: {apart:.1e}.",
            f"Reading the files takes {own.median:.0%} of the time of score_files, "
            f"{official.median:.0%} of that of the official script.",
        ),
        CAPTION.format(rounds=found["rounds"]),
    )


def ways(processes: int) -> dict[str, Way]:
    """What is compared, by name: the official script first, what reading alone takes last."""
    found: dict[str, Way] = {OFFICIAL: official_scores, "score_files": score_files}
    if processes > 1:
        found[f"score_files, {processes} processes"] = partial(score_files, processes=processes)
    return found | {"reading the files alone": _read}


def check_same_scores(own: CityscapesScores, official: CityscapesScores) -> float:
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
    folder: Path, images: int, size: tuple[int, int], seed: int, advance: Advance = QUIET
) -> Files:
    """Write scenes into a folder: predictions and frames, without photographs."""
    generator = np.random.default_rng(seed)
    predictions, frames = [], []
    for index in range(images):
        name = f"street_{index:06d}_000000"
        frame = Frame(
            name,
            "street",
            folder / f"{name}_leftImg8bit.png",
            folder / f"{name}_gtFine_labelIds.png",
            folder / f"{name}_gtFine_instanceIds.png",
        )
        instances = draw_instances(size, generator)
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
    blocks = -(-height // BLOCK_SIDE), -(-width // BLOCK_SIDE)

    def full(values: np.ndarray) -> np.ndarray:
        return values.repeat(BLOCK_SIDE, 0).repeat(BLOCK_SIDE, 1)[:height, :width]

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
