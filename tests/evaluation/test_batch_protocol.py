"""Scores of a batch against all labels of a few pixels, and against labels that were drawn."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_repro.evaluation.batch_protocol import batch_probabilities, score_batch, scores_of
from lovasz_repro.evaluation.predictor import Feeding, Predictor
from lovasz_repro.models.enet import to_unit_range
from lovasz_repro.run.networks import as_they_are, from_the_grid

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
    for seed in range(8):
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
    argmax, rule, promised_argmax, promised_rule = scores.mean(axis=0)
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
