"""Scores of a network against a plain loop over pixels."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lovasz_repro.evaluation.evaluate import evaluate
from lovasz_repro.evaluation.predictor import Feeding, Predictor, at_size
from lovasz_repro.evaluation.scoring import SegmentationScoring

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
        def __init__(self) -> None:
            self.seen: list[tuple[torch.Size, object]] = []

        def update(self, predictions: torch.Tensor, targets: object) -> None:
            self.seen.append((predictions.shape, targets))

    first, second = torch.zeros(1, 12, 10), torch.ones(1, 12, 10)
    batch = (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), (first, second))
    scoring = evaluate(predictor(network()), [batch], Recording())  # type: ignore[type-var]
    ((shape, targets),) = scoring.seen
    assert shape == (1, 12, 10)
    assert targets == (first, second)


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
