"""Lovász-Softmax of the Jaccard loss on a GPU: a few launches, and the host never waits.

1. Sums are set to zero. 2. The errors of all pixels are counted in bins. 3. The bins of each class
are scanned for the gains and the loss; which classes are present is decided there. 4., 5. With
``method="auto"``, the same for the parts of bins that are too coarse. 6. In the backward pass the
gains are looked up and the gradient is written. Nothing is read back, so the steps can be captured
in a CUDA graph, and two operators keep ``torch.compile`` from having to look inside.

**Why "auto" needs no sort.** It takes a bin for some 16 pixels, and in the scan each bin gets the
bounds of ``histogram.py``. Where those of a class exceed the rounding of Algorithm 1 in float32,
its bins that do so are split into as many parts as there is room for, at the most those of 2^-23
in the root of an error, which is what is known of a probability in float32, and its pixels are
counted again. A rare class, whose first ranks alone matter, has few such bins and gets them nearly
as fine as a sort would; a frequent one needs none. No host decides it, and none has to wait.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor, library

from . import device_kernels as kernels
from .histogram import MANY_BINS, Method, ProbabilityBins
from .inputs import class_weight_list
from .plain import listed
from .ranks import AccumulationWindow, Ranks

# Logits of one program, all classes of its pixels: they stay in registers.
TILE = 4096
MOST_CLASSES = 1024
# Bins that are scanned, and pixels that are counted again, at once.
SCANNED, RECOUNTED = 1024, 2048
# "auto" has a bin for this many pixels, and room for this many parts of bins for each bin.
PIXELS_A_BIN, PARTS_A_BIN = 16, 2
FEWEST_BINS = 2**13
WARPS = 8


class Plan(NamedTuple):
    """What is counted, and how: numbers that the host knows."""

    ignore_index: int | None
    only_present: bool
    rows: int
    """B images, or 1 for the batch."""
    bins: int
    parts: int
    """Room for parts of bins, a class and row; 0 where none is split."""


Total = Callable[[Tensor], Tensor]
"""Sums of this process to those of all."""


def lovasz_softmax(
    logits: Tensor,
    labels: Tensor,
    classes: str | Sequence[int],
    per_image: bool,
    ignore_index: int | None,
    class_weights: Sequence[float] | Tensor | None,
    how: Method,
    ranks: Ranks,
    window: AccumulationWindow | None,
) -> Tensor:
    """The loss of logits (B, C, ...) and labels (B, ...), of shapes and dtypes that fit.

    Options are those of :func:`lovasz_repro.losses.lovasz_softmax`.
    """
    batch, count = logits.shape[:2]
    chosen = listed(classes, count)
    weights = class_weight_list(class_weights, count)
    factors = None
    if chosen is not None or weights is not None:
        numbers = weights or [1.0] * count
        kept = range(count) if chosen is None else chosen
        factors = _factors(tuple(numbers[i] * (i in kept) for i in range(count)), logits.device)
    space = logits.shape[2:].numel()
    bins, parts = _bins(how, space if per_image else batch * space, not per_image and ranks.size)
    only_present = chosen is None and classes == "present"
    plan = Plan(ignore_index, only_present, batch if per_image else 1, bins, parts)
    if labels.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        labels = labels.long()
    loss: Tensor = DeviceSoftmaxFunction.apply(
        logits.reshape(batch, count, space),
        labels.reshape(batch, space).contiguous(),
        factors,
        plan,
        None if per_image or ranks.alone else ranks.sum_,
        window,
    )
    if per_image and not ranks.alone:
        images = torch.full_like(loss, batch)
        loss = loss * (images / ranks.sum_(images.clone()).clamp(min=1))
    total = ranks.total(loss, is_total=not per_image)
    return total if window is None else window.scale(total)


@functools.lru_cache(maxsize=64)
def _factors(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """On the device, once: copies from the host wait."""
    return torch.tensor(numbers, dtype=torch.float64, device=device)


def _bins(how: Method, pixels: int, ranks: int) -> tuple[int, int]:
    """How many bins and parts; the same on all ranks, who do not know each other's pixels."""
    most = ProbabilityBins.most_pixels
    if pixels * max(1, ranks) > most:
        raise ValueError(f'counts go up to {most} pixels, got {pixels * max(1, ranks)}; use "sort"')
    if how.name == "histogram":
        return how.bins or (MANY_BINS if ranks > 1 else how.bins_for(pixels)), 0
    bins = how.bins or MANY_BINS
    if how.bins is None and ranks <= 1:
        while bins > FEWEST_BINS and bins >= 2 * pixels / PIXELS_A_BIN:
            bins //= 2
    return bins, PARTS_A_BIN * bins


