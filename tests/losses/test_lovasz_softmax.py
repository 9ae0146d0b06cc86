"""Lovász-Softmax against Algorithm 1 in NumPy, Figure 2, and its defined special cases."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lovasz_repro.losses import JaccardLoss, lovasz_extension, lovasz_softmax

METHOD = pytest.mark.parametrize("method", ["sort", "histogram"])
OPTIONS = [
    {},
    {"classes": "all"},
    {"classes": [3, 0]},
    {"per_image": True},
    {"per_image": True, "classes": "all"},
    {"per_image": True, "classes": [1, 4]},
    {"class_weights": [1.0, 2.0, 0.0, 0.5, 3.0]},
    {"class_weights": [1.0, 2.0, 0.0, 0.5, 3.0], "per_image": True, "classes": "all"},
    {"class_weights": [1.0, 2.0, 0.0, 0.5, 3.0], "classes": [2, 3]},
    {"class_weights": [0.0] * 5},
]


def batch(*shape: int, classes: int = 5, used: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, C, ...) in float64 and labels (B, ...) of the first ``used`` classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], classes, *shape[1:], dtype=torch.float64, generator=generator)
    labels = torch.randint(0, used, shape, generator=generator)
    return 2 * logits, labels


def plain_softmax(logits: Tensor, labels: Tensor, ignore_index: int | None = None) -> Tensor:
    """Present classes, batch: softmax by autograd, then the extension of Eq. 11's errors."""
    flat = logits.softmax(1).movedim(1, 0).flatten(1)
    truth = labels.flatten()
    valid = (
        torch.ones_like(truth, dtype=torch.bool) if ignore_index is None else truth != ignore_index
    )
    losses = []
    for c, probabilities in enumerate(flat):
        foreground = (truth == c) & valid
        if foreground.any():
            errors = torch.where(foreground, 1 - probabilities, probabilities)
            losses.append(lovasz_extension(errors, foreground, JaccardLoss(), valid=valid))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ignore_index", [None, 255, 2])
@pytest.mark.parametrize("shape", [(3, 6, 7), (1, 40), (4,), (2, 2, 3, 4)], ids=str)
def test_algorithm_1(oracle, options: dict, ignore_index: int | None, shape) -> None:
    logits, labels = batch(*shape)
    if ignore_index == 255:
        labels[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
    value = lovasz_softmax(logits, labels, ignore_index=ignore_index, **options)
    assert value.shape == ()
    expected = oracle.lovasz_softmax(
        logits.numpy(), labels.numpy(), ignore_index=ignore_index, **options
    )
    assert value.item() == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("ignore_index", [None, 1])
def test_gradcheck(options: dict, ignore_index: int | None) -> None:
    logits, labels = batch(2, 4)
    logits.requires_grad_()

    def loss(scores: Tensor) -> Tensor:
        return lovasz_softmax(scores, labels, ignore_index=ignore_index, **options)

    assert torch.autograd.gradcheck(loss, (logits,))


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 1.0, 10.0, 50.0]))
@settings(max_examples=30)
def test_gradient_is_the_one_through_softmax(seed: int, scale: float) -> None:
    logits, labels = batch(2, 30, classes=4, used=3, seed=seed)
    a, b = ((scale * logits).requires_grad_() for _ in range(2))
    value, expected = lovasz_softmax(a, labels), plain_softmax(b, labels)
    (3 * value).backward()
    (3 * expected).backward()
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-13)


def test_linear_in_the_probabilities_where_the_order_is_the_same() -> None:
    """Sec. 2.2: piecewise linear in f, the normalised outputs, and not in the scores."""
    generator = torch.Generator().manual_seed(0)
    f = torch.rand(1, 3, 8, dtype=torch.float64, generator=generator).softmax(dim=1)
    change = torch.randn(1, 3, 8, dtype=torch.float64, generator=generator)
    g = f + 1e-3 * (change - change.mean(dim=1, keepdim=True))
    labels = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1]])
    truth = torch.nn.functional.one_hot(labels[0], 3).T
    orders = [(truth - p[0]).abs().argsort(dim=1) for p in (f, g)]
    assert torch.equal(*orders)
    one, two = (lovasz_softmax(p.log(), labels).item() for p in (f, g))
    middle = lovasz_softmax(((f + g) / 2).log(), labels).item()
    assert middle == pytest.approx((one + two) / 2, abs=1e-15)
    of_scores = lovasz_softmax((f.log() + g.log()) / 2, labels).item()
    assert abs(of_scores - (one + two) / 2) > 1e-9


