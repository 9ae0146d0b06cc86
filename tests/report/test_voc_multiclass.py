"""Tables 2 and 3, and the tables of every set of multiclass VOC runs."""

import math
import statistics

import pytest

from lovasz_repro.data.classes import VOC
from lovasz_repro.report.layout import layout
from lovasz_repro.report.sets import MULTICLASS, named_sets, server_sets
from lovasz_repro.report.tables import TABLES
from tests.fake_multiclass import CRF, FEATURES, MULTI, PAPER, VARIANTS, add, add_features
from tests.fake_multiclass import add_papers as papers
from tests.report_files import assert_same_bytes, cells, write_tables

table_2, table_3, voc_multiclass, voc_multiclass_classes = (
    TABLES[name] for name in ("table-2", "table-3", "voc-multiclass", "voc-multiclass-classes")
)
RUN = "lovasz-repro run voc-multiclass"
TRAINVAL = f"{RUN} --profile trainval, then lovasz-repro runs record RUN --server-scores FILE"
SENT = ("x-loss", "x-loss-equibatch", "lovasz-equibatch-30k")
# the header of the paper's Table 3, and the class of Pascal VOC that each of its words means
SPELLED = {
    "airplane": "aeroplane", "cycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle",
    "bus": "bus", "car": "car", "cat": "cat", "chair": "chair", "cow": "cow",
    "d-table": "diningtable", "dog": "dog", "horse": "horse", "mbike": "motorbike",
    "person": "person", "plant": "pottedplant", "sheep": "sheep", "sofa": "sofa", "train": "train",
    "tv": "tvmonitor",
}  # fmt: skip


def values(table):
    return {c.value for b in table.blocks for r in b.rows for c in r.cells if c is not None}


def send(store, names=SENT, **kwargs):
    """Runs trained on the validation images too, with scores of the server."""
    for k, name in enumerate(names):
        scores = {f"server/iou/{c}": 0.5 + 0.01 * i + 0.001 * k for i, c in enumerate(VOC.names)}
        scores["server/dataset_miou"] = 0.76 + 0.01 * k
        given = {"split": "trainval_aug", "profile": "trainval", "metrics": scores} | kwargs
        add(store, name, **given)


# -- table 2 -----------------------------------------------------------------------------------


def test_table_2_has_every_regime_beside_the_papers_numbers(store):
    papers(store)
    rows = cells(table_2(store))
    assert list(rows) == list(PAPER[:6])
    for name, row in rows.items():
        single = 100 * VARIANTS[name]
        assert row["val-single"].value == pytest.approx(single)
        assert row["val-multi"].value == pytest.approx(single + 100 * MULTI)
        assert row["val-crf"].value == pytest.approx(single + 100 * CRF)
        assert (row["test-crf"].value, row["test-crf"].command) == (None, TRAINVAL)
        assert {source.name.split("-b10")[0] for source in row["val-crf"].sources} == {name}
    assert rows["lovasz"]["val-crf"].difference == pytest.approx(75.0 - 77.99)


def test_table_2_over_seeds(store):
    for seed in (0, 1, 2):
        papers(store, seed=seed)
    cell = cells(table_2(store))["lovasz"]["val-single"]
    scores = [73.0, 73.2, 73.4]
    assert (cell.value, cell.n) == (pytest.approx(statistics.mean(scores)), 3)
    assert cell.spread == pytest.approx(statistics.stdev(scores))


def test_the_test_column_is_of_runs_that_saw_the_validation_images(store):
    papers(store)
    add(store, "lovasz", 7, metrics={"server/dataset_miou": 0.99})  # a validation run was sent
    send(store)
    rows = cells(table_2(store))
    tested = {name: row["test-crf"].value for name, row in rows.items()}
    assert [tested[name] for name in SENT] == pytest.approx([76.0, 77.0, 78.0])
    assert tested["lovasz"] is None
    assert rows["x-loss"]["val-single"].value == pytest.approx(70.0)  # not the 90 they have seen
    told = table_2(store).notes
    assert any(note.startswith("Paper-scale runs on the test set") for note in told)
    assert "--profile trainval" in told[0]
    assert "runs record RUN" in told[0]


def test_trained_on_val_alone_fills_no_val_column(store):
    metrics = {"val/dataset_miou": 0.95, "val/crf/dataset_miou": 0.95}
    add(store, "x-loss", split="trainval_aug", profile="trainval", metrics=metrics)
    assert values(table_2(store)) == {None}
    assert named_sets(store, MULTICLASS) == []
    assert len(server_sets(store)) == 1
    assert len(voc_multiclass(store).blocks[0].rows) == 8
    assert values(voc_multiclass(store)) == {None}


