"""DeepLab-v2 against the released Caffe definition: counts, sizes, an independent forward."""

import math
from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lovasz_repro.models.deeplab import (
    DeepLab,
    parameter_groups,
    small_deeplab,
    subsample_labels,
    upsample,
)


@pytest.fixture(scope="module")
def full() -> DeepLab:
    """ResNet-101 without storage: shapes and settings are real, values do not exist."""
    with torch.device("meta"):
        return DeepLab()


def randomised(seed: int = 0, bn_eps: float = 1e-5) -> DeepLab:
    """A small network whose batch normalisations are not the identity."""
    torch.manual_seed(seed)
    model = DeepLab(5, blocks=(1, 1, 2, 1), width=4, bn_eps=bn_eps)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def count(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


def caffe_size(n: int) -> int:
    """Convolution, pooling, strided 1x1: Caffe rounds the first and last down, pooling up."""
    n = (n + 2 * 3 - 7) // 2 + 1
    pooled = math.ceil((n + 2 * 1 - 3) / 2) + 1
    if (pooled - 1) * 2 >= n + 1:  # pooling_layer.cpp: the last window must start inside
        pooled -= 1
    return (pooled - 1) // 2 + 1


def caffe_forward(weights: dict[str, Tensor], images: Tensor, eps: float = 1e-5) -> Tensor:
    """The DeepLab authors' test.prototxt in functions, for blocks (1, 1, 2, 1)."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var, gamma, beta = (
            weights[f"{name}.{field}"].view(1, -1, 1, 1)
            for field in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + eps) * gamma + beta

    def block(x: Tensor, name: str, stride: int, dilation: int) -> Tensor:
        y = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride)
        y = F.relu(norm(y, f"{name}.bn1"))
        y = F.conv2d(y, weights[f"{name}.conv2.weight"], padding=dilation, dilation=dilation)
        y = F.relu(norm(y, f"{name}.bn2"))
        y = norm(F.conv2d(y, weights[f"{name}.conv3.weight"]), f"{name}.bn3")
        if name.endswith(".0"):
            x = F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride)
            x = norm(x, f"{name}.downsample.1")
        return F.relu(x + y)

    x = F.conv2d(images, weights["conv1.weight"], stride=2, padding=3)
    x = F.max_pool2d(F.relu(norm(x, "bn1")), 3, 2, 1, ceil_mode=True)
    x = block(x, "layer1.0", 1, 1)
    x = block(x, "layer2.0", 2, 1)
    x = block(x, "layer3.0", 1, 2)
    x = block(x, "layer3.1", 1, 2)
    x = block(x, "layer4.0", 1, 4)
    branches = [
        F.conv2d(x, weights[f"aspp.{i}.weight"], weights[f"aspp.{i}.bias"], padding=d, dilation=d)
        for i, d in enumerate((6, 12, 18, 24))
    ]
    return torch.stack(branches).sum(0)


def test_published_parameter_counts(full: DeepLab) -> None:
    head = count(full.aspp.parameters())
    norms = [m for m in full.modules() if isinstance(m, nn.BatchNorm2d)]
    assert count(full.parameters()) == 44_048_532
    assert count(full.parameters()) - head == 42_500_160
    assert sum(count(m.parameters()) for m in norms) == 105_344
    assert head == 1_548_372


def test_layout_of_released_ports(full: DeepLab) -> None:
    """104 convolutions, 416 tensors of batch normalisation and 8 of the classifier."""
    state = {n: t for n, t in full.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert len(state) == 528
    assert len([name for name in state if "running" in name]) == 208
    expected = {"conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "aspp.3.bias"}
    expected |= {
        "layer2.0.downsample.1.running_mean",
        "layer3.22.conv2.weight",
        "layer4.2.bn3.bias",
    }
    assert expected <= state.keys()
    assert state["layer3.22.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["aspp.0.weight"].shape == (21, 2048, 3, 3)
    assert sorted(n for n in state if n.endswith("downsample.0.weight")) == [
        f"layer{i}.0.downsample.0.weight" for i in (1, 2, 3, 4)
    ]


def test_strides_and_dilations(full: DeepLab) -> None:
    convolutions = {n: m for n, m in full.named_modules() if isinstance(m, nn.Conv2d)}
    strided = {name for name, m in convolutions.items() if m.stride != (1, 1)}
    assert strided == {"conv1", "layer2.0.conv1", "layer2.0.downsample.0"}
    expected = {f"layer3.{i}.conv2": 2 for i in range(23)}
    expected |= {f"layer4.{i}.conv2": 4 for i in range(3)}
    expected |= {f"aspp.{i}": d for i, d in enumerate((6, 12, 18, 24))}
    dilated = {n: m.dilation[0] for n, m in convolutions.items() if m.dilation != (1, 1)}
    assert dilated == expected
    assert all(convolutions[name].padding == (d, d) for name, d in expected.items())
    assert {name for name, m in convolutions.items() if m.bias is not None} == {
        f"aspp.{i}" for i in range(4)
    }
    norms = [m for m in full.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.affine, m.track_running_stats) for m in norms} == {(1e-5, True, True)}


@pytest.mark.parametrize(("size", "grid"), [(321, 41), (513, 65)])
def test_published_grids(full: DeepLab, size: int, grid: int) -> None:
    assert caffe_size(size) == grid
    logits = full(torch.empty(2, 3, size, size, device="meta"))
    assert logits.shape == (2, 21, grid, grid)


def test_every_size_rounds_as_caffe_does() -> None:
    with torch.device("meta"):
        model = small_deeplab(2)
    for n in (*range(1, 34), 129):
        logits = model(torch.empty(1, 3, n, 2 * n, device="meta"))
        assert logits.shape == (1, 2, caffe_size(n), caffe_size(2 * n)), n


@pytest.mark.parametrize(("size", "eps"), [((65, 65), 1e-5), ((64, 50), 1e-3), ((33, 90), 1e-5)])
def test_forward_of_the_table(size: tuple[int, int], eps: float) -> None:
    model = randomised(bn_eps=eps).double()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        logits = model(images)
        expected = caffe_forward(model.state_dict(), images, eps)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


def reach(block: nn.Module, channels: int) -> set[tuple[int, int]]:
    """Offsets at which an output changes when one input pixel does."""
    at_rest = torch.ones(1, channels, 21, 21)
    impulse = at_rest.clone()
    impulse[..., 10, 10] += 1
    with torch.no_grad():
        changed = (block(impulse) != block(at_rest)).any(1)[0]
    return {(int(y) - 10, int(x) - 10) for y, x in changed.nonzero()}


@pytest.mark.parametrize(
    ("layer", "index", "dilation"),
    [("layer1", 0, 1), ("layer3", 0, 2), ("layer3", 1, 2), ("layer4", 0, 4)],
)
def test_impulse_shows_the_dilation(layer: str, index: int, dilation: int) -> None:
    block = getattr(small_deeplab(2), layer)[index]
    for weight in block.parameters():
        if weight.ndim == 4:
            nn.init.uniform_(weight, 0.1, 1)  # positive: nothing cancels, ReLU lets all through
    steps = (-dilation, 0, dilation)
    assert reach(block, block.conv1.in_channels) == {(y, x) for y in steps for x in steps}


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = DeepLab(21, blocks=(1, 1, 1, 1), width=16)
    for branch in model.aspp:
        assert not branch.bias.any()
        assert branch.weight.mean().abs() < 2e-4
        assert branch.weight.std().item() == pytest.approx(0.01, rel=0.02)
    weight = model.layer4[0].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * weight.shape[1])), rel=0.02)


def test_small_network_starts_with_logits_of_order_one() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        logits = small_deeplab(3)(torch.empty(1, 3, 97, 97).uniform_(-120, 140))
    assert 0.1 < logits.std() < 20


def test_batch_norms_are_frozen() -> None:
    model = randomised()
    frozen = {n: t.clone() for n, t in model.state_dict().items() if "bn" in n or "ple.1." in n}
    optimizer = torch.optim.SGD(parameter_groups(model), lr=0.01, momentum=0.9)
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert model.training is mode
        assert model.layer1[0].conv1.training is mode
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 33, 33)).square().mean().backward()
        optimizer.step()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 5 * 3 + 4
    assert not any(m.training for m in norms)
    assert all(p.grad is None and not p.requires_grad for m in norms for p in m.parameters())
    assert len(frozen) == 5 * len(norms)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())


def test_training_mode_does_not_change_the_logits() -> None:
    model, images = randomised(), torch.randn(2, 3, 33, 33)
    assert torch.equal(model.train()(images), model.eval()(images))


def test_gradient_reaches_every_trainable_parameter() -> None:
    model = randomised()
    images = torch.randn(2, 3, 65, 65, requires_grad=True)
    model.train()(images).square().mean().backward()
    trainable = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert {"conv1.weight", "aspp.0.weight", "aspp.3.bias"} <= trainable.keys()
    # At a 9x9 grid a dilation of 12 or more sees the centre of the kernel only, but sees it.
    for name, gradient in trainable.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.any(), name
    assert images.grad is not None
    assert images.grad.any()


def test_parameter_groups_cover_what_trains(full: DeepLab) -> None:
    backbone, weights, biases = parameter_groups(full)
    trainable = [id(p) for p in full.parameters() if p.requires_grad]
    grouped = [id(p) for g in (backbone, weights, biases) for p in g["params"]]
    assert sorted(grouped) == sorted(trainable)
    assert len(set(grouped)) == len(grouped)
    assert [count(g["params"]) for g in (backbone, weights, biases)] == [
        42_500_160 - 105_344,
        1_548_372 - 84,
        84,
    ]
    assert [g["lr_multiplier"] for g in (backbone, weights, biases)] == [1, 10, 20]
    assert [g["weight_decay"] for g in (backbone, weights, biases)] == [5e-4, 5e-4, 0]


def test_parameter_groups_of_the_binary_experiment() -> None:
    """Multipliers 0.1, 1, 1 and no decay (jaccardSegment) go into an optimizer and stay there."""
    groups = parameter_groups(small_deeplab(2), (0.1, 1, 1), weight_decay=0)
    optimizer = torch.optim.SGD(groups, lr=5e-4)
    assert [g["lr_multiplier"] for g in optimizer.param_groups] == [0.1, 1, 1]
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0, 0, 0]


def bilinear(plane: list[list[float]], size: tuple[int, int]) -> Tensor:
    """interp_layer.cpp, pixel by pixel: corners on corners."""

    def locate(i: int, few: int, many: int) -> tuple[int, int, float]:
        position = i * (few - 1) / (many - 1) if many > 1 else 0.0
        low = int(position)
        return low, min(low + 1, few - 1), position - low

    out = torch.empty(size, dtype=torch.float64)
    for y in range(size[0]):
        for x in range(size[1]):
            top, bottom, v = locate(y, len(plane), size[0])
            left, right, u = locate(x, len(plane[0]), size[1])
            above = (1 - u) * plane[top][left] + u * plane[top][right]
            below = (1 - u) * plane[bottom][left] + u * plane[bottom][right]
            out[y, x] = (1 - v) * above + v * below
    return out


@pytest.mark.parametrize("size", [(17, 25), (20, 13), (1, 7), (3, 4)])
def test_upsampling_is_bilinear_with_corners_on_corners(size: tuple[int, int]) -> None:
    logits = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    up = upsample(logits, size)
    assert up.shape == (2, 2, *size)
    for b in range(2):
        for c in range(2):
            torch.testing.assert_close(up[b, c], bilinear(logits[b, c].tolist(), size))


@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(0, 2))
def test_labels_of_a_crop_are_every_8th_pixel(seed: int, batch: int) -> None:
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 256, (batch, 321, 321), generator=random)
    assert torch.equal(subsample_labels(labels, (41, 41)), labels[:, ::8, ::8])
    assert torch.equal(subsample_labels(labels, (21, 21)), labels[:, ::16, ::16])
    assert torch.equal(subsample_labels(labels, (321, 321)), labels)


@given(
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    steps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_labels_where_the_grid_lands_agree_with_interp(
    grid: tuple[int, int], steps: tuple[int, int]
) -> None:
    height, width = ((n - 1) * step + 1 for n, step in zip(grid, steps, strict=True))
    labels = torch.randint(0, 22, (height, width), generator=torch.Generator().manual_seed(0))
    expected = bilinear(labels.double().tolist(), grid)
    sampled = subsample_labels(labels, grid)
    assert sampled.dtype == labels.dtype
    torch.testing.assert_close(sampled.double(), expected)


def test_one_point_is_the_first_pixel() -> None:
    labels = torch.arange(20).view(4, 5)
    assert subsample_labels(labels, (1, 1)).tolist() == [[0]]


@pytest.mark.parametrize("size", [(41, 40), (40, 41), (322, 41), (0, 41), (41, -1)])
def test_grid_that_does_not_land_on_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not land on the pixels of 321"):
        subsample_labels(torch.zeros(321, 321), size)


def test_labels_of_an_even_crop_do_not_land(full: DeepLab) -> None:
    grid = full(torch.empty(1, 3, 320, 320, device="meta")).shape[-2:]
    with pytest.raises(ValueError, match="8 n"):
        subsample_labels(torch.zeros(1, 320, 320), grid)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3), (1, 3, 0, 8)])
def test_input_that_is_no_image_batch(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 3, H, W\)"):
        small_deeplab(2)(torch.zeros(shape))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"width": 0},
        {"blocks": (1, 1, 1)},
        {"blocks": (1, 1, 0, 1)},
        {"dilations": ()},
        {"dilations": (6, 0)},
    ],
)
def test_impossible_arguments(arguments) -> None:
    with pytest.raises(ValueError, match="must be"):
        DeepLab(**arguments)
