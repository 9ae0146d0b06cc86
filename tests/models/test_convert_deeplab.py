"""Conversion: networks written as others name them compute the same after it, or are refused."""

import collections
import copy
import io
import os
import pickle
import random
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.models import deeplab_layouts as layouts
from lovasz_repro.models.convert_deeplab import convert
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.deeplab_tensors import stored_tensors
from lovasz_repro.models.deeplab_weights import DeepLabWeights, load_deeplab_weights
from tests import foreign_deeplab as foreign
from tests.foreign_deeplab import BLOCKS, RESNET_101, blob, caffe_layers, caffemodel, layer

Writer = Callable[[DeepLab, Path], None]


@pytest.fixture(scope="module")
def model() -> DeepLab:
    return foreign.random_deeplab()


def write_caffe(model: DeepLab, path: Path) -> None:
    path.write_bytes(caffemodel(caffe_layers(model)))


def write_caffe_multi_scale(model: DeepLab, path: Path) -> None:
    """With the layers of the smaller scales, of which a test file has others' values."""
    other = foreign.random_deeplab(seed=1)
    copies = [x for s in ("_res075", "_res05") for x in caffe_layers(other, suffix=s)]
    path.write_bytes(caffemodel([*copies, *caffe_layers(model), *copies]))


def write_isht7(model: DeepLab, path: Path) -> None:
    """As PyTorch before 1.6 wrote it: no archive."""
    torch.save(
        collections.OrderedDict(foreign.isht7(model)), path, _use_new_zipfile_serialization=False
    )


def write_kazuto(model: DeepLab, path: Path) -> None:
    torch.save(collections.OrderedDict(foreign.kazuto(model)), path)


def write_nested(model: DeepLab, path: Path) -> None:
    tensors = {k: nn.Parameter(v, v.is_floating_point()) for k, v in foreign.kazuto(model).items()}
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": [1, 2]}}, path)


def write_doubles(model: DeepLab, path: Path) -> None:
    tensors = {
        k: v.double() if v.is_floating_point() else v for k, v in foreign.kazuto(model).items()
    }
    torch.save({"model": tensors}, path)


def write_safetensors(model: DeepLab, path: Path) -> None:
    safetensors.torch.save_file(foreign.kazuto(model), path)


WITH_CLASSIFIER = [
    (write_caffe, "Caffe, as its authors released it"),
    (write_caffe_multi_scale, "Caffe, as its authors released it"),
    (write_kazuto, "kazuto1011/deeplab-pytorch, DeepLab-v2"),
    (write_nested, "kazuto1011/deeplab-pytorch, DeepLab-v2"),
    (write_doubles, "kazuto1011/deeplab-pytorch, DeepLab-v2"),
    (write_safetensors, "kazuto1011/deeplab-pytorch, DeepLab-v2"),
]


def converted(writer: Writer, model: DeepLab, folder: Path, **options: Any) -> DeepLabWeights:
    source, target = folder / "source.bin", folder / "target.safetensors"
    writer(model, source)
    convert(source, target, **options)
    return load_deeplab_weights(target)


def logits(model: DeepLab) -> Tensor:
    torch.manual_seed(5)
    with torch.no_grad():
        return model.eval()(50 * torch.randn(2, 3, 33, 41))


def features(model: DeepLab) -> Tensor:
    """Logits under one classifier for all."""
    torch.manual_seed(6)
    for branch in model.aspp:
        nn.init.normal_(branch.weight)
        nn.init.zeros_(branch.bias)
    return logits(model)


# Every layout


@pytest.mark.parametrize(("writer", "layout"), WITH_CLASSIFIER)
def test_same_logits_after_conversion(model, tmp_path: Path, writer: Writer, layout: str) -> None:
    source, target = tmp_path / "source.bin", tmp_path / "new" / "folder" / "target.safetensors"
    writer(model, source)
    result = convert(source, target)
    assert (result.layout, result.classifier, result.outputs) == (layout, "kept", 21)
    assert result.tensors == len(stored_tensors(model))
    weights = load_deeplab_weights(target)
    assert (weights.num_classes, weights.dataset) == (21, "voc")
    assert weights.class_names[:2] == ("background", "aeroplane")
    fresh = DeepLab(blocks=BLOCKS, width=4)
    weights.load_into(fresh)
    torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-5, atol=1e-5)


