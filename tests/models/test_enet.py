"""The architecture against the published table: shapes, parameter counts, settings."""

import math

import pytest
import torch
from torch import nn

from lovasz_repro.models.enet import ENet, RegularBlock, to_unit_range

# Output channels and resolution divisor after each stage (Paszke et al., Table 1, in the
# released variant).
STAGES = {
    "initial": (16, 2),
    "down1": (64, 4),
    "stage1": (64, 4),
    "down2": (128, 8),
    "stage2": (128, 8),
    "stage3": (128, 8),
    "up4": (64, 4),
    "stage4": (64, 4),
    "up5": (16, 2),
    "stage5": (16, 2),
    "classifier": (20, 1),
}


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


@pytest.mark.parametrize(("height", "width"), [(8, 8), (40, 24)])
def test_shape_after_every_stage(height: int, width: int) -> None:
    model = ENet(20).eval()
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            shapes[name] = tuple(tensor.shape)

        return hook

    for name, module in model.named_children():
        module.register_forward_hook(note(name))
    model(torch.rand(2, 3, height, width))
    assert shapes == {n: (2, c, height // d, width // d) for n, (c, d) in STAGES.items()}


def test_published_parameter_counts() -> None:
    model = ENet(20)
    decoder = (model.up4, model.stage4, model.up5, model.stage5)
    encoder = (model.initial, model.down1, model.stage1, model.down2, model.stage2, model.stage3)
    assert count(model) == 364_712
    assert count(*encoder) == 338_156
    assert count(*decoder) == 25_256
    assert count(model.classifier) == 1_300
    assert count(ENet(20, decoder="relu")) == 364_376


def test_batch_norm_and_dropout_settings() -> None:
    model = ENet(20)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum, m.affine) for m in norms} == {(1e-3, 0.1, True)}
    dropouts = {name: m.p for name, m in model.named_modules() if hasattr(m, "convention")}
    assert len(dropouts) == 22
    first = ("down1", "stage1")
    assert {p for name, p in dropouts.items() if name.startswith(first)} == {0.01}
    assert {p for name, p in dropouts.items() if not name.startswith(first)} == {0.1}


def test_context_blocks_follow_the_paper() -> None:
    def kind(block: nn.Module) -> object:
        assert isinstance(block, RegularBlock)
        middle = block.main[3]
        return "asymmetric" if middle.kernel_size == (1, 5) else middle.dilation[0]

    expected = [1, 2, "asymmetric", 4, 1, 8, "asymmetric", 16]
    model = ENet(20)
    assert [kind(block) for block in model.stage2] == expected
    assert [kind(block) for block in model.stage3] == expected


@pytest.mark.parametrize("decoder", ["prelu", "relu"])
def test_gradient_reaches_every_parameter_and_the_input(decoder) -> None:
    torch.manual_seed(0)
    model = ENet(5, decoder=decoder)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    model(images).square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients.values())
    # The bias of a convolution before a batch normalisation cancels: its gradient is rounding.
    modules = dict(model.named_modules())
    cancels = {
        f"{name}.bias"
        for name, module in modules.items()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and name != "classifier"
    }
    assert [n for n, g in gradients.items() if not g.any() and n not in cancels] == []
    assert images.grad is not None
    assert images.grad.any()


def test_unpooling_puts_values_where_the_maximum_was() -> None:
    model = ENet(3).eval()
    x = torch.rand(1, 16, 8, 8)
    _, indices = model.down1(x)
    restored = model.up5.unpool(torch.ones(1, 16, 4, 4), indices)
    windows = x.unfold(2, 2, 2).unfold(3, 2, 2)
    peaks = x == windows.amax((4, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(restored.bool(), peaks)


def test_downsampling_pads_channels_at_the_end() -> None:
    block = ENet(3).down1.eval()
    nn.init.zeros_(block.main[7].weight)  # the last normalisation: the main branch gives 0
    nn.init.zeros_(block.main[7].bias)
    x = torch.rand(1, 16, 8, 8)
    output, _ = block(x)
    assert torch.equal(output[:, :16], nn.functional.max_pool2d(x, 2))
    assert not output[:, 16:].any()


@pytest.mark.parametrize("shape", [(1, 3, 180, 240), (1, 3, 64, 65), (1, 3, 0, 8), (1, 3, 4, 8)])
def test_size_that_is_no_multiple_of_8(shape) -> None:
    with pytest.raises(ValueError, match=rf"multiples of 8, got {shape[2]}x{shape[3]}"):
        ENet(3)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3)])
def test_input_that_is_no_rgb_batch(shape) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        ENet(3)(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"num_classes": 3, "decoder": "elu"},
        {"num_classes": 3, "dropout_convention": "caffe"},
    ],
)
def test_impossible_arguments(arguments) -> None:
    with pytest.raises(ValueError, match="must be"):
        ENet(**arguments)


def test_bfloat16_autocast_trains() -> None:
    torch.manual_seed(0)
    model, images = ENet(4), torch.rand(2, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        scores = model(images)
    scores.float().mean().backward()
    assert scores.dtype == torch.bfloat16
    gradient = model.initial.conv.weight.grad
    assert gradient is not None
    assert math.isfinite(gradient.sum().item())


def test_evaluation_is_deterministic_and_independent_of_the_batch() -> None:
    torch.manual_seed(0)
    model, images = ENet(4).eval(), torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(together, alone)
        assert torch.equal(together, model(images))


def test_unit_range_divides_by_255_and_keeps_the_memory_format_asked_for() -> None:
    images = torch.tensor([[[[0]], [[51]], [[255]]]], dtype=torch.uint8)
    torch.testing.assert_close(to_unit_range(images).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    large = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    assert to_unit_range(large, True).is_contiguous(memory_format=torch.channels_last)
