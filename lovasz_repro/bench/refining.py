"""What the dense CRF costs, by the number of processes that share the photographs.

Photographs of Pascal VOC's size are drawn, and smooth probabilities are drawn at random, so that
some regions are sure and others are not. ``evaluation/crf.py`` refines them as a run does, from
files to files. The numbers of processes take turns, and are compared within a round.

Starting processes is left out: a whole validation set needs an hour, and starting takes seconds. So
the clock runs from when every process has finished its first photograph.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

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
    this_machine,
    with_quartiles,
)
from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.demo_scene import draw_scene
from lovasz_repro.data.voc import VOC_CLASSES
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.crf import CrfInput, refine_all
from lovasz_repro.evaluation.probabilities import png_file, write_probabilities

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
class RefiningSettings:
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
class RefiningRow:
    """So many processes."""

    processes: int
    images_per_second: tuple[float, ...]
    """By round."""
    speedup: Spread
    """In those of one process of the same round."""

    def cells(self) -> tuple[str, ...]:
        """Of the table, in the order of HEADS."""
        rate = number(statistics.median(self.images_per_second))
        if self.processes == 1:
            return "1", rate, "1", ""
        share = f"{self.speedup.median / self.processes:.0%}"
        return str(self.processes), rate, with_quartiles(self.speedup), share


@dataclass(frozen=True)
class RefiningReport(BenchReport):
    """What was measured."""

    machine: Machine
    size: tuple[int, int]
    crf: dict[str, object]
    """Its parameters."""
    rows: tuple[RefiningRow, ...]
    images: int
    rounds: int
    seed: int
    names_of_tuples: ClassVar[bool] = False

    def pages(self) -> Iterator[Page]:
        """One table, a row a number of processes."""
        height, width = self.size
        caption = CAPTION.format(
            height=height,
            width=width,
            iterations=self.crf["iterations"],
            rounds=self.rounds,
            images=self.images,
        )
        rows = [row.cells() for row in self.rows]
        title = f"Dense CRF, {self.machine.hardware}"
        yield Page(title, HEADS, {"": rows}, self.machine.load, caption=caption)


def choose_settings(
    processes: Sequence[int] | None, images: int, rounds: int, seed: int, cores: int
) -> RefiningSettings:
    """RefiningSettings; one process is always measured, first.

    Raises:
        UserError: more processes than cores, which could not all be at work.
    """
    several = {count for count in processes or (min(2, cores),) if count > 1}
    for count in several:
        if count > cores:
            raise UserError(f"--processes {count}: there are {cores} cores. Give at most as many.")
    return RefiningSettings((1, *sorted(several)), images, rounds, seed)


def run_bench(settings: RefiningSettings, advance: Advance = quiet) -> RefiningReport:
    """Measure, in a folder for temporary files.

    Raises:
        UserError: the CRF's extra is not installed, or the disk is full.
        RunFailed: a process died.
    """
    parameters = CrfConfig()
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder), settings, advance)

        def rate(processes: int, round_: int) -> float:
            clock = ImageClock(processes)  # in order: with as many, each process has done one

            def done(images: int) -> None:
                clock.tick(images)
                advance(f"processes: {processes}")

            chosen = inputs[: settings.images_of(processes)]
            out = Path(folder, f"refined-{round_}-{processes}")
            refine_all(chosen, out, parameters, processes=processes, advance=done)
            return 1000 / clock.milliseconds()

        rates = in_turn({n: partial(rate, n) for n in settings.processes}, settings.rounds)
    return RefiningReport(
        this_machine(torch.device("cpu")),
        settings.size,
        parameters.model_dump(),
        tuple(RefiningRow(n, own, ratio(own, rates[1])) for n, own in rates.items()),
        settings.images,
        settings.rounds,
        settings.seed,
    )


def make_inputs(
    folder: Path, settings: RefiningSettings, advance: Advance = quiet
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
        shown = [
            VOC_CLASSES[1 + index % (len(VOC_CLASSES) - 1)],
            VOC_CLASSES[rng.integers(1, len(VOC_CLASSES))],
        ]
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
    coarse = SHARPNESS * torch.randn(1, len(VOC_CLASSES), CELLS, columns, generator=generator)
    logits = functional.interpolate(coarse, size, mode="bicubic", align_corners=True)
    return logits.softmax(dim=1)[0].numpy()
