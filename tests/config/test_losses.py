"""One table of losses: what a line of it says is true, and a line is all that a new loss needs."""

import inspect
import sys
from types import SimpleNamespace

import pytest
import torch

from lovasz_repro.config.schema import LossConfig, load_experiment
from lovasz_repro.config.tables import LOSSES, SCORE_TITLES, LossKind, loss_function
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.scoring import BinaryScoring
from lovasz_repro.report.published import MEASURES
from lovasz_repro.report.sets import TRAINED_SCORES, loss_title
from lovasz_repro.training.objective import build_objective


@pytest.mark.parametrize("name", LOSSES)
def test_the_function_of_a_loss_takes_what_its_line_says(name: str) -> None:
    taken = set(inspect.signature(loss_function(name)).parameters)
    also = {"per_image"} if LOSSES[name].score else set()
    assert {"ignore_index", "group", *LOSSES[name].options, *also} <= taken
    assert set(LOSSES[name].options) <= set(LossConfig.model_fields)


def test_scores_and_tables_have_the_losses_of_the_table() -> None:
    scores = [kind.score for kind in LOSSES.values() if kind.score]
    assert len(set(scores)) == len(scores)
    assert list(BinaryScoring.names)[: len(scores)] == scores
    assert [MEASURES[variant][0] for variant in TRAINED_SCORES] == [
        f"val/{score}" for score in scores
    ]
    assert [loss_title(variant) for variant in TRAINED_SCORES] == list(SCORE_TITLES.values())


def test_a_line_is_all_that_a_new_loss_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def brier(logits, labels, *, ignore_index=None, group=None):
        return (logits.softmax(1)[:, 1] - labels).square().mean()

    where = "lovasz_repro.losses.brier"
    monkeypatch.setitem(sys.modules, where, SimpleNamespace(brier=brier))
    overrides = {"loss.terms": {"brier": 2.0}}
    experiment = load_experiment("camvid-enet")
    with pytest.raises(UserError, match=r"loss\.terms\.brier.*cross_entropy.*'brier'"):
        experiment.cells("demo", overrides=overrides)
    monkeypatch.setitem(LOSSES, "brier", LossKind("Brier score", "brier"))
    with pytest.raises(UserError, match=r"weighted-cross-entropy, sum .*--variant"):
        experiment.cells("demo", overrides=overrides)  # nothing would tell them apart
    (cell,) = experiment.cells("demo", variants=["weighted-cross-entropy"], overrides=overrides)
    logits, labels = torch.zeros(1, 2, 3, 3), torch.ones(1, 3, 3, dtype=torch.long)
    assert build_objective(cell.loss, None, torch.ones(2))(logits, labels) == 2 * 0.25


@pytest.mark.parametrize("name", ["soft_dice", "soft_jaccard"])
def test_soft_overlaps_are_terms_of_an_objective(name: str) -> None:
    logits, labels = torch.randn(2, 4, 5, 5), torch.randint(0, 4, (2, 5, 5))
    labels[0, 0] = 255
    config = LossConfig(terms={name: 2.0}, classes="all", per_image=True)
    found = build_objective(config, ignore_index=255)(logits, labels)
    expected = loss_function(name)(logits, labels, classes="all", per_image=True, ignore_index=255)
    torch.testing.assert_close(found, 2 * expected)
