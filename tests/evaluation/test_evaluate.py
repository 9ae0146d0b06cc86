"""Scores of a network against a plain loop over pixels."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lovasz_repro.evaluation.evaluate import Scores, at_label_size, evaluate

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


@pytest.mark.parametrize("channels_last", [False, True])
def test_scores_are_those_of_a_plain_count(channels_last: bool) -> None:
    model = network().train()
    seen: list[int] = []
    scores = evaluate(model, batches(), 4, 4, CPU, channels_last=channels_last, advance=seen.append)
    dataset, image, classes = by_hand(model, void=4)
    assert scores.dataset_miou == pytest.approx(dataset, rel=1e-12)
    assert scores.image_miou == pytest.approx(image, rel=1e-12)
    assert scores.iou == pytest.approx(classes, rel=1e-12)
    assert seen == [2, 1]


def test_no_random_number_is_drawn_and_nothing_learns() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(model, batches(), 4, 4, CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        evaluate(network(), [], 4, None, CPU)


def test_logits_that_fit_are_not_resampled() -> None:
    logits = torch.rand(1, 4, 12, 10)
    assert at_label_size(logits, torch.zeros(1, 12, 10)) is logits


def test_metric_names() -> None:
    metrics = Scores(0.5, 0.4, (0.25, 0.75)).as_metrics("val", ("sky", "road"))
    assert metrics == {
        "val/dataset_miou": 0.5,
        "val/image_miou": 0.4,
        "val/iou/sky": 0.25,
        "val/iou/road": 0.75,
    }
