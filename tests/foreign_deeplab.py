"""Small DeepLabs as others would have released them: writers made from their sources.

The names come from the released files, block by block (isht7/pytorch-deeplab-resnet,
kazuto1011/deeplab-pytorch, the DeepLab authors' Caffe models), and not from our translation; the
bytes of a Caffe model come from the description of protobuf's wire format and of caffe.proto.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lovasz_repro.models.deeplab import DeepLab

BLOCKS = (2, 2, 3, 1)
RESNET_101 = (3, 4, 23, 3)
BN_FIELDS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Unit:
    """A convolution and its batch normalisation, as each project names them."""

    conv: str  # ours, and torchvision's
    norm: str
    kazuto: str  # followed by .conv or .bn
    caffe: str  # preceded by res, bn, scale; the stem is special


def units(blocks: Sequence[int]) -> Iterator[Unit]:
    """Every unit of a ResNet with these numbers of bottlenecks."""
    yield Unit("conv1", "bn1", "layer1.conv1", "conv1")
    letters = {
        2: list("abcdefgh"),
        3: ["a", *(f"b{i}" for i in range(1, 40))],
        4: ["a", *(f"b{i}" for i in range(1, 40))],
        5: list("abcdefgh"),
    }
    for stage, count in zip((2, 3, 4, 5), blocks, strict=True):
        for block in range(count):
            ours = f"layer{stage - 1}.{block}"
            kazuto = f"layer{stage}.block{block + 1}"
            caffe = f"{stage}{letters[stage][block]}_branch"
            if block == 0:
                names = f"{ours}.downsample.0", f"{ours}.downsample.1"
                yield Unit(*names, f"{kazuto}.shortcut", f"{caffe}1")
            yield Unit(f"{ours}.conv1", f"{ours}.bn1", f"{kazuto}.reduce", f"{caffe}2a")
            yield Unit(f"{ours}.conv2", f"{ours}.bn2", f"{kazuto}.conv3x3", f"{caffe}2b")
            yield Unit(f"{ours}.conv3", f"{ours}.bn3", f"{kazuto}.increase", f"{caffe}2c")


def random_deeplab(
    seed: int = 0, width: int = 4, outputs: int = 21, blocks: Sequence[int] = BLOCKS
) -> DeepLab:
    """A small network, every one of its tensors different from every other."""
    torch.manual_seed(seed)
    model = DeepLab(outputs, blocks=blocks, width=width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.weight, 0.3, 0.7)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    for branch in model.aspp:
        nn.init.normal_(branch.bias, std=0.1)
    return model.eval()


def isht7(model: DeepLab, blocks: Sequence[int] = BLOCKS) -> dict[str, Tensor]:
    """State dict of isht7/pytorch-deeplab-resnet: no counters."""
    state = model.state_dict()
    names = {}
    for unit in units(blocks):
        names[f"Scale.{unit.conv}.weight"] = state[f"{unit.conv}.weight"]
        for key in BN_FIELDS:
            names[f"Scale.{unit.norm}.{key}"] = state[f"{unit.norm}.{key}"]
    for k in range(4):
        for key in ("weight", "bias"):
            names[f"Scale.layer5.conv2d_list.{k}.{key}"] = state[f"aspp.{k}.{key}"]
    return names


def kazuto(
    model: DeepLab, blocks: Sequence[int] = BLOCKS, prefix: str = "base."
) -> dict[str, Tensor]:
    """State dict of kazuto1011/deeplab-pytorch: DeepLab-v2, or v1 of COCO where prefix is ""."""
    state = model.state_dict()
    names = {}
    for unit in units(blocks):
        names[f"{prefix}{unit.kazuto}.conv.weight"] = state[f"{unit.conv}.weight"]
        for key in (*BN_FIELDS, "num_batches_tracked"):
            names[f"{prefix}{unit.kazuto}.bn.{key}"] = state[f"{unit.norm}.{key}"]
    if not prefix:
        features = state["aspp.0.weight"].shape[1]
        names |= {"fc.weight": torch.ones(91, features, 1, 1), "fc.bias": torch.ones(91)}
        return names
    for k in range(4):
        for key in ("weight", "bias"):
            names[f"{prefix}aspp.c{k}.{key}"] = state[f"aspp.{k}.{key}"]
    return names


def torchvision(
    model: DeepLab, blocks: Sequence[int] = BLOCKS, deviation: float = 1.0
) -> dict[str, Tensor]:
    """State dict of torchvision's ResNet, for images of ImageNet.

    The first statistics are those of white noise of this standard deviation, give or take half.
    """
    state = model.state_dict()
    names = {}
    for unit in units(blocks):
        names[f"{unit.conv}.weight"] = state[f"{unit.conv}.weight"]
        for key in (*BN_FIELDS, "num_batches_tracked"):
            names[f"{unit.norm}.{key}"] = state[f"{unit.norm}.{key}"]
    names["bn1.running_var"] = (
        deviation**2 * names["conv1.weight"].square().sum((1, 2, 3)) * names["bn1.running_var"]
    )
    features = state["aspp.0.weight"].shape[1]
    return names | {"fc.weight": torch.ones(1000, features), "fc.bias": torch.ones(1000)}


Layer = tuple[str, str, list[np.ndarray]]  # name, type, blobs


def caffe_layers(
    model: DeepLab, blocks: Sequence[int] = BLOCKS, factor: float = 3.5, suffix: str = ""
) -> list[Layer]:
    """Layers with blobs, in a test prototxt's order; statistics are stored times `factor`."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    layers: list[Layer] = []
    for unit in units(blocks):
        stem = unit.caffe == "conv1"
        conv = unit.caffe if stem else f"res{unit.caffe}"
        norm, scale = (f"{k}_conv1" if stem else f"{k}{unit.caffe}" for k in ("bn", "scale"))
        statistics = [state[f"{unit.norm}.running_{key}"] * factor for key in ("mean", "var")]
        statistics.append(np.array([factor], np.float32))
        affine = [state[f"{unit.norm}.{key}"] for key in ("weight", "bias")]
        layers.append((conv + suffix, "Convolution", [state[f"{unit.conv}.weight"]]))
        layers.append((norm + suffix, "BatchNorm", statistics))
        layers.append((scale + suffix, "Scale", affine))
    for k in range(4):
        arrays = [state[f"aspp.{k}.{key}"] for key in ("weight", "bias")]
        layers.append((f"fc1_voc12{suffix}_c{k}", "Convolution", arrays))
    return layers


