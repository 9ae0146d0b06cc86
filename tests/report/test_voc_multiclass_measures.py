"""The study of measures: its two by two table, and its figure."""

import math

import pytest

from lovasz_repro.report.curves_voc import voc_measures_figure
from lovasz_repro.report.layout import layout
from lovasz_repro.report.model import Missing
from lovasz_repro.report.tables import TABLES
from tests.fake_multiclass import VARIANTS, add, add_features, add_papers
from tests.report_files import assert_apart, assert_on_page, cells, drawn

voc_measures = TABLES["voc-measures"]
RUN = "lovasz-repro run voc-multiclass --profile features"
ROWS = ["x-loss", "x-loss-equibatch", "lovasz", "lovasz-equibatch", "lovasz-all-classes",
        "lovasz-per-image-present", "lovasz-per-image"]  # fmt: skip


# -- table -------------------------------------------------------------------------------------


def test_every_measure_of_every_variant_in_batches_of_ten(store):
    add_features(store)
    table = voc_measures(store)
    (block,) = table.blocks
    assert block.heading.endswith("batch size 10")
    rows = cells(table)
    assert list(rows) == ["initial", *ROWS]
    for name in ROWS:
        # two seeds 0.2 points apart, a point for batches of 10
        score = 100 * VARIANTS[name] + 0.1 + 1.0
        found = [rows[name][key].value for key in ("dataset", "image", "batch")]
        assert found == pytest.approx([score, score + 10, score - 10])
        assert rows[name]["dataset"].spread == pytest.approx(0.2 / math.sqrt(2))
        assert rows[name]["seeds"].value == 2
    before = rows["initial"]
    found = [before[key].value for key in ("dataset", "image", "batch")]
    assert found == pytest.approx([60, 110, 70])
    assert before["seeds"] is None


def test_labels_say_what_the_loss_is_taken_over(store):
    labels = {row.key: row.label for row in voc_measures(store).blocks[0].rows}
    for name in ROWS[2:]:
        assert ("image" in labels[name]) == ("per-image" in name)
        everything = name in ("lovasz-all-classes", "lovasz-per-image")
        assert ("all classes" in labels[name], "present" in labels[name]) == (
            everything,
            not everything,
        )
        assert ("equibatch" in labels[name]) == ("equibatch" in name)


def test_only_sets_on_features_are_studied(store):
    add_papers(store)
    add_papers(store, scale="demo", folder="voc-demo")
    (block,) = voc_measures(store).blocks
    assert {c.value for row in block.rows for c in row.cells if c} == {None}
    assert any(RUN in note for note in layout(voc_measures(store)).notes)
    missing = voc_measures_figure(store)
    assert missing == Missing("no finished set of voc-multiclass runs on features is stored", RUN)


def test_without_batches_of_ten_the_largest(store):
    add_features(store, ["x-loss", "lovasz"], sizes=(2, 5))
    table = voc_measures(store)
    assert [block.heading.rsplit(", ", 1)[1] for block in table.blocks] == ["batch size 5"]
    row = cells(table)["lovasz-all-classes"]
    assert (row["dataset"].value, row["dataset"].command) == (None, RUN)


def test_a_variant_of_ones_own_is_shown_below(store):
    add_features(store, ["x-loss", "focal-loss"], sizes=(10,))
    rows = cells(voc_measures(store))
    assert list(rows)[-1] == "focal-loss"
    assert rows["focal-loss"]["dataset"].value == pytest.approx(51.1)


# -- figure ------------------------------------------------------------------------------------


def curves(drawing):
    """(panel, label) -> data."""
    return {(curve.panel, curve.label): curve.data for curve in drawing.curves}


def test_dots_and_lines_have_the_runs_numbers(store):
    add_features(store)
    found = curves(voc_measures_figure(store))
    dot = found["dataset-mIoU", "Lovász-Softmax, batch, all classes"]
    assert (dot["mean"], dot["spread"]) == (
        [pytest.approx(66 + 0.1 + 1)],
        [pytest.approx(0.2 / math.sqrt(2))],
    )
    assert found["image-mIoU", "cross-entropy + equibatch"]["mean"] == [pytest.approx(82.1)]
    assert found["dataset-mIoU", "before training"]["mean"] == [pytest.approx(60)]
    assert found["image-mIoU", "before training"]["mean"] == [pytest.approx(110)]
    lines = {label: data for (panel, label), data in found.items() if panel == "(b)"}
    assert list(lines) == ["cross-entropy", "Lovász-Softmax, batch, present classes",
                           "Lovász-Softmax, batch, all classes"]  # fmt: skip
    line = lines["cross-entropy"]
    assert line["batch_size"] == [2, 5, 10, 20]
    assert line["mean"] == pytest.approx([70.1 + 0.1 * size for size in (2, 5, 10, 20)])


def test_the_axes(store):
    add_features(store)
    drawing = voc_measures_figure(store)
    left, middle, right = drawing.figure.axes
    assert [text.get_text() for text in right.get_xticklabels()] == ["2", "5", "10", "20"]
    assert right.get_xscale() == "log"
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first variant on top
    assert left.get_ylim() == middle.get_ylim()
    rows = [text.get_text().replace("\n", " ") for text in left.get_yticklabels()]
    assert rows[0] == "cross-entropy"
    assert rows[-1] == "Lovász, image, all"
    assert "no figure of the paper" in drawing.caption
    assert "Evidence drawn from the real masks" in drawing.figure.get_suptitle()
    assert "batch size 10" in left.get_title(loc="left")


def test_a_batch_size_that_a_variant_lacks_is_no_point(store):
    add_features(store, ["x-loss"], sizes=(2, 10))
    add(store, "lovasz", scale="reduced", profile="features", images="features", base=600,
        regimes=False, batch=10, metrics={"val/dataset_miou": math.nan})  # fmt: skip
    found = curves(voc_measures_figure(store))
    assert {label for panel, label in found if panel == "(b)"} == {"cross-entropy"}
    assert ("dataset-mIoU", "Lovász-Softmax, batch, present classes") not in found
    assert ("image-mIoU", "Lovász-Softmax, batch, present classes") in found


def test_runs_without_a_score_are_no_figure(store):
    run = add_features(store, ["x-loss"], seeds=(0,), sizes=(10,))[0]
    run.metrics.clear()
    missing = voc_measures_figure(store)
    assert (
        missing.reason
        == "no finished set of voc-multiclass runs on features has a validation score"
    )


def test_nothing_leaves_the_page(store):
    add_features(store)
    figure = drawn(voc_measures_figure, store)
    assert_on_page(figure, figure.axes)
    assert_apart(figure.axes[0].get_yticklabels())


def test_curves_that_a_third_makes_flat_are_drawn_again(store):
    add_features(store, ["x-loss", "lovasz"], sizes=(2, 10))
    for size in (2, 10):
        add(store, "lovasz-all-classes", scale="reduced", profile="features", images="features",
            base=600, regimes=False, start=0.6, points=4, batch=size, shift=-0.5)  # fmt: skip
    drawing = voc_measures_figure(store)
    (inset,) = drawing.figure.axes[2].child_axes
    drawn = [list(line.get_ydata()) for line in inset.get_lines()]
    shown = [data["mean"] for (panel, _), data in curves(drawing).items() if panel == "(b)"]
    assert drawn == shown[:2]


def test_curves_that_are_well_apart_are_drawn_once(store):
    add_features(store)
    assert voc_measures_figure(store).figure.axes[2].child_axes == []
