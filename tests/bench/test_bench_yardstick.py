"""The yardsticks of `lovasz-repro bench losses` against Eq. 6-13, over sets of pixels in Python."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lovasz_repro.bench.yardsticks import sort_loop_hinge, sort_loop_softmax


def extension(errors: list[float], foreground: list[bool]) -> float:
    """Eq. 8-9 with the set function of Eq. 6."""
    truth = {i for i, inside in enumerate(foreground) if inside}
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, before = 0.0, 0.0
    for rank, pixel in enumerate(order):
        wrong = set(order[: rank + 1])
        value = len(wrong) / len(truth | wrong)
        total += errors[pixel] * (value - before)
        before = value
    return total


def softmax_by_definition(logits: Tensor, labels: Tensor, ignore_index: int | None) -> float:
    """Eq. 11-13 for the classes present."""
    classes = logits.shape[1]
    scores = logits.double().movedim(1, -1).reshape(-1, classes).tolist()
    pixels = [
        ([math.exp(score) / sum(map(math.exp, row)) for score in row], label)
        for row, label in zip(scores, labels.flatten().tolist(), strict=True)
        if label != ignore_index
    ]
    losses = []
    for item in range(classes):
        foreground = [label == item for _, label in pixels]
        if any(foreground):
            errors = [abs((label == item) - row[item]) for row, label in pixels]
            losses.append(extension(errors, foreground))
    return sum(losses) / len(losses) if losses else 0.0


def hinge_by_definition(logits: Tensor, labels: Tensor) -> float:
    """Eq. 10, mean over the images."""
    losses = []
    for scores, truth in zip(logits.double().flatten(1), labels.flatten(1), strict=True):
        foreground = [label == 1 for label in truth.tolist()]
        margins = [
            1 - score * (1 if inside else -1)
            for score, inside in zip(scores.tolist(), foreground, strict=True)
        ]
        losses.append(extension([max(margin, 0.0) for margin in margins], foreground))
    return sum(losses) / len(losses)


def assert_loss_and_gradient(
    loss: Callable[[Tensor], Tensor], definition: Callable[[Tensor], float], logits: Tensor
) -> None:
    """The value of the definition, and its central differences at every logit."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(definition(logits), abs=1e-6)
    step, expected = 1e-6, torch.zeros_like(logits, dtype=torch.float64)
    for at in itertools.product(*(range(side) for side in logits.shape)):
        moved = logits.double()
        moved[at] += step
        above = definition(moved)
        moved[at] -= 2 * step
        expected[at] = (above - definition(moved)) / (2 * step)
    torch.testing.assert_close(leaf.grad.double(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("ignore_index", [None, 255, 1])
@pytest.mark.parametrize("present", [[0, 1, 2, 3], [0, 3], [2]], ids=str)
def test_softmax_loop_is_the_definition(ignore_index: int | None, present: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(present))
    logits = 2 * torch.randn(2, 4, 2, 3, generator=generator)
    labels = torch.tensor(present)[torch.randint(len(present), (2, 2, 3), generator=generator)]
    if ignore_index is not None:
        labels[0, :, 1] = ignore_index
    assert_loss_and_gradient(
        lambda leaf: sort_loop_softmax(leaf, labels, ignore_index),
        lambda moved: softmax_by_definition(moved, labels, ignore_index),
        logits,
    )


def test_softmax_loop_of_one_pixel_and_of_none() -> None:
    logits = torch.tensor([[[[0.3]], [[-0.2]], [[1.0]]]], requires_grad=True)
    label = torch.tensor([[[1]]])
    expected = 1 - logits.softmax(1)[0, 1, 0, 0].item()
    assert sort_loop_softmax(logits, label).item() == pytest.approx(expected, abs=1e-6)
    loss = sort_loop_softmax(logits, label, ignore_index=1)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("foreground", ["some", "none", "all"])
def test_hinge_loop_is_the_definition(foreground: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 2, 4, generator=generator)
    labels = torch.randint(2, (3, 2, 4), generator=generator)
    if foreground != "some":
        labels[1] = foreground == "all"
    assert_loss_and_gradient(
        lambda leaf: sort_loop_hinge(leaf, labels),
        lambda moved: hinge_by_definition(moved, labels),
        logits,
    )
