"""Figure 6: which runs it shows, what it draws of them, and its correlation."""

import json
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from lovasz_repro.report.curves_voc import correlation, figure_6, joint_variant
from lovasz_repro.report.figures import write_figures
from lovasz_repro.report.model import Missing
from lovasz_repro.report.sets import MULTICLASS, named_sets
from tests.fake_multiclass import add, add_features, add_papers
from tests.report_files import assert_apart, assert_on_page, assert_same_bytes, drawn

RUN = "lovasz-repro run voc-multiclass"
DATASET, BATCH, IMAGE = "val/dataset_miou", "val/batch_miou", "val/image_miou"


def panels(drawing):
    """First letter of a panel's title -> {label: curve}."""
    found = {}
    for curve in drawing.curves:
        found.setdefault(curve.panel[1], {})[curve.label] = curve
    return found


def title(drawing):
    return " ".join(drawing.figure.get_suptitle().split())


def history(store, run, metric, *values, step=10):
    store.histories[run.run_id][metric] = [(step * k, v) for k, v in enumerate(values)]


def test_panels_of_the_papers_runs(store):
    add_papers(store)
    drawing = figure_6(store)
    found = panels(drawing)
    assert list(found["a"]) == [
        "cross-entropy", "cross-entropy + equibatch", "cross-entropy + equibatch 30K",
        "Lovász-Softmax", "Lovász-Softmax + equibatch", "Lovász-Softmax + equibatch 30K",
    ]  # fmt: skip
    assert list(found["b"]) == ["dataset-mIoU", "batch-mIoU, present classes"]
    assert list(found["c"]) == [
        "dataset-mIoU", "image-mIoU",
        "dataset-mIoU, optimised per batch", "image-mIoU, optimised per batch",
    ]  # fmt: skip
    # the variants behind (b) and (c), by the score they end with
    ends = {p: [c.data["mean"][-1] for c in curves.values()] for p, curves in found.items()}
    assert ends["b"] == pytest.approx([73.5, 63.5])
    assert ends["c"] == pytest.approx([64, 74, 73, 83])
    assert found["a"]["Lovász-Softmax"].data["mean"][0] == pytest.approx(3.0)
    assert found["a"]["cross-entropy + equibatch 30K"].data["iteration"][-1] == 30000
    assert {s.name for s in found["b"]["dataset-mIoU"].sources} == {"lovasz-equibatch-b10-s0"}
    assert all(curve.sources for curve in drawing.curves)
    assert "not the paper's" not in (title(drawing) + drawing.caption).lower()


def test_curves_are_drawn_with_their_data_and_told_apart(store):
    add_papers(store)
    axes = figure_6(store).figure.axes
    assert len(axes) == 5  # (b) and (c) have an axis at the right
    measures = ["dataset", "dataset", "dataset", "batch", "image"]
    assert all(f"{name}-mIoU" in ax.get_ylabel() for name, ax in zip(measures, axes, strict=True))
    drawn = {
        (line.get_color(), line.get_linestyle()): line.get_ydata()[-1] for line in axes[0].lines
    }
    assert sorted(drawn.values()) == pytest.approx([70, 70.5, 71, 73, 73.5, 75])
    assert len(drawn) == 6
    # axes: (a), (b), (c), right of (b), right of (c)
    assert [line.get_ydata()[-1] for line in axes[3].lines] == pytest.approx([63.5])
    assert [line.get_ydata()[-1] for line in axes[4].lines] == pytest.approx([74, 83])
    thick, thin = axes[2].lines
    assert thin.get_linewidth() < thick.get_linewidth()


def test_mean_and_spread_over_seeds(store):
    for seed in (0, 1):
        add_papers(store, seed=seed)
    curve = panels(figure_6(store))["a"]["Lovász-Softmax"]
    assert curve.data["mean"][-1] == pytest.approx(73.1)
    assert curve.data["spread"][-1] == pytest.approx(0.2 / math.sqrt(2))
    assert [s.seed for s in curve.sources] == ["0", "1"]


def test_the_papers_runs_come_first_even_where_others_show_more(store):
    add_features(store, sizes=(10,))
    add_papers(store, ["x-loss", "lovasz"])
    drawing = figure_6(store)
    assert {s.scale for c in drawing.curves for s in c.sources} == {"paper"}
    assert set(panels(drawing)) == {"a", "b"}
    texts = [text.get_text() for text in drawing.figure.axes[2].texts]
    assert texts == ["not yet run"]


def test_a_paper_scale_run_alone_gives_way_to_a_set_with_curves(store):
    add_papers(store, ["x-loss"])
    add_features(store)
    drawing = figure_6(store)
    assert title(drawing).startswith(
        "Not the paper's: no paper-scale runs on photographs have such curves. Shown: Evidence "
        "drawn from the real masks"
    )
    assert "batch size 10" in title(drawing)
    for part in ("not the paper's Figure 6", "noise drawn from the masks", "reduced scale"):
        assert part in drawing.caption
    assert set(panels(drawing)) == {"a", "b", "c"}


def test_of_other_sets_the_one_with_the_most_panels(store):
    add_features(store, ["x-loss", "lovasz"], sizes=(10,))
    add_papers(store, scale="demo", folder="voc-demo", base=200)
    assert "Drawn pictures" in title(figure_6(store))


def test_networks_that_saw_the_validation_images_are_never_shown(store):
    add_papers(store, split="trainval_aug", profile="trainval")
    assert isinstance(figure_6(store), Missing)


