"""The compiled kernels against plain PyTorch in float64, and what they may not disturb."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

import lovasz_repro
from lovasz_repro.losses import JaccardLoss, backends, lovasz_hinge, lovasz_softmax
from lovasz_repro.losses.histogram import Method, ProbabilityBins
from lovasz_repro.losses.plain import Problem, Rows
from lovasz_repro.losses.ranks import ONE_PROCESS

compiled = pytest.importorskip("lovasz_repro.losses.compiled", exc_type=ImportError)
OPTIONS = [
    {},
    {"per_image": True},
    {"classes": "all"},
    {"classes": "all", "per_image": True},
    {"classes": [2, 7]},
    {"classes": [2, 7], "per_image": True},
    {"class_weights": [0.0, 2.0, 0.5] + [0.0] * 7},
    {"ignore_index": 255},
    {"ignore_index": 255, "per_image": True},
    {"ignore_index": 1, "classes": "all"},
]


def batch(*shape: int, classes: int = 10, used: int = 4, scale: float = 2.0):
    """Logits and labels of some classes; with a part of label 255 that OPTIONS ignore or not."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, used, shape, generator=generator)
    logits = scale * torch.randn(shape[0], classes, *shape[1:], generator=generator)
    return logits, labels


def counting(labels: Tensor, valid: Tensor | None, rows: int, classes: int, bins: int) -> Problem:
    """All classes of labels (B, P), counted in that many bins."""
    ones = torch.ones(rows, classes, dtype=torch.float64)
    rest = (JaccardLoss(), ONE_PROCESS, Method("histogram"), ProbabilityBins(bins))
    return Problem(labels, valid, None, Rows(ones.long(), ones), *rest)


