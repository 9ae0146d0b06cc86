"""The images of the synthetic experiment: noisy filled circles (Sec. 4.1, Fig. 3a).

The paper gives the number of images (10), their size (50x50) and the feature, N(+-1/2, 1). It does
not give the radii or the positions. Here both are uniform: the radius in `radius`, the centre
wherever the whole circle lies inside the image. Everything follows from the seed, on any device.
"""

from typing import NamedTuple

import numpy as np


class Circles(NamedTuple):
    """Labels and features of N images."""

    labels: np.ndarray
    """(N, size, size) bool, True inside the circle."""
    features: np.ndarray
    """(N, size, size) float64."""


def draw_circles(
    seed: int,
    *,
    images: int = 10,
    size: int = 50,
    radius: tuple[float, float] = (3.0, 20.0),
    mean: float = 0.5,
    noise: float = 1.0,
) -> Circles:
    """Draw N labelled images with one filled circle each.

    Arguments:
        seed: at least 0; two calls with one seed give the same images.
        images: N, at least 1.
        size: height and width, pixels.
        radius: smallest and largest radius, pixels; from 1 (so that a pixel centre always lies
            inside) to size / 2.
        mean: of the feature, +mean in the circle and -mean outside.
        noise: standard deviation of the feature, above 0.
    """
    generator = np.random.default_rng(seed)
    radii = generator.uniform(*radius, size=(images, 1, 1))
    centre_y, centre_x = generator.uniform(radii, size - radii, size=(2, images, 1, 1))
    pixel = np.arange(size) + 0.5  # pixel i covers [i, i + 1]
    y, x = pixel[:, None], pixel[None, :]
    labels = (y - centre_y) ** 2 + (x - centre_x) ** 2 <= radii**2  # (N, size, size)
    features = generator.normal(np.where(labels, mean, -mean), noise)
    return Circles(labels, features)
