"""Sec. 4.4: the paper's Table 4 and Figures 8 and 9, and what stands beside them for CamVid."""

import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from lovasz_repro.report.curves import CurveLook
from lovasz_repro.report.figures import FIGURES as DRAWN
from lovasz_repro.report.figures import write_figures
from lovasz_repro.report.layout import layout
from lovasz_repro.report.model import Missing
from lovasz_repro.report.picture_figures import CITYSCAPES_PALETTE
from lovasz_repro.report.runs import cohorts
from lovasz_repro.report.style import VARIANTS, shades
from lovasz_repro.report.tables import TABLES
from tests.fake_segmentations import png
from tests.report_files import (
    assert_on_page,
    assert_same_bytes,
    cells,
    drawn,
    grid_title,
    shown_pictures,
    shown_runs,
    write_tables,
)

camvid_as_cityscapes, cityscapes_enet, table_4 = (
    TABLES[name] for name in ("camvid-as-cityscapes", "cityscapes-enet", "table-4")
)
figure_8, figure_9 = DRAWN["figure-8"], DRAWN["figure-9"]
camvid_as_cityscapes_curves = DRAWN["camvid-as-cityscapes"]
camvid_as_cityscapes_examples = DRAWN["camvid-as-cityscapes-examples"]
LOVASZ, WEIGHTED = "lovasz-softmax", "weighted-cross-entropy"
EQUIBATCH = "lovasz-softmax-equibatch"
ENET, CAMVID = "cityscapes-enet", "camvid-as-cityscapes"
RECORD = "lovasz-repro run cityscapes-enet, then lovasz-repro runs record RUN --server-scores FILE"
NEW_TABLES = ["table-4", ENET, CAMVID, f"{CAMVID}-classes"]
FIGURES = ["figure-8", "figure-9", CAMVID, f"{CAMVID}-examples"]

# a few lines of cityscapesScripts' helpers/labels.py: id, colour
ROAD, BUILDING, POLE, SKY, CAR, TRAIN = 7, 11, 17, 23, 26, 31
OFFICIAL = {
    ROAD: (128, 64, 128),
    BUILDING: (70, 70, 70),
    POLE: (153, 153, 153),
    SKY: (70, 130, 180),
    CAR: (0, 0, 142),
    TRAIN: (0, 80, 100),
}
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)
PIXELS = {"labels": [[CAR, ROAD, 4], [SKY, 0, POLE]], "before": [[ROAD] * 3] * 2,
          "after": [[CAR, ROAD, ROAD], [SKY, BUILDING, POLE]]}  # fmt: skip


ELEVEN = ("road", "sidewalk", "building", "fence", "pole", "traffic sign", "vegetation", "sky",
          "person", "car", "bicycle")  # fmt: skip


def add(store, score, variant=LOVASZ, batch=10, seed=0, *, experiment=ENET, scale="paper",
        folder=None, before=0.604, metrics=None, **kwargs):  # fmt: skip
    """A run with ``score`` as Class IoU at its best snapshot 20 of 30 iterations."""
    curve = [(0, before), (10, score - 0.03), (20, score), (30, score - 0.01)]
    offsets = {"dataset_miou": 0.0, "class_iiou": -0.3, "category_iou": 0.2, "category_iiou": 0.01}
    history = {f"val/{k}": [(step, v + o) for step, v in curve] for k, o in offsets.items()}
    if experiment == CAMVID:
        history |= {f"val/iou/{name}": [(k, v + 0.2) for k, v in curve] for name in ELEVEN}
    usual = {CAMVID: "camvid-cityscapes", ENET: "None"}
    params = {
        "data.name": "cityscapes",
        "data.folder": folder or usual[experiment],
        "data.equibatch": str(variant == EQUIBATCH),
        "model.weights": "enet-cityscapes",
    }
    return store.add(
        experiment, variant, seed, batch=batch, scale=scale, history=history, params=params,
        metrics={"best/iteration": 20.0} | (metrics or {}), **kwargs,
    )  # fmt: skip


def both(table):
    """Rows of all blocks."""
    return {k: v for i in range(len(table.blocks)) for k, v in cells(table, i).items()}


# -- table 4 -----------------------------------------------------------------------------------


