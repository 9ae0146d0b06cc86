"""The Lovász-Softmax loss (Eq. 11-13) and the Lovász hinge (Eq. 10).

Both have gradients in closed form; nothing is differentiated through a sort or a softmax.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed

from .backends import backend_for, device_kernels, jaccard_kernels
from .extension import LovaszExtensionFunction
from .histogram import FEW_BINS, Method, ProbabilityBins
from .inputs import (
    BinaryPixels,
    PixelWeights,
    binary_pixels,
    check_multiclass,
    checked_weights,
    eager,
    first_look,
    multiclass_pixels,
    pixel_weights,
)
from .plain import Problem, rows_of
from .ranks import ONE_PROCESS, AccumulationWindow, Ranks
from .set_functions import JaccardLoss, SetFunction, checked


class LovaszSoftmaxFunction(torch.autograd.Function):
    """Logits (B, C, P) to the loss of the batch of all ranks.

    With one row an image, to this rank's part of it. ``plain.py`` says what the steps are.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, logits: Tensor, problem: Problem, window: AccumulationWindow | None
    ) -> Tensor:
        backend, dtype = (
            backend_for(logits, problem),
            torch.promote_types(logits.dtype, torch.float32),
        )
        flat, kept = backend.count(logits, problem)
        flat = problem.row_ranks.sum_(flat)
        if window is not None:
            flat = window.with_counts(flat)
        sums = flat[:-1].view(problem.tally_shape(logits))
        readings = backend.tables(sums, problem, dtype)
        tables, loss = readings.tables, readings.values.sum()
        items = problem.classes_to_sort(readings.cuts)
        slots = torch.full((logits.shape[1],), -1, device=logits.device)
        slots[items] = torch.arange(len(items), device=logits.device)
        exact = tables.new_empty(0, *problem.labels.shape)
        if items:
            exact, part = backend.exact_gains(logits, problem, kept, readings, items)
            loss = loss + problem.row_ranks.sum_(part)
        loss = loss + torch.where(flat[-1] > 0, torch.nan, 0.0)
        if window is not None:
            window.include(problem.rows.counts[0], flat)
        # Saved, not kept on ctx: autograd then notices what is changed in place before the
        # backward pass, and lets go of everything behind it.
        weights = problem.weights or (None, None)
        ctx.save_for_backward(
            logits, problem.labels, problem.valid, *weights, kept, tables, exact, slots
        )
        ctx.backend = backend
        ctx.rest = problem[3:]
        return loss.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.is_grad_enabled():
            raise RuntimeError(
                "lovasz_softmax can be differentiated once: no backward with create_graph=True"
            )
        logits, labels, valid, background, foreground, *rest = ctx.saved_tensors
        weights = None if foreground is None else PixelWeights(background, foreground)
        problem = Problem(labels, valid, weights, *ctx.rest)
        return ctx.backend.gradient(logits, problem, *rest, grad_loss), None, None


# ---- The losses ----------------------------------------------------------------------------------

JACCARD = JaccardLoss()


def _counted_on_device(
    logits: Tensor,
    _: Tensor,
    *,
    per_image: bool = False,
    pixel_weight: Tensor | None = None,
    set_function: SetFunction = JACCARD,
    method: str = "auto",
    group: distributed.ProcessGroup | None = None,
    window: AccumulationWindow | None = None,
    **rest: Any,
) -> bool:
    """Whether nothing of a call needs the host."""
    kernels = device_kernels(logits, method, set_function, pixel_weight is not None, per_image)
    return kernels is not None and group is None and window is None


