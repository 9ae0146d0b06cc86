"""What the dense CRF costs, by the number of processes that share the photographs.

Photographs of Pascal VOC's size are drawn, and smooth probabilities are drawn at random, so that
some regions are sure and others are not. ``evaluation/crf.py`` refines them as a run does, from
files to files. The numbers of processes take turns, and are compared within a round.

Starting processes is left out: a whole validation set needs an hour, and starting takes seconds. So
the clock runs from when every process has finished its first photograph.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from lovasz_repro.bench import harness
from lovasz_repro.bench.harness import QUIET, Advance, Column, Machine, Page, Report, Row
from lovasz_repro.config.schema import CrfConfig
from lovasz_repro.data.classes import VOC_CLASSES
from lovasz_repro.data.demo_scene import draw_scene
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.crf import CrfInput, refine_all
from lovasz_repro.evaluation.probabilities import png_file, write_probabilities
from lovasz_repro.host.processes import cores

PHOTOGRAPH_SIZE = 375, 500
CELLS = 6  # points of the random probabilities, along the short side
SHARPNESS = 4.0  # standard deviation of their logits
CAPTION = (
    "Drawn photographs of {height}×{width}, 21 classes, {iterations} iterations, from files to "
    "files; processes are started before the clock. Times as fast: images per second in those of "
    "one process of the same round; median (quartiles) over the rounds ({rounds}) of {images} "
    "images or a few more."
)


def run_bench(
    processes: Sequence[int] | None,
    images: int,
    rounds: int,
    seed: int,
    advance: Advance = QUIET,
    size: tuple[int, int] = PHOTOGRAPH_SIZE,
) -> Report:
    """Measure, in a folder for temporary files.

    Args:
        processes: numbers of them to compare with one.
        images: that are refined in a round, at least.
        rounds: that count.
        seed: of photographs and probabilities.
        advance: told of each photograph, also while they are drawn.
        size: height and width, pixels.

    Raises:
        UserError: the CRF's extra is not installed, the disk is full, or there are fewer cores.
        RunFailed: a process died.
    """
    numbers, parameters = numbers_of(processes, cores()), CrfConfig()
    shares = {n: images_of(images, n) for n in numbers}
    advance.expect(max(shares.values()) + rounds * sum(shares.values()))
    with tempfile.TemporaryDirectory() as folder:
        inputs = make_inputs(Path(folder), max(shares.values()), size, seed, advance)

        def rate(processes: int, round_: int) -> float:
            clock = harness.ImageClock(processes)  # in order: each process has done one by then

            def done(images: int) -> None:
                clock.tick(images)
                advance(f"processes: {processes}")

            out = Path(folder, f"refined-{round_}-{processes}")
            chosen = inputs[: shares[processes]]
            refine_all(chosen, out, parameters, processes=processes, advance=done)
            return 1000 / clock.milliseconds()

        rates = harness.in_turn({n: partial(rate, n) for n in numbers}, rounds)
    rows = [
        {"processes": n, "images_per_second": own, "speedup": harness.ratio(own, rates[1])}
        for n, own in rates.items()
    ]
    machine = harness.this_machine(torch.device("cpu"))
    found: dict[str, Any] = {"size": size, "crf": parameters.model_dump(), "rows": rows}
    found |= {"images": images, "rounds": rounds, "seed": seed}
    return Report(machine, found, [page(machine, found)])


def numbers_of(processes: Sequence[int] | None, most: int) -> list[int]:
    """Numbers of processes to compare; the first is 1, the unit.

    Raises:
        UserError: more processes than cores, which could not all be at work.
    """
    several = {count for count in processes or (min(2, most),) if count > 1}
    for count in several:
        if count > most:
            raise UserError(f"--processes {count}: there are {most} cores. Give at most as many.")
    return [1, *sorted(several)]


def images_of(images: int, processes: int) -> int:
    """Photographs for so many processes: as many for each, at least two."""
    return processes * max(2, -(-images // processes))


def page(machine: Machine, found: Row) -> Page:
    """One table, a row a number of processes."""

    def used(row: Row) -> str:
        processes = row["processes"]
        return f"{row['speedup'].median / processes:.0%}" if processes > 1 else ""

    columns: list[Column] = [
        ("processes", lambda row: str(row["processes"])),
        ("images / s", harness.median("images_per_second")),
        ("times as fast as\none process", harness.quartiles("speedup")),
        ("of what as many\ncores allow", used),
    ]
    (height, width), iterations = found["size"], found["crf"]["iterations"]
    caption = CAPTION.format(**found, height=height, width=width, iterations=iterations)
    title = f"Dense CRF, {machine.hardware}"
    return Page(title, columns, {"": found["rows"]}, machine.load, caption=caption)


def make_inputs(
    folder: Path, images: int, size: tuple[int, int], seed: int, advance: Advance = QUIET
) -> list[CrfInput]:
    """Draw photographs and probabilities into a folder.

    Raises:
        RunFailed: the disk refuses.
    """
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    inputs = []
    for index in range(images):
        name = f"drawn_{index:04d}"
        shown = [
            VOC_CLASSES[1 + index % (len(VOC_CLASSES) - 1)],
            VOC_CLASSES[rng.integers(1, len(VOC_CLASSES))],
        ]
        photograph, _ = draw_scene(rng, shown, size)
        item = CrfInput(name, folder / f"{name}.jpg", png_file(folder, name))
        try:
            Image.fromarray(photograph).save(item.image, quality=92)
        except OSError as error:
            raise RunFailed(f"cannot write {item.image}: {error.strerror or error}.") from error
        write_probabilities(item.probabilities, name, smooth(size, generator))
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
