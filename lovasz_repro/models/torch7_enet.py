"""From the modules of a Torch7 file to the state dict of `ENet`, by position.

Both networks are walked in the order in which data flows. Every layer of the file must be the
layer that ENet has at this place, in kind, sizes and settings, so that nothing can be loaded
into the wrong place and nothing is left over.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lovasz_repro.models.enet import Activation, ENet
from lovasz_repro.models.layers import SpatialDropout
from lovasz_repro.models.torch7 import Torch7Object

CONTAINERS = {"Sequential", "ConcatTable"}
PLUMBING = {"Identity", "JoinTable", "CAddTable", "Padding"}  # no settings that weights depend on


def enet_tensors(root: Any) -> tuple[dict[str, Tensor], Activation]:
    """State dict of the `ENet` in a Torch7 value, and whether its decoder has PReLU or ReLU.

    Raises ValueError naming the first layer that ENet does not have.
    """
    layers = list(torch7_layers(root, set()))
    found = [describe_torch7(layer) for layer in layers]
    if not found or not found[-1].startswith("transposed convolution"):
        raise ValueError(f"ends with {found[-1] if found else 'no layer'}, not ENet's classifier")
    outputs = parameter(layers[-1], "bias", 1).size
    decoder: Activation = "relu" if "ReLU" in found else "prelu"
    with torch.device("meta"):
        model = ENet(outputs, decoder)
    own = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    compare(found, [describe_own(module) for _, module in own])
    tensors: dict[str, Tensor] = {}
    for (name, module), layer in zip(own, layers, strict=True):
        for key, value in module.state_dict().items():
            tensors[f"{name}.{key}"] = tensor_of(layer, key, tuple(value.shape))
    return tensors, decoder


def torch7_layers(module: Any, seen: set[int]) -> Iterator[Torch7Object]:
    """The layers below `module` in order; a layer met twice is refused, so this ends."""
    if not isinstance(module, Torch7Object):
        raise ValueError(f"holds a {type(module).__name__} where a network module belongs")
    if id(module) in seen:
        raise ValueError(f"the same {module.class_name} appears twice in the network")
    seen.add(id(module))
    kind = kind_of(module)
    if kind in CONTAINERS:
        children = module.fields.get("modules")
        if not isinstance(children, dict) or set(children) != set(range(1, len(children) + 1)):
            raise ValueError(f"{module.class_name} without a list of modules")
        for index in range(1, len(children) + 1):
            yield from torch7_layers(children[index], seen)
    elif kind not in PLUMBING:
        yield module


def kind_of(module: Torch7Object) -> str:
    """The class name without its package, "cudnn." and "nn." being the same layers."""
    return module.class_name.partition(".")[2]


def compare(found: list[str], wanted: list[str]) -> None:
    """Raise ValueError for the first layer in which the file and ENet differ."""
    for position, (have, want) in enumerate(zip(found, wanted, strict=False), start=1):
        if have != want:
            raise ValueError(f"layer {position} is {have}, ENet has {want}")
    if len(found) != len(wanted):
        raise ValueError(f"{len(found)} layers, ENet has {len(wanted)}")


def describe_torch7(layer: Torch7Object) -> str:
    """One line with all that must agree, in the words of `describe_own`."""
    kind = kind_of(layer)
    if kind in ("SpatialConvolution", "SpatialConvolutionMM", "SpatialDilatedConvolution"):
        dilation, groups = pair(layer, "dilation{}", 1), setting(layer, "groups", 1)
        return f"convolution {geometry(layer)}, dilation {dilation}, groups {groups}"
    if kind == "SpatialFullConvolution":
        return f"transposed convolution {geometry(layer)}, output padding {pair(layer, 'adj{}')}"
    if kind == "SpatialMaxPooling":
        return f"max-pooling {pair(layer, 'k{}')}, stride {pair(layer, 'd{}')}"
    if kind == "SpatialMaxUnpooling":
        return "max-unpooling"
    if kind == "SpatialBatchNormalization":
        channels = parameter(layer, "running_mean", 1).size
        return f"batch normalisation of {channels}, eps {setting(layer, 'eps')}"
    if kind == "PReLU":
        return f"PReLU of {setting(layer, 'nOutputPlane')}"
    if kind == "SpatialDropout":
        return f"dropout {setting(layer, 'p')}"
    return kind


def geometry(layer: Torch7Object) -> str:
    """What all convolutions have."""
    into, out = setting(layer, "nInputPlane"), setting(layer, "nOutputPlane")
    bias = "no bias" if layer.fields.get("bias") is None else "bias"
    return (
        f"{into}->{out} {pair(layer, 'k{}')}, {bias}, "
        f"stride {pair(layer, 'd{}')}, padding {pair(layer, 'pad{}')}"
    )


def pair(layer: Torch7Object, name: str, default: int = 0) -> str:
    """A setting of height and width, such as "k{}" for kH and kW."""
    height, width = (setting(layer, name.format(axis), default) for axis in "HW")
    return f"{height}x{width}"


def setting(layer: Torch7Object, name: str, default: int = 0) -> int | float:
    """A field that must be a number; raises ValueError where it is something else."""
    value = layer.fields.get(name, default)
    if not isinstance(value, int | float):
        raise ValueError(f"{layer.class_name} whose {name!r} is no number")
    return value


def describe_own(module: nn.Module) -> str:
    """One line with all that must agree, in the words of `describe_torch7`."""
    if isinstance(module, nn.ConvTranspose2d):
        padding = own_pair(module.output_padding)
        return f"transposed convolution {own_geometry(module)}, output padding {padding}"
    if isinstance(module, nn.Conv2d):
        dilation, groups = own_pair(module.dilation), module.groups
        return f"convolution {own_geometry(module)}, dilation {dilation}, groups {groups}"
    if isinstance(module, nn.MaxPool2d):
        return f"max-pooling {own_pair(module.kernel_size)}, stride {own_pair(module.stride)}"
    if isinstance(module, nn.MaxUnpool2d):
        return "max-unpooling"
    if isinstance(module, nn.BatchNorm2d):
        return f"batch normalisation of {module.num_features}, eps {module.eps}"
    if isinstance(module, nn.PReLU):
        return f"PReLU of {module.num_parameters}"
    if isinstance(module, SpatialDropout):
        return f"dropout {module.p}"
    return type(module).__name__


def own_geometry(module: nn.Conv2d | nn.ConvTranspose2d) -> str:
    """What all convolutions have."""
    return (
        f"{module.in_channels}->{module.out_channels} {own_pair(module.kernel_size)}, "
        f"{'no bias' if module.bias is None else 'bias'}, "
        f"stride {own_pair(module.stride)}, padding {own_pair(module.padding)}"
    )


def own_pair(value: Any) -> str:
    """Height and width of a setting that PyTorch keeps as one number or as a pair."""
    height, width = value if isinstance(value, tuple) else (value, value)
    return f"{height}x{width}"


def tensor_of(layer: Torch7Object, key: str, shape: tuple[int, ...]) -> Tensor:
    """Tensor `key` of our state dict from the file's layer; raises ValueError on its shape."""
    if key == "num_batches_tracked":  # only counts, never enters the result
        return torch.zeros((), dtype=torch.int64)
    array = parameter(layer, key)
    if array.ndim == 2 and array.size == np.prod(shape):  # SpatialConvolutionMM stores (out, rest)
        array = array.reshape(shape)
    if array.shape != shape:
        raise ValueError(f"{key} of a {layer.class_name} is {array.shape}, ENet has {shape}")
    return torch.from_numpy(array.astype(np.float32, order="C", copy=True))


def parameter(layer: Torch7Object, key: str, dimensions: int | None = None) -> np.ndarray:
    """A tensor field; raises ValueError where it is missing or has other dimensions."""
    array = layer.fields.get(key)
    if not isinstance(array, np.ndarray) or dimensions not in (None, array.ndim):
        raise ValueError(f"{layer.class_name} without a tensor {key!r}")
    return array
