"""Claims of Sec. 3.1 and 4.3 on runs made for them, and how a training is divided for two."""

import math

import pytest

from lovasz_repro.config.read import read_yaml
from lovasz_repro.config.schema import experiments_folder, load_experiment
from lovasz_repro.report.claims import evaluate_claims
from lovasz_repro.report.claims_schema import load_claims
from tests.fake_multiclass import add, add_features, add_papers

SCORE = "val/dataset_miou"
OURS = [claim for claim in load_claims().claims if claim.experiment == "voc-multiclass"]

OF_MASKS = ("val/cross_entropy", "val/extraneous_classes", "val/missed_classes",
            "val/iou_by_size/small", "val/iou_by_size/large")  # fmt: skip


def found(store):
    return {item.claim.id: item for item in evaluate_claims(store)}


def effects(item):
    (evidence,) = item.evidence
    return evidence.outcome.effects


def add_two_seeds(store):
    for seed in (0, 1):
        add_papers(store, seed=seed)
        (run,) = [r for r in store.runs() if r.name == f"lovasz-equibatch-b10-s{seed}"]
        for one in store.runs():
            for name in OF_MASKS:
                store.histories[one.run_id][name] = [(1000, 0.3), (20000, 0.4)]
            one.metrics.update(dict.fromkeys(OF_MASKS, 0.4))
            arg_max = store.histories[one.run_id]["batches/miou"]
            calibrated = [(k, score + 0.01) for k, score in arg_max]
            store.histories[one.run_id]["batches/miou_calibrated_rule"] = calibrated
        for measure, above in (("dataset_miou", 0.0), ("batch_miou", 0.05)):
            curve = [(1000 * k, above + 0.5 + 0.1 * math.sin(k * k + seed)) for k in range(20)]
            store.histories[run.run_id][f"val/{measure}"] = [*curve, (20000, above + 0.735)]


def send(store, **scores):
    for seed in (0, 1):
        for name, score in scores.items():
            add(store, name.replace("_", "-"), seed, split="trainval_aug", profile="trainval",
                metrics={"server/dataset_miou": score})  # fmt: skip


def with_history(store, name, *values, step=10):
    for seed in (0, 1):
        run = add(store, name, seed, metrics={SCORE: values[-1]})
        store.histories[run.run_id][SCORE] = [(step * k, v) for k, v in enumerate(values)]


def test_every_claim_reads_what_the_runs_store(store):
    add_two_seeds(store)
    send(store, x_loss=0.76, x_loss_equibatch=0.78, lovasz_equibatch_30k=0.79)
    items = found(store)
    for claim in OURS:
        assert items[claim.id].verdict != "not yet run", claim.id
        assert all(not e.outcome.missing for e in items[claim.id].evidence), claim.id


def test_verdicts_on_runs_whose_numbers_are_known(store):
    """Scores of ``tests/fake_multiclass.py``, in points, each difference by hand."""
    add_two_seeds(store)
    items = found(store)
    expected = {
        "image-and-all-class-means-hurt-dataset-miou": ("holds", [70 - 64, 70 - 66]),
        "present-classes-help": ("holds", [73 - 70, 73 - 66]),
        "longer-training-helps-lovasz": ("holds", [1.5] * 3),
        "longer-training-does-not-help-cross-entropy": ("holds", [-0.5] * 3),
        "equibatch-helps-cross-entropy": ("holds", [1.0] * 3),
        "crf-adds": ("holds", [1.0] * 3),
        # the image-mIoU of fake runs is ten points above their dataset-mIoU
        "image-miou-is-a-poor-surrogate": ("does not hold", [73 - 64, 74 - 83]),
    }
    for name, (verdict, differences) in expected.items():
        assert items[name].verdict == verdict, name
        means = [effect.mean for effect in effects(items[name])]
        assert means == pytest.approx(differences), name
    assert len(effects(items["lovasz-wins-every-regime"])) == 9
    rule = effects(items["decision-rule-degrades"])
    # 66.5 on average against 63; 70.5 against 66.5; over the 20 batches, and over both seeds
    assert [(pytest.approx(e.mean), e.n) for e in rule] == [
        (3.5, 20), (3.5, 2), (4.0, 20), (4.0, 2)
    ]  # fmt: skip
    calibrated = items["decision-rule-lacks-calibration"]
    assert calibrated.verdict == "holds"  # as above, and half a point above a gain of one
    assert [pytest.approx(e.mean) for e in effects(calibrated)] == [3.5, 3.5, 1.5, 1.5]
    assert items["batch-miou-follows-dataset-miou"].verdict == "holds"