def varint(value: int) -> bytes:
    """Seven bits a byte, lowest first, the top bit set on all but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, content: bytes | int) -> bytes:
    """A varint field, or one of bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray) -> bytes:
    """A BlobProto as Caffe writes it: packed floats, and a packed shape."""
    data = field(5, array.astype("<f4").tobytes())
    return data + field(7, field(1, b"".join(varint(size) for size in array.shape)))


def layer(name: str, kind: str, blobs: Sequence[bytes]) -> bytes:
    """A layer as a field of NetParameter, with settings that a reader must step over."""
    settings = field(3, b"data") + field(4, name.encode()) + field(10, 1)
    settings += field(106, field(1, 64) + varint(9 << 3 | 5) + struct.pack("<f", 0.9))
    content = field(1, name.encode()) + field(2, kind.encode()) + settings
    return field(100, content + b"".join(field(7, each) for each in blobs))


def caffemodel(layers: Sequence[Layer]) -> bytes:
    """A NetParameter, with layers that have no weights between the others."""
    parts = [field(1, b"ResNet-101"), layer("data", "ImageSegData", [])]
    for name, kind, blobs in layers:
        parts += [layer(name, kind, [blob(b) for b in blobs]), layer(f"{name}_relu", "ReLU", [])]
    return b"".join(parts)
