"""A writer of Torch7 files, made from the format's description and not from our reader.

With it tests make small files, hostile files, and whole ENets with random weights that OpenCV
can run, so that much is tested without the authors' file.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TENSOR_NAMES = {"float32": "Float", "float64": "Double", "int64": "Long", "uint8": "Byte"}


@dataclass(eq=False)
class Module:
    """A Torch7 object: class name and fields."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


class Writer:
    """Bytes of one value, and which of them are payload of storages (`payload`)."""

    def __init__(self) -> None:
        self.out = bytearray()
        self.indices: dict[int, int] = {}
        self.payload: list[range] = []

    def int32(self, *values: int) -> None:
        self.out += struct.pack(f"<{len(values)}i", *values)

    def string(self, text: str) -> None:
        self.int32(len(text))
        self.out += text.encode("latin-1")

    def refer(self, tag: int, value: Any) -> bool:
        """Tag and index; whether the content must follow."""
        new = id(value) not in self.indices
        self.int32(tag, self.indices.setdefault(id(value), len(self.indices) + 1))
        return new

    def value(self, value: Any) -> None:
        if value is None:
            self.int32(0)
        elif isinstance(value, bool):
            self.int32(5, value)
        elif isinstance(value, int | float):
            self.int32(1)
            self.out += struct.pack("<d", value)
        elif isinstance(value, str):
            self.int32(2)
            self.string(value)
        elif isinstance(value, list | dict):
            self.table(value)
        elif isinstance(value, Module):
            if self.refer(4, value):
                self.string("V 1")
                self.string(value.name)
                self.value(value.fields)
        else:
            self.tensor(value)

    def table(self, value: list[Any] | dict[Any, Any]) -> None:
        if self.refer(3, value):
            entries = value if isinstance(value, dict) else dict(enumerate(value, start=1))
            self.int32(len(entries))
            for key, entry in entries.items():
                self.value(key)
                self.value(entry)

    def tensor(self, array: np.ndarray) -> None:
        if not self.refer(4, array):
            return
        kind = TENSOR_NAMES[array.dtype.name]
        self.string("V 1")
        self.string(f"torch.{kind}Tensor")
        dims = array.ndim if array.size else 0
        strides = [step // array.itemsize for step in array.strides]
        self.int32(dims)
        self.out += struct.pack(f"<{2 * dims + 1}q", *[*array.shape, *strides][: 2 * dims], 1)
        if not array.size:
            self.int32(0)
            return
        self.int32(4, 10**6 + len(self.indices))
        self.string("V 1")
        self.string(f"torch.{kind}Storage")
        self.out += struct.pack("<q", array.size)
        self.payload.append(range(len(self.out), len(self.out) + array.nbytes))
        self.out += array.tobytes()


def torch7_bytes(value: Any) -> bytes:
    writer = Writer()
    writer.value(value)
    return bytes(writer.out)


class ENetFile:
    """An ENet as Torch7 modules, from the table of the architecture, with random weights."""

    def __init__(self, seed: int, classes: int, decoder: str = "PReLU") -> None:
        self.random = np.random.default_rng(seed)
        self.decoder = decoder
        pools = [self.pool() for _ in range(3)]
        initial = Module("nn.ConcatTable", self.children(self.conv(3, 13, 3, 2, 1), pools[0]))
        blocks = [self.down(16, 64, 0.01, pools[1])]
        blocks += [self.regular(64, p=0.01) for _ in range(4)]
        blocks += [self.down(64, 128, 0.1, pools[2])]
        for _ in range(2):
            for dilation in (1, 2, 0, 4, 1, 8, 0, 16):  # 0: asymmetric
                blocks.append(self.regular(128, dilation, p=0.1))
        blocks += [self.up(128, 64, pools[2]), *(self.regular(64, act=decoder) for _ in range(2))]
        blocks += [self.up(64, 16, pools[1]), self.regular(16, act=decoder)]
        head = [initial, Module("nn.JoinTable", {"dimension": 2}), self.norm(16)]
        last = self.full(16, classes, 2, 0, 0)
        self.root = self.sequence(*head, self.act("PReLU", 16), *blocks, last)

    def normal(self, *shape: int) -> np.ndarray:
        scale = 1 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.3
        return (self.random.standard_normal(shape) * scale).astype(np.float32)

    def children(self, *modules: Module) -> dict[str, Any]:
        return {"modules": list(modules), "train": False}

    def sequence(self, *modules: Module) -> Module:
        return Module("nn.Sequential", self.children(*modules))

    def conv(
        self, into: int, out: int, k: Any, s: int = 1, pad: Any = 0, bias: bool = True, d: int = 1
    ) -> Module:
        (kh, kw), (ph, pw) = (v if isinstance(v, tuple) else (v, v) for v in (k, pad))
        fields = {"nInputPlane": into, "nOutputPlane": out, "kH": kh, "kW": kw, "dH": s, "dW": s}
        fields |= {"padH": ph, "padW": pw, "weight": self.normal(out, into, kh, kw)}
        if bias:
            fields["bias"] = self.normal(out)
        if d > 1:
            return Module("nn.SpatialDilatedConvolution", fields | {"dilationH": d, "dilationW": d})
        return Module("nn.SpatialConvolution", fields | {"groups": 1})

    def full(self, into: int, out: int, k: int, pad: int, adj: int) -> Module:
        fields = {"nInputPlane": into, "nOutputPlane": out, "kH": k, "kW": k, "dH": 2, "dW": 2}
        fields |= {"padH": pad, "padW": pad, "adjH": adj, "adjW": adj}
        weight = self.normal(into, out, k, k)
        return Module(
            "nn.SpatialFullConvolution", fields | {"weight": weight, "bias": self.normal(out)}
        )

    def norm(self, channels: int) -> Module:
        fields = {"eps": 1e-3, "momentum": 0.1, "affine": True, "bias": self.normal(channels)}
        fields |= {"weight": 1 + self.normal(channels), "running_mean": self.normal(channels)}
        variance = self.random.uniform(0.5, 2, channels).astype(np.float32)
        return Module("nn.SpatialBatchNormalization", fields | {"running_var": variance})

    def act(self, kind: str, channels: int) -> Module:
        if kind == "ReLU":
            return Module("nn.ReLU", {"inplace": True, "threshold": 0, "val": 0})
        return Module("nn.PReLU", {"nOutputPlane": channels, "weight": self.normal(channels)})

    def pool(self) -> Module:
        fields = {"kH": 2, "kW": 2, "dH": 2, "dW": 2, "padH": 0, "padW": 0, "ceil_mode": False}
        return Module("nn.SpatialMaxPooling", fields | {"indices": np.zeros(0, np.float32)})

    def block(self, main: list[Module], skip: list[Module], act: str, out: int, p: float) -> Module:
        if p:
            main.append(Module("nn.SpatialDropout", {"p": p, "train": False}))
        skip.insert(0, Module("nn.Identity"))
        branches = self.children(self.sequence(*main), self.sequence(*skip))
        both = Module("nn.ConcatTable", branches)
        return self.sequence(both, Module("nn.CAddTable"), self.act(act, out))

    def main(self, first: Module, middle: list[Module], out: int, act: str) -> list[Module]:
        width = out // 4
        last = self.conv(width, out, 1, bias=False)
        before = [first, self.norm(width), self.act(act, width)]
        return [*before, *middle, self.norm(width), self.act(act, width), last, self.norm(out)]

    def regular(self, channels: int, dilation: int = 1, p: float = 0, act: str = "PReLU") -> Module:
        width = channels // 4
        middle = [self.conv(width, width, 3, 1, dilation, d=dilation)]
        if dilation == 0:
            middle = [self.conv(width, width, (1, 5), 1, (0, 2), bias=False)]
            middle += [self.conv(width, width, (5, 1), 1, (2, 0))]
        first = self.conv(channels, width, 1, bias=False)
        return self.block(self.main(first, middle, channels, act), [], act, channels, p)

    def down(self, into: int, out: int, p: float, pool: Module) -> Module:
        width = out // 4
        middle = [self.conv(width, width, 3, 1, 1)]
        main = self.main(self.conv(into, width, 2, 2, bias=False), middle, out, "PReLU")
        fields = {"dim": 1, "pad": out - into, "nInputDim": 3, "index": 1, "value": 0}
        return self.block(main, [pool, Module("nn.Padding", fields)], "PReLU", out, p)

    def up(self, into: int, out: int, pool: Module) -> Module:
        width = out // 4
        first, middle = self.conv(into, width, 1, bias=False), [self.full(width, width, 3, 1, 1)]
        indices = {"pooling": pool, "indices": pool.fields["indices"]}
        skip = [self.conv(into, out, 1, bias=False), self.norm(out)]
        skip.append(Module("nn.SpatialMaxUnpooling", indices))
        return self.block(self.main(first, middle, out, self.decoder), skip, self.decoder, out, 0)


@pytest.fixture(scope="session")
def torch7() -> Callable[[Any], bytes]:
    """Turns Python values (`torch7_module` makes objects) into the bytes of a Torch7 file."""
    return torch7_bytes


@pytest.fixture(scope="session")
def torch7_module() -> type[Module]:
    """A Torch7 object of any class name, its fields a dict."""
    return Module


@pytest.fixture(scope="session")
def enet_file() -> type[ENetFile]:
    """`enet_file(seed, classes, decoder).root`: an ENet as Torch7 modules."""
    return ENetFile


@pytest.fixture(scope="session")
def random_enet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Torch7 file of an ENet with random weights and 7 outputs."""
    path = tmp_path_factory.mktemp("enet") / "random.net"
    path.write_bytes(torch7_bytes(ENetFile(0, 7).root))
    return path
