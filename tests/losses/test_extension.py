"""The Lovász extension against its definition (Eq. 8-9) on sets, and its properties."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lovasz_repro.losses import (
    CountFunction,
    HammingLoss,
    JaccardLoss,
    SetFunction,
    TverskyLoss,
    extension,
    lovasz_extension,
)

TVERSKY = TverskyLoss(2.0, 0.5)
SUBMODULAR = [JaccardLoss(), HammingLoss(), TVERSKY]


def set_loss(function: SetFunction, foreground: frozenset[int], pixels: int, oracle):
    """The same set function, of Python sets."""
    jaccard = oracle.jaccard_loss(foreground)

    def tversky(mispredicted: frozenset[int]) -> float:
        fn, fp = len(mispredicted & foreground), len(mispredicted - foreground)
        union = len(foreground) - fn + TVERSKY.false_negative_weight * fn
        union += TVERSKY.false_positive_weight * fp
        return 1 - (len(foreground) - fn) / union if union else 0.0

    return {
        JaccardLoss: jaccard,
        HammingLoss: lambda mispredicted: len(mispredicted) / pixels,
        TverskyLoss: tversky,
    }[type(function)]


def mask(foreground: frozenset[int], pixels: int) -> Tensor:
    return torch.tensor([i in foreground for i in range(pixels)])


def value_and_gradient(
    errors: list[float], foreground: Tensor, function
) -> tuple[float, list[float]]:
    leaf = torch.tensor(errors, dtype=torch.float64, requires_grad=True)
    value = lovasz_extension(leaf, foreground, function)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.item(), gradient.tolist()


@st.composite
def problems(draw, max_pixels: int = 6) -> tuple[list[float], frozenset[int]]:
    """Errors in [0, 4], often tied, and any ground truth."""
    size = draw(st.integers(1, max_pixels))
    one = st.one_of(st.floats(0, 4), st.sampled_from([0.0, 0.5, 1.0]))
    errors = draw(st.lists(one, min_size=size, max_size=size))
    return errors, frozenset(draw(st.sets(st.integers(0, size - 1))))


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@given(problem=problems())
@settings(max_examples=40)
def test_definition_on_all_prefix_sets(oracle, function: SetFunction, problem) -> None:
    errors, foreground = problem
    loss = set_loss(function, foreground, len(errors), oracle)
    expected, gains = oracle.definition(errors, loss)
    value, gradient = value_and_gradient(errors, mask(foreground, len(errors)), function)
    assert value == pytest.approx(expected, abs=1e-13)
    assert gradient == pytest.approx(gains, abs=1e-14)


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@pytest.mark.parametrize("pixels", [1, 2, 3, 5])
def test_tight_on_every_vertex(oracle, function: SetFunction, pixels: int) -> None:
    for foreground in oracle.subsets(pixels):
        loss = set_loss(function, foreground, pixels, oracle)
        vertices = torch.stack([mask(s, pixels) for s in oracle.subsets(pixels)]).double()
        truth = mask(foreground, pixels).expand_as(vertices)
        values = lovasz_extension(vertices, truth, function).tolist()
        assert values == pytest.approx([loss(s) for s in oracle.subsets(pixels)], abs=1e-15)


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@given(problem=problems(5))
@settings(max_examples=20)
def test_largest_of_all_orders(oracle, function: SetFunction, problem) -> None:
    """For a submodular function no other order of the pixels gives a larger sum in Eq. 8."""
    errors, foreground = problem
    loss = set_loss(function, foreground, len(errors), oracle)
    sums = []
    for order in itertools.permutations(range(len(errors))):
        prefixes = [frozenset(order[:k]) for k in range(len(order) + 1)]
        sums.append(
            sum(
                errors[pixel] * (loss(prefixes[k + 1]) - loss(prefixes[k]))
                for k, pixel in enumerate(order)
            )
        )
    value, _ = value_and_gradient(errors, mask(foreground, len(errors)), function)
    assert value == pytest.approx(max(sums), abs=1e-13)


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@given(problem=problems(), data=st.data())
@settings(max_examples=40)
def test_convex(function: SetFunction, problem, data) -> None:
    errors, foreground = problem
    other = data.draw(st.lists(st.floats(0, 4), min_size=len(errors), max_size=len(errors)))
    t = data.draw(st.floats(0, 1))
    ends = torch.tensor([errors, other], dtype=torch.float64)
    middle = t * ends[0] + (1 - t) * ends[1]
    truth = mask(foreground, len(errors))
    a, b, c = (lovasz_extension(m, truth, function).item() for m in (*ends, middle))
    assert c <= t * a + (1 - t) * b + 1e-12


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@given(problem=problems(), data=st.data())
@settings(max_examples=40)
def test_linear_where_the_order_is_the_same(function: SetFunction, problem, data) -> None:
    """Sec. 2: piecewise linear; a piece is all errors that one permutation sorts."""
    errors, foreground = problem
    other = data.draw(st.lists(st.floats(0, 4), min_size=len(errors), max_size=len(errors)))
    ends = torch.tensor([errors, other], dtype=torch.float64).sort(dim=1).values
    a, b = data.draw(st.floats(0, 10)), data.draw(st.floats(0, 10))
    truth = mask(foreground, len(errors))
    one, two, both = (
        lovasz_extension(m, truth, function).item() for m in (*ends, a * ends[0] + b * ends[1])
    )
    assert both == pytest.approx(a * one + b * two, abs=1e-11)


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
@given(problem=problems(), scale=st.floats(0, 1000))
@settings(max_examples=30)
def test_positively_homogeneous(function: SetFunction, problem, scale: float) -> None:
    errors, foreground = problem
    truth = mask(foreground, len(errors))
    m = torch.tensor(errors, dtype=torch.float64)
    one = lovasz_extension(m, truth, function).item()
    assert lovasz_extension(scale * m, truth, function).item() == pytest.approx(
        scale * one, rel=1e-12, abs=1e-12
    )


@pytest.mark.parametrize(
    ("ground_truth", "gains"),
    [  # Algorithm 1 by hand, ground truth in decreasing order of the errors
        ([1, 0, 1], [1 / 2, 1 / 6, 1 / 3]),
        ([0, 1, 0, 1], [1 / 3, 1 / 3, 1 / 12, 1 / 4]),
        ([0, 0, 1, 1], [1 / 3, 1 / 6, 1 / 4, 1 / 4]),
        ([1, 1, 1], [1 / 3, 1 / 3, 1 / 3]),
        ([0, 0, 0], [1.0, 0.0, 0.0]),
    ],
)
def test_golden_gradients(ground_truth: list[int], gains: list[float]) -> None:
    size = len(ground_truth)
    decreasing = [float(size - i) for i in range(size)]
    for order in itertools.permutations(range(size)):
        errors, truth = [decreasing[i] for i in order], [ground_truth[i] for i in order]
        _, gradient = value_and_gradient(errors, torch.tensor(truth), JaccardLoss())
        assert gradient == pytest.approx([gains[i] for i in order], abs=1e-15)


def test_hamming_extension_is_the_mean() -> None:
    errors = torch.rand(7, 50, dtype=torch.float64)
    values = lovasz_extension(errors, torch.rand(7, 50) < 0.5, HammingLoss())
    torch.testing.assert_close(values, errors.mean(-1))


def test_plain_function_of_three_counts() -> None:
    def jaccard(fn: Tensor, fp: Tensor, size: Tensor) -> Tensor:
        return torch.where(size + fp > 0, (fn + fp) / (size + fp).clamp(min=1), 0.0)

    errors, foreground = torch.rand(5, 30), torch.rand(5, 30) < 0.3
    expected = lovasz_extension(errors, foreground, JaccardLoss())
    torch.testing.assert_close(lovasz_extension(errors, foreground, jaccard), expected)
    wrapped = lovasz_extension(errors, foreground, CountFunction(jaccard))
    torch.testing.assert_close(wrapped, expected)


@pytest.mark.parametrize("function", SUBMODULAR, ids=str)
def test_gradcheck_where_errors_are_distinct(function: SetFunction) -> None:
    torch.manual_seed(0)
    errors = torch.stack([torch.randperm(12) for _ in range(3)]).double().requires_grad_()
    foreground = torch.rand(3, 12) < 0.4
    arguments = (errors, foreground, function)
    assert torch.autograd.gradcheck(lovasz_extension, arguments)
    assert torch.autograd.gradgradcheck(lovasz_extension, arguments)


class Calls(TorchDispatchMode):
    """How often each operator of PyTorch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        self.names[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def test_the_gradient_costs_no_more_than_the_value() -> None:
    """Sec. 3: one sort gives both, and backward only scales what forward has."""
    errors = torch.rand(1000, dtype=torch.float64, requires_grad=True)
    foreground = torch.rand(1000) < 0.3
    with Calls() as forward:
        value = lovasz_extension(errors, foreground, JaccardLoss())
    with Calls() as backward:
        value.backward()
    assert sum(forward.names[sort] for sort in ("sort", "argsort", "topk")) == 1
    assert not {"sort", "argsort", "topk", "cumsum"} & backward.names.keys()
    assert sum(backward.names.values()) < sum(forward.names.values())


def test_rows_are_independent_problems() -> None:
    errors, foreground = torch.rand(2, 3, 4, 6), torch.rand(2, 3, 4, 6) < 0.5
    values = lovasz_extension(errors, foreground, JaccardLoss())
    assert values.shape == (2, 3, 4)
    for index in itertools.product(range(2), range(3), range(4)):
        alone = lovasz_extension(errors[index], foreground[index], JaccardLoss())
        assert alone.shape == ()
        torch.testing.assert_close(values[index], alone)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4), (0, 0)])
