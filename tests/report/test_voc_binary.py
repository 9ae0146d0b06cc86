"""Sec. 4.2: Table 1, the tables of every set of binary runs, and the claims about them."""

import itertools
import math
import statistics

import pytest

from lovasz_repro.report.claims import evaluate_claims
from lovasz_repro.report.layout import layout
from lovasz_repro.report.sets import BINARY, named_sets
from lovasz_repro.report.tables import TABLES
from tests.report_files import assert_same_bytes, cells, write_tables

table_1, voc_binary, voc_binary_classes = (
    TABLES[name] for name in ("table-1", "voc-binary", "voc-binary-classes")
)
TWENTY = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
          "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
          "train", "tvmonitor"]  # fmt: skip
LOSSES = ("cross-entropy", "hinge", "lovasz-hinge", "soft-iou")
RUN = "lovasz-repro run voc-binary"
# metric -> its value under each loss, for a category of offset 0: each loss is best under itself
SCORES = {
    "val/cross_entropy": (0.068, 0.070, 0.079, 0.090),
    "val/hinge": (0.078, 0.069, 0.071, 0.091),
    "val/lovasz_hinge": (0.084, 0.075, 0.054, 0.092),
    "val/soft_iou": (0.240, 0.250, 0.210, 0.200),
    "val/image_iou": (0.770, 0.760, 0.800, 0.765),
}
BASIS = 0.78


def offset(category, seed=0):
    """What a category and a seed add to every metric: far more than the losses differ by."""
    return 0.01 * TWENTY.index(category) + 0.002 * seed


def add(store, loss, category, seed=0, *, scale="paper", images="photographs", folder="None",
        batch=10, shift=0.0, metrics=None, params=None, **kwargs):  # fmt: skip
    """A finished binary run: its losses before training, and where it ended."""
    column = LOSSES.index(loss)
    more = offset(category, seed) + shift
    history = {key: [(0, 0.5), (2118, row[column] + more)] for key, row in SCORES.items()}
    history |= {"basis/image_iou": [(0, BASIS + more)]}
    given = {"data.size": "[321, 321]", "training.iterations": "2118", "data.images": images}
    given |= {"data.folder": folder, "data.category": category, "evaluation.snapshot": "last"}
    return store.add(
        "voc-binary", loss, seed, batch=batch, scale=scale, history=history, metrics=metrics,
        params=given | (params or {}), **kwargs,
    )  # fmt: skip


def fill(store, categories=TWENTY, losses=LOSSES, **kwargs):
    for loss, category in itertools.product(losses, categories):
        add(store, loss, category, **kwargs)
    return store


def bold(table, section=0):
    """Row label -> the texts that are bold."""
    return {
        line.label: [cell.text for cell in line.cells if cell.bold]
        for line in layout(table).sections[section].lines
    }


# -- table 1 -----------------------------------------------------------------------------------


def test_table_1_is_the_mean_over_the_twenty_categories(store):
    rows = cells(table_1(fill(store)))
    mean_offset = 100 * 0.01 * (0 + 19) / 2  # 9.5 points
    for key in ("val/cross_entropy", "val/hinge", "val/lovasz_hinge", "val/image_iou"):
        row = key.removeprefix("val/").replace("_", "-")
        for column, loss in enumerate(LOSSES[:3]):
            expected = 100 * SCORES[key][column] + mean_offset
            assert rows[row][loss].value == pytest.approx(expected), (row, loss)
    assert rows["image-iou"]["basis"].value == pytest.approx(78 + mean_offset)
    assert rows["hinge"]["basis"] is None
    assert rows["image-iou"]["hinge"].spread is None  # one seed
    assert len(rows["image-iou"]["hinge"].sources) == 20
    assert len(rows["image-iou"]["basis"].sources) == 80
    assert rows["image-iou"]["lovasz-hinge"].difference == pytest.approx(80 + mean_offset - 80.5)


