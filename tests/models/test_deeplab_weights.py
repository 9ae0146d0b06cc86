"""Our weight files of DeepLab-v2: round trips, other networks, files that are something else."""

import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from lovasz_repro.errors import UserError
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.snapshot import (
    encoded_deeplab,
    load_deeplab_weights,
    save_weights,
    stored_tensors,
)
from tests.foreign_deeplab import BLOCKS, random_deeplab

METADATA = {"dataset": "toy", "class_names": ["a", "b", "c"], "run": "abc123"}


@pytest.fixture
def model() -> DeepLab:
    return random_deeplab(outputs=3)


@pytest.fixture
def snapshot(model: DeepLab, tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    save_weights(model, path, METADATA)
    return path


@pytest.fixture
def backbone(model: DeepLab, tmp_path: Path) -> Path:
    path = tmp_path / "backbone.safetensors"
    tensors = {k: v for k, v in stored_tensors(model).items() if not k.startswith("aspp.")}
    path.write_bytes(encoded_deeplab(tensors, {"dataset": "coco", "class_names": ()}))
    return path


def refusal(path: Path) -> str:
    """The one line with which loading ends."""
    with pytest.raises(UserError) as caught:
        load_deeplab_weights(path)
    message = str(caught.value)
    assert message.isprintable()
    assert str(path) in message
    return message


def same(model: DeepLab, other: DeepLab, *, classifier: bool = True) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    names = [name for name in ours if classifier or not name.startswith("aspp.")]
    return all(torch.equal(ours[name], theirs[name]) for name in names)


def test_round_trip(model: DeepLab, snapshot: Path) -> None:
    weights = load_deeplab_weights(snapshot)
    assert (weights.num_classes, weights.dataset) == (3, "toy")
    assert weights.class_names == ("a", "b", "c")
    assert weights.notes == {"run": "abc123", "bn_eps": "1e-05"}
    other = random_deeplab(seed=1, outputs=3)
    assert not same(model, other)
    pointers = [p.data_ptr() for p in other.parameters()]
    weights.load_into(other)
    assert same(model, other)
    assert pointers == [p.data_ptr() for p in other.parameters()]  # an optimizer keeps its grip
    assert not other.bn1.weight.requires_grad
    assert other.conv1.weight.requires_grad


def test_the_header_says_what_the_network_is(snapshot: Path, backbone: Path) -> None:
    with safetensors.safe_open(snapshot, framework="pt") as file:
        header = file.metadata()
    assert header["architecture"] == "deeplab-v2"
    assert (header["blocks"], header["width"]) == ("[2, 2, 3, 1]", "4")
    assert header["num_classes"] == "3"
    with safetensors.safe_open(backbone, framework="pt") as file:
        assert file.metadata()["num_classes"] == "none"


def test_same_weights_give_the_same_bytes(model: DeepLab, snapshot: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    reordered = dict(reversed(METADATA.items()))
    save_weights(model.to(memory_format=torch.channels_last), again, reordered)
    assert again.read_bytes() == snapshot.read_bytes()


def test_loading_draws_no_random_numbers(model: DeepLab, snapshot: Path) -> None:
    before = torch.get_rng_state()
    load_deeplab_weights(snapshot).load_into(model)
    assert torch.equal(before, torch.get_rng_state())


def test_backbone_into_a_network_of_other_outputs(model, snapshot: Path, backbone: Path) -> None:
    for path in (snapshot, backbone):
        other = random_deeplab(seed=1, outputs=1)
        classifier = [p.clone() for p in other.aspp.parameters()]
        load_deeplab_weights(path).load_into(other, classifier=False)
        assert same(model, other, classifier=False)
        assert all(
            torch.equal(*pair) for pair in zip(classifier, other.aspp.parameters(), strict=True)
        )


def test_backbone_alone_has_no_classifier(model: DeepLab, backbone: Path) -> None:
    weights = load_deeplab_weights(backbone)
    assert (weights.num_classes, weights.class_names, weights.dataset) == (None, (), "coco")
    with pytest.raises(UserError, match="backbone alone, without a classifier"):
        weights.load_into(model)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (lambda: DeepLab(3), r"blocks \(2, 2, 3, 1\) and width 4; the model has blocks \(3, 4, 23"),
        (lambda: DeepLab(3, blocks=BLOCKS, width=8), "width 4; the model has .* width 8"),
        (lambda: DeepLab(2, blocks=BLOCKS, width=4), "have 3 outputs, the model 2"),
        (lambda: DeepLab(3, blocks=BLOCKS, width=4, dilations=(6, 12)), "do not fit the model: "),
    ],
)
def test_other_network_stays_as_it_is(snapshot: Path, other: Any, problem: str) -> None:
    if problem.startswith("blocks"):
        with torch.device("meta"):  # the full depth, without its 176 MB
            network = other()
    else:
        network = other()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    with pytest.raises(UserError, match=problem) as caught:
        load_deeplab_weights(snapshot).load_into(network)
    assert str(caught.value).isprintable()
    if network.conv1.weight.device.type == "cpu":
        assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


