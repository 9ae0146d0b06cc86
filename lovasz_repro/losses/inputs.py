"""What every loss asks of its inputs: checks, and logits and labels in one flat form.

Labels are counted per image and class once, on the device; the counts reach the host in one copy
(one synchronisation on CUDA). They tell which classes are present and whether a label is out of
range.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from .ranks import ONE_PROCESS, Ranks

_looked = False
"""Whether the logits of a first call were looked at, by :func:`_warn_of_probabilities`."""


class MulticlassPixels(NamedTuple):
    """Logits and labels of several classes, with the spatial dimensions made one."""

    logits: Tensor
    """(B, C, P), input dtype."""
    labels: Tensor
    """(B, P) int64 class ids, 0 where the pixel is ignored."""
    valid: Tensor | None
    """(B, P) bool, or None where every pixel counts."""
    counts: Tensor
    """(B, C) int64 on the CPU: valid pixels of each image and class."""
    total_counts: Tensor
    """(C,) int64 on the CPU: valid pixels of each class, of all ranks."""
    total_images: int
    """B of all ranks."""


class BinaryPixels(NamedTuple):
    """Logits and labels of foreground and background, with the spatial dimensions made one."""

    logits: Tensor
    """(B, P), float64 or float32, 0 where the pixel is ignored."""
    foreground: Tensor
    """(B, P) bool, false where the pixel is ignored."""
    valid: Tensor | None
    """(B, P) bool, or None where every pixel counts."""
    total_rows: int
    """B of all ranks, or 1 for the batch."""

    def rows(self, per_image: bool) -> "BinaryPixels":
        """The same with one row an image, or one row for the batch."""
        if per_image:
            return self
        valid = None if self.valid is None else self.valid.reshape(1, -1)
        return BinaryPixels(self.logits.reshape(1, -1), self.foreground.reshape(1, -1), valid, 1)


def multiclass_pixels(
    logits: Tensor,
    labels: Tensor,
    ignore_index: int | None,
    ranks: Ranks = ONE_PROCESS,
    ignored: Tensor | None = None,
) -> MulticlassPixels:
    """Check logits (B, C, ...) and labels (B, ...) and flatten the space to P pixels.

    Args:
        logits, labels, ignore_index: as of the losses.
        ranks: whose labels make the totals.
        ignored: (B, P) bool or None: more pixels to ignore.

    Raises:
        TypeError: logits not floating, or labels neither integer nor bool.
        ValueError: shapes or devices that do not fit, or a label that is neither a class id in
            [0, C) nor ``ignore_index``.
    """
    check_multiclass(logits, labels)
    batch, classes, space = *logits.shape[:2], logits.shape[2:].numel()
    flat = labels.reshape(batch, space).long().contiguous()
    # Bins 0 ... C-1 are the classes, C the ignored pixels, C + 1 what should not be there.
    bins = torch.where((flat >= 0) & (flat < classes), flat, classes + 1)
    if ignore_index is not None:
        bins.masked_fill_(flat == ignore_index, classes)
    if ignored is not None:
        bins.masked_fill_(ignored & (bins < classes), classes)
    counts, total, images = _count(bins, classes + 2, ranks)
    if total[classes + 1]:
        wrong = flat[bins == classes + 1].tolist()
        _raise_out_of_range(wrong[0] if wrong else None, classes, ignore_index)
    valid = None
    if counts[:, classes].any():
        valid = bins != classes
        flat = flat.masked_fill(~valid, 0)
    flat_logits = logits.reshape(batch, classes, space)
    _warn_of_probabilities(flat_logits)
    return MulticlassPixels(flat_logits, flat, valid, counts[:, :classes], total[:classes], images)


def check_multiclass(logits: Tensor, labels: Tensor) -> None:
    """Refuse what the host sees of logits (B, C, ...) and labels (B, ...), their numbers apart.

    Raises:
        TypeError, ValueError: as :func:`multiclass_pixels`.
    """
    _check_dtypes(logits, labels)
    if logits.dim() < 2:
        raise ValueError(f"logits must have shape (B, C, ...), got {tuple(logits.shape)}")
    classes = logits.shape[1]
    if classes == 0:
        raise ValueError(f"logits of shape {tuple(logits.shape)} have no class")
    if classes == 1:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} have one class, whose probability is always 1; "
            "for one logit a pixel use lovasz_hinge or binary_cross_entropy, with labels 0 and 1"
        )
    if labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; logits of shape {tuple(logits.shape)} need "
            f"{tuple(logits.shape[:1] + logits.shape[2:])}{_shape_hint(logits, labels)}"
        )


def first_look(logits: Tensor) -> bool:
    """Whether nobody has looked at the numbers of a call yet, and the host may wait for them."""
    if _looked or torch.compiler.is_compiling():
        return False
    return not (logits.is_cuda and torch.cuda.is_current_stream_capturing())


def binary_pixels(
    logits: Tensor, labels: Tensor, ignore_index: int | None, ranks: Ranks = ONE_PROCESS
) -> BinaryPixels:
    """Check logits (B, ...) or (B, 1, ...) and labels 0/1 and flatten the space to P pixels.

    The logits of ignored pixels are set to zero, so that nothing they hold, NaN included, reaches
    a loss.

    Raises:
        TypeError: logits not floating, or labels neither integer nor bool.
        ValueError: shapes or devices that do not fit, or a label that is neither 0, 1 nor
            ``ignore_index``.
    """
    _check_dtypes(logits, labels)
    if logits.dim() < 1:
        raise ValueError("logits must have shape (B, ...), got a scalar")
    has_channel = logits.dim() >= 2 and logits.shape[1] == 1
    if labels.shape != logits.shape and not (
        has_channel and labels.shape == logits.shape[:1] + logits.shape[2:]
    ):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; logits of shape {tuple(logits.shape)} need "
            "the same shape, or theirs without a channel dimension of size 1"
            f"{_binary_shape_hint(logits, labels)}"
        )
    batch, space = logits.shape[0], logits.shape[1:].numel()
    classes, valid = labels.reshape(batch, space), None
    scores = logits.reshape(batch, space).to(torch.promote_types(logits.dtype, torch.float32))
    if ignore_index is not None:
        classes = classes.long()  # 255 == -1 in uint8
        valid = classes != ignore_index
        classes, scores = classes.masked_fill(~valid, 0), scores.masked_fill(~valid, 0.0)
    wrong = not_0_or_1(classes)
    unknown, images = ranks.sum_(torch.tensor([wrong is not None, batch], device=logits.device))
    if unknown:
        _raise_out_of_range(wrong, 2, ignore_index)
    return BinaryPixels(scores, classes.bool(), valid, int(images))


def not_0_or_1(numbers: Tensor) -> int | None:
    """A number that is neither 0 nor 1, if there is one."""
    if numbers.dtype == torch.bool or numbers.numel() == 0:
        return None
    if not numbers.dtype.is_signed and numbers.dtype != torch.uint8:
        numbers = numbers.long()  # aminmax knows no other unsigned integers
    low, high = torch.stack(torch.aminmax(numbers)).tolist()
    return low if low < 0 else high if high > 1 else None


def class_weight_list(
    class_weights: Sequence[float] | Tensor | None, num_classes: int
) -> list[float] | None:
    """Class weights as numbers on the host, or None.

    Raises:
        ValueError: not one weight a class, or a weight that is negative or not finite.
    """
    if class_weights is None:
        return None
    shape: tuple[int, ...]
    if not isinstance(class_weights, Tensor):
        shape, numbers = (len(class_weights),), [float(weight) for weight in class_weights]
    else:
        shape, numbers = tuple(class_weights.shape), class_weights.tolist()
    if shape != (num_classes,):
        raise ValueError(
            f"class_weights have shape {shape}, {num_classes} classes need ({num_classes},)"
        )
    for index, weight in enumerate(numbers):
        if not 0 <= weight < float("inf"):
            raise ValueError(f"class_weights[{index}] is {weight}, must be finite and at least 0")
    return numbers


def class_weight_vector(
    class_weights: Sequence[float] | Tensor | None, num_classes: int
) -> Tensor | None:
    """The same as a float64 tensor (C,) on the CPU."""
    numbers = class_weight_list(class_weights, num_classes)
    return None if numbers is None else torch.tensor(numbers, dtype=torch.float64, device="cpu")


class PixelWeights(NamedTuple):
    """How much a pixel counts, (B, P) float64; 0 on ignored pixels."""

    background: Tensor
    """As a background pixel of the classes that are not its label."""
    foreground: Tensor
    """As a foreground pixel of its label."""


def pixel_weights(weights: Tensor, labels: Tensor, weight_background: bool) -> PixelWeights:
    """Check weights (B, ...) of labels (B, ...) and flatten the space.

    Raises:
        ValueError: as :func:`checked_weights`.
    """
    flat = checked_weights(weights, labels, "labels")
    flat = flat.reshape(len(labels), labels.shape[1:].numel()).contiguous()
    return PixelWeights(flat if weight_background else (flat > 0).double(), flat)


def checked_weights(weights: Tensor, pixels: Tensor, name: str) -> Tensor:
    """Pixel weights in float64, for pixels that messages call ``name``.

    Raises:
        ValueError: shapes or devices that differ, or a weight that is negative or not finite.
    """
    if weights.device != pixels.device:
        raise ValueError(f"pixel_weight is on {weights.device}, {name} are on {pixels.device}")
    if weights.shape != pixels.shape:
        raise ValueError(
            f"pixel_weight has shape {tuple(weights.shape)}, {name} have {tuple(pixels.shape)}"
        )
    weights = weights.detach().double()
    if not ((weights >= 0) & (weights < float("inf"))).all():
        raise ValueError("pixel_weight holds a weight that is negative or not finite")
    return weights


def _check_dtypes(logits: Tensor, labels: Tensor) -> None:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be a floating tensor, got {logits.dtype}")
    if labels.is_floating_point() or labels.is_complex():
        raise TypeError(
            f"labels must be an integer or bool tensor, got {labels.dtype}; masks of 0.0, 1.0, ... "
            "become class ids by labels.long()"
        )
    if labels.device != logits.device:
        raise ValueError(f"labels are on {labels.device}, logits are on {logits.device}")


def _shape_hint(logits: Tensor, labels: Tensor) -> str:
    if labels.dim() == logits.dim() and labels.shape[1] == 1:
        return "; labels.squeeze(1) takes the channel away"
    if labels.shape == logits.shape:
        return "; labels.argmax(1) makes class ids of one-hot masks"
    return ""


def _binary_shape_hint(logits: Tensor, labels: Tensor) -> str:
    if labels.dim() == logits.dim() + 1 and labels.shape[1] == 1:
        return "; labels.squeeze(1) takes the channel away"
    if logits.dim() == labels.dim() + 1 and logits.shape[1] == 2:
        return "; two logits a pixel are for lovasz_softmax and cross_entropy"
    return ""


def _warn_of_probabilities(logits: Tensor) -> None:
    """Warn of logits (B, C, P) that are probabilities; looks at 64 pixels of the first call."""
    global _looked
    if _looked or logits.numel() == 0:
        return
    _looked = True
    some = logits.detach()[:8, :, :: 1 + (logits.shape[2] - 1) // 8].double().cpu()
    rounding = 1e-4 if logits.dtype in (torch.float32, torch.float64) else 2e-2
    sums = some.sum(1)
    if sums.numel() > 3 and ((some >= 0).all() and ((sums - 1).abs() < rounding).all()):
        warnings.warn(
            "the logits look like probabilities: at least 0, with sum 1 over the classes. The "
            "losses take the softmax themselves, so pass what comes before yours",
            stacklevel=6,
        )


def _count(bins: Tensor, size: int, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    """How often each number in [0, size) is in bins (B, P), int64 on the CPU.

    Returns:
        (B, size) counts of each row, (size,) of all rows of all ranks, and the number of rows of
        all ranks, after one copy from the device.
    """
    batch = len(bins)
    index = (bins + torch.arange(batch, device=bins.device)[:, None] * size).reshape(-1)
    if bins.device.type == "cpu":
        counts = torch.bincount(index, minlength=batch * size)
    else:  # where bincount would ask the device for the largest number
        counts = index.new_zeros(batch * size)
        counts.scatter_add_(0, index, torch.ones_like(index))
    rows = counts.view(batch, size)
    totals = ranks.sum_(torch.cat([rows.sum(0), counts.new_full((1,), batch)]))
    host = torch.cat([counts, totals]).cpu()
    own, total = host.split([batch * size, size + 1])
    return own.view(batch, size), total[:-1], int(total[-1])


def _raise_out_of_range(label: int | None, classes: int, ignore_index: int | None) -> None:
    """Complain of a label; None is one that another rank has."""
    hint = "no ignore_index is set" if ignore_index is None else f"ignore_index is {ignore_index}"
    if label == 255 and ignore_index is None:
        hint += ", and void pixels often have this label: ignore_index=255"
    if classes == 2 and label == -1:
        hint += "; background is 0 here, not -1"
    what = "a label of another rank" if label is None else f"label {label}"
    raise ValueError(f"{what} is out of range for {classes} classes (0 to {classes - 1}); {hint}")


# ---- How a loss is called ------------------------------------------------------------------------
#
# Options by name, outside torch.compile, torch.func and tracing.

P = ParamSpec("P")
R = TypeVar("R")

ELSEWHERE = {
    "ignore": "ignore_index",
    "class_weight": "class_weights",
    "weight": "class_weights",
}
"""Options by the names that they have in other libraries."""
HOST = "it reads the counts of the labels on the host"


def eager(
    function: Callable[P, R], in_graph: Callable[..., bool] = lambda *_, **__: False
) -> Callable[P, R]:
    """Keep torch.compile out of a function that reads label counts on the host.

    But for calls of which ``in_graph`` says that they do not.

    Traced, it would be compiled anew for the counts of every batch. ``torch.compiler.disable``
    does the same, but as a decorator it imports the compiler with the losses, which takes longer
    than any of them; here it is imported where something is being compiled. What cannot leave the
    graph for the host, such as ``torch.jit.trace`` and ``torch.func.vmap``, is refused.
    """
    known = frozenset(inspect.signature(function).parameters)
    disabled: Callable[P, R] | None = None

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not known.issuperset(kwargs):
            refuse_unknown(function.__name__, function, kwargs)
        if torch.jit.is_tracing():  # type: ignore[attr-defined]
            raise RuntimeError(f"{function.__name__} cannot be traced: {HOST}; trace the network")
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if not torch._C._are_functorch_transforms_active():
                raise
            raise RuntimeError(
                f"{function.__name__} does not work in this transform of torch.func: {HOST}, and "
                "its gradient is for backward() and torch.autograd.grad"
            ) from error

    @functools.wraps(function)
    def outside_the_graph(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal disabled
        if not torch.compiler.is_compiling():
            return call(*args, **kwargs)
        if in_graph(*args, **kwargs):
            return function(*args, **kwargs)
        if disabled is None:
            disabled = _not_in_a_fullgraph(call)
        return disabled(*args, **kwargs)

    return outside_the_graph


def _not_in_a_fullgraph(function: Callable[P, R]) -> Callable[P, R]:
    """Run eagerly in compiled code; with ``fullgraph=True`` PyTorch refuses, citing these lines."""
    reason = f"{HOST}: compile the network alone, or not with fullgraph=True"
    try:
        return torch.compiler.disable(function, reason=reason)
    except TypeError:  # PyTorch before 2.8 takes no reason
        return torch.compiler.disable(function)


def refuse_unknown(called: str, function: Callable[..., object], options: Iterable[str]) -> None:
    """Refuse options that a loss, or its module, does not have.

    Raises:
        TypeError: naming the option, and the one of that meaning or all there are.
    """
    known = inspect.signature(function).parameters
    for name in options:
        if name not in known:
            there = [item for item in known if item not in ("logits", "labels")]
            hint = f"it has {', '.join(there)}"
            if ELSEWHERE.get(name) in known:
                hint = f"here it is {ELSEWHERE[name]}"
            raise TypeError(f"{called} has no option {name}; {hint}")
