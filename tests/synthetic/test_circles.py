"""Circles against their geometry and the paper's feature distribution (Sec. 4.1)."""

import math

import numpy as np
import pytest

from lovasz_repro.synthetic.bias_search import draw_circles


def test_ten_images_of_fifty_pixels_by_default():
    circles = draw_circles(0)
    assert circles.labels.shape == circles.features.shape == (10, 50, 50)
    assert circles.labels.dtype == np.bool_
    assert circles.features.dtype == np.float64


@pytest.mark.parametrize("radius", [3.0, 10.0, 20.0, 25.0])
def test_area_is_that_of_a_circle_which_the_border_does_not_cut(radius):
    labels = draw_circles(1, images=20, radius=(radius, radius)).labels
    area = math.pi * radius**2
    # The pixels of a circle's rim, 2 pi r, are the most that a count of pixel centres can miss.
    assert np.abs(labels.sum(axis=(1, 2)) - area).max() < 2 * math.pi * radius
    assert labels.sum(axis=(1, 2)).mean() == pytest.approx(area, rel=0.02)


def test_each_label_is_a_disc():
    """Exactly the pixels as near to the centre of mass as the farthest of them, up to the rim."""
    for label in draw_circles(2, images=5).labels:
        y, x = np.nonzero(label)
        grid_y, grid_x = np.indices(label.shape)
        distance = np.hypot(grid_y - y.mean(), grid_x - x.mean())
        assert label[distance < distance[label].max() - 1].all()


def test_smallest_circle_always_holds_a_pixel():
    labels = draw_circles(3, images=2000, size=5, radius=(1, 1)).labels
    assert labels.any(axis=(1, 2)).all()


def test_largest_circle_touches_all_four_sides():
    label = draw_circles(0, images=1, radius=(25, 25)).labels[0]
    assert np.array_equal(label, label[::-1])
    assert np.array_equal(label, label.T)
    assert label[0].any()


def test_radii_and_places_vary_within_their_ranges():
    labels = draw_circles(4, images=3000, radius=(3, 20)).labels
    radii = np.sqrt(labels.sum(axis=(1, 2)) / math.pi)
    assert np.quantile(radii, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(
        [3, 7.25, 11.5, 15.75, 20], abs=0.6
    )
    share = labels.mean(axis=0)
    assert share == pytest.approx(share[::-1], abs=0.06)  # no side is preferred
    assert share == pytest.approx(share.T, abs=0.06)


def test_features_are_normal_around_plus_and_minus_the_mean():
    labels, features = draw_circles(5, images=400, mean=0.5, noise=1.0)
    for values, mean in ((features[labels], 0.5), (features[~labels], -0.5)):
        assert values.mean() == pytest.approx(mean, abs=0.02)
        assert values.std() == pytest.approx(1.0, abs=0.02)
        within_one = np.mean(np.abs(values - mean) < 1)
        assert within_one == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.01)


def test_seed_decides_everything():
    first, again, other = draw_circles(6), draw_circles(6), draw_circles(7)
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.features, again.features)
    assert not np.array_equal(first.features, other.features)
    assert not np.array_equal(first.labels, other.labels)
