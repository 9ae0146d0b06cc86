"""The networks that ``bench training`` trains: recipe, sizes, and what a step needs of memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from lovasz_repro.models.deeplab import Bottleneck, DeepLab

NetworkName = Literal["enet", "deeplab-v2", "deeplab-v2-small"]
BRANCH = 0.2
"""Of what each block of an untrained DeepLab adds: with 1 its features would double 33 times."""
STEM_STD = 100.0
"""About that of the random stem's output on photographs."""


class Rhythm(NamedTuple):
    """What is measured by default on a kind of device."""

    size: str
    """BxHxW or BxCxHxW."""
    rounds: int
    steps: int
    """Of each variant in a round."""


@dataclass(frozen=True)
class Trained:
    """A network and how it is trained in the bench."""

    title: str
    classes: int
    """Where the size names none."""
    rhythms: Mapping[str, Rhythm]
    """Kind of device -> defaults."""
    recipe: Mapping[str, Any]
    """Of ``TrainingConfig``."""
    side: str
    """What the sides of a batch must be."""
    rest: int
    """Their remainder by 8."""
    least_images: int
    bytes_a_pixel: int
    """Of a step in float32, measured; weights not counted."""
    near_loss: float
    """How far the first loss may be from that in float32, in another precision or memory format."""
    optimizer: str
    """As captions name it."""
    ready: Callable[[nn.Module], None]
    """Scales a network that is trained from random weights."""
    compares_processes: bool = False
    compares_losses: bool = False
    """Cross-entropy, and a batch in two parts, in rows of their own."""


@torch.no_grad()
def scale_deeplab(model: nn.Module) -> None:
    """Make the logits of an untrained DeepLab of order one, which costs what they cost trained."""
    assert isinstance(model, DeepLab)
    assert model.bn1.running_var is not None
    model.bn1.running_var.fill_(STEM_STD**2)
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.bn3.weight.fill_(BRANCH)


ENET = Trained(
    title="ENet",
    classes=11,  # of CamVid
    # CamVid as the smaller profiles see it; Cityscapes at half its size, for which ENet was made.
    rhythms=MappingProxyType(
        {"cpu": Rhythm("4x176x240", 5, 3), "cuda": Rhythm("10x20x512x1024", 20, 10)}
    ),
    recipe=MappingProxyType({"lr": 2.5e-4}),  # of experiments/camvid-enet.yaml
    side="multiples of 8, not both 8",
    rest=0,
    least_images=2,
    bytes_a_pixel=3500,
    near_loss=1e-3,
    optimizer="Adam",
    ready=lambda model: None,
    compares_processes=True,
)
DEEPLAB = Trained(
    title="DeepLab-v2 ResNet-101",
    classes=21,  # of Pascal VOC
    rhythms=MappingProxyType({"cpu": Rhythm("2x97x97", 3, 1), "cuda": Rhythm("10x321x321", 5, 3)}),
    recipe=MappingProxyType(
        {  # of experiments/voc-multiclass.yaml, but for a rate that leaves a random network alone
            "lr": 1e-6,
            "optimizer": "sgd",
            "weight_decay": 5e-4,
            "batch_norm": "frozen",
        }
    ),
    side="8 n + 1, as 321",
    rest=1,
    least_images=1,
    bytes_a_pixel=12_000,
    near_loss=1e-2,
    optimizer="SGD",
    ready=scale_deeplab,
    compares_losses=True,
)
SMALL = replace(
    DEEPLAB,
    title="DeepLab-v2, narrow and shallow",
    rhythms=MappingProxyType({"cpu": Rhythm("10x97x97", 5, 3), "cuda": Rhythm("10x321x321", 5, 3)}),
    side="8 n + 1, as 97",
    bytes_a_pixel=1000,
)
TRAINED: dict[NetworkName, Trained] = {
    "enet": ENET,
    "deeplab-v2": DEEPLAB,
    "deeplab-v2-small": SMALL,
}
"""By the names that experiment files use."""
