"""The objective of a cell against its terms computed apart."""

import math

import pytest
import torch
from torch.nn import functional as F

from lovasz_repro.config import LossConfig
from lovasz_repro.losses import lovasz_softmax
from lovasz_repro.training.objective import build_objective, enet_class_weights

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
