"""Figure 4: which masks it shows, how it paints them, and that it trusts no stored file."""

import itertools
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lovasz_repro.report.figures import write_figures
from lovasz_repro.report.model import Drawing, Missing
from lovasz_repro.report.picture_figures import (
    AREA_COLOURS,
    PALE,
    colours_of_mask,
    colours_of_truth,
    figure_4,
)
from tests.fake_segmentations import png
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

LOSSES = ("cross-entropy", "hinge", "lovasz-hinge", "soft-iou")
RUN = "lovasz-repro run voc-binary"
LABELS = [[1, 0, 255], [1, 0, 0]]
PREDICTION = [[1, 1, 1], [0, 0, 0]]
PHOTO = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def add(store, loss="hinge", category="bird", ious=(0.5,), seed=0, *, scale="paper",
        images="photographs", folder="None", **changed):  # fmt: skip
    """A run with masks of 2x3 pixels, one per image-IoU; ``changed``: file -> bytes, None: none."""
    params = {"data.category": category, "data.images": images, "data.folder": folder}
    metrics = {"val/image_iou": 0.5}
    run = store.add("voc-binary", loss, seed, scale=scale, params=params, metrics=metrics)
    target = store.folder / run.run_id / "masks"
    target.mkdir(parents=True)
    listed = [
        {"name": f"2007_00000{k}", "height": 2, "width": 3, "image_iou": iou, "basis_iou": 0.25}
        for k, iou in enumerate(ious)
    ]
    files = {"masks.json": json.dumps({"masks": listed}).encode()}
    for k in range(len(ious)):
        files |= {f"{k}-prediction.png": png(PREDICTION), f"{k}-basis.png": png([[0] * 3] * 2)}
        files |= {f"{k}-labels.png": png(LABELS)}
        files |= {f"{k}-photo.png": png(PHOTO)} if images == "photographs" else {}
    for name, data in (files | changed).items():
        if data is not None:
            (target / name).write_bytes(data)
    return run


def add_all(store, category, *ious, losses=LOSSES, **kwargs):
    """A run per loss; ``ious``: per image, those of the losses in order."""
    by_loss = zip(*ious, strict=True)
    return [add(store, n, category, i, **kwargs) for n, i in zip(losses, by_loss, strict=False)]


# -- what is shown -----------------------------------------------------------------------------


def test_columns_are_photograph_truth_basis_and_every_loss(store):
    add_all(store, "bird", (0.1, 0.2, 0.9, 0.3))
    drawing = figure_4(store)
    losses = ["cross-entropy", "hinge", "Lovász hinge", "soft IoU"]
    assert column_heads(drawing) == ["photograph", "ground truth", "basis network", *losses]
    assert under(drawing) == [
        ["bird", "2007_000000", "IoU 25.0", "IoU 10.0", "IoU 20.0", "IoU 90.0", "IoU 30.0"]
    ]
    weights = [axes.xaxis.label.get_weight() for axes in drawing.figure.axes]
    assert weights == ["normal"] * 5 + ["bold", "normal"]
    pictures = shown_pictures(drawing)
    assert pictures[0].tolist() == PHOTO.tolist()
    assert pictures[1].tolist() == colours_of_truth(np.array(LABELS)).tolist()
    assert pictures[5].tolist() == colours_of_mask(np.array(PREDICTION), np.array(LABELS)).tolist()
    assert "not the paper's" not in drawing.caption.lower()


def test_rows_are_the_categories_whose_losses_differ_most(store):
    spreads = {"cat": 0.1, "bird": 0.5, "dog": 0.4, "cow": 0.3, "bus": 0.2}
    for category, spread in spreads.items():
        alike = (0.5, 0.5, 0.5, 0.5)
        add_all(store, category, alike, (0.3, 0.3 + spread, 0.3, 0.3), (0.5, 0.5, 0.51, 0.5))
    rows = under(figure_4(store))
    assert [row[0] for row in rows] == ["bird", "dog", "cow", "bus"]
    assert {row[1] for row in rows} == {"2007_000001"}


