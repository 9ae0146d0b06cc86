"""Module forms of the losses: options in the constructor, logits and labels in ``forward``."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypedDict, Unpack

from torch import Tensor, distributed, nn

from . import baselines, lovasz
from .inputs import refuse_unknown
from .set_functions import SetFunction


class BinaryOptions(TypedDict, total=False):
    """Options of every loss of one logit a pixel; the functions say what they mean."""

    per_image: bool
    ignore_index: int | None
    group: distributed.ProcessGroup | None


class LovaszHingeOptions(BinaryOptions, total=False):
    """Options of :func:`lovasz_repro.losses.lovasz_hinge`."""

    set_function: SetFunction
    method: str
    bins: int | None


class SoftOptions(BinaryOptions, total=False):
    """Options of :func:`lovasz_repro.losses.soft_dice` and ``soft_jaccard``."""

    classes: str | Sequence[int]


class CrossEntropyOptions(TypedDict, total=False):
    """Options of :func:`lovasz_repro.losses.cross_entropy`."""

    ignore_index: int | None
    class_weights: Sequence[float] | Tensor | None
    group: distributed.ProcessGroup | None


class LovaszSoftmaxOptions(CrossEntropyOptions, total=False):
    """Options of :func:`lovasz_repro.losses.lovasz_softmax`."""

    classes: str | Sequence[int]
    per_image: bool
    weight_background: bool
    set_function: SetFunction
    method: str
    bins: int | None


class _Bound(nn.Module):
    """A loss function with its options bound. Options are no parameters: no state dict."""

    function: ClassVar[Callable[..., Tensor]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        refuse_unknown(type(self).__name__, type(self).function, options)
        if "pixel_weight" in options:
            raise TypeError("pixel_weight goes with a batch: loss(logits, labels, pixel_weight)")
        weights = options.get("class_weights")
        if weights is not None:
            # Numbers, whatever the device of the module: the losses read them on the host.
            options["class_weights"] = [float(weight) for weight in weights]
        self.options = options

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Loss of logits and labels, of the shapes that the function takes."""
        return type(self).function(logits, labels, **self.options)

    def extra_repr(self) -> str:
        """Options that were given, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class _Weighted(_Bound):
    """The same for a loss whose pixels may have weights."""

    def forward(self, logits: Tensor, labels: Tensor, pixel_weight: Tensor | None = None) -> Tensor:
        """Loss of logits, labels, and weights of the shape of the labels."""
        return type(self).function(logits, labels, pixel_weight=pixel_weight, **self.options)


class LovaszSoftmax(_Weighted):
    """:func:`lovasz_repro.losses.lovasz_softmax` with its options bound."""

    function = staticmethod(lovasz.lovasz_softmax)

    def __init__(self, **options: Unpack[LovaszSoftmaxOptions]) -> None:
        super().__init__(**options)


class LovaszHinge(_Weighted):
    """:func:`lovasz_repro.losses.lovasz_hinge` with its options bound."""

    function = staticmethod(lovasz.lovasz_hinge)

    def __init__(self, **options: Unpack[LovaszHingeOptions]) -> None:
        super().__init__(**options)


class CrossEntropy(_Bound):
    """:func:`lovasz_repro.losses.cross_entropy` with its options bound."""

    function = staticmethod(baselines.cross_entropy)

    def __init__(self, **options: Unpack[CrossEntropyOptions]) -> None:
        super().__init__(**options)


class BinaryCrossEntropy(_Bound):
    """:func:`lovasz_repro.losses.binary_cross_entropy` with its options bound."""

    function = staticmethod(baselines.binary_cross_entropy)

    def __init__(self, **options: Unpack[BinaryOptions]) -> None:
        super().__init__(**options)


class Hinge(_Bound):
    """:func:`lovasz_repro.losses.hinge` with its options bound."""

    function = staticmethod(baselines.hinge)

    def __init__(self, **options: Unpack[BinaryOptions]) -> None:
        super().__init__(**options)


class SoftIoU(_Bound):
    """:func:`lovasz_repro.losses.soft_iou` with its options bound."""

    function = staticmethod(baselines.soft_iou)

    def __init__(self, **options: Unpack[BinaryOptions]) -> None:
        super().__init__(**options)


class SoftDice(_Bound):
    """:func:`lovasz_repro.losses.soft_dice` with its options bound."""

    function = staticmethod(baselines.soft_dice)

    def __init__(self, **options: Unpack[SoftOptions]) -> None:
        super().__init__(**options)


class SoftJaccard(_Bound):
    """:func:`lovasz_repro.losses.soft_jaccard` with its options bound."""

    function = staticmethod(baselines.soft_jaccard)

    def __init__(self, **options: Unpack[SoftOptions]) -> None:
        super().__init__(**options)


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