# Files that are something else


def test_foreign_files_are_sent_to_the_conversion(tmp_path: Path) -> None:
    for name, content in (
        ("init.caffemodel", b"\n\x06ResNet" + bytes(99)),
        ("a.pth", b"PK\x03\x04"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert f"lovasz-repro weights convert {path} DST.safetensors" in refusal(path)
    path = tmp_path / "theirs.safetensors"
    safetensors.torch.save_file({"Scale.conv1.weight": torch.ones(1)}, path)
    assert "weights convert" in refusal(path)


def test_weights_of_enet(tmp_path: Path) -> None:
    path = tmp_path / "enet.safetensors"
    save_weights(ENet(3), path, METADATA)
    assert "weights of 'enet', not of 'deeplab-v2'" in refusal(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.safetensors")
    assert "directory" in refusal(tmp_path)


def rewrite(path: Path, tensors: Any = None, **header: str | None) -> None:
    """The file at `path` with other tensors or header entries (None: without it)."""
    with safetensors.safe_open(path, framework="pt") as file:
        old = dict(file.metadata())
        kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    entries = {k: v for k, v in {**old, **header}.items() if v is not None}
    safetensors.torch.save_file(kept if tensors is None else tensors(kept), path, entries)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"architecture": None}, "no weights of ours"),
        ({"architecture": "\x1b" * 999}, "weights of "),
        ({"blocks": "[3, 4, 23, 3]"}, "'blocks' disagrees with its tensors ([2, 2, 3, 1])"),
        ({"width": None}, "'width' disagrees"),
        ({"num_classes": "none"}, "'num_classes' disagrees with its tensors (3)"),
        ({"class_names": None}, "no list of names"),
        ({"class_names": "[" * 100_000}, "no list of names"),
        ({"class_names": '["a"]'}, "1 class names for 3 outputs"),
    ],
)
def test_wrong_header(snapshot: Path, header: dict[str, str | None], problem: str) -> None:
    rewrite(snapshot, **header)
    message = refusal(snapshot)
    assert problem in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("tensors", "problem"),
    [
        (lambda t: {k: v for k, v in t.items() if "layer4" not in k}, "blocks must be four"),
        (
            lambda t: {k: v for k, v in t.items() if "aspp.2" not in k},
            "lacks tensor 'aspp.2.weight' (2",
        ),
        (lambda t: {k: v for k, v in t.items() if k != "conv1.weight"}, "no 'conv1.weight'"),
        (lambda t: {**t, "extra\n" * 99: torch.ones(1)}, "surplus tensor 'extra"),
        (lambda t: {**t, "layer1": torch.ones(1)}, "surplus tensor 'layer1' (1 such)"),
        (lambda t: {**t, "bn1.bias": torch.ones(5)}, "(5,), not torch.float32 (4,)"),
        (lambda t: {**t, "bn1.bias": torch.ones(4).half()}, "torch.float16"),
        (lambda t: {**t, "bn1.bias": torch.full((4,), torch.inf)}, "not finite"),
        (lambda t: {**t, "bn1.running_var": -torch.ones(4)}, "variance below 0"),
        (
            lambda t: {**t, "conv1.weight": torch.ones(2**20, 3, 0, 7)},
            "conv1.weight",
        ),
    ],
)
def test_wrong_tensors(snapshot: Path, tensors: Any, problem: str) -> None:
    rewrite(snapshot, tensors)
    message = refusal(snapshot)
    assert problem in message
    assert len(message) < 600


def test_truncated_file(snapshot: Path) -> None:
    content = snapshot.read_bytes()
    for part in range(50):
        snapshot.write_bytes(content[: len(content) * part // 50])
        refusal(snapshot)


# Writing


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"dataset": "toy"}, "'class_names'"),
        ({"class_names": ["a", "b", "c"]}, "'dataset'"),
        ({"dataset": "toy", "class_names": ["a"]}, "1 class names for 3 outputs"),
        ({"dataset": "toy", "class_names": []}, "0 class names for 3 outputs"),
    ],
)
def test_metadata_is_required(model: DeepLab, tmp_path: Path, metadata, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        save_weights(model, tmp_path / "a.safetensors", metadata)
    assert list(tmp_path.iterdir()) == []


def test_backbone_with_class_names_is_refused(model: DeepLab, tmp_path: Path) -> None:
    tensors = {k: v for k, v in stored_tensors(model).items() if not k.startswith("aspp.")}
    with pytest.raises(ValueError, match="3 class names for no outputs"):
        encoded_deeplab(tensors, METADATA)


def test_failed_write_keeps_the_old_file(
    model: DeepLab, snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(model, snapshot, {**METADATA, "run": "new"})
    assert snapshot.read_bytes() == before
    assert list(snapshot.parent.iterdir()) == [snapshot]
