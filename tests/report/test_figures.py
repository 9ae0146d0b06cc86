"""Figures: what they draw, what they say when they cannot, and the same bytes every time."""

import csv
import itertools
import json
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lovasz_repro.errors import UserError
from lovasz_repro.report import style
from lovasz_repro.report.curves import CONVERGENCE, band, camvid_classes, widest_legend
from lovasz_repro.report.curves_voc import MEASURE_LOOKS
from lovasz_repro.report.figures import FIGURES, write_figures
from lovasz_repro.report.model import Drawing, Missing
from lovasz_repro.report.synthetic_figure import (
    GROUND_TRUTHS,
    SOFTMAX,
    discrete_jaccard_loss,
    figure_1,
    figure_2,
    figure_3,
    loss_of_two_pixels,
    relative,
)
from tests.report_files import assert_same_bytes

camvid_curves = CONVERGENCE["camvid-enet"]
LOSSES = ("jaccard", "lovasz_hinge", "hinge", "cross_entropy", "soft_iou")


def jaccard_loss_by_counting(wrong, ground_truth):
    """Eq. 3-4 from the two labelings themselves."""
    predicted = [-y if w else y for y, w in zip(ground_truth, wrong, strict=True)]
    pairs = list(zip(ground_truth, predicted, strict=True))
    union = sum(y == 1 or p == 1 for y, p in pairs)
    return 1 - (sum(y == 1 and p == 1 for y, p in pairs) / union if union else 1)