def test_figure_2_corners() -> None:
    """Two classes, two pixels, all ground truths: confident outputs give the Jaccard loss.

    The loss of the foreground class, plotted against d_i = F_i(y_i) - F_i(1 - y_i): d = -inf is
    a misprediction. Values by hand: union of ground truth and prediction under the mispredicted.
    """
    corners = {  # ground truth: loss with (none, first, second, both) mispredicted
        (1, 1): (0, 1 / 2, 1 / 2, 1),
        (1, 0): (0, 1, 1 / 2, 1),
        (0, 1): (0, 1 / 2, 1, 1),
        (0, 0): (0, 1, 1, 1),
    }
    far = 60.0
    margins = torch.tensor([(far, far), (-far, far), (far, -far), (-far, -far)]).double()
    for truth, values in corners.items():
        labels = torch.tensor(truth)
        logits = torch.zeros(4, 2, 2, dtype=torch.float64)  # (problem, class, pixel)
        logits.scatter_(1, labels.expand(4, 1, 2), margins[:, None])
        for problem, value in zip(logits, values, strict=True):
            loss = lovasz_softmax(problem[None], labels[None], classes=[1])
            assert loss.item() == pytest.approx(value, abs=1e-12)
        even = lovasz_softmax(torch.zeros(1, 2, 2).double(), labels[None], classes=[1])
        assert even.item() == pytest.approx(values[3] / 2, abs=1e-15)


def gradient_of(logits: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = lovasz_softmax(leaf, labels, **options)
    value.backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == logits.dtype
    assert leaf.grad.shape == logits.shape
    return value.detach(), leaf.grad


@METHOD
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("classes", ["present", "all", [1]], ids=str)
def test_no_valid_pixel_is_zero_with_zero_gradient(classes, per_image: bool, method: str) -> None:
    logits, _ = batch(2, 3, 4)
    labels = torch.full((2, 3, 4), 255)
    logits[0, 0] = float("nan")
    options = {"classes": classes, "per_image": per_image, "ignore_index": 255}
    value, gradient = gradient_of(logits, labels, method=method, **options)
    assert value == 0
    assert not gradient.any()


@METHOD
@pytest.mark.parametrize("shape", [(0, 5, 4, 4), (0, 5), (2, 5, 0)])
def test_empty_batches_are_zero(shape: tuple[int, ...], method: str) -> None:
    labels = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    for options in OPTIONS:
        value, gradient = gradient_of(torch.zeros(shape), labels, method=method, **options)
        assert value == 0
        assert gradient.shape == shape


@pytest.mark.parametrize("per_image", [False, True])
def test_image_without_valid_pixels_adds_zero(per_image: bool) -> None:
    logits, labels = batch(2, 5, 5)
    labels[1] = 255
    value, gradient = gradient_of(logits, labels, per_image=per_image, ignore_index=255)
    alone, alone_gradient = gradient_of(logits[:1], labels[:1])
    share = 0.5 if per_image else 1.0
    torch.testing.assert_close(value, share * alone)
    torch.testing.assert_close(gradient[:1], share * alone_gradient)
    assert not gradient[1].any()


def test_one_valid_pixel() -> None:
    logits, labels = batch(2, 3, 3)
    labels[:] = 255
    labels[1, 2, 0] = 3
    probabilities = logits[1, :, 2, 0].softmax(0)
    options = {"ignore_index": 255}
    value, gradient = gradient_of(logits, labels, **options)
    assert value.item() == pytest.approx(1 - probabilities[3].item())
    assert gradient.abs().sum((1,)).count_nonzero() == 1
    everything, _ = gradient_of(logits, labels, classes="all", **options)
    # The other classes are absent and each costs its probability: 2 (1 - f_3) / 5.
    assert everything.item() == pytest.approx(2 * (1 - probabilities[3].item()) / 5)


def test_absent_class_costs_its_largest_probability() -> None:
    logits, labels = batch(2, 4, 4)
    value, _ = gradient_of(logits, labels, classes=[4])
    assert value.item() == pytest.approx(logits.softmax(1)[:, 4].max().item())
    labels[0, 0, 0] = 255
    logits[0, 4, 0, 0] = 100.0
    ignored, gradient = gradient_of(logits, labels, classes=[4], ignore_index=255)
    keep = labels != 255
    assert ignored.item() == pytest.approx(logits.softmax(1)[:, 4][keep].max().item())
    assert not gradient[0, :, 0, 0].any()


@pytest.mark.parametrize(
    ("label", "options", "match"),
    [
        (5, {}, r"label 5 is out of range for 5 classes \(0 to 4\); no ignore_index is set"),
        (255, {}, "label 255 is out of range for 5 classes"),
        (-1, {}, "label -1 is out of range for 5 classes"),
        (-100, {"ignore_index": 255}, "label -100 .* 5 classes .*ignore_index is 255"),
    ],
)
def test_label_out_of_range(label: int, options: dict, match: str) -> None:
    logits, labels = batch(2, 3, 3)
    labels[1, 1, 1] = label
    with pytest.raises(ValueError, match=match):
        lovasz_softmax(logits, labels, **options)


def test_nan_logits_give_nan_and_not_on_ignored_pixels() -> None:
    logits, labels = batch(2, 3, 3)
    clean, clean_gradient = gradient_of(logits, labels, ignore_index=3)
    logits[0, 2, 1, 1] = float("nan")
    for options in OPTIONS[:6]:
        assert gradient_of(logits, labels, **options)[0].isnan()
    labels = labels.clone()
    was = labels[0, 1, 1].item()
    labels[0, 1, 1] = 3
    value, gradient = gradient_of(logits, labels, ignore_index=3)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[0, :, 1, 1].any()
    if was == 3:
        torch.testing.assert_close((value, gradient), (clean, clean_gradient))


def test_infinite_logits() -> None:
    logits, labels = batch(2, 3, 3)
    logits[:, 4] = -math.inf  # a class of probability zero, as if it were not there
    value, gradient = gradient_of(logits, labels)
    expected, expected_gradient = gradient_of(logits[:, :4], labels)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient[:, :4], expected_gradient)
    assert not gradient[:, 4].any()
    logits[0, 0, 0, 0] = math.inf  # torch.softmax gives NaN too
    assert gradient_of(logits, labels)[0].isnan()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_integer_label_dtypes(dtype: torch.dtype) -> None:
    logits, labels = batch(2, 5, 5)
    labels[0, 0] = 100
    expected = gradient_of(logits, labels, ignore_index=100)
    result = gradient_of(logits, labels.to(dtype), ignore_index=100)
    torch.testing.assert_close(result, expected, rtol=0, atol=0)


