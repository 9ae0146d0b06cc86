"""Reader of Torch7's binary serialisation that trusts nothing in the file.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

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