class DeviceSoftmaxFunction(torch.autograd.Function):
    """Logits (B, C, P) and labels (B, P) to the loss; the counts are those of all ranks."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        factors: Tensor | None,
        plan: Plan,
        total: Total | None,
        window: AccumulationWindow | None,
    ) -> Tensor:
        if torch.compiler.is_compiling():
            loss, *gains = forward_operator(logits, labels, factors, *plan)
        else:
            loss, *gains = forward(logits, labels, factors, *plan, total=total, window=window)
        ctx.save_for_backward(logits, labels, *gains)
        ctx.plan = plan
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        if torch.compiler.is_compiling():
            gradient = gradient_operator(*ctx.saved_tensors, grad_loss, *ctx.plan)
            return gradient, None, None, None, None, None
        if torch.is_grad_enabled():
            raise RuntimeError(
                "lovasz_softmax can be differentiated once: no backward with create_graph=True"
            )
        plan: Plan = ctx.plan
        saved: list[Any] = [*ctx.saved_tensors, grad_loss, *plan]
        return gradient_of(*saved), None, None, None, None, None


def forward(
    logits: Tensor,
    labels: Tensor,
    factors: Tensor | None,
    ignore_index: int | None,
    only_present: bool,
    rows: int,
    bins: int,
    parts: int,
    total: Total | None = None,
    window: AccumulationWindow | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The loss, and what :func:`gradient_of` takes next to the labels, in up to five launches."""
    (batch, classes, space), places = logits.shape, logits.shape[1] * rows
    new = logits.new_empty
    sizes = [places * 2 * (bins + 1), places, 2]
    first = sum(sizes)
    zeros = torch.zeros(first + 1 + places * 2 * parts, dtype=torch.int64, device=logits.device)
    summed, ended, counts = zeros[:first], zeros[first:], zeros[first + 1 :]
    kept = new((4, batch * space), dtype=torch.float32)
    own = {"logits": logits, "labels": labels, "kept": kept} | _space(logits)
    ignored = {"ignore_index": ignore_index or 0, "has_ignored": ignore_index is not None}
    shape = {"classes": classes, "rows": rows, "bins": bins, "parts": parts}
    shape["fraction_bits"] = ProbabilityBins(bins).bits
    sums, by_class, alarms = summed.split(sizes)
    if logits.numel() > 0:
        _launch(kernels.count_kernel, _grid(logits), own | ignored | shape | _blocks(classes)
                | {"sums": sums, "sizes": by_class, "alarms": alarms})  # fmt: skip
    if total is not None:
        summed = total(summed)
    if window is not None:
        summed = window.with_counts(summed)
    sums, by_class, alarms = summed.split(sizes)

    loss = new((), dtype=torch.float32)
    tables = new((classes, rows, 2, bins + 1), dtype=torch.float32)
    values = new((2, places), dtype=torch.float64)
    # A kernel that splits nothing has no use for these.
    split = bins + 1 if parts else 0
    slots, splits = (new(n, dtype=torch.int32) for n in (places * split, 2 * places * (split > 0)))
    found = {"sizes": by_class, "alarms": alarms, "ended": ended, "splits": splits, "loss": loss}
    found |= {"values": values, "places": new(2 * places * split, dtype=torch.int64)}
    blocks = {"class_block": triton.next_power_of_2(classes)}
    blocks |= {"value_block": triton.next_power_of_2(places), "block": SCANNED}
    part_tables = new((classes, rows, 2, parts), dtype=torch.float32)
    if rows == 0:
        return loss.zero_(), kept, tables, part_tables, slots, splits
    average = {"factors": values if factors is None else factors, "images": rows}
    average |= {"has_factors": factors is not None, "only_present": only_present}
    _launch(kernels.scan_kernel, (classes, rows), found | average | shape | blocks
            | {"sums": sums, "tables": tables, "slots": slots})  # fmt: skip
    if parts > 0:
        if logits.numel() > 0:
            grid = (triton.cdiv(space, RECOUNTED), classes, batch)
            _launch(kernels.recount_kernel, grid, own | ignored | shape
                    | {"slots": slots, "splits": splits, "counts": counts,
                       "pixel_block": RECOUNTED})  # fmt: skip
        if total is not None:
            counts = total(counts)
        _launch(kernels.rescan_kernel, (classes, rows), found | shape | blocks
                | {"counts": counts, "tables": part_tables})  # fmt: skip
    if window is not None:
        window.include(None, summed)
    return loss, kept, tables, part_tables, slots, splits


