"""Claims: the file is sound, and every kind of rule reaches every verdict on runs made for it."""

import ast
import io
import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from scipy.stats import rankdata

from lovasz_repro.config.read import read_yaml
from lovasz_repro.config.schema import experiments_folder
from lovasz_repro.errors import UserError
from lovasz_repro.metrics import batch_miou, image_iou
from lovasz_repro.report.claims import Effect, Interval, decide, evaluate_claims, judge
from lovasz_repro.report.claims_render import (
    changed,
    effect_size,
    print_claim,
    print_overview,
    published_text,
    statements,
    to_json,
    to_markdown,
)
from lovasz_repro.report.claims_schema import Claim, ClaimsFile, Recipe, load_claims
from lovasz_repro.report.published import printed_numbers, published_tables
from lovasz_repro.report.runs import bends_together, cohorts, shipped

ROOT = Path(__file__).resolve().parents[2]
A, B = "lovasz-softmax", "weighted-cross-entropy"
SCORE = "test/dataset_miou"


def rule(**content):
    """A rule as it would stand in the file."""
    claim = {"id": "c", "statement": "s", "place": "p", "experiment": "e"}
    names = {"command": "c", "variants": {A: "", B: ""}}
    names["metrics"] = {SCORE: "", "val/dataset_miou": "", "val/batch_miou": "", "x": "", "y": ""}
    content = {"experiments": {"e": names}, "claims": [claim | {"rule": content}]}
    return ClaimsFile.model_validate_json(json.dumps(content)).claims[0].rule


def compare(kind, **more):
    return rule(kind=kind, metric=SCORE, compare=[{"of": A, "over": B}], **more)


def decided(store, wanted, axes=()):
    (cohort,) = cohorts(store, "camvid-enet", axes)
    return decide(store, cohort, wanted)


def pairs(store, *differences):
    """Runs of A and B for each seed, with the given differences in points."""
    for seed, difference in enumerate(differences):
        base = 0.4 + 0.1 * seed  # seeds differ by far more than the variants do
        store.add(variant=B, seed=seed, metrics={SCORE: base})
        store.add(variant=A, seed=seed, metrics={SCORE: base + difference / 100})


# -- judging a mean ----------------------------------------------------------------------------


ABOVE, BETWEEN = Interval(low=0.0), Interval(-0.5, 0.5)


@pytest.mark.parametrize(
    ("asked", "values", "verdict"),
    [
        # From a table of Student's t: 12.706 and 4.303 standard errors of two and of three numbers.
        (ABOVE, [1.5, 2.5, 3.5], "holds"),  # mean 2.5, interval +- 2.484
        (ABOVE, [1.48, 2.48, 3.48], "undecided"),
        (ABOVE, [-1.5, -2.5, -3.5], "does not hold"),
        (ABOVE, [6.36, 7.36], "holds"),  # mean 6.86, interval +- 6.353
        (ABOVE, [5.8, 6.8], "undecided"),
        (ABOVE, [0.0, 1.0] * 10, "holds"),  # mean 0.5, interval +- 2.093 * 0.115
        (ABOVE, [9.9], "undecided"),  # one number decides nothing, however large
        (ABOVE, [-9.9], "undecided"),
        (ABOVE, [0.0, 0.0], "undecided"),
        (BETWEEN, [0.03, -0.03], "holds"),  # mean 0, interval +- 0.381
        (BETWEEN, [0.4, 0.5, 0.6], "undecided"),  # mean 0.5 = the bound
        (BETWEEN, [0.9, 1.0, 1.1], "does not hold"),
        (BETWEEN, [-0.9, -1.0, -1.1], "does not hold"),
        (BETWEEN, [-3.0, 3.0], "undecided"),  # mean inside, far too much spread
    ],
)
def test_a_mean_is_judged_by_its_confidence_interval(asked, values, verdict):
    assert judge(values, asked) == verdict


# -- kinds of rules ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "more", "differences", "verdict"),
    [
        ("greater", {}, (1.0, 1.2, 1.1), "holds"),
        ("greater", {}, (-1.0, -1.2, -1.1), "does not hold"),
        ("greater", {}, (1.0, -0.9, 0.3), "undecided"),
        ("less", {}, (-1.0, -1.1), "holds"),
        ("less", {}, (1.0, 1.1), "does not hold"),
        ("less", {}, (1.0, -1.0), "undecided"),
        ("no_greater", {"tolerance": 0.005, "because": "b"}, (0.1, 0.2, -4.0), "undecided"),
        ("no_greater", {"tolerance": 0.005, "because": "b"}, (-3.0, -3.2), "holds"),
        ("no_greater", {"tolerance": 0.005, "because": "b"}, (0.1, 0.12), "holds"),
        ("no_greater", {"tolerance": 0.005, "because": "b"}, (0.95, 1.0), "does not hold"),
        ("within", {"tolerance": 0.005, "because": "b"}, (0.03, -0.03), "holds"),
        ("within", {"tolerance": 0.005, "because": "b"}, (-3.0, -3.2), "does not hold"),
        ("within", {"tolerance": 0.005, "because": "b"}, (3.0, 3.2), "does not hold"),
        ("within", {"tolerance": 0.005, "because": "b"}, (0.0, 1.0), "undecided"),
    ],
)
def test_differences(store, kind, more, differences, verdict):
    pairs(store, *differences)
    assert decided(store, compare(kind, **more)).verdict == verdict


