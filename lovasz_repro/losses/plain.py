"""Lovász-Softmax in plain PyTorch (Eq. 2, 11-13), line by line what the formulas say.

It works for every device, dtype, set function and weight, and is what ``compiled.py``, whose
functions have these names, and ``device.py`` are measured against. All in float64.

Let f be the probabilities of a pixel, y its label, m_y = 1 - f_y and m_c = f_c its errors
(Eq. 11), g the gains of Eq. 9, already multiplied by the weight of their class in the mean of
Eq. 13 (zero for a class outside it). With

    S = sum of g_c f_c over c != y

the pixel adds S + g_y m_y to the loss. The derivative of that is g_c with respect to f_c and -g_y
with respect to f_y; through the softmax it is, for the logits F,

    dF_y = -f_y (S + g_y m_y),    dF_c = f_c (g_c - S + g_y f_y) for c != y.

The first pass over the logits counts the errors of each class in bins (``histogram.py``). The
counts give the loss, and the gains in a table (``histogram.py``); where bins are too coarse, or a
sort is asked for, the gains of each pixel come from a sort. The second pass, in the backward,
takes the softmax again, looks the gains up, and writes the gradient.
"""

import math
from collections.abc import Sequence
from operator import index
from typing import NamedTuple

import torch
from torch import Tensor

from .extension import marginal_gains
from .histogram import Bins, Method, ProbabilityBins, edges_of, error_bounds
from .inputs import MulticlassPixels, PixelWeights, class_weight_vector
from .ranks import Ranks
from .set_functions import SetFunction

# ---- The problem: rows, and the classes averaged in each (Eq. 13) --------------------------------


class Rows(NamedTuple):
    """What one Jaccard index is taken over: R = B images, or R = 1 batch. On the CPU."""

    counts: Tensor
    """(R, C) int64: pixels of each class; a batch is that of all ranks."""
    weights: Tensor
    """(R, C) float64: weight of each class in the loss; 0 where the row does not average it."""

    @property
    def most_pixels(self) -> int:
        """Valid pixels of the largest row."""
        return int(self.counts.sum(1).amax()) if len(self.counts) else 0


class Problem(NamedTuple):
    """A Lovász-Softmax to compute, for logits (B, C, P)."""

    labels: Tensor
    """(B, P) int64 class ids, 0 on ignored pixels."""
    valid: Tensor | None
    """(B, P) bool, or None where every pixel counts."""
    weights: PixelWeights | None
    rows: Rows
    set_function: SetFunction
    row_ranks: Ranks
    """The processes that share each row: one alone where a row is an image."""
    how: Method
    bins: ProbabilityBins
    counts_all: bool = False
    """Whether classes are counted that no row averages, as the micro-batches of a window do."""

    @property
    def counted(self) -> Tensor:
        """(C,) bool on the CPU: classes whose errors are counted in bins."""
        if self.how.name == "sort":
            return torch.zeros(self.rows.weights.shape[1], dtype=torch.bool, device="cpu")
        return (self.rows.weights > 0).any(0) | self.counts_all

    @property
    def first_cut(self) -> int:
        """What ``cuts`` of :class:`Readings` are where nothing has been counted."""
        return 0 if self.how.name == "sort" else self.bins.bins + 1

    def classes_to_sort(self, cuts: Tensor) -> list[int]:
        """Classes that have pixels to sort, with the ``cuts`` of :class:`Readings`."""
        has = (cuts.cpu() <= self.bins.bins).any(1) & (self.rows.weights > 0).any(0)
        return has.nonzero()[:, 0].tolist()

    def tally_shape(self, logits: Tensor) -> tuple[int, ...]:
        """(2, C, R, K + 1): int64 counts and positions in one, of background [0] and foreground.

        With weights (2, 2, C, R, K + 1): sums of the weights, and of weight times position.
        """
        shape = (2, logits.shape[1], len(self.rows.counts), self.bins.bins + 1)
        return shape if self.weights is None else (2, *shape)


def rows_of(
    pixels: MulticlassPixels,
    classes: str | Sequence[int],
    per_image: bool,
    class_weights: Sequence[float] | Tensor | None,
) -> Rows:
    """Rows with the weights of Eq. 13; over all ranks, those of a row sum to 1/R, or to 0."""
    counts = pixels.counts if per_image else pixels.total_counts[None]
    weights = class_weight_vector(class_weights, counts.shape[1])
    averaged = _averaged(counts, classes).double()
    weights = averaged if weights is None else averaged * weights
    divisor = weights.sum(1, keepdim=True) * (pixels.total_images if per_image else 1)
    return Rows(counts, torch.where(divisor > 0, weights / divisor, 0.0))