@pytest.mark.parametrize(
    "other",
    [
        {"scale": "reduced"},
        {"scale": "demo", "folder": "voc-demo"},
        {"folder": "voc-demo"},
        {"images": "features"},
        {"batch": 5},
        {"status": "RUNNING"},
    ],
)
def test_other_runs_never_enter_the_papers_tables(store, other):
    papers(store, **other)
    send(store, **other)
    for build in (table_2, table_3):
        assert values(build(store)) == {None}
        assert any(TRAINVAL in note for note in layout(build(store)).notes)


def test_the_fullest_set_stands_in_table_2(store):
    papers(store, PAPER[:2], shift=0.1, params={"training.lr": "0.1"})
    papers(store, PAPER[:5], params={"training.lr": "0.5"})
    table = table_2(store)
    assert cells(table)["x-loss"]["val-single"].value == pytest.approx(70.0)
    assert "training.lr=0.5" in table.notes[-1]
    assert "1 more sets are not shown" in table.notes[-1]


def test_a_score_that_is_no_number_is_a_dash(store):
    papers(store, ["x-loss"], metrics={"val/crf/dataset_miou": math.nan})
    row = cells(table_2(store))["x-loss"]
    assert row["val-crf"].value is None
    assert row["val-multi"].value == pytest.approx(71.0)


# -- table 3 -----------------------------------------------------------------------------------


def test_table_3_reads_the_papers_spelling(store):
    send(store)
    rows = cells(table_3(store))
    assert list(rows) == list(SPELLED)
    for printed, meant in SPELLED.items():
        place = VOC.names.index(meant)
        found = [rows[printed][name].value for name in SENT]
        assert found == pytest.approx([50 + place, 50 + place + 0.1, 50 + place + 0.2]), printed
    assert rows["tv"]["x-loss"].difference == pytest.approx(70.0 - 71.26)


def test_the_best_of_each_class_is_bold_here_and_in_the_paper(store):
    send(store)
    lines = {line.label: line.cells for line in layout(table_3(store)).sections[0].lines}
    bold = {label: [i for i, c in enumerate(found) if c.bold] for label, found in lines.items()}
    assert bold["boat"] == [6, 7]  # the third variant: printed, here
    assert bold["train"] == [0, 7]  # printed: the first


# -- by scale ----------------------------------------------------------------------------------


def test_every_set_under_its_heading(store):
    add_features(store, sizes=(10, 20))
    papers(store, scale="demo", folder="voc-demo", base=200)
    papers(store)
    send(store)
    table = voc_multiclass(store)
    assert [block.heading.split(": ")[0] for block in table.blocks] == [
        "Pascal VOC 2012",
        "Evidence drawn from the real masks (Pascal VOC 2012)",
        "Evidence drawn from the real masks (Pascal VOC 2012)",
        "Drawn pictures in the layout of Pascal VOC",
    ]
    first, second, third, demo = (block.heading for block in table.blocks)
    assert "20000 and 30000 iterations, batch size 10" in first
    assert "no photographs" in second
    assert second.endswith("600 iterations, batch size 10")
    assert third.endswith("600 iterations, batch size 20")
    assert "200 and 300 iterations" in demo
    assert not table.compares
    assert [row.key for row in table.blocks[0].rows] == ["initial", *PAPER]
    assert {row.key for row in table.blocks[1].rows} == {"initial", *FEATURES}


def test_numbers_of_a_set(store):
    add(store, "lovasz", 0, scale="demo", folder="voc-demo")
    add(store, "lovasz", 1, scale="demo", folder="voc-demo")
    rows = cells(voc_multiclass(store))
    row = rows["lovasz"]
    assert row["val-single"].value == pytest.approx(73.1)
    assert row["val-single"].spread == pytest.approx(0.2 / math.sqrt(2))
    assert row["val-crf"].value == pytest.approx(75.1)
    assert row["image"].value == pytest.approx(83.1)
    assert row["batch"].value == pytest.approx(63.1)
    assert row["seeds"].value == 2
    before = rows["initial"]
    assert [before[k].value for k in ("val-single", "image", "batch")] == pytest.approx([3, 53, 13])
    assert [before[key] for key in ("val-multi", "val-crf", "seeds")] == [None, None, None]
    # planned by the profile and not there
    assert rows["x-loss"]["val-crf"].command == f"{RUN} --profile demo"