def test_without_both_losses_there_is_nothing_to_compare_in_a(store):
    add_papers(store, ["lovasz", "lovasz-equibatch"])
    assert set(panels(figure_6(store))) == {"b"}


def test_what_is_missing_is_told(store):
    assert figure_6(store) == Missing("no finished set of voc-multiclass runs is stored", RUN)
    add(store, "x-loss", points=2, metrics={})
    store.histories[store.stored[0].run_id].clear()
    reason = "no finished set of voc-multiclass runs has curves of two losses or two measures"
    assert figure_6(store) == Missing(reason, RUN)


def test_scores_that_are_no_numbers_are_left_out(store):
    runs = add_papers(store, ["x-loss", "lovasz"])
    history(store, runs[1], DATASET, 0.1, math.nan, 0.3, 0.4)
    curve = panels(figure_6(store))["a"]["Lovász-Softmax"]
    assert curve.data["iteration"] == [0, 20, 30]


# -- the correlation ---------------------------------------------------------------------------


def test_correlation_is_that_of_the_claims(store):
    """Spearman's of the second differences, without the validation before training."""
    runs = [add(store, "lovasz-equibatch", seed) for seed in (0, 1)]
    first = [(0.0, 0.50, 0.60, 0.55, 0.7, 0.69), (0.1, 0.5, 0.6, 0.7, 0.65, 0.8)]
    second = [(0.9, 0.40, 0.38, 0.45, 0.5, 0.44), (0.2, 0.3, 0.5, 0.4, 0.5, 0.45)]
    for run, one, other in zip(runs, first, second, strict=True):
        history(store, run, DATASET, *one)
        history(store, run, BATCH, *other)
    found = correlation(store, runs)
    of_runs = [
        spearmanr(np.diff(x[1:], 2), np.diff(y[1:], 2)).statistic
        for x, y in zip(first, second, strict=True)
    ]
    assert found.r == pytest.approx(np.mean(of_runs))
    drawing = figure_6(store)
    legend = drawing.figure.axes[1].get_legend()
    assert (found.points, found.runs) == (5, 2)
    words = legend.get_title().get_text()
    shown = f"r = {found.r:.3f}".replace("-", "−")
    assert shown in words
    assert "5 validations" in words
    assert "2 seeds" in words
    assert shown in drawing.caption
    assert "second differences" in drawing.caption
    assert "(b) is of Lovász-Softmax + equibatch." in drawing.caption


def test_flat_or_short_curves_have_no_correlation(store):
    run = add(store, "lovasz")
    for values in ((0.3,) * 8, (0.3, 0.4), (0.1, 0.5, 0.6, 0.7)):
        history(store, run, BATCH, *values)
        history(store, run, DATASET, *(0.1 * k * k for k in range(len(values))))
        assert correlation(store, [run]) is None
    legend = figure_6(store).figure.axes[1].get_legend()
    assert legend.get_title().get_text() == ""


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("lovasz", "lovasz-equibatch", "lovasz-equibatch-30k"), "lovasz-equibatch"),
        (("lovasz", "lovasz-equibatch-30k"), "lovasz"),
        (("lovasz-equibatch-30k", "x-loss"), "lovasz-equibatch-30k"),
        (("x-loss", "lovasz-all-classes"), None),
    ],
)
def test_variant_of_b(store, names, chosen):
    add_papers(store, names)
    ((cohort, _),) = named_sets(store, MULTICLASS)
    assert joint_variant(store, cohort) == chosen


# -- how it looks ------------------------------------------------------------------------------


def test_an_axis_begins_below_trained_networks_that_are_far_above_the_first(store):
    for name in ("x-loss", "lovasz"):
        run = add(store, name)
        history(store, run, DATASET, 0.03, 0.68, 0.70, 0.72)
        history(store, run, BATCH, 0.50, 0.52, 0.60, 0.70)
    axes = figure_6(store).figure.axes
    assert axes[0].get_ylim()[0] == pytest.approx(68 - 0.35 * 4)
    assert axes[3].get_ylim()[0] < 50


def test_curves_of_both_axes_do_not_hide_each_other(store):
    run = add(store, "lovasz")
    history(store, run, DATASET, 0.1, 0.5, 0.7)
    history(store, run, BATCH, 0.2, 0.6, 0.8)  # ten points above: the same curve on its own axis
    axes = figure_6(store).figure.axes
    places = [
        (np.array(values) - ax.get_ylim()[0]) / np.subtract(*ax.get_ylim()[::-1])
        for ax, values in ((axes[1], (10, 50, 70)), (axes[3], (20, 60, 80)))
    ]
    assert (places[0] - places[1] > 0.08).all()


@pytest.mark.parametrize("kind", ["paper", "features"])
def test_nothing_leaves_the_page_or_overlaps(store, kind):
    if kind == "paper":
        add_papers(store, points=21)
    else:
        add_features(store, sizes=(10,))
    figure = drawn(figure_6, store)
    legends = [ax.get_legend() for ax in figure.axes[:3]]
    assert_on_page(figure, [*legends, *figure.axes])
    assert_apart(legends)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "curves"), [("figure-6", 12), ("voc-measures", 2 * 8 + 3)])
def test_files_lead_to_the_runs_and_are_the_same_every_time(store, tmp_path, name, curves):
    add_papers(store)
    add_features(store)
    first, second = (write_figures(store, tmp_path / folder, [name]) for folder in "ab")
    assert_same_bytes(first, second)
    found = json.loads(first[-1].read_text())["curves"]
    assert len(found) == curves
    assert all(curve["sources"] for curve in found)
