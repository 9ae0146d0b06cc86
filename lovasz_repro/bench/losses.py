"""Which losses are measured, and the run over sizes and kinds of logits.

The unit of time is the cross-entropy, which every training step can afford; the yardstick is
Algorithm 1 as it is usually written (``yardstick.py``).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from lovasz_repro.bench.machine import contended, device_title, is_out_of_memory, load
from lovasz_repro.bench.measure import UNTIMED_PASSES, Measured, Row, measure
from lovasz_repro.bench.samples import (
    Size,
    binary_sample,
    check_memory,
    multiclass_sample,
    parse_size,
)
from lovasz_repro.bench.yardstick import sort_loop_hinge, sort_loop_softmax
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import device_name, git_commit
from lovasz_repro.losses import lovasz_hinge, lovasz_softmax

METHODS = ("sort", "histogram", "auto")
# Crops of Pascal VOC (Sec. 4.2) and Cityscapes at half its size (Sec. 4.3).
DEFAULT_SIZES = {
    "cpu": ("2x21x321x321", "2x19x512x1024"),
    "cuda": ("10x21x321x321", "10x19x512x1024"),
}
DEFAULT_REPEATS = {"cpu": 5, "cuda": 30}


@dataclass(frozen=True)
class Case:
    """Measurements of one size and kind of logits."""

    size: Size
    logits: str
    """The kind: "random" or "trained" (``samples.py``)."""
    multiclass: tuple[Measured, ...]
    """On logits (B, C, H, W); the first is the unit, the second the yardstick."""
    binary: tuple[Measured, ...]
    """On logits (B, H, W), likewise."""
    load: float | None
    """Processes that wanted a core in the last minute, this one included; None: not known."""

    @property
    def contended(self) -> bool:
        """Whether that is more than there are."""
        return contended(self.load)


@dataclass(frozen=True)
class Settings:
    """What to measure, and where."""

    sizes: tuple[Size, ...]
    kinds: tuple[str, ...]
    """Of logits: "random", "trained"."""
    device: torch.device
    threads: int | None
    """Of the CPU; None: as many as torch takes."""
    repeats: int
    """Rounds."""
    seed: int
    """Each case draws its logits and labels from it."""

    @property
    def passes(self) -> int:
        """How often :func:`run_bench` calls ``advance``."""
        rows = len(multiclass_rows()) + len(binary_rows())
        return len(self.sizes) * len(self.kinds) * rows * (self.repeats + UNTIMED_PASSES)


@dataclass(frozen=True)
class Report:
    """Measurements and what they were made with."""

    device: str
    """As titles name it: "CPU (2 threads)", "NVIDIA H200"."""
    hardware: str
    """With the model of the CPU."""
    threads: int
    torch_version: str
    commit: str
    """Of this package."""
    repeats: int
    seed: int
    cases: tuple[Case, ...]


def multiclass_rows() -> list[Row]:
    """Cross-entropy, the sort loop, and every way to compute Lovász-Softmax."""
    batch = partial(lovasz_softmax, method="sort")
    per_image = partial(lovasz_softmax, method="sort", per_image=True)
    return [
        Row("cross-entropy", F.cross_entropy, F.cross_entropy),
        Row("sort loop over classes", sort_loop_softmax, batch),
        *(
            Row(f"lovasz_softmax {method}", partial(lovasz_softmax, method=method), batch)
            for method in METHODS
        ),
        Row(
            "lovasz_softmax auto, per image",
            partial(lovasz_softmax, method="auto", per_image=True),
            per_image,
        ),
    ]


def binary_rows() -> list[Row]:
    """Binary cross-entropy, the sort loop, and every way to compute the Lovász hinge."""
    entropy = F.binary_cross_entropy_with_logits
    per_image = partial(lovasz_hinge, method="sort", per_image=True)
    batch = partial(lovasz_hinge, method="sort", per_image=False)
    return [
        Row("binary cross-entropy", entropy, entropy, float_labels=True),
        Row("sort loop over images", sort_loop_hinge, per_image),
        *(
            Row(
                f"lovasz_hinge {method}",
                partial(lovasz_hinge, method=method, per_image=True),
                per_image,
            )
            for method in METHODS
        ),
        Row(
            "lovasz_hinge auto, whole batch",
            partial(lovasz_hinge, method="auto", per_image=False),
            batch,
        ),
    ]


def choose_settings(
    sizes: Sequence[str] | None,
    kinds: Sequence[str],
    device: torch.device,
    threads: int | None,
    repeats: int | None,
    seed: int,
) -> Settings:
    """Settings from what was given, defaults for what was not.

    Raises:
        UserError: a size that does not exist, or does not fit the memory of the device.
    """
    chosen = [parse_size(size) for size in sizes or DEFAULT_SIZES[device.type]]
    for size in chosen:
        check_memory(size, device)
    repeats = repeats or DEFAULT_REPEATS[device.type]
    return Settings(tuple(chosen), tuple(kinds), device, threads, repeats, seed)


def run_bench(settings: Settings, advance: Callable[[str], None] = lambda name: None) -> Report:
    """Measure every loss at every size, on every kind of logits.

    Args:
        settings: what to measure and where.
        advance: told what was measured after each of the ``settings.passes``.

    Raises:
        UserError: the memory does not suffice.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cases = tuple(
        _case(size, kind, settings, advance) for size in settings.sizes for kind in settings.kinds
    )
    name, threads = device_name(settings.device), torch.get_num_threads()
    return Report(
        device_title(name, settings.device, threads),
        name,
        threads,
        torch.__version__,
        git_commit(),
        settings.repeats,
        settings.seed,
        cases,
    )


def _case(size: Size, kind: str, settings: Settings, advance: Callable[[str], None]) -> Case:
    generator = torch.Generator(settings.device).manual_seed(settings.seed)
    repeats = settings.repeats
    try:
        multiclass = measure(
            multiclass_rows(), *multiclass_sample(size, kind, generator), repeats, advance
        )
        binary = measure(binary_rows(), *binary_sample(size, kind, generator), repeats, advance)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"size {size}: not enough memory on {settings.device}. Give a smaller --size."
        ) from error
    return Case(size, kind, multiclass, binary, load())
