"""The objective of a cell against its terms computed apart."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from lovasz_repro.config.schema import LossConfig
from lovasz_repro.losses import lovasz_softmax
from lovasz_repro.run.networks import from_the_grid
from lovasz_repro.training.objective import build_objective, enet_class_weights, labels_of_cells

SHARES = torch.tensor([0.5, 0.25, 0.05, 0.0])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 6, 5), generator=generator)
    labels[0, 0] = 9
    return logits, labels


def test_enet_weights_by_hand() -> None:
    weights = enet_class_weights(SHARES)
    expected = [1 / math.log(1.02 + share) for share in (0.5, 0.25, 0.05)] + [0.0]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert float(enet_class_weights(torch.tensor([1e-9]))) == pytest.approx(50.5, abs=0.05)


def test_sum_is_the_weighted_sum_of_torch_s_cross_entropy_and_lovasz_softmax() -> None:
    logits, labels = batch()
    config = LossConfig(terms={"cross_entropy": 2.0, "lovasz_softmax": 0.5}, class_weights="enet")
    objective = build_objective(config, 9, SHARES)
    entropy = F.cross_entropy(logits, labels, weight=enet_class_weights(SHARES), ignore_index=9)
    lovasz = lovasz_softmax(logits, labels, ignore_index=9)
    torch.testing.assert_close(objective(logits, labels), 2 * entropy + 0.5 * lovasz)


def test_options_of_lovasz_reach_it() -> None:
    logits, labels = batch()
    config = LossConfig(terms={"lovasz_softmax": 1.0}, classes="all", per_image=True)
    expected = lovasz_softmax(logits, labels, ignore_index=9, classes="all", per_image=True)
    assert build_objective(config, 9, SHARES)(logits, labels) == expected
    assert expected != lovasz_softmax(logits, labels, ignore_index=9)


def test_unlabelled_pixels_train_the_released_loss_and_no_other() -> None:
    """e-lab's decoder.lua: weighted mean of -log p_y over all pixels, output 0 being a class."""
    logits, labels = batch()
    labels[labels == 9] = 0
    shares = torch.tensor([0.1, 0.6, 0.3, 0.0])
    own = {c: 1 / math.log(1.02 + float(shares[c])) for c in range(3)}
    lovasz = lovasz_softmax(logits, labels, ignore_index=0)
    for name, counted in (("enet", (1, 2)), ("enet-released", (0, 1, 2))):
        total = weight = 0.0
        for pixel, label in zip(logits.movedim(1, -1).reshape(-1, 4), labels.ravel(), strict=True):
            if int(label) in counted:
                total -= own[int(label)] * pixel.log_softmax(0)[label].item()
                weight += own[int(label)]
        terms = {"cross_entropy": 1.0, "lovasz_softmax": 1.0}
        objective = build_objective(LossConfig(terms=terms, class_weights=name), 0, shares)
        expected = total / weight + lovasz.item()  # which leaves them out either way
        assert objective(logits, labels).item() == pytest.approx(expected, rel=1e-5)


def test_where_unlabelled_is_no_output_the_released_loss_is_the_other() -> None:
    logits, labels = batch()  # void is 9 of 4 outputs
    one, other = (
        build_objective(LossConfig(terms={"cross_entropy": 1.0}, class_weights=name), 9, SHARES)
        for name in ("enet", "enet-released")
    )
    assert one(logits, labels) == other(logits, labels)


# -- one category, and grids coarser than the labels --------------------------------------------


def test_the_binary_losses_take_the_logit_of_the_category_image_by_image() -> None:
    logits, labels = batch()
    labels = torch.where(labels == 9, 9, (labels == 2).long())
    objective = build_objective(LossConfig(terms={"hinge": 1.0}), 9, category=2)
    expected = 0.0
    for image in range(2):
        known = labels[image] != 9
        sign = labels[image][known] * 2.0 - 1
        expected += (1 - logits[image, 2][known] * sign).clamp(min=0).mean().item() / 2
    assert objective(logits, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("resolution", ["output", "input"])
def test_the_loss_is_taken_on_either_grid(resolution: str) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 4, generator=generator)
    labels = torch.randint(0, 4, (2, 17, 25), generator=generator)
    config = LossConfig(terms={"cross_entropy": 1.0}, resolution=resolution)
    objective = build_objective(config, 9, to_size=from_the_grid)
    if resolution == "output":
        expected = F.cross_entropy(logits, labels[:, ::8, ::8])
    else:
        large = F.interpolate(logits, (17, 25), mode="bilinear", align_corners=True)
        expected = F.cross_entropy(large, labels)
    torch.testing.assert_close(objective(logits, labels), expected)


def test_labels_of_cells_are_pillows_nearest() -> None:
    labels = np.random.default_rng(0).integers(0, 21, (2, 321, 313), np.uint8)
    found = labels_of_cells(torch.from_numpy(labels), (41, 40))
    for mine, one in zip(found, labels, strict=True):
        theirs = Image.fromarray(one).resize((40, 41), Image.Resampling.NEAREST)
        assert np.array_equal(mine, np.asarray(theirs))
    logits = torch.randn(2, 4, 41, 40, generator=torch.Generator().manual_seed(0))
    config = LossConfig(terms={"cross_entropy": 1.0}, resolution="output-cells")
    large = torch.from_numpy(labels % 4).long()
    expected = F.cross_entropy(logits, found.long() % 4)
    torch.testing.assert_close(build_objective(config, 9)(logits, large), expected)
