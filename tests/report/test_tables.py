"""Numbers of the tables, against values worked out by hand and read again from the paper."""

import math

import pytest

from lovasz_repro.report.layout import DASH, layout, number, value_text
from lovasz_repro.report.model import Cell
from lovasz_repro.report.published import paper_table, published_tables
from lovasz_repro.report.runs import source
from lovasz_repro.report.scores import measured
from lovasz_repro.report.tables import TABLES
from tests.report_files import cells


def texts(table):
    """{row label: texts} of all sections."""
    return {
        line.label: [cell.text for cell in line.cells]
        for section in layout(table).sections
        for line in section.lines
    }


# -- measured tables ---------------------------------------------------------------------------


def test_camvid_means_over_seeds(camvid):
    found = cells(TABLES["camvid-enet"](camvid))["lovasz-softmax"]
    # test scores of the two seeds: 52.7 and 53.7; val at the best snapshot 2 points above
    assert found["test"].value == pytest.approx(53.2)
    assert found["test"].spread == pytest.approx(math.sqrt(0.5))
    assert found["test"].n == 2
    assert found["val"].value == pytest.approx(55.2)
    assert found["test-image"].value == pytest.approx(63.2)
    assert found["seeds"].value == 2


def test_camvid_initial_network(camvid):
    found = cells(TABLES["camvid-enet"](camvid))["initial"]
    assert (found["val"].value, found["test"].value) == (pytest.approx(30.0), pytest.approx(31.0))
    assert found["val"].spread is None
    assert found["test-image"] is None
    assert found["seeds"] is None


def test_a_start_counts_once_a_seed_however_many_runs_have_it(store):
    for seed, start in ((0, 0.30), (1, 0.32)):
        for variant in ("weighted-cross-entropy", "lovasz-softmax", "sum"):
            store.add(variant=variant, seed=seed, metrics={"initial/test/dataset_miou": start})
    cell = cells(TABLES["camvid-enet"](store))["initial"]["test"]
    assert (cell.value, cell.n) == (pytest.approx(31), 2)
    assert cell.spread == pytest.approx(math.sqrt(2))
    assert len(cell.sources) == 6


def test_profiles_never_merge(camvid):
    table = TABLES["camvid-enet"](camvid)
    assert [block.heading.split(",")[0] for block in table.blocks] == [
        "reduced profile",
        "demo profile",
    ]
    demo = cells(table, 1)["lovasz-softmax"]
    assert demo["test"].value == pytest.approx(32.7)
    assert (demo["test"].n, demo["test"].spread) == (1, None)
    for block in range(2):
        sources = {
            s.scale
            for c in cells(table, block).values()
            for x in c.values()
            if x
            for s in x.sources
        }
        assert len(sources) == 1


def test_batch_sizes_never_merge(add_run, store):
    for batch, score in ((4, 0.4), (8, 0.6)):
        add_run("lovasz-softmax", 0, score, batch=batch)
    table = TABLES["camvid-enet"](store)
    assert [b.heading.rsplit(", ", 1)[1] for b in table.blocks] == ["batch size 4", "batch size 8"]
    values = [cells(table, i)["lovasz-softmax"]["test"].value for i in (0, 1)]
    assert values == pytest.approx([40.0, 60.0])


def test_a_variant_without_runs_is_a_dash_with_its_command(add_run, store):
    add_run("lovasz-softmax", 0, 0.5, scale="demo")
    table = TABLES["camvid-enet"](store)
    cell = cells(table)["sum"]["test"]
    assert cell.value is None
    assert cell.command == "lovasz-repro run camvid-enet --profile demo"
    assert texts(table)["sum of both"][1] == DASH
    assert any(cell.command in note for note in layout(table).notes)


@pytest.mark.parametrize("name", TABLES)
def test_an_empty_store_gives_dashes_with_their_commands_never_zeros(store, name):
    table = TABLES[name](store)
    ours = [c for b in table.blocks for r in b.rows for c in r.cells if c is not None]
    assert ours
    assert all(c.value is None and c.command for c in ours)
    shown = {text for line in texts(table).values() for text in line}
    assert DASH in shown
    assert "0.00" not in shown
    notes = " ".join(layout(table).notes)
    assert all(c.command in notes for c in ours)


def test_classes_and_their_mean(camvid):
    found = cells(TABLES["camvid-enet-classes"](camvid))
    assert set(found) == {"sky", "car", "sign symbol", "mean of the classes"}
    assert found["sky"]["lovasz-softmax"].value == pytest.approx(83.2)
    assert found["sky"]["initial"].value == pytest.approx(61.0)
    assert found["mean of the classes"]["sum"].value == pytest.approx(52.5)


def test_a_class_that_is_nowhere_is_blank_not_zero(store):
    scores = {"initial/test/iou/car": 0.3, "test/iou/car": math.nan, "test/iou/sky": math.nan}
    store.add(metrics={"test/dataset_miou": 0.5} | scores)
    rows = cells(TABLES["camvid-enet-classes"](store))
    assert set(rows) == {"car", "mean of the classes"}
    assert rows["car"]["initial"].value == pytest.approx(30)
    assert rows["car"]["lovasz-softmax"] is None


def test_every_number_knows_its_runs(camvid):
    for name in ("camvid-enet", "camvid-enet-classes"):
        table = TABLES[name](camvid)
        for block in table.blocks:
            for row in block.rows:
                for cell in row.cells:
                    if cell is not None and cell.value is not None:
                        assert len(cell.sources) >= 1
                        assert cell.sources[0].config_hash.startswith("hash")