def test_effect_is_the_paired_difference_in_points(store):
    pairs(store, 1.0, 2.0, 3.0)
    (effect,) = decided(store, compare("greater")).effects
    assert effect.mean == pytest.approx(2.0)
    assert effect.spread == pytest.approx(1.0)  # unpaired it would be above 10
    assert (effect.n, effect.unit, len(effect.sources)) == (3, "points", 6)


def test_only_common_seeds_are_paired(store):
    pairs(store, 1.0)
    store.add(variant=A, seed=7, metrics={SCORE: 0.9})
    (effect,) = decided(store, compare("greater")).effects
    assert effect.n == 1


def test_without_a_common_seed_nothing_is_decided(store):
    store.add(variant=A, seed=0, metrics={SCORE: 0.9})
    store.add(variant=B, seed=1, metrics={SCORE: 0.5})
    outcome = decided(store, compare("greater"))
    assert outcome.verdict == "not yet run"
    assert outcome.missing == (f"{A} and {B} with a common seed",)


def test_a_variant_without_runs_is_not_yet_run(store):
    store.add(variant=A, metrics={SCORE: 0.9})
    outcome = decided(store, compare("greater"))
    assert (outcome.verdict, outcome.missing) == ("not yet run", (f"{SCORE} of {B}",))


def test_a_score_that_is_no_number_does_not_count(store):
    pairs(store, 1.0)
    store.add(variant=A, seed=1, metrics={SCORE: float("nan")})
    store.add(variant=B, seed=1, metrics={SCORE: 0.5})
    assert decided(store, compare("greater")).effects[0].n == 1


def test_one_difference_against_the_claim_is_enough(store):
    for seed in (0, 1):
        noise = 0.001 * seed
        store.add(variant=A, seed=seed, metrics={"x": 0.9 + noise, "y": 0.1})
        store.add(variant=B, seed=seed, metrics={"x": 0.5, "y": 0.4 + noise})
    both = rule(kind="greater", metrics=["x", "y"], compare=[{"of": A, "over": B}])
    assert decided(store, both).verdict == "does not hold"
    first = rule(kind="greater", metrics=["x"], compare=[{"of": A, "over": B}])
    assert decided(store, first).verdict == "holds"


def test_moments_of_a_run(store):
    for seed in (0, 1):
        curve = [(0, 0.3), (50, 0.5 + seed / 100), (100, 0.2)]
        store.add(
            variant=A,
            seed=seed,
            history={"val/dataset_miou": curve},
            metrics={"best/iteration": 50.0},
        )
    for first, second, mean in (("best", "start", 20.5), ("last", "start", -10.0)):
        sides = {"of": {"variant": A, "at": first}, "over": {"variant": A, "at": second}}
        wanted = rule(kind="greater", metric="val/dataset_miou", compare=[sides])
        assert decided(store, wanted).effects[0].mean == pytest.approx(mean)


def test_steps_are_samples(store):
    x = [(0, 0.5), (1, 0.6), (2, 0.7)]
    y = [(0, 0.4), (1, 0.5), (2, 0.6), (3, 0.0)]
    store.add(variant=A, history={"x": x, "y": y})
    sides = {"of": {"variant": A, "metric": "x"}, "over": {"variant": A, "metric": "y"}}
    outcome = decided(store, rule(kind="greater", samples="steps", compare=[sides]))
    assert outcome.effects[0].n == 3
    assert outcome.effects[0].mean == pytest.approx(10.0)


def test_pairs_beside_the_seed(store):
    for category, difference in (("cat", 0.1), ("dog", 0.3)):
        params = {"data.category": category}
        store.add(variant=A, metrics={SCORE: 0.5 + difference}, params=params)
        store.add(variant=B, metrics={SCORE: 0.5}, params=params)
    (cohort,) = cohorts(store, "camvid-enet", ["data.category"])
    (effect,) = decide(store, cohort, compare("greater"), ["data.category"]).effects
    assert (effect.n, effect.mean) == (2, pytest.approx(20.0))


