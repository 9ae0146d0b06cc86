"""What a cell's config names, as objects: data sets, network, optimiser, batches."""

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lovasz_repro.config import CellConfig, TrainingConfig
from lovasz_repro.data import camvid
from lovasz_repro.data.palettes import CAMVID_FROM_CITYSCAPES
from lovasz_repro.data.sampling import ShareOfBatches, ShuffledBatches
from lovasz_repro.models.batch_norm import synchronise_batch_norm
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.layers import BatchShare, share_dropout
from lovasz_repro.models.weights import load_enet, map_classifier
from lovasz_repro.place import Inputs, Place
from lovasz_repro.training.distributed import Team

EVALUATION_BATCH = 10  # images


def open_data(cell: CellConfig, inputs: Inputs) -> tuple[camvid.CamVid, ...]:
    """Training, validation and test set; the latter two keep their labels' own size."""
    root, size = inputs.data, cell.data.size
    train_set = camvid.CamVid(root, "train", size, flip=cell.data.flip, seed=cell.seed)
    val_set = camvid.CamVid(root, "val", size, native_labels=True)
    test_set = camvid.CamVid(root, "test", size, native_labels=True)
    return train_set, val_set, test_set


def build_model(cell: CellConfig, inputs: Inputs, device: torch.device) -> ENet:
    """ENet with one output per class, from the released weights or at random (seeded)."""
    model = ENet(len(camvid.CLASSES), cell.model.decoder, cell.model.dropout)
    if inputs.weights:
        released = map_classifier(load_enet(inputs.weights), CAMVID_FROM_CITYSCAPES)
        model.load_state_dict(released.state_dict())
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


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam (paper Sec. 4.4) over all parameters; the loop sets the learning rate."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def training_batches(
    cell: CellConfig, train_set: camvid.CamVid, place: Place, team: Team, start: int
) -> DataLoader[camvid.Example]:
    """This rank's share of the batches from iteration ``start`` on.

    The batches are the same whenever training begins there, and for any number of ranks.
    """
    batches = ShuffledBatches(
        len(train_set),
        cell.training.batch_size,
        cell.training.iterations,
        seed=cell.seed,
        start=start,
    )
    return DataLoader(
        train_set,
        batch_sampler=ShareOfBatches(batches, team.share(cell.training.batch_size)),
        num_workers=place.workers,
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator().manual_seed(cell.seed),  # leaves the global one alone
    )


def evaluation_batches(dataset: camvid.CamVid, team: Team) -> DataLoader[camvid.Example]:
    """This rank's share of a data set, in order; the shares hold every image once."""
    share = Subset(dataset, range(len(dataset))[team.share(len(dataset))])
    generator = torch.Generator().manual_seed(0)  # a loader draws a seed for its workers
    return DataLoader(share, batch_size=EVALUATION_BATCH, generator=generator)