def test_table_4_from_paper_scale_runs(store):
    for seed, score in enumerate((0.63, 0.65)):
        add(store, score, seed=seed)
    add(store, 0.7, batch=20)
    add(store, 0.605, WEIGHTED)
    add(store, 0.8, EQUIBATCH)
    rows = both(table_4(store))
    tuned, released = rows["finetuned-val"], rows["enet-val"]
    values = [tuned[key].value for key in ("class-iou", "class-iiou", "category-iou")]
    assert values == pytest.approx([64.0, 34.0, 84.0])
    assert (tuned["category-iiou"].value, tuned["class-iou"].n) == (pytest.approx(65.0), 2)
    assert tuned["class-iou"].spread == pytest.approx(math.sqrt(2))
    assert [s.seed for s in tuned["class-iou"].sources] == ["0", "1"]
    assert released["class-iou"].value == pytest.approx(60.4)
    assert released["class-iou"].difference == pytest.approx(0.0)
    assert released["class-iiou"].value == pytest.approx(30.4)
    assert released["class-iou"].spread is None


def test_table_4_takes_paper_scale_cityscapes_alone(store):
    add(store, 0.9, scale="reduced")
    add(store, 0.9, scale="demo", folder="cityscapes-demo")
    add(store, 0.9, scale="paper", experiment=CAMVID)
    add(store, 0.9, scale="paper", folder="camvid-cityscapes")
    add(store, 0.9, status="RUNNING")
    server = {f"server/{key}": 0.9 for key in ("dataset_miou", "class_iiou")}
    add(store, 0.9, scale="demo", metrics=server | {f"initial/{k}": 0.9 for k in server})
    table = table_4(store)
    assert all(
        cell.value is None and cell.command for r in both(table).values() for cell in r.values()
    )
    assert "90.00" not in " ".join(
        c.text for s in layout(table).sections for row in s.lines for c in row.cells
    )
    add(store, 0.63)
    rows = both(table_4(store))
    assert rows["finetuned-val"]["class-iou"].value == pytest.approx(63.0)
    assert rows["enet-val"]["class-iou"].value == pytest.approx(60.4)


def test_another_batch_size_is_not_the_papers_network(store):
    add(store, 0.63, batch=20)
    rows = both(table_4(store))
    assert rows["finetuned-val"]["class-iou"].value is None
    assert rows["enet-val"]["class-iou"].value == pytest.approx(60.4)


def test_server_scores_stand_in_the_test_rows_alone(store):
    names = ("dataset_miou", "class_iiou", "category_iou", "category_iiou")
    after = {f"server/{n}": v for n, v in zip(names, (0.6306, 0.3406, 0.8358, 0.61), strict=True)}
    before = {f"initial/server/{n}": 0.5829 for n in names[:2]}
    add(store, 0.65, metrics=after)
    add(store, 0.605, WEIGHTED, metrics=before)
    rows = both(table_4(store))
    tuned = [cell.value for cell in rows["finetuned-test"].values()]
    assert tuned == pytest.approx([63.06, 34.06, 83.58, 61.0])
    assert rows["finetuned-test"]["category-iiou"].difference == pytest.approx(-0.05)
    released = rows["enet-test"]
    assert released["class-iou"].value == pytest.approx(58.29)
    assert released["category-iou"].value is None
    assert rows["finetuned-val"]["class-iou"].value == pytest.approx(65.0)


def test_validation_scores_never_fill_the_test_rows(store):
    add(store, 0.63)
    rows = both(table_4(store))
    for row, fill in (("enet-test", f"{RECORD} --initial"), ("finetuned-test", RECORD)):
        assert {cell.value for cell in rows[row].values()} == {None}
        assert {cell.command for cell in rows[row].values()} == {fill}


def test_dashes_of_table_4_carry_their_commands(store):
    rows = both(table_4(store))
    commands = {key: {cell.command for cell in row.values()} for key, row in rows.items()}
    run = {"lovasz-repro run cityscapes-enet"}
    assert commands == {
        "enet-test": {f"{RECORD} --initial"}, "finetuned-test": {RECORD},
        "enet-val": run, "finetuned-val": run,
    }  # fmt: skip
    notes = " ".join(layout(table_4(store)).notes)
    assert RECORD in notes
    assert "batches of 10" in notes


def test_several_paper_scale_sets_never_merge(store):
    add(store, 0.63)
    add(store, 0.70, tags={"data_fingerprint": "another"})
    table = table_4(store)
    assert both(table)["finetuned-val"]["class-iou"].n == 1
    assert "1 more: table `cityscapes-enet`" in table.notes[-1]


# -- tables of every scale ---------------------------------------------------------------------


