"""Our own weight files: round trips, other networks, damage, and what is refused to be written."""

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import nn

from lovasz_repro.errors import UserError
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.snapshot import (
    encoded_deeplab,
    load_deeplab_weights,
    load_weights,
    save_weights,
    stored_tensors,
)
from tests.foreign_deeplab import BLOCKS, random_deeplab

METADATA = {"dataset": "toy", "class_names": ["a", "b", "c"], "run": "abc123"}


class Saved(NamedTuple):
    """A network and its file."""

    model: nn.Module
    path: Path
    load: Callable[[Path], Any]

    def refusal(self, path: Path | None = None) -> str:
        """The one line with which loading ends."""
        with pytest.raises(UserError) as caught:
            self.load(path or self.path)
        message = str(caught.value)
        assert message.isprintable()
        assert str(path or self.path) in message
        assert len(message) < 600
        return message


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    enet = ENet(3)
    enet(torch.rand(2, 3, 16, 16))  # moves the running statistics
    return {"enet": enet, "deeplab": random_deeplab(outputs=3)}


def saved(name: str, networks: dict[str, nn.Module], folder: Path) -> Saved:
    path = folder / f"{name}.safetensors"
    save_weights(networks[name], path, METADATA)
    load = load_weights if name == "enet" else load_deeplab_weights
    return Saved(copy.deepcopy(networks[name]), path, load)


@pytest.fixture
def enet(networks: dict[str, nn.Module], tmp_path: Path) -> Saved:
    return saved("enet", networks, tmp_path)


@pytest.fixture
def deeplab(networks: dict[str, nn.Module], tmp_path: Path) -> Saved:
    return saved("deeplab", networks, tmp_path)


@pytest.fixture(params=["enet", "deeplab"])
def either(request: pytest.FixtureRequest, networks: dict[str, nn.Module], tmp_path: Path) -> Saved:
    return saved(request.param, networks, tmp_path)


@pytest.fixture
def backbone(networks: dict[str, Any], tmp_path: Path) -> Path:
    path, tensors = tmp_path / "backbone.safetensors", stored_tensors(networks["deeplab"])
    tensors = {k: v for k, v in tensors.items() if not k.startswith("aspp.")}
    path.write_bytes(encoded_deeplab(tensors, {"dataset": "coco", "class_names": ()}))
    return path


# ---- both networks -------------------------------------------------------------------------------


def test_round_trip(either: Saved) -> None:
    weights = either.load(either.path)
    assert (weights.num_classes, weights.dataset) == (3, "toy")
    assert weights.class_names == ("a", "b", "c")
    assert weights.notes.pop("bn_eps", "1e-05") == "1e-05"
    assert weights.notes == {"run": "abc123"}
    loaded, other = weights.build(), weights.build()
    assert loaded.training
    ours = either.model.state_dict()
    assert list(loaded.state_dict()) == list(ours)
    for name, theirs in loaded.state_dict().items():
        assert torch.equal(ours[name], theirs) or name.endswith("num_batches_tracked")
    with torch.no_grad():
        next(loaded.parameters()).add_(1)
    assert not torch.equal(next(loaded.parameters()), next(other.parameters()))


def test_building_draws_no_random_numbers(enet: Saved, deeplab: Saved) -> None:
    before = torch.get_rng_state()
    load_weights(enet.path).build()
    load_deeplab_weights(deeplab.path).load_into(deeplab.model)
    assert torch.equal(before, torch.get_rng_state())


def test_same_weights_give_the_same_bytes(either: Saved, tmp_path: Path) -> None:
    again, reordered = tmp_path / "again.safetensors", dict(reversed(METADATA.items()))
    save_weights(either.model.to(memory_format=torch.channels_last), again, reordered)
    assert again.read_bytes() == either.path.read_bytes()


def test_the_header_says_what_the_network_is(enet: Saved, deeplab: Saved, backbone: Path) -> None:
    """In plain JSON."""
    headers = []
    for path in (enet.path, deeplab.path, backbone):
        with safetensors.safe_open(path, framework="pt") as file:
            headers.append(file.metadata())
    assert json.loads(headers[0]["class_names"]) == ["a", "b", "c"]
    assert [header["architecture"] for header in headers] == ["enet", "deeplab-v2", "deeplab-v2"]
    assert [header["num_classes"] for header in headers] == ["3", "3", "none"]
    assert (headers[1]["blocks"], headers[1]["width"]) == ("[2, 2, 3, 1]", "4")


