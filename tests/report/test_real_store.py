"""The whole report from the real store: what is logged is what is reported."""

import time

import pytest

from lovasz_repro.report.claims import evaluate_claims
from lovasz_repro.report.figures import write_figures
from lovasz_repro.report.runs import source
from lovasz_repro.report.tables import TABLES
from tests.report_files import write_tables

store_module = pytest.importorskip("lovasz_repro.store")


def test_report_from_the_real_store(make_store, tmp_path):
    store = make_store()
    for variant, score in (("lovasz-softmax", 0.6), ("weighted-cross-entropy", 0.5)):
        for seed in (0, 1):
            log_run(store, variant, seed, score + 0.01 * seed)

    row = next(r for r in TABLES["camvid-enet"](store).blocks[0].rows if r.key == "lovasz-softmax")
    val, test, _, seeds = row.cells
    assert (val.value, test.value, seeds.value) == (pytest.approx(62.5), pytest.approx(60.5), 2)
    assert [s.seed for s in test.sources] == ["0", "1"]
    assert {s.config_hash for s in test.sources} == {"c0-lovasz-softmax", "c1-lovasz-softmax"}

    verdicts = {item.claim.id: item for item in evaluate_claims(store)}
    (evidence,) = verdicts["enet-gains-class-and-category-iou"].evidence
    assert (evidence.outcome.verdict, evidence.decides) == ("holds", False)
    assert evidence.outcome.effects[0].mean == pytest.approx(10.0)

    assert len(write_tables(store, tmp_path / "report")) == 4 * len(TABLES)
    assert len(write_figures(store, tmp_path / "report", ["camvid-enet"])) == 4


def test_an_empty_store_is_reported_without_making_one(tmp_path):
    store = store_module.Store(tmp_path / "results")
    write_tables(store, tmp_path / "report")
    assert {item.verdict for item in evaluate_claims(store)} == {
        "not yet run", "tested", "as written", "no rule",
    }  # fmt: skip
    assert not (tmp_path / "results").exists()


def log_run(store, variant, seed, test):
    """A finished run as the pipeline stores it."""
    tags = {"variant": variant, "seed": str(seed), "scale": "demo", "profile": "demo"}
    tags |= {"device": "CPU test (1 cores)", "git_commit": "c0ffee", "data_fingerprint": "d4ta"}
    tags |= {"config_hash": f"c{seed}-{variant}", "experiment": "camvid-enet"}
    params = {"training.batch_size": "10", "training.iterations": "20", "seed": str(seed)}
    params |= {"loss.terms": variant, "data.size": "[176, 240]"}
    name = f"{variant}-b10-s{seed}"
    run_id = store.open_child("camvid-enet", None, name, f"id{seed}{variant}", params, tags)
    now = round(1000 * time.time())
    values = [("val/dataset_miou", 0.3, 0), ("val/dataset_miou", test + 0.02, 10)]
    values += [("val/dataset_miou", test - 0.1, 20), ("test/dataset_miou", test, 20)]
    values += [("test/image_miou", test, 20), ("best/iteration", 10.0, 20)]
    store.log(run_id, [store_module.Point(k, v, step, now) for k, v, step in values])
    store.close(run_id, "FINISHED")
    assert source(next(r for r in store.runs() if r.run_id == run_id)).git_commit == "c0ffee"
