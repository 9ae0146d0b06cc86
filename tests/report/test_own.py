"""Losses on data of one's own: which runs are compared, what is gained, what is said of it."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.report.compare import again
from lovasz_repro.report.model import Drawing, Missing, Table
from lovasz_repro.report.own import Gain, compared_sets, own_table
from lovasz_repro.report.picture_figures import own_figure
from lovasz_repro.report.render import rendered
from lovasz_repro.report.runs import OfData
from tests.report.conftest import FakeRun, FakeStore

CLASSES = {"ground": 0.9, "disc": 0.09, "dot": 0.01}  # share of the pixels
CE, LOVASZ, THEN = "cross-entropy", "lovasz-softmax", "cross-entropy-then-lovasz"


def add(
    store: FakeStore,
    variant: str,
    seed: int,
    ious: tuple[float, ...],
    *,
    image: float = 0.5,
    split: str = "val",
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
) -> FakeRun:
    metrics = {f"{split}/iou/{name}": iou for name, iou in zip(CLASSES, ious, strict=True)}
    metrics |= {f"train/share/{name}": share for name, share in CLASSES.items()}
    metrics |= {f"{split}/dataset_miou": statistics.fmean(ious), f"{split}/image_miou": image}
    metrics["train/images_per_second"] = 40.0
    given = {"data.name": "own", "data.classes": str([*CLASSES]), "data.folder": "shapes"}
    given |= {"training.lr": "0.001"} | {
        "training.iterations": "200",
        "model.name": "enet",
        "model.weights": "None",
    }
    return store.add(
        "own", variant, seed, batch=8, profile="short", metrics=metrics,
        params=given | (params or {}), tags=tags,
    )  # fmt: skip


def three_seeds(store: FakeStore, gains: tuple[float, ...], **lovasz: Any) -> None:
    """Lovász-Softmax gains so many points of each class over cross-entropy."""
    for seed, gain in enumerate(gains):
        base = 0.5 + 0.03 * seed
        add(store, CE, seed, (base, base, base))
        add(store, LOVASZ, seed, (base + gain / 100,) * 3, **lovasz)


def told(store: FakeStore) -> str:
    return "\n".join(own_table(store).notes)


def rows(table: Table, block: int) -> dict[str, list[Any]]:
    return {row.key: list(row.cells) for row in table.blocks[block].rows}


def test_scores_differences_and_classes_stand_in_blocks(store: FakeStore) -> None:
    three_seeds(store, (2.0, 3.0, 4.0), image=0.6)
    table = own_table(store)
    assert [column.key for column in table.columns] == [CE, LOVASZ]
    scores, gains, classes = (rows(table, block) for block in range(3))
    assert scores["val/dataset_miou"][0].value == pytest.approx(53)
    assert scores["val/dataset_miou"][1].spread == pytest.approx(4.0)
    assert scores["time"][0].value == pytest.approx(200)  # ms: 8 images, 40 a second
    gain = gains["gain/dataset_miou"][1]
    assert gains["gain/dataset_miou"][0] is None
    assert (gain.value, gain.n) == (pytest.approx(3), 3)
    assert gain.spread == pytest.approx(1 / math.sqrt(3))  # paired: the seeds' own level is gone
    assert [*classes] == [f"val/iou/{name}" for name in CLASSES]
    labels = [row.label for row in table.blocks[2].rows]
    assert labels == ["ground (90 %)", "disc (9 %)", "dot (1 %)"]


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ((2.0, 3.0, 4.0), ["Lovász-Softmax gains 3.0 ± 0.6 points", "2 % of the pixels +3.0"]),
        ((-2.0, -3.0, -4.0), ["loses 3.0 ± 0.6 points"]),
        ((2.0, -3.0, 4.0), ["undecided", "+1.0"]),
        ((3.0,), ["undecided", "+3.0 points"]),
        ((3.0, 3.0), ["undecided", "+3.0", "--seed"]),
    ],
)
def test_the_verdict_follows_the_rule(
    store: FakeStore, gains: tuple[float, ...], words: list[str]
) -> None:
    three_seeds(store, gains)
    for word in words:
        assert word in told(store)


def test_a_difference_is_decided_by_its_confidence_interval() -> None:
    error = statistics.stdev([1.0, 2.0, 3.0]) / math.sqrt(3)
    for mean, sign in ((4.31, 1), (4.29, 0), (-4.31, -1)):  # Student's t of three: 4.303
        values = [mean * error + offset for offset in (-1.0, 0.0, 1.0)]
        found = Gain.of(values)
        assert found is not None
        assert found.error == pytest.approx(error)
        assert found.sign == sign
    assert Gain.of([]) is None


def test_a_class_that_no_mask_shows_turns_no_verdict(store: FakeStore) -> None:
    """Cross-entropy puts a pixel of it somewhere, so its mIoU is a third lower; all else is one."""
    for seed in range(3):
        iou = 0.6 + 0.01 * seed
        add(store, CE, seed, (iou, iou, 0.0))
        without = add(store, LOVASZ, seed, (iou + 0.001 * seed, iou, math.nan))
        without.metrics["val/dataset_miou"] = iou + 0.0005 * seed
    gain = rows(own_table(store), 1)["gain/dataset_miou"][1]
    assert (gain.value, gain.n) == (pytest.approx(0.05), 3)
    said = told(store)
    assert "undecided: +0.1" in said
    assert "No mask of val shows dot" in said
    assert "No loss has learnt" not in said
    assert "smaller than" not in said  # dot is the only rare class


def test_image_miou_that_falls_is_said(store: FakeStore) -> None:
    for seed in range(3):
        add(store, CE, seed, (0.5, 0.5, 0.5), image=0.60 + 0.01 * seed)
        add(store, LOVASZ, seed, (0.6, 0.6, 0.59 + seed / 100), image=0.55 + 0.011 * seed)
    assert "in image-mIoU it loses 4.9" in told(store)


def test_test_scores_come_before_validation(store: FakeStore) -> None:
    for seed in range(2):
        add(store, CE, seed, (0.5, 0.5, 0.5), split="test")
        add(store, LOVASZ, seed, (0.6, 0.6, 0.6), split="test")
    assert "test/dataset_miou" in rows(own_table(store), 0)
    assert "no test split" not in told(store)


def test_classes_that_are_not_learnt_are_named(store: FakeStore) -> None:
    """The rare class: 40 % with cross-entropy, 4 % at the start and with Lovász-Softmax."""
    for seed in range(2):
        add(store, "basis", seed, (0.8, 0.5, 0.04), params={"training.iterations": "100"},
            tags={"identity": f"basis{seed}"})  # fmt: skip
        add(store, CE, seed, (0.9, 0.05, 0.40))
        add(store, THEN, seed, (0.9, 0.08, 0.04),
            params={"training.iterations": "100", "model.weights": "basis"},
            tags={"weights_fingerprint": f"run-basis{seed}"})  # fmt: skip
    (one,) = compared_sets(store)
    assert [*one.runs] == [CE, THEN]
    assert "200 steps" in one.heading
    said = told(store)
    assert "has not learnt dot (4 %)" in said
    assert "has not found dot (4 %), where cross-entropy has dot (40 %)" in said
    assert "No loss has learnt disc (8 %)" in said


def test_each_loss_is_compared_at_the_rate_of_most_seeds_then_of_the_best_score(
    store: FakeStore,
) -> None:
    add(store, CE, 0, (0.7, 0.7, 0.7), params={"training.lr": "0.003"})
    for seed in range(2):
        add(store, CE, seed, (0.5, 0.5, 0.5))
    add(store, LOVASZ, 0, (0.6, 0.6, 0.6))
    assert "--tune" not in told(store)
    (one,) = compared_sets(store)
    assert one.tuned
    assert {run.params["training.lr"] for run in one.runs[CE].values()} == {"0.001"}
    add(store, LOVASZ, 0, (0.65, 0.65, 0.65), params={"training.lr": "0.01"})
    (one,) = compared_sets(store)
    assert one.runs[LOVASZ]["0"].params["training.lr"] == "0.01"


def test_one_rate_for_all_is_said(store: FakeStore) -> None:
    three_seeds(store, (1.0, 1.0))
    assert "--tune" in told(store)
    assert "0.001" in told(store)


@pytest.mark.parametrize(
    "other",
    [{"training.iterations": "400"}, {"model.weights": "enet-cityscapes"}, {"model.name": "x"}],
)
def test_runs_of_another_plan_are_another_set(store: FakeStore, other: dict[str, str]) -> None:
    three_seeds(store, (1.0, 2.0))
    add(store, LOVASZ, 0, (0.9, 0.9, 0.9), params=other)
    assert len(compared_sets(store)) == 2


def test_each_data_set_has_a_table_of_its_own_the_newest_first(store: FakeStore) -> None:
    three_seeds(store, (2.0, 3.0, 4.0))
    alone = own_table(store)
    for number, folder in enumerate(("lines", "shapes"), start=1):
        params = {"data.folder": folder, "data.classes": str(["a", "b"])}
        add(store, "hinge", 0, (0.5, 0.5, 0.5), params=params,
            tags={"data_fingerprint": f"{number}-another"})  # fmt: skip
    table = own_table(store)
    assert [[column.key for column in part.columns] for part in table.parts] == [
        ["hinge"], ["hinge"], [CE, LOVASZ]
    ]  # fmt: skip
    assert "data 2-anothe" in table.parts[0].title  # the folder of two of them is called so
    assert "lines, 2 classes" in table.parts[1].title
    assert "data.classes" not in "".join(block.heading for block in table.blocks)
    assert table.parts[2].notes == alone.notes
    assert own_table(OfData(store, "2-another")).notes == table.parts[0].notes
    markdown = rendered(table, ["md"])["own.md"]
    assert "| measure | cross-entropy | Lovász-Softmax |\n" in markdown
    assert "| measure | hinge |\n" in markdown


def test_a_heading_names_each_network_once(store: FakeStore) -> None:
    for params in ({"model.name": "enet"}, {"model.name": "callable", "model.callable": "nets:u"}):
        add(store, CE, 0, (0.5, 0.5, 0.5), params=params)
    headings = " ".join(one.heading for one in compared_sets(store))
    assert "nets:u from random weights" in headings
    assert "enet from random weights" in headings
    assert "model." not in headings


def test_without_runs_the_table_says_what_fills_it(store: FakeStore) -> None:
    table = own_table(store)
    assert table.filled == 0
    assert all("run own" in cell.command for cell in table.cells)
    assert LOVASZ in [column.key for column in table.columns]
    assert isinstance(own_figure(store), Missing)


@pytest.mark.parametrize("imported", [False, True])
def test_the_command_of_a_run_names_no_strangers_code(store: FakeStore, imported: bool) -> None:
    params = {"model.name": "callable", "model.callable": "nets:unet", "training.lr": "0.003"}
    run = add(store, CE, 0, (0.5, 0.5, 0.5), params=params,
              tags={"origin_run_id": "abc"} if imported else {})  # fmt: skip
    command = again(run, "own")
    assert "--data DIR" in command
    assert "--set training.lr=0.003" in command
    assert ("nets:unet" in command) is not imported
    assert "data.folder" not in command


def keep_masks(store: FakeStore, run: FakeRun, masks: dict[str, np.ndarray]) -> None:
    folder: Path = store.folder / run.run_id / "segmentations"
    folder.mkdir(parents=True)
    labels = np.zeros((20, 30), np.uint8)
    listed = []
    for number, (name, mask) in enumerate(masks.items()):
        listed.append({"name": name, "height": 20, "width": 30,
                       "batch_miou": {"prediction": 0.5}})  # fmt: skip
        Image.fromarray(labels).save(folder / f"{number}-labels.png")
        Image.fromarray(mask).save(folder / f"{number}-prediction.png")
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / f"{number}-photo.png")
    (folder / "segmentations.json").write_text(json.dumps({"segmentations": listed}))


def test_the_images_shown_are_those_on_which_two_losses_differ_most(store: FakeStore) -> None:
    same, other = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.uint8)
    other[:10] = 2
    little = same.copy()
    little[0, 0] = 1
    keep_masks(store, add(store, CE, 0, (0.5, 0.5, 0.5)), {"a": same, "b": same, "c": same})
    keep_masks(store, add(store, LOVASZ, 0, (0.6, 0.6, 0.6)), {"a": little, "b": same, "c": other})
    drawing = own_figure(store.strict())
    assert isinstance(drawing, Drawing)
    assert [curve.panel for curve in drawing.curves] == ["c", "c", "a", "a", "b", "b"]
    assert drawing.curves[0].data["differs"] == [0.5]