def test_failed_write_keeps_the_old_file(either: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    before = either.path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(either.model, either.path, {**METADATA, "run": "new"})
    assert either.path.read_bytes() == before
    assert list(either.path.parent.iterdir()) == [either.path]


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"dataset": "toy"}, "'class_names'"),
        ({"class_names": ["a", "b", "c"]}, "'dataset'"),
        ({"dataset": "toy", "class_names": ["a"]}, "1 class names for 3 outputs"),
        ({"dataset": "toy", "class_names": []}, "0 class names for 3 outputs"),
    ],
)
def test_metadata_is_required(
    networks: dict[str, nn.Module], tmp_path: Path, metadata: dict[str, Any], problem: str
) -> None:
    for model in networks.values():
        with pytest.raises(ValueError, match=problem):
            save_weights(model, tmp_path / "a.safetensors", metadata)
    assert list(tmp_path.iterdir()) == []


def test_missing_file_and_folder(either: Saved, tmp_path: Path) -> None:
    assert "No such file" in either.refusal(tmp_path / "absent.net")
    assert "directory" in either.refusal(tmp_path)


def test_truncated_files(either: Saved) -> None:
    content = either.path.read_bytes()
    lengths = [0, 4, 8, 9, 100, *(len(content) * part // 12 for part in range(1, 12))]
    for length in [*lengths, len(content) - 1]:
        either.path.write_bytes(content[:length])
        either.refusal()


def rewrite(path: Path, tensors: Any = None, **header: str | None) -> None:
    """The file at `path` with other tensors or header entries (None: without it)."""
    with safetensors.safe_open(path, framework="pt") as file:
        old = dict(file.metadata())
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries = {k: v for k, v in {**old, **header}.items() if v is not None}
    safetensors.torch.save_file(kept if tensors is None else tensors(kept), path, entries)


@pytest.mark.parametrize(
    ("network", "header", "problem"),
    [
        ("enet", {"architecture": None}, "architecture 'missing'"),
        ("enet", {"architecture": "deeplab"}, "not an ENet: architecture 'deeplab'"),
        ("enet", {"class_names": None}, "no entry 'class_names'"),
        ("enet", {"class_names": "a, b"}, "no list of names"),
        ("enet", {"class_names": "[1, 2, 3]"}, "no list of names"),
        ("enet", {"class_names": "[" * 100_000}, "no list of names"),
        ("enet", {"class_names": '["a"]'}, "names 1 classes"),
        ("enet", {"num_classes": "9" * 30}, "names 3 classes"),
        ("enet", {"num_classes": "2", "class_names": '["a", "b"]'}, "'classifier.bias' is"),
        ("enet", {"decoder": "elu"}, "decoder must be"),
        ("enet", {"decoder": "relu"}, "has a surplus tensor"),
        ("enet", {"dropout_convention": "caffe"}, "dropout_convention must be"),
        ("deeplab", {"architecture": None}, "no weights of ours"),
        ("deeplab", {"architecture": "enet"}, "weights of 'enet', not of 'deeplab-v2'"),
        ("deeplab", {"architecture": "\x1b" * 999}, "weights of "),
        ("deeplab", {"blocks": "[3, 4, 23, 3]"}, "'blocks' disagrees with its tensors ([2, 2, 3"),
        ("deeplab", {"width": None}, "'width' disagrees"),
        ("deeplab", {"num_classes": "none"}, "'num_classes' disagrees with its tensors (3)"),
        ("deeplab", {"class_names": None}, "no list of names"),
        ("deeplab", {"class_names": '["a"]'}, "1 class names for 3 outputs"),
    ],
)
def test_wrong_header(
    network: str, header: dict[str, str | None], problem: str, request: pytest.FixtureRequest
) -> None:
    found: Saved = request.getfixturevalue(network)
    rewrite(found.path, **header)
    assert problem in found.refusal()


def without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda tensors: {name: t for name, t in tensors.items() if part not in name}


@pytest.mark.parametrize(
    ("network", "change", "problem"),
    [
        ("enet", without("up4"), "lacks tensor 'up4."),
        ("enet", {"extra": torch.ones(1)}, "has a surplus tensor 'extra' (1 such)"),
        ("enet", {"classifier.bias": torch.ones(4)}, "(4,), not torch.float32 (3,)"),
        ("enet", {"classifier.bias": torch.full((3,), torch.nan)}, "not finite"),
        ("deeplab", without("layer4"), "blocks must be four"),
        ("deeplab", without("aspp.2"), "lacks tensor 'aspp.2.weight' (2"),
        ("deeplab", lambda t: {k: v for k, v in t.items() if k != "conv1.weight"},
         "no 'conv1.weight'"),
        ("deeplab", {"extra\n" * 99: torch.ones(1)}, "surplus tensor 'extra"),
        ("deeplab", {"layer1": torch.ones(1)}, "surplus tensor 'layer1' (1 such)"),
        ("deeplab", {"bn1.bias": torch.ones(4).half()}, "torch.float16"),
        ("deeplab", {"bn1.bias": torch.full((4,), torch.inf)}, "not finite"),
        ("deeplab", {"bn1.running_var": -torch.ones(4)}, "variance below 0"),
        ("deeplab", {"conv1.weight": torch.ones(2**20, 3, 0, 7)}, "conv1.weight"),
    ],
)  # fmt: skip
def test_wrong_tensors(
    network: str, change: Any, problem: str, request: pytest.FixtureRequest
) -> None:
    found: Saved = request.getfixturevalue(network)
    rewrite(found.path, change if callable(change) else lambda tensors: tensors | change)
    assert problem in found.refusal()


# ---- ENet ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decoder", "convention"), [("prelu", "pytorch"), ("relu", "torch7")])
def test_snapshot_keeps_the_variant(tmp_path: Path, decoder: Any, convention: Any) -> None:
    torch.manual_seed(0)
    model = ENet(3, decoder, convention).to(memory_format=torch.channels_last)
    path = tmp_path / "weights.bin"  # told by its content
    save_weights(model, path, METADATA)
    loaded, images = load_weights(path).build(), torch.rand(1, 3, 16, 24)
    assert (loaded.decoder, loaded.dropout_convention) == (decoder, convention)
    torch.testing.assert_close(loaded.eval()(images), model.eval()(images))


# ---- DeepLab -------------------------------------------------------------------------------------


def same(model: Any, other: DeepLab, *, classifier: bool = True) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    names = [name for name in ours if classifier or not name.startswith("aspp.")]
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def test_weights_go_into_a_network_in_place(deeplab: Saved) -> None:
    other = random_deeplab(seed=1, outputs=3)
    assert not same(deeplab.model, other)
    pointers = [p.data_ptr() for p in other.parameters()]
    load_deeplab_weights(deeplab.path).load_into(other)
    assert same(deeplab.model, other)
    assert pointers == [p.data_ptr() for p in other.parameters()]  # an optimizer keeps its grip
    assert not other.bn1.weight.requires_grad
    assert other.conv1.weight.requires_grad


def test_backbone_into_a_network_of_other_outputs(deeplab: Saved, backbone: Path) -> None:
    for path in (deeplab.path, backbone):
        other = random_deeplab(seed=1, outputs=1)
        classifier = [p.clone() for p in other.aspp.parameters()]
        load_deeplab_weights(path).load_into(other, classifier=False)
        assert same(deeplab.model, other, classifier=False)
        assert all(
            torch.equal(*pair) for pair in zip(classifier, other.aspp.parameters(), strict=True)
        )


def test_backbone_alone_has_no_classifier(deeplab: Saved, backbone: Path) -> None:
    weights = load_deeplab_weights(backbone)
    assert (weights.num_classes, weights.class_names, weights.dataset) == (None, (), "coco")
    with pytest.raises(UserError, match="backbone alone, without a classifier"):
        weights.load_into(deeplab.model)
    tensors = load_deeplab_weights(backbone).tensors
    with pytest.raises(ValueError, match="3 class names for no outputs"):
        encoded_deeplab(tensors, METADATA)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lambda: DeepLab(3), r"blocks \(2, 2, 3, 1\) and width 4; the model has blocks \(3, 4, 23"),
        (lambda: DeepLab(3, blocks=BLOCKS, width=8), "width 4; the model has .* width 8"),
        (lambda: DeepLab(2, blocks=BLOCKS, width=4), "have 3 outputs, the model 2"),
        (lambda: DeepLab(3, blocks=BLOCKS, width=4, dilations=(6, 12)), "do not fit the model: "),
    ],
)
def test_other_network_stays_as_it_is(deeplab: Saved, other: Any, problem: str) -> None:
    if problem.startswith("blocks"):
        with torch.device("meta"):  # the full depth, without its 176 MB
            network = other()
    else:
        network = other()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(UserError, match=problem) as caught:
        load_deeplab_weights(deeplab.path).load_into(network)
    assert str(caught.value).isprintable()
    if network.conv1.weight.device.type == "cpu":
        assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


def test_foreign_files_are_sent_to_the_conversion(deeplab: Saved, tmp_path: Path) -> None:
    for name, content in (
        ("init.caffemodel", b"\n\x06ResNet" + bytes(99)),
        ("a.pth", b"PK\x03\x04"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert f"lovasz-repro weights convert {path} DST.safetensors" in deeplab.refusal(path)
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"Scale.conv1.weight": torch.ones(1)}, path)
    assert "weights convert" in deeplab.refusal(path)
