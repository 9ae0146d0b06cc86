"""Who does the two passes of counted Lovász-Softmax: Numba, Triton or plain PyTorch.

Nothing needs a compiler to be right. On a CPU, Numba compiles the kernels on the first call on a
machine, which takes some seconds, and keeps them on disk; where it is missing or refuses, plain
PyTorch computes the same. When a CUDA device is met first, both ways run on a small problem; should
the kernels fail to compile or disagree, the plain ones do the work. A warning says why.
``LOVASZ_REPRO_KERNELS=0`` in the environment keeps to the plain ones.
"""

import functools
import logging
import os
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from . import plain_passes as plain
from .error_bins import ProbabilityBins
from .inputs import PixelWeights
from .plain_passes import Softmax, Tally
from .set_functions import JaccardLoss, SetFunction

logger = logging.getLogger(__name__)


def count(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None,
    counted: Tensor,
    rows: int,
    bins: ProbabilityBins,
    weights: PixelWeights | None,
) -> tuple[Tally, Softmax]:
    """The first pass; as :func:`.plain_passes.count`."""
    compiled = cpu_kernels(logits) if weights is None else None
    if compiled is not None:
        fast: tuple[Tally, Softmax] = compiled.count(logits, labels, valid, counted, rows, bins)
        return fast
    kernels = kernels_for(logits) if weights is None else None
    if kernels is not None:
        return _count(kernels, logits, labels, valid, bins, rows)
    return plain.count(logits, labels, valid, counted, rows, bins, weights)


def gradient(
    logits: Tensor,
    labels: Tensor,
    softmax: Softmax,
    tables: Tensor,
    exact: dict[int, Tensor],
    counted: Tensor,
    bins: ProbabilityBins,
    weights: PixelWeights | None,
    grad_loss: Tensor,
) -> Tensor:
    """The second pass; as :func:`.plain_passes.gradient`."""
    args = (logits, labels, softmax, tables, exact, counted, bins, weights, grad_loss)
    compiled = cpu_kernels(logits) if weights is None else None
    if compiled is not None:
        fast: Tensor = compiled.gradient(*args)
        return fast
    kernels = kernels_for(logits) if weights is None else None
    if kernels is None:
        return plain.gradient(*args)
    exact = {item: gains * grad_loss for item, gains in exact.items()}
    result: Tensor = kernels.gradient(logits, labels, softmax, tables * grad_loss, exact)
    return result


def cpu_kernels(numbers: Tensor) -> ModuleType | None:
    """``compiled.py``, if it can do this tensor on this machine."""
    if numbers.device.type != "cpu" or numbers.dtype == torch.float64:
        return None
    return None if os.environ.get("LOVASZ_REPRO_KERNELS") == "0" else _compiled()


def jaccard_kernels(
    numbers: Tensor, set_function: SetFunction, weights: object, pixels: int = 0
) -> ModuleType | None:
    """``compiled.py``, if it can also take the gains: of the Jaccard loss, without weights.

    Args:
        numbers: what the kernels work on.
        set_function: a class derived from the Jaccard loss may gain something else.
        weights: of the pixels, or None.
        pixels: in a row that is sorted; a word of a sort has room for the number of 2^26.
    """
    if weights is not None or type(set_function) is not JaccardLoss:
        return None
    compiled = cpu_kernels(numbers)
    return compiled if compiled and pixels <= 1 << compiled.kernels.INDEX_BITS else None


@functools.cache
def _compiled() -> ModuleType | None:
    try:
        from . import compiled, kernels
    except Exception as error:  # Numba refuses what it does not know in several ways
        logger.warning("Lovász losses: plain PyTorch computes them, more slowly: %s", error)
        return None
    kept = Path(kernels.count.stats.cache_path)
    if not kept.is_dir() or not any(kept.glob("kernels.*.nbi")):
        logger.warning("Lovász losses: compiling their kernels for this machine, once (seconds)")
    return compiled


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
        counted = torch.ones(5, dtype=torch.bool, device="cpu")
        tally, softmax = plain.count(logits, labels, valid, counted, rows, bins)
        found, kept = _count(kernels, logits, labels, valid, bins, rows)
        counts, others = ((sums.sums // bins.one_pixel).double() for sums in (tally, found))
        worst = max(worst, ((counts - others).abs().sum() / counts.sum() / 100).item())
        tables = random(2, 5, rows, 65)
        exact = {3: random(2, 300)}
        once = torch.ones((), device=device)
        args = (logits, labels, softmax, tables, exact)
        expected = plain.gradient(*args, counted, bins, None, once)
        result = kernels.gradient(*args)
        worst = max(worst, ((result - expected).norm() / expected.norm()).item())
        for one, other in zip(softmax, kept, strict=True):
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
    return tally, Softmax(top, scale, probability, error)
