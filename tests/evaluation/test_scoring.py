"""Scores of a network against a plain loop over pixels."""

import math
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.nn import functional as F

from lovasz_repro.evaluation.measures import Band, Measures
from lovasz_repro.evaluation.predictor import Feeding, Predictor, at_size
from lovasz_repro.evaluation.scoring import (
    BasisScoring,
    BinaryScoring,
    SegmentationScoring,
    evaluate,
)
from lovasz_repro.report.published import MEASURES
from tests.ranks import RankPool

CPU = torch.device("cpu")
Batch = tuple[torch.Tensor, torch.Tensor]


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(4)
    return [
        (
            torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8),
            torch.randint(0, 5, (count, 12, 10), generator=generator, dtype=torch.uint8),
        )
        for count in (2, 1)
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.9))


def predictor(model: nn.Module, device: torch.device = CPU, **how: Any) -> Predictor:
    return Predictor(model, Feeding(), device, **how)


class Same(nn.Module):
    """A network whose logits are the images."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * self.scale


def classes_of(logits: torch.Tensor, size: tuple[int, int], **how: Any) -> torch.Tensor:
    kind = Feeding(prepare=lambda images, channels_last, dtype: images)
    return Predictor(Same(), kind, CPU, **how).classes(logits, size)


def by_hand(model: nn.Module, void: int) -> tuple[float, float, list[float]]:
    """Dataset-mIoU, image-mIoU and class IoUs by counting sets of pixels."""
    predicted, labelled, image_scores = [], [], []
    model.eval()
    for images, labels in batches():
        with torch.no_grad():
            logits = model(images.float() / 255)
        large = F.interpolate(logits, size=(12, 10), mode="bilinear", align_corners=False)
        for prediction, label in zip(large.argmax(1), labels.long(), strict=True):
            valid = label != void
            predicted.append(prediction[valid])
            labelled.append(label[valid])
            image_scores.append(sum(ious(predicted[-1], labelled[-1], empty=1.0)) / 4)
    classes = ious(torch.cat(predicted), torch.cat(labelled), empty=float("nan"))
    return sum(classes) / 4, sum(image_scores) / len(image_scores), classes


def ious(predicted: torch.Tensor, labelled: torch.Tensor, empty: float) -> list[float]:
    scores = []
    for c in range(4):
        ours = {i for i, value in enumerate(predicted.tolist()) if value == c}
        theirs = {i for i, value in enumerate(labelled.tolist()) if value == c}
        scores.append(len(ours & theirs) / len(ours | theirs) if ours | theirs else empty)
    return scores


def empty_scoring(ignore_index: int | None = 4) -> SegmentationScoring:
    return SegmentationScoring(("a", "b", "c", "d"), ignore_index)


@pytest.mark.parametrize("channels_last", [False, True])
def test_scores_are_those_of_a_plain_count(channels_last: bool) -> None:
    model = network().train()
    seen: list[int] = []
    scores = evaluate(
        predictor(model, channels_last=channels_last),
        batches(),
        empty_scoring(),
        advance=seen.append,
    ).as_metrics("val")
    dataset, image, classes = by_hand(model, void=4)
    assert scores == pytest.approx(
        {"val/dataset_miou": dataset, "val/image_miou": image}
        | {f"val/iou/{name}": iou for name, iou in zip("abcd", classes, strict=True)},
        rel=1e-12,
    )
    assert seen == [2, 1]


def test_no_random_number_is_drawn_and_nothing_learns() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(predictor(model), batches(), empty_scoring())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(predictor(network()), [], empty_scoring(None))


def test_logits_that_fit_are_not_resampled() -> None:
    logits = torch.rand(1, 4, 12, 10)
    assert at_size(logits, (12, 10)) is logits


@pytest.mark.parametrize("first_class", [0, 1, 2])
def test_classes_below_the_first_are_no_answer(first_class: int) -> None:
    logits = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1))
    logits[:, 0] += 10
    found = classes_of(logits, (6, 7), first_class=first_class)
    for image in range(2):
        for row in range(6):
            for column in range(7):
                scores = logits[image, first_class:, row, column].tolist()
                assert found[image, row, column] == first_class + scores.index(max(scores))


def test_predictions_upsampled_after_the_arg_max_repeat_pixels() -> None:
    logits = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    small = classes_of(logits, (3, 4))
    large = classes_of(logits, (6, 8), upsample="predictions")
    assert torch.equal(large, small.repeat_interleave(2, 1).repeat_interleave(2, 2))
    smooth = F.interpolate(logits, size=(6, 8), mode="bilinear", align_corners=False).argmax(1)
    assert torch.equal(classes_of(logits, (6, 8)), smooth)
    assert not torch.equal(large, smooth)


def test_several_maps_reach_the_scoring_as_they_are() -> None:
    class Recording:
        measures = None

        def __init__(self) -> None:
            self.seen: list[tuple[torch.Size, object]] = []

        def update(self, predictions: torch.Tensor, targets: object, scores: None) -> None:
            self.seen.append((predictions.shape, targets))

    first, second = torch.zeros(1, 12, 10), torch.ones(1, 12, 10)
    batch = (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (first, second))
    scoring = evaluate(predictor(network()), [batch], Recording())  # type: ignore[type-var]
    ((shape, targets),) = scoring.seen
    assert shape == (1, 12, 10)
    assert targets == (first, second)


@pytest.mark.parametrize("upsample", ["logits", "predictions"])
def test_measures_see_the_upsampled_scores_of_what_is_an_answer(upsample: str) -> None:
    asked = predictor(network(), first_class=1, upsample=upsample)
    beside = Measures(4, 4, (1, 2), first_class=1, shapes=True)
    data = [(images, labels.clamp(min=1)) for images, labels in batches()]
    scoring = evaluate(asked, data, SegmentationScoring(tuple("abcd"), 4, None, beside))
    logits = [
        F.interpolate(asked.logits(images), size=(12, 10), mode="bilinear", align_corners=False)
        for images, _ in data
    ]
    labels = torch.cat([labels for _, labels in data]).long()
    expected = F.cross_entropy(torch.cat(logits)[:, 1:], labels - 1, ignore_index=3)
    metrics = scoring.as_metrics("val")
    assert metrics["val/cross_entropy"] == pytest.approx(expected.item(), rel=1e-5)
    band = Band(4, 4)
    for images, truth in data:
        classes = asked.classes(images, (12, 10))
        for image in zip(classes.numpy(), truth.numpy(), strict=True):
            band.update(*image)
    assert metrics["val/boundary_miou"] == band.metrics()["boundary_miou"]
    without = evaluate(asked, data, SegmentationScoring(tuple("abcd"), 4)).as_metrics("val")
    assert {name: metrics[name] for name in without} == pytest.approx(without, nan_ok=True)


def _measured(
    rank: int, group: distributed.ProcessGroup | None, parts: list[Batch]
) -> dict[str, float]:
    scoring = SegmentationScoring(tuple("abcd"), 4, None, Measures(4, 4, (0, 1), shapes=True))
    return evaluate(predictor(network()), parts, scoring, group=group).as_metrics("val")


def _measured_half(rank: int, group: distributed.ProcessGroup) -> dict[str, float]:
    return _measured(rank, group, batches()[rank::2])


def test_measures_of_two_ranks_are_those_of_one(rank_pool: RankPool) -> None:
    alone = _measured(0, None, batches())
    assert {"val/recall_by_size/small", "val/calibration_error", "val/miou_c_worst"} <= set(alone)
    for found in rank_pool.run(_measured_half, 2):
        assert found == pytest.approx(alone, nan_ok=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_scores_as_the_cpu_does() -> None:
    model = network().double()
    expected = evaluate(predictor(model), batches(), empty_scoring())
    device = torch.device("cuda")
    found = evaluate(predictor(model.to(device), device), batches() * 3, empty_scoring())
    assert torch.equal(found.confusion.counts, 3 * expected.confusion.counts)


def test_a_summary_says_both_scores() -> None:
    scoring = SegmentationScoring(("a", "b"), None)
    labels = torch.tensor([[[0, 0, 1, 1]]])
    scoring.update(torch.tensor([[[0, 1, 1, 1]]]), labels)
    assert scoring.summary() == "mIoU 58.33%, image-mIoU 58.33%"


# -- one category against the rest ---------------------------------------------------------------

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


def per_image_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
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
    assert scores == pytest.approx(per_image_by_hand(*both), abs=1e-6)
    assert parts[1] in (0.0, 0.5, 1.0)  # two images of seven
    assert parts[0] * 5 + parts[1] * 2 == pytest.approx(7 * scores["val/image_iou"])


def test_what_is_not_a_number_shows() -> None:
    scoring = BinaryScoring(3, VOID)
    scoring.update(*batch(0))
    scoring.update(torch.full((1, 2, 2), torch.nan), torch.ones(1, 2, 2, dtype=torch.uint8))
    assert math.isnan(scoring.as_metrics("val")["val/cross_entropy"])
    assert "cross-entropy nan," in scoring.summary()


def test_a_line_has_the_names_of_the_tables_and_per_cent_of_what_is_no_loss() -> None:
    scoring = BinaryScoring(3, VOID)
    scoring.update(*batch(0))
    scores = scoring.as_metrics("val")
    for metric, title, _ in MEASURES.values():
        iou = metric == "val/image_iou"
        shown = f"{100 * scores[metric]:.2f}%" if iou else f"{scores[metric]:.4f},"
        assert f"{title} {shown}" in scoring.summary()


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
