"""The two passes of counted Lovász-Softmax: one kernel each where a GPU has Triton, else plain.

Nothing needs a compiler to be right. When a CUDA device is met first, both ways run on a small
problem; should the kernels fail to compile or disagree, the plain ones do the work, and a warning
says why. ``LOVASZ_REPRO_KERNELS=0`` in the environment keeps to the plain ones.
"""

import functools
import logging
import os
from types import ModuleType

import torch
from torch import Tensor

from . import plain_passes as plain
from .error_bins import ProbabilityBins
from .inputs import PixelWeights
from .plain_passes import Softmax, Tally
from .slots import Slots

logger = logging.getLogger(__name__)


def count(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    bins: ProbabilityBins,
    rows: int,
    weights: PixelWeights | None,
    slots: Slots | None,
) -> tuple[Tally, Softmax]:
    """The first pass; as :func:`lovasz_repro.losses.plain_passes.count`."""
    kernels = kernels_for(logits) if weights is None and slots is None else None
    if kernels is None:
        return plain.count(logits, labels, valid, bins, rows, weights, slots)
    return _count(kernels, logits, labels, valid, bins, rows)


def gradient(
    logits: Tensor,
    labels: Tensor,
    softmax: Softmax,
    tables: Tensor,
    exact: dict[int, Tensor],
    weights: PixelWeights | None,
    bins: int,
    slots: Slots | None,
) -> Tensor:
    """The second pass; as :func:`lovasz_repro.losses.plain_passes.gradient`."""
    kernels = kernels_for(logits) if weights is None and slots is None else None
    if kernels is None:
        return plain.gradient(logits, labels, softmax, tables, exact, weights, bins, slots)
    result: Tensor = kernels.gradient(logits, labels, softmax[:4], tables, exact)
    return result


def slots_for(logits: Tensor, counted: list[int]) -> Slots | None:
    """Places for the classes that are counted, if leaving the others out saves time.

    A kernel has all classes of a pixel at hand, and the lowest bins cost it nothing.
    """
    if kernels_for(logits) is not None:
        return None
    return Slots.of(counted, logits.shape[1], logits.device)


def kernels_for(logits: Tensor) -> ModuleType | None:
    """The module of the kernels, if they can do these logits on their device."""
    if logits.device.type != "cuda" or logits.dtype == torch.float64:
        return None
    if os.environ.get("LOVASZ_REPRO_KERNELS") == "0":
        return None
    kernels = _tried_kernels(logits.device)
    return kernels if kernels and logits.shape[1] <= kernels.MOST_CLASSES else None


@functools.cache
def _tried_kernels(device: torch.device) -> ModuleType | None:
    """The kernels, after they have done a small problem as the plain passes do."""
    try:
        from . import triton_passes
    except ImportError:
        logger.warning("Lovász-Softmax: no Triton, so plain PyTorch computes it, more slowly.")
        return None
    logger.warning("Lovász-Softmax: compiling two kernels for %s, once.", device)
    try:
        difference = disagreement(triton_passes, device)
    except Exception as error:  # compilers fail in many ways, and none may stop a training
        logger.warning("Lovász-Softmax: plain PyTorch computes it, kernels failed: %s", error)
        return None
    if not difference < 1e-3:
        logger.warning("Lovász-Softmax: plain PyTorch computes it, kernels are %g off", difference)
        return None
    return triton_passes


def disagreement(kernels: ModuleType, device: torch.device) -> float:
    """Largest difference of kernels and plain passes on a small problem, of sums and gradient."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device="cpu").to(device)

    logits = 12 * random(2, 5, 300) - 6
    labels = (5 * random(2, 300)).long()
    valid = random(2, 300) < 0.9
    labels = labels.masked_fill(~valid, 0)
    bins, worst = ProbabilityBins(64), 0.0
    for rows in (1, 2):
        tally, softmax = plain.count(logits, labels, valid, bins, rows, None)
        found, kept = _count(kernels, logits, labels, valid, bins, rows)
        counts, others = ((sums.sums // bins.one_pixel).double() for sums in (tally, found))
        worst = max(worst, ((counts - others).abs().sum() / counts.sum() / 100).item())
        tables = random(2, 5, rows, 65)
        exact = {3: random(2, 300)}
        expected = plain.gradient(logits, labels, softmax, tables, exact, None, 64)
        result = kernels.gradient(logits, labels, softmax[:4], tables, exact)
        worst = max(worst, ((result - expected).norm() / expected.norm()).item())
        for one, other in zip(softmax[:4], kept[:4], strict=True):
            worst = max(worst, ((one - other).norm() / one.norm()).item())
    return worst


def _count(
    kernels: ModuleType,
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    bins: ProbabilityBins,
    rows: int,
) -> tuple[Tally, Softmax]:
    tally = plain.empty_tally((2, logits.shape[1], rows, bins.bins + 1), None, logits.device)
    top, scale, probability, error = kernels.count(
        logits, labels, valid, tally.sums, bins.fraction_bits, bins.one_pixel
    )
    tally.flat[-1] = error.isnan().sum()
    return tally, Softmax(top, scale, probability, error, clean=False)