def test_features_have_no_multi_scale_and_no_crf(store):
    add_features(store, ["x-loss"], seeds=(0,), sizes=(10,))
    rows = cells(voc_multiclass(store))
    assert rows["x-loss"]["val-crf"] is None
    assert rows["lovasz"]["val-multi"] is None
    assert rows["lovasz"]["val-single"].command == f"{RUN} --profile features"
    labels = [row.label for row in voc_multiclass(store).blocks[0].rows]
    assert labels[0] == "basis network, before training"


def test_the_basis_network_is_no_row_and_no_set(store):
    add_features(store, ["x-loss"], seeds=(0,), sizes=(10,))
    alone = voc_multiclass(store)
    add(store, "basis", scale="reduced", profile="features", images="features", base=4000,
        regimes=False, params={"model.weights": "None"})  # fmt: skip
    for build in (voc_multiclass, voc_multiclass_classes):
        assert "basis" not in {row.key for block in build(store).blocks for row in block.rows}
    assert voc_multiclass(store) == alone


def test_a_variant_of_another_length_is_never_averaged_in(store):
    papers(store, ["x-loss", "x-loss-equibatch-30k"])
    papers(store, ["x-loss"], shift=0.1, base=500)
    table = voc_multiclass(store)
    assert [block.heading.split("cpu, ")[1] for block in table.blocks] == [
        "20000 and 30000 iterations, batch size 10",
        "500 iterations, batch size 10",
    ]
    found = [cells(table, i)["x-loss"]["val-single"] for i in (0, 1)]
    assert [(c.value, c.n) for c in found] == [(pytest.approx(70), 1), (pytest.approx(80), 1)]


def test_equibatch_that_a_variant_does_not_have_has_a_row_of_its_own(store):
    papers(store, ["x-loss", "x-loss-equibatch"])
    papers(store, ["x-loss"], shift=0.1, params={"data.equibatch": "True"})
    rows = cells(voc_multiclass(store))
    names = "x-loss (data.equibatch=False)", "x-loss"  # no fake run is as planned: the newest is it
    assert [(rows[name]["val-single"].n, rows[name]["val-single"].value) for name in names] == [
        (1, pytest.approx(70)), (1, pytest.approx(80)),
    ]  # fmt: skip


def test_a_variant_that_no_table_knows_has_a_row(store):
    papers(store, ["x-loss", "focal-loss"])
    row = cells(voc_multiclass(store))["focal-loss"]
    assert row["val-single"].value == pytest.approx(50.0)


# -- classes -----------------------------------------------------------------------------------


def test_classes_under_the_last_regime(store):
    papers(store)
    add_features(store, sizes=(10,))
    table = voc_multiclass_classes(store)
    first, second = table.blocks
    assert first.heading.endswith("multi-scale + CRF")
    assert second.heading.endswith("single-scale")
    assert [row.key for row in first.rows] == [*VOC.names, "dataset-mIoU"]
    rows = cells(table)
    assert rows["chair"]["lovasz"].value == pytest.approx(73 - 30 + 2)
    assert rows["dataset-mIoU"]["lovasz"].value == pytest.approx(75)
    assert rows["chair"]["lovasz-per-image-present"] is None  # only planned with features
    rows = cells(table, 1)
    # seeds 0 and 1 are 0.2 points apart, batches of 10 add 1 point
    assert rows["person"]["lovasz-per-image-present"].value == pytest.approx(68 + 0.1 + 1 + 5)
    assert rows["chair"]["lovasz-equibatch-30k"] is None


def test_a_class_that_occurs_nowhere_is_blank_and_a_missing_run_a_dash(store):
    metrics = {"val/crf/iou/person": math.nan}
    papers(store, ["x-loss"], metrics=metrics)
    rows = cells(voc_multiclass_classes(store))
    assert rows["person"]["x-loss"] is None
    assert rows["person"]["lovasz"].command == RUN


# -- all of them -------------------------------------------------------------------------------


def test_same_runs_same_bytes(store, tmp_path):
    papers(store, PAPER[:3])
    send(store)
    add_features(store, ["x-loss", "lovasz"], sizes=(10,))
    names = ["table-2", "table-3", "voc-multiclass", "voc-multiclass-classes"]
    assert_same_bytes(*(write_tables(store, tmp_path / folder, names) for folder in "ab"))