def _averaged(counts: Tensor, classes: str | Sequence[int]) -> Tensor:
    """(R, C) bool: the classes that Eq. 13 averages in each row."""
    ids = listed(classes, counts.shape[1])
    if ids is None and classes == "present":
        return counts > 0
    chosen = torch.zeros(counts.shape[1], dtype=torch.bool, device="cpu")
    chosen[slice(None) if ids is None else ids] = True
    return chosen & (counts.sum(1, keepdim=True) > 0)


def listed(classes: str | Sequence[int], num_classes: int) -> list[int] | None:
    """Class ids that are given one by one, or None.

    Raises:
        ValueError: neither "present" nor "all", nor ids of classes, each once.
    """
    if isinstance(classes, str):
        if classes not in ("present", "all"):
            raise ValueError(f'classes is "{classes}", must be "present", "all" or a list of ids')
        return None
    ids = [index(item) for item in classes]
    for item in ids:
        if not 0 <= item < num_classes:
            raise ValueError(f"class {item} in classes is out of range for {num_classes} classes")
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(f"classes is {ids}, must name at least one class, and each once")
    return ids


# ---- The two passes ------------------------------------------------------------------------------


class Readings(NamedTuple):
    """What the counts say."""

    tables: Tensor
    """(2, C, R, K + 1) gains of the bins of background [0] and foreground [1], times the weights
    of Eq. 13."""
    values: Tensor
    """(C, R) float64 share in the loss of each class and row, of the bins below the cut."""
    cuts: Tensor
    """(C, R) int64: the bin from which on pixels have to be sorted; K + 1 where none has, as the
    bins are as good as a sort in float32."""