def test_the_value_is_that_after_training(store):
    fill(store)
    assert all(run.metrics["val/hinge"] != 0.5 for run in store.stored)
    assert cells(table_1(store))["hinge"]["hinge"].value == pytest.approx(6.9 + 9.5)


def test_table_1_over_two_seeds(store):
    fill(store)
    fill(store, seed=1)
    cell = cells(table_1(store))["hinge"]["hinge"]
    means = [6.9 + 9.5, 6.9 + 9.5 + 0.2]
    assert (cell.value, cell.n) == (pytest.approx(statistics.mean(means)), 2)
    assert cell.spread == pytest.approx(statistics.stdev(means))


def test_a_seed_that_lacks_a_category_does_not_enter(store):
    fill(store)
    fill(store, TWENTY[:19], seed=1)
    cell = cells(table_1(store))["hinge"]["hinge"]
    assert (cell.value, cell.n) == (pytest.approx(6.9 + 9.5), 1)
    assert {source.seed for source in cell.sources} == {"0"}


@pytest.mark.parametrize("broken", ["missing", "running", "not a number", "another category"])
def test_nineteen_categories_are_a_dash(store, broken):
    fill(store, losses=LOSSES[:1])
    fill(store, TWENTY[:19], LOSSES[1:2])
    if broken == "running":
        add(store, "hinge", TWENTY[19], status="RUNNING")
    elif broken == "not a number":
        values = dict.fromkeys(SCORES, math.nan) | {"basis/image_iou": 0.7}
        add(store, "hinge", TWENTY[19], metrics=values)
    elif broken == "another category":
        add(store, "hinge", TWENTY[0], params={"data.category": "unicorn"})
    rows = cells(table_1(store))
    for row in ("cross-entropy", "hinge", "lovasz-hinge", "image-iou"):
        missing = rows[row]["hinge"]
        assert (missing.value, missing.command) == (None, RUN)
        assert rows[row]["cross-entropy"].value is not None
    assert RUN in " ".join(layout(table_1(store)).notes)


def test_table_1_takes_paper_scale_photographs_of_pascal_voc_alone(store):
    hinge = {"losses": ["hinge"]}
    fill(store, scale="reduced", **hinge)
    fill(store, scale="reduced", images="features", **hinge)
    fill(store, scale="paper", images="features", **hinge)  # no recipe says so: must not matter
    fill(store, scale="paper", folder="voc-demo", **hinge)
    fill(store, scale="demo", folder="voc-demo", **hinge)
    values = {c.value for row in cells(table_1(store)).values() for c in row.values() if c}
    assert values == {None}
    fill(store, shift=0.001, **hinge)
    assert cells(table_1(store))["hinge"]["hinge"].value == pytest.approx(6.9 + 9.5 + 0.1)


def test_the_most_complete_of_several_sets_stands_in_table_1(store):
    fill(store, TWENTY[:7], tags={"data_fingerprint": "another"}, params={"training.lr": "0.1"})
    fill(store, losses=LOSSES[:3], params={"training.lr": "0.5"})
    table = table_1(store)
    assert cells(table)["hinge"]["hinge"].value == pytest.approx(6.9 + 9.5)
    assert "training.lr=0.5" in table.notes[-1]
    assert "1 more: table `voc-binary`" in table.notes[-1]


def test_the_newest_of_equal_runs_counts_once(store):
    fill(store)
    again = add(store, "hinge", "bird", shift=0.2)
    cell = cells(table_1(store))["hinge"]["hinge"]
    assert cell.value == pytest.approx(6.9 + 9.5 + 20 / 20)
    assert len(cell.sources) == 20
    assert again.run_id in {source.run_id for source in cell.sources}


# -- every set of runs -------------------------------------------------------------------------