def test_every_set_of_runs_has_its_heading(store):
    add(store, 0.63)
    add(store, 0.30, scale="demo", folder="cityscapes-demo")
    add(store, 0.31, EQUIBATCH, scale="demo", folder="cityscapes-demo")
    table = cityscapes_enet(store)
    assert [block.heading.split(",")[0] for block in table.blocks] == [
        "Cityscapes: paper profile",
        "Drawn streets in the layout of Cityscapes: demo profile",
    ]
    demo = cells(table, 1)
    assert demo["lovasz-softmax-b10"]["class-iou"].value == pytest.approx(30.0)
    assert demo["lovasz-softmax-equibatch-b10"]["class-iou"].value == pytest.approx(31.0)
    assert "not the paper's table" in table.caption
    assert table.compares is False


def test_cells_that_the_profile_plans_are_dashes_until_they_are_run(store):
    add(store, 0.63)
    rows = cells(cityscapes_enet(store))
    assert list(rows) == [
        "initial", "weighted-cross-entropy-b10", "lovasz-softmax-b2", "lovasz-softmax-b5",
        "lovasz-softmax-b10", "lovasz-softmax-b20", "lovasz-softmax-equibatch-b10",
    ]  # fmt: skip
    missing = rows["lovasz-softmax-b20"]["class-iou"]
    assert (missing.value, missing.command) == (None, "lovasz-repro run cityscapes-enet")


def test_a_recipe_that_was_altered_plans_nothing(store):
    add(store, 0.63, scale="reduced", profile="paper")
    assert list(cells(cityscapes_enet(store))) == ["initial", "lovasz-softmax-b10"]


def test_the_starting_point_is_named(store):
    add(store, 0.63)
    add(store, 0.63, scale="demo")
    store.stored[-1].params["model.weights"] = "None"
    labels = [block.rows[0].label for block in cityscapes_enet(store).blocks]
    assert labels == ["released network, before training", "random weights, before training"]


def test_camvid_is_never_called_cityscapes(store):
    test = {"test/dataset_miou": 0.5, "initial/test/dataset_miou": 0.2}
    add(store, 0.52, experiment=CAMVID, scale="reduced", metrics=test)
    table = camvid_as_cityscapes(store)
    assert table.blocks[0].heading.startswith("CamVid in the layout of Cityscapes: reduced")
    rows = cells(table)
    assert rows["lovasz-softmax-b10"]["test-class-iou"].value == pytest.approx(50.0)
    assert rows["initial"]["test-class-iou"].value == pytest.approx(20.0)
    for part in ("CamVid is not a data set of the paper", "connected components"):
        assert part in table.caption
    for name in ("table-4", ENET):
        values = {c.value for r in both(TABLES[name](store)).values() for c in r.values() if c}
        assert values == {None}


def test_what_a_scored_network_lacks_is_blank_not_not_yet_run(store):
    run = add(store, 0.52, experiment=CAMVID, scale="reduced")
    nan = [(0, math.nan), (20, math.nan)]
    store.histories[run.run_id] = {**store.histories[run.run_id], "val/class_iiou": nan}
    rows = cells(camvid_as_cityscapes(store))
    for row in ("initial", "lovasz-softmax-b10"):
        assert rows[row]["class-iiou"] is None
        assert rows[row]["test-class-iou"] is None
        assert rows[row]["class-iou"].value is not None


def test_classes_that_occur(store):
    metrics = {"test/iou/road": 0.9, "test/iou/car": 0.5, "test/iou/train": math.nan}
    metrics |= {"initial/test/iou/road": 0.3, "initial/test/iou/bus": 0.0, "test/dataset_miou": 0.7}
    add(store, 0.5, experiment=CAMVID, scale="reduced", metrics=metrics)
    rows = cells(TABLES[f"{CAMVID}-classes"](store))
    assert list(rows) == ["road", "car", "bus", "Class IoU"]
    assert rows["road"]["lovasz-softmax-b10"].value == pytest.approx(90.0)
    assert rows["bus"]["initial"].value == 0.0
    assert rows["bus"]["lovasz-softmax-b10"] is None
    missing = rows["road"]["lovasz-softmax-b20"]
    assert missing.command == "lovasz-repro run camvid-as-cityscapes --profile reduced"
    assert rows["Class IoU"]["lovasz-softmax-b10"].value == pytest.approx(70.0)


