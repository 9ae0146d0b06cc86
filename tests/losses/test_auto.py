"""The promise of method="auto": never further from the truth than a float32 sort."""

import pytest
import torch
from torch import Tensor

from lovasz_repro.bench.yardsticks import sort_loop_softmax
from lovasz_repro.losses import (
    JaccardLoss,
    compiled,
    lovasz_extension,
    lovasz_hinge,
    lovasz_softmax,
)

SHAPE = (2, 260, 256)  # more pixels than "auto" sorts


def labels_of(shares: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.Size(SHAPE).numel()
    drawn = torch.multinomial(torch.tensor(shares), pixels, replacement=True, generator=generator)
    return drawn.view(SHAPE)


def logits_of(labels: Tensor, classes: int, scale: float, margin: float, wrong: float) -> Tensor:
    """Normal logits, the label's larger by a margin, but for a share of wrong pixels."""
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(2, classes, *SHAPE[1:], generator=generator)
    right = (torch.rand(SHAPE, generator=generator) >= wrong).float()
    return logits.scatter_add_(1, labels[:, None], margin * right[:, None])


SKEWED = [0.9, 0.05, 0.04, 0.009, 0.001]
CASES = {
    "untrained": (SKEWED, 1.0, 0.0, 0.0),
    "uniform labels": ([0.2] * 5, 1.0, 0.0, 0.0),
    "hardly random": (SKEWED, 0.01, 0.0, 0.0),
    "all errors equal": (SKEWED, 0.0, 0.0, 0.0),
    "two clusters": (SKEWED, 1e-4, 2.0, 0.1),
    "mediocre": (SKEWED, 2.0, 3.0, 0.2),
    "good": (SKEWED, 2.0, 8.0, 0.02),
    "saturated": (SKEWED, 5.0, 40.0, 0.02),
    "perfect": (SKEWED, 0.0, 30.0, 0.0),
    "rare class": ([0.99997, 1e-5, 1e-5, 1e-5], 1.0, 2.0, 0.1),
}


def errors_of(loss, logits: Tensor, labels: Tensor, exact: tuple[Tensor, Tensor]) -> tuple:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels)
    value.backward()
    difference = (leaf.grad.double() - exact[1]).norm() / exact[1].norm()
    return abs(value.item() - exact[0].item()), difference.item()


@pytest.mark.parametrize("case", CASES)
def test_auto_is_as_good_as_a_float32_sort(case: str) -> None:
    """Against float64: Algorithm 1 in float32, sorted and differentiated as everybody does."""
    shares, scale, margin, wrong = CASES[case]
    labels = labels_of(shares)
    logits = logits_of(labels, len(shares), scale, margin, wrong)
    leaf = logits.double().requires_grad_()
    value = lovasz_softmax(leaf, labels, method="sort")
    value.backward()
    exact = (value.detach(), leaf.grad)
    loop = errors_of(sort_loop_softmax, logits, labels, exact)
    auto = errors_of(lovasz_softmax, logits, labels, exact)
    two_roundings = 2 * torch.finfo(torch.float32).eps * max(value.item(), 1e-3)
    assert auto[0] <= max(loop[0], two_roundings)
    assert auto[1] <= max(loop[1], 1e-6)


def test_auto_sorts_single_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rare class is sorted, the others are counted."""
    sorted_classes = []
    original = compiled.exact_gains

    def watch(logits, problem, kept, readings, items):
        sorted_classes.append(items)
        return original(logits, problem, kept, readings, items)

    monkeypatch.setattr(compiled, "exact_gains", watch)
    labels = labels_of([0.7, 0.3, 1e-5])
    lovasz_softmax(logits_of(labels, 3, 1.0, 0.0, 0.0), labels)
    assert sorted_classes == [[2]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"ignore_index": 1}], ids=str)
def test_pixels_that_come_first_are_sorted(
    options: dict, dtype: torch.dtype, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundredths of those of a rare class, whose gradient comes twice as close or more."""
    sorted_pixels = []
    original = compiled.picked

    def watch(logits, pixels):
        sorted_pixels.append(len(pixels))
        return original(logits, pixels)

    monkeypatch.setattr(compiled, "picked", watch)
    labels = labels_of([0.5, 0.3, 0.2, 3e-4]).repeat(1, 2, 1)  # images are counted, too
    logits = logits_of(labels[:, :260], 4, 2.0, 4.0, 0.05).repeat(1, 1, 2, 1)
    others = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    logits = (logits + 0.1 * others).to(dtype, memory_format=layout)
    gradients = []
    for numbers, method in ((logits.double(), "sort"), (logits, "auto"), (logits, "histogram")):
        leaf = numbers.clone().requires_grad_()
        lovasz_softmax(leaf, labels, method=method, **options).backward()
        gradients.append(leaf.grad[:, 3].double())
    exact, refined, counted = gradients
    assert 0 < max(sorted_pixels) < 0.05 * labels.numel()
    rounding = torch.finfo(dtype).eps * exact.norm()  # of the gradient itself
    assert (refined - exact).norm() <= 0.5 * (counted - exact).norm() + rounding


@pytest.mark.parametrize("options", [{"classes": "all"}, {"classes": [3, 1]}], ids=str)
def test_auto_with_absent_classes(options: dict) -> None:
    labels = labels_of([0.6, 0.4])
    logits = logits_of(labels, 4, 1.0, 1.0, 0.1)
    logits.requires_grad_()
    found = lovasz_softmax(logits, labels, **options)
    (gradient,) = torch.autograd.grad(found, logits)
    expected = lovasz_softmax(logits, labels, **options, method="sort")
    (exact,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert ((gradient - exact).norm() / exact.norm()).item() < 1e-3


@pytest.mark.parametrize("share", [0.3, 1e-4])
@pytest.mark.parametrize("scale", [1.0, 0.001, 10.0])
def test_auto_of_rows(share: float, scale: float) -> None:
    """The hinge and the extension, whose bins lie between the errors of each row."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(1, 200_000, generator=generator)
    labels = (torch.rand(1, 200_000, generator=generator) < share).long()
    results = []
    for dtype, method in ((torch.float64, "sort"), (torch.float32, "auto")):
        leaf = logits.to(dtype).requires_grad_()
        value = lovasz_hinge(leaf, labels, method=method)
        value.backward()
        errors = (1 - leaf.detach() * (2 * labels - 1)).relu()
        extended = lovasz_extension(errors, labels, JaccardLoss(), method=method)
        assert extended.item() == pytest.approx(value.item(), rel=1e-6)
        results.append((value.item(), leaf.grad.double()))
    (exact, gradient), (found, counted_gradient) = results
    assert found == pytest.approx(exact, rel=5e-7)
    # The rounding of Algorithm 1 in float32: 2^-25 a gain.
    rounding = 2**-25 * 200_000**0.5
    assert (counted_gradient - gradient).norm().item() <= rounding + 1e-6 * gradient.norm().item()
