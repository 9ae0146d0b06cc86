"""Batches with every class against all sets of images, and their scores against all labels."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_repro.data.voc import presence_of
from lovasz_repro.evaluation import expected_iou as module
from lovasz_repro.evaluation.expected_iou import (
    batch_probabilities,
    covering_batches,
    score_batch,
    scores_of,
)
from lovasz_repro.evaluation.predictor import Feeding, Predictor
from lovasz_repro.models.enet import to_unit_range
from lovasz_repro.run.networks import as_they_are, from_the_grid
from tests.conftest import real_data

CPU = torch.device("cpu")
VOID = 255
Pair = tuple[Tensor, Tensor]


class Pixels(nn.Module):
    """Logits that are the image's own channels: a batch then has the probabilities that we want."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images


PIXELS = Predictor(Pixels(), Feeding(prepare=as_they_are), CPU)


def few_pixels(seed: int) -> list[Pair]:
    """Three images of 3, 2 and 2 pixels and 3 classes, all of which the labels have; one void."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 1, 2, 1, VOID, 0, 0], dtype=torch.uint8).split([3, 2, 2])
    sizes = [(1, 3), (2, 1), (1, 2)]
    return [
        (torch.randn(1, 3, *size, generator=generator), truth.view(1, *size))
        for size, truth in zip(sizes, labels, strict=True)
    ]


def expectation(p: np.ndarray, labels: np.ndarray) -> float:
    """Expected intersection over expected union, p (N, C), mean over the classes."""
    chosen = labels[:, None] == np.arange(p.shape[1])
    both = (chosen * p).sum(axis=0)
    return float((both / (chosen + (1 - chosen) * p).sum(axis=0)).mean())


def mean_of_present(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Batch-mIoU by sets of pixels."""
    known = truth != VOID
    scores = []
    for c in set(truth[known].tolist()):
        found = set(np.flatnonzero(known & (predicted == c)))
        real = set(np.flatnonzero(known & (truth == c)))
        scores.append(len(found & real) / len(found | real))
    return sum(scores) / len(scores)


def test_a_batch_is_decided_as_a_whole_and_void_is_not_known() -> None:
    """Of all 3^7 labels of the 7 pixels together, void or not, those of highest expected IoU."""
    everything = np.array(list(itertools.product(range(3), repeat=7)))
    differ = 0
    for seed in range(3):
        images = few_pixels(seed)
        pixels = np.concatenate([image[0].flatten(1).T.double().numpy() for image, _ in images])
        p = np.exp(pixels) / np.exp(pixels).sum(axis=1, keepdims=True)
        truth = np.concatenate([labels.flatten().numpy() for _, labels in images])
        best = max(everything, key=lambda labels: expectation(p, labels))
        argmax = p.argmax(axis=1)
        found = score_batch(PIXELS, images, VOID)
        assert found.miou == pytest.approx(mean_of_present(argmax, truth), abs=1e-6)
        assert found.miou_decision_rule == pytest.approx(mean_of_present(best, truth), abs=1e-6)
        assert found.expected_miou == pytest.approx(expectation(p, argmax), abs=1e-6)
        assert found.expected_miou_decision_rule == pytest.approx(expectation(p, best), abs=1e-6)
        differ += found.miou != found.miou_decision_rule
    assert differ > 0


def test_probabilities_are_those_of_the_logits_at_the_images_own_sizes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8, padding=1), nn.BatchNorm2d(4))
    model.append(nn.Dropout(0.9)).train()
    sizes = [(17, 25), (9, 33), (20, 14)]
    images = [
        (torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8), torch.zeros(1, *size).long())
        for size in sizes
    ]

    def prepare(photographs: Tensor, channels_last: bool, dtype: torch.dtype) -> Tensor:
        pad = [0, -(photographs.shape[3] - 1) % 8, 0, -(photographs.shape[2] - 1) % 8]
        return F.pad(to_unit_range(photographs, channels_last, dtype), pad)

    kind = Feeding(prepare=prepare, to_size=from_the_grid)
    before = [image.clone() for image, _ in images]
    found = batch_probabilities(Predictor(model, kind, CPU), images)
    parts = []
    for (height, width), image in zip(sizes, before, strict=True):
        with torch.no_grad():
            logits = model.eval()(prepare(image, False, torch.float32))
        rows, columns = (8 * (points - 1) + 1 for points in logits.shape[-2:])
        full = F.interpolate(logits, (rows, columns), mode="bilinear", align_corners=True)
        exponentials = full[0, :, :height, :width].double().exp().numpy()
        parts.append((exponentials / exponentials.sum(axis=0)).reshape(4, -1))
    np.testing.assert_allclose(found.numpy(), np.concatenate(parts, axis=1), atol=1e-6)
    half = batch_probabilities(Predictor(model, kind, CPU, "bfloat16"), images)
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half.sum(dim=0).numpy(), 1, atol=1e-6)
    assert not torch.equal(half, found)
    np.testing.assert_allclose(half.numpy(), found.numpy(), atol=0.02)


