"""Conversion: networks written as others name them compute the same after it."""

import collections
import copy
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.models import convert as layouts
from lovasz_repro.models.convert import convert
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.snapshot import DeepLabWeights, load_deeplab_weights, stored_tensors
from tests import foreign_deeplab as foreign
from tests.foreign_deeplab import BLOCKS, RESNET_101, caffe_layers, caffemodel

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


def write_nested_doubles(model: DeepLab, path: Path) -> None:
    tensors = {
        k: nn.Parameter(v.double()) if v.is_floating_point() else v
        for k, v in foreign.kazuto(model).items()
    }
    torch.save({"epoch": 3, "state_dict": tensors, "optimizer": {"state": [1, 2]}}, path)


def write_safetensors(model: DeepLab, path: Path) -> None:
    safetensors.torch.save_file(foreign.kazuto(model), path)


WITH_CLASSIFIER = [
    (write_caffe, "Caffe, as its authors released it"),
    (write_caffe_multi_scale, "Caffe, as its authors released it"),
    (write_kazuto, "kazuto1011/deeplab-pytorch, DeepLab-v2"),
    (write_nested_doubles, "kazuto1011/deeplab-pytorch, DeepLab-v2"),
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
    assert result.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert int(notes["source_bytes"]) == source.stat().st_size
    assert notes["source_sha256"] == result.sha256
    assert notes["bn_eps"] == "1e-05"
    assert notes["converted_by"].startswith("lovasz-repro ")


def test_isht7_classifier_is_left_out(model, tmp_path: Path) -> None:
    weights = converted(write_isht7, model, tmp_path)
    assert (weights.num_classes, weights.class_names) == (None, ())
    assert "may hold an untrained one" in weights.notes["source_classifier"]
    fresh = DeepLab(blocks=BLOCKS, width=4)
    weights.load_into(fresh, classifier=False)
    torch.testing.assert_close(features(fresh), features(copy.deepcopy(model)))


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


def test_arrays_of_caffe_under_torchvisions_names_stay_as_they_are(model, tmp_path: Path) -> None:
    source, target = tmp_path / "resnet101_caffe.pth", tmp_path / "a.safetensors"
    torch.save(foreign.torchvision(model, deviation=60), source)
    result = convert(source, target)
    assert "Caffe" in result.layout
    assert result.notes == ()
    assert torch.equal(load_deeplab_weights(target).tensors["conv1.weight"], model.conv1.weight)


@pytest.mark.parametrize("images", ["rgb", "bgr"])
def test_the_images_of_a_first_convolution_show_in_its_statistics(images: str) -> None:
    """Filters of many kinds; pictures whose neighbouring pixels are alike, as in photographs."""
    torch.manual_seed(0)
    filters = F.avg_pool2d(torch.randn(48, 3, 9, 9), 3, 1)
    filters = torch.cat([filters, torch.randn(16, 3, 7, 7), filters - filters.mean((2, 3), True)])
    coarse = torch.cat([F.interpolate(torch.rand(8, 3, n, n), 96) for n in (3, 12, 48)])
    seen = (coarse - 0.5) / 0.226 if images == "rgb" else 255 * (coarse - 0.5)
    variance = F.conv2d(seen, filters, stride=2).var((0, 2, 3))
    tensors = {"conv1.weight": filters, "bn1.running_var": variance}
    assert layouts.images_of(tensors) == images


@pytest.mark.parametrize("deviation", [10, 0, float("inf"), None])
def test_statistics_that_do_not_tell_are_asked_about(model, tmp_path: Path, deviation) -> None:
    tensors = foreign.torchvision(model, deviation=deviation or 0)
    if deviation is None:  # folded into weight and bias
        tensors["bn1.running_var"] = torch.ones(64)
    with pytest.raises(ValueError, match=r"--images rgb .* or --images bgr"):
        layouts.recognise(tensors)
    source = tmp_path / "net.pth"
    torch.save(foreign.torchvision(model, deviation=10), source)
    ways: tuple[tuple[layouts.Images, bool], ...] = (("rgb", True), ("bgr", False))
    for images, rescaled in ways:
        target = tmp_path / f"{images}.safetensors"
        convert(source, target, images=images)
        own = load_deeplab_weights(target).tensors["conv1.weight"]
        assert torch.equal(own, model.conv1.weight) != rescaled


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
