"""Figures 5 and 7: which runs and images they show, and how they say so."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from lovasz_repro.report.examples import detail_window
from lovasz_repro.report.figures import FIGURES, write_figures
from lovasz_repro.report.model import Missing
from lovasz_repro.report.picture_figures import VOC_PALETTE
from tests.fake_segmentations import LABELS, PHOTO, add, masks_of, png
from tests.report_files import (
    assert_same_bytes,
    assert_tidy_grid,
    column_heads,
    drawn,
    grid_title,
    shown_pictures,
    shown_runs,
    under,
)

figure_5, figure_7 = FIGURES["figure-5"], FIGURES["figure-7"]
RUN = "lovasz-repro run voc-multiclass"
LIST = "segmentations.json"


# -- what is shown -----------------------------------------------------------------------------


def test_figure_5_has_the_papers_columns(store):
    add(store, "lovasz", masks_of(0), crf=masks_of(1), score=0.625)
    add(store, "x-loss", masks_of(0), crf=masks_of(5), score=0.25)
    drawing = figure_5(store)
    assert column_heads(drawing) == [
        "input", "ground truth", "Lovász-Softmax + CRF", "cross-entropy + CRF"
    ]  # fmt: skip
    # of the five scored pixels, those at places 1, 3 and 4 differ
    assert under(drawing) == [["2007_000000", "masks differ on 60.0%", "mIoU 75.0", "mIoU 37.5"]]
    weights = [axes.xaxis.label.get_weight() for axes in drawing.figure.axes]
    assert weights == ["normal", "normal", "bold", "normal"]
    found = shown_pictures(drawing)
    assert found[0].tolist() == PHOTO.tolist()
    person, cat, void, nothing = [192, 128, 128], [64, 0, 0], [224, 224, 192], [0, 0, 0]
    assert found[1].tolist() == [[nothing, nothing, void], [person, person, nothing]]
    assert found[2].tolist() == [[cat, nothing, nothing], [person, person, nothing]]
    assert found[3].tolist() == [[cat, cat, cat], [cat, cat, nothing]]
    [legend] = drawing.figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["background", "cat", "person", "void (not scored)"]
    colours = [[round(255 * c) for c in p.get_facecolor()[:3]] for p in legend.get_patches()]
    assert colours == [nothing, cat, person, void]
    assert "not the paper's" not in (drawing.caption + grid_title(drawing)).lower()
    assert "refined by the CRF" in drawing.caption


def test_figure_7_has_the_papers_columns_and_no_crf(store):
    add(store, "lovasz", masks_of(0), crf=masks_of(1))
    add(store, "lovasz-per-image", masks_of(2), crf=masks_of(1))
    drawing = figure_7(store)
    assert column_heads(drawing) == ["input", "ground truth", "per batch", "per image"]
    assert under(drawing)[0][1:] == ["masks differ on 40.0%", "mIoU 50.0", "mIoU 50.0"]
    # 2x3 pixels: windows of 2x2; of those with both differing pixels, there is the left one
    assert [picture.shape for picture in shown_pictures(drawing)] == [(2, 2, 3)] * 4
    assert shown_pictures(drawing)[0].tolist() == PHOTO[:, :2].tolist()
    assert "no CRF" in drawing.caption
    assert "not the paper's" not in (drawing.caption + grid_title(drawing)).lower()


def test_rows_are_the_images_whose_masks_differ_most(store):
    add(store, "lovasz", masks_of(0, 0, 0, 0, 0))
    add(store, "lovasz-per-image", masks_of(1, 5, 0, 2, 4))
    rows = under(figure_7(store))
    # of place 2, void in the labels, nothing counts
    assert [row[:2] for row in rows] == [
        ["2007_000001", "masks differ on 80.0%"],
        ["2007_000004", "masks differ on 60.0%"],
        ["2007_000003", "masks differ on 40.0%"],
        ["2007_000000", "masks differ on 20.0%"],
    ]


def test_the_first_pair_of_variants_that_is_stored_is_shown(store):
    for suffix in ("", "-equibatch", "-equibatch-30k"):
        one = add(store, f"lovasz{suffix}", masks_of(0), crf=masks_of(0))
        other = add(store, f"x-loss{suffix}", masks_of(1), crf=masks_of(1))
        assert shown_runs(figure_5(store)) == {one.run_id, other.run_id}
    assert "Lovász-Softmax + equibatch 30K; cross-entropy + equibatch 30K" in grid_title(
        figure_5(store)
    )


def test_runs_of_a_figure_have_one_seed(store):
    add(store, "lovasz", masks_of(0), seed=0)
    add(store, "x-loss", masks_of(1), seed=2)
    assert isinstance(figure_5(store), Missing)
    wanted = [add(store, name, masks_of(1), seed=9) for name in ("lovasz", "x-loss")]
    for name in ("lovasz", "x-loss"):
        add(store, name, masks_of(1), seed=10)
    drawing = figure_5(store)
    assert shown_runs(drawing) == {run.run_id for run in wanted}
    assert "seed 9." in drawing.caption


def test_batches_of_the_paper_come_first_and_sizes_are_not_mixed(store):
    add(store, "lovasz", masks_of(0), scale="reduced", batch=5)
    add(store, "x-loss", masks_of(0), scale="reduced", batch=10)
    assert isinstance(figure_5(store), Missing)
    wanted = add(store, "lovasz", masks_of(0), scale="reduced", batch=10)
    add(store, "x-loss", masks_of(0), scale="reduced", batch=5)
    assert wanted.run_id in shown_runs(figure_5(store))


def test_the_papers_runs_come_first_and_others_say_that_they_are_not(store):
    others = [
        add(store, name, masks_of(1), crf=masks_of(1), scale="demo", folder="voc-demo")
        for name in ("lovasz", "x-loss")
    ]
    drawing = figure_5(store)
    assert shown_runs(drawing) == {run.run_id for run in others}
    lacking = "no paper-scale runs on photographs have stored masks"
    assert grid_title(drawing).startswith(
        f"Not the paper's: {lacking}. Shown: Lovász-Softmax; cross-"
    )
    assert f"This is not the paper's Figure 5: {lacking}." in drawing.caption
    assert "Drawn pictures in the layout of Pascal VOC" in grid_title(drawing)
    for name in ("lovasz-equibatch-30k", "x-loss-equibatch-30k"):  # no CRF: not quite the paper's
        add(store, name, masks_of(1))
    drawing = figure_5(store)
    assert column_heads(drawing)[2:] == ["Lovász-Softmax", "cross-entropy"]
    lacking = "no paper-scale runs have stored masks after the CRF"
    assert grid_title(drawing).startswith(f"Not the paper's: {lacking}. Shown: ")
    assert f"This is not the paper's Figure 5: {lacking}." in drawing.caption
    assert "no CRF" in drawing.caption
    wanted = [add(store, n, masks_of(1), crf=masks_of(1), seed=1) for n in ("lovasz", "x-loss")]
    assert shown_runs(figure_5(store)) == {run.run_id for run in wanted}
    assert "Not the paper's" not in grid_title(figure_5(store))


def test_masks_after_the_crf_are_shown_where_all_are_stored(store):
    add(store, "lovasz", masks_of(0), crf=masks_of(0))
    add(store, "x-loss", masks_of(1))
    drawing = figure_5(store)
    assert column_heads(drawing)[2:] == ["Lovász-Softmax", "cross-entropy"]
    assert under(drawing)[0][1] == "masks differ on 20.0%"


def test_features_have_no_photograph_and_say_so(store):
    for name, wrong in (("lovasz", 0), ("lovasz-per-image", 2)):
        add(store, name, masks_of(wrong), images="features", scale="reduced")
    drawing = figure_7(store)
    assert column_heads(drawing) == ["ground truth", "per batch", "per image"]
    assert under(drawing)[0][0] == "2007_000000, masks differ on 40.0%"
    assert "Evidence drawn from the real masks" in grid_title(drawing)
    assert "This is not the paper's Figure 7" in drawing.caption
    assert "features: noise drawn from the masks" in drawing.caption


def test_sidecar_has_scores_and_runs_and_the_same_runs_give_the_same_bytes(store, tmp_path):
    runs = [
        add(store, "lovasz", masks_of(0), score=0.75),
        add(store, "lovasz-per-image", masks_of(2), score=0.5),
    ]
    paths = write_figures(store, tmp_path, ["figure-7"])
    curves = json.loads(paths[-1].read_text())["curves"]
    where = {"differs": [0.4], "window": [0, 0, 2, 2]}
    assert [(c["panel"], c["label"], c["data"]) for c in curves] == [
        ("2007_000000", "Lovász-Softmax", {"batch_miou": [0.75]} | where),
        ("2007_000000", "Lovász-Softmax per image, all classes", {"batch_miou": [0.5]} | where),
    ]
    assert [c["sources"][0]["run_id"] for c in curves] == [run.run_id for run in runs]
    again = write_figures(store, tmp_path / "again", ["figure-7"])
    assert_same_bytes(paths, again)


# -- details -----------------------------------------------------------------------------------


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9)), st.data())
def test_a_detail_holds_most_of_the_difference(differing, data):
    top, left, height, width = detail_window(differing)
    full = differing.shape
    assert 10 * height >= 6 * full[0] > 10 * (height - 1)
    assert 10 * width >= 6 * full[1] > 10 * (width - 1)
    places = itertools.product(range(full[0] - height + 1), range(full[1] - width + 1))
    held = {at: differing[at[0] :, at[1] :][:height, :width].sum() for at in places}
    assert held[top, left] == max(held.values())
    rows, columns = np.nonzero(differing) if differing.any() else np.indices(full)
    middle = rows.mean() - (height - 1) / 2, columns.mean() - (width - 1) / 2
    away = {at: (at[0] - middle[0]) ** 2 + (at[1] - middle[1]) ** 2 for at in held}
    best = min(away[at] for at in held if held[at] == held[top, left])
    assert away[top, left] <= best + 1e-9


def test_a_small_difference_is_in_the_middle_of_its_detail():
    differing = np.zeros((100, 200), dtype=bool)
    differing[48:53, 88:93] = True
    assert detail_window(differing) == (20, 30, 60, 120)


# -- what is missing or broken -----------------------------------------------------------------


def test_without_runs_or_masks_a_note_with_the_command(store):
    missing = figure_7(store)
    reason = (
        "no finished voc-multiclass runs of one seed have masks (segmentations/): "
        "lovasz and lovasz-per-image"
    )
    assert missing == Missing(reason, RUN)
    add(store, "lovasz", masks_of(0))
    add(store, "lovasz-per-image", masks_of(0), files={LIST: None})
    assert figure_7(store) == Missing(reason, RUN)
    missing = figure_5(store)
    assert isinstance(missing, Missing)
    assert "lovasz-equibatch and x-loss-equibatch or lovasz and x-loss" in missing.reason


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("0-prediction.png", b"GIF89a"),
        ("0-labels.png", None),
        ("0-photo.png", png(LABELS)),
        ("0-labels.png", png([[0, 0, 0], [15, 15, 0]])),
    ],
)
def test_a_broken_image_is_passed_over_and_the_others_shown(store, name, data):
    broken = add(store, "lovasz", masks_of(0, 0), files={name: data})
    add(store, "x-loss", masks_of(4, 2))
    drawing = figure_5(store)
    assert [row[0] for row in under(drawing)] == ["2007_000001"]
    problem = f"{broken.name}, segmentations/{name}: "
    if data is not None and name == "0-labels.png":
        problem = "2007_000000: lovasz-b10-s0 and x-loss-b10-s0 disagree on the labels"
    assert f"Passed over: {problem}" in drawing.caption


def test_a_broken_list_leaves_the_next_pair(store):
    broken = add(store, "lovasz-equibatch", masks_of(0), files={LIST: b"{"})
    add(store, "x-loss-equibatch", masks_of(1))
    missing = figure_5(store)
    assert isinstance(missing, Missing)
    assert f"{broken.name}, segmentations/{LIST}: not readable as JSON" in missing.reason
    wanted = [add(store, name, masks_of(1)) for name in ("lovasz", "x-loss")]
    drawing = figure_5(store)
    assert shown_runs(drawing) == {run.run_id for run in wanted}
    assert f"Passed over: {broken.name}, segmentations/{LIST}: " in drawing.caption


# -- on the page -------------------------------------------------------------------------------


def test_colours_are_those_of_pascal_voc():
    published = {0: (0, 0, 0), 1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128),
                 20: (0, 64, 128), 255: (224, 224, 192)}  # fmt: skip
    ids = np.array([list(published)], np.uint8)
    assert VOC_PALETTE.paint(ids)[0].tolist() == [list(colour) for colour in published.values()]


@pytest.mark.parametrize(
    ("size", "images"),
    [((2, 3), "photographs"), ((400, 100), "features"), ((20, 300), "photographs")],
)
def test_nothing_leaves_the_page(store, size, images):
    every = np.resize(np.arange(21, dtype=np.uint8), size)
    scores = {"prediction": 1.0, "crf": 1.0}
    names = [{"name": f"2007_00000{k}" + "x" * 25} for k in range(4)]
    content = [n | {"height": size[0], "width": size[1], "batch_miou": scores} for n in names]
    files = {LIST: json.dumps({"segmentations": content}).encode()}
    for k in range(4):
        files |= {f"{k}-{kind}.png": png(every) for kind in ("prediction", "crf")}
        files |= {f"{k}-labels.png": png(np.full(size, 255)), f"{k}-photo.png": png(every, "RGB")}
    scale = "paper" if images == "photographs" else "reduced"
    for name in ("lovasz-equibatch-30k", "x-loss-equibatch-30k"):
        add(store, name, [], scale=scale, images=images, files=files)
    figure = drawn(figure_5, store)
    assert_tidy_grid(figure)
    labels = [ax.xaxis.label for ax in figure.axes]
    lowest = min(label.get_window_extent().y0 for label in labels)
    [legend] = figure.legends
    assert legend.get_window_extent().y1 <= lowest
