"""The decision rule: the paper's three numbers, and every variant batch by batch."""

import math
import statistics

import pytest

from lovasz_repro.report.render import to_markdown
from lovasz_repro.report.tables import TABLES
from tests.fake_multiclass import add, add_features, add_papers
from tests.report_files import cells

decision_rule, decision_rule_by_scale = (
    TABLES[name] for name in ("decision-rule", "decision-rule-by-scale")
)
RUN = "lovasz-repro run voc-multiclass"
ARG_MAX, RULE = "batches/miou", "batches/miou_decision_rule"


def batches(store, run, **histories):
    """Give a run other scores of its batches."""
    for key, scores in histories.items():
        metric = {"arg_max": ARG_MAX, "rule": RULE}[key]
        store.histories[run.run_id][metric] = list(enumerate(scores))


def three_batches(store, **kwargs):
    """Cross-entropy and Lovász-Softmax on three batches that differ far more than the methods."""
    reference = add(store, "x-loss-equibatch", **kwargs)
    batches(store, reference, arg_max=(0.60, 0.70, 0.80), rule=(0.58, 0.67, 0.76))
    ours = add(store, "lovasz-equibatch-30k", **kwargs)
    batches(store, ours, arg_max=(0.65, 0.74, 0.86), rule=(0.60, 0.70, 0.80))


def test_the_papers_three_numbers(store):
    three_batches(store)
    table = decision_rule(store)
    rows = {key: row["batch-miou"] for key, row in cells(table).items()}
    assert [(c.published, c.value) for c in rows.values()] == [
        (68.7, pytest.approx(70)), (65.1, pytest.approx(67)), (72.5, pytest.approx(75)),
    ]  # fmt: skip
    assert rows["cross-entropy"].spread == pytest.approx(10.0)
    assert rows["decision-rule"].spread == pytest.approx(9.0)
    assert rows["lovasz-softmax"].spread == pytest.approx(statistics.stdev((65, 74, 86)))
    assert {s.name for s in rows["decision-rule"].sources} == {"x-loss-equibatch-b10-s0"}
    assert [c.published_spread for c in rows.values()] == [1.2, 1.4, 1.2]
    assert "68.70 ± 1.20" in to_markdown(table)
    assert table.title.startswith("Sec. 4.3, comparison to prior work: ")


def test_the_shorter_training_does_not_stand_in_for_the_papers(store):
    add_papers(store, ["x-loss-equibatch", "lovasz-equibatch"])
    rows = cells(decision_rule(store))
    assert rows["lovasz-softmax"]["batch-miou"].value is None
    assert rows["cross-entropy"]["batch-miou"].value is not None


@pytest.mark.parametrize(
    "other",
    [{"scale": "reduced"}, {"folder": "voc-demo"}, {"images": "features"}, {"batch": 5},
     {"split": "trainval_aug", "profile": "trainval"}],
)  # fmt: skip
def test_other_runs_never_enter_the_papers_comparison(store, other):
    add_papers(store, **other)
    rows = cells(decision_rule(store))
    assert {row["batch-miou"].value for row in rows.values()} == {None}
    assert {row["batch-miou"].command for row in rows.values()} == {RUN}


def test_differences_are_paired_by_batch(store):
    three_batches(store)
    row = cells(decision_rule_by_scale(store))["x-loss-equibatch"]
    # 2, 3 and 4 points lost: standard deviation 1, of the mean 1 / sqrt(3)
    assert row["difference"].value == pytest.approx(-3)
    assert row["difference"].spread == pytest.approx(1 / math.sqrt(3))
    assert (row["arg-max"].value, row["arg-max"].spread) == (pytest.approx(70), pytest.approx(10))
    assert (row["batches"].value, row["seeds"].value) == (3, 1)
    assert row["gain"] is None
    ours = cells(decision_rule_by_scale(store))["lovasz-equibatch-30k"]
    # 5, 4 and 6 points gained
    assert ours["gain"].value == pytest.approx(5)
    assert ours["gain"].spread == pytest.approx(1 / math.sqrt(3))
    assert {s.name for s in ours["gain"].sources} == {
        "x-loss-equibatch-b10-s0", "lovasz-equibatch-30k-b10-s0",
    }  # fmt: skip


def test_seeds_are_averaged_on_each_batch_first(store):
    for seed, scores in enumerate([(0.5, 0.7, 0.9), (0.7, 0.7)]):
        batches(store, add(store, "x-loss", seed), arg_max=scores)
    row = cells(decision_rule_by_scale(store))["x-loss"]
    # batch 2 is not of both: (0.5 + 0.7) / 2 and 0.7
    assert row["arg-max"].value == pytest.approx(65)
    assert row["arg-max"].spread == pytest.approx(10 / math.sqrt(2))
    assert (row["batches"].value, row["seeds"].value) == (2, 2)


def test_what_no_run_would_fill_is_not_asked_for(store):
    """A finished run gets no more scores: it has no row without batches, no cell without a rule."""
    run = add(store, "x-loss-equibatch")
    batches(store, run, arg_max=(0.6, 0.7), rule=())
    batches(store, add(store, "lovasz"), arg_max=(), rule=())
    rows = cells(decision_rule_by_scale(store))
    assert "lovasz" not in rows
    assert rows["x-loss-equibatch"]["rule"] is None
    assert rows["x-loss"]["arg-max"].command == RUN  # which has not run


def test_a_single_batch_has_no_spread(store):
    run = add(store, "x-loss-equibatch")
    batches(store, run, arg_max=(0.6,), rule=(0.5,))
    row = cells(decision_rule_by_scale(store))["x-loss-equibatch"]
    assert (row["difference"].value, row["difference"].spread) == (pytest.approx(-10), None)


def test_what_is_no_number_is_left_out(store):
    run = add(store, "x-loss-equibatch")
    batches(store, run, arg_max=(0.6, math.nan, 0.8), rule=(0.5, 0.5, math.nan))
    row = cells(decision_rule_by_scale(store))["x-loss-equibatch"]
    assert row["arg-max"].value == pytest.approx(70)
    assert (row["difference"].value, row["difference"].n) == (pytest.approx(-10), 1)


def test_every_variant_of_every_set_that_scored_batches(store):
    add_features(store, seeds=(0,), sizes=(10, 20))
    add_papers(store, scale="demo", folder="voc-demo", base=200, batches=0)
    table = decision_rule_by_scale(store)
    assert [block.heading.rsplit(", ", 1)[1] for block in table.blocks] == [
        "batch size 10", "batch size 20",
    ]  # fmt: skip
    rows = cells(table)
    assert {"x-loss", "lovasz-equibatch", "lovasz-per-image-present"} <= set(rows)
    assert rows["lovasz-equibatch"]["gain"].value == pytest.approx(2.5)
    assert cells(table, 1)["lovasz"]["gain"].value is None  # no reference in batches of 20
    assert not table.compares
