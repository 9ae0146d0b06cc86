"""Set functions that are not submodular are refused, with sets that show it."""

import itertools
import re

import pytest
import torch
from torch import Tensor

from lovasz_repro.losses import (
    CountFunction,
    Counts,
    HammingLoss,
    JaccardLoss,
    SetFunction,
    TverskyLoss,
    check_submodular,
    lovasz_extension,
    lovasz_hinge,
    lovasz_softmax,
)


def dice(fn: Tensor, fp: Tensor, size: Tensor) -> Tensor:
    return torch.where(size + fp > 0, (fn + fp) / (2 * size - fn + fp).clamp(min=1), 0.0)


def squared(fn: Tensor, fp: Tensor, size: Tensor) -> Tensor:
    return (fn + fp) ** 2


def product(fn: Tensor, fp: Tensor, size: Tensor) -> Tensor:
    return fn * fp


def root(fn: Tensor, fp: Tensor, size: Tensor) -> Tensor:
    return (fn + 2 * fp).sqrt()


@pytest.mark.parametrize(
    "function",
    [
        JaccardLoss(),
        HammingLoss(),
        TverskyLoss(2.5, 0.3),
        TverskyLoss(1.0, 4.0),
        CountFunction(root),
    ],
    ids=lambda f: type(f).__name__,
)
def test_submodular_functions_pass(function: SetFunction) -> None:
    check_submodular(function)


@pytest.mark.parametrize("function", [dice, squared, product])
def test_counterexample_is_one(function) -> None:
    """The sets that the message names contradict Eq. 7, by the function itself."""
    with pytest.raises(ValueError, match="is not submodular") as raised:
        check_submodular(CountFunction(function))
    message = str(raised.value)
    size, rest = map(
        int, re.search(r"with (\d+) foreground and (\d+) background", message).groups()
    )
    a, b = (
        tuple(map(int, re.search(rf"{pattern} (\d+) foreground and (\d+)", message).groups()))
        for pattern in ("A mispredict", "B")
    )
    assert max(a[0], b[0]) <= size
    assert max(a[1], b[1]) <= rest
    # A = S + {x} and B = S + {y}: S lacks one pixel of each.
    if a == b:
        kind = (1, 0) if a[0] > 0 and (a[0] + 1 <= size) else (0, 1)
        union, common = (a[0] + kind[0], a[1] + kind[1]), (a[0] - kind[0], a[1] - kind[1])
    else:
        union, common = (max(a[0], b[0]), max(a[1], b[1])), (min(a[0], b[0]), min(a[1], b[1]))

    def f(counts: tuple[int, int]) -> float:
        numbers = (*counts, size)
        return float(function(*(torch.tensor(float(n), dtype=torch.float64) for n in numbers)))

    assert f(a) + f(b) < f(union) + f(common) - 1e-9
    for number in (f(a), f(b), f(union)):
        assert f"{number:.6g}" in message


def test_agrees_with_all_pairs_of_sets(oracle) -> None:
    """The check of neighbours against Definition 1 over all pairs of sets of four pixels."""
    for function in (JaccardLoss(), CountFunction(dice), CountFunction(product)):
        violated = False
        for foreground in oracle.subsets(4):
            values = {}
            for s in oracle.subsets(4):
                numbers = (len(s & foreground), len(s - foreground), len(foreground), 4)
                counts = Counts(*(torch.tensor(float(n), dtype=torch.float64) for n in numbers))
                values[s] = float(function(counts))
            for a, b in itertools.product(values, repeat=2):
                violated |= values[a] + values[b] < values[a | b] + values[a & b] - 1e-12
        if violated:
            with pytest.raises(ValueError, match="not submodular"):
                check_submodular(function, max_foreground=4, max_background=4)
        else:
            check_submodular(function, max_foreground=4, max_background=4)


def test_values_that_no_set_function_has() -> None:
    with pytest.raises(ValueError, match=r"is 1 with 0 foreground .* must be 0"):
        check_submodular(CountFunction(lambda fn, fp, size: fn + fp + 1))
    with pytest.raises(ValueError, match=r"is nan with 0 foreground .* must be finite"):
        check_submodular(CountFunction(lambda fn, fp, size: (fn + fp) / size))


def test_every_loss_refuses_it() -> None:
    logits, labels = torch.randn(1, 3, 5), torch.zeros(1, 5).long()
    for loss in (
        lambda: lovasz_softmax(logits, labels, set_function=CountFunction(dice)),
        lambda: lovasz_hinge(logits[:, 0], labels, set_function=CountFunction(dice)),
        lambda: lovasz_extension(torch.rand(5), torch.ones(5).bool(), dice),
    ):
        with pytest.raises(ValueError, match="not submodular"):
            loss()
    with pytest.raises(TypeError, match=r"give an instance, JaccardLoss\("):
        lovasz_softmax(logits, labels, set_function=JaccardLoss)


class RootLoss(SetFunction):
    """A set function of one's own: the root of the share of the mispredictions."""

    def __call__(self, counts: Counts) -> Tensor:
        wrong = counts.false_negatives + counts.false_positives
        return (wrong / counts.pixels.clamp(min=1)).sqrt()


@pytest.mark.parametrize("method", ["sort", "histogram"])
def test_a_function_of_ones_own(oracle, method: str) -> None:
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(60, dtype=torch.float64, generator=generator)
    foreground = torch.rand(60, generator=generator) < 0.4
    expected, gains = oracle.definition(errors.tolist(), lambda s: (len(s) / 60) ** 0.5)
    leaf = errors.clone().requires_grad_()
    found = lovasz_extension(leaf, foreground, RootLoss(), method=method, bins=2**18)
    found.backward()
    assert found.item() == pytest.approx(expected, abs=1e-12)
    assert leaf.grad.tolist() == pytest.approx(gains, abs=1e-12)


def test_a_function_is_checked_once_and_need_not_be_hashable() -> None:
    calls = []

    class Counting(RootLoss):
        def __call__(self, counts: Counts) -> Tensor:
            calls.append(1)
            return super().__call__(counts)

    class Unhashable(Counting):
        __hash__ = None

    errors, foreground = torch.rand(5), torch.ones(5).bool()
    for made, again in ((Counting(), False), (Unhashable(), True)):
        lovasz_extension(errors, foreground, made)
        first = len(calls)
        lovasz_extension(errors, foreground, made)
        second = len(calls) - first
        assert (second == first) == again
        calls.clear()
