"""The search over b against plain loops over the definitions and against `lovasz_repro.losses`."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from lovasz_repro import losses
from lovasz_repro.config.synthetic import SearchConfig
from lovasz_repro.metrics import binary_image_iou
from lovasz_repro.synthetic.bias_search import (
    SEARCHED_LOSSES,
    SURROGATES,
    SortedImage,
    draw_circles,
    grid_minimum,
    jaccard,
    jaccard_minimum,
    loss_curves,
    over_images,
    sort_images,
)

SEARCH = SearchConfig(bias=(-3.0, 3.0), step=0.1, resolution=0.001, curve_step=0.01)


def plain_jaccard_loss(wrong: list[bool], labels: list[bool]) -> float:
    """Eq. 6: |M| / |{y* = 1} u M| of a set M of mispredicted pixels."""
    union = sum(w or y for w, y in zip(wrong, labels, strict=True))
    return sum(wrong) / union if union else 0.0


def plain_lovasz_hinge(margins: list[float], labels: list[bool]) -> float:
    """Eq. 8-10: hinge errors in decreasing order, each times the growth of the set function."""
    errors = [max(0.0, 1 - margin) for margin in margins]
    wrong, loss = [False] * len(errors), 0.0
    for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
        before = plain_jaccard_loss(wrong, labels)
        wrong[i] = True
        loss += errors[i] * (plain_jaccard_loss(wrong, labels) - before)
    return loss


def plain_losses(features: list[float], labels: list[bool], b: float) -> dict[str, float]:
    """Every loss of one image, pixel by pixel."""
    scores = [f + b for f in features]
    margins = [s if y else -s for s, y in zip(scores, labels, strict=True)]
    p = [1 / (1 + math.exp(-s)) for s in scores]
    intersection = sum(q * y for q, y in zip(p, labels, strict=True))
    union = sum(q + y - q * y for q, y in zip(p, labels, strict=True))
    decisions = [f > -b for f in features]
    wrong = [d != y for d, y in zip(decisions, labels, strict=True)]
    return {
        "jaccard": plain_jaccard_loss(wrong, labels),
        "lovasz_hinge": plain_lovasz_hinge(margins, labels),
        "hinge": sum(max(0.0, 1 - m) for m in margins) / len(margins),
        "cross_entropy": sum(math.log1p(math.exp(-m)) for m in margins) / len(margins),
        "soft_iou": 1 - intersection / union,
    }


# Multiples of 1/8 make exact ties between pixels and with the bias frequent.
EIGHTHS = st.integers(-24, 24).map(lambda n: n / 8)


@given(
    st.lists(st.tuples(EIGHTHS, st.booleans()), min_size=1, max_size=9),
    st.lists(EIGHTHS, min_size=1, max_size=3),
)
def test_every_loss_is_its_definition(pixels, biases):
    features, labels = [f for f, _ in pixels], [y for _, y in pixels]
    assume(any(labels))
    image = SortedImage.of(torch.tensor(labels), torch.tensor(features, dtype=torch.float64))
    expected = [plain_losses(features, labels, b) for b in biases]
    for name, loss in SEARCHED_LOSSES.items():
        values = loss(image, torch.tensor(biases, dtype=torch.float64)).tolist()
        assert values == pytest.approx([one[name] for one in expected], abs=1e-12), name


def test_the_training_losses_are_the_same_functions():
    circles = draw_circles(0)
    images, biases = sort_images(circles), torch.linspace(-3, 3, 13, dtype=torch.float64)
    labels, features = (torch.from_numpy(array) for array in circles)
    training = {
        "lovasz_hinge": losses.lovasz_hinge,
        "hinge": losses.hinge,
        "cross_entropy": losses.binary_cross_entropy,
        "soft_iou": losses.soft_iou,
    }
    assert training.keys() == SURROGATES.keys()
    for name, loss in training.items():
        expected = torch.stack([loss(features + b, labels.long()) for b in biases])
        values = over_images(SURROGATES[name], images, biases)
        torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-12, msg=name)


def test_jaccard_loss_is_one_minus_the_metric():
    circles = draw_circles(1)
    labels, features = (torch.from_numpy(array) for array in circles)
    biases = torch.linspace(-3, 3, 25, dtype=torch.float64)
    expected = [1 - binary_image_iou(features > -b, labels).mean() for b in biases]
    values = over_images(jaccard, sort_images(circles), biases)
    torch.testing.assert_close(values, torch.stack(expected), rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([(-3.0, 3.0), (0.25, 0.5), (-9.0, -8.0)]))
def test_no_bias_in_the_range_has_a_lower_jaccard_loss(seed, bias):
    images = sort_images(draw_circles(seed, images=3, size=8, radius=(1, 4)))
    best = jaccard_minimum(images, bias)
    assert bias[0] <= best <= bias[1]
    thresholds = -torch.cat([torch.cat([i.foreground, i.background]) for i in images])
    inside = thresholds[(thresholds > bias[0]) & (thresholds < bias[1])].sort().values
    ends = torch.tensor([bias[0], *inside.tolist(), bias[1]], dtype=torch.float64)
    middles = (ends[1:] + ends[:-1]) / 2  # one bias inside each constant piece
    lowest = over_images(jaccard, images, middles).min()
    at_best = over_images(jaccard, images, torch.tensor([best], dtype=torch.float64))
    assert at_best.item() == pytest.approx(lowest.item(), abs=1e-15)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", SURROGATES)
def test_refined_grid_finds_what_the_finest_grid_everywhere_finds(name, seed):
    images = sort_images(draw_circles(seed, images=4, size=30, radius=(2, 12)))
    everywhere = torch.linspace(-3, 3, 6001, dtype=torch.float64)
    parts = [over_images(SURROGATES[name], images, part) for part in everywhere.split(500)]
    expected = everywhere[torch.cat(parts).argmin()].item()
    assert grid_minimum(SURROGATES[name], images, SEARCH) == pytest.approx(expected, abs=1.1e-3)


@pytest.mark.parametrize("name", ["lovasz_hinge", "hinge", "cross_entropy"])
def test_the_losses_that_are_said_to_be_convex_are(name):
    images = sort_images(draw_circles(3))
    values = over_images(
        SEARCHED_LOSSES[name], images, torch.linspace(-3, 3, 201, dtype=torch.float64)
    )
    assert values.diff(n=2).min() > -1e-12


def test_a_minimum_beyond_the_range_is_found_at_its_end():
    images = sort_images(draw_circles(4))
    narrow = SearchConfig(bias=(1.5, 1.75), step=0.25, resolution=0.001, curve_step=0.25)
    assert grid_minimum(SURROGATES["hinge"], images, narrow) == 1.5


def test_curves_are_the_losses_over_the_whole_range():
    images = sort_images(draw_circles(5, images=2, size=10, radius=(2, 4)))
    curves = loss_curves(images, SEARCH)
    assert list(curves) == ["b", *SEARCHED_LOSSES]
    assert curves["b"] == pytest.approx([-3 + 0.01 * i for i in range(601)])
    assert curves["jaccard"][0] == pytest.approx(
        over_images(jaccard, images, torch.tensor([-3.0], dtype=torch.float64)).item()
    )