@pytest.fixture
def circles(store):
    """A stored synthetic run with the artifacts of Fig. 3."""
    history = {f"argmin/{loss}": [(0, 0.0)] for loss in LOSSES}
    run = store.add("synthetic", "", "0", batch=None, scale="paper", history=history)
    folder = store.folder / run.run_id
    folder.mkdir(parents=True)
    label = np.zeros((50, 50), np.uint8)
    label[10:30, 10:30] = 1
    np.savez(folder / "sample.npz", label=label, features=label - np.float32(0.5))
    b = np.linspace(-3, 3, 61)
    curves = {"b": b} | {loss: (b - i / 2) ** 2 + i for i, loss in enumerate(LOSSES)}
    with (folder / "curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(curves)
        writer.writerows(zip(*curves.values(), strict=True))
    return store


# -- figures 1 and 2 ---------------------------------------------------------------------------


@pytest.mark.parametrize("ground_truth", GROUND_TRUTHS)
@pytest.mark.parametrize("wrong", list(itertools.product((False, True), repeat=2)))
def test_surface_meets_the_discrete_loss_at_every_corner(ground_truth, wrong):
    expected = jaccard_loss_by_counting(wrong, ground_truth)
    assert discrete_jaccard_loss(wrong, ground_truth) == expected
    corner = np.array(wrong, dtype=np.float64)
    assert loss_of_two_pixels(corner, ground_truth) == pytest.approx(expected, abs=1e-12)


def test_surface_between_corners():
    # one foreground pixel with error 2, one background pixel with error 1 (Eq. 8-9 by hand):
    # the foreground pixel comes first and gains 1, after it nothing is left to lose
    assert loss_of_two_pixels(np.array([2.0, 1.0]), (1, -1)) == pytest.approx(2.0)
    # the background pixel first: gain 1/2, then the foreground pixel: 1/2
    assert loss_of_two_pixels(np.array([1.0, 2.0]), (1, -1)) == pytest.approx(1.5)


def test_softmax_errors_of_both_labels():
    # two classes, scores 1.5 apart: f(y*) = 1 / (1 + e^-1.5)
    right = np.exp(1.5) / (np.exp(1.5) + 1)
    assert SOFTMAX.errors(np.array([1.5])) == pytest.approx(1 - right)


@pytest.mark.parametrize(("draw", "symbol"), [(figure_1, "r"), (figure_2, "d")])
def test_four_panels_with_four_dots_each(store, draw, symbol):
    drawing = draw(store)
    assert len(drawing.figure.axes) == 4
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert titles == ["GT = [−1, −1]", "GT = [−1, 1]", "GT = [1, −1]", "GT = [1, 1]"]
    for axes in drawing.figure.axes:
        assert axes.get_xlabel() == f"${symbol}_1$"
        assert axes.get_ylabel() == f"${symbol}_2$"
    dots = [c for c in drawing.curves if c.label == "discrete Jaccard loss"]
    assert [sorted(c.data["loss"]) for c in dots] == [
        [0, 1, 1, 1],
        [0, 0.5, 1, 1],
        [0, 0.5, 1, 1],
        [0, 0.5, 0.5, 1],
    ]
    assert all(c.computed and not c.sources for c in drawing.curves)


# -- figure 3 ----------------------------------------------------------------------------------


def test_relative_losses():
    assert relative([3.0, 1.0, 2.0]) == [1.0, 0.0, 0.5]
    assert relative([2.0, 2.0]) == [0.0, 0.0]


def test_figure_3_marks_each_minimum(circles):
    drawing = figure_3(circles)
    found = {curve.label: curve.data["argmin"][0] for curve in drawing.curves}
    assert found == pytest.approx(
        {"Jaccard loss": 0, "Lovász hinge": 0.5, "hinge": 1, "cross-entropy": 1.5, "soft IoU": 2}
    )
    assert all(curve.sources[0].run_id == "id000" for curve in drawing.curves)


def test_figure_3_without_its_files_says_so(circles):
    class Bare:
        runs, history = circles.runs, circles.history

        def artifact(self, run_id, relative_path):
            raise UserError(f"run {run_id} has no artifact {relative_path}")

    missing = figure_3(Bare())
    assert isinstance(missing, Missing)
    assert "curves.csv" in missing.reason


# -- CamVid ------------------------------------------------------------------------------------


def test_band_over_seeds():
    data = band([[(0, 0.1), (10, 0.2), (20, 0.5)], [(0, 0.1), (10, 0.4)]])
    assert data["iteration"] == [0, 10]
    assert data["mean"] == pytest.approx([10, 30])
    assert data["spread"] == pytest.approx([0, 100 * np.sqrt(0.02)])


def test_curves_have_a_panel_per_cohort(camvid):
    drawing = camvid_curves(camvid)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert [title.split(",")[0] for title in titles] == ["reduced profile", "demo profile"]
    assert {curve.panel for curve in drawing.curves} == {
        t.removesuffix(", batch size 10") for t in titles
    }
    (lovasz,) = [
        curve
        for curve in drawing.curves
        if curve.label.startswith("Lovász") and curve.panel.startswith("reduced")
    ]
    assert [s.seed for s in lovasz.sources] == ["0", "1"]
    assert lovasz.data["mean"] == pytest.approx([30.0, 53.2, 55.2, 54.2])
    before = [curve for curve in drawing.curves if curve.label == "before training"]
    assert [curve.data["mean"] for curve in before] == [pytest.approx([30.0])] * 2


def test_a_run_without_validations_is_no_curve(store):
    store.add(metrics={"test/dataset_miou": 0.5})
    assert [curve.label for curve in camvid_curves(store).curves] == []


def test_classes_of_the_first_cohort(camvid):
    drawing = camvid_classes(camvid)
    assert [curve.label for curve in drawing.curves] == [
        "initial network",
        "weighted cross-entropy",
        "Lovász-Softmax",
        "sum of both",
    ]
    labels = [text.get_text() for text in drawing.figure.axes[0].get_yticklabels()]
    assert labels == ["sign symbol", "car", "sky"]
    assert drawing.curves[2].data["mean"] == pytest.approx([23.2, 53.2, 83.2])


def legend(drawing):
    (found,) = drawing.figure.legends
    return [text.get_text() for text in found.get_texts()]


def test_the_legend_has_what_is_drawn(store, add_run):
    add_run("lovasz-softmax", 0, 0.45)
    add_run("sum", 0, 0.35)
    assert legend(camvid_curves(store)) == ["Lovász-Softmax", "sum of both", "before training"]
    add_run("lovasz-softmax", 1, 0.47)
    assert any("standard deviation" in text for text in legend(camvid_curves(store)))


def test_a_line_below_the_axis_is_a_note_and_not_in_the_legend(store):
    curve = [(0, 0.1), (200, 0.60), (400, 0.61)]
    store.add(history={"val/dataset_miou": curve}, metrics={"best/iteration": 400.0})
    drawing = camvid_curves(store)
    assert legend(drawing) == ["Lovász-Softmax"]
    assert any("10.0" in text.get_text() for text in drawing.figure.axes[0].texts)


# -- colours -----------------------------------------------------------------------------------


def contrast_with_white(colour):
    """WCAG 2.2, relative luminance of sRGB."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 1.05 / (0.05 + sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True)))


def test_lines_and_grey_text_stand_out_from_white():
    lines = {colour for _, colour in (*style.SEARCHED.values(), *style.VARIANTS.values())}
    for colour in (*lines, *style.SPARE, *(colour for _, colour in MEASURE_LOOKS.values())):
        assert contrast_with_white(colour) >= 3, colour
    assert contrast_with_white(style.GREY) >= 4.5


def test_the_losses_of_figure_3_have_a_colour_each(circles):
    colours = [colour for _, colour in style.SEARCHED.values()]
    assert len(set(colours)) == len(colours)
    names = [name for name in vars(style) if vars(style)[name] in colours]
    assert {"BLUE", "SKY"} - set(names)  # one blue


# -- files -------------------------------------------------------------------------------------


def test_missing_figures_name_their_command(store, tmp_path):
    told = {}
    names = [name for name in FIGURES if name not in ("figure-1", "figure-2")]  # need no runs
    assert not write_figures(
        store, tmp_path, names, missing=lambda name, why: told.update({name: why})
    )
    assert told["figure-3"].command == "lovasz-repro synthetic"
    assert told["camvid-enet"].command == "lovasz-repro run camvid-enet"
    assert set(told) | {"figure-1", "figure-2"} == set(FIGURES)


def test_same_runs_same_bytes_that_lead_to_the_runs(camvid, circles, tmp_path):
    assert camvid is circles
    names = ["figure-3", "camvid-enet"]
    first, again = (write_figures(camvid, tmp_path / folder, names) for folder in "ab")
    assert len(first) == 4 * len(names)
    assert_same_bytes(first, again)
    content = json.loads(first[-1].read_text())
    assert content["name"] == "camvid-enet"
    for curve in content["curves"]:
        assert {"run_id", "git_commit", "config_hash", "data_fingerprint", "seed", "device"} <= set(
            curve["sources"][0]
        )


def test_a_figure_is_as_wide_as_the_page_and_leaves_matplotlib_as_it_was(circles, tmp_path):
    import matplotlib
    from PIL import Image

    before = dict(matplotlib.rcParams)
    _, png, *_ = write_figures(circles, tmp_path, ["figure-3"])
    with Image.open(png) as image:
        assert image.width == 1390  # 6.95 inches at 200 dpi
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert dict(matplotlib.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")  # another test may have imported it
    assert pyplot is None or pyplot.get_fignums() == []


def test_caption_stands_beside_the_figure_where_nothing_obeys_it(store, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawing = Drawing(Figure(figsize=(1, 1)), caption="of the runs\x1b[31m\n# forged.")
    monkeypatch.setitem(FIGURES, "figure-1", lambda store: drawing)
    write_figures(store, tmp_path, ["figure-1"])
    (caption,) = (tmp_path / "figure-1.txt").read_text().splitlines()
    assert caption.startswith("of the runs")
    assert caption.isprintable()


def test_unknown_figure(store, tmp_path):
    with pytest.raises(UserError, match="did you mean figure-1"):
        write_figures(store, tmp_path, ["figure1"])


def test_every_drawing_has_a_caption(camvid, circles):
    drawn = {name: draw(circles) for name, draw in FIGURES.items()}
    missing = {name for name, drawing in drawn.items() if isinstance(drawing, Missing)}
    assert missing == {  # see test_cityscapes.py
        "figure-4", "figure-5", "figure-6", "figure-7", "figure-8", "figure-9", "voc-measures",
        "synthetic-sweep", "camvid-as-cityscapes", "camvid-as-cityscapes-examples", "own",
    }  # fmt: skip
    for drawing in drawn.values():
        if isinstance(drawing, Drawing):
            assert drawing.caption.endswith(".")


def test_no_legend_is_wider_than_its_figure():
    for name in ("hinge", "weighted cross-entropy (loss.class_weights=enet) (10)"):
        figure = Figure(figsize=(6.95, 2.0), layout="constrained")
        entries = widest_legend(figure, [Line2D([], [], label=name) for _ in range(8)], 4, "loss")
        assert (entries == 4) == (name == "hinge")
        (legend,) = figure.legends
        figure.canvas.draw()
        assert 0 <= legend.get_window_extent().x0 < legend.get_window_extent().x1
        assert legend.get_window_extent().x1 <= figure.bbox.width