@METHOD
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype, method: str) -> None:
    logits, labels = batch(2, 9, 9)
    half = logits.to(dtype)
    value, gradient = gradient_of(half, labels, method=method)
    expected, expected_gradient = gradient_of(half.float(), labels, method=method)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


@METHOD
def test_float16_gradient_is_scaled_before_it_is_rounded(method: str) -> None:
    """A gradient of 1e-8 is zero in float16; times the scale of a GradScaler it is not."""
    logits, labels = batch(1, 300, 300)
    leaf = logits.half().requires_grad_()
    (lovasz_softmax(leaf, labels, method=method) * 65536).backward()
    _, expected = gradient_of(logits.half().float(), labels, method=method)
    assert expected.half().count_nonzero() < expected.count_nonzero()
    torch.testing.assert_close(leaf.grad.float(), 65536 * expected, rtol=1e-3, atol=1e-6)


@METHOD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_memory_formats(method: str, dtype: torch.dtype) -> None:
    logits, labels = batch(2, 6, 8)
    logits = logits.to(dtype)
    expected = gradient_of(logits, labels, method=method)
    for variant in (
        logits.contiguous(memory_format=torch.channels_last),
        logits.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([logits, logits], -1)[..., 0],
    ):
        assert not variant.is_contiguous()
        torch.testing.assert_close(gradient_of(variant, labels, method=method), expected)
    transposed = labels.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(gradient_of(logits, transposed, method=method), expected)


@METHOD
def test_backward_twice_second_derivative_and_no_gradient(method: str) -> None:
    logits, labels = batch(1, 4, 4)
    leaf = logits.clone().requires_grad_()
    value = lovasz_softmax(leaf, labels, method=method)
    (first,) = torch.autograd.grad(value, leaf, retain_graph=True)
    (second,) = torch.autograd.grad(3 * value, leaf, retain_graph=True)
    torch.testing.assert_close(3 * first, second)
    with pytest.raises(RuntimeError, match=r"differentiated once.*create_graph"):
        torch.autograd.grad(value, leaf, create_graph=True)
    with torch.no_grad():
        without = lovasz_softmax(leaf, labels, method=method)
    assert not without.requires_grad
    assert torch.equal(without, value)
    assert torch.equal(lovasz_softmax(logits, labels, method=method), value)


def test_same_result_at_every_call() -> None:
    logits, labels = batch(2, 150, 150)
    logits = logits.round().float()  # many ties
    expected = gradient_of(logits, labels)
    for _ in range(3):
        again = gradient_of(logits, labels)
        assert torch.equal(again[0], expected[0])
        assert torch.equal(again[1], expected[1])