def test_synthetic_statistics_over_steps(store):
    losses = ("jaccard", "lovasz_hinge", "hinge", "cross_entropy", "soft_iou")
    history = {f"argmin/{loss}": [(0, -1.0), (1, 0.0), (2, 4.0)] for loss in losses}
    history |= {f"jaccard_at_argmin/{loss}": [(0, 0.7), (1, 0.8), (2, 0.75)] for loss in losses}
    history |= {f"excess/{loss}": [(0, 0.0), (1, 0.02), (2, 0.01)] for loss in losses}
    run = store.add("synthetic", "", "0-2", batch=None, scale="paper", history=history)
    found = cells(TABLES["synthetic"](store))["hinge"]
    assert found["argmin"].value == pytest.approx(1.0)
    assert found["argmin"].spread == pytest.approx(math.sqrt(7.0))
    assert found["jaccard_at_argmin"].value == pytest.approx(75.0)
    assert found["excess"].value == pytest.approx(1.0)
    assert found["excess"].spread == pytest.approx(1.0)
    assert found["seeds"].value == 3
    assert found["argmin"].sources == (source(run),)


# -- the paper's tables ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row", "column", "number_in_paper"),
    [
        ("table-1", "cross-entropy", "cross-entropy", 6.84),
        ("table-1", "hinge", "lovasz-hinge", 7.11),
        ("table-1", "lovasz-hinge", "cross-entropy", 8.37),
        ("table-1", "image-iou", "hinge", 75.8),
        ("table-1", "image-iou", "basis", 78.29),
        ("table-2", "x-loss", "val-single", 74.64),
        ("table-2", "x-loss-equibatch", "test-crf", 78.05),
        ("table-2", "x-loss-equibatch-30k", "val-multi", 76.24),
        ("table-2", "lovasz", "val-crf", 77.99),
        ("table-2", "lovasz-equibatch-30k", "val-single", 77.41),
        ("table-2", "lovasz-equibatch-30k", "test-crf", 79.00),
        ("table-3", "airplane", "x-loss", 92.95),
        ("table-3", "bottle", "x-loss", 77.6),
        ("table-3", "sofa", "x-loss-equibatch", 64.46),
        ("table-3", "tv", "lovasz-equibatch-30k", 68.64),
        ("table-4", "enet-test", "class-iou", 58.29),
        ("table-4", "finetuned-test", "category-iiou", 61.05),
        ("table-4", "enet-val", "class-iiou", 36.2),
    ],
)
def test_published_numbers(store, name, row, column, number_in_paper):
    table = TABLES[name](store)
    rows = {key: value for i in range(len(table.blocks)) for key, value in cells(table, i).items()}
    assert rows[row][column].published == number_in_paper
    assert rows[row][column].difference is None


def test_table_2_row_sums():
    # summed by hand from the printed table: all validation numbers of the six rows
    printed = published_tables()["table-2"]
    sums = [sum(v for v in row.values if isinstance(v, float)) for row in printed.rows.values()]
    assert sums == pytest.approx([303.84, 307.59, 227.94, 231.79, 232.30, 313.75])


def test_table_3_columns_sum_to_what_the_paper_prints():
    printed = published_tables()["table-3"]
    columns = list(zip(*(row.values for row in printed.rows.values()), strict=True))
    assert len(columns[0]) == 20
    # Table 2's test mIoU is over 21 classes; the background, not printed, makes up the rest
    for values, mean in zip(columns, (76.44, 78.05, 79.00), strict=True):
        background = 21 * mean - sum(values)
        assert 90 < background < 100


def test_cells_that_the_paper_leaves_empty(store):
    table = TABLES["table-2"](store)
    assert cells(table)["lovasz"]["test-crf"].published is None
    assert texts(table)["Lovász"][-3:] == ["", DASH, ""]


def test_cells_that_do_not_apply(store):
    assert cells(TABLES["table-1"](store))["hinge"]["basis"] is None
    assert texts(TABLES["table-1"](store))["hinge"][-3:] == ["", "", ""]


def test_best_published_number_is_bold(store):
    (section,) = layout(TABLES["table-1"](store)).sections
    bold = {line.label: [c.text for c in line.cells if c.bold] for line in section.lines}
    assert bold == {
        "cross-entropy": ["6.84"],
        "hinge": ["6.95"],
        "Lovász hinge": ["5.44"],
        "image-IoU": ["80.50"],
    }


def test_reproduced_number_beside_published_with_difference(store):
    run = store.add(scale="paper")
    cell = measured([0.7364, 0.7464], [run], "", factor=100)
    table = paper_table("table-2", {("x-loss", "val-single"): cell})
    assert texts(table)["x-loss"][:3] == ["74.64", "74.14 ± 0.71", "−0.50"]


@pytest.mark.parametrize("scale", ["demo", "reduced", "unknown"])
def test_other_scales_cannot_enter_a_paper_table(store, scale):
    cell = measured([0.7], [store.add(scale=scale)], "")
    with pytest.raises(ValueError, match="no paper-scale run"):
        paper_table("table-2", {("x-loss", "val-single"): cell})


# -- text of numbers ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (1.005, False, "1.00"),  # the double below 1.005
        (-0.2, False, "−0.20"),
        (-0.001, False, "0.00"),
        (-0.001, True, "0.00"),
        (1.9, True, "+1.90"),
        (-1.9, True, "−1.90"),
    ],
)
def test_numbers(value, signed, text):
    assert number(value, 2, signed=signed) == text


def test_values():
    assert value_text(Cell(), 2) == DASH
    assert value_text(Cell(0.0), 2) == "0.00"
    assert value_text(Cell(50.0, 0.123), 1) == "50.0 ± 0.1"