def test_the_mean_over_camvids_classes_leaves_out_what_is_not_annotated(store):
    ious = {name: 0.4 + 0.05 * k for k, name in enumerate(ELEVEN)}
    run = add(
        store, 0.3, experiment=CAMVID, scale="reduced",
        metrics={"test/iou/train": 0.0}
        | {f"test/iou/{k}": v - 0.1 for k, v in ious.items()}
        | {f"initial/test/iou/{k}": v - 0.3 for k, v in ious.items()},
    )  # fmt: skip
    curves = {f"val/iou/{k}": [(0, v - 0.2), (20, v), (30, v - 0.1)] for k, v in ious.items()}
    curves["val/iou/train"] = [(0, 0.0), (20, 0.0), (30, 0.0)]
    store.histories[run.run_id] |= curves
    rows = both(camvid_as_cityscapes(store))
    mean = 100 * sum(ious.values()) / 11
    for row, val, test in (("lovasz-softmax-b10", 0, -10), ("initial", -20, -30)):
        assert rows[row]["val-eleven"].value == pytest.approx(mean + val)
        assert rows[row]["test-eleven"].value == pytest.approx(mean + test)


def test_one_class_without_a_score_leaves_no_mean(store):
    metrics = {f"test/iou/{name}": 0.5 for name in ELEVEN} | {"test/iou/sky": math.nan}
    add(store, 0.3, experiment=CAMVID, scale="reduced", metrics=metrics)
    row = both(camvid_as_cityscapes(store))["lovasz-softmax-b10"]
    assert row["test-eleven"] is None


# -- figure 9 ----------------------------------------------------------------------------------


@pytest.fixture
def sizes(store):
    """Four batch sizes, the baseline and equibatch at paper scale; one demo run."""
    for batch, score in ((2, 0.61), (5, 0.62), (10, 0.63), (20, 0.64)):
        add(store, score, batch=batch)
    add(store, 0.63, seed=1)
    add(store, 0.605, WEIGHTED)
    add(store, 0.625, EQUIBATCH)
    add(store, 0.3, scale="demo", folder="cityscapes-demo", before=0.05)
    return store


def test_curves_are_the_stored_histories(sizes):
    drawing = figure_9(sizes)
    shown = {(c.panel.split(":")[0], c.label): c for c in drawing.curves}
    paper = {label for panel, label in shown if panel == "Cityscapes"}
    assert paper == {
        "weighted cross-entropy, batch size 10",
        *(f"Lovász-Softmax, batch size {size}" for size in (2, 5, 10, 20)),
        "Lovász-Softmax + equibatch, batch size 10",
        "before training",
    }
    one = shown["Cityscapes", "Lovász-Softmax, batch size 5"]
    (run,) = [run for run in sizes.stored if run.params["training.batch_size"] == "5"]
    history = sizes.history(run.run_id, "val/dataset_miou")
    assert one.data["iteration"] == [step for step, _ in history]
    assert one.data["mean"] == pytest.approx([100 * value for _, value in history])
    assert [source.run_id for source in one.sources] == [run.run_id]
    assert len(shown["Cityscapes", "Lovász-Softmax, batch size 10"].sources) == 2
    assert shown["Cityscapes", "before training"].data["mean"] == [pytest.approx(60.4)]


def test_panels_are_scales_and_the_caption_says_which(sizes):
    drawing = figure_9(sizes)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert titles[0].startswith("Cityscapes")
    assert titles[1].startswith("Drawn streets")
    assert {axes.get_ylabel() for axes in drawing.figure.axes} == {"validation mIoU (%)"}
    assert "paper scale, Cityscapes; demo scale, Drawn streets" in drawing.caption
    assert "Only paper-scale panels on Cityscapes repeat the paper's Figure 9." in drawing.caption
    assert camvid_as_cityscapes_curves(sizes) == Missing(
        "no finished camvid-as-cityscapes run is stored", "lovasz-repro run camvid-as-cityscapes"
    )


def test_camvid_curves_say_that_the_paper_has_none(store):
    add(store, 0.5, experiment=CAMVID, scale="paper")
    drawing = camvid_as_cityscapes_curves(store)
    assert drawing.caption.endswith("The paper has no CamVid result.")
    assert "mean IoU of the 11 classes" in drawing.caption
    (curve,) = (c for c in drawing.curves if c.label.startswith("Lovász"))
    assert curve.data["mean"] == pytest.approx([80.4, 67, 70, 69])  # not the Class IoU, 20 lower
    assert {c.panel.split(":")[0] for c in drawing.curves} == {"CamVid in the layout of Cityscapes"}
    assert isinstance(figure_9(store), Missing)


