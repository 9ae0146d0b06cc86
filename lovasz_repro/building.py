"""What a cell's config names, as objects: data sets, network, optimiser, batches."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lovasz_repro.config import CellConfig, TrainingConfig
from lovasz_repro.data.sampling import Draw, EquibatchBatches, ShareOfBatches, ShuffledBatches
from lovasz_repro.datasets import DATASETS, ScoredSet, TrainingSet
from lovasz_repro.errors import UserError
from lovasz_repro.models.batch_norm import synchronise_batch_norm
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.layers import BatchShare, share_dropout
from lovasz_repro.models.weights import RELEASED_OUTPUTS, load_weights, map_classifier
from lovasz_repro.place import Inputs, Place
from lovasz_repro.training.distributed import Team

EVALUATION_BATCH = 10
"""Images that are scored at once, at most."""
EVALUATION_PIXELS = EVALUATION_BATCH * 360 * 480
"""Pixels that the network then sees at once, at most."""


def open_data(cell: CellConfig, inputs: Inputs) -> tuple[TrainingSet, dict[str, ScoredSet]]:
    """Training set, and every labelled split to score on, "val" first."""
    kind, root, size = DATASETS[cell.data.name], inputs.data, cell.data.size
    train_set = kind.train(root, size, cell.data.flip, cell.seed)
    return train_set, {s: kind.scored(root, s, size) for s in kind.scored_splits(root)}


def build_model(cell: CellConfig, inputs: Inputs, device: torch.device) -> ENet:
    """ENet with one output per class, from the released weights or at random (seeded)."""
    kind = DATASETS[cell.data.name]
    model = ENet(len(kind.table), cell.model.decoder, cell.model.dropout)
    if inputs.weights:
        released = load_released(inputs.weights, cell.model.decoder)
        if kind.from_cityscapes:
            released = map_classifier(released, kind.from_cityscapes)
        model.load_state_dict(released.state_dict())
    if cell.training.precision == "float64":
        model.double()
    model.to(device)
    if cell.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


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


def spread_model(model: nn.Module, config: TrainingConfig, team: Team) -> None:
    """Make the layers that look at more than one image see the batch of all ranks.

    Batch normalisation takes the statistics of the whole batch, unless the config wants each
    rank's own or frozen ones; dropout drops what one process would drop.
    """
    if team.size == 1:
        return
    share_dropout(model, BatchShare(config.batch_size, team.share(config.batch_size)))
    if config.batch_norm == "train":
        synchronise_batch_norm(model, team.group)


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam (paper Sec. 4.4) over all parameters; the loop sets the learning rate."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def training_batches(
    cell: CellConfig,
    train_set: TrainingSet,
    counts: np.ndarray | None,
    place: Place,
    team: Team,
    start: int,
) -> Iterator[Any]:
    """This rank's share of the batches from iteration ``start`` on.

    The batches are the same whenever training begins there, and for any number of ranks.

    Args:
        cell: says how batches are drawn.
        train_set: the images.
        counts: pixels of each label in each image, (N, 256); equibatch needs them.
        place: says in how many processes images are decoded.
        team: the ranks.
        start: first iteration.

    Raises:
        UserError: when a batch is asked for whose files are missing, unreadable or wrong.
    """
    batches = draw_batches(cell, len(train_set), counts, start)
    loader: DataLoader[Any] = DataLoader(
        train_set,  # type: ignore[arg-type]
        batch_sampler=ShareOfBatches(batches, team.share(cell.training.batch_size)),
        num_workers=place.workers,
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator().manual_seed(cell.seed),  # leaves the global one alone
    )
    return in_one_line(loader)


def draw_batches(
    cell: CellConfig, images: int, counts: np.ndarray | None, start: int
) -> Iterable[list[Draw]]:
    """Which images form each batch: equibatch, or a shuffle of all."""
    config = cell.training
    if not cell.data.equibatch:
        return ShuffledBatches(
            images, config.batch_size, config.iterations, seed=cell.seed, start=start
        )
    assert counts is not None, "equibatch needs the classes of every image"
    kind = DATASETS[cell.data.name]
    presence = counts[:, kind.first_class : len(kind.table)] > 0
    return EquibatchBatches(
        presence, config.batch_size, config.iterations, seed=cell.seed, start=start
    )


def evaluation_batches(
    images: ScoredSet, size: tuple[int, int], team: Team, workers: int = 0
) -> Iterator[Any]:
    """This rank's share of a data set, in order; the shares hold every image once.

    Args:
        images: N images.
        size: (height, width) at which the network sees them; large ones come in smaller batches.
        team: the ranks.
        workers: processes that decode images.
    """
    own = range(len(images))[team.share(len(images))]
    share: Subset[Any] = Subset(images, own)  # type: ignore[arg-type]
    fitting = EVALUATION_PIXELS // (size[0] * size[1])
    loader = DataLoader(
        share,
        batch_size=max(1, min(EVALUATION_BATCH, fitting)),
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),  # a loader draws a seed for its workers
    )
    return in_one_line(loader)


def in_one_line(batches: Iterable[Any]) -> Iterator[Any]:
    """``batches``, whose workers' UserErrors come without the traceback that PyTorch adds."""
    try:
        yield from batches
    except UserError as error:
        text = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
        raise UserError(text.strip()) from None
