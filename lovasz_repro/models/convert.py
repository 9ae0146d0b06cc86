"""From weights that others released to a snapshot that `load_deeplab_weights` reads.

The kind of file is told by its content and the layout by its names. What was read, from which
bytes and what was left out goes into the new file's metadata. How others name the tensors of
DeepLab-v2 ResNet-101, and what each name is here:

    Caffe         conv1, res2a_branch2a, bn2a_branch2a with scale2a_branch2a, fc1_voc12_c0
    isht7         Scale.conv1, Scale.layer1.0.conv1, Scale.layer1.0.bn1, Scale.layer5.conv2d_list.0
    kazuto1011    layer1.conv1.conv, layer2.block1.reduce.conv, layer2.block1.reduce.bn; with the
                  prefix "base." and base.aspp.c0 for DeepLab-v2, or fc for COCO's 91 classes
    torchvision   conv1, layer1.0.conv1, layer1.0.bn1, fc
    here          conv1, layer1.0.conv1, layer1.0.bn1, aspp.0

A layout is told by the name of its first convolution. Under torchvision's names there are also the
arrays of Caffe's networks, which see BGR in 0..255: these are told by their numbers.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lovasz_repro import __version__
from lovasz_repro.data.classes import VOC
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import sha256_of, write_durably
from lovasz_repro.models.caffemodel import CaffeLayer, read_caffemodel
from lovasz_repro.models.snapshot import (
    OF_DEEPLAB,
    check_values,
    encoded_deeplab,
    fitting_network,
    kind_of_file,
    read_pytorch,
    read_safetensors,
    without_classifier,
)

OTHER_CLASSIFIER = "classifier of another form"  # a name for tensors that no DeepLab-v2 has
Images = Literal["rgb", "bgr"]
"""What networks are trained on: RGB in 0..1 over its deviations, or BGR in 0..255."""
COUNTER = "num_batches_tracked"
RGB_STD = (0.229, 0.224, 0.225)  # torchvision divides images in 0..1 by them


@dataclass(frozen=True)
class Layout:
    """One way to name the tensors.

    Attributes:
        name: for people.
        first: name of the first convolution's weights.
        own_name: from a tensor's name to ours, to `OTHER_CLASSIFIER`, or to None: unknown.
        keep_classifier: whether its ASPP classifier, where there is one, has been trained.
        notes: sentences for whoever converts such a file.
        rgb: whether the network was trained on torchvision's images, not on ours.
    """

    name: str
    first: str
    own_name: Callable[[str], str | None]
    keep_classifier: bool = True
    notes: tuple[str, ...] = ()
    rgb: bool = False


def recognise(tensors: Mapping[str, Tensor], images: Images | None = None) -> Layout:
    """The layout of a file.

    Arguments:
        tensors: under their own names.
        images: what a network under torchvision's names was trained on; None: by its numbers.

    Raises ValueError naming the first few names of an unknown one, or where numbers do not tell.
    """
    for layout in LAYOUTS:
        if layout.first in tensors:
            return layout
    if "conv1.weight" not in tensors:
        raise ValueError(f"no known layout of a ResNet DeepLab: it holds {some(list(tensors))}")
    return UNDER_PLAIN_NAMES[images or images_of(tensors)]


def images_of(tensors: Mapping[str, Tensor]) -> Images:
    """What the first convolution of a network was trained on, by the variance of what it gave.

    Its outputs vary as its inputs do, times the norm of its weights: by some 1 to 3 for images
    over their deviations, by 40 to 150 for those in 0..255 (on photographs, for filters of many
    kinds). Raises ValueError for numbers between, or where there is no such variance, as where it
    was folded into other arrays.
    """
    weight, variance = tensors["conv1.weight"], tensors.get("bn1.running_var")
    if weight.ndim == 4 and variance is not None and variance.shape == weight.shape[:1]:
        spread = (variance.double() / weight.double().square().sum((1, 2, 3))).sqrt()
        typical = float(spread[spread.isfinite()].median()) if spread.isfinite().any() else 0.0
        measured = float(variance.max()) > float(variance.min())  # those that are folded are all 1
        if measured and 0 < typical < 6:
            return "rgb"
        if measured and typical > 18:
            return "bgr"
    raise ValueError("its numbers do not say what its first convolution was trained on: name it "
                     "with --images rgb (0..1 over torchvision's deviations) or --images bgr "
                     "(0..255, as Caffe)")  # fmt: skip


def translate(tensors: Mapping[str, Tensor], layout: Layout) -> tuple[dict[str, Tensor], int]:
    """Tensors under our names, float32, contiguous copies; and outputs of another classifier.

    The second value is 0 where the file has no classifier but DeepLab-v2's. Raises ValueError
    for unknown names, two tensors for one place, and tensors that are not floating-point.
    """
    own: dict[str, Tensor] = {}
    unknown: list[str] = []
    other_outputs = 0
    for name, tensor in tensors.items():
        if name.endswith(COUNTER):
            continue
        target = layout.own_name(name)
        if target is None:
            unknown.append(name)
        elif target == OTHER_CLASSIFIER:
            other_outputs = max(other_outputs, tensor.shape[0] if tensor.ndim else 0)
        elif target in own:
            raise ValueError(f"two tensors for {target!r}, the second is {name[:80]!r}")
        elif not tensor.is_floating_point():
            raise ValueError(f"tensor {name[:80]!r} is {tensor.dtype}, not floating-point")
        else:
            own[target] = tensor.to(torch.float32, copy=True).contiguous()
    if unknown:
        raise ValueError(
            f"{len(unknown)} tensors unknown to the layout of {layout.name}: {some(unknown)}"
        )
    if layout.rgb and own["conv1.weight"].shape[1:2] == (3,):
        own["conv1.weight"] = for_bgr(own["conv1.weight"])
    return own, other_outputs


def for_bgr(weight: Tensor) -> Tensor:
    """A first convolution (out, 3, h, w) on RGB in 0..1 over `RGB_STD`, for BGR in 0..255."""
    scale = 255 * torch.tensor(RGB_STD).view(1, 3, 1, 1)
    return (weight / scale).flip(1).contiguous()


def some(names: list[str]) -> str:
    """The first few names, for an error of one line."""
    return ", ".join(repr(name[:60]) for name in names[:4]) + (", ..." if len(names) > 4 else "")


def isht7_name(name: str) -> str | None:
    """isht7/pytorch-deeplab-resnet: our names behind a prefix, another classifier's name."""
    if not name.startswith("Scale."):
        return None
    return re.sub(r"^layer5\.conv2d_list\.", "aspp.", name.removeprefix("Scale."))


