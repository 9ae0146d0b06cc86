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
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from . import plain
from .histogram import FEW_PIXELS, Method, ProbabilityBins
from .plain import Problem, Rows
from .ranks import ONE_PROCESS
from .set_functions import JaccardLoss, SetFunction

DEVICES = ("cuda",)
"""Types of devices whose kernels are Triton's."""
HAS_TRITON = find_spec("triton") is not None

logger = logging.getLogger(__name__)


def backend_for(logits: Tensor, problem: Problem) -> ModuleType:
    """A module with the functions of ``plain.py``: the fastest that can do this problem."""
    if problem.weights is None:
        return jaccard_kernels(logits, problem.set_function) or plain
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


def device_kernels(
    logits: Tensor, method: str, set_function: SetFunction, weighted: bool, per_image: bool
) -> ModuleType | None:
    """``device.py``, if it can do this problem on the logits' device.

    Small images are many: with ``per_image``, "auto" sorts them rather than have bins for each.
    """
    if logits.device.type not in DEVICES or logits.dtype == torch.float64 or switched_off():
        return None
    if method == "sort" or weighted or type(set_function) is not JaccardLoss:
        return None
    if method == "auto" and per_image and logits.shape[2:].numel() < FEW_PIXELS:
        return None
    if torch.compiler.is_compiling():  # nothing can be tried
        kernels = _triton_kernels() if HAS_TRITON else None
    else:
        kernels = _tried_kernels(logits.device)
    return kernels if kernels and logits.shape[1] <= kernels.MOST_CLASSES else None


def _triton_kernels() -> ModuleType:
    from . import device

    return device


@functools.cache
def _tried_kernels(device: torch.device) -> ModuleType | None:
    """The kernels, after they have done a small problem as plain PyTorch does."""
    if not HAS_TRITON:
        logger.warning("Lovász-Softmax: no Triton, so plain PyTorch computes it, more slowly.")
        return None
    logger.warning("Lovász-Softmax: compiling its kernels for %s, once.", device)
    try:
        kernels = _triton_kernels()
        difference = disagreement(kernels, device)
    except Exception as error:  # compilers fail in many ways, and none may stop a training
        logger.warning("Lovász-Softmax: plain PyTorch computes it, kernels failed: %s", error)
        return None
    if not difference < 1e-2:
        logger.warning("Lovász-Softmax: plain PyTorch computes it, kernels are %g off", difference)
        return None
    return kernels


def disagreement(kernels: ModuleType, device: torch.device) -> float:
    """Largest difference, of loss and gradient, of kernels and a sort on a small problem."""
    generator, cpu = torch.Generator("cpu").manual_seed(0), torch.device("cpu")
    logits = 4 * torch.randn(2, 5, 300, generator=generator, device=cpu).float()
    labels = torch.randint(0, 5, (2, 300), generator=generator, device=cpu)
    worst = 0.0
    for rows in (1, 2):
        weights = torch.full((rows, 5), 0.2 / rows, dtype=torch.float64, device=cpu)
        problem = Problem(
            labels, None, None, Rows(weights.long(), weights), JaccardLoss(), ONE_PROCESS,
            Method("sort"), ProbabilityBins(2),
        )  # fmt: skip
        exact, loss = plain.exact_gains(logits.double(), problem, logits, None, range(5))
        ones, kept = torch.ones((), device=cpu), plain.softmax_of(logits, labels, None)
        tables, slots = torch.zeros(2, 5, rows, 3, device=cpu), torch.arange(5, device=cpu)
        gradient = plain.gradient(logits.double(), problem, kept, tables, exact, slots, ones)
        for parts in (0, 2**12):
            plan, given = (None, True, rows, 2**11, parts), (logits.to(device), labels.to(device))
            value, *gains = kernels.forward(*given, None, *plan)
            found = kernels.gradient_of(*given, *gains, ones.to(device), *plan).cpu().double()
            worst = max(worst, ((found - gradient).norm() / gradient.norm()).item())
            worst = max(worst, abs(value.item() - loss.item()))
    return worst
