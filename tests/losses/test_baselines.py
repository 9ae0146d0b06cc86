"""The other losses against torch.nn.functional, written-out formulas and hand values."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lovasz_repro.losses import (
    binary_cross_entropy,
    cross_entropy,
    hinge,
    lovasz_softmax,
    soft_dice,
    soft_iou,
    soft_jaccard,
    weighted_sum,
)

BINARY = [binary_cross_entropy, hinge, soft_iou]
OVERLAPS = pytest.mark.parametrize("loss", [soft_dice, soft_jaccard], ids=lambda f: f.__name__)


def binary_batch(*shape: int, void: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 2, shape, generator=generator)
    if void is not None:
        labels[torch.rand(shape, generator=generator) < 0.3] = void
    return logits, labels


def written_out(name: str, scores: list[float], truth: list[int]) -> float:
    """The loss of one image from its valid pixels, in plain Python."""
    if not scores:
        return 0.0
    pairs = list(zip(scores, truth, strict=True))
    if name == "hinge":
        return sum(max(0.0, 1 - f * (2 * t - 1)) for f, t in pairs) / len(pairs)
    sigmoid = [1 / (1 + math.exp(-f)) for f in scores]
    if name == "binary_cross_entropy":
        return -sum(math.log(p if t else 1 - p) for p, t in zip(sigmoid, truth, strict=True)) / len(
            pairs
        )
    intersection = sum(p * t for p, t in zip(sigmoid, truth, strict=True))
    union = sum(p + t - p * t for p, t in zip(sigmoid, truth, strict=True))
    return 1 - intersection / union


@pytest.mark.parametrize("loss", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("void", [None, 255])
def test_binary_losses_written_out(loss, per_image: bool, void: int | None) -> None:
    logits, labels = binary_batch(4, 5, 6, void=void)
    if void is not None:
        labels[1] = void
    images = [
        [
            (f, t)
            for f, t in zip(s.flatten().tolist(), y.flatten().tolist(), strict=True)
            if t != void
        ]
        for s, y in zip(logits, labels, strict=True)
    ]
    if not per_image:
        images = [[pair for image in images for pair in image]]
    expected = sum(
        written_out(loss.__name__, [f for f, _ in image], [t for _, t in image]) for image in images
    ) / len(images)
    value = loss(logits, labels, per_image=per_image, ignore_index=void)
    assert value.shape == ()
    assert value.item() == pytest.approx(expected, rel=1e-12)
    with_channel = loss(logits[:, None], labels, per_image=per_image, ignore_index=void)
    assert torch.equal(with_channel, value)


@pytest.mark.parametrize("loss", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("per_image", [True, False])
def test_binary_gradcheck(loss, per_image: bool) -> None:
    logits, labels = binary_batch(3, 4, void=255)
    logits.requires_grad_()

    def of(scores: Tensor) -> Tensor:
        return loss(scores, labels, per_image=per_image, ignore_index=255)

    assert torch.autograd.gradcheck(of, (logits,))


@pytest.mark.parametrize("loss", BINARY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("per_image", [True, False])
def test_binary_special_cases(loss, per_image: bool) -> None:
    logits, labels = binary_batch(2, 6)
    nothing = logits.clone().requires_grad_()
    nothing.data[0, 0] = math.nan
    value = loss(nothing, torch.full_like(labels, 9), per_image=per_image, ignore_index=9)
    value.backward()
    assert value == 0
    assert not nothing.grad.any()
    assert loss(torch.zeros(0, 3), torch.zeros(0, 3).long(), per_image=per_image) == 0
    logits[0, 0] = math.nan
    assert loss(logits, labels, per_image=per_image).isnan()
    half = loss(torch.zeros(2, 3).bfloat16(), torch.ones(2, 3).int(), per_image=per_image)
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match="label 3 is out of range for 2 classes"):
        loss(torch.zeros(1, 2), torch.tensor([[0, 3]]))


def test_soft_iou_gradient_is_the_published_one() -> None:
    """Rahman and Wang 2016: dL/dp is -1/U on the foreground, I/U^2 elsewhere."""
    logits, labels = binary_batch(1, 12)
    logits.requires_grad_()
    soft_iou(logits, labels).backward()
    p, t = logits.detach().sigmoid(), labels.double()
    intersection, union = (p * t).sum(), (p + t - p * t).sum()
    expected = torch.where(labels == 1, -1 / union, intersection / union**2) * p * (1 - p)
    torch.testing.assert_close(logits.grad, expected)


def test_soft_iou_without_foreground_is_one() -> None:
    logits = torch.randn(2, 5, requires_grad=True)
    value = soft_iou(logits, torch.zeros(2, 5).long())
    value.backward()
    assert value == 1
    assert not logits.grad.any()
    # Probabilities that underflow: nothing predicted, nothing there, 0/0 = 1 for the index.
    assert soft_iou(torch.full((1, 5), -1e4), torch.zeros(1, 5).long()) == 0


def overlap_loss(loss, probabilities: list[list[float]], truth: list[int], item: int) -> float:
    """Of one class, from the pixels that count."""
    p, t = [pixel[item] for pixel in probabilities], [label == item for label in truth]
    both = sum(a * b for a, b in zip(p, t, strict=True))
    if loss is soft_dice:
        return 1 - 2 * both / (sum(p) + sum(t))
    return 1 - both / (sum(p) + sum(t) - both)


@OVERLAPS
@pytest.mark.parametrize("classes", ["present", "all", [3, 1]], ids=str)
@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("void", [None, 255])
def test_soft_overlaps_written_out(loss, classes, per_image: bool, void: int | None) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = 3 * torch.randn(3, 5, 4, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 4, 6), generator=generator)  # 4 never comes up
    labels[0][labels[0] == 3] = 0
    if void is not None:
        labels[1, :2] = labels[2] = void
        logits[1, :, 0, 0] = math.nan
    rows = []
    for scores, truth in zip(logits, labels, strict=True):
        pixels = zip(scores.flatten(1).T.softmax(1).tolist(), truth.flatten().tolist(), strict=True)
        rows.append([pixel for pixel in pixels if pixel[1] != void])
    if not per_image:
        rows = [[pixel for row in rows for pixel in row]]
    expected = []
    for row in rows:
        probabilities, truth = [p for p, _ in row], [t for _, t in row]
        named = sorted(set(truth)) if classes == "present" else classes
        averaged = list(range(5)) if named == "all" else named
        found = [overlap_loss(loss, probabilities, truth, c) for c in averaged if row]
        expected.append(sum(found) / len(found) if found else 0.0)
    logits.requires_grad_()
    options = {"classes": classes, "per_image": per_image, "ignore_index": void}
    value = loss(logits, labels, **options)
    assert value.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)
    value.backward()
    assert logits.grad.isfinite().all()
    if void is not None:
        assert not logits.grad[1, :, :2].any()


@OVERLAPS
@pytest.mark.parametrize("per_image", [True, False])
def test_soft_overlaps_have_their_gradients(loss, per_image: bool) -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 0, 1, 255, 1], [2, 1, 0, 2, 2]])
    options = {"per_image": per_image, "ignore_index": 255}
    assert torch.autograd.gradcheck(lambda scores: loss(scores, labels, **options), (logits,))


def test_soft_overlaps_are_those_of_monai_and_smp() -> None:
    """Their formulas, without their constants of 1e-5 and less that keep from 0 / 0.

    MONAI's DiceLoss (softmax, to_onehot_y, batch) averages all classes, so all are there. smp's
    sets absent classes to 0 and divides by the number of all.
    """
    logits, labels = torch.randn(2, 4, 6, 7), torch.randint(0, 4, (2, 6, 7))
    for present in (4, 3):
        labels = labels.clamp(max=present - 1)
        p, t = logits.softmax(1), functional.one_hot(labels, 4).permute(0, 3, 1, 2)
        intersection, cardinality = (p * t).sum((0, 2, 3)), (p + t).sum((0, 2, 3))
        there = t.sum((0, 2, 3)) > 0
        dice = 1 - 2 * intersection / cardinality
        jaccard = 1 - intersection / (cardinality - intersection)
        smp = [(each * there).mean() * 4 / present for each in (dice, jaccard)]
        torch.testing.assert_close(soft_dice(logits, labels), smp[0])
        torch.testing.assert_close(soft_jaccard(logits, labels), smp[1])
        torch.testing.assert_close(soft_dice(logits, labels, classes="all"), dice.mean())
        torch.testing.assert_close(soft_jaccard(logits, labels, classes="all"), jaccard.mean())


@OVERLAPS
def test_soft_overlaps_special_cases(loss) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    for options in ({}, {"per_image": True}, {"classes": "all"}, {"classes": [1]}):
        value = loss(logits, torch.full((2, 4), 255), ignore_index=255, **options)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value == 0
        assert not gradient.any()
        assert loss(torch.zeros(0, 3, 4), torch.zeros(0, 4).long(), **options) == 0
    labels = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 0]])
    sure = 200 * functional.one_hot(labels, 3).movedim(2, 1).float()
    assert loss(sure, labels) == 0
    wrong = 200 * functional.one_hot(1 - labels % 2, 2).movedim(2, 1).float()
    assert loss(wrong, labels % 2) == 1
    assert loss(sure, torch.zeros(2, 4).long(), classes=[2]) == 1  # absent, and predicted
    for dtype, low in (torch.float32, -95.0), (torch.float32, -1e4), (torch.float64, -720.0):
        unlikely = torch.zeros(2, 3, 4, dtype=dtype)
        unlikely[:, 2] = low  # probabilities that are denormal numbers, or 0
        unlikely.requires_grad_()
        value = loss(unlikely, torch.zeros(2, 4).long(), classes=[2])
        (gradient,) = torch.autograd.grad(value, unlikely)
        assert value == 1
        assert not gradient.any()
    assert loss(logits * math.nan, labels).isnan()
    single = loss(logits, labels)
    for dtype in (torch.float16, torch.bfloat16):
        half = loss(logits.to(dtype), labels.byte())
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(single.item(), abs=5e-3)
    with pytest.raises(ValueError, match="label 7 is out of range for 3 classes"):
        loss(logits, torch.full((2, 4), 7))
    with pytest.raises(ValueError, match='"present", "all" or a list'):
        loss(logits, labels, classes="some")


def test_soft_jaccard_of_a_sigmoid_is_soft_iou() -> None:
    """The two-class softmax of [0, F] is the sigmoid of F."""
    logits, labels = binary_batch(3, 1, 5, 6)
    pair = torch.cat([torch.zeros_like(logits), logits], 1)
    for per_image in (True, False):
        several = soft_jaccard(pair, labels[:, 0], classes=[1], per_image=per_image)
        torch.testing.assert_close(several, soft_iou(logits, labels, per_image=per_image))


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.0]])
@pytest.mark.parametrize("shape", [(2, 4, 5, 6), (3, 4), (1, 4, 7), (2, 4, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("void", [None, 255, 1])
def test_cross_entropy_is_the_one_of_torch(shape, weights, void: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, shape[:1] + shape[2:], generator=generator)
    labels.view(-1)[0], labels.view(-1)[1] = 0, (1 if void is None else void)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = cross_entropy(a, labels, ignore_index=void, class_weights=weights)
    expected = functional.cross_entropy(
        b,
        labels,
        weight=None if weights is None else torch.tensor(weights).double(),
        ignore_index=-100 if void is None else void,
    )
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(a.grad, b.grad)


def test_two_classes_give_the_logistic_loss() -> None:
    """Sec. 1: of two classes, the loss of the difference of their scores."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 50, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 2, (3, 50), generator=generator)
    margins = (logits[:, 1] - logits[:, 0]) * (2 * labels - 1)
    torch.testing.assert_close(
        cross_entropy(logits, labels), torch.log1p(torch.exp(-margins)).mean()
    )