def test_mean_and_spread_over_categories(store):
    fill(store, TWENTY[:3])
    fill(store, TWENTY[:3], seed=1)
    table = voc_binary(store)
    assert table.blocks[0].heading.endswith("batch size 10, 3 categories of 20")
    rows = cells(table)
    assert list(rows) == ["cross-entropy", "hinge", "lovasz-hinge", "soft-iou", "image-iou"]
    # each category first over its two seeds (0.1 points above seed 0), then over 0, 1, 2 points
    cell = rows["soft-iou"]["soft-iou"]
    assert cell.value == pytest.approx(20.0 + 0.1 + 1.0)
    assert (cell.spread, cell.n) == (pytest.approx(1.0), 3)
    assert len(cell.sources) == 6
    assert rows["image-iou"]["basis"].value == pytest.approx(78.0 + 0.1 + 1.0)
    assert rows["soft-iou"]["basis"] is None
    assert "standard deviation over the categories" in table.caption


def test_the_best_of_each_row_is_bold(store):
    assert bold(voc_binary(fill(store, ["person"]))) == {
        "cross-entropy": ["20.80"],  # 6.80 + 14
        "hinge": ["20.90"],
        "Lovász hinge": ["19.40"],
        "soft IoU": ["34.00"],
        "image-IoU": ["94.00"],
    }


def test_losses_are_compared_over_the_categories_that_all_have(store):
    fill(store, TWENTY, LOSSES[:2])
    fill(store, TWENTY[:5], LOSSES[2:3])
    table = voc_binary(store)
    rows = cells(table)
    for column, loss in enumerate(LOSSES[:3]):
        cell = rows["hinge"][loss]
        assert (cell.value, cell.n) == (pytest.approx(100 * SCORES["val/hinge"][column] + 2.0), 5)
    assert (rows["hinge"]["soft-iou"].value, rows["hinge"]["soft-iou"].command) == (None, RUN)
    assert table.blocks[0].heading.endswith("5 categories of 20")


def test_losses_without_a_common_category_are_dashes(store):
    add(store, "hinge", "bird", scale="demo")
    add(store, "lovasz-hinge", "cat", scale="demo")
    rows = cells(voc_binary(store))
    values = {cell.value for row in rows.values() for cell in row.values() if cell}
    assert values == {None}
    assert rows["hinge"]["hinge"].command == f"{RUN} --profile demo"


def test_a_category_without_a_number_leaves_no_mean(store):
    fill(store, TWENTY[:2])
    add(store, "hinge", TWENTY[1], metrics={"val/hinge": math.nan})
    row = cells(voc_binary(store))["hinge"]
    assert row["hinge"].value is None
    assert row["lovasz-hinge"].value == pytest.approx(7.1 + 0.5)


def test_a_variant_that_the_tables_do_not_know_changes_nothing(store):
    fill(store, ["bird", "cat"])
    before = voc_binary(store)
    run = add(store, "hinge", "bird", shift=0.5)
    run.tags["variant"] = "focal"
    assert voc_binary(store) == before


def test_features_are_called_features_and_come_after_photographs(store):
    fill(store, ["bird"], images="features", scale="reduced")
    fill(store, ["bird"], scale="reduced")
    fill(store, ["bird"], scale="demo", folder="voc-demo")
    for table in (voc_binary(store), voc_binary_classes(store)):
        assert [block.heading.split(":")[0] for block in table.blocks] == [
            "Pascal VOC 2012",
            "Evidence drawn from the real masks (Pascal VOC 2012)",
            "Drawn pictures in the layout of Pascal VOC",
        ]
        assert "features" in table.caption
        assert table.compares is False


def test_runs_of_the_basis_network_stand_apart(store):
    fill(store, ["bird"])
    basis = {"data.category": "None", "training.lr": "0.00025", "data.images": "photographs"}
    store.add("voc-binary", "basis", scale="paper", metrics={"val/dataset_miou": 0.7}, params=basis)
    ((cohort, heading),) = named_sets(store, BINARY)
    assert {run.tags["variant"] for run in cohort.runs} == set(LOSSES)
    assert "training.lr" not in heading
    assert len(voc_binary(store).blocks) == 1


