"""Gains from bins against orders of pixels written out, and the error bounds of the docstring."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lovasz_repro.losses import (
    HammingLoss,
    JaccardLoss,
    SetFunction,
    TverskyLoss,
    lovasz_extension,
    lovasz_softmax,
)
from lovasz_repro.losses.histogram import Bins, Method, edges_of, error_bounds, row_bins
from lovasz_repro.losses.ranks import ONE_PROCESS

SUBMODULAR = [JaccardLoss(), HammingLoss(), TverskyLoss(2.0, 0.5), TverskyLoss(1.0, 3.0)]


def value(function: SetFunction, foreground: list[bool], mispredicted: list[int]) -> float:
    """The set function of a set of pixels, through its counts."""
    from lovasz_repro.losses import Counts

    fn = sum(foreground[i] for i in mispredicted)
    numbers = (fn, len(mispredicted) - fn, sum(foreground), len(foreground))
    return float(function(Counts(*(torch.tensor(float(n), dtype=torch.float64) for n in numbers))))


def gains_in_order(function: SetFunction, foreground: list[bool], order: list[int]) -> list[float]:
    gains = [0.0] * len(order)
    for rank, pixel in enumerate(order):
        gains[pixel] = value(function, foreground, order[: rank + 1])
        gains[pixel] -= value(function, foreground, order[:rank])
    return gains


def two_orders(function: SetFunction, foreground: list[bool], bins: list[int]) -> list[float]:
    """Eq. 9 in two orders of each bin, one kind of pixel first; a kind shares its gain."""
    result = np.zeros(len(bins))
    for kind_first in (True, False):
        order = sorted(range(len(bins)), key=lambda i: (-bins[i], foreground[i] != kind_first))
        gains = np.array(gains_in_order(function, foreground, order))
        for number in set(bins):
            for kind in (True, False):
                same = [i for i in order if bins[i] == number and foreground[i] == kind]
                if same:
                    result[same] += gains[same].mean() / 2
    return result.tolist()


def table_of(
    function: SetFunction, foreground: list[bool], bins: list[int], dtype=torch.float64
) -> tuple[Bins, list[float]]:
    """Counts of the bins, and the gain that each pixel reads off the table."""
    counts = torch.zeros(2, 1, max(bins) + 1, dtype=dtype)
    for kind, number in zip(foreground, bins, strict=True):
        counts[1 - kind, 0, number] += 1
    held = Bins(counts[0], counts[1])
    gains = function.mean_gains(edges_of(held).above, *held)
    pairs = zip(foreground, bins, strict=True)
    return held, [gains[1 - kind][0, number].item() for kind, number in pairs]


@st.composite
def binned(draw) -> tuple[list[bool], list[int]]:
    size = draw(st.integers(1, 8))
    return (
        draw(st.lists(st.booleans(), min_size=size, max_size=size)),
        draw(st.lists(st.integers(0, 4), min_size=size, max_size=size)),
    )


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@given(problem=binned())
@settings(max_examples=60)
def test_gains_are_the_average_of_two_orders(function: SetFunction, problem) -> None:
    foreground, bins = problem
    _, gains = table_of(function, foreground, bins)
    assert gains == pytest.approx(two_orders(function, foreground, bins), abs=1e-13)
    everything = value(function, foreground, list(range(len(bins))))
    assert sum(gains) == pytest.approx(everything, abs=1e-12)


@given(problem=binned())
@settings(max_examples=60)
def test_closed_form_of_jaccard_is_the_general_one(problem) -> None:
    foreground, bins = problem

    class Plain(SetFunction):
        def __call__(self, counts):
            return JaccardLoss()(counts)

    general = table_of(Plain(), foreground, bins)[1]
    assert table_of(JaccardLoss(), foreground, bins)[1] == pytest.approx(general, abs=1e-13)
    single = table_of(JaccardLoss(), foreground, bins, torch.float32)[1]
    assert single == pytest.approx(general, rel=1e-6, abs=1e-15)


def problem_of(name: str, pixels: int) -> tuple[Tensor, Tensor]:
    """Errors (P,) float64 and foreground (P,), friendly and hostile."""
    generator = torch.Generator().manual_seed(len(name) + pixels)
    uniform = torch.rand(pixels, dtype=torch.float64, generator=generator)
    foreground = torch.rand(pixels, generator=generator) < 0.1
    noise = torch.randn(pixels, dtype=torch.float64, generator=generator)
    errors = {
        "uniform": uniform,
        "all errors equal": torch.full_like(uniform, 0.3),
        "two clusters": torch.where(foreground, 0.7, 0.3) + 1e-6 * noise,
        "one cluster": 0.3 + 1e-6 * noise,
        "perfect": torch.zeros_like(uniform),
        "nearly perfect": 1e-7 * uniform,
        "saturated and wrong": 1 - 1e-9 * uniform,
        "good network": uniform**8,
        "one foreground pixel": uniform,
        "no foreground": uniform,
        "foreground alone": uniform,
        "hinge with an outlier": (1 + 2 * noise).relu(),
        "any sign": noise,
    }[name]
    if name == "one foreground pixel":
        foreground = torch.arange(pixels) == pixels // 3
    if name == "hinge with an outlier":
        errors[0] = 1e6
    if name.startswith(("no foreground", "foreground alone")):
        foreground = torch.full_like(foreground, name == "foreground alone")
    return errors, foreground


NAMES = [
    "uniform",
    "all errors equal",
    "two clusters",
    "one cluster",
    "perfect",
    "nearly perfect",
    "saturated and wrong",
    "good network",
    "one foreground pixel",
    "no foreground",
    "foreground alone",
    "hinge with an outlier",
    "any sign",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pixels", [1, 40, 3000])
@pytest.mark.parametrize("bins", [16, 1000])
@pytest.mark.parametrize("function", SUBMODULAR[:3], ids=str)
def test_error_bounds_hold(oracle, name: str, pixels: int, bins: int, function) -> None:
    errors, foreground = problem_of(name, pixels)
    rows = row_bins(errors[None], None, bins, ONE_PROCESS)
    counts = torch.zeros(2, 1, bins + 1, dtype=torch.float64)
    ones = torch.ones(pixels, dtype=torch.float64)
    for kind, mask in enumerate((foreground, ~foreground)):
        counts[kind, 0].index_add_(0, rows.bin[0], ones * mask)
    held = Bins(counts[0], counts[1])
    edges = edges_of(held)
    gains = function.mean_gains(edges.above, *held)
    weights = torch.ones(bins + 1, dtype=torch.float64)
    bounds = error_bounds(held, edges, gains, function, rows.widths, weights)

    leaf = errors.clone().requires_grad_()
    exact = lovasz_extension(leaf, foreground, function, method="sort")
    exact.backward()
    if function == JaccardLoss():
        expected = oracle.algorithm_1(errors.numpy(), foreground.numpy())
        np.testing.assert_allclose(leaf.grad.numpy(), expected, atol=1e-12)
    found = errors.clone().requires_grad_()
    counted = lovasz_extension(found, foreground, function, method="histogram", bins=bins)
    counted.backward()

    lack = (exact - counted).item()
    everything = leaf.grad.sum().item()
    scale = 1e-12 * max(1.0, errors.abs().max().item())
    assert -scale <= lack <= rows.widths.max().item() * everything + scale
    if bounds.loss.isnan():  # 1/U is not finite without foreground: "auto" sorts
        assert not foreground.any()
        assert not bounds.below_float32().any()
        return
    assert abs(lack) <= bounds.loss.item() + scale
    difference = (leaf.grad - found.grad)[rows.bin[0] > 0].norm().item()
    assert difference <= bounds.gain.item() + 1e-12


@given(seed=st.integers(0, 10**6), pixels=st.integers(2, 300), bins=st.integers(2, 300))
@settings(max_examples=60)
def test_histogram_is_below_by_at_most_a_bin(seed: int, pixels: int, bins: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, 3, pixels, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 3, (1, pixels), generator=generator)
    exact = lovasz_softmax(logits, labels, method="sort").item()
    counted = lovasz_softmax(logits, labels, method="histogram", bins=bins).item()
    # The variance of the positions inside a bin, up to 1/(4 K^2), is not counted either way.
    assert -1 / (4 * bins**2) - 1e-6 <= exact - counted <= 2 / bins + 1 / (4 * bins**2)


def test_more_bins_come_closer() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 60, 60, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (2, 60, 60), generator=generator)

    def gradient(**options) -> Tensor:
        leaf = logits.clone().requires_grad_()
        lovasz_softmax(leaf, labels, **options).backward()
        return leaf.grad

    exact = gradient(method="sort")
    errors = [
        ((gradient(method="histogram", bins=bins) - exact).norm() / exact.norm()).item()
        for bins in (2**6, 2**10, 2**14, 2**18)
    ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    assert errors[3] < 1e-4


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"method": "radix"}, 'method is "radix", must be "auto", "sort" or "histogram"'),
        ({"bins": 1}, "bins is 1, must be between 2 and 1048576"),
        ({"bins": 2**20 + 1}, "bins is 1048577"),
    ],
)
def test_options_out_of_range(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        lovasz_softmax(torch.zeros(1, 2, 3), torch.zeros(1, 3).long(), **options)
    with pytest.raises(ValueError, match=match):
        lovasz_extension(torch.zeros(3), torch.zeros(3).bool(), JaccardLoss(), **options)


def test_auto_sorts_what_is_small_exact_or_weighted() -> None:
    auto = Method("auto", 2**14)
    assert auto.sorts(2**17 - 1, torch.float32, weighted=False)
    assert auto.sorts(2**20, torch.float64, weighted=False)
    assert auto.sorts(2**20, torch.float32, weighted=True)
    assert not auto.sorts(2**17, torch.float32, weighted=False)
    assert not Method("histogram", 2**14).sorts(1, torch.float64, weighted=True)
    assert auto.bins_for(2**30) == 2**14
    sizes = (1, 2**15 - 1, 2**15, 2**19 - 1, 2**19)
    assert [Method().bins_for(pixels) for pixels in sizes] == [2**13, 2**13, 2**14, 2**14, 2**15]
    assert Method("sort", 2**14).sorts(2**30, torch.float32, weighted=False)