def test_seeds_of_a_category_count_once(store):
    """Categories are what differs; with one category, seeds are."""
    for category, differences in (("cat", (0.1, 0.2)), ("dog", (0.3, 0.6))):
        params = {"data.category": category}
        for seed, difference in enumerate(differences):
            store.add(variant=A, seed=seed, metrics={SCORE: 0.2 + difference}, params=params)
            store.add(variant=B, seed=seed, metrics={SCORE: 0.2}, params=params)
    (cohort,) = cohorts(store, "camvid-enet", ["data.category"])
    (effect,) = decide(store, cohort, compare("greater"), ["data.category"]).effects
    assert (effect.n, effect.mean) == (2, pytest.approx(30.0))
    assert effect.spread == pytest.approx(30 / 2**0.5)  # of 15 and 45
    cats = replace(cohort, runs=tuple(r for r in cohort.runs if r.params["data.category"] == "cat"))
    (effect,) = decide(store, cats, compare("greater"), ["data.category"]).effects
    assert (effect.n, effect.mean) == (2, pytest.approx(15.0))


def test_where_narrows_runs(store):
    pairs(store, 1.0, 1.1)
    wanted = compare("greater", where={"training.batch_size": 10})
    assert decided(store, wanted).verdict == "holds"
    wanted = compare("greater", where={"training.batch_size": 20})
    assert decided(store, wanted).verdict == "not yet run"


def test_gains_of_small_objects_are_compared_with_those_of_large_ones(store):
    """Each gain is of one seed: 5 + seed / 5 points of small objects, 2 points of large ones."""
    for seed in (0, 1):
        store.add(variant=B, seed=seed, metrics={"x": 0.3 + seed / 10, "y": 0.6})
        gained = {"x": 0.3 + seed / 10 + (5 + seed / 5) / 100, "y": 0.62}
        store.add(variant=A, seed=seed, metrics=gained)
    sides = {
        side: {"variant": A, "above": B, "metric": m} for side, m in (("of", "x"), ("over", "y"))
    }
    outcome = decided(store, rule(kind="greater", compare=[sides]))
    (effect,) = outcome.effects
    assert (outcome.verdict, effect.mean) == ("holds", pytest.approx(3.1))
    assert B in effect.label
    store.stored[:] = [run for run in store.stored if run.tags["variant"] == A]
    outcome = decided(store, rule(kind="greater", compare=[sides]))
    assert outcome.missing == (f"x of {A} over {B}",)


def test_counts_are_no_points(store):
    for seed in (0, 1):
        store.add(variant=A, seed=seed, metrics={"val/missed_classes": 1.5 + seed / 10})
        store.add(variant=B, seed=seed, metrics={"val/missed_classes": 1.0})
    wanted = compare("greater").model_copy(update={"metric": "val/missed_classes"})
    (effect,) = decided(store, wanted).effects
    assert (effect.mean, effect.unit) == (pytest.approx(0.55), "classes an image")


def only_x_below():
    return rule(
        kind="only_below", samples="steps", only="x", others=["y"], tolerance=0.02, because="b"
    )


@pytest.mark.parametrize(
    ("x", "y", "verdict"),
    [
        ((0.01, 0.012, 0.008), (0.1, 0.12, 0.11), "holds"),
        ((0.1, 0.12, 0.11), (0.1, 0.12, 0.11), "does not hold"),
        ((0.01, 0.012, 0.008), (0.011, 0.01, 0.012), "does not hold"),
        ((0.0, 0.0, 0.05), (0.1, 0.12, 0.11), "undecided"),
    ],
)
def test_only_below(store, x, y, verdict):
    store.add(variant=A, history={"x": list(enumerate(x)), "y": list(enumerate(y))})
    assert decided(store, only_x_below()).verdict == verdict


def test_only_below_without_a_metric_is_not_yet_run(store):
    store.add(variant=A, history={"x": [(0, 0.1)]})
    outcome = decided(store, only_x_below())
    assert (outcome.verdict, outcome.missing) == ("not yet run", ("y",))


@pytest.mark.parametrize(
    ("scores", "verdict", "slope"),
    [
        ({4: (0.5, 0.6), 8: (0.524, 0.626), 16: (0.548, 0.652)}, "holds", 2.5),
        ({4: (0.5, 0.6), 16: (0.452, 0.548)}, "does not hold", -2.5),
        ({4: (0.5, 0.6), 8: (0.52, 0.58)}, "undecided", 0.0),
    ],
)
def test_rises_with_batch_size(store, scores, verdict, slope):
    for batch, values in scores.items():
        for seed, value in enumerate(values):
            store.add(variant=A, seed=seed, batch=batch, metrics={SCORE: value})
    wanted = rule(kind="rises_with", variant=A, metric=SCORE, parameter="training.batch_size")
    outcome = decided(store, wanted)
    assert outcome.verdict == verdict
    assert outcome.effects[0].mean == pytest.approx(slope)
    assert outcome.effects[0].n == 2


def test_a_single_batch_size_has_no_slope(store):
    store.add(variant=A, metrics={SCORE: 0.5})
    wanted = rule(kind="rises_with", variant=A, metric=SCORE, parameter="training.batch_size")
    assert decided(store, wanted).verdict == "not yet run"


def correlated():
    return rule(kind="correlated", variant=A, metrics=["x", "y"], at_least=0.5, because="b")