def drawn(probabilities: Tensor, count: int) -> Tensor:
    """Labels (count, N) of pixels that are independent, each as probable as it is said to be."""
    generator = torch.Generator().manual_seed(1)
    return torch.multinomial(probabilities.T, count, True, generator=generator).T


def test_where_the_probabilities_are_right_they_promise_what_comes_and_the_rule_gains() -> None:
    torch.manual_seed(0)
    p = (torch.randn(6, 1500) + torch.tensor([2.5, 0, 0, 0, 0, 0])[:, None]).softmax(dim=0)
    scores = np.array([scores_of(p, labels, VOID) for labels in drawn(p, 40)])
    argmax, rule, promised_argmax, promised_rule = scores.mean(axis=0)[:4]
    error = scores.std(axis=0, ddof=1) / np.sqrt(len(scores))
    assert rule > argmax + 0.02
    assert abs(argmax - promised_argmax) < 4 * error[0] < 0.01
    assert abs(rule - promised_rule) < 4 * error[1] < 0.01


def test_too_much_confidence_promises_too_much() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 1500)
    (labels,) = drawn(logits.softmax(dim=0), 1)
    right, sure = (scores_of((s * logits).softmax(dim=0), labels, VOID) for s in (1, 4))
    assert sure.miou == pytest.approx(right.miou)  # the arg max is the same
    assert abs(right.expected_miou - right.miou) < 0.02
    assert sure.expected_miou > sure.miou + 0.3


def test_a_batch_that_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="without images"):
        score_batch(PIXELS, [], VOID)
    wrong = [(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 3))]
    with pytest.raises(ValueError, match="label 3 is out of range for 3 classes"):
        score_batch(PIXELS, wrong, VOID)
    nothing = [(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), VOID))]
    scores = score_batch(PIXELS, nothing, VOID)
    assert np.isnan(scores.miou)
    assert np.isnan(scores.miou_decision_rule)


@st.composite
def presences(draw: st.DrawFn) -> np.ndarray:
    images, classes = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    cells = st.lists(st.booleans(), min_size=images * classes, max_size=images * classes)
    return np.array(draw(cells)).reshape(images, classes)


@settings(max_examples=40)
@given(presence=presences(), size=st.integers(1, 9), seed=st.integers(0, 2**31 - 1))
def test_batches_have_every_class_exactly_where_some_batch_has(
    presence: np.ndarray, size: int, seed: int
) -> None:
    possible = any(
        presence[list(batch)].any(axis=0).all()
        for batch in itertools.combinations(range(len(presence)), size)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MOST_DRAWS", 2000)  # of at most 70 sets
        if not possible:
            with pytest.raises(ValueError, match="no"):
                covering_batches(presence, 3, size, seed=seed)
            return
        batches = covering_batches(presence, 3, size, seed=seed)
        assert covering_batches(presence, 2, size, seed=seed) == batches[:2]
    for batch in batches:
        assert len(set(batch)) == len(batch) == size
        assert all(type(image) is int and 0 <= image < len(presence) for image in batch)
        assert presence[batch].any(axis=0).all()


def test_every_batch_with_every_class_is_as_likely() -> None:
    presence = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=bool)
    covering = {
        batch
        for batch in itertools.combinations(range(5), 2)
        if presence[list(batch)].any(axis=0).all()
    }
    assert covering == {(0, 3), (1, 3), (1, 4)}
    drawn = Counter(tuple(sorted(b)) for b in covering_batches(presence, 1200, 2, seed=0))
    assert set(drawn) == covering
    assert all(330 < count < 470 for count in drawn.values())  # 400 +- 4 deviations of 16.3


def test_seeds_and_batches_differ() -> None:
    presence = np.ones((100, 2), dtype=bool)
    drawn = [tuple(b) for seed in range(4) for b in covering_batches(presence, 5, 21, seed=seed)]
    assert len(set(drawn)) == 20


def test_why_there_are_no_batches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    presence = np.eye(4, dtype=bool)
    with pytest.raises(ValueError, match=r"batch of 5 different images .* from 4"):
        covering_batches(presence, 1, 5, seed=0)
    with pytest.raises(ValueError, match="batch of 0 different images"):
        covering_batches(presence, 1, 0, seed=0)
    with pytest.raises(ValueError, match="no image contains class 2"):
        covering_batches(presence[:2], 1, 2, seed=0)
    monkeypatch.setattr(module, "MOST_DRAWS", 50)
    with pytest.raises(ValueError, match="none of 50 random batches of 3 images has all 4"):
        covering_batches(presence, 1, 3, seed=0)


@pytest.mark.slow
def test_the_batches_of_the_paper_on_the_real_validation_set() -> None:
    root: Path = real_data("voc")
    presence = presence_of(root, "val")
    batches = covering_batches(presence, seed=0)
    assert [len(set(batch)) for batch in batches] == [21] * 20
    assert all(presence[batch].any(axis=0).all() for batch in batches)
    assert len({image for batch in batches for image in batch}) > 300  # of 1,449