def found(loss, logits: Tensor, labels: Tensor, **options) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels, **options)
    value.backward()
    return value.detach(), leaf.grad


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", ["sort", "histogram", "auto"])
@pytest.mark.parametrize("shape", [(3, 40, 50), (1, 7), (2, 700)], ids=str)
def test_softmax_agrees_with_float64(method: str, options: dict, shape: tuple[int, ...]) -> None:
    logits, labels = batch(*shape)
    if options.get("ignore_index") == 255:
        labels[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.3] = 255
        labels[-1] = 255
    value, gradient = found(lovasz_softmax, logits, labels, method=method, **options)
    exact, expected = found(lovasz_softmax, logits.double(), labels, method="sort", **options)
    assert value.item() == pytest.approx(exact.item(), abs=5e-7)
    tolerance = 5e-3 if method == "histogram" else 2e-6
    assert (gradient - expected).norm() <= tolerance * expected.norm() + 1e-12
    if method == "histogram":  # the same bins in float64
        same, expected = found(lovasz_softmax, logits.double(), labels, method=method, **options)
        assert value.item() == pytest.approx(same.item(), abs=5e-7)
        assert (gradient - expected).norm() <= 2e-4 * expected.norm() + 1e-12


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("foreground", [0.0, 0.3, 1.0])
def test_hinge_agrees_with_float64(per_image: bool, ignored: bool, foreground: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, 50, 60, generator=generator)
    labels = (torch.rand(3, 50, 60, generator=generator) < foreground).long()
    if ignored:
        labels[torch.rand(labels.shape, generator=generator) < 0.4] = 255
        logits[labels == 255] = 1e4
        labels[0] = 255
    options = {"per_image": per_image, "ignore_index": 255 if ignored else None}
    value, gradient = found(lovasz_hinge, logits, labels, **options)
    exact, expected = found(lovasz_hinge, logits.double(), labels, method="sort", **options)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    ("foreground", "scale", "sorts"), [(0.3, 2.0, False), (1e-3, 2.0, None), (0.3, 1e-3, True)]
)
def test_a_counted_hinge_is_as_good_as_a_sort_in_float32(
    foreground: float, scale: float, sorts: bool | None, ignored: bool
) -> None:
    """Rows large enough to be counted; errors that crowd in few bins are sorted."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(2, 260, 260, generator=generator)
    labels = (torch.rand(2, 260, 260, generator=generator) < foreground).long()
    logits[0, 0, 0] = 1e6  # an outlier
    if ignored:
        labels[torch.rand(labels.shape, generator=generator) < 0.4] = 255
        logits[labels == 255] = torch.nan
    options = {"ignore_index": 255}
    value, gradient = found(lovasz_hinge, logits, labels, **options)
    exact, expected = found(lovasz_hinge, logits.double(), labels, method="sort", **options)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    pixels = (labels != 255)[0].sum().item()
    rounding = 2**-25 * pixels**0.5
    assert (gradient - expected).norm().item() <= rounding + 1e-6 * expected.norm().item()
    by_sort = found(lovasz_hinge, logits, labels, method="sort", **options)[1]
    if sorts is not None:
        assert torch.equal(gradient, by_sort) == sorts


def test_a_counted_hinge_of_nan_and_infinity() -> None:
    logits, labels = torch.randn(1, 70_000), torch.zeros(1, 70_000).long()
    labels[0, ::3] = 1
    logits[0, 0] = torch.inf  # on the right side
    assert found(lovasz_hinge, logits, labels)[0].isfinite()
    logits[0, 0] = -torch.inf
    assert found(lovasz_hinge, logits, labels)[0].isinf()
    for nan in (torch.nan, -torch.nan):
        logits[0, 0] = nan
        assert found(lovasz_hinge, logits, labels)[0].isnan()
        assert found(lovasz_hinge, logits.repeat(2, 1), labels.repeat(2, 1))[0].isnan()


@pytest.mark.parametrize("method", ["sort", "histogram"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_layouts_change_next_to_nothing(method: str, dtype: torch.dtype) -> None:
    logits, labels = batch(2, 130, 90)
    logits = logits.to(dtype)
    value, expected = found(lovasz_softmax, logits.float(), labels, method=method)
    for variant in (
        logits,
        logits.contiguous(memory_format=torch.channels_last),
        logits.transpose(2, 3).contiguous().transpose(2, 3),
        torch.stack([logits, logits], -1)[..., 0],
    ):
        other, gradient = found(lovasz_softmax, variant, labels.to(torch.uint8), method=method)
        assert other.item() == pytest.approx(value.item(), abs=1e-9)
        assert torch.equal(gradient, expected.to(dtype))


@pytest.mark.parametrize("per_image", [False, True])
def test_no_layout_makes_kernels_compile_anew(per_image: bool) -> None:
    def turned(numbers: Tensor) -> Tensor:
        return numbers.movedim(0, -1).contiguous().movedim(-1, 0)

    options = {"per_image": per_image, "ignore_index": 255}
    logits, labels = batch(2, 400, 400)
    binary = (labels == 1).long()
    labels[:, -1, :5] = 7  # so rare that "auto" sorts its first pixels
    labels[:, :9] = binary[:, :9] = 255
    for image in (slice(0, 1), slice(0, 2)):
        for method in ("sort", "auto", "histogram"):
            some, truth, two = logits[image], labels[image], binary[image]
            for form in (Tensor.contiguous, turned):
                found(lovasz_softmax, form(some), form(truth), method=method, **options)
                found(lovasz_hinge, form(some[:, 0]), form(two), method=method, **options)
    functions = [one for one in vars(compiled.kernels).values() if hasattr(one, "signatures")]
    assert compiled.kernels.look_up.signatures
    often = [one for one in functions if len(one.signatures) > 1]
    assert not [one for one in often if one.targetoptions.get("nogil")]  # the others are inlined


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
def test_counts_are_the_same_bits_on_any_number_of_threads(options: dict) -> None:
    """Also where threads share the pixels of one image, and whatever a task's size is."""
    logits, labels = batch(3, 300, 301)
    flat, ids = logits.reshape(3, 10, -1), labels.reshape(3, -1)
    rows = 3 if options.get("per_image") else 1
    threads, problem = torch.get_num_threads(), counting(ids, None, rows, 10, 512)
    plain, first = None, []
    try:
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            tally, _ = compiled.count(flat, problem)
            plain = tally if plain is None else plain
            assert torch.equal(tally, plain)
            values = [found(lovasz_softmax, logits, labels, method=m, **options) for m in METHODS]
            values.append(found(lovasz_hinge, logits[:, 0], labels == 1, **options))
            first = first or values
            for one, other in zip(values, first, strict=True):
                assert torch.equal(one[0], other[0])
                assert torch.equal(one[1], other[1])
    finally:
        torch.set_num_threads(threads)