def torchvision_name(name: str) -> str | None:
    """torchvision's ResNet: our names, and a classifier of images."""
    if name in ("fc.weight", "fc.bias"):
        return OTHER_CLASSIFIER
    return name if re.match(r"(conv1|bn1|layer[1-4])\.", name) else None


KAZUTO_PARTS = {"reduce": "1", "conv3x3": "2", "increase": "3"}


def kazuto_name(name: str) -> str | None:
    """kazuto1011/deeplab-pytorch: stages from 1 (the stem) to 5, blocks from 1."""
    name = name.removeprefix("base.")
    if name in ("fc.weight", "fc.bias"):
        return OTHER_CLASSIFIER
    if match := re.fullmatch(r"aspp\.c(\d)\.(weight|bias)", name):
        return f"aspp.{match[1]}.{match[2]}"
    if match := re.fullmatch(r"layer1\.conv1\.(conv|bn)\.(\w+)", name):
        return f"{match[1]}1.{match[2]}"
    block = r"layer([2-5])\.block([1-9]\d{0,3})\.(\w+)\.(conv|bn)\.(\w+)"
    if not (match := re.fullmatch(block, name)):
        return None
    stage, index, part, kind, last = match.groups()
    where = f"layer{int(stage) - 1}.{int(index) - 1}"
    if part == "shortcut":
        return f"{where}.downsample.{'0' if kind == 'conv' else '1'}.{last}"
    return f"{where}.{kind}{KAZUTO_PARTS[part]}.{last}" if part in KAZUTO_PARTS else None


CAFFE_BRANCHES = {"2a": ("conv1", "bn1"), "2b": ("conv2", "bn2"), "2c": ("conv3", "bn3")}
CAFFE_BRANCHES["1"] = ("downsample.0", "downsample.1")


