"""ENet's weights as its authors have them, and classifiers for new classes."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lovasz_repro.data.classes import CAMVID, CAMVID_FROM_CITYSCAPES, CITYSCAPES
from lovasz_repro.errors import UserError
from lovasz_repro.models.enet import ENet, map_classifier
from lovasz_repro.models.snapshot import load_weights


def refusal(path: Path) -> str:
    """The one line with which loading ends."""
    with pytest.raises(UserError) as caught:
        load_weights(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


# The authors' file


def test_released_weights(enet_weights: Path) -> None:
    weights = load_weights(enet_weights)
    assert (weights.num_classes, weights.decoder, weights.dataset) == (20, "prelu", "cityscapes")
    assert weights.dropout_convention == "torch7"
    learned = [v for k, v in weights.tensors.items() if k.endswith(("weight", "bias"))]
    assert sum(v.numel() for v in learned) == 364_712


def test_every_tensor_of_a_file_lands_in_its_place(enet_file, torch7, tmp_path: Path) -> None:
    network = enet_file(1, 6)
    path = tmp_path / "net.t7"
    path.write_bytes(torch7(network.root))
    tensors = load_weights(path).tensors

    def leaves(module):
        for child in module.fields.get("modules", [module]):
            yield from [child] if child is module else leaves(child)

    written = [
        leaf.fields[key]
        for leaf in leaves(network.root)
        for key in ("weight", "bias", "running_mean", "running_var")
        if key in leaf.fields
    ]
    read = [value for key, value in tensors.items() if not key.endswith("num_batches_tracked")]
    assert len(read) == len(written)
    for ours, theirs in zip(read, written, strict=True):
        assert np.array_equal(ours.numpy(), theirs)


def test_one_dimensional_convolution_weights(enet_file, torch7, tmp_path: Path) -> None:
    """SpatialConvolutionMM keeps its weights as (out, in * height * width)."""
    network = enet_file(1, 6)
    expected = network.root.fields["modules"][0].fields["modules"][0].fields["weight"]
    convolution = network.root.fields["modules"][0].fields["modules"][0]
    convolution.name = "nn.SpatialConvolutionMM"
    convolution.fields["weight"] = expected.reshape(13, 27)
    path = tmp_path / "net.t7"
    path.write_bytes(torch7(network.root))
    assert np.array_equal(load_weights(path).tensors["initial.conv.weight"].numpy(), expected)


def change(layer_index: int, **fields):
    def apply(network) -> None:
        layer = network.root.fields["modules"][layer_index]
        layer.fields.update(fields)

    return apply


def drop_block(network) -> None:
    del network.root.fields["modules"][9]


def share_block(network) -> None:
    modules = network.root.fields["modules"]
    modules[6] = modules[5]


def endless(network) -> None:
    network.root.fields["modules"].append(network.root)


def wrong_size(network) -> None:
    network.root.fields["modules"][2].fields["running_var"] = np.ones(15, np.float32)


def no_number(network) -> None:
    laughs: dict = {}
    for _ in range(40):
        laughs = {"a": laughs, "b": laughs}  # 2^40 entries when printed
    network.root.fields["modules"][-1].fields["kH"] = laughs


def not_finite(network) -> None:
    network.root.fields["modules"][3].fields["weight"][4] = np.nan


def no_bias(network) -> None:
    del network.root.fields["modules"][0].fields["modules"][0].fields["bias"]


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (change(2, eps=1e-5), "layer 3 is batch normalisation of 16, eps 1e-05, ENet has"),
        (change(3, nOutputPlane=1), "layer 4 is PReLU of 1, ENet has PReLU of 16"),
        (change(-1, kH=3), "is transposed convolution 16->6 3x2"),
        (change(-1, weight=np.zeros((16, 5, 2, 2), np.float32)), "weight of a"),
        (drop_block, "ENet has"),
        (share_block, "appears twice"),
        (endless, "appears twice"),
        (wrong_size, "running_var of a nn.SpatialBatchNormalization is (15,), ENet has (16,)"),
        (no_number, "'kH' is no number"),
        (not_finite, "not finite"),
        (no_bias, "no bias"),
    ],
)
def test_other_architecture_is_named(enet_file, torch7, tmp_path: Path, damage, problem) -> None:
    network = enet_file(1, 6)
    damage(network)
    path = tmp_path / "net.t7"
    path.write_bytes(torch7(network.root))
    assert problem in refusal(path)


def test_other_network_is_named(torch7, torch7_module, tmp_path: Path) -> None:
    linear = torch7_module("nn.Linear", {"weight": np.ones((2, 2), np.float32)})
    path = tmp_path / "net.t7"
    path.write_bytes(torch7(torch7_module("nn.Sequential", {"modules": [linear]})))
    assert "ends with Linear, not ENet's classifier" in refusal(path)
    path.write_bytes(torch7({"epoch": 3}))
    assert "not an ENet: holds a dict" in refusal(path)


@settings(max_examples=15)
@given(data=st.data())
def test_damaged_network_files(random_enet: Path, tmp_path_factory, data) -> None:
    content = bytearray(random_enet.read_bytes())
    # The structure lies between the tensors; near a name it is hit often.
    landmarks = [content.find(name) for name in (b"modules", b"kH", b"weight", b"torch.", b"nn.")]
    start = data.draw(st.sampled_from(landmarks)) + data.draw(st.integers(-24, 40))
    content[max(start, 0)] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.net"
    path.write_bytes(content)
    try:
        load_weights(path)
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017


# Files that are something else


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not a readable Torch7 file"),
        (b"<!DOCTYPE html>", "not a readable Torch7 file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "not a readable Torch7 file"),
        (b"PK\x03\x04rest", "a PyTorch pickle"),
        (b"\x80\x02\x8a\x0al\xfc", "a PyTorch pickle"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "enet.net"
    path.write_bytes(content)
    message = refusal(path)
    assert problem in message
    assert ".safetensors" in message


# New classes


@pytest.fixture(scope="module")
def model() -> ENet:
    torch.manual_seed(0)
    return ENet(3).eval()


def test_mapped_classifier_scores_like_the_old_one(model: ENet) -> None:
    before = copy.deepcopy(model.state_dict())
    mapped = map_classifier(model, {0: 2, 1: 0, 2: 2, 3: 1})
    images = torch.rand(2, 3, 16, 16)
    old, new = model(images), mapped(images)
    torch.testing.assert_close(new, old[:, [2, 0, 2, 1]])
    with torch.no_grad():
        for p in mapped.parameters():
            p.zero_()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_new_classes_are_drawn(model: ENet) -> None:
    torch.manual_seed(5)
    first = map_classifier(model, {0: None, 1: 0})
    torch.manual_seed(5)
    second = map_classifier(model, {0: None, 1: 0})
    third = map_classifier(model, {0: None, 1: 0})
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight[:, 0], third.classifier.weight[:, 0])
    assert torch.equal(first.classifier.weight[:, 1], model.classifier.weight[:, 0])
    bound = 1 / (2 * 2 * 2) ** 0.5  # PyTorch's uniform initialisation: fan-in is outputs x 2 x 2
    assert first.classifier.weight[:, 0].abs().max() <= bound
    assert first.classifier.weight[:, 0].std() > bound / 4


@pytest.mark.parametrize("mapping", [{}, {1: 0}, {0: 0, 2: 1}, {0: 3}, {0: -1}])
def test_impossible_mappings(model: ENet, mapping) -> None:
    with pytest.raises(ValueError, match="class"):
        map_classifier(model, mapping)


def test_camvid_starts_from_the_classes_of_the_same_meaning() -> None:
    pairs = {
        CAMVID.names[new]: CITYSCAPES.names[old]
        for new, old in CAMVID_FROM_CITYSCAPES.items()
        if old is not None
    }
    assert pairs == {
        "sky": "sky",
        "building": "building",
        "pole": "pole",
        "road": "road",
        "pavement": "sidewalk",
        "tree": "vegetation",
        "sign symbol": "traffic sign",
        "fence": "fence",
        "car": "car",
        "pedestrian": "person",
        "bicyclist": "bicycle",
    }


def test_released_network_for_camvid_knows_its_classes(
    enet_weights: Path, camvid_root: Path
) -> None:
    """Better than the 16.8 % share of sky or 31.7 % of road that a constant answer would get."""
    mapped = map_classifier(load_weights(enet_weights).build(), CAMVID_FROM_CITYSCAPES).eval()
    right = total = 0
    for path in sorted((camvid_root / "test").iterdir())[60:200:70]:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        with Image.open(camvid_root / "testannot" / f"{path.stem}.png") as image:
            labels = np.asarray(image)
        images = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        with torch.inference_mode():
            answer = mapped(images).argmax(1)[0].numpy()
        valid = labels < 11
        right += int((answer == labels)[valid].sum())
        total += int(valid.sum())
    assert right / total > 0.5