METHODS = ("sort", "histogram")


def test_pixels_are_all_counted() -> None:
    logits, labels = batch(2, 300, 301, classes=4)
    valid = torch.rand(2, 300 * 301, generator=torch.Generator().manual_seed(2)) < 0.8
    ids = labels.reshape(2, -1)
    for rows in (1, 2):
        tally, _ = compiled.count(logits.reshape(2, 4, -1), counting(ids, valid, rows, 4, 64))
        counts, _ = ProbabilityBins(64).unpack(tally[:-1].view(2, 4, rows, 65))
        kept = valid.sum(1) if rows == 2 else valid.sum()[None]
        assert torch.equal(counts.sum((0, 3)), kept.double().expand(4, -1))
        for item in range(4):
            mine = ((ids == item) & valid).sum(1)
            assert torch.equal(
                counts[1, item].sum(1), (mine if rows == 2 else mine.sum()).double().view(-1)
            )


@pytest.mark.parametrize("scale", [0.0, 1e-4, 30.0])
def test_a_sort_is_exact_where_errors_crowd(scale: float) -> None:
    """Equal logits, nearly equal ones, and errors from 1 down to 1e-60."""
    logits, labels = batch(2, 100, 100, classes=5, used=5, scale=scale)
    logits += 3.0
    value, gradient = found(lovasz_softmax, logits, labels, method="sort")
    exact, expected = found(lovasz_softmax, logits.double(), labels, method="sort")
    assert value.item() == pytest.approx(exact.item(), abs=1e-7)
    assert (gradient - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("pixels", [1, 600, 30_000])
def test_words_are_sorted_and_ties_stay_in_the_order_of_pixels(pixels: int) -> None:
    kernels, drawn = compiled.kernels, np.random.default_rng(0)
    keys = drawn.choice(drawn.integers(0, 2**kernels.KEY_BITS, 1 + pixels // 3), pixels)
    numbers, foreground = np.arange(pixels), drawn.integers(0, 2, pixels)
    words = np.stack([keys << (kernels.INDEX_BITS + 1) | numbers << 1 | foreground] * 2)
    expected = words[0, np.argsort(keys, kind="stable")]
    kernels.sort_words(words, pixels)
    assert (words[0] == expected).all()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e20, 1e37])
def test_a_sorted_hinge_of_any_size_of_score(scale: float) -> None:
    scores, labels = batch(3, 40, 50, classes=1, used=2, scale=scale)
    exact, direction = found(lovasz_hinge, scores.double(), labels, method="sort")
    value, gradient = found(lovasz_hinge, scores, labels, method="sort")
    assert value.item() == pytest.approx(exact.item(), rel=1e-7)
    assert (gradient - direction).norm() <= 1e-6 * direction.norm()


def test_nan_and_infinity() -> None:
    logits, labels = batch(2, 20, 20, classes=4)
    logits[:, 3] = -torch.inf
    for method in METHODS:
        value, gradient = found(lovasz_softmax, logits, labels % 3, method=method)
        assert value.isfinite()
        assert gradient.isfinite().all()
    logits[0, 1, 2, 3] = torch.nan
    for method in METHODS:
        value, gradient = found(lovasz_softmax, logits, labels % 3, method=method)
        assert value.isnan()
        assert gradient[0, :, 2, 3].isnan().all()
        gradient[0, :, 2, 3] = 0
        assert gradient.isfinite().all()
    scores = torch.tensor([[torch.inf, -torch.inf, 0.0]])
    assert lovasz_hinge(scores, torch.tensor([[1, 0, 0]])) == 0.5
    assert lovasz_hinge(scores, torch.tensor([[0, 0, 1]])).isinf()
    assert lovasz_hinge(torch.tensor([[torch.nan, 1.0]]), torch.tensor([[1, 0]])).isnan()


def test_losses_in_several_python_threads() -> None:
    """Numba's own threads would abort the process here."""
    logits, labels = batch(2, 120, 130)
    expected = found(lovasz_softmax, logits, labels, method="histogram")
    with ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(found, lovasz_softmax, logits, labels, method="histogram")
            for _ in range(40)
        ]
        for future in futures:
            assert all(map(torch.equal, future.result(timeout=60), expected))
    assert threading.active_count() < 60


