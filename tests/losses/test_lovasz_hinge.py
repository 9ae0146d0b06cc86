"""The Lovász hinge against Algorithm 1 in NumPy, Figure 1, and its defined special cases."""

import math

import pytest
import torch
from torch import Tensor

from lovasz_repro.losses import HammingLoss, hinge, lovasz_extension, lovasz_hinge


def batch(*shape: int, seed: int = 0, void: int | None = None) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 2, shape, generator=generator)
    if void is not None:
        labels[torch.rand(shape, generator=generator) < 0.3] = void
    return 2 * logits, labels


def gradient_of(logits: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = lovasz_hinge(leaf, labels, **options)
    value.backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == logits.dtype
    assert leaf.grad.shape == logits.shape
    return value.detach(), leaf.grad


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("void", [None, 255, -1])
@pytest.mark.parametrize("shape", [(3, 6, 7), (2, 200, 200), (1, 40), (6,), (2, 2, 3, 4)], ids=str)
def test_algorithm_1(oracle, shape, void: int | None, per_image: bool) -> None:
    logits, labels = batch(*shape, void=void)
    labels[0] = 0  # an image without foreground
    value = lovasz_hinge(logits, labels, per_image=per_image, ignore_index=void)
    assert value.shape == ()
    flat = logits.reshape(shape[0], -1).numpy(), labels.reshape(shape[0], -1).numpy()
    expected = oracle.lovasz_hinge(*flat, per_image=per_image, ignore_index=void)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("void", [None, 255])
def test_gradcheck(per_image: bool, void: int | None) -> None:
    logits, labels = batch(3, 4, 5, void=void)
    logits.requires_grad_()

    def loss(scores: Tensor) -> Tensor:
        return lovasz_hinge(scores, labels, per_image=per_image, ignore_index=void)

    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.autograd.gradgradcheck(loss, (logits,))


def test_figure_1_corners() -> None:
    """Two pixels, all ground truths, relative margins r_i = 1 - F_i y_i in {0, 1}.

    At these red dots of the figure the surrogate is the Jaccard loss. Values by hand.
    """
    corners = {  # ground truth: loss at r = (0, 0), (1, 0), (0, 1), (1, 1)
        (1, 1): (0, 1 / 2, 1 / 2, 1),
        (1, 0): (0, 1, 1 / 2, 1),
        (0, 1): (0, 1 / 2, 1, 1),
        (0, 0): (0, 1, 1, 1),
    }
    margins = torch.tensor([(0, 0), (1, 0), (0, 1), (1, 1)]).double()
    for truth, values in corners.items():
        labels = torch.tensor([truth])
        for r, value in zip(margins, values, strict=True):
            logits = (1 - r) * (2 * labels - 1)
            assert lovasz_hinge(logits, labels).item() == pytest.approx(value, abs=1e-15)
            # Beyond the margin nothing changes; the surface is flat for negative r.
            inside = (1 - torch.where(r == 0, -2.0, r)) * (2 * labels - 1)
            assert lovasz_hinge(inside, labels).item() == pytest.approx(value, abs=1e-15)
        double = lovasz_hinge((1 - 2 * margins[3]) * (2 * labels - 1), labels)
        assert double.item() == pytest.approx(2 * values[3], abs=1e-15)


def test_linear_in_the_scores_where_the_order_is_the_same() -> None:
    """Sec. 2.1: piecewise linear in F, a composition of piecewise linear functions."""
    generator = torch.Generator().manual_seed(0)
    errors = 3 * torch.rand(2, 30, dtype=torch.float64, generator=generator).sort(dim=1).values
    signs = 2 * torch.randint(0, 2, (30,), generator=generator) - 1
    ends = (1 - errors) * signs  # scores whose hinge losses these are
    labels = (signs > 0).long()[None]
    one, two = (lovasz_hinge(scores[None], labels).item() for scores in ends)
    for t in (0.1, 0.5, 0.8):
        between = lovasz_hinge(((1 - t) * ends[0] + t * ends[1])[None], labels).item()
        assert between == pytest.approx((1 - t) * one + t * two, rel=1e-13)
    beyond = lovasz_hinge((2 * ends[0] - ends[1])[None], labels).item()  # another piece
    assert beyond > 2 * one - two + 1e-3


def test_one_prediction_is_the_hinge_loss() -> None:
    """Sec. 2.1: with a single prediction the Lovász hinge is the standard hinge loss."""
    logits, labels = batch(50)
    torch.testing.assert_close(lovasz_hinge(logits, labels), hinge(logits, labels))
    expected = torch.relu(1 - logits * (2 * labels - 1)).mean()
    torch.testing.assert_close(lovasz_hinge(logits[:, None], labels[:, None]), expected)


def test_hamming_distance_gives_the_hinge_loss() -> None:
    """Sec. 2.1: built on the Hamming distance, it is the standard hinge loss."""
    logits, labels = batch(4, 6, 6)
    errors = torch.relu(1 - logits * (2 * labels - 1)).flatten(1)
    values = lovasz_extension(errors, labels.flatten(1), HammingLoss())
    torch.testing.assert_close(values.mean(), hinge(logits, labels))


def test_empty_foreground_is_the_largest_error() -> None:
    logits, labels = batch(3, 5, 5)
    labels[:] = 0
    largest = (1 + logits.flatten(1).max(1).values).clamp(min=0)
    value, gradient = gradient_of(logits, labels)
    assert value.item() == pytest.approx(largest.mean().item())
    assert gradient.count_nonzero() == 3
    assert lovasz_hinge(logits, labels, per_image=False).item() == pytest.approx(
        largest.max().item()
    )


def test_channel_dimension_of_one() -> None:
    logits, labels = batch(3, 5, 5)
    expected = lovasz_hinge(logits, labels)
    assert torch.equal(lovasz_hinge(logits[:, None], labels), expected)
    assert torch.equal(lovasz_hinge(logits[:, None], labels[:, None]), expected)
    flat, flat_labels = batch(3)
    assert torch.equal(lovasz_hinge(flat[:, None], flat_labels), lovasz_hinge(flat, flat_labels))


@pytest.mark.parametrize("per_image", [True, False])
def test_no_valid_pixel_is_zero_with_zero_gradient(per_image: bool) -> None:
    logits, _ = batch(2, 4, 4)
    logits[0, 0, 0] = math.nan
    labels = torch.full((2, 4, 4), 255)
    value, gradient = gradient_of(logits, labels, per_image=per_image, ignore_index=255)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("shape", [(0, 4, 4), (0,), (2, 0)])
def test_empty_batches_are_zero(shape, per_image: bool) -> None:
    value, gradient = gradient_of(
        torch.zeros(shape), torch.zeros(shape).long(), per_image=per_image
    )
    assert value == 0
    assert gradient.shape == shape


def test_image_without_valid_pixels_adds_zero() -> None:
    logits, labels = batch(2, 4, 4)
    labels[1] = 255
    value, _ = gradient_of(logits, labels, ignore_index=255)
    alone, _ = gradient_of(logits[:1], labels[:1])
    torch.testing.assert_close(value, alone / 2)


def test_one_valid_pixel() -> None:
    logits, labels = batch(1, 3, 3)
    labels[:] = 255
    labels[0, 1, 1] = 1
    value, gradient = gradient_of(logits, labels, ignore_index=255)
    assert value.item() == pytest.approx(max(0.0, 1 - logits[0, 1, 1].item()))
    assert gradient.count_nonzero() <= 1


def test_ignore_index_may_be_a_class() -> None:
    logits, labels = batch(2, 4, 4)
    value, gradient = gradient_of(logits, labels, ignore_index=0)
    only, _ = gradient_of(logits, torch.where(labels == 0, 7, 1), ignore_index=7)
    assert torch.equal(value, only)
    assert not gradient[labels == 0].any()


@pytest.mark.parametrize("label", [2, 255, -1])
def test_label_out_of_range(label: int) -> None:
    logits, labels = batch(2, 3, 3)
    labels[1, 1, 1] = label
    with pytest.raises(
        ValueError, match=rf"label {label} is out of range for 2 classes \(0 to 1\)"
    ):
        lovasz_hinge(logits, labels)
    if label == -1:
        with pytest.raises(ValueError, match="background is 0 here, not -1"):
            lovasz_hinge(logits, labels)


def test_nan_and_infinite_logits() -> None:
    logits, labels = batch(1, 4, 4)
    labels[0, 0, :2] = torch.tensor([0, 1])
    logits[0, 0, 0] = -math.inf
    logits[0, 0, 1] = math.inf
    value, gradient = gradient_of(logits, labels)
    assert value.isfinite()  # both on the right side
    assert not gradient[0, 0, :2].any()
    value, gradient = gradient_of(-logits, labels)
    assert value == math.inf
    assert gradient.isfinite().all()
    background = torch.zeros_like(labels)
    assert gradient_of(torch.full_like(logits, math.inf), background)[0] == math.inf
    logits[0, 2, 2] = math.nan
    assert gradient_of(logits, labels)[0].isnan()
    labels[0, 2, 2] = 255
    value, gradient = gradient_of(logits, labels, ignore_index=255)
    assert value.isfinite()
    assert not gradient[0, 2, 2].any()


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int8, torch.int32, torch.uint16, torch.uint32, torch.uint64],
)
def test_label_dtypes(dtype: torch.dtype) -> None:
    logits, labels = batch(2, 4, 4)
    assert torch.equal(lovasz_hinge(logits, labels.to(dtype)), lovasz_hinge(logits, labels))