def test_batch_sizes_are_told_apart_by_lightness(sizes):
    look = CurveLook.by_shades(cohorts(sizes, ENET, ("data.equibatch",)))
    lightness = [sum(to_rgb(look.styles[LOVASZ, size][0])) for size in (2, 5, 10, 20)]
    assert lightness == sorted(lightness, reverse=True)
    assert min(a - b for a, b in itertools.pairwise(lightness)) > 0.25
    assert look.styles[WEIGHTED, 10] == (VARIANTS[WEIGHTED][1], "-")
    assert look.styles[EQUIBATCH, 10][1] == "--"
    assert shades("#d55e00", 1) == ["#d55e00"]


# -- figure 8 ----------------------------------------------------------------------------------


def put(store, run, entries=1, **changed):
    """Pictures of a run, 2x3 pixels; ``changed``: file -> bytes, None leaves it out."""
    folder = store.folder / run.run_id / "examples"
    folder.mkdir(parents=True)
    listed = [
        {"name": f"frame {k}", "window": [4, 8, 2, 3], "differs": 0.5 - k / 10}
        for k in range(entries)
    ]
    files = {"examples.json": json.dumps(listed).encode()}
    for k in range(entries):
        files |= {f"{k}-{kind}.png": png(pixels) for kind, pixels in PIXELS.items()}
        files[f"{k}-photo.png"] = png(np.arange(18).reshape(2, 3, 3))
    for name, data in (files | changed).items():
        if data is not None:
            (folder / name).write_bytes(data)
    return run


def test_palette_is_the_official_one_and_void_is_black():
    ids = np.array([[*OFFICIAL], [0] * 6], np.uint8)
    assert [tuple(c) for c in CITYSCAPES_PALETTE.paint(ids)[0].tolist()] == list(OFFICIAL.values())
    assert not CITYSCAPES_PALETTE.paint(np.array([VOID], np.uint8)).any()


def test_columns_are_input_initial_truth_and_tuned(store):
    put(store, add(store, 0.63), entries=2)
    drawing = figure_8(store)
    titles = [axes.get_title() for axes in drawing.figure.axes]
    assert titles == ["input", "initial ENet output", "ground truth", "fine-tuned", *[""] * 4]
    photo, before, labels, after, *_ = shown_pictures(drawing)
    assert photo.tolist() == np.arange(18).reshape(2, 3, 3).tolist()
    for picture, kind in ((before, "before"), (labels, "labels"), (after, "after")):
        expected = [[OFFICIAL.get(i, (0, 0, 0)) for i in row] for row in PIXELS[kind]]
        assert picture.tolist() == [[list(colour) for colour in row] for row in expected], kind


def test_the_legend_has_the_classes_that_occur(store):
    put(store, add(store, 0.63))
    (legend,) = figure_8(store).figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["road", "building", "pole", "sky", "car", "void (not scored)"]
    face = legend.get_patches()[4].get_facecolor()
    assert [round(255 * c) for c in face[:3]] == [0, 0, 142]


def test_the_papers_run_is_taken_where_it_is_stored(store):
    put(store, add(store, 0.9, batch=20))
    put(store, add(store, 0.9, WEIGHTED))
    put(store, add(store, 0.9, scale="demo", folder="cityscapes-demo"))
    paper = put(store, add(store, 0.63))
    drawing = figure_8(store)
    assert shown_runs(drawing) == {paper.run_id}
    for part in ("paper scale", "Lovász-Softmax, batch size 10, seed 0", "differ most",
                 "best-looking", "released network"):  # fmt: skip
        assert part in drawing.caption
    assert "not the paper's" not in drawing.caption


def test_another_run_says_that_it_is_not_the_papers(store):
    put(store, add(store, 0.3, batch=2, scale="demo", folder="cityscapes-demo"))
    shown = put(store, add(store, 0.3, scale="demo", folder="cityscapes-demo"))
    put(store, add(store, 0.3, WEIGHTED, scale="paper"))
    drawing = figure_8(store)
    assert drawing.curves[0].sources[0].run_id == shown.run_id
    title = grid_title(drawing)
    assert title.startswith("Not the paper's: no paper-scale run with batches of 10 has stored")
    assert "Drawn streets in the layout of Cityscapes: demo profile" in title
    assert "This is not the paper's Figure 8" in drawing.caption


def test_sidecar_has_the_entries(store):
    run = put(store, add(store, 0.63), entries=2)
    first, second = figure_8(store).curves
    assert (first.label, second.label) == ("frame 0", "frame 1")
    assert first.data == {"window": [4, 8, 2, 3], "differs": [0.5]}
    assert second.sources[0].run_id == run.run_id


