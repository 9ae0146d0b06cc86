"""What a cell's config names, as objects: data sets, network, optimiser, batches, scoring."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lovasz_repro.config.schema import CellConfig, TrainingConfig
from lovasz_repro.data.cityscapes import TO_LABEL_ID
from lovasz_repro.data.datasets import ScoredSet, TrainingSet, category_of, kind_of
from lovasz_repro.data.sampling import (
    BalancedBatches,
    Draw,
    EquibatchBatches,
    ShareOfBatches,
    ShuffledBatches,
)
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.evaluation.measures import Measures
from lovasz_repro.evaluation.predictor import OF_ANY_SIZE, Feeding, MultiScale, Predictor
from lovasz_repro.evaluation.scoring import (
    BinaryScoring,
    CityscapesScoring,
    Scoring,
    SegmentationScoring,
)
from lovasz_repro.models.batch_norm import synchronise_batch_norm
from lovasz_repro.models.enet import BatchShare, share_dropout
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.training.distributed import Team

EVALUATION_BATCH = 10
"""Images that are scored at once, at most."""
EVALUATION_PIXELS = EVALUATION_BATCH * 360 * 480
"""Pixels that the network then sees at once, at most."""


def open_data(cell: CellConfig, inputs: Inputs) -> tuple[TrainingSet, dict[str, ScoredSet]]:
    """Training set, and every labelled split to score on, "val" first."""
    kind, root = kind_of(cell.data), inputs.data
    train_set = kind.train(root, cell.data, cell.seed)
    return train_set, {s: kind.scored(root, s, cell.data) for s in kind.scored_splits(root)}


def build_model(cell: CellConfig, inputs: Inputs, device: torch.device) -> nn.Module:
    """The network with one output per class, from its starting weights or at random (seeded).

    Raises:
        UserError: the weights cannot be read, or are of another network.
        RunFailed: the run that it starts from has not finished here.
    """
    network = NETWORKS[cell.model.name]
    model = network.build(len(kind_of(cell.data).table), cell.model)
    if inputs.weights:
        if cell.start and not inputs.weights.is_file():
            raise RunFailed(f"it starts from {cell.start.name}, which has not finished here.")
        network.load(model, inputs.weights, cell)
    if cell.training.precision == "float64":
        model.double()
    model.to(device)
    if cell.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


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


def build_optimizer(
    model: nn.Module, config: TrainingConfig, network: str = "enet"
) -> torch.optim.Optimizer:
    """Adam (paper Sec. 4.4), or SGD with momentum 0.9; the loop sets the learning rates."""
    groups = NETWORKS[network].groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)
    return torch.optim.Adam(groups, lr=config.lr)


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
    share = ShareOfBatches(batches, team.share(cell.training.batch_size))
    pinned = place.device.type == "cuda"
    return loaded(train_set, place.workers, pinned, cell.seed, batch_sampler=share)


def draw_batches(
    cell: CellConfig, images: int, counts: np.ndarray | None, start: int
) -> Iterable[list[Draw]]:
    """Which images form each batch: half with the category where the data set is one that is
    balanced, equibatch, or a shuffle of all.

    Raises:
        UserError: no training image contains the category, or all do.
    """
    config, kind, category = cell.training, kind_of(cell.data), category_of(cell.data)
    if category is not None and kind.balanced:
        assert counts is not None, "a balanced set needs the classes of every image"
        positive = counts[:, category] > 0
        try:
            return BalancedBatches(
                positive, config.batch_size, config.iterations, seed=cell.seed, start=start
            )
        except ValueError:
            raise UserError(
                f"{positive.sum()} of {len(positive)} training images contain "
                f"{cell.data.category}; some must, and some not."
            ) from None
    if not cell.data.equibatch:
        return ShuffledBatches(
            images, config.batch_size, config.iterations, seed=cell.seed, start=start
        )
    assert counts is not None, "equibatch needs the classes of every image"
    presence = counts[:, kind.first_class : len(kind.table)] > 0
    return EquibatchBatches(
        presence,
        config.batch_size,
        config.iterations,
        seed=cell.seed,
        start=start,
        first_class=kind.first_class,
    )


def evaluation_batches(
    images: ScoredSet,
    size: tuple[int, int],
    team: Team,
    workers: int = 0,
    most: int = EVALUATION_BATCH,
    pinned: bool = False,
) -> Iterator[Any]:
    """This rank's share of a data set, in order; the shares hold every image once.

    Args:
        images: N images.
        size: (height, width) at which the network sees them; large ones come in smaller batches.
        team: the ranks.
        workers: processes that decode images.
        most: images that come together, at most; 1 where they have sizes of their own.
        pinned: in memory from which a GPU copies while it computes.
    """
    own = range(len(images))[team.share(len(images))]
    fitting = EVALUATION_PIXELS // (size[0] * size[1])
    share = Subset[Any](images, own)  # type: ignore[arg-type]
    return loaded(share, workers, pinned, batch_size=max(1, min(most, fitting)))


def loaded(images: Any, workers: int, pinned: bool, seed: int = 0, **how: Any) -> Iterator[Any]:
    """What a loader gives, of images or of batches; a UserError of its workers in one line."""
    generator = torch.Generator().manual_seed(seed)  # else a loader draws from the global one
    loader: DataLoader[Any] = DataLoader(
        images, num_workers=workers, pin_memory=pinned, generator=generator, **how
    )
    try:
        yield from loader
    except UserError as error:  # comes with the traceback that PyTorch adds
        text = str(error).rpartition(f"{UserError.__module__}.{UserError.__name__}: ")[2]
        raise UserError(text.strip()) from None


def scored_batches(cell: CellConfig, images: ScoredSet, place: Place, team: Team) -> Iterator[Any]:
    """This rank's share of a labelled set, as a run reads it to score on it."""
    kind = kind_of(cell.data)
    return evaluation_batches(
        images,
        cell.data.size,
        team,
        workers=0 if kind.in_memory else place.workers,
        most=1 if kind.sizes_differ else EVALUATION_BATCH,
        pinned=place.device.type == "cuda",
    )


