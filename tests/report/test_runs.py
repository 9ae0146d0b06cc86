"""Which runs stand together."""

import math

import pytest

from lovasz_repro.report.claims import evaluate_claims
from lovasz_repro.report.runs import (
    cohorts,
    command,
    frame,
    headings,
    mean_and_spread,
    natural,
    score_at,
    source,
    typed,
)
from lovasz_repro.report.style import variant_order
from lovasz_repro.report.tables import TABLES


def test_spread_is_the_sample_standard_deviation():
    mean, spread = mean_and_spread([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert mean == 5.0
    assert spread == pytest.approx(math.sqrt(32 / 7))


def test_one_value_has_no_spread():
    assert mean_and_spread([0.3]) == (0.3, None)


@pytest.mark.parametrize(
    "other",
    [
        {"scale": "demo"},
        {"profile": "large"},
        {"params": {"training.lr": "0.1"}},
        {"tags": {"data_fingerprint": "0ther"}},
    ],
    ids=["scale", "profile", "setting", "data"],
)
def test_runs_that_differ_are_not_one_cohort(store, other):
    store.add(seed=0)
    store.add(seed=1, **other)
    found = cohorts(store, "camvid-enet")
    assert [len(cohort.runs) for cohort in found] == [1, 1]
    assert len(set(headings(found))) == 2


def test_grid_does_not_separate_runs(store):
    for variant in ("lovasz-softmax", "sum"):
        for batch in (4, 8):
            for seed in (0, 1):
                store.add(variant=variant, batch=batch, seed=seed)
    (cohort,) = cohorts(store, "camvid-enet")
    assert cohort.batch_sizes == [4, 8]
    assert [run.tags["seed"] for run in cohort.select("sum", 8)] == ["0", "1"]
    assert len(cohort.of_batch_size(4).runs) == 4


def test_a_run_from_before_a_setting_stands_with_those_of_its_default(store):
    later = {"training.optimizer": "adam", "training.lr_multipliers": "[1.0, 10.0, 20.0]"}
    store.add(seed=0)
    store.add(seed=1, params=later | {"evaluation.crf": "None", "data.category": "None"})
    (cohort,) = cohorts(store, "camvid-enet")
    assert len(cohort.runs) == 2
    store.add(seed=2, params={"training.optimizer": "sgd"})
    store.add(seed=3, params={"evaluation.crf.iterations": "10"})
    apart = cohorts(store, "camvid-enet")
    assert [len(cohort.runs) for cohort in apart] == [2, 1, 1]
    told = headings(apart)
    assert "training.optimizer=adam" in told[0]
    assert not any("optimizer=unset" in heading for heading in told)


def test_an_axis_does_not_separate_runs(store):
    store.add(params={"training.lr": "0.1"})
    store.add(params={"training.lr": "0.2"})
    assert len(cohorts(store, "camvid-enet")) == 2
    (cohort,) = cohorts(store, "camvid-enet", ["training.lr"])
    assert len(cohort.runs) == 2


def test_the_newest_of_equal_runs_counts(store):
    store.add(seed=0)
    newest = store.add(seed=0)
    (cohort,) = cohorts(store, "camvid-enet")
    assert cohort.runs == (newest,)


def add_weighted(store, weights, **kwargs):
    params = {"loss.class_weights": weights, "loss.terms.cross_entropy": "1.0"}
    run = store.add("camvid-as-cityscapes", "weighted-cross-entropy", params=params, **kwargs)
    del run.params["loss.terms.lovasz_softmax"]
    return run


OTHER = "weighted-cross-entropy (loss.class_weights=enet)"


@pytest.mark.parametrize("order", [["enet", "enet-released"], ["enet-released", "enet"]])
def test_runs_of_a_variant_with_another_loss_stand_beside_those_of_the_plan(store, order):
    runs = {weights: add_weighted(store, weights) for weights in order}
    (cohort,) = cohorts(store, "camvid-as-cityscapes")
    assert cohort.select("weighted-cross-entropy") == [runs["enet-released"]]
    (other,) = cohort.select(OTHER)
    assert other.run_id == runs["enet"].run_id
    assert source(other).run_id == source(runs["enet"]).run_id


def test_what_no_plan_names_is_told_apart_from_the_newest(store):
    old, new = (store.add(profile="mine", params={"loss.terms.sum": s}) for s in ("1.0", "2.0"))
    (cohort,) = cohorts(store, "camvid-enet")
    assert cohort.select("lovasz-softmax") == [new]
    assert [run.run_id for run in cohort.select("lovasz-softmax (loss.terms.sum=1.0)")] == [
        old.run_id
    ]


def test_a_variant_of_one_kind_keeps_its_name(store):
    """Also where it is not that of the plan, and where a run was made before a setting."""
    add_weighted(store, "enet", seed=0)
    add_weighted(store, "enet", seed=1).params["data.equibatch"] = "False"
    (cohort,) = cohorts(store, "camvid-as-cityscapes")
    assert cohort.variants == ["weighted-cross-entropy"]


def test_kinds_have_rows_and_titles_of_their_own(store):
    for weights, score in (("enet", 0.4), ("enet-released", 0.5)):
        add_weighted(store, weights, metrics={"test/dataset_miou": score})
    (block,) = TABLES["camvid-as-cityscapes"](store).blocks
    shown = {row.label: [c.value for c in row.cells if c and c.value] for row in block.rows}
    assert shown["weighted cross-entropy, batch size 10"] == [50.0]
    told = "weighted cross-entropy (loss.class_weights=enet), batch size 10"
    assert shown[told] == [40.0]
    assert variant_order({OTHER, "lovasz-softmax", "weighted-cross-entropy"}) == [
        "weighted-cross-entropy",
        OTHER,
        "lovasz-softmax",
    ]


def test_a_run_without_a_newer_score_has_a_dash(store):
    add_weighted(store, "enet", metrics={"val/dataset_miou": 0.4})
    add_weighted(store, "enet-released", metrics={"test/dataset_miou": 0.5})
    (block,) = TABLES["camvid-as-cityscapes"](store).blocks
    titles = [column.title for column in TABLES["camvid-as-cityscapes"](store).columns]
    (row,) = [row for row in block.rows if row.label.startswith("weighted cross-entropy (")]
    assert row.cells[titles.index("test Class IoU")] is None or (
        row.cells[titles.index("test Class IoU")].value is None
    )
    assert evaluate_claims(store)


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_unfinished_runs_do_not_count(store, status):
    store.add(status=status)
    assert cohorts(store, "camvid-enet") == []


def test_paper_scale_comes_first(store):
    for scale in ("demo", "paper", "reduced"):
        store.add(scale=scale)
    assert [c.scale for c in cohorts(store, "camvid-enet")] == ["paper", "reduced", "demo"]


def test_heading_names_size_and_device(store):
    store.add(tags={"device": "CPU Some Model @ 2.90GHz (2 cores)"})
    (heading,) = headings(cohorts(store, "camvid-enet"))
    assert heading == "reduced profile, 176×240, 600 iterations, CPU (2 cores)"


def test_commands():
    assert command("synthetic") == "lovasz-repro synthetic"
    assert command("camvid-enet") == "lovasz-repro run camvid-enet"
    assert command("camvid-enet", "demo") == "lovasz-repro run camvid-enet --profile demo"


def test_values_at_moments_of_a_run(store):
    curve = [(0, 0.1), (50, 0.5), (100, 0.4)]
    run = store.add(
        history={"val/dataset_miou": curve},
        metrics={"best/iteration": 50.0, "initial/test/dataset_miou": 0.2},
    )
    assert score_at(store, run, "val/dataset_miou", "best") == 0.5
    assert score_at(store, run, "val/dataset_miou", "start") == 0.1
    assert score_at(store, run, "test/dataset_miou", "start") == 0.2
    assert score_at(store, run, "test/image_miou", "start") is None
    assert score_at(store, store.add(), "val/dataset_miou", "best") is None


def test_source_says_what_is_not_known(store):
    run = store.add()
    del run.tags["git_commit"]
    assert source(run).git_commit == "unknown"
    assert source(run).data_fingerprint == "d4ta5e7f1234"


def test_natural_order():
    assert sorted(["s10", "s9", "s1"], key=natural) == ["s1", "s9", "s10"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -3,
        600,
        0.1,
        1e-05,
        1.5e300,
        "lovasz",
        "",
        "a, b",
        (176, 240),
        (0.5, 1.0),
    ],
)
def test_settings_are_read_as_the_values_they_were(value):
    text = str(list(value) if isinstance(value, tuple) else value)
    assert typed(text) == value
    assert type(typed(text)) is type(value)


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", '"a"', "{}", "[[1]]", "['a']", "01", "[" * 9999]
)
def test_what_is_no_setting_of_ours_stays_text(text):
    assert typed(text) == text


def test_a_run_is_a_row_and_a_setting_a_typed_column(store):
    store.add(params={"evaluation.crf": "None"}, metrics={"val/dataset_miou": 0.5}, batch=5)
    store.add("voc-binary", batch=None)
    table = frame(store.stored)
    assert table["run"].tolist() == store.stored
    assert table["data.size"].tolist() == [(176, 240)] * 2
    assert table["evaluation.crf"].isna().all()
    assert table["training.batch_size"][0] == 5
    assert table["val/dataset_miou"].mean() == 0.5  # of those that have it


def test_names_that_a_stranger_gave_hide_no_column_of_ours(store):
    names = {"run": 1.0, "scale": 2.0, "settings": 3.0, "variant": 4.0}
    store.add(metrics=names, params=dict.fromkeys([*names, "val/dataset_miou"], "7"))
    store.add(
        metrics=names | {"val/dataset_miou": 0.5}, params={"val/dataset_miou": "text"}, seed=1
    )
    assert frame(store.stored)["run"].tolist() == store.stored
    assert frame(store.stored[1:])["val/dataset_miou"].tolist() == [0.5]
    assert [c.scale for c in cohorts(store, "camvid-enet")] == ["reduced", "reduced"]
