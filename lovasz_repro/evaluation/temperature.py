"""Temperature scaling: probabilities that promise what comes (Guo et al. 2017, Sec. 4.2).

The decision rule assumes calibrated probabilities, and the paper believes that it fails for lack of
them (Sec. 4.3). A single number T, with which softmax(logits / T) has the lowest cross-entropy on
images that decide nothing else, calibrates a network without a change of its arg max. Logits are
not needed for it: softmax(log p / T) is the same.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from lovasz_repro.evaluation.predictor import Predictor

HELD_OUT = 200
"""Images that a temperature is fitted on, at most."""
PIXELS_AN_IMAGE = 1000
"""Of each of these, drawn at random: neighbours say the same."""
HIGHEST = 100.0
"""A temperature lies between it and its inverse."""


def held_out(images: int, batches: Sequence[Sequence[int]]) -> list[int]:
    """Images that are in no batch, evenly spread, ``HELD_OUT`` at most."""
    scored = set(chain(*batches))
    left = [image for image in range(images) if image not in scored]
    return left[:: -(-len(left) // HELD_OUT)] if left else []


def sampled_pixels(
    predictor: Predictor,
    images: Iterable[tuple[Tensor, Tensor]],
    void: int,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Probabilities (N, C) and labels (N,) of random pixels that are not void, on the CPU.

    Args:
        predictor: of the network.
        images: (images (1, ., h, w), labels (1, H, W) integer), each at its own size.
        void: label of pixels that do not count.
        advance: called after each image.
    """
    generator, found = torch.Generator().manual_seed(0), []
    for image, labels in images:
        flat = labels.flatten().long()
        valid = flat.ne(void).nonzero()[:, 0]
        chosen = valid[torch.randperm(len(valid), generator=generator)[:PIXELS_AN_IMAGE]]
        pixels = predictor.probabilities(image, labels.shape[-2:])[0].flatten(1)  # (C, H W)
        found.append((pixels[:, chosen.to(pixels.device)].T.cpu(), flat[chosen]))
        advance()
    probabilities, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return probabilities, labels


def fit_temperature(probabilities: Tensor, labels: Tensor) -> float:
    """The temperature of the lowest cross-entropy, within ``HIGHEST``.

    The cross-entropy is convex in 1 / T, so its slope there has one root.

    Args:
        probabilities: (N, C) floating.
        labels: (N,) integer classes.

    Raises:
        ValueError: no pixels.
    """
    from scipy.optimize import brentq

    if not len(labels):
        raise ValueError("a temperature is fitted on pixels, and there are none")
    logs = probabilities.clamp_min(torch.finfo(torch.float32).tiny).double().log()
    right = logs.gather(1, labels[:, None])[:, 0].mean()

    def slope(inverse: float) -> float:
        return float(((inverse * logs).softmax(dim=1) * logs).sum(dim=1).mean() - right)

    if slope(1 / HIGHEST) >= 0:
        return HIGHEST
    if slope(HIGHEST) <= 0:
        return 1 / HIGHEST
    return 1 / float(brentq(slope, 1 / HIGHEST, HIGHEST, xtol=1e-6))


def at_temperature(probabilities: Tensor, temperature: float) -> Tensor:
    """softmax(log p / T) over the first dimension: probabilities (C, N), as they come."""
    return probabilities.log().div_(temperature).softmax(dim=0)