def test_where_the_weights_came_from_is_in_the_file(model, tmp_path: Path) -> None:
    source, target = tmp_path / "net.caffemodel", tmp_path / "a.safetensors"
    write_caffe(model, source)
    result = convert(source, target)
    notes = load_deeplab_weights(target).notes
    assert notes["source"] == "net.caffemodel"
    assert int(notes["source_bytes"]) == source.stat().st_size
    assert notes["source_sha256"] == result.sha256 == sha256sum(source)
    assert notes["bn_eps"] == "1e-05"
    assert notes["converted_by"].startswith("lovasz-repro ")


def sha256sum(path: Path) -> str:
    """The checksum by coreutils."""
    return subprocess.run(["sha256sum", path], capture_output=True, text=True).stdout.split()[0]


def test_isht7_classifier_is_left_out_unless_asked(model, tmp_path: Path) -> None:
    weights = converted(write_isht7, model, tmp_path)
    assert (weights.num_classes, weights.class_names) == (None, ())
    assert "may hold an untrained one" in weights.notes["source_classifier"]
    (tmp_path / "target.safetensors").unlink()
    weights = converted(write_isht7, model, tmp_path, classifier=True)
    fresh = DeepLab(blocks=BLOCKS, width=4)
    weights.load_into(fresh)
    torch.testing.assert_close(logits(fresh), logits(model))


def test_classifier_that_was_never_trained_is_named(tmp_path: Path) -> None:
    untrained = foreign.random_deeplab()
    for branch in untrained.aspp:
        nn.init.zeros_(branch.bias)
    weights = converted(write_isht7, untrained, tmp_path, classifier=True)
    assert weights.notes["source_classifier"] == "kept (untrained: its biases are all 0)"


def coco_caffe(model: DeepLab, path: Path) -> None:
    """init.caffemodel: no ASPP, and a classifier of COCO's 91 classes."""
    kept = [each for each in caffe_layers(model) if not each[0].startswith("fc1_voc12")]
    arrays = [torch.ones(91, 128, 1, 1).numpy(), torch.ones(91).numpy()]
    path.write_bytes(caffemodel([*kept, ("fc1_coco", "Convolution", arrays)]))


def coco_kazuto(model: DeepLab, path: Path) -> None:
    torch.save(foreign.kazuto(model, prefix=""), path)


@pytest.mark.parametrize("writer", [coco_caffe, coco_kazuto])
def test_network_of_coco_is_a_backbone(model, tmp_path: Path, writer: Writer) -> None:
    weights = converted(writer, model, tmp_path)
    assert (weights.num_classes, weights.dataset) == (None, "coco")
    assert "91 outputs without ASPP" in weights.notes["source_classifier"]
    fresh = DeepLab(blocks=BLOCKS, width=4)
    before = [t.clone() for t in fresh.aspp.parameters()]
    weights.load_into(fresh, classifier=False)
    assert all(torch.equal(*pair) for pair in zip(before, fresh.aspp.parameters(), strict=True))
    reference = features(copy.deepcopy(model))
    torch.testing.assert_close(features(fresh), reference, rtol=1e-4, atol=1e-3)
    with pytest.raises(UserError, match="no classifier of DeepLab-v2 to keep") as caught:
        converted(writer, model, tmp_path, classifier=True)
    assert "91 outputs" in str(caught.value)


def test_torchvision_says_what_differs(model, tmp_path: Path) -> None:
    source, target = tmp_path / "resnet101.pth", tmp_path / "a.safetensors"
    torch.save(foreign.torchvision(model), source)
    result = convert(source, target)
    assert "stride on the 3x3" in result.notes[0]
    assert "RGB" in result.notes[1]
    weights = load_deeplab_weights(target)
    assert (weights.num_classes, weights.dataset) == (None, "imagenet")
    assert "stride on the 3x3" in weights.notes["source_notes"]


def test_first_convolution_of_torchvision_sees_the_same_image(model, tmp_path: Path) -> None:
    """The features of its own preprocessing, where no border is near."""

    def write(model: DeepLab, path: Path) -> None:
        torch.save(foreign.torchvision(model), path)

    fresh = DeepLab(blocks=BLOCKS, width=4)
    converted(write, model, tmp_path).load_into(fresh, classifier=False)
    torch.manual_seed(0)
    rgb = torch.rand(1, 3, 31, 31)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
    theirs = F.conv2d((rgb - mean) / std, model.conv1.weight, stride=2)
    ours = F.conv2d((255 * (rgb - mean)).flip(1), fresh.conv1.weight, stride=2)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# The full network: names only


