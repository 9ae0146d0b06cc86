"""Fused scores against a plain loop over images, scales and classes of images of 513x513."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_repro.config.schema import MultiScaleConfig
from lovasz_repro.data.examples import MEAN_BGR
from lovasz_repro.evaluation.predictor import (
    FINEST,
    MultiScale,
    common_step,
    continue_to_step,
)
from lovasz_repro.evaluation.scoring import SegmentationScoring, evaluate
from lovasz_repro.models.deeplab import small_deeplab
from lovasz_repro.run.networks import NETWORKS, caffe_on_the_grid, from_the_grid

CLASSES = 4
KIND = NETWORKS["deeplab-v2"]
CPU = torch.device("cpu")


def fused(
    model: nn.Module, *, precision: str = "float32", channels_last: bool = False, **scales: Any
) -> MultiScale:
    return MultiScale(
        model, KIND, CPU, precision, channels_last, multi_scale=MultiScaleConfig(**scales)
    )


def fuse(model: nn.Module, images: Tensor, **how: Any) -> Tensor:
    return fused(model, **how).logits(images)


class EveryEighth(nn.Module):
    """A network that answers with blurred colours of every 8th pixel, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(CLASSES, 3, 5, 5, generator=generator) / 200)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return F.conv2d(images, self.weight, stride=8, padding=2)