def test_the_bicycle_of_the_paper_comes_first(store):
    for category, spread in {"bus": 0.5, "bicycle": 0.1}.items():
        alike = (0.3, 0.4, 0.3, 0.3)
        add_all(store, category, alike, (0.3, 0.4 + spread, 0.3, 0.3))
    rows = under(figure_4(store))
    assert [tuple(row[:2]) for row in rows] == [
        ("bicycle", "2007_000001"), ("bus", "2007_000001"),
        ("bicycle", "2007_000000"), ("bus", "2007_000000"),
    ]  # fmt: skip


def test_other_images_of_a_category_come_after_those_of_others(store):
    add_all(store, "bird", (0.0, 0.9, 0.0, 0.0), (0.0, 0.8, 0.0, 0.0), (0.0, 0.7, 0.0, 0.0))
    add_all(store, "cat", (0.5, 0.6, 0.5, 0.5))
    rows = under(figure_4(store))
    assert [tuple(row[:2]) for row in rows] == [
        ("bird", "2007_000000"), ("cat", "2007_000000"),
        ("bird", "2007_000001"), ("bird", "2007_000002"),
    ]  # fmt: skip


def test_features_have_no_photograph_and_say_so(store):
    add_all(store, "bird", (0.1, 0.2, 0.9, 0.3), images="features", scale="reduced")
    drawing = figure_4(store)
    assert drawing.figure.axes[0].get_title() == "ground truth"
    assert under(drawing)[0][0] == "bird, 2007_000000"
    title = grid_title(drawing)
    assert title.startswith("Not the paper's: no paper-scale runs on photographs have stored masks")
    assert "Evidence drawn from the real masks" in title
    for part in ("not the paper's Figure 4", "features: noise drawn from the masks",
                 "reduced scale", "not the best-looking"):  # fmt: skip
        assert part in drawing.caption


def test_the_papers_runs_are_taken_where_they_are_stored(store):
    ious = (0.1, 0.2, 0.9, 0.3)
    add_all(store, "bird", ious, scale="demo", folder="voc-demo")
    add_all(store, "bird", ious, scale="paper", images="features")
    paper = add_all(store, "bird", ious)
    drawing = figure_4(store)
    assert shown_runs(drawing) == {run.run_id for run in paper}
    assert "Not the paper's" not in grid_title(drawing)


def test_a_demo_says_what_it_is_and_the_picture_says_what_it_shows(store):
    add_all(store, "bird", (0.1, 0.2, 0.3, 0.9), scale="demo", folder="voc-demo")
    drawing = figure_4(store)
    assert "says nothing of the paper" in drawing.caption
    assert "differ most" in grid_title(drawing)


def test_runs_of_a_row_have_one_seed(store):
    add(store, "hinge", seed=0)
    add(store, "hinge", seed=2)
    for number in (9, 10, 11):
        add_all(store, "bird", (0.1, 0.9), losses=("hinge", "lovasz-hinge"), seed=number)
    wanted = [run for run in store.stored if run.tags["seed"] == "9"]
    drawing = figure_4(store)
    assert shown_runs(drawing) == {run.run_id for run in wanted}
    assert "seed 9." in drawing.caption


def test_sidecar_has_every_iou_and_its_run(store, tmp_path):
    runs = add_all(store, "bird", (0.1, 0.2, 0.9, 0.3))
    paths = write_figures(store, tmp_path, ["figure-4"])
    curves = json.loads(paths[-1].read_text())["curves"]
    assert [(c["panel"], c["label"], c["data"]["image_iou"]) for c in curves] == [
        ("bird, 2007_000000", "basis network", [0.25]),
        ("bird, 2007_000000", "cross-entropy", [0.1]),
        ("bird, 2007_000000", "hinge", [0.2]),
        ("bird, 2007_000000", "Lovász hinge", [0.9]),
        ("bird, 2007_000000", "soft IoU", [0.3]),
    ]
    assert [c["sources"][0]["run_id"] for c in curves[1:]] == [run.run_id for run in runs]
    again = write_figures(store, tmp_path / "again", ["figure-4"])
    assert_same_bytes(paths, again)


