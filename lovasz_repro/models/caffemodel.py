"""Reader of Caffe's weight files (.caffemodel) that needs neither Caffe nor protobuf.

A file is one protobuf message, NetParameter of Caffe's caffe.proto. Only the fields below are
read and everything else is stepped over, so newer and older files are read alike. Weights are
untrusted input: every length is compared with what is left before anything is allocated, the
depth is fixed (net, layer, blob, shape), and whatever is wrong ends in a ValueError that names
the byte.

    NetParameter      layers = 2 (V1LayerParameter, before 2015), layer = 100 (LayerParameter)
    LayerParameter    name = 1, type = 2, blobs = 7
    V1LayerParameter  name = 4, type = 5 (an enum), blobs = 6
    BlobProto         shape = 7, data = 5, double_data = 8; before 2014 num, channels, height,
                      width = 1 to 4 in place of the shape
    BlobShape         dim = 1
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MAX_CAFFE_BYTES = 2**31  # the largest released DeepLab has less than a third of it
MAX_BLOB_DIMENSIONS = 32  # Caffe's kMaxBlobAxes
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # protobuf wire types; groups are not used
V1_TYPES = {4: "Convolution", 14: "InnerProduct"}  # of V1LayerParameter.LayerType, with weights


@dataclass(frozen=True)
class CaffeLayer:
    """A layer with its learned blobs: float32 or float64 arrays, read-only."""

    name: str
    type: str
    blobs: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Message:
    """A protobuf message: bytes `start` to `end` of `data`."""

    data: bytes
    start: int
    end: int

    def text(self) -> str:
        """The bytes as UTF-8, what is none replaced."""
        return self.data[self.start : self.end].decode("utf-8", "replace")


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, wire type, and content.

    `value` is the number of a VARINT; `message` spans the content of every other type.
    """

    number: int
    wire_type: int
    value: int
    message: Message


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """The layers that have blobs, in the file's order.

    Raises OSError where the file cannot be read and ValueError where it is no Caffe model.
    """
    size = path.stat().st_size
    if size > MAX_CAFFE_BYTES:
        raise ValueError(f"{size} bytes is too large for a network (at most 2 GiB)")
    data = path.read_bytes()
    layers = []
    for part in fields(Message(data, 0, len(data))):
        if part.number in (2, 100) and part.wire_type == BYTES:
            layer = read_layer(part.message, v1=part.number == 2)
            if layer.blobs:
                layers.append(layer)
    if not layers:
        raise ValueError("not a Caffe model: no layer with weights")
    return layers


def fields(message: Message) -> Iterator[Field]:
    """The fields of a message in the file's order."""
    data, position, end = message.data, message.start, message.end
    while position < end:
        start = position
        key, position = varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        value = length = 0
        if wire_type == VARINT:
            value, position = varint(data, position, end)
        elif wire_type == BYTES:
            length, position = varint(data, position, end)
        elif wire_type in (FIXED32, FIXED64):
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise damaged(f"wire type {wire_type}", start)
        if not number:
            raise damaged("field number 0", start)
        if length > end - position:
            raise damaged(f"{length} bytes announced, {end - position} left,", start)
        yield Field(number, wire_type, value, Message(data, position, position + length))
        position += length


def varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The number at `position`, seven bits a byte, lowest first; and where it ends."""
    value = 0
    for index in range(10):  # of 64 bits
        if position + index >= end:
            raise damaged("a number that is cut off", position)
        byte = data[position + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, position + index + 1
    raise damaged("a number of more than 64 bits", position)


def damaged(problem: str, position: int) -> ValueError:
    """The error of every malformed file."""
    return ValueError(f"not a readable Caffe model: {problem} at byte {position}")


def read_layer(message: Message, v1: bool) -> CaffeLayer:
    """A LayerParameter, or a V1LayerParameter."""
    name_field, type_field, blobs_field = (4, 5, 6) if v1 else (1, 2, 7)
    name = kind = ""
    blobs = []
    for part in fields(message):
        if part.number == name_field and part.wire_type == BYTES:
            name = part.message.text()
        elif part.number == type_field:
            kind = V1_TYPES.get(part.value, str(part.value)) if v1 else part.message.text()
        elif part.number == blobs_field and part.wire_type == BYTES:
            blobs.append(read_blob(part.message))
    return CaffeLayer(name, kind, tuple(blobs))


def read_blob(message: Message) -> np.ndarray:
    """A BlobProto as an array of its shape; raises ValueError where data and shape disagree."""
    shape: list[int] | None = None
    legacy: dict[int, int] = {}  # num, channels, height, width by their field
    floats: list[np.ndarray] = []
    doubles: list[np.ndarray] = []
    for part in fields(message):
        if part.number == 7 and part.wire_type == BYTES:
            shape = read_shape(part.message)
        elif part.number == 5:
            floats.append(numbers(part, FIXED32, "<f4"))
        elif part.number == 8:
            doubles.append(numbers(part, FIXED64, "<f8"))
        elif part.number in (1, 2, 3, 4) and part.wire_type == VARINT:
            legacy[part.number] = part.value
    if shape is None:
        shape = [legacy.get(field, 0) for field in (1, 2, 3, 4)]
    chunks = doubles or floats  # Caffe too prefers doubles
    values = chunks[0] if len(chunks) == 1 else np.concatenate(chunks or [np.empty(0, "<f4")])
    if not values.size or len(shape) > MAX_BLOB_DIMENSIONS or math.prod(shape) != values.size:
        dimensions = str(tuple(shape[:4]))[:80]
        raise damaged(f"a blob of {values.size} values and shape {dimensions}", message.start)
    return values.reshape(shape)


def read_shape(message: Message) -> list[int]:
    """The dimensions of a BlobShape, packed or one by one."""
    shape: list[int] = []
    for part in fields(message):
        if part.number == 1 and part.wire_type == VARINT:
            shape.append(part.value)
        elif part.number == 1 and part.wire_type == BYTES:
            position, end = part.message.start, part.message.end
            while position < end:
                value, position = varint(part.message.data, position, end)
                shape.append(value)
    return shape


def numbers(part: Field, one: int, dtype: str) -> np.ndarray:
    """Floating-point numbers, packed, or a single one of wire type `one`; a view of the file."""
    message, size = part.message, np.dtype(dtype).itemsize
    length = message.end - message.start
    if part.wire_type not in (one, BYTES) or length % size:
        raise damaged(f"{length} bytes that are no numbers of {size}", message.start)
    return np.frombuffer(message.data, dtype, length // size, message.start)