def caffe_name(name: str) -> str | None:
    """Layer and array of `caffe_tensors`: "res4b22_branch2a/weight", "bn4b22_branch2a/bias"."""
    layer, _, array = name.partition("/")
    if match := re.fullmatch(r"fc1_\w+_c(\d)", layer):
        return f"aspp.{match[1]}.{array}"
    if layer.startswith("fc"):
        return OTHER_CLASSIFIER
    if layer in ("conv1", "bn_conv1"):
        return f"{'conv1' if layer == 'conv1' else 'bn1'}.{array}"
    block = r"(res|bn)([2-5])(a|b|c|b([1-9]\d{0,3}))_branch(1|2a|2b|2c)"
    if not (match := re.fullmatch(block, layer)):
        return None
    kind, stage, letter, number, branch = match.groups()
    index = int(number) if number else "abc".index(letter)
    return f"layer{int(stage) - 1}.{index}.{CAFFE_BRANCHES[branch][kind == 'bn']}.{array}"


def caffe_tensors(layers: list[CaffeLayer]) -> dict[str, Tensor]:
    """Arrays of a Caffe model, named "layer/array" with the array's name in PyTorch.

    A Scale layer counts to the batch normalisation before it: scale2a_branch1 to bn2a_branch1.
    Layers of the two smaller scales (res075, res05) share their weights with the first.

    Raises ValueError for two layers of one name and for a layer with unexpected blobs.
    """
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        if "res075" in layer.name or "res05" in layer.name:
            continue
        for name, array in layer_arrays(layer).items():
            if name in tensors:
                raise ValueError(f"two layers with {name[:80]!r}")
            tensors[name] = torch.from_numpy(array.copy())
    return tensors


def layer_arrays(layer: CaffeLayer) -> dict[str, np.ndarray]:
    """The arrays of one layer under the names of `caffe_tensors`."""
    name, blobs = layer.name, layer.blobs
    if layer.type == "BatchNorm" and len(blobs) == 3 and blobs[2].size == 1:
        # Caffe stores sums over iterations, and how much to divide them by; 0 means no data yet
        scale = float(blobs[2].item())
        with np.errstate(all="ignore"):  # what overflows is refused with all that is not finite
            doubles = (blob.ravel().astype(np.float64) for blob in blobs[:2])
            mean, variance = (v / scale if scale else np.zeros_like(v) for v in doubles)
        return {f"{name}/running_mean": mean, f"{name}/running_var": variance}
    if layer.type == "Scale" and len(blobs) == 2:
        name = re.sub("^scale", "bn", name)
        return {f"{name}/weight": blobs[0].ravel(), f"{name}/bias": blobs[1].ravel()}
    if layer.type in ("Convolution", "InnerProduct") and len(blobs) in (1, 2):
        bias = {f"{name}/bias": blob.ravel() for blob in blobs[1:]}
        return {f"{name}/weight": blobs[0], **bias}
    raise ValueError(f"layer {name[:60]!r} is a {layer.type[:40]!r} with {len(blobs)} blobs")


TORCHVISION_NOTES = (
    "torchvision trained this network with the stride on the 3x3 convolution of a block; here, as "
    "in the authors' network, it is on the 1x1 before it: the weights fit, but the features of "
    "the second stage and later are not those of torchvision.",
    "Its first convolution is rescaled from RGB in 0..1 over the standard deviations to BGR in "
    "0..255; the mean that is subtracted differs by up to 1 of 255.",
)

LAYOUTS = (
    Layout("Caffe, as its authors released it", "conv1/weight", caffe_name),
    Layout("isht7/pytorch-deeplab-resnet", "Scale.conv1.weight", isht7_name, keep_classifier=False),
    Layout("kazuto1011/deeplab-pytorch, DeepLab-v2", "base.layer1.conv1.conv.weight", kazuto_name),
    Layout("kazuto1011/deeplab-pytorch, DeepLab-v1", "layer1.conv1.conv.weight", kazuto_name),
)
UNDER_PLAIN_NAMES: dict[Images, Layout] = {
    "rgb": Layout(
        "torchvision", "conv1.weight", torchvision_name, notes=TORCHVISION_NOTES, rgb=True
    ),
    "bgr": Layout("Caffe, under torchvision's names", "conv1.weight", torchvision_name),
}