def feeding_of(cell: CellConfig) -> Feeding:
    """How a run feeds its network with whole images."""
    kind = NETWORKS[cell.model.name].on_canvas(cell.evaluation.least_side)
    return OF_ANY_SIZE.get(cell.model.name, kind) if cell.data.crops else kind


def predictor_of(model: nn.Module, cell: CellConfig, device: torch.device) -> Predictor:
    """How a run asks its network, at one scale."""
    return Predictor(model, feeding_of(cell), device, **_asked(cell))


def multi_scale_of(model: nn.Module, cell: CellConfig, device: torch.device) -> MultiScale:
    """How a run asks its network at several scales, which its config has to name."""
    assert cell.evaluation.multi_scale, "several scales are asked for where the config says so"
    kind, scales = NETWORKS[cell.model.name], cell.evaluation.multi_scale
    return MultiScale(model, kind, device, multi_scale=scales, **_asked(cell))


def _asked(cell: CellConfig) -> dict[str, Any]:
    return {
        "precision": cell.training.precision,
        "channels_last": cell.training.channels_last,
        "first_class": first_answer(cell),
        "upsample": cell.evaluation.upsample,
    }


def first_answer(cell: CellConfig) -> int:
    """The first output that is an answer: those before it are "unlabelled"."""
    kept = cell.evaluation.unlabelled == "kept"
    return 0 if kept else kind_of(cell.data).first_class


def scoring_of(cell: CellConfig, shapes: bool = False) -> Scoring:
    """An empty scoring of what a cell trains for, and of the measures beside.

    Args:
        cell: the run.
        shapes: see ``Measures``.
    """
    kind, category = kind_of(cell.data), category_of(cell.data)
    void = kind.ignore_index
    if category is not None:
        beside = Measures(2, void, objects=(1,), uncounted=0, shapes=shapes)
        return BinaryScoring(category, void, beside)
    table = kind.table
    beside = Measures(
        len(table),
        void,
        table.objects,
        first_class=first_answer(cell),
        uncounted=0 if table.first_class else None,
        shapes=shapes,
    )
    if kind.official_scores:
        return CityscapesScoring(TO_LABEL_ID, beside)
    return SegmentationScoring(table.names, void, cell.training.batch_size, beside)