def test_nothing_to_sum_is_zero(shape: tuple[int, ...]) -> None:
    errors = torch.rand(shape, requires_grad=True)
    values = lovasz_extension(errors, torch.ones(shape, dtype=torch.bool), JaccardLoss())
    assert values.shape == shape[:-1]
    assert not values.any()
    values.sum().backward()
    assert errors.grad is not None
    assert errors.grad.shape == shape


@given(problem=problems(), data=st.data())
@settings(max_examples=40)
def test_invalid_pixels_do_not_exist(problem, data) -> None:
    errors, foreground = problem
    valid = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(errors), max_size=len(errors)))
    )
    truth = mask(foreground, len(errors))
    dirty = torch.tensor(errors, dtype=torch.float64).masked_fill(~valid, float("nan"))
    for function in SUBMODULAR:
        leaf = dirty.clone().requires_grad_()
        value = lovasz_extension(leaf, truth, function, valid=valid)
        (gradient,) = torch.autograd.grad(value, leaf)
        kept = torch.tensor(errors, dtype=torch.float64)[valid].requires_grad_()
        expected = lovasz_extension(kept, truth[valid], function)
        (kept_gradient,) = torch.autograd.grad(expected, kept)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(gradient[valid], kept_gradient)
        assert not gradient[~valid].any()