def test_runs_without_pictures_are_passed_over(store):
    add(store, 0.63)
    missing = figure_8(store.strict())
    assert isinstance(missing, Missing)
    assert (missing.reason, missing.command) == (
        "no finished cityscapes-enet run with Lovász-Softmax has pictures (examples/)",
        "lovasz-repro run cityscapes-enet",
    )
    older = put(store, add(store, 0.63, seed=1))
    for asked in (store, store.strict()):
        drawing = figure_8(asked)
        assert drawing.curves[0].sources[0].run_id == older.run_id
        assert "Passed over" not in drawing.caption


BROKEN = {  # what is common to all pictures: see test_voc_multiclass_pictures.py
    "no list": ("examples.json", b'{"name": 3}', "examples: "),
    "short window": ("examples.json", b'[{"name": "a", "window": [1, 2], "differs": 0}]', "window"),
    "huge window": (
        "examples.json",
        b'[{"name": "a", "window": [0, 0, 99999, 99999], "differs": 0}]',
        "window",
    ),
    "share": (
        "examples.json",
        b'[{"name": "a", "window": [0, 0, 2, 3], "differs": NaN}]',
        "differs",
    ),
    "mode": ("0-before.png", png(PIXELS["before"], "RGB"), "RGB of 3×2, not L of 3×2"),
    "gone": ("0-photo.png", None, "listed, but not stored"),
}


@pytest.mark.parametrize(("name", "data", "problem"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_named_and_their_run_passed_over(store, name, data, problem):
    broken = put(store, add(store, 0.63), **{name: data})
    missing = figure_8(store)
    assert isinstance(missing, Missing)
    assert f"{broken.name}, examples/{name}: " in missing.reason
    assert problem in missing.reason
    whole = put(store, add(store, 0.63, seed=1))
    drawing = figure_8(store)
    assert drawing.curves[0].sources[0].run_id == whole.run_id
    assert f"Passed over: {broken.name}, examples/{name}: " in drawing.caption


def test_camvid_examples(store):
    put(store, add(store, 0.5, experiment=CAMVID, scale="reduced"))
    drawing = camvid_as_cityscapes_examples(store)
    title = grid_title(drawing)
    assert title.startswith("CamVid in the layout of Cityscapes: reduced profile")
    assert drawing.caption.endswith("The paper has no CamVid result.")
    assert isinstance(figure_8(store), Missing)


def test_tall_windows_shrink_to_the_page(store):
    tall = np.full((90, 30), ROAD)
    run = put(store, add(store, 0.63), entries=3)
    listed = [{"name": f"{k}", "window": [0, 0, 90, 30], "differs": 0.1} for k in range(3)]
    folder = store.folder / run.run_id / "examples"
    (folder / "examples.json").write_text(json.dumps(listed))
    for k in range(3):
        for kind in ("labels", "before", "after"):
            (folder / f"{k}-{kind}.png").write_bytes(png(tall))
        (folder / f"{k}-photo.png").write_bytes(png(tall, "RGB"))
    drawing = figure_8(store)
    assert len(drawing.curves) == 3
    assert drawing.figure.get_figheight() < 9


# -- files -------------------------------------------------------------------------------------


@pytest.fixture
def full(sizes):
    """Runs for every figure of this section."""
    for run in sizes.stored:
        if run.tags["variant"] == LOVASZ:
            put(sizes, run, entries=3)
    put(sizes, add(sizes, 0.5, experiment=CAMVID, scale="reduced"))
    return sizes


def test_figures_have_a_caption_data_and_runs_and_the_same_bytes(full, tmp_path):
    for name in FIGURES:
        drawing = DRAWN[name](full)
        assert drawing.caption.endswith("."), name
        assert drawing.curves, name
        assert all(curve.sources and curve.data for curve in drawing.curves)
    names = FIGURES[:2]  # the others are drawn alike
    assert_same_bytes(*(write_figures(full, tmp_path / name, names) for name in "ab"))
    assert_same_bytes(*(write_tables(full, tmp_path / name, NEW_TABLES) for name in "cd"))


def test_nothing_leaves_the_page(full, sizes):
    sizes.stored[:] = [run for run in sizes.stored if run.tags["scale"] == "paper"]  # one column
    for draw in (figure_8, figure_9):
        figure = drawn(draw, full)
        texts = [*figure.texts, *(axes.title for axes in figure.axes)]
        assert_on_page(figure, [thing for thing in (*figure.legends, *texts) if thing])
