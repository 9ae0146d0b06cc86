"""Lovász-Softmax from counts: the sort's results on everything that the sort is tested on."""

import math

import pytest
import torch

from lovasz_repro.losses import lovasz_softmax
from lovasz_repro.losses.histogram import ProbabilityBins
from tests.losses.test_lovasz_softmax import OPTIONS, batch
from tests.losses.test_lovasz_softmax import gradient_of as value_and_gradient

FINE = {"method": "histogram", "bins": 2**17}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ignore_index", [None, 255, 2])
@pytest.mark.parametrize("shape", [(3, 6, 7), (1, 40), (4,), (2, 2, 3, 4)], ids=str)
def test_fine_bins_give_algorithm_1(oracle, options: dict, ignore_index, shape) -> None:
    logits, labels = batch(*shape)
    if ignore_index == 255:
        labels[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
    options = options | {"ignore_index": ignore_index}
    value, gradient = value_and_gradient(logits, labels, **options, **FINE)
    expected = oracle.lovasz_softmax(logits.numpy(), labels.numpy(), **options)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    _, exact = value_and_gradient(logits, labels, **options, method="sort")
    torch.testing.assert_close(gradient, exact, rtol=1e-6, atol=1e-9)


def test_perfect_predictions_are_exactly_zero() -> None:
    labels = torch.zeros(2, 4, 4).long()
    logits = torch.full((2, 3, 4, 4), -math.inf)
    logits[:, 0] = 0.0
    value, gradient = value_and_gradient(logits, labels, method="histogram")
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("options", OPTIONS[:6], ids=str)
def test_nan_gives_nan_there_and_leaves_other_pixels_alone(options: dict) -> None:
    logits, labels = batch(2, 3, 3)
    logits[0, 2, 1, 1] = math.nan
    value, gradient = value_and_gradient(logits, labels, method="histogram", **options)
    assert value.isnan()
    assert gradient[0, :, 1, 1].isnan().all()
    gradient[0, :, 1, 1] = 0
    assert gradient.isfinite().all()
    labels[0, 1, 1] = 255
    options = options | {"ignore_index": 255}
    value, gradient = value_and_gradient(logits, labels, **options, **FINE)
    expected = value_and_gradient(logits, labels, **options, method="sort")
    torch.testing.assert_close((value, gradient), expected, rtol=1e-6, atol=1e-6)


def test_infinite_logits() -> None:
    logits, labels = batch(2, 3, 3)
    logits[:, 4] = -math.inf
    found = value_and_gradient(logits, labels, **FINE)
    expected = value_and_gradient(logits, labels, method="sort")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    logits[0, 0, 0, 0] = math.inf
    assert value_and_gradient(logits, labels, method="histogram")[0].isnan()


@pytest.mark.parametrize("offset", [-3e4, 3e4])
def test_large_logits_keep_their_precision(offset: float) -> None:
    """Differences of logits are taken before they are scaled."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(-3, 4, (1, 4, 900), generator=generator).float()
    labels = torch.randint(0, 4, (1, 900), generator=generator)
    expected = value_and_gradient(logits, labels, method="histogram")
    found = value_and_gradient(logits + offset, labels, method="histogram")
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_expanded_inputs() -> None:
    logits, labels = batch(1, 6, 8)
    weight = torch.rand(1, 6, 8, dtype=torch.float64)
    expected = lovasz_softmax(logits.repeat(3, 1, 1, 1), labels.repeat(3, 1, 1), method="histogram")
    views = logits.expand(3, 5, 6, 8), labels.expand(3, 6, 8)
    assert torch.equal(lovasz_softmax(*views, method="histogram"), expected)
    for options in ({"pixel_weight": weight.expand(3, 6, 8)}, {"ignore_index": 2}):
        found = lovasz_softmax(*views, **options, method="histogram")
        copies = {k: v.contiguous() if k == "pixel_weight" else v for k, v in options.items()}
        repeated = [view.contiguous() for view in views]
        assert torch.equal(found, lovasz_softmax(*repeated, **copies, method="histogram"))


def test_logits_that_change_between_forward_and_backward_are_noticed() -> None:
    logits, labels = batch(1, 4, 4)
    leaf = logits.clone().requires_grad_()
    changing = leaf * 1.0
    value = lovasz_softmax(changing, labels, method="histogram")
    changing.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_too_many_pixels_for_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProbabilityBins, "most_pixels", 10)
    logits, labels = batch(1, 4, 4)
    with pytest.raises(ValueError, match='counts up to 10 pixels, got 16; use "sort"'):
        lovasz_softmax(logits, labels, method="histogram")
    expected = lovasz_softmax(logits, labels, method="sort")
    assert torch.equal(lovasz_softmax(logits, labels), expected)


def test_pixels_that_are_sure_of_a_wrong_class_keep_their_digits() -> None:
    """Their gradients come from a difference of near equals; over the classes each sums to 0."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 300, generator=generator)
    labels = torch.randint(0, 3, (2, 300), generator=generator)
    wrong = (labels + 1) % 3
    logits.scatter_add_(1, wrong[:, None], torch.full((2, 1, 300), 12.0))
    _, gradient = value_and_gradient(logits, labels, method="histogram")
    largest = gradient.abs().amax(1)
    assert (largest > 0).all()
    assert (gradient.double().sum(1).abs() <= 1e-6 * largest).all()


@pytest.mark.parametrize("options", [{}, {"per_image": True}], ids=str)
def test_under_autocast(options: dict) -> None:
    """Nothing inside is an operation that autocast rounds; "auto" decides as it does outside."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 260, 256, generator=generator)
    labels = torch.randint(0, 3, (2, 260, 256), generator=generator)
    for method in ("sort", "histogram", "auto"):
        expected = value_and_gradient(logits, labels, method=method, **options)
        leaf = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = lovasz_softmax(leaf, labels, method=method, **options)
        value.backward()
        assert torch.equal(value, expected[0])
        assert torch.equal(leaf.grad, expected[1])