def test_every_layout_names_every_tensor_of_resnet_101() -> None:
    with torch.device("meta"):
        full = DeepLab()
    expected = stored_tensors(full).keys()
    assert (
        len([n for n in expected if n.endswith("weight") and ("conv" in n or "downsample.0" in n)])
        == 104
    )
    assert len(expected) == 104 + 416 + 8
    backbone = {name for name in expected if not name.startswith("aspp.")}
    tables = {
        layouts.isht7_name: foreign.isht7(full, RESNET_101),
        layouts.kazuto_name: foreign.kazuto(full, RESNET_101),
    }
    for own_name, names in tables.items():
        learned = [name for name in names if not name.endswith("num_batches_tracked")]
        assert len(learned) == 528
        assert {own_name(name) for name in learned} == expected
    other = {layouts.kazuto_name: foreign.kazuto(full, RESNET_101, prefix="")}
    other |= {layouts.torchvision_name: foreign.torchvision(full, RESNET_101)}
    for own_name, names in other.items():
        learned = [name for name in names if not name.endswith("num_batches_tracked")]
        assert {own_name(n) for n in learned} == backbone | {layouts.OTHER_CLASSIFIER}


def test_caffe_names_of_resnet_101() -> None:
    with torch.device("meta"):
        expected = stored_tensors(DeepLab()).keys()
    names = [f"fc1_voc12_c{k}/{key}" for k in range(4) for key in ("weight", "bias")]
    for unit in foreign.units(RESNET_101):
        stem = unit.caffe == "conv1"
        names.append("conv1/weight" if stem else f"res{unit.caffe}/weight")
        norm = "bn_conv1" if stem else f"bn{unit.caffe}"
        names += [f"{norm}/{key}" for key in foreign.BN_FIELDS]
    assert len(names) == 528
    assert "res4b22_branch2b/weight" in names
    assert {layouts.caffe_name(name) for name in names} == expected
    assert layouts.caffe_name("bn5c_branch2a/running_var") == "layer4.2.bn1.running_var"


def test_scale_factor_0_means_no_statistics(tmp_path: Path) -> None:
    model = foreign.random_deeplab()
    source, target = tmp_path / "net.caffemodel", tmp_path / "a.safetensors"
    source.write_bytes(caffemodel(caffe_layers(model, factor=0)))
    convert(source, target)
    tensors = load_deeplab_weights(target).tensors
    assert not any(bool(t.any()) for name, t in tensors.items() if "running" in name)


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0x7F800000])
def test_statistics_that_are_not_finite(model, tmp_path: Path, bits: int) -> None:
    """Signalling NaN, NaN, infinity; no warning of NumPy's on the way."""
    layers, bad = caffe_layers(model), np.full(4, bits, np.uint32).view(np.float32)
    layers[1] = (layers[1][0], layers[1][1], [bad, *layers[1][2][1:]])
    source = tmp_path / "net.caffemodel"
    source.write_bytes(caffemodel(layers))
    assert "'bn1.running_mean' holds values that are not finite" in refusal(source)


# Files that are no such network


def refusal(source: Path, **options: Any) -> str:
    """The one line with which a conversion ends; nothing is written."""
    target = source.with_name("refused.safetensors")
    with pytest.raises(UserError) as caught:
        convert(source, target, **options)
    message = str(caught.value)
    assert message.isprintable()
    assert str(source) in message
    assert not target.exists()
    return message


Damage = Callable[[dict[str, Any]], Any]


def without(part: str) -> Damage:
    return lambda tensors: {k: v for k, v in tensors.items() if part not in k}


def replaced(name: str, value: Any) -> Damage:
    return lambda tensors: {**tensors, name: value}