def test_caller_keeps_its_tensors() -> None:
    logits, labels = batch(2, 5, 5)
    labels[0, 0, 0] = 255
    copies = logits.clone(), labels.clone()
    for options in OPTIONS:
        gradient_of(logits, labels, ignore_index=255, **options)
    assert torch.equal(logits, copies[0])
    assert torch.equal(labels, copies[1])


@pytest.mark.parametrize(
    ("logits", "labels", "options", "error", "match"),
    [
        (torch.zeros(2, 3, 4).long(), torch.zeros(2, 4).long(), {}, TypeError, "logits must be"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4), {}, TypeError, "labels must be an integer"),
        (torch.zeros(3), torch.zeros(3).long(), {}, ValueError, r"logits must have shape \(B, C"),
        (torch.zeros(2, 0, 4), torch.zeros(2, 4).long(), {}, ValueError, "have no class"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 5).long(), {}, ValueError, r"need \(2, 4\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4).long(), {}, ValueError, r"need \(2, 4\)"),
        (None, None, {"classes": "some"}, ValueError, 'classes is "some"'),
        (None, None, {"classes": []}, ValueError, "at least one class"),
        (None, None, {"classes": [1, 1]}, ValueError, "each once"),
        (None, None, {"classes": [3]}, ValueError, "class 3 .* out of range for 3 classes"),
        (None, None, {"classes": [1.5]}, TypeError, "integer"),
        (None, None, {"class_weights": [1.0]}, ValueError, r"need \(3,\)"),
        (None, None, {"class_weights": [1.0, -1.0, 1.0]}, ValueError, r"class_weights\[1\] is -1"),
        (None, None, {"class_weights": [math.nan, 1, 1]}, ValueError, r"class_weights\[0\] is nan"),
    ],
)
def test_clear_errors(logits, labels, options, error: type[Exception], match: str) -> None:
    if logits is None:
        logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 4).long()
    with pytest.raises(error, match=match):
        lovasz_softmax(logits, labels, **options)


def test_options_as_tensors_and_arrays() -> None:
    logits, labels = batch(2, 5, 5)
    weights = [1.0, 2.0, 0.5, 0.25, 4.0]
    expected = lovasz_softmax(logits, labels, class_weights=weights)
    assert torch.equal(
        lovasz_softmax(logits, labels, class_weights=torch.tensor(weights)), expected
    )
    assert torch.equal(lovasz_softmax(logits, labels, class_weights=np.array(weights)), expected)
    expected = lovasz_softmax(logits, labels, classes=[0, 2])
    assert torch.equal(lovasz_softmax(logits, labels, classes=torch.tensor([0, 2])), expected)
    assert torch.equal(lovasz_softmax(logits, labels, classes=np.array([0, 2])), expected)


def lovasz_sigmoid(scores: list[float], truth: list[bool]) -> float:
    """As the authors define their lovasz_softmax of sigmoids: sorted errors times the gradient.

    The gradient are the differences of the Jaccard losses of the first 1, 2, ... errors.
    """
    errors = [abs(t - 1 / (1 + math.exp(-f))) for f, t in zip(scores, truth, strict=True)]
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    loss = before = 0.0
    for count in range(1, len(order) + 1):
        wrong = order[:count]
        intersection = sum(truth) - sum(truth[i] for i in wrong)
        union = sum(truth) + sum(not truth[i] for i in wrong)
        jaccard = 1 - intersection / union
        loss += errors[order[count - 1]] * (jaccard - before)
        before = jaccard
    return loss


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("method", ["sort", "histogram"])
def test_the_lovasz_sigmoid_is_the_softmax_of_zero_and_the_logit(method, per_image: bool) -> None:
    generator = torch.Generator().manual_seed(11)
    scores = 2 * torch.randn(2, 1, 6, 7, generator=generator)
    labels = torch.randint(0, 2, (2, 6, 7), generator=generator)
    pair = torch.cat([0 * scores, scores], 1)
    value = lovasz_softmax(pair, labels, classes=[1], per_image=per_image, method=method)
    rows = [(s.flatten(), y.flatten()) for s, y in zip(scores, labels, strict=True)]
    if not per_image:
        rows = [(scores.flatten(), labels.flatten())]
    expected = [lovasz_sigmoid(s.tolist(), y.bool().tolist()) for s, y in rows]
    assert value.item() == pytest.approx(
        sum(expected) / len(rows), abs=2e-4 if method != "sort" else 1e-6
    )
