"""The Caffe reader: files that Google's protobuf wrote, odd wire formats, and hostile files."""

import random
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lovasz_repro.models.caffemodel import CaffeLayer, read_caffemodel
from tests.foreign_deeplab import (
    blob,
    caffe_layers,
    caffemodel,
    field,
    layer,
    random_deeplab,
    varint,
)

FLOATS = np.arange(6, dtype=np.float32).reshape(2, 3)


def read(folder: Path, content: bytes) -> list[CaffeLayer]:
    path = folder / "net.caffemodel"
    path.write_bytes(content)
    return read_caffemodel(path)


def only(folder: Path, content: bytes) -> np.ndarray:
    """The single blob of the single layer, given as the bytes of a BlobProto."""
    (found,) = read(folder, layer("a", "Convolution", [content]))
    (array,) = found.blobs
    return array


@pytest.fixture(scope="module")
def caffe_pb2() -> Any:
    """The messages of caffe.proto (the fields that matter), made by Google's protobuf."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe")
    kinds = {"int32": 5, "int64": 3, "float": 2, "double": 1, "string": 9}
    messages = {
        "BlobShape": ["*int64 dim 1"],
        "BlobProto": [
            "BlobShape shape 7", "*float data 5", "*float diff 6", "*double double_data 8",
            "int32 num 1", "int32 channels 2", "int32 height 3", "int32 width 4",
        ],
        "LayerParameter": [
            "string name 1", "string type 2", "*string bottom 3", "*BlobProto blobs 7",
        ],
        "V1LayerParameter": ["string name 4", "int32 type 5", "*BlobProto blobs 6"],
        "NetParameter": [
            "string name 1", "*V1LayerParameter layers 2", "*LayerParameter layer 100",
        ],
    }  # fmt: skip
    for name, entries in messages.items():
        message = file.message_type.add(name=name)
        for entry in entries:
            kind, key, number = entry.removeprefix("*").split()
            added = message.field.add(name=key, number=int(number))
            added.label = 3 if entry.startswith("*") else 1
            if kind in kinds:
                added.type = kinds[kind]
                added.options.packed = entry.startswith("*") and kind != "string"
            else:
                added.type, added.type_name = 11, f".caffe.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))


def test_what_protobuf_writes_is_read(tmp_path: Path, caffe_pb2) -> None:
    layers = caffe_layers(random_deeplab(width=1))
    net = caffe_pb2(name="ResNet")
    for name, kind, blobs in layers:
        entry = net.layer.add(name=name, type=kind, bottom=["data", "more"])
        for array in blobs:
            written = entry.blobs.add(data=array.ravel().tolist())
            written.shape.dim.extend(array.shape)
            written.diff.extend([7.0] * array.size)
    content = net.SerializeToString()
    for found, (name, kind, blobs) in zip(read(tmp_path, content), layers, strict=True):
        assert (found.name, found.type) == (name, kind)
        assert [b.shape for b in found.blobs] == [b.shape for b in blobs]
        assert all(np.array_equal(*pair) for pair in zip(found.blobs, blobs, strict=True))
    assert net.FromString(caffemodel(layers)).layer[1].blobs[0].data[:] == blobs_of(layers[0])


def blobs_of(layer: Any) -> list[float]:
    """The numbers of a layer's first blob."""
    return layer[2][0].ravel().tolist()


def test_layers_before_2015(tmp_path: Path, caffe_pb2) -> None:
    net = caffe_pb2()
    for kind in (4, 14, 39):
        entry = net.layers.add(name=f"layer {kind}", type=kind)
        entry.blobs.add(data=range(6), num=1, channels=1, height=2, width=3)
    found = read(tmp_path, net.SerializeToString())
    assert [(f.name, f.type) for f in found] == [
        ("layer 4", "Convolution"),
        ("layer 14", "InnerProduct"),
        ("layer 39", "39"),
    ]
    assert np.array_equal(found[0].blobs[0], FLOATS.reshape(1, 1, 2, 3))


SHAPE = field(7, field(1, varint(2) + varint(3)))
ONE_BY_ONE = b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in range(6))
DOUBLES = field(8, FLOATS.astype("<f8").tobytes())


@pytest.mark.parametrize(
    "content",
    [
        field(5, FLOATS.tobytes()) + SHAPE,
        SHAPE + field(5, FLOATS.tobytes()),
        SHAPE + field(5, FLOATS[0].tobytes()) + field(5, FLOATS[1].tobytes()),
        SHAPE + ONE_BY_ONE,
        field(5, FLOATS.tobytes()) + field(7, field(1, 2) + field(1, 3)),
        SHAPE + DOUBLES,
        SHAPE + field(5, b"") + DOUBLES + field(6, FLOATS.tobytes()),
        field(1, 9) + SHAPE + field(5, FLOATS.tobytes()),
    ],
    ids=[
        "usual",
        "shape first",
        "two parts",
        "unpacked",
        "unpacked shape",
        "doubles",
        "both",
        "old",
    ],
)
def test_ways_to_write_a_blob(tmp_path: Path, content: bytes) -> None:
    assert np.array_equal(only(tmp_path, content), FLOATS)


