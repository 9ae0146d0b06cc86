"""What the dense CRF costs, by the number of processes that share the photographs.

Photographs of Pascal VOC's size are drawn, and smooth probabilities are drawn at random, so that
some regions are sure and others are not. ``evaluation/crf.py`` refines them as a run does, from
files to files. The numbers of processes take turns, and are compared within a round.

Starting processes is left out: a whole validation set needs an hour, and starting takes seconds. So
the clock runs from when every process has finished its first photograph.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch.nn import functional

from lovasz_repro.bench.formats import number, with_quartiles
from lovasz_repro.bench.machine import load
from lovasz_repro.bench.measure import Spread, ratio
from lovasz_repro.bench.page import Page, page_markdown, print_page
from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.demo_scene import draw_scene
from lovasz_repro.data.voc import CLASSES
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.crf import CrfInput, refine_all
from lovasz_repro.evaluation.probability_cache import png_file, write_probabilities
from lovasz_repro.host.provenance import device_name, git_commit

SIZE = 375, 500
CELLS = 6  # points of the random probabilities, along the short side
SHARPNESS = 4.0  # standard deviation of their logits
HEADS = ("processes", "images / s", "times as fast as\none process", "of what as many\ncores allow")
CAPTION = (
    "Drawn photographs of {height}×{width}, 21 classes, {iterations} iterations, from files to "
    "files; processes are started before the clock. Times as fast: images per second in those of "
    "one process of the same round; median (quartiles) over the rounds ({rounds}) of {images} "
    "images or a few more."
)


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    processes: tuple[int, ...]
    """Numbers of processes; the first is 1, the unit."""
    images: int
    """That are refined in a round, at least; each number of processes gets a multiple of itself."""
    rounds: int
    seed: int
    """Of photographs and probabilities."""
    size: tuple[int, int] = SIZE
    """Height and width, pixels."""

    @property
    def most_images(self) -> int:
        """Photographs that are drawn."""
        return max(self.images_of(count) for count in self.processes)

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        return self.most_images + self.rounds * sum(map(self.images_of, self.processes))

    def images_of(self, processes: int) -> int:
        """Photographs for so many processes: as many for each, at least two."""
        return processes * max(2, -(-self.images // processes))


@dataclass(frozen=True)
class Row:
    """So many processes."""

    processes: int
    images_per_second: tuple[float, ...]
    """By round."""
    speedup: Spread
    """In those of one process of the same round."""


@dataclass(frozen=True)
class Report:
    """What was measured."""

    hardware: str
    git_commit: str
    size: tuple[int, int]
    crf: dict[str, object]
    """Its parameters."""
    rows: tuple[Row, ...]
    images: int
    rounds: int
    seed: int
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""


def choose_settings(
    processes: Sequence[int] | None, images: int, rounds: int, seed: int, cores: int
) -> Settings:
    """Settings; one process is always measured, first.

    Raises:
        UserError: more processes than cores, which could not all be at work.
    """
    several = {count for count in processes or (min(2, cores),) if count > 1}
    for count in several:
        if count > cores:
            raise UserError(f"--processes {count}: there are {cores} cores. Give at most as many.")
    return Settings((1, *sorted(several)), images, rounds, seed)


def run_bench(settings: Settings, advance: Callable[[str], None] = lambda name: None) -> Report:
    """Measure, in a folder for temporary files; calls ``advance`` with what was done.

    Raises:
        UserError: the CRF's extra is not installed, or the disk is full.
        RunFailed: a process died.
    """
    parameters = CrfConfig()
    rates: dict[int, list[float]] = {count: [] for count in settings.processes}
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder), settings, advance)
        for number_ in range(settings.rounds):
            for count, own in rates.items():
                out = Path(folder, f"refined-{number_}-{count}")
                chosen = inputs[: settings.images_of(count)]
                own.append(_images_per_second(chosen, out, parameters, count, advance))
    return Report(
        device_name("cpu"),
        git_commit(),
        settings.size,
        parameters.model_dump(),
        tuple(Row(n, tuple(own), ratio(own, rates[1])) for n, own in rates.items()),
        settings.images,
        settings.rounds,
        settings.seed,
        load(),
    )


def make_inputs(
    folder: Path, settings: Settings, advance: Callable[[str], None] = lambda name: None
) -> list[CrfInput]:
    """Draw photographs and probabilities into a folder.

    Raises:
        RunFailed: the disk refuses.
    """
    rng, generator = np.random.default_rng(settings.seed), torch.Generator()
    generator.manual_seed(settings.seed)
    inputs = []
    for index in range(settings.most_images):
        name = f"drawn_{index:04d}"
        shown = [CLASSES[1 + index % (len(CLASSES) - 1)], CLASSES[rng.integers(1, len(CLASSES))]]
        photograph, _ = draw_scene(rng, shown, settings.size)
        item = CrfInput(name, folder / f"{name}.jpg", png_file(folder, name))
        try:
            Image.fromarray(photograph).save(item.image, quality=92)
        except OSError as error:
            raise RunFailed(f"cannot write {item.image}: {error.strerror or error}.") from error
        write_probabilities(item.probabilities, name, smooth(settings.size, generator))
        inputs.append(item)
        advance("drawing")
    return inputs


def smooth(size: tuple[int, int], generator: torch.Generator) -> np.ndarray:
    """Probabilities (21, H, W) float32 that change slowly over the picture."""
    height, width = size
    columns = max(2, round(CELLS * width / height))
    coarse = SHARPNESS * torch.randn(1, len(CLASSES), CELLS, columns, generator=generator)
    logits = functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return logits.softmax(dim=1)[0].numpy()


@dataclass
class Clock:
    """Images per second once every process is at work.

    ``now`` tells the time; results come in order, so after as many as there are processes each has
    done one.
    """

    processes: int
    now: Callable[[], float] = time.perf_counter
    stamps: list[float] = field(default_factory=list)
    """When each image was done."""

    def tick(self, images: int = 1) -> None:
        """Some images are done."""
        self.stamps += [self.now()] * images

    def rate(self) -> float:
        """Images per second, without the first of each process."""
        first = self.stamps[self.processes - 1]
        return (len(self.stamps) - self.processes) / (self.stamps[-1] - first)


def _images_per_second(
    inputs: Sequence[CrfInput],
    out: Path,
    parameters: CrfConfig,
    processes: int,
    advance: Callable[[str], None],
) -> float:
    clock = Clock(processes)

    def done(images: int) -> None:
        clock.tick(images)
        advance(f"processes: {processes}")

    refine_all(inputs, out, parameters, processes=processes, advance=done)
    return clock.rate()


def print_report(report: Report, console: Console) -> None:
    """The table, for people."""
    print_page(_page(report), console)


def to_markdown(report: Report) -> str:
    """The same in Markdown."""
    return page_markdown(_page(report))


def to_json(report: Report) -> str:
    """Everything, every round."""
    return json.dumps(asdict(report), indent=2, allow_nan=False)


def _page(report: Report) -> Page:
    height, width = report.size
    rows = []
    for row in report.rows:
        rate = number(statistics.median(row.images_per_second))
        one = row is report.rows[0]
        faster = "1" if one else with_quartiles(row.speedup)
        share = f"{row.speedup.median / row.processes:.0%}"
        rows.append((str(row.processes), rate, faster, "" if one else share))
    return Page(
        f"Dense CRF, {report.hardware}",
        HEADS,
        rows,
        (),
        CAPTION.format(
            height=height,
            width=width,
            iterations=report.crf["iterations"],
            rounds=report.rounds,
            images=report.images,
        ),
        report.load,
    )