def test_ties_rank_by_index_at_every_call(oracle) -> None:
    errors = torch.full((40_000,), 0.5)
    errors[::3] = -0.0
    errors[1::3] = 0.0
    foreground = torch.arange(40_000) % 7 == 0
    expected = oracle.algorithm_1(errors.numpy().astype(np.float64) + 0.0, foreground.numpy())
    gradients = []
    for _ in range(3):
        leaf = errors.clone().requires_grad_()
        lovasz_extension(leaf, foreground, JaccardLoss()).backward()
        gradients.append(leaf.grad)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    np.testing.assert_allclose(gradients[0].numpy(), expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 100_000), (3, 50_000), (600, 300)])
def test_algorithm_1_on_long_and_many_rows(oracle, shape, dtype: torch.dtype) -> None:
    generator = np.random.default_rng(0)
    errors = generator.normal(size=shape).astype(np.float32)  # Eq. 8 takes any sign
    foreground = generator.random(shape) < generator.random((shape[0], 1))
    leaf = torch.tensor(errors, dtype=dtype, requires_grad=True)
    values = lovasz_extension(leaf, torch.tensor(foreground), JaccardLoss())
    values.sum().backward()
    gains = np.stack(
        [
            oracle.algorithm_1(e.astype(np.float64), f)
            for e, f in zip(errors, foreground, strict=True)
        ]
    )
    np.testing.assert_allclose(leaf.grad.numpy(), gains, rtol=1e-6, atol=1e-11)
    expected = (gains * errors).sum(-1)
    np.testing.assert_allclose(values.detach().numpy(), expected, rtol=0, atol=1e-6)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=30))