TRENDS = {
    "none": lambda t: 0 * t,
    "line": lambda t: t,
    "root": np.sqrt,
    "logarithm": lambda t: np.log(1 + 30 * t) / np.log(31),
    "levels off": lambda t: 1 - np.exp(-3 * t),
    "levels off soon": lambda t: 1 - np.exp(-10 * t),
}
TRIALS = 200


def passes(store, trend, shared, *, validations=20, seeds=2):
    """In how many trials two measures of noise 1 point pass the rule: both follow a trend of 40
    points from a low start, and ``shared`` of their noise (an amplitude) is common to both."""
    draw = np.random.default_rng(3).normal
    t = np.arange(1, validations + 1) / validations
    runs = [store.add(variant=A, seed=seed) for seed in range(seeds)]
    (cohort,) = cohorts(store, "camvid-enet")
    verdicts = []
    for _ in range(TRIALS):
        for run in runs:
            common = shared * draw(size=validations)
            own = math.sqrt(1 - shared**2) * draw(size=(2, validations))
            curves = 0.3 + 0.4 * TRENDS[trend](t) + (common + own) / 100
            x, y = ([0.02, *curve.tolist()] for curve in curves)
            store.histories[run.run_id] = {"x": list(enumerate(x)), "y": list(enumerate(y))}
        verdicts.append(decide(store, cohort, correlated()).verdict)
    return verdicts.count("holds")


@pytest.mark.parametrize("trend", TRENDS)
def test_common_start_and_trend_are_no_correlation(store, trend):
    assert passes(store, trend, 0.0) <= TRIALS // 100


@pytest.mark.parametrize("validations", [10, 40])
def test_independent_series_fail_however_many_points(store, validations):
    assert passes(store, "levels off", 0.0, validations=validations) <= TRIALS // 100


@pytest.mark.parametrize("trend", TRENDS)
def test_series_that_share_their_noise_are_correlated(store, trend):
    assert passes(store, trend, 0.98) >= 0.9 * TRIALS


def test_opposite_series_contradict_the_claim(store):
    rises = np.random.default_rng(0).normal(size=(2, 30))
    for seed, x in enumerate(rises.tolist()):
        history = {"x": list(enumerate(x)), "y": [(k, -v) for k, v in enumerate(x)]}
        store.add(variant=A, seed=seed, history=history)
    outcome = decided(store, correlated())
    assert outcome.verdict == "does not hold"
    assert outcome.effects[0].mean == pytest.approx(-1.0)


def test_few_validations_leave_a_correlation_undecided(store):
    """Nine after the one before training, which agree in everything, of two seeds."""
    curve = [(k, math.sin(k * k)) for k in range(10)]
    for seed in (0, 1):
        store.add(variant=A, seed=seed, history={"x": curve, "y": curve})
    outcome = decided(store, correlated())
    assert (outcome.verdict, outcome.effects[0].mean) == ("undecided", pytest.approx(1.0))


def test_bends_by_hand():
    one = [0, 1, 3, 2, 5, 5, 9, 4, 4, 8]
    other = [1, 0, 4, 4, 4, 7, 8, 8, 3, 3]
    ranks = [rankdata(np.diff(x, 2)) for x in (one, other)]
    expected = np.corrcoef(*ranks)[0, 1]
    assert bends_together(one, other) == pytest.approx(expected)


@pytest.mark.parametrize("curve", [lambda k: 0.5, lambda k: 0.25 * k])
def test_curves_without_bends_have_no_correlation(store, curve):
    wiggles = [(k, math.sin(k * k)) for k in range(20)]
    store.add(variant=A, history={"x": [(k, curve(k)) for k in range(20)], "y": wiggles})
    assert decided(store, correlated()).verdict == "not yet run"


# -- claims over a store -----------------------------------------------------------------------


def by_id(store):
    return {item.claim.id: item for item in evaluate_claims(store)}


def cityscapes(store, scale, start, best, seeds=(0, 1, 2)):
    """Scores of the server, and the same on the validation images."""
    for seed in seeds:
        shift = seed / 1000
        history = {
            "val/dataset_miou": [(0, start), (9, best + shift)],
            "val/category_iou": [(0, start), (9, best + shift)],
        }
        scores = {"dataset_miou": best + shift, "category_iou": best + shift}
        metrics = {f"server/{name}": score for name, score in scores.items()}
        metrics |= {f"initial/server/{name}": start for name in scores} | {"best/iteration": 9}
        store.add("cityscapes-enet", A, seed, scale=scale, history=history, metrics=metrics)


def test_nothing_is_run_yet(store):
    for item in evaluate_claims(store):
        expected = "not yet run" if item.claim.rule else item.verdict
        assert (item.verdict, item.evidence) == (expected, ())
        assert item.command.startswith("lovasz-repro " if item.claim.rule else "")


def test_paper_scale_decides(store):
    cityscapes(store, "paper", 0.58, 0.63)
    item = by_id(store)["enet-gains-class-and-category-iou"]
    assert (item.verdict, item.command) == ("holds", "")
    assert item.evidence[0].decides
    assert item.evidence[0].outcome.effects[0].mean == pytest.approx(5.1)


