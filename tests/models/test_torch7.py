"""The Torch7 reader: right values from files that an independent writer made, and hostile files."""

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lovasz_repro.models.torch7 import Torch7Object, read_torch7

INT, LONG = "<i", "<q"


def read(folder: Path, content: bytes) -> Any:
    path = folder / "value.t7"
    path.write_bytes(content)
    return read_torch7(path)


def text(value: str) -> bytes:
    return struct.pack(INT, len(value)) + value.encode()


def instance(name: str, *content: bytes, index: int = 1) -> bytes:
    return struct.pack("<ii", 4, index) + text("V 1") + text(name) + b"".join(content)


def storage(count: int, payload: bytes, name: str = "torch.FloatStorage") -> bytes:
    return instance(name, struct.pack(LONG, count), payload, index=2)


def tensor(shape: list[int], strides: list[int], offset: int, content: bytes) -> bytes:
    longs = [*shape, *strides, offset]
    header = struct.pack(f"<i{len(longs)}q", len(shape), *longs)
    return instance("torch.FloatTensor", header, content)


FLOATS = struct.pack("<6f", 0, 1, 2, 3, 4, 5)

lua_values = st.recursive(
    st.booleans()
    | st.integers(-(2**52), 2**52)
    | st.floats(allow_nan=False)
    | st.text(st.characters(max_codepoint=255), max_size=8),
    lambda inner: st.dictionaries(
        st.text("abc", max_size=3) | st.integers(1, 5), inner, max_size=4
    ),
    max_leaves=12,
)