def gradient_of(
    logits: Tensor,
    labels: Tensor,
    kept: Tensor,
    tables: Tensor,
    part_tables: Tensor,
    slots: Tensor,
    splits: Tensor,
    grad_loss: Tensor,
    ignore_index: int | None,
    only_present: bool,
    rows: int,
    bins: int,
    parts: int,
) -> Tensor:
    """Gradient (B, C, P), of the dtype of the logits, in one launch."""
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if result.numel() > 0:
        _launch(kernels.gradient_kernel, _grid(logits), {
            "logits": logits, "labels": labels, "kept": kept, "tables": tables,
            "part_tables": part_tables, "slots": slots, "splits": splits, "grad_loss": grad_loss,
            "result": result, "ignore_index": ignore_index or 0,
            "has_ignored": ignore_index is not None, "classes": logits.shape[1], "rows": rows,
            "bins": bins, "fraction_bits": ProbabilityBins(bins).bits, "parts": parts,
        } | _space(logits) | _blocks(logits.shape[1]))  # fmt: skip
    return result


def _launch(kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
    """Run a kernel on those of the arguments that it has."""
    own = {name: arguments[name] for name in kernel.arg_names}
    kernel[grid](**own, num_warps=WARPS)


def _space(logits: Tensor) -> dict[str, int]:
    names = ("image_stride", "class_stride", "pixel_stride")
    return {"space": logits.shape[2]} | dict(zip(names, logits.stride(), strict=True))


def _blocks(classes: int) -> dict[str, int]:
    class_block = triton.next_power_of_2(classes)
    return {"class_block": class_block, "pixel_block": max(1, TILE // class_block)}


def _grid(logits: Tensor) -> tuple[int, int]:
    batch, classes, space = logits.shape
    return triton.cdiv(space, _blocks(classes)["pixel_block"]), batch


_PLAN = "int? ignore_index, bool only_present, SymInt rows, int bins, int parts"
_NAMESPACE = __name__.partition(".")[0]
forward_operator = library.custom_op(
    f"{_NAMESPACE}::softmax_forward",
    forward,
    mutates_args=(),
    schema=f"(Tensor logits, Tensor labels, Tensor? factors, {_PLAN}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
gradient_operator = library.custom_op(
    f"{_NAMESPACE}::softmax_gradient",
    gradient_of,
    mutates_args=(),
    schema="(Tensor logits, Tensor labels, Tensor kept, Tensor tables, Tensor part_tables, "
    f"Tensor slots, Tensor splits, Tensor grad_loss, {_PLAN}) -> Tensor",
)


@forward_operator.register_fake
def _(
    logits: Tensor, labels: Tensor, factors: Tensor | None,
    ignore_index: int | None, only_present: bool, rows: int, bins: int, parts: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What :func:`forward` returns, by shape."""
    batch, classes, space = logits.shape
    split, places = (bins + 1 if parts else 0), classes * rows
    new = functools.partial(logits.new_empty, dtype=torch.float32)
    return (
        new(()),
        new((4, batch * space)),
        new((classes, rows, 2, bins + 1)),
        new((classes, rows, 2, parts)),
        new(places * split, dtype=torch.int32),
        new(2 * places * (split > 0), dtype=torch.int32),
    )


@gradient_operator.register_fake
def _(logits: Tensor, *rest: Any) -> Tensor:
    """What :func:`gradient_of` returns, by shape."""
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
