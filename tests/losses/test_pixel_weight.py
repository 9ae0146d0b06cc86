"""Pixel weights: copies of pixels, the weighted Jaccard loss, and Cityscapes' iIoU."""

import itertools

import pytest
import torch
from torch import Tensor

from lovasz_repro.losses import (
    HammingLoss,
    JaccardLoss,
    TverskyLoss,
    lovasz_extension,
    lovasz_hinge,
    lovasz_softmax,
)
from tests.losses.test_lovasz_softmax import batch

METHODS = [{"method": "sort"}, {"method": "histogram", "bins": 2**17}, {}]


def weights_of(shape: torch.Size, zeros: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    weights = 3 * torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    return weights * (torch.rand(shape, generator=generator) < 0.8) if zeros else weights


@pytest.mark.parametrize("function", [JaccardLoss(), HammingLoss(), TverskyLoss(2.0, 0.5)], ids=str)
@pytest.mark.parametrize("how", METHODS, ids=str)
def test_a_whole_weight_is_that_many_pixels(function, how: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(40, dtype=torch.float64, generator=generator)
    foreground = torch.rand(40, generator=generator) < 0.4
    copies = torch.randint(0, 4, (40,), generator=generator)
    leaf = errors.clone().requires_grad_()
    value = lovasz_extension(leaf, foreground, function, pixel_weight=copies, **how)
    value.backward()
    many = errors.repeat_interleave(copies).requires_grad_()
    expected = lovasz_extension(many, foreground.repeat_interleave(copies), function, method="sort")
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    owner = torch.arange(40).repeat_interleave(copies)
    gradient = torch.zeros(40, dtype=torch.float64).index_add_(0, owner, many.grad)
    torch.testing.assert_close(leaf.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", METHODS, ids=str)
def test_weights_of_one_change_nothing(how: dict) -> None:
    logits, labels = batch(2, 9, 8)
    labels[0, 0] = 255
    ones = torch.ones(labels.shape)
    for options in ({}, {"per_image": True}, {"classes": "all"}):
        options = options | how | {"ignore_index": 255}
        torch.testing.assert_close(
            lovasz_softmax(logits, labels, pixel_weight=ones, **options),
            lovasz_softmax(logits, labels, **options),
            rtol=1e-9,
            atol=1e-9,
        )


def weighted_jaccard_loss(
    wrong: Tensor, foreground: Tensor, weight: Tensor, background_weight: Tensor
) -> float:
    """1 - iTP / (iTP + FP + iFN), from the masks of mispredicted and foreground pixels."""
    hits = weight[foreground & ~wrong].sum()
    misses = weight[foreground & wrong].sum()
    false = background_weight[~foreground & wrong].sum()
    union = hits + misses + false
    return 0.0 if union == 0 else 1 - (hits / union).item()


@pytest.mark.parametrize("how", METHODS, ids=str)
@pytest.mark.parametrize("weight_background", [True, False])
@pytest.mark.parametrize("per_image", [False, True])
def test_sure_predictions_give_the_weighted_jaccard_loss(
    how: dict, weight_background: bool, per_image: bool
) -> None:
    """At the vertices the loss is the set function: Cityscapes' iIoU without background weights."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (2, 60), generator=generator)
    predictions = torch.randint(0, 3, (2, 60), generator=generator)
    labels[0, :5] = 255
    weight = weights_of(labels.shape)
    logits = torch.zeros(2, 3, 60, dtype=torch.float64)
    logits.scatter_(1, predictions[:, None], 60.0)
    found = lovasz_softmax(
        logits,
        labels,
        pixel_weight=weight,
        weight_background=weight_background,
        per_image=per_image,
        ignore_index=255,
        **how,
    )
    parts = (
        list(zip(labels, predictions, weight, strict=True))
        if per_image
        else [(labels.flatten(), predictions.flatten(), weight.flatten())]
    )
    losses = []
    for truth, predicted, pixel_weight in parts:
        keep = (truth != 255) & (pixel_weight > 0)  # a pixel of weight 0 is ignored
        truth, predicted, pixel_weight = truth[keep], predicted[keep], pixel_weight[keep]
        background = pixel_weight if weight_background else torch.ones_like(pixel_weight)
        losses.append(
            sum(
                weighted_jaccard_loss(
                    (truth == c) != (predicted == c), truth == c, pixel_weight, background
                )
                for c in range(3)
            )
            / 3
        )
    assert found.item() == pytest.approx(sum(losses) / len(losses), abs=1e-6)


@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"classes": "all"}], ids=str)
@pytest.mark.parametrize("weight_background", [True, False])
def test_fine_bins_agree_with_the_sort(options: dict, weight_background: bool) -> None:
    logits, labels = batch(3, 9, 8)
    options = options | {
        "pixel_weight": weights_of(labels.shape),
        "weight_background": weight_background,
        "ignore_index": 2,
    }
    results = []
    for how in METHODS[:2]:
        leaf = logits.clone().requires_grad_()
        value = lovasz_softmax(leaf, labels, **options, **how)
        value.backward()
        results.append((value.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("how", METHODS[:2], ids=str)
def test_hinge_with_weights(how: dict) -> None:
    logits, labels = batch(3, 7, 5)
    weight = weights_of(labels.shape, zeros=False)
    for per_image in (True, False):
        found = lovasz_hinge(
            logits[:, 0], labels == 1, per_image=per_image, pixel_weight=weight, **how
        )
        errors = (1 - logits[:, 0] * torch.where(labels == 1, 1.0, -1.0)).relu()
        shape = (3, -1) if per_image else (1, -1)
        flat = [number.reshape(shape) for number in (errors, labels == 1, weight)]
        expected = lovasz_extension(
            flat[0], flat[1], JaccardLoss(), pixel_weight=flat[2], method="sort"
        )
        torch.testing.assert_close(found, expected.mean(), rtol=1e-9, atol=1e-9)
    channel = lovasz_hinge(logits[:, :1], labels == 1, pixel_weight=weight)
    plain = lovasz_hinge(logits[:, 0], labels == 1, pixel_weight=weight)
    assert torch.equal(channel, plain)


@pytest.mark.parametrize(
    ("weight", "match"),
    [
        (torch.ones(2, 3, device="meta"), "pixel_weight is on meta, labels are on cpu"),
        (torch.ones(3, 2), r"pixel_weight has shape \(3, 2\), labels have \(2, 3\)"),
        (torch.tensor([[1.0, 1, 1], [1, -1, 1]]), "a weight that is negative or not finite"),
        (torch.tensor([[1.0, 1, 1], [1, float("nan"), 1]]), "negative or not finite"),
        (torch.tensor([[1.0, 1, 1], [1, float("inf"), 1]]), "negative or not finite"),
    ],
)
def test_weights_that_are_none(weight: Tensor, match: str) -> None:
    logits, labels = torch.zeros(2, 4, 3), torch.zeros(2, 3).long()
    calls = itertools.chain(
        [lambda: lovasz_softmax(logits, labels, pixel_weight=weight)],
        [lambda: lovasz_hinge(logits[:, 0], labels, pixel_weight=weight)],
    )
    for call in calls:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(ValueError, match=match.replace("labels", "errors")):
        lovasz_extension(logits[:, 0], labels, JaccardLoss(), pixel_weight=weight)
