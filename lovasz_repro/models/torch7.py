"""Reader of Torch7's binary serialisation that trusts nothing in the file, and ENet in it.

Foreign weights are untrusted input: every size is compared with what is left of the file
before anything is allocated, nesting is bounded, only the classes named here are accepted,
nothing in the file is executed, and whatever is wrong ends in one ValueError that names the
file and the byte. Tensors are read-only views into the file's bytes, so reading takes memory
in proportion to the file.

Layout (torch7 File.lua, generic/Tensor.c, generic/Storage.c, on 64-bit little-endian machines):
a value is an int32 tag and its payload; tables, tensors and objects carry an int32 index by
which later values refer to them.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lovasz_repro.models.enet import Activation, ENet, SpatialDropout

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN = range(6)
FUNCTIONS = (6, 7, 8)

MAX_TORCH7_BYTES = 2**30
MAX_DEPTH = 100  # nested values; the released ENet needs 12
MAX_DIMENSIONS = 8

ELEMENTS = {
    "Byte": "u1",
    "Char": "i1",
    "Short": "<i2",
    "Int": "<i4",
    "Long": "<i8",
    "Half": "<f2",
    "Float": "<f4",
    "Double": "<f8",
}
STORAGES = {f"torch.{kind}Storage": dtype for kind, dtype in ELEMENTS.items()}
STORAGES |= {f"torch.Cuda{kind}Storage": dtype for kind, dtype in ELEMENTS.items()}
STORAGES["torch.CudaStorage"] = "<f4"
TENSORS = {name.replace("Storage", "Tensor"): dtype for name, dtype in STORAGES.items()}

# fmt: off
LAYERS = (
    "BatchNormalization", "CAddTable", "ConcatTable", "Dropout", "Identity", "JoinTable", "Linear",
    "LogSoftMax", "Padding", "PReLU", "ReLU", "Reshape", "Sequential", "SoftMax",
    "SpatialAveragePooling", "SpatialBatchNormalization", "SpatialConvolution",
    "SpatialConvolutionMM", "SpatialDilatedConvolution", "SpatialDropout",
    "SpatialFullConvolution", "SpatialLogSoftMax", "SpatialMaxPooling", "SpatialMaxUnpooling",
    "SpatialSoftMax", "SpatialUpSamplingBilinear", "SpatialUpSamplingNearest",
    "SpatialZeroPadding", "Threshold", "View",
)
# fmt: on
LAYER_CLASSES = frozenset(f"{package}.{name}" for package in ("nn", "cudnn") for name in LAYERS)


@dataclass(eq=False)
class Torch7Object:
    """An object of a known class, as plain data: its class name and its fields."""

    class_name: str
    fields: dict[Any, Any] = field(default_factory=dict)


def read_torch7(path: Path) -> Any:
    """The one value in a Torch7 binary file.

    Returns nil as None, numbers as int where integral, else float, booleans, strings as str
    (Latin-1), tables as dict, modules as `Torch7Object`, tensors and storages as read-only
    NumPy arrays. Values that the file refers to twice are the same Python object, so tables
    and objects may contain themselves: who walks them must expect that.

    Raises OSError where the file cannot be read, and ValueError naming the file and the byte
    where it is not such a file, is cut off, or holds a class or a function not listed here.
    """
    size = path.stat().st_size
    if size > MAX_TORCH7_BYTES:
        raise ValueError(f"{path}: {size} bytes is too large for a network (at most 1 GiB)")
    reader = _Reader(path, path.read_bytes())
    value = reader.value(depth=0)
    if reader.position != len(reader.data):
        raise reader.error("data after the end of the value", reader.position)
    return value


class _Reader:
    """Position in the file and the values read so far, by index."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0
        self.known: dict[int, Any] = {}

    def error(self, problem: str, offset: int) -> ValueError:
        return ValueError(f"{self.path}: not a readable Torch7 file: {problem} at byte {offset}")

    def take(self, count: int, size: int) -> int:
        """Step over `count` elements of `size` bytes; returns where they begin."""
        start, left = self.position, len(self.data) - self.position
        if not 0 <= count <= left // size:
            raise self.error(f"{count} x {size} bytes announced, {left} left", start)
        self.position = start + count * size
        return start

    def int32(self) -> int:
        return struct.unpack_from("<i", self.data, self.take(1, 4))[0]

    def int64s(self, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}q", self.data, self.take(count, 8))

    def number(self) -> int | float:
        value: float = struct.unpack_from("<d", self.data, self.take(1, 8))[0]
        return int(value) if value.is_integer() and abs(value) < 2**53 else value

    def string(self) -> str:
        length = self.int32()
        start = self.take(length, 1)
        return self.data[start : start + length].decode("latin-1")

    def value(self, depth: int) -> Any:
        """Read one value of any kind."""
        start = self.position
        if depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} nested values", start)
        tag = self.int32()
        if tag == NIL:
            return None
        if tag == NUMBER:
            return self.number()
        if tag == STRING:
            return self.string()
        if tag == BOOLEAN:
            return self.int32() == 1
        if tag in FUNCTIONS:
            raise self.error("a Lua function, which is never run or read,", start)
        if tag not in (TABLE, TORCH):
            raise self.error(f"unknown type tag {tag}", start)
        index = self.int32()
        if index in self.known:
            return self.known[index]
        return self.table(index, depth) if tag == TABLE else self.instance(index, depth)

    def table(self, index: int, depth: int) -> dict[Any, Any]:
        start = self.position
        count = self.int32()
        left = len(self.data) - self.position
        if not 0 <= count <= left // 12:  # a key takes at least 8 bytes, a value 4
            raise self.error(f"table of {count} entries announced, {left} bytes left", start)
        table: dict[Any, Any] = {}
        self.known[index] = table  # before its entries: they may refer to it
        for _ in range(count):
            key_start = self.position
            key = self.value(depth + 1)
            if not isinstance(key, (str, int, float, bool)):
                raise self.error("table key that is no string, number or boolean", key_start)
            table[key] = self.value(depth + 1)
        return table

    def instance(self, index: int, depth: int) -> Any:
        start = self.position
        name = self.string()
        if name.startswith("V "):  # a version, absent in very old files
            name = self.string()
        if name in STORAGES:
            array = self.storage(np.dtype(STORAGES[name]))
            self.known[index] = array
            return array
        if name in TENSORS:
            self.known[index] = None  # a storage that refers to its own tensor is refused below
            array = self.tensor(np.dtype(TENSORS[name]), depth)
            self.known[index] = array
            return array
        if name in LAYER_CLASSES:
            module = Torch7Object(name)
            self.known[index] = module  # before its fields: they may refer to it
            fields = self.value(depth + 1)
            if not isinstance(fields, dict):
                raise self.error(f"{name} without a table of fields", start)
            module.fields = fields
            return module
        raise self.error(f"unknown class {name[:60]!a}", start)

    def storage(self, dtype: np.dtype[Any]) -> np.ndarray:
        (count,) = self.int64s(1)
        start = self.take(count, dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, start)

    def tensor(self, dtype: np.dtype[Any], depth: int) -> np.ndarray:
        start = self.position
        dimensions = self.int32()
        if not 0 <= dimensions <= MAX_DIMENSIONS:
            raise self.error(f"tensor of {dimensions} dimensions", start)
        shape, strides = self.int64s(dimensions), self.int64s(dimensions)
        offset = self.int64s(1)[0] - 1  # Lua counts from 1
        storage = self.value(depth + 1)
        if storage is None or not shape:
            return np.empty(0, dtype)
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or storage.dtype != dtype:
            raise self.error(f"tensor of {dtype} without a storage of that type", start)
        return self.view(storage, offset, shape, strides, start)

    def view(
        self,
        storage: np.ndarray,
        offset: int,
        shape: tuple[int, ...],
        strides: tuple[int, ...],
        start: int,
    ) -> np.ndarray:
        """The window of `storage` that a tensor describes, if it lies inside it."""
        elements = 1
        for size in shape:
            elements *= size
        if min(shape) < 1 or min(strides) < 0 or offset < 0:
            raise self.error(f"tensor of shape {shape}, strides {strides}", start)
        last = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True))
        if last >= storage.size or elements > storage.size:
            raise self.error(
                f"tensor of shape {shape} larger than its storage of {storage.size} elements", start
            )
        return np.lib.stride_tricks.as_strided(
            storage[offset:], shape, [step * storage.itemsize for step in strides], writeable=False
        )


# ---- ENet in such a file -------------------------------------------------------------------------
#
# From the modules of a Torch7 file to the state dict of `ENet`, by position.
#
# Both networks are walked in the order in which data flows. Every layer of the file must be the
# layer that ENet has at this place, in kind, sizes and settings, so that nothing can be loaded into
# the wrong place and nothing is left over.

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