STEM = "base.layer1.conv1"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "lacks one": (without("block1.shortcut.conv"), "lacks tensor 'layer1.0.downsample.0.weight'"),
    "lacks a block": (without("layer4.block2."), "lacks tensor 'layer3.1.conv1.weight'"),
    "lacks a branch": (without("aspp.c3"), "lacks tensor 'aspp.3.weight' (2 such)"),
    "no stem": (without("layer1.conv1"), "no known layout of a ResNet DeepLab: it holds"),
    "unknown": (
        lambda t: {**t, **{f"base.extra{i}.w": torch.ones(1) for i in range(9)}},
        "unknown to the layout of kazuto1011/deeplab-pytorch, DeepLab-v2: 'base.extra0.w', ",
    ),
    "surplus branch": (replaced("base.aspp.c4.bias", torch.ones(2)), "surplus tensor 'aspp.4"),
    "twice": (replaced("layer1.conv1.bn.bias", torch.ones(4)), "two tensors for 'bn1.bias'"),
    "shape": (replaced(f"{STEM}.bn.bias", torch.ones(5)), "(5,), not torch.float32 (4,)"),
    "no floats": (
        replaced(f"{STEM}.bn.bias", torch.ones(4, dtype=torch.int32)), "torch.int32",
    ),
    "nan": (
        replaced(f"{STEM}.bn.bias", torch.full((4,), torch.nan)),
        "'bn1.bias' holds values that are not finite",
    ),
    "too large for float32": (
        replaced(f"{STEM}.bn.bias", torch.full((4,), 1e300, dtype=torch.float64)),
        "not finite",
    ),
    "variance": (
        replaced(f"{STEM}.bn.running_var", -torch.ones(4)), "holds a variance below 0",
    ),
    "number": (replaced(f"{STEM}.bn.bias", 3), "is a int, not a plain tensor"),
    "name": (replaced(7, torch.ones(1)), "with a int as a name"),  # type: ignore[arg-type]
    "sparse": (
        replaced(f"{STEM}.bn.bias", torch.ones(4).to_sparse()), "sparse, quantised",
    ),
    "no dict": (lambda t: list(t.values()), "with a list, not a state dict"),
    "stem's shape": (
        replaced(f"{STEM}.conv.weight", torch.ones(4, 3, 3, 3)), "of shape (width, 3, 7, 7)",
    ),
    "stem's dimensions": (replaced(f"{STEM}.conv.weight", torch.tensor(1.0)), "(width, 3"),
    "empty stem": (
        replaced(f"{STEM}.conv.weight", torch.ones(0, 3, 7, 7)), "must be at least 1",
    ),
    "expanded": (
        replaced(f"{STEM}.bn.bias", torch.ones(1).expand(2**40)), "its tensors claim",
    ),
    "many blocks": (
        lambda t: t | {f"layer2.block{i}.reduce.bn.bias": torch.ones(0) for i in range(3, 999)},
        "blocks, more than 200",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "problem"), DAMAGES.values(), ids=DAMAGES)
def test_other_network_is_named(model, tmp_path: Path, damage: Damage, problem: str) -> None:
    source = tmp_path / "net.pth"
    torch.save(damage(foreign.kazuto(model)), source)
    assert problem in refusal(source)


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (lambda x: [*x, x[0]], "two layers with 'conv1/weight'"),
        (lambda x: [e for e in x if e[0] != "scale2a_branch2a"], "lacks tensor 'layer1.0.bn1"),
        (lambda x: [e for e in x if e[1] != "BatchNorm"], "lacks tensor 'bn1.running_mean'"),
        (lambda x: [(n, k, b[:2]) for n, k, b in x], "'bn_conv1' is a 'BatchNorm' with 2 blobs"),
        (lambda x: [(n, "Dropout\n", b) for n, _, b in x], r"'conv1' is a 'Dropout\n' with"),
        (lambda x: [("x" * 999 + n, k, b) for n, k, b in x], "no known layout"),
    ],
)  # fmt: skip
def test_other_caffe_network_is_named(model, tmp_path: Path, layers, problem: str) -> None:
    source = tmp_path / "net.caffemodel"
    source.write_bytes(caffemodel(layers(caffe_layers(model))))
    message = refusal(source)
    assert problem in message
    assert len(message) < 700


