"""The training objective of a cell: a weighted sum of losses, by name."""

from collections.abc import Callable
from functools import partial

import torch
from torch import distributed

from lovasz_repro.config import LossConfig
from lovasz_repro.losses import cross_entropy, lovasz_softmax

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_objective(
    config: LossConfig,
    ignore_index: int | None,
    class_shares: torch.Tensor | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Objective:
    """The loss of a batch: logits (B, C, H, W), labels (B, H, W) -> 0-dim.

    Args:
        config: the terms and their options.
        ignore_index: label of void pixels.
        class_shares: share of training pixels of each class, (C,), which ENet's weights need.
        group: the ranks whose images form the batch; the loss is that of all of them.
    """
    weights = None
    if config.class_weights == "enet":
        assert class_shares is not None, "ENet's class weights need the shares of the classes"
        weights = enet_class_weights(class_shares)
    losses: dict[str, Objective] = {
        "cross_entropy": partial(
            cross_entropy, ignore_index=ignore_index, class_weights=weights, group=group
        ),
        "lovasz_softmax": partial(
            lovasz_softmax,
            ignore_index=ignore_index,
            classes=config.classes,
            per_image=config.per_image,
            group=group,
        ),
    }
    terms = [(losses[name], weight) for name, weight in config.terms.items()]

    def objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.stack([weight * loss(logits, labels) for loss, weight in terms]).sum()

    return objective


def enet_class_weights(shares: torch.Tensor, c: float = 1.02) -> torch.Tensor:
    """ENet's class weights 1 / ln(c + share); 0 for a class without a pixel (facts.md 3.3).

    Args:
        shares: (C,) share of each class among all training pixels, void counted in the total.
        c: 1.02 in e-lab's decoder training, which bounds the weights to [1.4, 50.5].

    Returns:
        (C,) float32.
    """
    weights = 1 / torch.log(c + shares.double())
    return torch.where(shares > 0, weights, 0.0).float()
