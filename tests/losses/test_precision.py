"""What the losses promise at full size: precision, memory, and life inside torch.compile."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lovasz_repro.bench.losses import peak_memory as measured_peak
from lovasz_repro.losses import cross_entropy, lovasz_hinge, lovasz_softmax


def relative_errors(loss, logits: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """Of the float32 loss, and of its gradient in the 2-norm and the maximum norm."""
    results = []
    for dtype in (torch.float32, torch.float64):
        leaf = logits.to(dtype).clone().requires_grad_()
        value = loss(leaf, labels)
        value.backward()
        results.append((value.item(), leaf.grad.double()))
    (value, gradient), (exact, exact_gradient) = results
    difference = gradient - exact_gradient
    return (
        abs(value - exact) / exact,
        (difference.norm() / exact_gradient.norm()).item(),
        (difference.abs().max() / exact_gradient.abs().max()).item(),
    )


@pytest.mark.parametrize(
    ("rare", "scale", "margin"),
    [
        (300_000, 1.0, 0.0),  # an untrained network
        (1_000, 1.0, 0.0),  # a rare class
        (100, 5.0, 0.0),
        (10_000, 3.0, 6.0),  # a good network
        (10_000, 5.0, 40.0),  # saturated probabilities
    ],
)
def test_lovasz_softmax_at_a_million_pixels(rare: int, scale: float, margin: float) -> None:
    """Sorted, float32 against float64 below 5e-6, at any balance of the classes.

    The float64 loss is held to Algorithm 1 by the other tests.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(1_000_000, dtype=torch.long)
    labels[torch.randperm(1_000_000, generator=generator)[:rare]] = 1
    labels = labels.reshape(1, 1000, 1000)
    logits = scale * torch.randn(1, 3, 1000, 1000, generator=generator)
    logits.scatter_add_(1, labels[:, None], torch.full((1, 1, 1000, 1000), margin))
    logits[:, :, :50] = torch.randn(1, 3, 50, 1000, generator=generator)  # some are wrong
    loss = partial(lovasz_softmax, method="sort")
    assert max(relative_errors(loss, logits, labels)) < 5e-6


@pytest.mark.parametrize("rare", [300_000, 100])
def test_lovasz_hinge_at_a_million_pixels(rare: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(1_000_000, dtype=torch.long)
    labels[torch.randperm(1_000_000, generator=generator)[:rare]] = 1
    logits = torch.randn(1, 1_000_000, generator=generator)
    assert max(relative_errors(partial(lovasz_hinge, method="sort"), logits, labels[None])) < 5e-6


def test_cross_entropy_at_a_million_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 1000, 1000, generator=generator)
    labels = torch.randint(0, 3, (1, 1000, 1000), generator=generator)
    assert max(relative_errors(cross_entropy, logits, labels)) < 5e-6


def test_float32_agrees_with_numpy_algorithm_1(oracle) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 4, 200, 250, generator=generator)
    labels = torch.randint(0, 4, (2, 200, 250), generator=generator)
    expected = oracle.lovasz_softmax(logits.numpy(), labels.numpy())
    assert lovasz_softmax(logits, labels).item() == pytest.approx(expected, rel=1e-6)


def peak_memory(loss, logits: Tensor, labels: Tensor) -> float:
    """Peak of what forward and backward allocate, in tensors of the size of the logits."""
    peak = measured_peak(loss, logits.clone().requires_grad_(), labels)
    assert peak >= 1  # the gradient
    return peak


@pytest.mark.parametrize("options", [{}, {"per_image": True}, {"ignore_index": 3}], ids=str)
def test_memory_of_lovasz_softmax(options: dict) -> None:
    """Gradient and probabilities, and about one more for the permutation of a class."""
    logits, labels = torch.randn(2, 21, 200, 200), torch.randint(0, 21, (2, 200, 200))
    assert peak_memory(lambda a, b: lovasz_softmax(a, b, **options), logits, labels) < 3.5


@pytest.mark.parametrize(
    "options", [{}, {"per_image": True}, {"ignore_index": 3}, {"method": "auto"}], ids=str
)
def test_memory_of_counting(options: dict) -> None:
    """The gradient, some numbers a pixel, and what depends on blocks and bins alone.

    The numbers a pixel, some 50 bytes, count for more the fewer classes there are.
    """
    logits, labels = torch.randn(4, 21, 300, 300), torch.randint(0, 21, (4, 300, 300))
    options = {"method": "histogram"} | options
    assert peak_memory(lambda a, b: lovasz_softmax(a, b, **options), logits, labels) < 2.5
    logits, labels = logits[:, :3], labels % 3
    assert peak_memory(lambda a, b: lovasz_softmax(a, b, **options), logits, labels) < 6


def test_memory_of_many_small_images_does_not_grow_with_their_number() -> None:
    """Some 50 bytes a pixel for at most about a million pixels; gradient and errors for all."""
    logits, labels = torch.randn(4000, 30, 30), torch.randint(0, 2, (4000, 30, 30))
    assert peak_memory(lovasz_hinge, logits, labels) < 7


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_inside_a_compiled_step_without_recompilation() -> None:
    """torch.compile runs the losses as they are, whatever the label counts of the batch."""
    from torch._dynamo.utils import counters

    def step(logits: Tensor, labels: Tensor) -> Tensor:
        return 2 * lovasz_softmax(logits * 1.5, labels) + lovasz_hinge(logits[:, 0], labels == 1)

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager")
    frames = 0
    for turn in range(8):
        generator = torch.Generator().manual_seed(turn)
        logits = torch.randn(2, 4, 6, 6, generator=generator)
        labels = torch.randint(0, 4, (2, 6, 6), generator=generator)
        a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        compiled(a, labels).backward()
        step(b, labels).backward()
        torch.testing.assert_close(a.grad, b.grad)
        if turn == 3:
            frames = counters["frames"]["total"]
    assert counters["frames"]["total"] == frames
    torch._dynamo.reset()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"per_image": True, "classes": "all"}], ids=str)
def test_cuda_agrees_with_cpu(options: dict) -> None:
    logits = torch.randn(2, 5, 300, 300, dtype=torch.float64)
    labels = torch.randint(0, 4, (2, 300, 300))
    labels[0, 0] = 255
    results = []
    for device in ("cpu", "cuda"):
        leaf = logits.to(device).requires_grad_()
        value = lovasz_softmax(leaf, labels.to(device), ignore_index=255, **options)
        value = value + lovasz_hinge(leaf[:, 0], (labels == 1).to(device))
        value.backward()
        results.append((value.detach().cpu(), leaf.grad.cpu()))
    torch.testing.assert_close(results[1], results[0])
