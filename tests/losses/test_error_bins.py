"""Bins of errors: monotone, tight, and exact about what they hold."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.losses.histogram import ProbabilityBins, row_bins
from lovasz_repro.losses.ranks import ONE_PROCESS


@given(
    st.lists(st.floats(-(2.0**117), 2.0**117, width=32), min_size=1, max_size=40),
    st.integers(2, 1000),
)
def test_row_bins_grow_with_the_error_and_hold_it(numbers: list[float], count: int) -> None:
    errors = torch.tensor([numbers])
    rows = row_bins(errors, None, count, ONE_PROCESS)
    order = errors[0].argsort()
    assert (rows.bin[0][order].diff() >= 0).all()
    assert 0 <= rows.bin.min() <= rows.bin.max() <= count
    lowest = errors[0][rows.bin[0] == 0]
    assert (lowest == errors.min()).all()
    assert rows.largest.item() == pytest.approx(errors.abs().max().item(), rel=1e-4, abs=1e-6)
    for number in rows.bin[0].unique():
        held = errors[0][rows.bin[0] == number].double()
        width = rows.widths[0, number].item()
        slack = 1e-4 * held.abs().max().item() + 1e-9  # rounding of the logarithm
        assert (held.max() - held.min()).item() <= width + slack


def test_an_outlier_costs_little_resolution() -> None:
    errors = torch.linspace(0, 4, 5000)[None]
    alone = row_bins(errors, None, 1024, ONE_PROCESS).bin.unique().numel()
    errors[0, 0] = 1e6
    beside = row_bins(errors, None, 1024, ONE_PROCESS).bin.unique().numel()
    assert alone > 500
    assert beside > alone / 3


def test_row_bins_of_invalid_infinite_and_equal_errors() -> None:
    inf, nan = math.inf, math.nan
    errors = torch.tensor([[1.0, 2.0, 5.0, nan], [3.0, 3.0, 3.0, 3.0], [inf, 0.0, 1.0, -inf]])
    valid = torch.tensor([[True, True, True, False], [True] * 4, [True] * 4])
    rows = row_bins(errors, valid, 8, ONE_PROCESS)
    assert rows.bin[0, :3].tolist() == sorted(rows.bin[0, :3].tolist())
    assert rows.bin[0, [0, 2]].tolist() == [0, 8]
    assert not rows.bin[1].any()
    assert rows.bin[2, 0] == 8
    assert rows.bin[2, 3] == 0
    nothing = row_bins(errors, torch.zeros_like(valid), 8, ONE_PROCESS)
    assert not nothing.bin.any()
    assert row_bins(errors[:, :0], None, 8, ONE_PROCESS).bin.shape == (3, 0)


@pytest.mark.parametrize("count", [2, 100, 2**14, 2**20])
def test_probability_bins_keep_counts_and_sums(count: int) -> None:
    bins = ProbabilityBins(count)
    generator = torch.Generator().manual_seed(0)
    errors = torch.rand(20_000, dtype=torch.float64, generator=generator) ** 4
    errors[:3] = torch.tensor([0.0, 1.0, 1e-12])
    fixed = (errors.sqrt() * bins.scale).long()
    index = fixed >> bins.bits
    packed = torch.zeros(count + 1, dtype=torch.int64)
    packed.index_add_(0, index, fixed % (1 << bins.bits) + bins.one_pixel)
    counts, positions = bins.unpack(packed)
    assert torch.equal(counts, torch.bincount(index, minlength=count + 1).double())
    sums = bins.error_sums(counts, positions)
    expected = torch.zeros(count + 1, dtype=torch.float64).index_add_(0, index, errors)
    # per error: half a unit of the position, and the variance inside a bin
    slack = counts * (1 / bins.scale + 1 / (4 * count**2)) + 1e-12
    assert ((sums - expected).abs() <= slack).all()
    assert sums[0] <= expected[0] + slack[0]


def test_probability_bins_do_not_overflow() -> None:
    """The largest number of pixels, all at the end of one bin."""
    for count in (2, 2**14, 2**20):
        bins = ProbabilityBins(count)
        last = (1 << bins.bits) - 1
        packed = torch.tensor([bins.most_pixels * (bins.one_pixel + last)])
        assert packed.item() == bins.most_pixels * (bins.one_pixel + last)
        counts, positions = bins.unpack(packed)
        assert counts.item() == bins.most_pixels
        assert positions.item() == bins.most_pixels * last


def test_widths_and_weights_of_probability_bins() -> None:
    bins = ProbabilityBins(10)
    cpu = torch.device("cpu")
    widths = bins.widths(cpu).tolist()
    assert widths == pytest.approx([(2 * k + 1) / 100 for k in range(10)] + [0.0], abs=1e-7)
    weights = bins.logit_weights(cpu).tolist()
    assert weights[:10] == pytest.approx(
        [((k + 0.5) / 10) ** 2 * (1 - ((k + 0.5) / 10) ** 2) for k in range(10)], abs=1e-7
    )