@pytest.mark.parametrize("scale", ["reduced", "demo"])
def test_other_scales_decide_nothing(store, scale):
    cityscapes(store, scale, 0.58, 0.63)
    item = by_id(store)["enet-gains-class-and-category-iou"]
    assert item.verdict == "not yet run"
    assert item.command.startswith("lovasz-repro run cityscapes-enet")
    server, validation = item.evidence
    assert (server.scale, server.decides, server.outcome.verdict) == (scale, False, "holds")
    assert (validation.decides, validation.outcome.verdict) == (False, "holds")


def test_scales_are_never_mixed(store):
    cityscapes(store, "paper", 0.58, 0.63)
    cityscapes(store, "demo", 0.58, 0.40)
    item = by_id(store)["enet-gains-class-and-category-iou"]
    assert item.verdict == "holds"
    assert [(e.scale, e.outcome.verdict) for e in item.evidence if not e.note] == [
        ("paper", "holds"),
        ("demo", "does not hold"),
    ]


def test_camvid_never_decides_even_at_paper_scale(add_run, store):
    for seed in (0, 1):
        add_run(A, seed, 0.6, scale="paper")
        add_run(B, seed, 0.5 + seed / 100, scale="paper")
    item = by_id(store)["enet-gains-class-and-category-iou"]
    assert item.verdict == "not yet run"
    (evidence,) = item.evidence
    assert (evidence.data, evidence.decides, evidence.outcome.verdict) == ("CamVid", False, "holds")


def test_camvid_as_cityscapes_is_evidence_and_decides_nothing(store):
    """Ten points between the losses, two per doubling of the batch, 0.1 of equibatch."""
    scores = {
        (B, 10): 0.4,
        (A, 5): 0.48,
        (A, 10): 0.5,
        (A, 20): 0.52,
        (f"{A}-equibatch", 10): 0.501,
    }
    for (name, batch), seed in itertools.product(scores, (0, 1)):
        score = scores[name, batch]
        history = {"val/dataset_miou": [(0, 0.2), (9, score)]}
        metrics = {"best/iteration": 9.0, "test/dataset_miou": score, "test/category_iou": score}
        params = {"data.equibatch": str(name.endswith("equibatch"))}
        store.add("camvid-as-cityscapes", name, seed, batch=batch, scale="paper", history=history,
                  metrics=metrics, params=params)  # fmt: skip
    found = by_id(store)
    for claim, means in {
        "enet-gains-class-and-category-iou": [10.0, 10.0],
        "larger-batches-gain-more": [2.0],
        "equibatch-makes-no-difference-on-cityscapes": [0.1],
    }.items():
        (evidence,) = [e for e in found[claim].evidence if not e.outcome.missing]
        assert evidence.data == "CamVid in the layout of Cityscapes"
        assert (evidence.decides, evidence.outcome.verdict) == (False, "holds")
        assert [e.mean for e in evidence.outcome.effects] == pytest.approx(means)
        assert found[claim].verdict == "not yet run"


def test_one_seed_decides_nothing(store):
    cityscapes(store, "paper", 0.58, 0.63, seeds=(0,))
    item = by_id(store)["enet-gains-class-and-category-iou"]
    assert item.verdict == "undecided"
    assert item.evidence[0].remark == "n = 1 decides nothing"


def test_half_of_the_runs_decide_nothing_and_are_shown(store):
    for loss, iou in (("lovasz-hinge", 0.8), ("hinge", 0.7)):
        store.add("voc-binary", loss, batch=1, scale="paper", metrics={"val/image_iou": iou},
                  params={"data.category": "cat"})  # fmt: skip
    item = by_id(store)["lovasz-hinge-wins-image-iou"]
    assert item.verdict == "not yet run"
    lacks = "lacks val/image_iou of cross-entropy, basis/image_iou of lovasz-hinge"
    assert item.evidence[0].remark == f"n = 1 decides nothing; {lacks}"


def test_the_larger_sample_decides(store):
    def search(seeds, excess, setting):
        names = ("lovasz_hinge", "hinge", "cross_entropy", "soft_iou")
        history = {
            f"excess/{name}": [(s, excess if i == 0 else 0.1) for s in range(seeds)]
            for i, name in enumerate(names)
        }
        params = {"seeds": str(seeds), "circles.images": setting}
        store.add("synthetic", "", "0", batch=None, scale="paper", history=history, params=params)

    search(100, 0.01, "10")
    search(3, 0.09, "11")
    item = by_id(store)["lovasz-hinge-captures-minimum"]
    assert item.verdict == "holds"
    assert [e.outcome.verdict for e in item.evidence] == ["holds", "does not hold"]


# -- the file ----------------------------------------------------------------------------------


def parts_of(claim):
    """The rule that decides a claim, where one does, and those beside it."""
    return [*([claim] if claim.rule else []), *claim.also]