def count(logits: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The first pass.

    Returns:
        All that is counted in one, to add up over ranks: sums of shape ``problem.tally_shape``,
        those of classes that are not ``problem.counted`` undefined, and the number of NaN pixels.
        And what is kept of the softmax for :func:`gradient`.
    """
    labels, valid, weights, bins = problem.labels, problem.valid, problem.weights, problem.bins
    kept = softmax_of(logits, labels, valid)
    is_label = one_hot(labels, logits.shape[1])
    errors = log_errors(logits, is_label, kept).exp()
    nans = errors.isnan().any(1).sum()
    steps = (errors.nan_to_num_(nan=0.0).sqrt_() * bins.scale).long()
    positions = steps & ((1 << bins.bits) - 1)
    shape = problem.tally_shape(logits)
    places = _places(steps >> bins.bits, is_label, shape[-4:]).flatten()
    if weights is None:
        ones = torch.ones_like(labels) if valid is None else valid.long()
        amounts = [(positions + bins.one_pixel) * ones[:, None]]
    else:
        each = torch.where(is_label, weights.foreground[:, None], weights.background[:, None])
        amounts = [each, each * positions]
    flat = torch.zeros(math.prod(shape) + 1, dtype=amounts[0].dtype, device=logits.device)
    for sums, amount in zip(flat[:-1].view(len(amounts), -1), amounts, strict=True):
        sums.scatter_add_(0, places, amount.flatten())
    flat[-1] = nans
    return flat, kept


def tables(sums: Tensor, problem: Problem, dtype: torch.dtype) -> Readings:
    """Gains, values and whether they are good enough, from the sums of the first pass."""
    bins, set_function, shape = problem.bins, problem.set_function, sums.shape[-4:]
    weights = problem.rows.weights.T.flatten()  # (C R,) float64, on the CPU
    used = weights.nonzero()[:, 0]
    weights, used = weights[used].to(sums.device), used.to(sums.device)
    some = sums.flatten(-3, -2)[..., used, :]
    # (2, rows, K + 1)
    counts, positions = bins.unpack(some) if problem.weights is None else some
    held = Bins(counts[1], counts[0])
    edges = edges_of(held)
    gains = set_function.mean_gains(edges.above, *held)
    error_sums = bins.error_sums(counts, positions)
    value = (error_sums[1] * gains[0] + error_sums[0] * gains[1]).sum(-1)
    places = shape[1] * shape[2]
    values = value.new_zeros(places).index_copy(0, used, value * weights).view(shape[1:3])
    coarse = torch.full((places,), problem.first_cut == 0, device=sums.device)
    if problem.how.name == "auto":
        norm = bins.widths(sums.device), bins.logit_weights(sums.device)
        coarse[used] = ~error_bounds(held, edges, gains, set_function, *norm).below_float32()
    # Here whole classes are sorted, in all rows.
    coarse = coarse.view(shape[1:3]).any(1, keepdim=True).expand(shape[1:3])
    table = torch.zeros(2, places, shape[3], dtype=dtype, device=sums.device)
    table[:, used] = (torch.stack(gains[::-1]) * weights[:, None]).to(dtype)
    cuts = torch.where(coarse, 0, bins.bins + 1)
    return Readings(table.view(shape), values.masked_fill(coarse, 0.0), cuts)


def exact_gains(
    logits: Tensor, problem: Problem, _: Tensor, __: Readings | None, items: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Gains (E, B, P) of some classes times their weights, from a sort (Algorithm 1).

    Errors are ranked by their logarithm in float64, whatever the dtype of the logits. Ranked in
    float32, neighbours among a million pixels change places, and with them the gains of a class
    of a thousand pixels change by 1e-3. What the first pass kept is there for kernels that take
    no first pass where nothing is counted: they fill it in here.

    Returns:
        The gains, and this rank's part of the loss of these classes, 0-dim float64.
    """
    labels, valid, weights, rows = problem.labels, problem.valid, problem.weights, problem.rows
    dtype = torch.promote_types(logits.dtype, torch.float32)
    gains = torch.zeros(len(items), *labels.shape, dtype=dtype, device=labels.device)
    part = torch.zeros((), dtype=torch.float64, device=labels.device)
    kept, count = softmax_of(logits, labels, valid), len(rows.counts)

    for into, item in zip(gains, items, strict=True):
        foreground = labels == item
        logarithms = log_errors(logits[:, item : item + 1], foreground[:, None], kept)[:, 0]
        # Minus the logarithm is not negative, and bits of such a float grow with its value.
        keys = logarithms.abs().view(torch.int64)
        each = None
        if weights is not None:
            each = torch.where(foreground, weights.foreground, weights.background)
        found = marginal_gains(
            keys.reshape(count, -1),
            foreground.reshape(count, -1),
            problem.set_function,
            None if valid is None else valid.reshape(count, -1),
            dtype,
            None if each is None else each.reshape(count, -1),
            problem.row_ranks,
        )
        into.copy_((found * rows.weights[:, item, None].to(found)).view_as(into))
        part += (into * logarithms.exp()).sum()
    return gains, part


def gradient(
    logits: Tensor,
    problem: Problem,
    kept: Tensor,
    tables: Tensor,
    exact: Tensor,
    slots: Tensor,
    grad_loss: Tensor,
) -> Tensor:
    """The second pass: gradient (B, C, P), of the dtype of the logits.

    Args:
        logits, problem: as of the first pass.
        kept: what it kept.
        tables: gains of the bins.
        exact: (E, B, P) gains of the pixels themselves, to use for some classes instead.
        slots: (C,) int64: place of each class in ``exact``, or -1.
        grad_loss: what the gradient is multiplied by.
    """
    labels, weights, here = problem.labels, problem.weights, problem.labels[:, None]
    is_label = one_hot(labels, logits.shape[1])
    errors = log_errors(logits, is_label, kept).exp()
    index = (errors.nan_to_num(nan=0.0).sqrt_() * problem.bins.bins).long()
    gains = tables.take(_places(index, is_label, tables.shape)).double()
    if weights is not None:
        gains *= torch.where(is_label, weights.foreground[:, None], weights.background[:, None])
    for item in (slots >= 0).nonzero()[:, 0].tolist():
        gains[:, item] = exact[slots[item]].double()
    products = gains * errors
    label_product = products.gather(1, here)  # g_y m_y
    wrong_sum = products.masked_fill_(is_label, 0.0).sum(1, keepdim=True)  # S
    label_probability = log_errors(logits.gather(1, here), torch.zeros_like(here) > 0, kept).exp()
    result = (gains - wrong_sum + gains.gather(1, here) * label_probability) * errors
    result.scatter_(1, here, -label_probability * (wrong_sum + label_product))
    return (result * grad_loss).to(logits.dtype)


def softmax_of(logits: Tensor, labels: Tensor, valid: Tensor | None) -> Tensor:
    """(2, B, P): what is subtracted from logits to give log-probabilities, and log m_y.

    On ignored pixels inf and -inf: no probability and no error.
    """
    scores = logits.double()
    normaliser = scores.logsumexp(1)
    normaliser = torch.where(normaliser == torch.inf, torch.nan, normaliser)
    others = scores.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    kept = torch.stack([normaliser, others - normaliser])
    if valid is not None:
        kept[0].masked_fill_(~valid, torch.inf)
        kept[1].masked_fill_(~valid, -torch.inf)
    return kept


def log_errors(logits: Tensor, is_label: Tensor, kept: Tensor) -> Tensor:
    """(B, C, P) logarithms of the errors (Eq. 11) of some classes, from their logits."""
    normaliser, of_label = kept[:, :, None]
    logarithms = torch.where(is_label, of_label, logits.double() - normaliser)
    return logarithms.masked_fill_(normaliser == torch.inf, -torch.inf)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, C, P) bool from (B, P)."""
    return labels[:, None] == torch.arange(classes, device=labels.device)[:, None]


def _places(index: Tensor, is_label: Tensor, shape: Sequence[int]) -> Tensor:
    """Where bins (B, C, P) are in flat numbers (2, C, R, K + 1) of background and foreground."""
    _, classes, rows, width = shape
    first = torch.arange(classes * rows, device=index.device).view(classes, rows).T * width
    return index + first[..., None] + is_label * (classes * rows * width)
