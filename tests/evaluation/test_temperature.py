"""Temperature scaling: the temperature is that of the probabilities, wherever they come from."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from lovasz_repro.evaluation import expected_iou as module
from lovasz_repro.evaluation.expected_iou import (
    at_temperature,
    fit_temperature,
    held_out,
    sampled_pixels,
    scores_of,
)
from lovasz_repro.evaluation.measures import Calibration
from lovasz_repro.evaluation.predictor import Feeding, Predictor

VOID = 255


def logits_and_labels(pixels: int = 20_000) -> tuple[Tensor, Tensor]:
    """Logits (N, 5), and labels drawn from their softmax: calibrated."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(pixels, 5, generator=generator)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator)[:, 0]
    return logits, labels


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_too_sure_by_a_factor_is_that_temperature(factor: float) -> None:
    logits, labels = logits_and_labels()
    found = fit_temperature((factor * logits).softmax(dim=1), labels)
    assert found == pytest.approx(factor, rel=0.05)

    def cross_entropy(inverse: float) -> float:
        scaled = (inverse * factor * logits.double()).log_softmax(dim=1)
        return float(-scaled.gather(1, labels[:, None]).mean())

    lowest = minimize_scalar(cross_entropy, bounds=(0.01, 10), method="bounded").x
    assert 1 / found == pytest.approx(lowest, rel=1e-3)


def test_scaled_probabilities_are_those_of_scaled_logits_and_calibrated() -> None:
    logits, labels = logits_and_labels()
    sure = (4 * logits).softmax(dim=1)
    calibrated = at_temperature(sure.T, fit_temperature(sure, labels))
    np.testing.assert_allclose(
        at_temperature(sure.T, 4.0).numpy(), logits.T.softmax(dim=0).numpy(), atol=1e-5
    )
    errors = []
    for scores in (4 * logits, calibrated.T.log()):
        measure = Calibration(None)
        measure.update(scores.T[None, :, None], labels[None, None])
        errors.append(measure.metrics()["calibration_error"])
    assert errors[0] > 0.1
    assert errors[1] < 0.02
    assert torch.equal(calibrated.argmax(dim=0), sure.argmax(dim=1))


def test_extreme_probabilities_have_a_temperature_all_the_same() -> None:
    certain = torch.eye(3)
    assert fit_temperature(certain, torch.tensor([0, 1, 2])) == 1 / module.HIGHEST  # never wrong
    assert fit_temperature(certain, torch.tensor([1, 2, 0])) == module.HIGHEST  # always wrong
    assert fit_temperature(torch.full((2, 3), 1 / 3), torch.tensor([0, 1])) == module.HIGHEST
    assert torch.equal(at_temperature(certain, 2.0), certain)
    with pytest.raises(ValueError, match="none"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))


def test_images_of_no_batch_are_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert held_out(6, [[0, 3], [3, 5]]) == [1, 2, 4]
    assert held_out(2, [[0, 1]]) == []
    monkeypatch.setattr(module, "HELD_OUT", 3)
    spread = held_out(20, [[0, 1]])
    assert len(spread) <= 3
    assert set(spread) <= set(range(2, 20))
    assert max(spread) - min(spread) > 10


def test_pixels_are_drawn_from_those_with_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIXELS_AN_IMAGE", 40)
    kind = Feeding(prepare=lambda images, _, dtype: images.to(dtype))
    predictor = Predictor(nn.Conv2d(1, 3, 1), kind, torch.device("cpu"))
    with torch.no_grad():
        predictor.network.weight.copy_(torch.tensor([1.0, 2.0, 3.0])[:, None, None, None])
        predictor.network.bias.zero_()
    image = torch.arange(100.0).reshape(1, 1, 10, 10) / 100
    labels = (torch.arange(100).reshape(1, 10, 10) % 3).to(torch.uint8)
    labels[0, :2] = VOID
    few = torch.full_like(labels, VOID)
    few[0, 0, :5] = 1
    passed: list[int] = []
    probabilities, found = sampled_pixels(
        predictor, [(image, labels), (image, few)], VOID, lambda: passed.append(1)
    )
    assert (probabilities.shape, found.shape, len(passed)) == ((45, 3), (45,), 2)
    value = (probabilities[:, 1] / probabilities[:, 0]).log() * 100  # which pixel it is
    pixels = value.round().long()
    assert len(set(pixels[:40].tolist())) == 40
    assert torch.equal(found[:40], pixels[:40] % 3)
    assert pixels[:40].min() >= 20
    assert sorted(pixels[40:].tolist()) == [0, 1, 2, 3, 4]
    again, _ = sampled_pixels(predictor, [(image, labels), (image, few)], VOID)
    assert torch.equal(again, probabilities)


def test_the_rule_gains_on_calibrated_probabilities_where_it_lost_on_sure_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4000, generator=generator)
    logits[0] += 2.5
    labels = torch.multinomial(logits.softmax(dim=0).T, 1, generator=generator)[:, 0]
    scores = scores_of((0.2 * logits).softmax(dim=0), labels, VOID, temperature=0.2)
    right = scores_of(logits.softmax(dim=0), labels, VOID)
    assert scores.miou_calibrated_rule == pytest.approx(right.miou_decision_rule, abs=0.01)
    assert scores.miou_calibrated_rule > scores.miou_decision_rule
    assert np.isnan(right.miou_calibrated_rule)
    assert np.isnan(right.miou_rankseg)
