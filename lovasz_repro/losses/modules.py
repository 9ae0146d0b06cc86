"""Module forms of the losses: options in the constructor, logits and labels in ``forward``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lovasz_repro.losses import baselines, lovasz


class _ClassWeighted(nn.Module):
    """Holds class weights: options, so they are not in the state dict."""

    class_weights: Tensor | None

    def __init__(self, class_weights: Sequence[float] | Tensor | None) -> None:
        super().__init__()
        # On the CPU whatever the device of the module: the losses read them on the host.
        self.class_weights = (
            None
            if class_weights is None
            else torch.as_tensor(class_weights).detach().to("cpu", torch.float64)
        )


class LovaszSoftmax(_ClassWeighted):
    """:func:`lovasz_repro.losses.lovasz_softmax` with its options bound."""

    def __init__(
        self,
        *,
        classes: str | Sequence[int] = "present",
        per_image: bool = False,
        ignore_index: int | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(class_weights)
        self.classes = classes
        self.per_image = per_image
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, C, ...) and labels (B, ...)."""
        return lovasz.lovasz_softmax(
            logits,
            labels,
            classes=self.classes,
            per_image=self.per_image,
            ignore_index=self.ignore_index,
            class_weights=self.class_weights,
        )

    def extra_repr(self) -> str:
        """Options, for printing."""
        return (
            f"classes={self.classes!r}, per_image={self.per_image}, "
            f"ignore_index={self.ignore_index}, weighted={self.class_weights is not None}"
        )


class CrossEntropy(_ClassWeighted):
    """:func:`lovasz_repro.losses.cross_entropy` with its options bound."""

    def __init__(
        self,
        *,
        ignore_index: int | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        super().__init__(class_weights)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, C, ...) and labels (B, ...)."""
        return baselines.cross_entropy(
            logits, labels, ignore_index=self.ignore_index, class_weights=self.class_weights
        )

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"ignore_index={self.ignore_index}, weighted={self.class_weights is not None}"


class _Binary(nn.Module):
    """Options of the losses on one logit a pixel."""

    def __init__(self, *, per_image: bool = True, ignore_index: int | None = None) -> None:
        super().__init__()
        self.per_image = per_image
        self.ignore_index = ignore_index

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"per_image={self.per_image}, ignore_index={self.ignore_index}"


class LovaszHinge(_Binary):
    """:func:`lovasz_repro.losses.lovasz_hinge` with its options bound."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, ...) or (B, 1, ...) and labels 0/1 (B, ...)."""
        return lovasz.lovasz_hinge(
            logits, labels, per_image=self.per_image, ignore_index=self.ignore_index
        )


class BinaryCrossEntropy(_Binary):
    """:func:`lovasz_repro.losses.binary_cross_entropy` with its options bound."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, ...) or (B, 1, ...) and labels 0/1 (B, ...)."""
        return baselines.binary_cross_entropy(
            logits, labels, per_image=self.per_image, ignore_index=self.ignore_index
        )


class Hinge(_Binary):
    """:func:`lovasz_repro.losses.hinge` with its options bound."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, ...) or (B, 1, ...) and labels 0/1 (B, ...)."""
        return baselines.hinge(
            logits, labels, per_image=self.per_image, ignore_index=self.ignore_index
        )


class SoftIoU(_Binary):
    """:func:`lovasz_repro.losses.soft_iou` with its options bound."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits (B, ...) or (B, 1, ...) and labels 0/1 (B, ...)."""
        return baselines.soft_iou(
            logits, labels, per_image=self.per_image, ignore_index=self.ignore_index
        )


class WeightedSum(nn.Module):
    """Weighted sum of loss modules, as :func:`lovasz_repro.losses.weighted_sum`.

    ``WeightedSum([CrossEntropy(), LovaszSoftmax()], [1.0, 0.5])``
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = baselines.check_sum(len(losses), weights)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of weight times loss."""
        return baselines.weighted_sum(logits, labels, list(self.losses), self.weights)

    def extra_repr(self) -> str:
        """Options, for printing."""
        return f"weights={self.weights}"