def test_every_claim_is_complete_and_its_names_are_described():
    known = load_claims()
    assert len(known.claims) >= 110
    for claim in known.claims:
        assert claim.statement.endswith("."), claim.id
        assert re.match(r"Sec\. \d", claim.place), claim.id
        assert not claim.undecidable or len(claim.undecidable) > 30, claim.id
        for part in parts_of(claim):
            names = known.experiments[part.experiment]
            for operand in part.rule.operands():
                assert names.metrics[operand.metric]
                assert not operand.variant or names.variants[operand.variant]
    for names in known.experiments.values():
        assert names.command.startswith("lovasz-repro ")
        for meaning in (*names.variants.values(), *names.metrics.values()):
            assert "the same" not in meaning  # they are shown in any order, and one without another


@pytest.mark.parametrize(
    ("unit", "told"), [("points", "+0.30 points"), ("classes an image", "+0.30 classes an image")]
)
def test_a_difference_shows_its_sign(unit: str, told: str) -> None:
    effect = Effect("a − b", "holds", 0.3, None, 1, unit, Interval(0.0), ())
    assert effect_size(effect) == told


def test_tolerances_are_justified():
    for claim in load_claims().claims:
        for part in parts_of(claim):
            if hasattr(part.rule, "tolerance") or hasattr(part.rule, "at_least"):
                assert len(part.rule.because) > 30, claim.id


OF_TABLES = {
    "own-loss-wins", "lovasz-hinge-wins-image-iou", "present-classes-help",
    "lovasz-wins-every-regime", "lovasz-wins-on-the-test-set", "longer-training-helps-lovasz",
    "longer-training-does-not-help-cross-entropy", "equibatch-helps-cross-entropy",
    "equibatch-hardly-changes-lovasz", "crf-adds", "decision-rule-degrades",
    "decision-rule-lacks-calibration", "enet-gains-class-and-category-iou",
    "enet-instance-scores-do-not-gain", "cross-entropy-is-a-poor-indicator",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(OF_TABLES))
def test_printed_numbers_pass_the_claims_own_rule(store, name):
    """Twice the paper's numbers, as of two seeds: what the rule says of them has to hold."""
    known = load_claims()
    (claim,) = [claim for claim in known.claims if claim.id == name]
    printed = {operand: value for operand, (_, value) in printed_numbers(claim).items()}
    for variant, seed in itertools.product({operand.variant for operand in printed}, (0, 1)):
        metrics, history = {"best/iteration": 9.0}, {}
        for operand, value in printed.items():
            if operand.variant == variant and operand.at == "start":
                metrics[f"initial/{operand.metric}"] = value / 100
            elif operand.variant == variant:
                history[operand.metric] = [(0, value / 100), (9, value / 100)]
        store.add(claim.experiment, variant, seed, history=history, metrics=metrics)
    names = known.experiments[claim.experiment]
    (cohort,) = cohorts(store, claim.experiment)
    outcome = decide(store, cohort, claim.rule, names.pairs)
    assert outcome.effects
    assert {effect.verdict for effect in outcome.effects} == {"holds"}
    assert len(outcome.effects) >= len(set(printed)) / 2
    whole = set(claim.rule.operands()) <= set(printed)
    assert whole == (not outcome.missing)
    # of a mean over all classes and of calibrated probabilities the paper prints no number
    assert whole or name in ("present-classes-help", "decision-rule-lacks-calibration")


def test_printed_spreads_of_the_decision_rule_are_significant():
    """Means over 20 batches, as of independent ones; paired differences have smaller errors."""
    rows = published_tables()["decision-rule"].rows
    mean = {name: (row.values[0], row.spreads[0]) for name, row in rows.items()}
    for other in ("lovasz-softmax", "decision-rule"):
        (one, of_one), (two, of_two) = mean["cross-entropy"], mean[other]
        error = math.hypot(of_one, of_two) / math.sqrt(20)
        assert abs(one - two) > 2 * error, other


def test_every_claim_whose_rule_compares_printed_numbers_is_tried():
    compared = {
        claim.id
        for claim in load_claims().claims
        for pair in getattr(claim.rule, "differences", list)()
        if set(pair) <= set(printed_numbers(claim))
    }
    assert compared == OF_TABLES


def test_draws_that_all_seeds_share_are_not_drawn_anew_by_each(store):
    """Twenty seeds on the same three batches say no more of batches than one seed does."""
    gains = (0.03, 0.0, -0.02)
    for seed in range(20):
        noise = seed / 10000
        store.add(variant=A, seed=seed, history={"x": [(k, 0.5 + g) for k, g in enumerate(gains)]})
        store.add(variant=B, seed=seed, history={"x": [(k, 0.49 + noise) for k in range(3)]})
    wanted = rule(kind="greater", metric="x", samples="crossed", compare=[{"of": A, "over": B}])
    outcome = decided(store, wanted)
    of_batches, of_seeds = outcome.effects
    assert (of_batches.n, of_seeds.n) == (3, 20)
    assert of_batches.mean == pytest.approx(of_seeds.mean)
    assert {outcome.verdict, of_batches.verdict, of_seeds.verdict} == {"undecided"}