def test_colours_say_what_a_mask_gets_right():
    labels = np.array([[1, 1, 0, 0, 255, 255]])
    mask = np.array([[1, 0, 1, 0, 1, 0]])
    names = ["foreground", "foreground that the mask misses", "foreground in the mask alone", None,
             "void (not scored)", None]  # fmt: skip
    wanted = [[round(255 * c) for c in to_rgb(AREA_COLOURS.get(n, PALE))] for n in names]
    assert colours_of_mask(mask, labels)[0].tolist() == wanted
    truth = ["foreground", "foreground", None, None, "void (not scored)", "void (not scored)"]
    wanted = [[round(255 * c) for c in to_rgb(AREA_COLOURS.get(n, PALE))] for n in truth]
    assert colours_of_truth(labels)[0].tolist() == wanted
    assert len(set(AREA_COLOURS.values()) | {PALE}) == 5


# -- what is missing ---------------------------------------------------------------------------


def test_without_runs_or_masks_a_note_with_the_command(store):
    assert figure_4(store) == Missing("no finished set of voc-binary runs is stored", RUN)
    for loss in ("hinge", "lovasz-hinge"):
        add(store, loss, **{"masks.json": None})
    reason = "no finished set of voc-binary runs has masks (masks/) of two losses or more"
    assert figure_4(store) == Missing(reason, RUN)


def test_one_loss_alone_is_not_compared(store):
    add(store, "lovasz-hinge", ious=(0.9,))
    assert isinstance(figure_4(store), Missing)
    add(store, "hinge", ious=(0.4,))
    assert isinstance(figure_4(store), Drawing)


# -- files that are not what they should be ----------------------------------------------------


def listing(**changes):
    entry = {"name": "2007_000000", "height": 2, "width": 3, "image_iou": 0.4, "basis_iou": 0.25}
    return json.dumps({"masks": [entry | changes]}).encode()


BROKEN = {  # what is common to all pictures: see test_voc_multiclass_pictures.py
    "iou": ("masks.json", listing(image_iou=1.5), "image_iou"),
    "no number": ("masks.json", listing(basis_iou=float("nan")), "basis_iou"),
    "values": ("0-prediction.png", png([[1, 2, 0]] * 2), "holds 2, which is no value of a mask"),
    "void found": ("0-basis.png", png(LABELS), "holds 255, which is no value of a mask"),
    "class ids": ("0-labels.png", png([[15, 0, 255]] * 2), "holds 15, which is no value of a mask"),
    "gone": ("0-labels.png", None, "listed, but not stored"),
}


@pytest.mark.parametrize(("name", "data", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named_and_passed_over(store, name, data, problem):
    broken = add(store, "cross-entropy", "bird", (0.1,), **{name: data})
    add(store, "hinge", "bird", (0.9,))
    missing = figure_4(store)
    assert isinstance(missing, Missing)
    assert f"{broken.name}, masks/{name}: " in missing.reason
    assert problem in missing.reason
    add_all(store, "cat", (0.4, 0.5), losses=LOSSES[:2])
    drawing = figure_4(store)
    assert [row[0] for row in under(drawing)] == ["cat"]
    assert f"Passed over: {broken.name}, masks/{name}: " in drawing.caption


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"masks.json": listing(name="2007_000009")}, "masks of different images"),
        ({"masks.json": b'{"masks": []}'}, "masks of different images"),
        ({"masks.json": listing(height=3)}, "masks of different images"),
        ({"0-labels.png": png([[0] * 3] * 2)}, "disagree on the labels"),
    ],
)
def test_runs_that_do_not_fit_together_are_passed_over(store, changed, problem):
    add(store, "hinge", "bird")
    add(store, "lovasz-hinge", "bird", **changed)
    missing = figure_4(store)
    assert isinstance(missing, Missing)
    assert problem in missing.reason


@pytest.mark.parametrize(
    ("size", "images"),
    [((2, 3), "photographs"), ((400, 100), "features"), ((20, 300), "photographs")],
)
def test_nothing_leaves_the_page(store, size, images):
    entry = {"name": "2007_000000", "height": size[0], "width": size[1], "basis_iou": 1.0}
    files = {f"0-{kind}.png": png(np.zeros(size)) for kind in ("labels", "basis", "prediction")}
    files["0-photo.png"] = png(np.zeros(size), "RGB")
    for category, loss in itertools.product(("diningtable", "motorbike", "cow", "cat"), LOSSES):
        content = {"masks": [entry | {"image_iou": 1.0}]}
        files["masks.json"] = json.dumps(content).encode()
        scale = "paper" if images == "photographs" else "reduced"
        add(store, loss, category, scale=scale, images=images, **files)
    assert_tidy_grid(drawn(figure_4, store))