@partial(eager, in_graph=_counted_on_device)
def lovasz_softmax(
    logits: Tensor,
    labels: Tensor,
    *,
    classes: str | Sequence[int] = "present",
    per_image: bool = False,
    ignore_index: int | None = None,
    class_weights: Sequence[float] | Tensor | None = None,
    pixel_weight: Tensor | None = None,
    weight_background: bool = True,
    set_function: SetFunction = JACCARD,
    method: str = "auto",
    bins: int | None = None,
    group: distributed.ProcessGroup | None = None,
    window: AccumulationWindow | None = None,
) -> Tensor:
    """Lovász-Softmax loss of a batch (Eq. 11-13, Algorithm 1).

    Of one logit F a pixel, with ``torch.stack([0 * F, F], 1)`` and ``classes=[1]``, it is the
    "Lovász sigmoid": the extension at the errors of the sigmoid, of the foreground alone.

    Args:
        logits: (B, C, ...) unnormalised scores of any floating dtype; float16 and bfloat16 are
            computed in float32. -inf is the probability zero; +inf gives NaN, as in a softmax.
        labels: (B, ...) class ids in [0, C), any integer dtype.
        classes: which classes Eq. 13 averages. "present": those with at least one labelled pixel
            in the batch (in the image, with ``per_image``), Sec. 3.1's proxy of dataset-mIoU.
            "all": every class; an absent one costs the largest probability that it gets anywhere.
            A list of class ids: exactly those, present or not.
        per_image: False treats the pixels of the batch as one set (batch-mIoU). True takes the
            loss of each image and averages over the B images; one without valid pixels adds 0.
        ignore_index: label of the pixels that do not count: they have a zero gradient and no part
            in any other. It may be a class id; that class then has no labelled pixel, and is
            still averaged as an absent one by "all".
        class_weights: (C,) non-negative weights; Eq. 13 becomes the weighted mean over the
            averaged classes, divided by the sum of their weights. Some libraries divide by the
            number of classes instead (mmseg of the averaged ones, kornia of all C): a factor. Zero
            weight in all of them gives the loss 0.
        pixel_weight: (B, ...) finite weights of at least 0, of the labels' shape: what a pixel
            adds to intersection and union. A pixel of weight 0 is ignored.
        weight_background: False uses the weight only where a pixel is foreground, in the class of
            its label, and 1 where it may be a false positive. That is how Cityscapes' iIoU counts,
            with the average size of a class over the size of the instance as weight.
        set_function: what is extended, :class:`JaccardLoss` by default (Sec. 3). Another one is
            checked once; one that is not submodular is refused with a counterexample.
        method: "sort" ranks all errors, by logarithms taken in float64 (in compiled kernels to nine
            digits). "histogram" counts them in bins of equal width
            in their square root, in linear time: the loss is too small by at most 2/bins, and
            measured by less than 1e-6 for batches of 100,000 pixels; ``histogram.py`` derives the
            bounds. "auto" counts batches (with ``per_image``, images) of at least 131,072 pixels,
            and where the gradient of a class would be further from the exact one than that of
            Algorithm 1 in float32, sorts its pixels of the largest errors (in plain PyTorch all of
            them); it sorts what is smaller, is float64 or has pixel weights. On a GPU it counts
            batches of any size, and images of at least 32,768 pixels, and where bins are too
            coarse, counts again in parts of them (``device.py``).
        bins: number of bins, from 2 to 2**20; 2**14 by default, 2**15 from 2**19 pixels on
            and 2**13 below 2**15 pixels.
        group: process group whose ranks hold parts of one batch. The loss is that of the whole
            batch, the same on every rank; a class is present if any rank has it. The gradient is
            that of the whole loss for this rank's logits, times the number of ranks, which
            DistributedDataParallel's average takes off again. "histogram" adds up two integers
            per class and bin over ranks; "sort" gathers the errors of all ranks on every rank,
            class by class. With ``per_image`` only the number of images is shared.
        window: carries counts over the micro-batches of gradient accumulation (``ranks.py``).
            By default each micro-batch is a batch of its own. Counts: not with "sort", and "auto"
            then counts everything.

    Returns:
        0-dim tensor in [0, 1], float64 for float64 logits, else float32. No valid pixel gives 0
        with a zero gradient. NaN in the logits of a valid pixel gives NaN.

    Raises:
        TypeError: logits not floating, or labels neither integer nor bool.
        ValueError: shapes that do not fit, a single class (use :func:`lovasz_hinge` for one logit
            a pixel), a label out of range (of any rank), a class id out of range or twice in
            ``classes``, class weights that are not C finite non-negative numbers, an option out
            of range, a set function that is not submodular, or a window with ``per_image`` or
            "sort". Where a GPU counts, the host waits for no label: labels are looked at on the
            first call of one process, and later a label out of range makes the loss NaN.
        RuntimeError: in ``torch.jit.trace`` or a transform of ``torch.func``.

    The gradient has the dtype of the logits. Where errors tie it is a subgradient, the same one at
    every call. The loss can be differentiated once: a backward pass with ``create_graph=True``
    raises a RuntimeError.
    """
    how, ranks = Method(method, bins), Ranks(group)
    if window is not None:
        if per_image or method == "sort":
            raise ValueError('a window carries counts of batches: not with per_image or "sort"')
        how = Method("histogram", bins or FEW_BINS)
    check_multiclass(logits, labels)
    on_device = device_kernels(logits, how.name, set_function, pixel_weight is not None, per_image)
    if on_device is not None:
        if ranks.alone and first_look(logits):
            multiclass_pixels(logits, labels, ignore_index)
        options = (classes, per_image, ignore_index, class_weights, how, ranks, window)
        on_its_device: Tensor = on_device.lovasz_softmax(logits, labels, *options)
        return on_its_device
    weights = None
    if pixel_weight is not None:
        weights = pixel_weights(pixel_weight, labels, weight_background)
    ignored = None if weights is None else weights.foreground == 0
    pixels = multiclass_pixels(logits, labels, ignore_index, ranks, ignored)
    if weights is not None and pixels.valid is not None:
        weights = PixelWeights(*(weight * pixels.valid for weight in weights))
    if window is not None:
        pixels = pixels._replace(total_counts=window.with_labels(pixels.total_counts))
    rows = rows_of(pixels, classes, per_image, class_weights)
    how, bins_ = _method_for(how, rows.most_pixels, logits.dtype, weights is not None)
    row_ranks = ONE_PROCESS if per_image else ranks
    problem = Problem(
        pixels.labels, pixels.valid, weights, rows, checked(set_function), row_ranks, how, bins_,
        counts_all=window is not None,
    )  # fmt: skip
    loss: Tensor = LovaszSoftmaxFunction.apply(pixels.logits, problem, window)
    total = ranks.total(loss, is_total=not per_image)
    return total if window is None else window.scale(total)