@pytest.mark.parametrize(("seeds", "verdict"), [(1, "undecided"), (2, "does not hold")])
def test_what_one_network_does_on_many_batches_decides_nothing(store, seeds, verdict):
    for seed in range(seeds):
        for name, level in ((A, 0.4), (B, 0.5 + seed / 1000)):
            history = {"x": [(k, level + k / 10000 * (name == A)) for k in range(20)]}
            store.add(variant=name, seed=seed, history=history)
    wanted = rule(kind="greater", metric="x", samples="crossed", compare=[{"of": A, "over": B}])
    outcome = decided(store, wanted)
    assert [effect.n for effect in outcome.effects] == [20, seeds]
    assert outcome.verdict == verdict


def test_a_tolerance_may_be_used_up_and_not_exceeded():
    """78.49 - 77.99 is half a point, and more than that in binary fractions."""
    difference = 0.7849 - 0.7799
    assert difference > 0.005
    asked = Interval(-0.005, 0.005, closed=True)
    assert judge([difference] * 2, asked) == "holds"
    assert judge([0.0051] * 2, asked) == "does not hold"
    assert judge([difference] * 2, Interval(high=0.005)) == "undecided"
    assert judge([0.1 + 0.2] * 2, Interval(low=0.3)) == "undecided"  # equal is not above


@pytest.mark.parametrize("name", ["camvid-enet", "cityscapes-enet", "camvid-as-cityscapes"])
def test_variants_are_those_of_the_experiment(name):
    path = experiments_folder() / f"{name}.yaml"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    assert set(load_claims().experiments[name].variants) == set(read_yaml(path)["variants"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "greatest"}, "greatest"),
        ({"metric": "test/typo"}, "has no metric test/typo"),
        ({"compare": [{"of": "typo", "over": B}]}, "has no variant typo"),
        ({"compare": []}, "at least 1"),
        ({"metric": None}, "has no metric"),
        ({"tolerance": 0.1}, "tolerance"),
        ({"kind": "within"}, "tolerance"),
        ({"compare": [{"of": {"variant": A, "above": "typo"}, "over": B}]}, "no variant typo"),
    ],
)
def test_mistakes_in_the_file_are_found(change, words):
    content = {"kind": "greater", "metric": SCORE, "compare": [{"of": A, "over": B}]}
    with pytest.raises(ValidationError, match=words):
        rule(**content | change)