@given(value=lua_values)
def test_plain_values_come_back(tmp_path_factory, torch7, value) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert read(folder, torch7(value)) == value


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_tensors_come_back(tmp_path: Path, torch7, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    value = read(tmp_path, torch7(array))
    assert value.dtype == array.dtype
    assert np.array_equal(value, array)
    assert not value.flags.writeable
    assert read(tmp_path, torch7(np.zeros(0, dtype))).size == 0


def test_view_with_offset_and_strides(tmp_path: Path) -> None:
    value = read(tmp_path, tensor([2, 2], [1, 2], 2, storage(6, FLOATS)))
    assert value.tolist() == [[1, 3], [2, 4]]


def test_objects_and_shared_references(tmp_path: Path, torch7, torch7_module) -> None:
    shared = np.ones(3, np.float32)
    pool = torch7_module("nn.SpatialMaxPooling", {"kW": 2, "indices": shared})
    unpool = torch7_module("nn.SpatialMaxUnpooling", {"pooling": pool, "indices": shared})
    value = read(tmp_path, torch7([pool, unpool]))
    assert value[1].class_name == "nn.SpatialMaxPooling"
    assert value[1].fields["kW"] == 2
    assert value[2].fields["pooling"] is value[1]
    assert value[2].fields["indices"] is value[1].fields["indices"]


def test_value_that_contains_itself(tmp_path: Path, torch7, torch7_module) -> None:
    module = torch7_module("nn.Identity")
    module.fields["self"] = module
    value = read(tmp_path, torch7(module))
    assert value.fields["self"] is value


HOSTILE = {
    "empty": (b"", "4 bytes announced, 0 left at byte 0"),
    "web page": (b"<!DOCTYPE html><html>", "unknown type tag"),
    "trailing": (struct.pack("<iii", 5, 1, 0), "data after the end of the value at byte 8"),
    "long string": (struct.pack("<ii", 2, 2**31 - 1), "2147483647 x 1 bytes announced, 0 left"),
    "negative string": (struct.pack("<ii", 2, -1), "-1 x 1 bytes announced"),
    "long table": (struct.pack("<iii", 3, 1, 2**31 - 1), "table of 2147483647 entries"),
    "negative table": (struct.pack("<iii", 3, 1, -1), "table of -1 entries"),
    "nil key": (struct.pack("<iii", 3, 1, 1) + bytes(12), "table key"),
    "function": (struct.pack("<iii", 6, 1, 0), "a Lua function"),
    "old function": (struct.pack("<iii", 8, 1, 0), "a Lua function"),
    "unknown class": (instance("os.execute", bytes(4)), "unknown class 'os.execute' at byte 8"),
    "no fields": (instance("nn.Identity", bytes(4)), "nn.Identity without a table"),
    "huge storage": (storage(2**60, b""), "1152921504606846976 x 4 bytes announced, 0 left"),
    "negative storage": (storage(-1, FLOATS), "-1 x 4 bytes announced"),
    "dimensions": (instance("torch.FloatTensor", struct.pack(INT, 2**30)), "1073741824 dimensions"),
    "too large": (tensor([7], [1], 1, storage(6, FLOATS)), "larger than its storage of 6"),
    "offset": (tensor([6], [1], 2, storage(6, FLOATS)), "larger than its storage of 6"),
    "negative offset": (tensor([2], [1], 0, storage(6, FLOATS)), "shape (2,)"),
    "negative stride": (tensor([2], [-1], 6, storage(6, FLOATS)), "strides (-1,)"),
    "stride outside": (tensor([2, 2], [1, 5], 1, storage(6, FLOATS)), "larger than its storage"),
    "negative size": (tensor([-2, -3], [1, 1], 1, storage(6, FLOATS)), "shape (-2, -3)"),
    "expanded": (tensor([2**40], [0], 1, storage(6, FLOATS)), "larger than its storage"),
    "no storage": (tensor([2], [1], 1, struct.pack("<id", 1, 3.0)), "without a storage"),
    "other storage": (
        tensor([1], [1], 1, storage(1, bytes(8), "torch.DoubleStorage")),
        "without a storage of that type",
    ),
    "own tensor as storage": (tensor([1], [1], 1, struct.pack("<ii", 4, 1)), None),
}


@pytest.mark.parametrize(("content", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_named(tmp_path: Path, content: bytes, problem: str | None) -> None:
    if problem is None:  # harmless: the tensor is empty
        assert read(tmp_path, content).size == 0
        return
    with pytest.raises(ValueError, match=r"not a readable Torch7 file: .* at byte \d+$") as caught:
        read(tmp_path, content)
    assert problem in str(caught.value)
    assert str(tmp_path / "value.t7") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_nesting_is_refused(tmp_path: Path) -> None:
    key = struct.pack("<id", 1, 1.0)
    content = b"".join(struct.pack("<iii", 3, index, 1) + key for index in range(10_000))
    with pytest.raises(ValueError, match="more than 100 nested values"):
        read(tmp_path, content)


def test_class_name_cannot_write_control_characters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown class") as caught:
        read(tmp_path, instance("\x1b[2J\n" + "x" * 500))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(tmp_path)) + 200


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.t7"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse: takes no space
    with pytest.raises(ValueError, match="too large"):
        read_torch7(path)


@pytest.fixture(scope="module")
def sample(torch7, torch7_module) -> bytes:
    """A small file with one of everything."""
    convolution = torch7_module(
        "cudnn.SpatialConvolution",
        {"kW": 3, "weight": np.ones((2, 3), np.float32), "bias": np.zeros(2, np.float64)},
    )
    pool = torch7_module("nn.SpatialMaxPooling", {"indices": np.zeros(0, np.int64)})
    fields = {"modules": [convolution, pool, convolution], "train": False, "name": "net"}
    return torch7(torch7_module("nn.Sequential", fields))


def test_every_truncation_is_a_value_error(tmp_path: Path, sample: bytes) -> None:
    for length in range(len(sample)):
        with pytest.raises(ValueError, match="Torch7"):
            read(tmp_path, sample[:length])


@settings(max_examples=120)
@given(data=st.data())
def test_damaged_bytes_never_do_worse_than_a_value_error(
    tmp_path_factory, sample: bytes, data
) -> None:
    content = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(sample) - 1))
        content[position] = data.draw(st.sampled_from([0, 1, 2, 3, 4, 127, 128, 255]))
    tracemalloc.start()
    try:
        read(tmp_path_factory.getbasetemp(), bytes(content))
    except ValueError as error:
        assert "Torch7" in str(error)  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 50 * len(sample) + 100_000


@settings(max_examples=60)
@given(content=st.binary(max_size=200))
def test_random_bytes(tmp_path_factory, content: bytes) -> None:
    try:
        read(tmp_path_factory.getbasetemp(), content)
    except ValueError as error:
        assert "Torch7" in str(error)  # noqa: PT017


def test_released_file(enet_weights: Path) -> None:
    root = read_torch7(enet_weights)
    assert isinstance(root, Torch7Object)
    assert root.class_name == "nn.Sequential"
    assert root.fields["modules"][32].fields["weight"].shape == (16, 20, 2, 2)


def test_truncations_of_the_released_file(tmp_path: Path, enet_weights: Path) -> None:
    content = enet_weights.read_bytes()
    for length in np.linspace(1, len(content) - 1, 25).astype(int):
        with pytest.raises(ValueError, match="Torch7"):
            read(tmp_path, content[:length])
