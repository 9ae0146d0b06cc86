"""Oracles for the losses: the paper's definitions, written out and slow.

They share no code with the package: sets of pixel indices in Python, Algorithm 1 in NumPy.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest

SetLoss = Callable[[frozenset[int]], float]


def jaccard_loss(foreground: frozenset[int]) -> SetLoss:
    """Eq. 6, from the two masks and Eq. 3: 1 - |y and y~| / |y or y~| with 0/0 = 1."""

    def loss(mispredicted: frozenset[int]) -> float:
        predicted = foreground ^ mispredicted
        union = foreground | predicted
        return 1 - len(foreground & predicted) / len(union) if union else 0.0

    return loss


def definition(errors: list[float], loss: SetLoss) -> tuple[float, list[float]]:
    """Value and gains of Eq. 8-9."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    gains = [0.0] * len(errors)
    for rank, pixel in enumerate(order):
        gains[pixel] = loss(frozenset(order[: rank + 1])) - loss(frozenset(order[:rank]))
    return sum(m * g for m, g in zip(errors, gains, strict=True)), gains


def algorithm_1(errors: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Algorithm 1, line by line, in float64; only 0/0 of an empty union is added."""
    order = np.argsort(-errors, kind="stable")
    delta = foreground[order].astype(np.float64)
    intersection = delta.sum() - np.cumsum(delta)
    union = delta.sum() + np.cumsum(1 - delta)
    gains = 1 - intersection / union
    gains[1:] = gains[1:] - gains[:-1].copy()
    unsorted = np.empty_like(gains)
    unsorted[order] = gains
    return unsorted


def lovasz_softmax(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    classes: str | list[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    class_weights: list[float] | None = None,
) -> float:
    """Eq. 11-13 by Algorithm 1, for logits (B, C, ...) and labels (B, ...)."""
    if per_image:
        images = [
            lovasz_softmax(
                logits[i : i + 1],
                labels[i : i + 1],
                classes=classes,
                ignore_index=ignore_index,
                class_weights=class_weights,
            )
            for i in range(len(logits))
        ]
        return float(np.mean(images))
    count = logits.shape[1]
    flat = np.moveaxis(logits, 1, -1).reshape(-1, count).astype(np.float64)
    truth = labels.reshape(-1)
    if ignore_index is not None:
        flat, truth = flat[truth != ignore_index], truth[truth != ignore_index]
    if len(truth) == 0:
        return 0.0
    exponentials = np.exp(flat - flat.max(1, keepdims=True))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    chosen = range(count) if isinstance(classes, str) else classes
    losses, weights = [], []
    for c in chosen:
        foreground = truth == c
        if classes == "present" and not foreground.any():
            continue
        errors = np.where(foreground, 1 - probabilities[:, c], probabilities[:, c])
        losses.append(errors @ algorithm_1(errors, foreground))
        weights.append(1.0 if class_weights is None else class_weights[c])
    return float(np.average(losses, weights=weights)) if sum(weights) > 0 else 0.0


def lovasz_hinge(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
) -> float:
    """Eq. 10 by Algorithm 1, for logits and labels (B, ...)."""
    if not per_image:
        logits, labels = logits.reshape(1, -1), labels.reshape(1, -1)
    losses = []
    for scores, truth in zip(logits, labels, strict=True):
        keep = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
        foreground = truth[keep] == 1
        errors = np.maximum(1 - scores[keep] * np.where(foreground, 1.0, -1.0), 0)
        losses.append(errors @ algorithm_1(errors, foreground) if len(errors) else 0.0)
    return float(np.mean(losses))


def subsets(size: int) -> Iterator[frozenset[int]]:
    """All subsets of range(size)."""
    for bits in itertools.product([False, True], repeat=size):
        yield frozenset(i for i in range(size) if bits[i])


@dataclass(frozen=True)
class Oracle:
    """The functions above, for tests to take as a fixture."""

    jaccard_loss = staticmethod(jaccard_loss)
    definition = staticmethod(definition)
    algorithm_1 = staticmethod(algorithm_1)
    lovasz_softmax = staticmethod(lovasz_softmax)
    lovasz_hinge = staticmethod(lovasz_hinge)
    subsets = staticmethod(subsets)


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    return Oracle()