def photographs(height: int, width: int, count: int = 1) -> Tensor:
    """Smooth colours, so that scales see the same, with an edge."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(count, 3, 9, 9, generator=generator) * 255
    images = F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)
    images[..., : width // 3] = 20
    return images.to(torch.uint8)


def linear(few: int, many: int) -> np.ndarray:
    """Matrix (many, few) that interpolates between ``few`` points, corners on corners."""
    matrix = np.zeros((many, few))
    for row in range(many):
        position = row * (few - 1) / (many - 1)
        left = min(int(position), few - 2)
        matrix[row, left], matrix[row, left + 1] = left + 1 - position, position - left
    return matrix


def resized(planes: np.ndarray, many: tuple[int, int]) -> np.ndarray:
    """(C, h, w) -> (C, H, W), in float64."""
    rows, columns = (linear(few, side) for few, side in zip(planes.shape[1:], many, strict=True))
    return np.stack([rows @ plane @ columns.T for plane in planes])


def by_hand(model: nn.Module, image: Tensor, fusion: str, side: int, scales: list[int]) -> Tensor:
    """The DeepLab authors' recipe for one image: (C, H, W), float64."""
    _, height, width = image.shape
    padded = np.zeros((3, side, side))
    bgr = image.numpy()[::-1].astype(np.float64)
    padded[:, :height, :width] = bgr - np.array(MEAN_BGR)[:, None, None]
    grid = ((side - 1) // 8 + 1,) * 2
    maps = []
    for scaled in scales:
        inputs = torch.from_numpy(resized(padded, (scaled, scaled)))[None].float()
        with torch.no_grad():
            logits = model(inputs)[0].double().numpy()
        assert logits.shape[1:] == ((scaled - 1) // 8 + 1,) * 2
        maps.append(resized(logits, grid))
    if fusion == "max-logits":
        scores = resized(np.max(maps, axis=0), (side, side))
    else:
        powers = [np.exp(resized(plane, (side, side))) for plane in maps]
        scores = sum(power / power.sum(axis=0) for power in powers) / len(powers)
    return torch.from_numpy(scores[:, :height, :width])


@pytest.mark.parametrize(("fusion", "deeplab"), [("probabilities", False), ("max-logits", True)])
def test_scores_are_those_of_the_recipe_at_513(fusion: Any, deeplab: bool) -> None:
    torch.manual_seed(2)
    model = small_deeplab(CLASSES).eval() if deeplab else EveryEighth()
    images = photographs(375, 500)
    found = fuse(model, images, fusion=fusion)
    wanted = by_hand(model, images[0], fusion, 513, [513, 385, 257])
    assert found.shape == (1, CLASSES, 375, 500)
    assert found.dtype == torch.float32
    assert not found.requires_grad  # no graph is kept
    torch.testing.assert_close(found[0].double(), wanted, rtol=0, atol=1e-4)
    assert wanted.std() > 0.01


@pytest.mark.parametrize("fusion", ["probabilities", "max-logits"])
@pytest.mark.parametrize("size", [(1, 1), (33, 20), (64, 65), (61, 34)])
def test_any_size_without_the_least_side(fusion: Any, size: tuple[int, int]) -> None:
    """Continued to the next side at which 1, 3/4 and 1/2 are 8 n + 1: one of 33, 65, ..."""
    side = next(side for side in (33, 65) if side >= max(size))
    images = photographs(*size, count=2)
    model = EveryEighth()
    found = fuse(model, images, fusion=fusion, least_side=side)
    scaled = [side, 3 * (side - 1) // 4 + 1, (side - 1) // 2 + 1]
    for image, scores in zip(images, found, strict=True):
        wanted = by_hand(model, image, fusion, side, scaled)
        torch.testing.assert_close(scores.double(), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ((375, 500), [(513, 513), (385, 385), (257, 257)]),
        ((513, 1), [(513, 513), (385, 385), (257, 257)]),
        ((514, 545), [(545, 545), (409, 409), (273, 273)]),
        ((300, 546), [(513, 577), (385, 433), (257, 289)]),
    ],
)
def test_what_the_network_sees(size: tuple[int, int], seen: list[tuple[int, int]]) -> None:
    """The sides of DeepLab's definition, which are 8 n + 1 also for larger photographs."""
    model = EveryEighth()
    fuse(model, photographs(*size))
    assert [tuple(images.shape[-2:]) for images in model.seen] == seen
    assert all(side % 8 == 1 for images in model.seen for side in images.shape[-2:])
    first = model.seen[0][0]
    assert not first[:, size[0] :].any()  # the mean
    assert not first[:, :, size[1] :].any()
    assert first[:, : size[0], : size[1]].any()


def test_half_the_scale_has_33_points_a_side() -> None:
    """A point in the middle of 33 is the point in the middle of 65 and the pixel 256."""
    answers: list[Tensor] = []

    def peak(images: Tensor) -> Tensor:
        points = [(side - 1) // 8 + 1 for side in images.shape[-2:]]
        logits = torch.zeros(1, 2, *points)
        logits[0, 1, points[0] // 2, points[1] // 2] = 1
        answers.append(logits)
        return logits

    model = EveryEighth()
    model.forward = peak  # type: ignore[method-assign]
    found = fuse(model, photographs(513, 513), scales=[0.5], fusion="max-logits")
    assert answers[0].shape == (1, 2, 33, 33)
    assert found[0, 1, 256, 256] == 1
    assert found[0, 1, 256, 256 + 8] == pytest.approx(0.5)
    assert found[0, 1, 256, 256 + 16] == 0
    assert found[0, 1].max() == 1


def test_one_scale_is_the_plain_path() -> None:
    model, images = EveryEighth(), photographs(60, 90, count=2)
    plain = from_the_grid(model(caffe_on_the_grid(images, False, torch.float32)), (60, 90))
    alone = partial(fuse, model, images, scales=[1], least_side=1)
    assert torch.equal(alone(fusion="max-logits"), plain)
    torch.testing.assert_close(alone(fusion="probabilities"), plain.softmax(dim=1))
    assert model.seen[1].shape == (2, 3, 65, 97)


def test_a_constant_network_gives_its_constant() -> None:
    constant = torch.tensor([0.5, -1.0, 2.0, 0.0])
    model = EveryEighth()
    model.forward = (
        lambda images: constant.view(1, -1, 1, 1).expand(  # type: ignore[method-assign]
            1, -1, *((side - 1) // 8 + 1 for side in images.shape[-2:])
        )
    )
    images = photographs(50, 40)
    for fusion, value in (("max-logits", constant), ("probabilities", constant.softmax(dim=0))):
        found = fuse(model, images, fusion=fusion, least_side=65)
        torch.testing.assert_close(found, value.view(1, -1, 1, 1).expand(1, -1, 50, 40))


def test_how_scores_are_fused_matters_and_the_order_of_scales_does_not() -> None:
    model, images = EveryEighth(), photographs(97, 97)
    mean, largest = (
        fuse(model, images, fusion=fusion, least_side=97)
        for fusion in ("probabilities", "max-logits")
    )
    torch.testing.assert_close(mean.sum(dim=1), torch.ones(1, 97, 97))
    assert (mean.max(dim=1).indices != largest.max(dim=1).indices).any()
    assert (largest >= fuse(model, images, fusion="max-logits", scales=[1], least_side=97)).all()
    turned = fuse(model, images, scales=[0.5, 1.0, 0.75], least_side=97)
    torch.testing.assert_close(turned, mean)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model, images = EveryEighth(), photographs(40, 50, count=3)
    together = fuse(model, images, least_side=65)
    for image, scores in zip(images, together, strict=True):
        torch.testing.assert_close(fuse(model, image[None], least_side=65)[0], scores)


def test_bfloat16_and_channels_last_change_little() -> None:
    torch.manual_seed(0)
    model, images = small_deeplab(CLASSES).eval(), photographs(90, 60)
    plain = fuse(model, images, least_side=97)
    last = fuse(model, images, least_side=97, channels_last=True)
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-5)
    half = fuse(model, images, least_side=97, precision="bfloat16")
    assert half.dtype == torch.float32
    assert not torch.equal(half, plain)
    torch.testing.assert_close(half, plain, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("fusion", "precision"), [("probabilities", "float32"), ("max-logits", "bfloat16")]
)
def test_a_split_is_scored_with_it(fusion: Any, precision: str) -> None:
    """Through ``evaluate``, and autocast leaves the fusion alone."""
    torch.manual_seed(1)
    network = small_deeplab(CLASSES)
    how = {"fusion": fusion, "least_side": 65, "precision": precision}
    batches = [(photographs(40 + k, 50), torch.full((1, 40 + k, 50), k % 3)) for k in range(3)]
    scoring = SegmentationScoring(("a", "b", "c", "d"), None)
    found = evaluate(fused(network, **how), batches, scoring)
    assert not network.training
    expected = SegmentationScoring(("a", "b", "c", "d"), None)
    for images, labels in batches:
        expected.update(fuse(network, images, **how).max(dim=1).indices, labels)
    np.testing.assert_equal(found.as_metrics("val"), expected.as_metrics("val"))


def test_sides_at_which_every_scale_is_on_the_grid() -> None:
    assert common_step((1.0, 0.75, 0.5)) == 32
    assert common_step((1,)) == 8
    for scales in ((0.625,), (1.5, 0.25), (0.5, 1.0, 1.25)):
        step = common_step(scales)
        for count in range(5):
            assert all(step * count * scale % 8 == 0 for scale in (1.0, *scales))
    for size in range(1, 100):
        for least in (1, 40, 65):
            side = continue_to_step(torch.ones(1, 1, size, 3), 32, least).shape[2]
            assert side == next(n for n in range(max(size, least), 200) if n % 32 == 1)


@pytest.mark.parametrize(
    "scales", [(), (0.7,), (1.0, 0.0), (-0.5,), (float("nan"),), (float("inf"),), (1 / 16,)]
)
def test_scales_that_are_none(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=f"positive multiples of 1/{FINEST}"):
        common_step(scales)
    with pytest.raises(ValueError, match="scales"):
        MultiScaleConfig(scales=list(scales))


def test_other_fusions_and_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="fusion"):
        fuse(EveryEighth(), photographs(9, 9), fusion="mean")
    model = EveryEighth()
    model.forward = lambda images: images  # type: ignore[method-assign]
    told = "33x33 gave logits of 33x33, not 5x5: the network's grid is not every 8th pixel"
    with pytest.raises(ValueError, match=told):
        fuse(model, photographs(9, 9), least_side=33)