def test_a_process_that_is_forked_afterwards_computes_too() -> None:
    logits, labels = batch(4, 100, 100)
    expected = lovasz_softmax(logits, labels, method="histogram").item()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(2)
            problem = counting(labels.reshape(4, -1), None, 1, 10, 64)
            answer = compiled.count(logits.reshape(4, 10, -1), problem)[0].sum().item()
            os.write(writer, str(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert int(pipe.read())
    os.waitpid(child, 0)
    assert lovasz_softmax(logits, labels, method="histogram").item() == expected


class HalfJaccard(JaccardLoss):
    """Derived from the Jaccard loss, and another function."""

    def __call__(self, counts):
        return super().__call__(counts) / 2

    def foreground_gain(self, counts, amount=1.0):
        return super().foreground_gain(counts, amount) / 2

    def background_gain(self, counts, amount=1.0):
        return super().background_gain(counts, amount) / 2


@pytest.mark.parametrize("method", METHODS)
def test_a_class_derived_from_the_jaccard_loss_has_its_own_gains(method: str) -> None:
    logits, labels = batch(2, 40, 40)
    options = {"method": method}
    value, gradient = found(lovasz_softmax, logits, labels, **options)
    half, other = found(lovasz_softmax, logits, labels, set_function=HalfJaccard(), **options)
    assert half.item() == pytest.approx(value.item() / 2, abs=1e-6)
    assert (other - gradient / 2).norm() <= 1e-4 * gradient.norm()
    scores, truth = logits[:, 0], labels == 1
    value = lovasz_hinge(scores, truth, **options).item()
    half = lovasz_hinge(scores, truth, set_function=HalfJaccard(), **options).item()
    assert half == pytest.approx(value / 2, rel=1e-4)


def test_rows_beyond_the_numbers_of_a_word_are_left_to_plain_pytorch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert compiled.kernels.INDEX_MASK == 2**26 - 1
    logits, labels = batch(2, 30, 30)
    expected = found(lovasz_softmax, logits, labels, method="sort")
    monkeypatch.setattr(compiled.kernels, "INDEX_MASK", 1000)  # of the check: kernels are compiled
    monkeypatch.setattr(compiled.kernels, "class_gains", None)
    value, gradient = found(lovasz_softmax, logits, labels, method="sort")
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1], rtol=1e-4, atol=1e-9)


def test_plain_pytorch_on_request_and_without_numba(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logits, labels = batch(2, 30, 30)
    expected = found(lovasz_softmax, logits, labels, method="histogram")
    with monkeypatch.context() as patch:
        patch.setenv("LOVASZ_REPRO_KERNELS", "0")
        plain = found(lovasz_softmax, logits, labels, method="histogram")
        assert backends.jaccard_kernels(logits, JaccardLoss()) is None
    # As if Numba refused: the module cannot be imported, and nobody has tried before.
    monkeypatch.delattr(lovasz_repro.losses, "compiled")
    monkeypatch.setitem(sys.modules, "lovasz_repro.losses.compiled", None)
    backends._compiled.cache_clear()
    try:
        without = found(lovasz_softmax, logits, labels, method="histogram")
        assert backends.jaccard_kernels(logits, JaccardLoss()) is None
    finally:
        monkeypatch.undo()
        backends._compiled.cache_clear()
    assert "plain PyTorch computes them" in caplog.text
    for value, gradient in (plain, without):
        torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-7)
        assert (gradient - expected[1]).norm() <= 2e-4 * expected[1].norm()


def test_exponentials_are_those_of_numpy() -> None:
    from numba import njit

    from lovasz_repro.losses import kernels

    numbers = np.linspace(-125, 0, 200_001, dtype=np.float32)
    power = njit(lambda y: np.array([kernels.power_of_two(v) for v in y]))
    np.testing.assert_allclose(power(numbers), 2.0 ** numbers.astype(np.float64), rtol=3e-7)
    power = njit(lambda y: np.array([kernels.power_of_two64(v) for v in y]))
    wide = np.linspace(-900, 0, 200_001)
    np.testing.assert_allclose(power(wide), 2.0**wide, rtol=1e-12)