BN_EPS = 1e-5  # Caffe's default, which the release keeps: its prototxt sets none
OTHER_DATASETS = {91: "coco", 1000: "imagenet"}  # by the outputs of a classifier that is left out


@dataclass(frozen=True)
class Conversion:
    """What a conversion read and wrote.

    Attributes:
        layout: where such files come from, for people.
        classifier: whether it was kept, left out, or not there, and why.
        outputs: of the classifier that was kept, None without one.
        tensors: how many were written.
        sha256: of the source.
        notes: sentences to print.
    """

    layout: str
    classifier: str
    outputs: int | None
    tensors: int
    sha256: str
    notes: tuple[str, ...]


def convert(source: Path, target: Path, *, images: Images | None = None) -> Conversion:
    """Write the weights of `source` to `target`, under our names.

    Arguments:
        source: Caffe's .caffemodel, or a PyTorch or safetensors file in one of `LAYOUTS`.
        target: ends in .safetensors; its folder is made if missing.
        images: see `recognise`.

    Raises UserError where `source` is missing, damaged or no ResNet DeepLab, or where `target`
    holds something else; RunFailed where the disk refuses.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the converted file must end in .safetensors.")
    try:
        sha256 = sha256_of(source)
        tensors = read_any(source)
        layout = recognise(tensors, images)
        tensors, other_outputs = translate(tensors, layout)
        fitting_network(tensors)
        check_values(tensors)
    except OSError as error:
        raise UserError(f"{source}: {error.strerror or error}.") from error
    except ValueError as error:
        raise UserError(
            f"{source}: {error}. lovasz-repro weights list names the files that can be converted."
        ) from error
    tensors, outcome = choose_classifier(tensors, layout, other_outputs)
    bias = tensors.get("aspp.0.bias")
    outputs = None if bias is None else len(bias)
    of_voc = outputs == len(VOC)
    metadata = {
        "dataset": VOC.dataset if of_voc else OTHER_DATASETS.get(other_outputs, "unknown"),
        "class_names": VOC.names if of_voc else (),
        "bn_eps": BN_EPS,
        "source": source.name,
        "source_sha256": sha256,
        "source_bytes": source.stat().st_size,
        "source_layout": layout.name,
        "source_classifier": outcome,
        "source_notes": " ".join(layout.notes),
        "converted_by": f"lovasz-repro {__version__}",
    }
    write(encoded_deeplab(tensors, metadata), target)
    return Conversion(layout.name, outcome, outputs, len(tensors), sha256, layout.notes)


def read_any(source: Path) -> dict[str, Tensor]:
    """The tensors of a file of any kind, under its own names.

    Raises OSError and ValueError as the readers do.
    """
    kind = kind_of_file(source)
    if kind == "hdf5":
        raise ValueError(
            "an HDF5 file, which is not read: those of this network's TensorFlow port hold a pickle"
        )
    if kind == "pytorch":
        return read_pytorch(source)
    if kind == "safetensors":
        tensors, metadata = read_safetensors(source)
        if metadata.get("architecture") == OF_DEEPLAB:
            raise UserError(f"{source}: converted already, it can be used as it is.")
        return tensors
    return caffe_tensors(read_caffemodel(source))


def choose_classifier(
    tensors: dict[str, Tensor], layout: Layout, other: int
) -> tuple[dict[str, Tensor], str]:
    """Tensors with or without the classifier, and a sentence about it."""
    backbone = without_classifier(tensors)
    if len(backbone) == len(tensors):
        what = f"a classifier of {other} outputs without ASPP, left out" if other else "none"
        return backbone, what
    if layout.keep_classifier:
        return tensors, "kept"
    return backbone, "left out (files of this layout may hold an untrained one)"


def write(content: bytes, target: Path) -> None:
    """Write `content` durably, unless it is there already."""
    try:
        if target.exists():
            if target.stat().st_size == len(content) and target.read_bytes() == content:
                return
            raise UserError(f"{target} exists with other content: move it away or name another.")
        target.parent.mkdir(parents=True, exist_ok=True)
        write_durably(target, content)
    except OSError as error:
        raise RunFailed(f"{target} not written: {error.strerror or error}.") from error