@pytest.mark.parametrize(
    ("rule", "calibrated", "verdict"),
    [
        (-0.03, -0.004, "holds"),  # it may take half a point
        (-0.03, -0.02, "does not hold"),
        (0.02, 0.03, "does not hold"),  # the rule does not fail
    ],
)
def test_the_rule_fails_for_lack_of_calibration_only_where_calibration_mends_it(
    store, rule, calibrated, verdict
):
    for seed in (0, 1):
        run = add(store, "x-loss-equibatch", seed)
        history = store.histories[run.run_id]
        for name, above in (("decision_rule", rule), ("calibrated_rule", calibrated)):
            history[f"batches/miou_{name}"] = [(k, v + above) for k, v in history["batches/miou"]]
    item = found(store)["decision-rule-lacks-calibration"]
    assert item.verdict == verdict


def test_one_seed_decides_nothing(store):
    add_papers(store)
    for claim, item in found(store).items():
        for evidence in item.evidence:
            assert evidence.outcome.verdict in ("undecided", "not yet run"), claim
            assert "n = 1 decides nothing" in evidence.remark


def test_the_test_set_is_decided_by_runs_of_its_own_profile(store):
    add_papers(store)
    item = found(store)["lovasz-wins-on-the-test-set"]
    assert item.verdict == "not yet run"
    assert "run voc-multiclass --profile trainval, then lovasz-repro runs record" in item.command
    send(store, x_loss=0.7644, x_loss_equibatch=0.7805, lovasz_equibatch_30k=0.79)
    item = found(store)["lovasz-wins-on-the-test-set"]
    assert item.verdict == "holds"
    assert [e.mean for e in effects(item)] == pytest.approx([79 - 76.44, 79 - 78.05])
    send(store, x_loss_equibatch=0.795)
    assert found(store)["lovasz-wins-on-the-test-set"].verdict == "does not hold"


@pytest.mark.parametrize(
    ("ours", "theirs", "gain", "verdict"),
    [
        # the first half of (0, 10, ..., 40) is 10 and 20; the score before training counts nowhere
        ((0.1, 0.40, 0.50, 0.6, 0.70), (0.1, 0.40, 0.50, 0.6, 0.65), 5.0, "holds"),
        ((0.9, 0.50, 0.60, 0.6, 0.70), (0.1, 0.40, 0.50, 0.6, 0.65), -5.0, "does not hold"),
        ((0.1, 0.45, 0.55, 0.9, 0.70), (0.1, 0.40, 0.50, 0.1, 0.65), 0.0, None),
    ],
)
def test_a_gain_is_late_where_the_end_exceeds_the_first_half(store, ours, theirs, gain, verdict):
    with_history(store, "lovasz", *ours)
    with_history(store, "x-loss", *theirs)
    item = found(store)["gain-comes-late"]
    (effect,) = effects(item)
    assert effect.mean == pytest.approx(gain, abs=1e-9)
    assert verdict in (None, item.verdict)
    assert effect.label == f"lovasz − x-loss: {SCORE}, rise from the first half to the end"


def test_equibatch_is_judged_on_the_first_half(store):
    with_history(store, "lovasz-equibatch", 0.9, 0.42, 0.54, 0.6, 0.70)
    with_history(store, "lovasz", 0.1, 0.40, 0.50, 0.9, 0.99)
    item = found(store)["equibatch-facilitates-convergence"]
    (effect,) = effects(item)
    assert (effect.mean, item.verdict) == (pytest.approx(3.0), "holds")
    assert effect.label.endswith("first half of training")


def test_a_training_with_one_validation_has_no_first_half(store):
    with_history(store, "lovasz-equibatch", 0.1, 0.7)
    with_history(store, "lovasz", 0.1, 0.6)
    with_history(store, "x-loss", 0.1, 0.5)
    items = found(store)
    for name in ("equibatch-facilitates-convergence", "gain-comes-late"):
        assert (items[name].verdict, items[name].evidence) == ("not yet run", ())


def test_features_decide_nothing(store):
    add_features(store, sizes=(10,))
    items = found(store)
    for claim in OURS:
        item = items[claim.id]
        assert item.verdict == "not yet run"
        for evidence in item.evidence:
            assert not evidence.decides
            assert "no photographs" in evidence.heading
            assert evidence.data == "evidence drawn from the real masks (Pascal VOC 2012)"


def test_variants_are_described_and_are_those_of_the_experiment():
    known = load_claims().experiments["voc-multiclass"]
    variants = set(read_yaml(experiments_folder() / "voc-multiclass.yaml")["variants"])
    assert set(known.variants) == variants - {"basis"}
    profiles = load_experiment("voc-multiclass").profiles
    for claim in OURS:
        if claim.command:
            profile = claim.command.split(",")[0].rsplit(" ", 1)[1]
            only = profiles[profile].only
            assert {operand.variant for operand in claim.rule.operands()} <= set(only)
            assert profiles[profile].scale == "paper"


def test_scores_that_are_no_numbers_decide_nothing(store):
    with_history(store, "lovasz", 0.1, math.nan, 0.5, 0.6, 0.7)
    with_history(store, "x-loss", 0.1, 0.4, 0.5, 0.6, 0.65)
    assert found(store)["gain-comes-late"].verdict == "not yet run"