def test_keys_increase_as_errors_decrease(numbers: list[float]) -> None:
    for dtype in (torch.float32, torch.float64):
        errors = torch.tensor(numbers, dtype=dtype)
        keys = extension.decreasing_keys(errors[None])[0].tolist()
        for (a, key_a), (b, key_b) in itertools.combinations(zip(numbers, keys, strict=True), 2):
            assert (a > b) == (key_a < key_b)
            assert (a == b) == (key_a == key_b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    errors, foreground = torch.rand(3, 200).to(dtype), torch.rand(3, 200) < 0.3
    half, full = errors.clone().requires_grad_(), errors.float().requires_grad_()
    value, expected = (lovasz_extension(e, foreground, JaccardLoss()) for e in (half, full))
    value.sum().backward()
    expected.sum().backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, full.grad.to(dtype))


def test_infinite_and_nan_errors() -> None:
    inf, nan = float("inf"), float("nan")
    background = torch.zeros(3, dtype=torch.bool)
    assert lovasz_extension(torch.tensor([inf, inf, 1.0]), background, JaccardLoss()) == inf
    some = torch.tensor([False, True, False])
    assert lovasz_extension(torch.tensor([inf, 1.0, 0.5]), some, JaccardLoss()) == inf
    for errors in ([nan, 1.0, 2.0], [1.0, nan, 2.0], [-nan, 1.0, inf]):
        assert lovasz_extension(torch.tensor(errors), some, JaccardLoss()).isnan()
        assert lovasz_extension(torch.tensor(errors), background, JaccardLoss()).isnan()


def test_non_contiguous_errors() -> None:
    errors, foreground = torch.rand(6, 9), torch.rand(6, 9) < 0.5
    expected = lovasz_extension(errors.T.contiguous(), foreground.T.contiguous(), JaccardLoss())
    assert torch.equal(lovasz_extension(errors.T, foreground.T, JaccardLoss()), expected)


@pytest.mark.parametrize(
    ("errors", "foreground", "valid", "error", "match"),
    [
        (torch.ones(3).long(), torch.ones(3).bool(), None, TypeError, "errors must be a floating"),
        (torch.tensor(1.0), torch.tensor(True), None, ValueError, "got a scalar"),
        (torch.rand(3), torch.ones(2).bool(), None, ValueError, r"foreground has shape \(2,\)"),
        (torch.rand(3), torch.rand(3), None, TypeError, "foreground must be a bool or integer"),
        (torch.rand(2), torch.tensor([1, -1]), None, ValueError, "foreground holds -1"),
        (torch.rand(2), torch.tensor([0, 2]), None, ValueError, "foreground holds 2"),
        (torch.rand(2), torch.ones(2).bool(), torch.ones(2), TypeError, "valid must be a bool"),
        (torch.rand(2), torch.ones(2).bool(), torch.ones(1).bool(), ValueError, "valid has shape"),
    ],
)
def test_clear_errors(errors, foreground, valid, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lovasz_extension(errors, foreground, JaccardLoss(), valid=valid)
