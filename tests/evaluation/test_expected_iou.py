"""The decision rule against exhaustive search and drawn labels."""

import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lovasz_repro.errors import UserError
from lovasz_repro.evaluation import expected_iou as module
from lovasz_repro.evaluation.expected_iou import (
    expected_iou,
    expected_iou_labels,
    rankseg_labels,
)
from lovasz_repro.metrics import batch_miou


def marginals(seed: int, classes: int, pixels: int, spread: float = 1.5) -> Tensor:
    """(C, N) float64, without ties."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, pixels, generator=generator, dtype=torch.float64) * spread
    return logits.softmax(dim=0)


def certain_and_uncertain(seed: int, classes: int, pixels: int) -> Tensor:
    """(C, N) float64; every third pixel is uncertain, so that it costs whichever class it joins."""
    sharp, flat = marginals(seed, classes, pixels, 30.0), marginals(seed + 1, classes, pixels, 0.2)
    return torch.where(torch.arange(pixels) % 3 == 0, flat, sharp)


def objective(p: list[list[float]], labels: list[int]) -> float:
    """Expected intersection over expected union, pixel by pixel, over classes with probability."""
    scores = []
    for c, row in enumerate(p):
        chosen = [1.0 if label == c else 0.0 for label in labels]
        intersection = sum(y * q for y, q in zip(chosen, row, strict=True))
        union = sum(y + (1 - y) * q for y, q in zip(chosen, row, strict=True))
        if any(row):
            scores.append(intersection / union)
    return sum(scores) / len(scores)


# -- the objective ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_is_the_plain_loop(seed: int) -> None:
    p = marginals(seed, 4, 30)
    labels = torch.randint(0, 4, (30,), generator=torch.Generator().manual_seed(seed))
    expected = objective(p.tolist(), labels.tolist())
    assert expected_iou(p, labels).item() == pytest.approx(expected, rel=1e-12)


def test_the_objective_of_certain_probabilities_is_the_batch_miou() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (90,), generator=generator)
    truth[truth == 3] = 4  # class 3 is nowhere
    labels = torch.randint(0, 5, truth.shape, generator=generator)
    p = torch.nn.functional.one_hot(truth, 5).T.float()
    assert expected_iou(p, labels).item() == pytest.approx(batch_miou(labels, truth, 5).item())
    assert torch.equal(expected_iou_labels(p), truth)
    assert expected_iou(p, truth) == 1


def expected_miou(p: list[list[float]], labels: tuple[int, ...]) -> float:
    """Of independent pixels, over all truths; absent and not predicted counts as 1."""
    mean, classes = 0.0, range(len(p))
    for truth in itertools.product(classes, repeat=len(labels)):
        pairs, likely = list(zip(labels, truth, strict=True)), 1.0
        for pixel, label in enumerate(truth):
            likely *= p[label][pixel]
        for c in classes:
            union = sum(c in pair for pair in pairs)
            both = sum(pair == (c, c) for pair in pairs)
            mean += likely * (both / union if union else 1.0) / len(p)
    return mean


def test_the_objective_is_near_the_expected_iou() -> None:
    off = []
    for seed in range(10):
        p = marginals(seed, 2, 7)
        labels = expected_iou_labels(p)
        exact = expected_miou(p.tolist(), tuple(labels.tolist()))
        off.append(exact - expected_iou(p, labels).item())
    assert min(off) > 0.01
    assert max(off) < 0.0255
    assert sum(off) / len(off) == pytest.approx(0.02, abs=0.005)


# -- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "pixels"), [(2, 8), (3, 6), (4, 5)])
def test_of_all_labels_of_a_few_pixels_the_best_are_found(classes: int, pixels: int) -> None:
    everything = list(itertools.product(range(classes), repeat=pixels))
    better = 0
    for seed in range(8):
        p = marginals(seed, classes, pixels)
        scores = {labels: objective(p.tolist(), list(labels)) for labels in everything}
        found = tuple(expected_iou_labels(p).tolist())
        assert scores[found] == pytest.approx(max(scores.values()), abs=1e-9)
        better += scores[found] > scores[tuple(p.argmax(dim=0).tolist())] + 1e-6
    assert better > 0


@pytest.mark.parametrize("seed", range(4))
def test_the_gain_of_a_change_is_what_it_adds_to_the_objective(seed: int) -> None:
    p = certain_and_uncertain(seed, 3, 12)
    labels = p.argmax(dim=0)
    ratios = module._ratios([p], labels, p.sum(dim=1))
    gains, best = module._best_change(p, labels, ratios)
    before = objective(p.tolist(), labels.tolist())
    for pixel, own in enumerate(labels.tolist()):
        added = {}
        for label in {0, 1, 2} - {own}:
            changed = [*labels[:pixel].tolist(), label, *labels[pixel + 1 :].tolist()]
            added[label] = 3 * (objective(p.tolist(), changed) - before)
        assert best[pixel] == max(added, key=lambda label: added[label])
        assert gains[pixel].item() == pytest.approx(max(added.values()), abs=1e-12)


@pytest.mark.parametrize("spread", [None, 0.2, 1.0, 3.0])
def test_no_change_of_a_single_pixel_improves(spread: float | None) -> None:
    for seed in range(5):
        p = marginals(seed, 3, 25, spread) if spread else certain_and_uncertain(seed, 3, 25)
        found = expected_iou_labels(p).tolist()
        score = objective(p.tolist(), found)
        for pixel, label in itertools.product(range(25), range(3)):
            changed = [*found[:pixel], label, *found[pixel + 1 :]]
            assert objective(p.tolist(), changed) <= score + 3 * module.TOLERANCE


@pytest.mark.parametrize(
    "spread",
    [pytest.param(0.1, marks=pytest.mark.slow), 0.5, pytest.param(2.0, marks=pytest.mark.slow)],
)
def test_the_objective_grows_with_every_sweep_until_the_end(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(5):
        p, labels = marginals(seed, 5, 12, spread), []
        for sweeps in range(30):
            monkeypatch.setattr(module, "MOST_SWEEPS", sweeps)
            labels.append(expected_iou_labels(p))
        scores = [objective(p.tolist(), some.tolist()) for some in labels]
        changed = [not torch.equal(a, b) for a, b in itertools.pairwise(labels)]
        grows = [b > a for a, b in itertools.pairwise(scores)]
        assert torch.equal(labels[0], p.argmax(dim=0))
        assert grows == changed == sorted(changed, reverse=True)
        assert not changed[-1]


def test_it_beats_arg_max_where_the_probabilities_are_right() -> None:
    """Labels are drawn from the marginals; the mean of the true batch-mIoU is what grows."""
    logits = torch.randn(5, 2000, generator=torch.Generator().manual_seed(0))
    p = (logits + torch.tensor([2.0, 0, 0, 0, 0])[:, None]).softmax(dim=0)
    drawn = torch.multinomial(
        p.T, 200, replacement=True, generator=torch.Generator().manual_seed(1)
    ).T  # (200, N)
    mean = {
        name: torch.stack([batch_miou(labels, truth, 5) for truth in drawn]).mean().item()
        for name, labels in (("rule", expected_iou_labels(p)), ("arg max", p.argmax(dim=0)))
    }
    assert mean["rule"] > mean["arg max"] + 0.02
    assert mean["rule"] == pytest.approx(expected_iou(p, expected_iou_labels(p)).item(), abs=2e-3)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 4), pixels=st.integers(1, 40))
def test_the_order_of_pixels_and_classes_does_not_matter(
    seed: int, classes: int, pixels: int
) -> None:
    p = marginals(seed, classes, pixels)
    generator = torch.Generator().manual_seed(seed + 1)
    order = torch.randperm(pixels, generator=generator)
    names = torch.randperm(classes, generator=generator)
    labels = expected_iou_labels(p)
    assert torch.equal(expected_iou_labels(p[:, order]), labels[order])
    assert torch.equal(names[expected_iou_labels(p[names])], labels)


def test_layout_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    p = marginals(3, 6, 240)
    before, labels = p.clone(), expected_iou_labels(p)
    assert torch.equal(expected_iou_labels(p.T.contiguous().T), labels)
    assert torch.equal(p, before)
    monkeypatch.setattr(module, "PIXELS_A_BLOCK", 7)
    assert torch.equal(expected_iou_labels(p), labels)
    parts = torch.cat([expected_iou_labels(part) for part in p.split(60, dim=1)])
    assert not torch.equal(parts, labels)  # pixels are chosen for together


def test_a_class_without_probability_is_never_chosen_and_never_scored() -> None:
    """Giving uncertain pixels to a class that does not count would otherwise cost nothing."""
    certain = torch.eye(4, dtype=torch.float64).repeat(1, 12)
    uncertain = torch.tensor([[0.3, 0.2], [0.25, 0.27], [0.24, 0.23], [0.21, 0.3]])
    p = torch.cat([torch.cat([certain, uncertain], dim=1), torch.zeros(1, 50)])
    labels = expected_iou_labels(p)
    assert labels.max() == 3
    assert torch.equal(labels, expected_iou_labels(p[:4]))
    assert expected_iou(p, labels) == expected_iou(p[:4], labels)
    dumped = torch.where(torch.arange(50) < 48, labels, 4)
    assert expected_iou(p, dumped) > expected_iou(p, labels)
    assert expected_iou(p, torch.full((50,), 4)) == 0


def test_a_hardly_probable_class_breaks_nothing() -> None:
    p = marginals(6, 3, 40).float()
    p = torch.cat([p, torch.full((1, 40), 1e-30)])
    score = expected_iou(p, expected_iou_labels(p))
    assert score >= expected_iou(p, p.argmax(dim=0))
    assert score.isfinite()


def test_one_class_and_no_pixel() -> None:
    assert not expected_iou_labels(torch.ones(1, 12)).any()
    assert expected_iou(torch.ones(1, 5), torch.zeros(5, dtype=torch.uint8)) == 1
    nothing = expected_iou_labels(torch.ones(3, 0))
    assert (nothing.shape, nothing.dtype) == ((0,), torch.int64)
    assert expected_iou(torch.ones(3, 0), nothing).isnan()


def test_equal_probabilities_go_to_the_lower_class(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.full((2, 3), 0.5)
    best = max(objective(p.tolist(), list(y)) for y in itertools.product(range(2), repeat=3))
    assert expected_iou(p, expected_iou_labels(p)).item() == pytest.approx(best)
    monkeypatch.setattr(module, "MOST_SWEEPS", 0)
    assert expected_iou_labels(p).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_less_precision_gives_nearly_as_good_labels(dtype: torch.dtype) -> None:
    p = marginals(7, 21, 3000)
    rough = expected_iou(p, expected_iou_labels(p.to(dtype)))
    assert rough.item() == pytest.approx(
        expected_iou(p, expected_iou_labels(p)).item(), abs=2e-6 if dtype == torch.float32 else 2e-3
    )


def test_what_is_no_probability_is_refused() -> None:
    p = marginals(0, 3, 8)
    logits, negative, unknown = p.log(), p.clone(), p.clone()
    negative[:, 2] = torch.tensor([1.5, -0.25, -0.25])
    unknown[1, 5] = torch.nan
    for wrong in (logits, negative, unknown, p * 1.01, p * torch.inf):
        with pytest.raises(ValueError, match="at least 0 and add up to 1"):
            expected_iou_labels(wrong)
    with pytest.raises(TypeError, match=r"floating tensor, got torch.int64"):
        expected_iou_labels(p.long())
    for shape in ((3,), (2, 3, 4), (0, 8), (2, 3, 4, 5)):
        with pytest.raises(ValueError, match="must have shape"):
            expected_iou_labels(torch.ones(shape))
    with pytest.raises(ValueError, match=r"labels have shape \(4,\)"):
        expected_iou(p, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(TypeError, match="labels must be integer"):
        expected_iou(p, torch.zeros(8))
    for label in (-1, 3, 255):
        with pytest.raises(ValueError, match=f"label {label} is out of range for 3 classes"):
            expected_iou(p, torch.full((8,), label))


# -- rankseg ---------------------------------------------------------------------------------------


def test_without_rankseg_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rankseg", None)
    with pytest.raises(UserError, match=r"pip install .*\brankseg\b"):
        rankseg_labels(marginals(0, 3, 10))


def test_rankseg_where_it_is_sure_and_against_arg_max() -> None:
    pytest.importorskip("rankseg")
    truth = torch.arange(60) % 4
    assert torch.equal(rankseg_labels(torch.nn.functional.one_hot(truth, 4).T.float()), truth)
    for seed in range(5):
        p = marginals(seed, 3, 200)
        best = [expected_iou(p, labels) for labels in (expected_iou_labels(p), rankseg_labels(p))]
        assert best[0] >= best[1] - 3 * module.TOLERANCE
    with pytest.raises(ValueError, match="logits"):
        rankseg_labels(torch.randn(3, 10))
