"""Dropout conventions by their definition, and the PReLU gradient against PyTorch's."""

import pytest
import torch
from torch import nn

from lovasz_repro.models.enet import ChannelPReLU, SpatialDropout


@pytest.mark.parametrize(("convention", "kept"), [("torch7", 1.0), ("pytorch", 1 / 0.7)])
def test_training_drops_whole_channels_and_scales_by_convention(convention, kept) -> None:
    torch.manual_seed(0)
    x = torch.rand(200, 50, 2, 3) + 0.5
    output = SpatialDropout(0.3, convention).train()(x)
    ratio = output / x
    dropped = (ratio == 0).all(dim=(2, 3))
    whole = torch.isclose(ratio, torch.tensor(kept)).all(dim=3).all(dim=2)
    assert bool((dropped | whole).all())
    share = dropped.double().mean().item()
    deviation = (0.3 * 0.7 / dropped.numel()) ** 0.5
    assert abs(share - 0.3) < 4 * deviation
    assert dropped.any(dim=0).all()  # drawn for each image of the batch anew
    assert not dropped.all(dim=0).any()


@pytest.mark.parametrize(("convention", "factor"), [("torch7", 0.7), ("pytorch", 1.0)])
def test_evaluation_scales_by_convention(convention, factor) -> None:
    x = torch.randn(2, 3, 4, 5)
    output = SpatialDropout(0.3, convention).eval()(x)
    torch.testing.assert_close(output, x * factor)


@pytest.mark.parametrize("convention", ["torch7", "pytorch"])
def test_training_mean_is_the_evaluation_value(convention) -> None:
    """Either convention keeps the expected value between the two modes."""
    torch.manual_seed(1)
    layer, x = SpatialDropout(0.2, convention), torch.ones(40_000, 1, 1, 1)
    mean, expected = layer.train()(x).mean(), layer.eval()(x).mean()
    assert abs(mean - expected) < 4 * (0.2 / 0.8 / len(x)) ** 0.5


def test_masks_follow_the_seed() -> None:
    layer, x = SpatialDropout(0.5).train(), torch.ones(8, 8, 1, 1)
    torch.manual_seed(7)
    first = layer(x)
    torch.manual_seed(7)
    assert torch.equal(first, layer(x))
    assert not torch.equal(first, layer(x))


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_impossible_probability(p: float) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        SpatialDropout(p)


@pytest.mark.parametrize("channels_last", [False, True])
def test_prelu_equals_pytorch(channels_last: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 6, 7)
    x[0, 0, 0] = 0.0  # the kink
    upstream = torch.randn_like(x)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    ours, theirs = ChannelPReLU(5), nn.PReLU(5)
    slopes = torch.randn(5)
    results = []
    for layer in (ours, theirs):
        with torch.no_grad():
            layer.weight.copy_(slopes)
        inputs = x.clone().requires_grad_()
        output = layer(inputs)
        output.backward(upstream)
        results.append((output, inputs.grad, layer.weight.grad))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-6)
        assert mine.stride() == reference.stride()


def test_prelu_gradients_in_float64() -> None:
    torch.manual_seed(0)
    layer = ChannelPReLU(3).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def function(inputs: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"weight": slopes}, (inputs,))

    slopes = torch.rand(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, slopes))
    assert torch.autograd.gradgradcheck(function, (x, slopes))