def test_batch_sizes_never_merge(store):
    fill(store, ["bird"], batch=10)
    fill(store, ["bird"], batch=5, shift=0.1)
    values = [cells(voc_binary(store), i)["hinge"]["hinge"].value for i in (0, 1)]
    assert values == pytest.approx([6.9 + 2 + 10, 6.9 + 2])  # batches of 5 first


# -- categories --------------------------------------------------------------------------------


def test_image_iou_of_each_category(store):
    fill(store, ["tvmonitor", "bicycle"])
    fill(store, ["tvmonitor", "bicycle"], seed=1)
    add(store, "hinge", "cat")
    table = voc_binary_classes(store)
    rows = cells(table)
    assert list(rows) == ["bicycle", "cat", "tvmonitor", "mean"]
    cell = rows["tvmonitor"]["lovasz-hinge"]
    assert (cell.value, cell.n) == (pytest.approx(80.0 + 19.0 + 0.1), 2)
    assert cell.spread == pytest.approx(0.2 / math.sqrt(2))
    assert rows["cat"]["soft-iou"].value is None
    assert rows["cat"]["basis"].value == pytest.approx(78.0 + 7.0)
    assert rows["mean"]["lovasz-hinge"].value == pytest.approx(80.0 + (1 + 19) / 2 + 0.1)
    assert rows["mean"]["hinge"].value == pytest.approx(76.0 + 10.0 + 0.1)  # without the cat
    labels = [row.label for row in table.blocks[0].rows]
    assert labels[-1] == "mean of 2 categories"
    assert bold(table)["bicycle"] == ["81.10 ± 0.14"]


def test_same_runs_same_bytes(store, tmp_path):
    fill(store, TWENTY[:3])
    names = ["table-1", "voc-binary", "voc-binary-classes"]
    assert_same_bytes(*(write_tables(store, tmp_path / folder, names) for folder in "ab"))


# -- claims ------------------------------------------------------------------------------------

OWN, WINS, SOFT = (
    "own-loss-wins", "lovasz-hinge-wins-image-iou", "soft-iou-no-consistent-gain"
)  # fmt: skip


def claims(store):
    return {item.claim.id: item for item in evaluate_claims(store)}


def test_claims_are_judged_on_differences_per_category(store):
    fill(store)
    found = claims(store)
    assert {found[name].verdict for name in (OWN, WINS, SOFT)} == {"holds"}
    (evidence,) = found[WINS].evidence
    assert evidence.decides
    effects = evidence.outcome.effects
    assert [effect.mean for effect in effects] == pytest.approx([3.0, 4.0, 2.0])  # last: basis
    assert [effect.n for effect in effects] == [20, 20, 20]
    # categories differ by 6 points, paired differences not at all
    assert max(effect.spread for effect in effects) == pytest.approx(0.0, abs=1e-9)
    assert len(found[OWN].evidence[0].outcome.effects) == 6


def test_claims_that_the_runs_contradict(store):
    for category in TWENTY:
        for loss in LOSSES:
            gain = {"val/image_iou": 0.9 + offset(category) / 10} if loss == "soft-iou" else {}
            gain |= {"val/hinge": 0.01} if loss == "cross-entropy" else {}
            add(store, loss, category, metrics=gain)
    found = claims(store)
    assert found[SOFT].verdict == "does not hold"
    assert found[OWN].verdict == "does not hold"
    assert found[WINS].verdict == "holds"


def test_features_are_evidence_and_decide_nothing(store):
    fill(store, scale="reduced", images="features", profile="features")
    found = claims(store)
    for name in (OWN, WINS, SOFT):
        item = found[name]
        assert item.verdict == "not yet run"
        (evidence,) = item.evidence
        assert (evidence.decides, evidence.outcome.verdict) == (False, "holds")
        assert "no photographs" in evidence.heading