def test_ignore_index_that_the_label_dtype_cannot_hold() -> None:
    """255 and -1 are the same uint8, but not the same label."""
    labels = torch.tensor([[0, 1, 255]], dtype=torch.uint8)
    with pytest.raises(ValueError, match="label 255 is out of range"):
        lovasz_hinge(torch.zeros(1, 3), labels, ignore_index=-1)
    lovasz_hinge(torch.zeros(1, 3), labels, ignore_index=255)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits, labels = batch(2, 9, 9)
    half = logits.to(dtype)
    value, gradient = gradient_of(half, labels)
    expected, expected_gradient = gradient_of(half.float(), labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


def test_non_contiguous_logits_under_autocast_and_untouched() -> None:
    logits, labels = batch(4, 6, 5)
    logits = logits.float()
    expected = gradient_of(logits, labels)
    copy = logits.clone()
    view = logits.permute(2, 1, 0).contiguous().permute(2, 1, 0).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = lovasz_hinge(view, labels)
    (gradient,) = torch.autograd.grad(value, view)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])
    assert torch.equal(logits, copy)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "match"),
    [
        (torch.zeros(2, 4).long(), torch.zeros(2, 4).long(), TypeError, "logits must be"),
        (torch.zeros(2, 4), torch.zeros(2, 4), TypeError, "labels must be an integer or bool"),
        (torch.tensor(0.0), torch.tensor(0), ValueError, "got a scalar"),
        (torch.zeros(2, 4), torch.zeros(2, 5).long(), ValueError, r"labels have shape \(2, 5\)"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), ValueError, "channel dimension of size 1"),
    ],
)
def test_clear_errors(logits, labels, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lovasz_hinge(logits, labels)
