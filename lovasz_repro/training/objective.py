"""The training objective of a cell: a weighted sum of losses, by name."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import distributed

from lovasz_repro.config.schema import LossConfig
from lovasz_repro.config.tables import BINARY_LOSSES, LOSSES, loss_function
from lovasz_repro.models.deeplab import subsample_labels

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_objective(
    config: LossConfig,
    ignore_index: int | None,
    class_shares: torch.Tensor | None = None,
    group: distributed.ProcessGroup | None = None,
    category: int | None = None,
    to_size: Callable[[torch.Tensor, Sequence[int]], torch.Tensor] | None = None,
) -> Objective:
    """The loss of a batch: logits (B, C, H, W), labels (B, H, W) -> 0-dim.

    The binary losses look at the logit of one category alone, image by image, as
    bermanmaxim/jaccardSegment: train_pytorch.py has it; of two classes at the difference of their
    logits, which is above 0 where the second one is the arg max.

    Void pixels are left out, but by the cross-entropy with the weights of the released ENet: where
    "unlabelled" is an output of the network, that is trained on as any class (e-lab/ENet-training:
    train/models/decoder.lua, whose weight 0 for it is overwritten a few lines on).

    Args:
        config: the terms and their options.
        ignore_index: label of void pixels.
        class_shares: share of training pixels of each class, (C,), which ENet's weights need.
        group: the ranks whose images form the batch; the loss is that of all of them.
        category: class id whose logit the binary losses take; labels are then 0, 1 and void. None:
            of two classes, where there are binary losses.
        to_size: upsamples logits, where the loss is taken at the resolution of the labels.
    """
    weights, released = None, config.class_weights == "enet-released"
    if config.class_weights != "none":
        assert class_shares is not None, "ENet's class weights need the shares of the classes"
        weights = enet_class_weights(class_shares, None if released else ignore_index)
    options = {
        "class_weights": weights,
        "classes": config.classes,
        "per_image": config.per_image,
    }
    terms: list[tuple[Objective, float]] = []
    for name, weight in config.terms.items():
        own = {option: options[option] for option in LOSSES[name].options}
        void = ignore_index
        if released and "class_weights" in own and _is_class(void, class_shares):
            void = None
        loss = partial(loss_function(name), ignore_index=void, group=group, **own)
        binary = name in BINARY_LOSSES
        terms.append((partial(_of_category, loss, category) if binary else loss, weight))

    def objective(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.shape[-2:] != labels.shape[-2:]:
            if config.resolution == "output":
                labels = subsample_labels(labels, logits.shape[-2:])
            elif config.resolution == "output-cells":
                labels = labels_of_cells(labels, logits.shape[-2:])
            else:
                assert to_size, "the loss at the labels' resolution needs an upsampling"
                logits = to_size(logits, labels.shape[-2:])
        return torch.stack([weight * loss(logits, labels) for loss, weight in terms]).sum()

    return objective


def _of_category(
    loss: Callable[..., torch.Tensor],
    category: int | None,
    logits: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    one = logits[:, 1] - logits[:, 0] if category is None else logits[:, category]
    return loss(one, labels, per_image=True)


def labels_of_cells(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Labels (B, H, W) at the centres of ``size`` = (h, w) equal cells, (B, h, w), as Pillow's
    nearest resizes them (bermanmaxim/jaccardSegment: train_pytorch.py)."""
    rows, columns = (
        torch.arange(few, device=labels.device).mul(2).add(1).mul(full) // (2 * few)
        for full, few in zip(labels.shape[-2:], size, strict=True)
    )
    return labels[..., rows[:, None], columns]


def enet_class_weights(shares: torch.Tensor, without: int | None = None) -> torch.Tensor:
    """ENet's class weights 1 / ln(1.02 + share), from 1.4 to 50.5; 0 for a class without a pixel
    (e-lab/ENet-training: train/models/decoder.lua).

    Args:
        shares: (C,) share of each class among all training pixels, void counted in the total.
        without: a class that has no weight either, if there is one of this index.

    Returns:
        (C,) float32.
    """
    weights = torch.where(shares > 0, 1 / torch.log(1.02 + shares.double()), 0.0)
    if _is_class(without, shares):
        weights[without] = 0.0
    return weights.float()


def _is_class(label: int | None, shares: torch.Tensor | None) -> bool:
    return label is not None and shares is not None and 0 <= label < len(shares)