def gradient_of(loss, logits: Tensor, labels: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    loss(leaf, labels).backward()
    assert leaf.grad is not None
    return leaf.grad


def test_cross_entropy_is_smooth() -> None:
    """Sec. 1: its gradient changes by at most half of what the scores change by (the largest
    eigenvalue of diag(f) - f f^T), where that of the hinge loss jumps."""
    generator = torch.Generator().manual_seed(0)
    for step in (1e-6, 1e-2, 1.0):
        logits = 3 * torch.randn(500, 5, dtype=torch.float64, generator=generator)
        moved = logits + step * torch.randn(500, 5, dtype=torch.float64, generator=generator)
        labels = torch.randint(0, 5, (500,), generator=generator)
        before, after = (gradient_of(cross_entropy, at, labels) for at in (logits, moved))
        change = after - before
        # the loss is the mean over 500 pixels, and so is each row of its gradient
        assert (500 * change.norm(dim=1) <= 0.5 * (moved - logits).norm(dim=1) + 1e-12).all()
    margins = torch.tensor([[1 - 1e-9], [1 + 1e-9]], dtype=torch.float64)
    below, above = (
        gradient_of(hinge, margin, torch.ones(1, dtype=torch.int64)).item() for margin in margins
    )
    assert (below, above) == (-1.0, 0.0)


def test_cross_entropy_special_cases() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    for labels, options in [
        (torch.full((2, 4), 255), {"ignore_index": 255}),
        (torch.zeros(2, 4).byte(), {"class_weights": [0.0, 1.0, 1.0]}),
    ]:
        value = cross_entropy(logits, labels, **options)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value == 0
        assert not gradient.any()
    empty = torch.zeros(0, 3, 4, requires_grad=True)
    cross_entropy(empty, torch.zeros(0, 4).long()).backward()
    assert empty.grad.shape == (0, 3, 4)
    with pytest.raises(ValueError, match="label -100 is out of range for 3 classes"):
        cross_entropy(logits, torch.full((2, 4), -100))
    assert cross_entropy(logits.half(), torch.zeros(2, 4).long()).dtype == torch.float32
    assert cross_entropy(logits * math.nan, torch.zeros(2, 4).long()).isnan()


def test_weighted_sum() -> None:
    logits = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 5, 5))
    losses = (cross_entropy, lovasz_softmax)
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = weighted_sum(a, labels, losses, (0.25, 2.0))
    expected = 0.25 * cross_entropy(b, labels) + 2 * lovasz_softmax(b, labels)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(a.grad, b.grad)
    plain = weighted_sum(logits, labels, losses)
    torch.testing.assert_close(
        plain, cross_entropy(logits, labels) + lovasz_softmax(logits, labels)
    )

    def never(logits: Tensor, labels: Tensor) -> Tensor:
        raise AssertionError

    torch.testing.assert_close(
        weighted_sum(logits, labels, (cross_entropy, never), (1, 0)),
        cross_entropy(logits, labels),
    )
    assert weighted_sum(logits, labels, (never,), (0,)) == 0


@pytest.mark.parametrize(
    ("losses", "weights", "match"),
    [
        ((), None, "at least one loss"),
        ((cross_entropy,), (1.0, 2.0), "1 losses need 1 weights, got 2"),
        ((cross_entropy,), (math.inf,), r"weights\[0\] is inf"),
    ],
)
def test_weighted_sum_clear_errors(losses, weights, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        weighted_sum(torch.zeros(1, 2, 3), torch.zeros(1, 3).long(), losses, weights)