def _method_for(
    how: Method, size: int, dtype: torch.dtype, weighted: bool
) -> tuple[Method, ProbabilityBins]:
    """The method and the bins for batches (images) of this many valid pixels."""
    most = ProbabilityBins.most_pixels
    if how.name == "histogram" and size > most:
        raise ValueError(f'method "histogram" counts up to {most} pixels, got {size}; use "sort"')
    if how.sorts(size, dtype, weighted) or size > most:
        return Method("sort"), ProbabilityBins(2)
    return how, ProbabilityBins(how.bins_for(size))


@eager
def lovasz_hinge(
    logits: Tensor,
    labels: Tensor,
    *,
    per_image: bool = True,
    ignore_index: int | None = None,
    pixel_weight: Tensor | None = None,
    set_function: SetFunction = JACCARD,
    method: str = "auto",
    bins: int | None = None,
    group: distributed.ProcessGroup | None = None,
) -> Tensor:
    """Lovász hinge of the Jaccard loss of the foreground (Eq. 10).

    The errors are max(1 - F y, 0) for the logits F and y = +1 on the foreground, -1 elsewhere.

    Args:
        logits: (B, ...) or (B, 1, ...) unnormalised scores of the foreground, any floating dtype;
            positive predicts foreground. An infinite score on the right side has error zero, on
            the wrong side it makes the loss infinite.
        labels: (B, ...), 1 on the foreground and 0 elsewhere, any integer dtype or bool.
        per_image: True averages the losses of the B images (an image without valid pixels adds
            0), False treats the pixels of the batch as one set.
        ignore_index: label of the pixels that do not count.
        pixel_weight: (B, ...) finite weights of at least 0, of the labels' shape: what a pixel
            adds to intersection and union.
        set_function: what is extended; the Hamming loss gives the standard hinge (Sec. 2.1).
        method, bins: as of :func:`lovasz_repro.losses.lovasz_extension`. The bins are of equal
            width in log(1 + 1024 e), between the smallest and the largest error e of the row. In
            compiled kernels "auto" counts rows of 65,536 pixels and more, in bins of the upper
            bits of e + 2^-10 as a float: 2,048 to each doubling.
        group: as of :func:`lovasz_softmax`. With ``per_image`` only the number of images is
            shared.

    Returns:
        0-dim tensor, at least 0, float64 for float64 logits, else float32. Without foreground
        the loss of an image is its largest error. No valid pixel gives 0 with a zero gradient,
        NaN in a valid pixel gives NaN.

    Raises:
        TypeError: logits not floating, or labels neither integer nor bool.
        ValueError: shapes that do not fit, or a label other than 0, 1 and ``ignore_index``.
    """
    how, ranks = Method(method, bins), Ranks(group)
    pixels = binary_pixels(logits, labels, ignore_index, ranks).rows(per_image)
    weights = None
    if pixel_weight is not None:
        weights = checked_weights(pixel_weight, labels, "labels").reshape(pixels.logits.shape)
    row_ranks = ONE_PROCESS if per_image else ranks
    compiled = jaccard_kernels(pixels.logits, set_function)
    if compiled and weights is None and row_ranks.alone and how.name != "histogram":
        return ranks.total(_CompiledHinge.apply(pixels.logits, pixels, how, compiled.hinge))
    signed = torch.where(pixels.foreground, -pixels.logits, pixels.logits)
    # The signed logits rank as the errors 1 + signed do, and have not been rounded.
    args = (pixels.foreground, pixels.valid, weights, checked(set_function), how, row_ranks)
    losses: Tensor = LovaszExtensionFunction.apply((signed + 1).relu(), signed.detach(), *args)
    return ranks.total(losses.sum() / max(1, pixels.total_rows))


class _CompiledHinge(torch.autograd.Function):
    """Logits (R, P) to the mean over the rows of Eq. 10, in the kernels of the CPU.

    Where m > 0 the derivative of the error is -1 on the foreground and 1 elsewhere, so the one of
    the loss is the gain with that sign. It is constant almost everywhere: double backward works.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, pixels: BinaryPixels, how: Method, hinge: Callable[..., Any]
    ) -> Tensor:
        factor = 1 / max(1, pixels.total_rows)
        value, gradient = hinge(logits, pixels.foreground, pixels.valid, factor, how.name)
        ctx.save_for_backward(gradient)
        return torch.tensor(value, dtype=gradient.dtype, device="cpu")

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_loss, None, None, None
