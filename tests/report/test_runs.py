"""Which runs stand together."""

import math

import pytest

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
