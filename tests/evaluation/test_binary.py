"""Table 1's scores against their definitions, written out pixel by pixel."""

import math

import pytest
import torch
from torch import distributed

from lovasz_repro.evaluation.binary import BasisScoring, BinaryScoring
from lovasz_repro.report.tables_voc import MEASURES
from tests.ranks import RankPool

VOID = 255


def batch(seed: int, images: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (images, 4, 6), generator=generator, dtype=torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = VOID
    labels[0] = 0  # an image without the category
    return torch.randn(labels.shape, generator=generator) * 2, labels


def lovasz_of(errors: list[float], foreground: list[bool]) -> float:
    """Eq. 9 for the Jaccard loss: the sorted errors, each times what its pixel adds to the loss."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, before, wrong = 0.0, 0.0, set[int]()
    for pixel in order:
        wrong.add(pixel)
        kept = sum(f for i, f in enumerate(foreground) if i not in wrong)
        union = sum(foreground) + sum(not foreground[i] for i in wrong)
        loss = 1 - kept / union if union else 0.0
        total += errors[pixel] * (loss - before)
        before = loss
    return total


def by_hand(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    sums = dict.fromkeys(("cross_entropy", "hinge", "lovasz_hinge", "soft_iou", "image_iou"), 0.0)
    for scores, truth in zip(logits, labels, strict=True):
        pixels = [
            (float(f), int(y)) for f, y in zip(scores.flatten(), truth.flatten(), strict=True)
        ]
        pixels = [(f, y) for f, y in pixels if y != VOID]
        sign = [(f if y else -f) for f, y in pixels]
        p = [1 / (1 + math.exp(-f)) for f, _ in pixels]
        hinges = [max(1 - m, 0.0) for m in sign]
        sums["cross_entropy"] += sum(math.log1p(math.exp(-m)) for m in sign) / len(pixels)
        sums["hinge"] += sum(hinges) / len(pixels)
        sums["lovasz_hinge"] += lovasz_of(hinges, [bool(y) for _, y in pixels])
        both = sum(q * y for q, (_, y) in zip(p, pixels, strict=True))
        union = sum(q + y - q * y for q, (_, y) in zip(p, pixels, strict=True))
        sums["soft_iou"] += 1 - both / union
        hit = sum(f > 0 and y == 1 for f, y in pixels)
        any_ = sum(f > 0 or y == 1 for f, y in pixels)
        sums["image_iou"] += hit / any_ if any_ else 1.0
    return {f"val/{name}": total / len(logits) for name, total in sums.items()}


def test_the_scores_are_means_over_images() -> None:
    scoring = BinaryScoring(3, VOID)
    first, second = batch(0), batch(1, images=2)
    scoring.update(*first)
    scoring.update(*second)
    both = (torch.cat(pair) for pair in zip(first, second, strict=True))
    scores = scoring.as_metrics("val")
    parts = [scores.pop(f"val/image_iou_{part}") for part in ("with_category", "without")]
    assert scores == pytest.approx(by_hand(*both), abs=1e-6)
    assert parts[1] in (0.0, 0.5, 1.0)  # two images of seven
    assert parts[0] * 5 + parts[1] * 2 == pytest.approx(7 * scores["val/image_iou"])


def test_what_is_not_a_number_shows() -> None:
    scoring = BinaryScoring(3, VOID)
    scoring.update(*batch(0))
    scoring.update(torch.full((1, 2, 2), torch.nan), torch.ones(1, 2, 2, dtype=torch.uint8))
    assert math.isnan(scoring.as_metrics("val")["val/cross_entropy"])
    assert "cross-entropy nan%" in scoring.summary()


def test_a_line_has_the_names_and_the_per_cent_of_the_tables() -> None:
    scoring = BinaryScoring(3, VOID)
    scoring.update(*batch(0))
    scores = scoring.as_metrics("val")
    for metric, title, _ in MEASURES.values():
        assert f"{title} {100 * scores[metric]:.2f}%" in scoring.summary()


def test_an_empty_prediction_of_an_image_without_the_category_is_right() -> None:
    scoring = BinaryScoring(3, VOID)
    scoring.update(torch.full((1, 2, 2), -1.0), torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert scoring.as_metrics("val")["val/image_iou"] == 1.0
    scoring.update(torch.tensor([[[1.0, -1], [-1, -1]]]), torch.zeros(1, 2, 2, dtype=torch.uint8))
    assert scoring.as_metrics("val")["val/image_iou"] == 0.5


def test_the_basis_network_answers_with_a_class() -> None:
    labels = torch.tensor([[[1, 1, 0, VOID]], [[0, 0, 0, 0]]], dtype=torch.uint8)
    classes = torch.tensor([[[3, 5, 3, 3]], [[0, 5, 7, 1]]])
    scoring = BasisScoring(3, VOID)
    scoring.update(classes, labels)
    assert scoring.as_metrics("basis") == {"basis/image_iou": (1 / 3 + 1) / 2}


def _share(rank: int, group: distributed.ProcessGroup) -> dict[str, float]:
    scoring = BinaryScoring(3, VOID)
    logits, labels = batch(0)
    scoring.update(logits[rank::2], labels[rank::2])
    return scoring.over_ranks(group).as_metrics("val")


def test_ranks_add_up(rank_pool: RankPool) -> None:
    whole = BinaryScoring(3, VOID)
    whole.update(*batch(0))
    for scores in rank_pool.run(_share, 2):
        assert scores == pytest.approx(whole.as_metrics("val"), abs=1e-6)
