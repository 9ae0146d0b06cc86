"""Who computes Lovász-Softmax: kernels of Numba or Triton, or plain PyTorch.

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

from . import plain
from .averaging import Problem, Rows
from .error_bins import ProbabilityBins
from .histogram import Method
from .ranks import ONE_PROCESS
from .set_functions import JaccardLoss, SetFunction

logger = logging.getLogger(__name__)


def backend_for(logits: Tensor, problem: Problem) -> ModuleType:
    """A module with the functions of ``plain.py``: the fastest that can do this problem."""
    if problem.weights is None:
        found = jaccard_kernels(logits, problem.set_function) or cuda_kernels(logits)
        if found is not None:
            return found
    return plain


def jaccard_kernels(numbers: Tensor, set_function: SetFunction) -> ModuleType | None:
    """``compiled.py``, if it can do this tensor and set function on this machine."""
    if numbers.device.type != "cpu" or numbers.dtype == torch.float64 or switched_off():
        return None
    # a class derived from the Jaccard loss may gain something else
    return _compiled() if type(set_function) is JaccardLoss else None


def switched_off() -> bool:
    """Whether plain PyTorch is wanted."""
    return os.environ.get("LOVASZ_REPRO_KERNELS") == "0"


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


def cuda_kernels(logits: Tensor) -> ModuleType | None:
    """``triton_passes.py``, if it can do these logits on their device."""
    if logits.device.type != "cuda" or logits.dtype == torch.float64 or switched_off():
        return None
    kernels = _tried_kernels(logits.device)
    return kernels if kernels and logits.shape[1] <= kernels.MOST_CLASSES else None


@functools.cache
def _tried_kernels(device: torch.device) -> ModuleType | None:
    """The kernels, after they have done a small problem as plain PyTorch does."""
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
    """Largest difference of kernels and plain PyTorch on a small problem, of sums and gradient."""
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device="cpu").to(device)

    logits, valid = 12 * random(2, 5, 300) - 6, random(2, 300) < 0.9
    labels = (5 * random(2, 300)).long().masked_fill(~valid, 0)
    slots, worst = torch.tensor([-1, -1, -1, 0, -1], device=device), 0.0
    for rows in (1, 2):
        ones = torch.ones(rows, 5, dtype=torch.float64, device="cpu")
        problem = Problem(
            labels, valid, None, Rows(ones.long(), ones), JaccardLoss(), ONE_PROCESS,
            Method("histogram", 64), ProbabilityBins(64),
        )  # fmt: skip
        rest = (random(2, 5, rows, 65), random(1, 2, 300), slots, torch.ones((), device=device))
        results = []
        for way in (plain, kernels):
            flat, kept = way.count(logits, problem)
            counts = (flat[:-1] // problem.bins.one_pixel).double()
            results.append((counts, way.gradient(logits, problem, kept, *rest).double()))
        # a pixel on the edge of a bin may fall into either
        for weight, one, other in zip((0.01, 1.0), *results, strict=True):
            worst = max(worst, weight * ((one - other).norm() / one.norm()).item())
    return worst