def test_files_of_another_kind(model, tmp_path: Path) -> None:
    source = tmp_path / "file"
    assert "No such file" in refusal(source)
    assert "directory" in refusal(tmp_path)
    for content, problem in (
        (b"", "no layer with weights"),
        (b"<!DOCTYPE html>", "not a readable Caffe model"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file, which is not read"),
        (b"PK\x03\x04rest", "a damaged"),
        (b"\x80\x02rest", "a damaged PyTorch file"),
        (bytes([200, 0, 0, 0, 0, 0, 0, 0]) + b"{rest", "unreadable safetensors file"),
    ):
        source.write_bytes(content)
        assert problem in refusal(source)


def test_archive_around_the_weights(tmp_path: Path) -> None:
    source = tmp_path / "prototxt_and_model.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("init.caffemodel", b"weights")
    assert "'init.caffemodel': unpack it" in refusal(source)


def test_compressed_archive_is_refused(model, tmp_path: Path) -> None:
    plain, source = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    write_kazuto(model, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert "an archive that is compressed" in refusal(source)


class Evil:
    """Unpickles into a call."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_in_a_pickle_does_not_run(model, tmp_path: Path, form: str) -> None:
    source, mark = tmp_path / "net.pth", tmp_path / "ran"
    content = {**foreign.kazuto(model), "base.extra": Evil(mark)}
    if form == "pickle":
        source.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=form == "zip")
    assert "wants code to run" in refusal(source)
    assert not mark.exists()


class Shadowed:
    """Unpickles into an OrderedDict whose methods are numbers."""

    def __init__(self, content: dict[str, Tensor]) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        methods = {"items": 3, "get": 4, "keys": 5}
        return collections.OrderedDict, (), methods, None, iter(self.content.items())


def test_attributes_in_a_pickle_hide_nothing(model, tmp_path: Path) -> None:
    source = tmp_path / "net.pth"
    torch.save(Shadowed(foreign.kazuto(model)), source)
    assert convert(source, tmp_path / "a.safetensors").classifier == "kept"
    strange = torch.ones(4)
    vars(strange)["colour"] = 3
    torch.save(replaced(STEM + ".bn.bias", strange)(foreign.kazuto(model)), source)
    assert "'base.layer1.conv1.bn.bias' is a Tensor, not a plain tensor" in refusal(source)


def test_our_own_file_needs_no_conversion(model, tmp_path: Path) -> None:
    converted(write_kazuto, model, tmp_path)
    assert "converted already" in refusal(tmp_path / "target.safetensors")


# Damaged files


def as_bytes(tensors: Mapping[str, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(tensors), buffer, **options)
    return buffer.getvalue()


TINY = foreign.random_deeplab(width=1, outputs=2)
CONTENTS = {
    "caffe": caffemodel(caffe_layers(TINY)),
    "zip": as_bytes(foreign.kazuto(TINY)),
    "legacy": as_bytes(foreign.isht7(TINY), _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(foreign.kazuto(TINY)),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_truncated_file(tmp_path: Path, content: bytes) -> None:
    source = tmp_path / "net"
    for part in range(50):
        source.write_bytes(content[: len(content) * part // 50])
        refusal(source)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_flipped_bytes_end_in_one_line_or_a_sound_network(tmp_path: Path, content: bytes) -> None:
    source, target, chance = tmp_path / "net", tmp_path / "a.safetensors", random.Random(1)
    for _ in range(25):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 3, 30))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        source.write_bytes(damaged)
        try:
            convert(source, target, overwrite=True)
        except UserError as error:
            assert str(error).isprintable()  # noqa: PT017
        else:
            assert load_deeplab_weights(target).tensors.keys() <= stored_tensors(TINY).keys()


# The target


def test_target_is_written_once(model, tmp_path: Path) -> None:
    source, target = tmp_path / "net.pth", tmp_path / "a.safetensors"
    write_kazuto(model, source)
    first = convert(source, target)
    content = target.read_bytes()
    assert convert(source, target) == first  # the same content: nothing to do
    assert target.read_bytes() == content
    write_kazuto(foreign.random_deeplab(seed=1), source)  # of the same size
    with pytest.raises(UserError, match="exists with other content"):
        convert(source, target)
    assert target.read_bytes() == content
    convert(source, target, classifier=False, overwrite=True)
    assert load_deeplab_weights(target).num_classes is None
    with pytest.raises(UserError, match=r"must end in \.safetensors"):
        convert(source, tmp_path / "a.pth")


def test_full_disk_is_one_line(model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    source, target = tmp_path / "net.pth", tmp_path / "a.safetensors"
    write_kazuto(model, source)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match=r"a\.safetensors not written: No space left on device"):
        convert(source, target)
    assert list(tmp_path.iterdir()) == [source]


def test_layer_type_and_name_are_not_trusted(tmp_path: Path) -> None:
    source = tmp_path / "net.caffemodel"
    source.write_bytes(layer("\x1b[2J" + "n" * 5000, "t" * 5000, [blob(torch.ones(2).numpy())]))
    message = refusal(source)
    assert len(message) < 500
