"""Networks of the user's own: what they may answer with, how they fail, their weights as files."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from lovasz_repro.errors import UserError
from lovasz_repro.models.own_network import (
    OwnNetwork,
    build_own,
    find_own,
    load_own,
    save_own,
    try_own,
)

NETS = """
import torch
from torch import nn

def linear(classes):
    return nn.Conv2d(3, classes, 1)

def outer(classes):
    raise KeyError("no such backbone")

def none(classes):
    return classes

class Shop:
    @staticmethod
    def coarse(classes):
        return nn.Conv2d(3, classes, 4, stride=4)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "my_nets.py"
    file.write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [path for path in __import__("sys").path if path])
    monkeypatch.delitem(__import__("sys").modules, "my_nets", raising=False)
    return file


class Answering(nn.Module):
    """A network that answers with what a function makes of its logits."""

    def __init__(self, answer: Callable[[Tensor], object], stride: int = 1) -> None:
        super().__init__()
        self.head, self.answer = nn.Conv2d(3, 5, stride, stride=stride), answer

    def forward(self, images: Tensor) -> object:
        assert all(side % 32 == 0 for side in images.shape[-2:])
        return self.answer(self.head(images))


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: logits,
        lambda logits: OrderedDict(out=logits, aux=logits.mean()),  # torchvision
        lambda logits: {"loss": None, "logits": logits},
    ],
)
def test_logits_come_at_the_size_of_the_image(answer: Callable[[Tensor], object]) -> None:
    network = Answering(answer)
    images = torch.rand(2, 3, 40, 57)
    torch.testing.assert_close(OwnNetwork(network, 5, "x:y")(images), network.head(images))


def test_coarse_logits_are_upsampled_over_the_continued_image() -> None:
    network = Answering(lambda logits: logits, stride=4)
    images = torch.rand(1, 3, 64, 32)
    expected = nn.functional.interpolate(network.head(images), size=(64, 32), mode="bilinear")
    torch.testing.assert_close(OwnNetwork(network, 5, "x:y")(images), expected)
    assert OwnNetwork(network, 5, "x:y")(images[..., :50, :30]).shape == (1, 5, 50, 30)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (lambda logits: (logits, logits), "tuple"),
        (lambda logits: {"masks": logits}, "dict"),
        (lambda logits: logits[:, :4], "(1, 4, 32, 32)"),
        (lambda logits: logits / logits.shape["C"], "TypeError"),
    ],
)
def test_other_answers_are_told_before_training(
    answer: Callable[[Tensor], object], told: str
) -> None:
    with pytest.raises(UserError, match=r"x:y") as refused:
        try_own(OwnNetwork(Answering(answer), 5, "x:y"), (20, 20))
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_callable_of_the_current_folder_is_found_and_called(nets: Path) -> None:
    assert find_own("my_nets:linear") == nets
    assert build_own("my_nets:linear", 7)(torch.rand(1, 3, 9, 9)).shape == (1, 7, 9, 9)
    assert build_own("my_nets:Shop.coarse", 2)(torch.rand(1, 3, 9, 9)).shape == (1, 2, 9, 9)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("my_nets:outer", "no such backbone"),
        ("my_nets:none", "int"),
        ("my_nets:missing", "missing"),
        ("no_such_nets:linear", "no_such_nets"),
        ("no_such.nets:linear", "no_such"),
    ],
)
def test_what_makes_no_network_is_one_line(nets: Path, source: str, told: str) -> None:
    with pytest.raises(UserError, match=source) as refused:
        build_own(source, 3)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def tied() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    network[1].weight = network[0].weight
    return network


def test_a_snapshot_has_the_networks_own_names_and_comes_back(tmp_path: Path) -> None:
    """Tied weights too, which safetensors alone refuses."""
    model, file = OwnNetwork(tied(), 3, "x:y"), tmp_path / "w.safetensors"
    save_own(model, file, {"dataset": "own", "class_names": ("a", "b", "c")})
    stored = safetensors.torch.load_file(file)
    assert set(stored) == set(model.network.state_dict())
    other = OwnNetwork(tied(), 3, "x:y")
    load_own(other, file)
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(other.eval()(images), model.eval()(images))


@pytest.mark.parametrize("nested", [False, True])
def test_a_state_dict_of_pytorch_is_read_without_running_code(tmp_path: Path, nested: bool) -> None:
    network, file = tied(), tmp_path / "w.pth"
    state = network.state_dict()
    torch.save({"state_dict": state, "epoch": 3} if nested else state, file)
    model = OwnNetwork(tied(), 3, "x:y")
    load_own(model, file)
    assert torch.equal(model.network[0].weight, network[0].weight)  # type: ignore[index]


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code ran')",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"0.weight": torch.zeros(3, 3, 1, 1)}, "lacks"),
        (Evil(), "code"),
        (tied().state_dict() | {"0.weight": torch.zeros(4, 3, 1, 1)}, "(4, 3, 1, 1)"),
        (tied().state_dict() | {"0.bias": torch.full((3,), torch.nan)}, "finite"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, content: object, told: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth") as refused:
        load_own(OwnNetwork(tied(), 3, "x:y"), tmp_path / "w.pth")
    assert told in str(refused.value)
    with pytest.raises(UserError):
        load_own(OwnNetwork(tied(), 3, "x:y"), tmp_path / "none.pth")


def monai_unet(classes: int) -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets")
    return nets.UNet(
        spatial_dims=2, in_channels=3, out_channels=classes, channels=(8, 16, 32), strides=(2, 2)
    )


def segformer(classes: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=classes, depths=[1, 1, 1, 1], hidden_sizes=[8, 16, 24, 32],
        decoder_hidden_size=16,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [pytest.param(monai_unet, marks=pytest.mark.slow), segformer])
def test_networks_of_monai_and_transformers_train(make: Callable[[int], nn.Module]) -> None:
    torch.manual_seed(0)
    model = OwnNetwork(make(4), 4, "x:y")
    try_own(model, (40, 50))
    images, labels = torch.rand(2, 3, 40, 50), torch.randint(4, (2, 40, 50))
    logits = model(images)
    assert logits.shape == (2, 4, 40, 50)
    nn.functional.cross_entropy(logits, labels).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
