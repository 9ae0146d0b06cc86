"""Noisy circles, losses as functions of the bias b, and the exhaustive search for their minima
(Sec. 4.1).

The score of a pixel with feature f is F = f + b. An image's features are sorted once; from then
on counting the pixels on either side of a threshold is a bisection, whatever the bias. Each loss
takes one image and many biases at once. `lovasz_repro.losses` holds the same losses for training;
the tests compare the two.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lovasz_repro.config.synthetic import SearchConfig

# ---- The images ----------------------------------------------------------------------------------
#
# Noisy filled circles (Fig. 3a). The paper gives the number of images (10), their size (50x50) and
# the feature, N(+-1/2, 1). It does not give the radii or the positions. Here both are uniform: the
# radius in `radius`, the centre wherever the whole circle lies inside the image. Everything follows
# from the seed, on any device.


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


# ---- The search ----------------------------------------------------------------------------------

ZOOM = 10  # each finer grid has a tenth of the step


@dataclass(frozen=True)
class SortedImage:
    """Features of one image with some foreground, split by label, ascending, float64."""

    foreground: Tensor  # (G,)
    background: Tensor  # (B,)

    @classmethod
    def of(cls, labels: Tensor, features: Tensor) -> "SortedImage":
        """From labels, bool, and features, float64, both (...)."""
        return cls(features[labels].sort().values, features[~labels].sort().values)

    def foreground_up_to(self, values: Tensor) -> Tensor:
        """How many foreground features are <= each value, (...) -> (...)."""
        return torch.searchsorted(self.foreground, values, right=True)

    def background_above(self, values: Tensor) -> Tensor:
        """How many background features are > each value, (...) -> (...)."""
        return len(self.background) - torch.searchsorted(self.background, values, right=True)


# Each loss: one image and biases (K,) -> (K,) float64.


def jaccard(image: SortedImage, biases: Tensor) -> Tensor:
    """The Jaccard loss of the decision f > -b: |M| / |{y* = 1} u M| (Eq. 6)."""
    misses = image.foreground_up_to(-biases)
    false_alarms = image.background_above(-biases)
    return (misses + false_alarms) / (len(image.foreground) + false_alarms).double()


def lovasz_hinge(image: SortedImage, biases: Tensor) -> Tensor:
    """The Lovász hinge (Eq. 10), without sorting the errors 1 -+ (f + b) again for each bias.

    Foreground errors fall with the feature and background errors rise, whatever the bias. So the
    background pixel of rank r (r others have larger errors) always has U = G + r, with G the
    foreground size, and its gain (Eq. 9) is I / (U (U + 1)), I counting the foreground pixels
    behind it in Algorithm 1. Let i be a foreground pixel with n_i background pixels in front: it
    gains 1 / (G + n_i), and it adds one to the I of just those n_i. Summed by foreground pixel,

        loss = sum_i [ m_i / (G + n_i) + sum_{r < n_i} m_r / ((G + r) (G + r + 1)) ],

    where only n_i depends on the bias, found by bisection; the inner sum, over the background
    errors m_r = 1 + f_r + b that are positive, is read off prefix sums.
    """
    size, b = len(image.foreground), biases[:, None]
    in_front = image.background_above(-image.foreground - 2 * b)  # n_i, (K, G)
    loss = (1 - image.foreground - b).relu_() / (size + in_front)

    by_rank = image.background.flip(0)  # (B,)
    union = size + torch.arange(len(by_rank), device=b.device, dtype=torch.float64)
    weights = 1 / (union * (union + 1))
    slope = F.pad(weights.cumsum(0), (1, 0))  # (B + 1,), by how many are summed
    offset = F.pad(((1 + by_rank) * weights).cumsum(0), (1, 0))
    summed = in_front.minimum(image.background_above(-1 - b))  # up to the last positive error
    loss += offset[summed] + b * slope[summed]
    return loss.sum(dim=1)


def hinge(image: SortedImage, biases: Tensor) -> Tensor:
    """The hinge loss max(0, 1 - y F), y = +-1, mean over the pixels."""
    return _mean_over_pixels(image, biases, lambda margin: (1 - margin).relu_())


def cross_entropy(image: SortedImage, biases: Tensor) -> Tensor:
    """The logistic loss log(1 + exp(-y F)), mean over the pixels (Eq. 1 for two classes)."""
    return _mean_over_pixels(image, biases, lambda margin: -F.logsigmoid(margin))


def soft_iou(image: SortedImage, biases: Tensor) -> Tensor:
    """1 - I / U with I = sum p t, U = sum (p + t - p t), p = sigmoid(F) (Rahman and Wang 2016)."""
    b = biases[:, None]
    intersection = torch.sigmoid(image.foreground + b).sum(dim=1)
    union = len(image.foreground) + torch.sigmoid(image.background + b).sum(dim=1)
    return 1 - intersection / union


def _mean_over_pixels(
    image: SortedImage, biases: Tensor, loss: Callable[[Tensor], Tensor]
) -> Tensor:
    """A loss of the margins y F, averaged."""
    b = biases[:, None]
    total = loss(image.foreground + b).sum(dim=1) + loss(-image.background - b).sum(dim=1)
    return total / (len(image.foreground) + len(image.background))


BiasLoss = Callable[[SortedImage, Tensor], Tensor]
SURROGATES: dict[str, BiasLoss] = {
    "lovasz_hinge": lovasz_hinge,
    "hinge": hinge,
    "cross_entropy": cross_entropy,
    "soft_iou": soft_iou,
}
SEARCHED_LOSSES = {"jaccard": jaccard} | SURROGATES


def sort_images(circles: Circles, device: torch.device | str = "cpu") -> list[SortedImage]:
    """Images ready for the search."""
    labels = torch.from_numpy(circles.labels).to(device)
    features = torch.from_numpy(circles.features).to(device)
    return [SortedImage.of(*pair) for pair in zip(labels, features, strict=True)]


def over_images(loss: BiasLoss, images: Sequence[SortedImage], biases: Tensor) -> Tensor:
    """Mean of a loss over the images, at biases (K,) -> (K,)."""
    return torch.stack([loss(image, biases) for image in images]).mean(dim=0)


def jaccard_minimum(images: Sequence[SortedImage], bias: tuple[float, float]) -> float:
    """The bias in [low, high] with the lowest Jaccard loss, exactly.

    The loss is constant between two neighbouring thresholds -f and steps just above each, so its
    values at the thresholds (and at `high`) are all the values that it takes. Returns the middle
    of the first lowest piece.
    """
    low, high = bias
    thresholds = -torch.cat([f for image in images for f in (image.foreground, image.background)])
    thresholds = thresholds[(thresholds > low) & (thresholds < high)].sort().values
    ends = F.pad(F.pad(thresholds, (1, 0), value=low), (0, 1), value=high)
    lowest = int(over_images(jaccard, images, ends[1:]).argmin())
    return ends[lowest : lowest + 2].mean().item()


def grid_minimum(loss: BiasLoss, images: Sequence[SortedImage], config: SearchConfig) -> float:
    """The grid bias with the lowest loss; the grid is made finer around its best point.

    The hinge, the cross-entropy and the Lovász hinge are convex in b, so the minimum cannot hide
    between two points of a coarse grid. The soft IoU is not convex, but it changes on the scale
    of the sigmoid, far above the first step.
    """
    low, high = config.bias
    step = config.step
    biases = _grid(low, high, step, images)
    while True:
        best = biases[over_images(loss, images, biases).argmin()].item()
        if step <= config.resolution:
            return best
        biases = _grid(max(low, best - step), min(high, best + step), step / ZOOM, images)
        step /= ZOOM


def loss_curves(images: Sequence[SortedImage], config: SearchConfig) -> dict[str, np.ndarray]:
    """Every loss over the whole range of biases, a few biases at a time to bound the memory."""
    biases = _grid(*config.bias, config.curve_step, images)
    parts = biases.split(100)
    curves = {"b": biases} | {
        name: torch.cat([over_images(loss, images, part) for part in parts])
        for name, loss in SEARCHED_LOSSES.items()
    }
    return {name: values.cpu().numpy() for name, values in curves.items()}


def _grid(low: float, high: float, step: float, images: Sequence[SortedImage]) -> Tensor:
    """low, ..., high on the images' device, evenly spaced by about `step`, both ends exact."""
    points = round((high - low) / step) + 1
    device = images[0].foreground.device
    return torch.linspace(low, high, points, dtype=torch.float64, device=device)
