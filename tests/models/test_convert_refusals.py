"""Files that are no DeepLab, hostile or damaged: one line, nothing runs, nothing is written."""

import collections
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from lovasz_repro.errors import UserError
from lovasz_repro.models.convert import convert
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.snapshot import load_deeplab_weights, stored_tensors
from tests import foreign_deeplab as foreign
from tests.foreign_deeplab import blob, caffe_layers, caffemodel, layer


@pytest.fixture(scope="module")
def model() -> DeepLab:
    return foreign.random_deeplab()


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


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FC00000, 0x7F800000])
def test_statistics_that_are_not_finite(model, tmp_path: Path, bits: int) -> None:
    """Signalling NaN, NaN, infinity; no warning of NumPy's on the way."""
    layers, bad = caffe_layers(model), np.full(4, bits, np.uint32).view(np.float32)
    layers[1] = (layers[1][0], layers[1][1], [bad, *layers[1][2][1:]])
    source = tmp_path / "net.caffemodel"
    source.write_bytes(caffemodel(layers))
    assert "'bn1.running_mean' holds values that are not finite" in refusal(source)


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
    torch.save(foreign.kazuto(model), plain)
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
    source, target = tmp_path / "net.pth", tmp_path / "ours.safetensors"
    torch.save(foreign.kazuto(model), source)
    convert(source, target)
    assert "converted already" in refusal(target)


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
    for part in range(15):
        source.write_bytes(content[: len(content) * part // 15])
        refusal(source)


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_flipped_bytes_end_in_one_line_or_a_sound_network(tmp_path: Path, content: bytes) -> None:
    source, target, chance = tmp_path / "net", tmp_path / "a.safetensors", random.Random(1)
    for _ in range(10):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 3, 30))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        source.write_bytes(damaged)
        try:
            target.unlink(missing_ok=True)
            convert(source, target)
        except UserError as error:
            assert str(error).isprintable()  # noqa: PT017
        else:
            assert load_deeplab_weights(target).tensors.keys() <= stored_tensors(TINY).keys()


def test_layer_type_and_name_are_not_trusted(tmp_path: Path) -> None:
    source = tmp_path / "net.caffemodel"
    source.write_bytes(layer("\x1b[2J" + "n" * 5000, "t" * 5000, [blob(torch.ones(2).numpy())]))
    message = refusal(source)
    assert len(message) < 500