def test_fields_of_every_type_are_stepped_over(tmp_path: Path) -> None:
    unknown = field(999, 5) + field(998, b"bytes") + varint(997 << 3 | 5) + bytes(4)
    unknown += varint(996 << 3 | 1) + bytes(8) + field(2**28, 2**64 - 1)
    content = unknown + layer("a", "Scale", [unknown + blob(FLOATS) + unknown]) + unknown
    assert np.array_equal(read(tmp_path, content)[0].blobs[0], FLOATS)


ENDLESS = b"\xff" * 40
LIE = varint(2**60)  # as a length
MINUS_2_3 = varint(2**64 - 2) + varint(2**64 - 3)
HOSTILE = {
    "empty": (b"", "no layer with weights"),
    "web page": (b"<!DOCTYPE html><html>", "at byte"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\n", "at byte"),
    "length lies": (varint(100 << 3 | 2) + LIE + b"abc", f"{2**60} bytes announced, 3 left"),
    "inner length lies": (field(100, varint(7 << 3 | 2) + LIE), f"{2**60} bytes announced"),
    "longer than its layer": (
        field(100, varint(7 << 3 | 2) + varint(6)) + bytes(100), "6 bytes announced, 0 left",
    ),
    "varint without end": (ENDLESS, "more than 64 bits"),
    "length without end": (varint(100 << 3 | 2) + ENDLESS, "more than 64 bits"),
    "varint cut off": (varint(100 << 3 | 2) + b"\xff\xff", "cut off"),
    "dim without end": (layer("a", "Scale", [field(7, field(1, ENDLESS))]), "more than 64 bits"),
    "group": (varint(3 << 3 | 3), "wire type 3"),
    "field 0": (field(0, 1), "field number 0"),
    "no numbers": (layer("a", "Scale", [SHAPE + field(5, bytes(23))]), "23 bytes that are no"),
    "number as varint": (layer("a", "Scale", [SHAPE + field(5, 7)]), "that are no numbers of 4"),
    "no shape": (layer("a", "Scale", [field(5, bytes(24))]), "6 values and shape (0, 0, 0, 0)"),
    "no data": (layer("a", "Scale", [SHAPE]), "0 values and shape (2, 3)"),
    "huge": (
        layer("a", "Scale", [field(7, field(1, varint(2**62) * 2)) + field(5, bytes(24))]),
        "6 values and shape (4611686018427387904, 4611686018427387904)",
    ),
    "huge by empty": (
        layer("a", "Scale", [field(7, field(1, varint(2**62) + varint(0))) + field(5, b"")]),
        "0 values and shape (4611686018427387904, 0)",
    ),
    "negative": (
        layer("a", "Scale", [field(7, field(1, MINUS_2_3)) + field(5, bytes(24))]),
        "a blob of 6 values",
    ),
    "dimensions": (
        layer("a", "Scale", [field(7, field(1, varint(1) * 33)) + field(5, bytes(4))]),
        "a blob of 1 values and shape (1, 1, 1, 1)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "problem"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match="Caffe model") as caught:
        read(tmp_path, content)
    assert problem in str(caught.value)
    assert str(caught.value).isprintable()


def test_layers_within_layers_are_not_followed(tmp_path: Path) -> None:
    inner = layer("deep", "Scale", [blob(FLOATS)])
    for _ in range(2000):
        inner = field(100, inner)
    with pytest.raises(ValueError, match="no layer with weights"):
        read(tmp_path, inner)


def small_file() -> bytes:
    """Two layers of a few hundred bytes, everything close to everything."""
    return caffemodel([("conv1", "Convolution", [FLOATS]), ("bn_conv1", "BatchNorm", [FLOATS] * 3)])


def test_truncated_anywhere(tmp_path: Path) -> None:
    """What is left of a truncated file is no wrong weights: it has fewer layers, or is refused."""
    content = small_file()
    for end in range(len(content)):
        try:
            layers = read(tmp_path, content[:end])
        except ValueError as error:
            assert "Caffe model" in str(error)  # noqa: PT017
        else:
            assert all(np.array_equal(array, FLOATS) for each in layers for array in each.blobs)


def test_flipped_bytes_take_bounded_memory(tmp_path: Path) -> None:
    content, source = small_file(), random.Random(0)
    tracemalloc.start()
    try:
        for _ in range(200):
            damaged = bytearray(content)
            for _ in range(source.choice((1, 1, 2, 5))):
                damaged[source.randrange(len(damaged))] = source.randrange(256)
            try:
                read(tmp_path, bytes(damaged))
            except ValueError as error:
                assert str(error).isprintable()  # noqa: PT017
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_file_too_large_for_a_network_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "net.caffemodel"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)  # sparse: takes no space
    with pytest.raises(ValueError, match="2147483649 bytes is too large"):
        read_caffemodel(path)
