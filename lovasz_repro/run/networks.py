"""The networks that experiments train: how each is fed, answers, is optimised, loaded and kept.

One line in ``NETWORKS`` per network. ``models/`` has the networks themselves.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lovasz_repro.config.schema import BASIS, CellConfig, ModelConfig, TrainingConfig
from lovasz_repro.data.datasets import kind_of
from lovasz_repro.data.examples import GRID_STRIDE, to_caffe
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predictor import Feeding, continue_to_step
from lovasz_repro.models import deeplab, snapshot
from lovasz_repro.models.deeplab import EvidenceNet
from lovasz_repro.models.enet import ENet, map_classifier
from lovasz_repro.models.own_network import OwnNetwork, build_own, load_own, save_own
from lovasz_repro.models.snapshot import RELEASED_OUTPUTS, load_weights


@dataclass(frozen=True, kw_only=True)
class NetworkKind(Feeding):
    """What the pipeline needs to know of a network."""

    build: Callable[[int, ModelConfig], nn.Module]
    """(classes, config) -> the network at random (seeded)."""
    load: Callable[[nn.Module, Path, CellConfig], None]
    """Gives a network the starting weights in a file."""
    save: Callable[[Any, Path, Mapping[str, Any]], None]
    """Writes a weights file with metadata."""
    groups: Callable[[nn.Module, TrainingConfig], Iterable[Any]]
    """What the optimiser is given."""

    def on_canvas(self, least_side: int | None) -> "NetworkKind":
        """The same, but that smaller images are continued to ``least_side`` pixels a side."""
        if least_side is None:
            return self
        return replace(self, prepare=partial(caffe_on_the_grid, least_side=least_side))


def load_enet(model: nn.Module, path: Path, cell: CellConfig) -> None:
    """The released Cityscapes network, its classifier mapped to the classes of the data set; or a
    basis network."""
    if cell.model.weights == BASIS:
        model.load_state_dict(load_weights(path).build().state_dict())
        return
    released = load_released(path, cell.model.decoder)
    mapping = kind_of(cell.data).from_cityscapes
    if mapping:
        released = map_classifier(released, mapping)
    model.load_state_dict(released.state_dict())


def load_released(path: Path, decoder: str) -> ENet:
    """The released Cityscapes network, or another with its outputs.

    Raises:
        UserError: the file cannot be read, or holds a network with other outputs or decoder.
    """
    weights = load_weights(path)
    if weights.num_classes != RELEASED_OUTPUTS:
        raise UserError(
            f"weights {path}: {weights.num_classes} outputs; training starts from a network with "
            f"the {RELEASED_OUTPUTS} of the released one (unlabelled and Cityscapes' 19 classes)."
        )
    if weights.decoder != decoder:
        raise UserError(
            f"weights {path}: the decoder is {weights.decoder}, model.decoder is {decoder}."
        )
    return weights.build()


def load_deeplab(model: nn.Module, path: Path, cell: CellConfig) -> None:
    """COCO's backbone, whose classifier is for other classes; or a whole basis network."""
    assert isinstance(model, deeplab.DeepLab)
    weights = snapshot.load_deeplab_weights(path)
    weights.load_into(model, classifier=cell.model.weights == "basis")


def load_evidence_net(model: nn.Module, path: Path, cell: CellConfig) -> None:
    """A basis network."""
    assert isinstance(model, EvidenceNet)
    snapshot.load_evidence_net(model, path)


def load_callable(model: nn.Module, path: Path, cell: CellConfig) -> None:
    """All of a user's own network."""
    assert isinstance(model, OwnNetwork)
    load_own(model, path)


def caffe_on_the_grid(
    images: Tensor, channels_last: bool, dtype: torch.dtype, least_side: int = 1
) -> Tensor:
    """RGB (B, 3, H, W) uint8 as DeepLab takes it, continued with the mean to the right and below.

    The sides become 8 n + 1 pixels, ``least_side`` or more (513: DeepLab's authors). The grid of
    the logits then spans the image exactly, and ``from_the_grid`` undoes it.
    """
    return continue_to_step(to_caffe(images, channels_last, dtype), GRID_STRIDE, least_side)


def from_the_grid(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, C, h, w) on every 8th pixel, upsampled and cut to (H, W); as they are if equal."""
    if logits.shape[-2:] == tuple(size):
        return logits
    full = [GRID_STRIDE * (points - 1) + 1 for points in logits.shape[-2:]]
    return deeplab.upsample(logits, full)[..., : size[0], : size[1]]


def as_they_are(images: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
    """Evidence is what the network takes."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return images.to(dtype, memory_format=memory_format)


def all_parameters(model: nn.Module, config: TrainingConfig) -> Iterable[Any]:
    """Every parameter, alike."""
    return [{"params": list(model.parameters()), "weight_decay": config.weight_decay}]


def deeplab_groups(model: nn.Module, config: TrainingConfig) -> Iterable[Any]:
    """Backbone, classifier weights and classifier biases, with learning rates of their own."""
    assert isinstance(model, deeplab.DeepLab)
    return deeplab.parameter_groups(model, config.lr_multipliers, config.weight_decay)


_DEEPLAB = partial(
    NetworkKind,
    load=load_deeplab,
    save=snapshot.save_weights,
    prepare=caffe_on_the_grid,
    to_size=from_the_grid,
    groups=deeplab_groups,
)

NETWORKS: dict[str, NetworkKind] = {
    "enet": NetworkKind(
        build=lambda classes, config: ENet(classes, config.decoder, config.dropout),
        load=load_enet,
        save=snapshot.save_weights,
        groups=all_parameters,
    ),
    "deeplab-v2": _DEEPLAB(
        build=lambda classes, config: deeplab.DeepLab(classes, bn_eps=config.bn_eps)
    ),
    "deeplab-v2-small": _DEEPLAB(build=lambda classes, config: deeplab.small_deeplab(classes)),
    "evidence-net": NetworkKind(
        build=lambda classes, config: EvidenceNet(classes),
        load=load_evidence_net,
        save=snapshot.save_weights,
        prepare=as_they_are,
        to_size=from_the_grid,
        groups=all_parameters,
    ),
    "callable": NetworkKind(
        build=lambda classes, config: build_own(config.callable or "", classes),
        load=load_callable,
        save=save_own,
        groups=all_parameters,
    ),
}