def functions_of(file):
    """Names of the test functions of a file -> what decorates them."""
    tree = ast.parse((ROOT / file).read_text())
    return {
        node.name: [ast.unparse(decorator) for decorator in node.decorator_list]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


def test_tests_that_claims_name_exist_and_are_run():
    named = [test for claim in load_claims().claims for test in claim.tests]
    assert len(named) > 60
    for test in named:
        file, _, name = test.partition("::")
        marks = functions_of(file)[name]
        assert not [mark for mark in marks if re.search("skip|xfail", mark)], test


def test_recipes_are_followed():
    """Each entry against the resolved cells of its experiment, value by value."""
    recipes = [claim for claim in load_claims().claims if claim.recipe]
    assert len(recipes) > 20
    for claim in recipes:
        recipe = claim.recipe
        assert recipe.is_followed(), claim.id
        for cell in shipped(recipe.experiment).cells(
            recipe.profile, variants=recipe.variants or None, with_basis="basis" in recipe.variants
        ):
            for key, value in recipe.settings.items():
                found = cell
                for name in key.split("."):
                    found = found[name] if isinstance(found, dict) else getattr(found, name)
                wanted = tuple(value) if isinstance(found, tuple) else value
                assert found == wanted, (claim.id, cell.name, key)


def test_a_recipe_that_is_not_followed_differs():
    recipe = {"experiment": "cityscapes-enet", "settings": {"training.lr": 1.0}}
    assert not Recipe.model_validate(recipe).is_followed()
    unknown = {"experiment": "cityscapes-enet", "settings": {"training.rate": 2.5e-4}}
    assert not Recipe.model_validate(unknown).is_followed()
    for wrong in ({"experiment": "cityscapes"}, {"profile": "none"}, {"variants": ["none"]}):
        with pytest.raises(UserError, match=r"cityscapes\.yaml|none"):
            Recipe.model_validate(recipe | wrong).is_followed()


def test_a_claim_has_one_ground():
    content = {"id": "c", "statement": "s", "place": "p"}
    tested = {"tests": ["tests/test_metrics.py::test_nothing_valid"]}
    for more in ({}, {"undecidable": "why", "experiment": "e"}, tested | {"undecidable": "why"}):
        with pytest.raises(ValidationError, match="rule"):
            Claim.model_validate(content | more)
    assert Claim.model_validate(content | tested).tests
    assert Claim.model_validate(content | {"undecidable": "why"}).rule is None


def test_one_pixel_flips_an_image_and_hardly_moves_the_data_set():
    """What no run decides (Sec. 3.1): 100 images of 1,000 pixels, half of them of class 1."""
    labels = torch.zeros(100, 1000, 1, dtype=torch.int64)
    labels[50:] = 1
    wrong = labels.clone()
    wrong[0, 0] = 1
    scores = [image_iou(one, labels, num_classes=2)[0, 1].item() for one in (labels, wrong)]
    assert scores == [1.0, 0.0]
    assert batch_miou(labels, labels, num_classes=2).item() == 1.0
    assert batch_miou(wrong, labels, num_classes=2).item() > 0.9999


# -- how it is shown ---------------------------------------------------------------------------


def test_terminal_and_markdown_show_verdicts_effects_and_commands(store):
    cityscapes(store, "paper", 0.58, 0.63)
    verdicts = evaluate_claims(store)
    console = Console(width=160, record=True, file=io.StringIO())
    print_overview(verdicts, (), console)
    for item in verdicts:
        print_claim(item, console)
    for text in (console.export_text(), to_markdown(verdicts)):
        flat = " ".join(text.split())
        assert "+5.10 ± 0.10 points, n = 3, asked above 0" in flat
        assert "At paper scale: 1 holds, 0 do not hold, 0 undecided" in flat
        assert "lovasz-repro run voc-multiclass" in flat
        assert "ENet [21], Class IoU 58.29" in flat.replace("\\", "")


def test_every_statement_stands_in_one_table(store):
    cityscapes(store, "paper", 0.58, 0.63)
    cityscapes(store, "demo", 0.58, 0.40)
    lacking = {"val/dataset_miou": [(0, 0.5), (9, 0.6)]}  # no category_iou, so no verdict
    store.add("cityscapes-enet", A, scale="reduced", history=lacking)
    verdicts = evaluate_claims(store)
    head, _, *rows = statements(verdicts)
    assert len(rows) == len(verdicts)
    names = [name.strip() for name in head.strip("|").split("|")]
    cells = {item.claim.id: dict(zip(names, row.strip("|").split("|"), strict=True))
             for item, row in zip(verdicts, rows, strict=True)}  # fmt: skip
    hinge = cells["lovasz-hinge-of-one-prediction"]
    assert hinge["paper scale"].strip() == "**tested**"
    assert "test_one_prediction_is_the_hinge_loss" in hinge["evidence"].replace("\\", "")
    size = cells["enet-image-size"]
    assert size["paper scale"].strip() == "**as written**"
    assert "data.size=[512, 1024]" in size["evidence"].replace("\\", "")
    gain = {name: text.strip() for name, text in cells["enet-gains-class-and-category-iou"].items()}
    assert gain["in the paper"] == "Sec. 4.4, Table 4"
    assert gain["paper scale"] == "**holds**"
    assert (gain["reduced scale"], gain["demo scale"]) == ("", "2 do not hold")
    assert gain["evidence"] == "6 runs on Cityscapes"
    assert "lacks val/category" in to_markdown(verdicts)
    reason = cells["cityscapes-is-more-uniform"]
    assert (reason["paper scale"].strip(), "no training" in reason["evidence"]) == (
        "**no rule**",
        True,
    )


def test_json_leads_to_the_runs(store):
    cityscapes(store, "paper", 0.58, 0.63)
    content = {item["id"]: item for item in json.loads(to_json(evaluate_claims(store)))}
    item = content["enet-gains-class-and-category-iou"]
    effect = item["evidence"][0]["outcome"]["effects"][0]
    assert effect["mean"] == pytest.approx(5.1)
    assert [s["seed"] for s in effect["sources"]] == ["0", "1", "2"]
    assert item["published"]["fine-tuned, Class IoU"] == 63.06


def test_news_are_claims_whose_runs_say_something_else(store, tmp_path):
    before = tmp_path / "claims.json"
    assert changed(evaluate_claims(store), before) == set()  # without runs nothing is new
    cityscapes(store, "paper", 0.58, 0.63)
    verdicts = evaluate_claims(store)
    news = changed(verdicts, before)
    assert "enet-gains-class-and-category-iou" in news
    assert "own-loss-wins" not in news
    before.write_text(to_json(verdicts))
    assert changed(verdicts, before) == set()
    before.write_text('[{"no": 1}]')
    assert changed(verdicts, before) == news


def test_same_runs_same_bytes(camvid):
    one, other = evaluate_claims(camvid), evaluate_claims(camvid)
    assert (to_json(one), to_markdown(one)) == (to_json(other), to_markdown(other))


def test_many_published_numbers_are_left_to_their_table(store):
    found = by_id(store)
    assert published_text(found["lovasz-wins-every-regime"]) == "Sec. 4.3, Table 2"
    told = published_text(found["lovasz-wins-on-the-test-set"])
    assert told.startswith("Sec. 4.3, Table 2: Lovász + equibatch, 30K iterations, ")
    assert told.endswith("x-loss + equibatch, test, multi-scale + CRF 78.05")
