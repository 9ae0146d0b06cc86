"""Scores of an evaluation server: two forms, one unit, kept with their run, apart from its own."""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lovasz_repro.cli.runs import runs_app
from lovasz_repro.data.classes import VOC
from lovasz_repro.errors import UserError
from lovasz_repro.report.published import SCORES
from lovasz_repro.store import Store, StoredRun
from lovasz_repro.store.journal import Point
from lovasz_repro.store.server_scores import (
    read_server_scores,
    read_voc_server_scores,
    record_server_scores,
)
from lovasz_repro.store.transfer import export_runs, import_runs

MakeStore = Callable[..., Store]
CLASSES = ("road", "traffic light", "bicycle")
PLAIN: dict[str, Any] = {
    "class_iou": 63.06, "class_iiou": 34.06, "category_iou": 83.58, "category_iiou": 61.05
}  # fmt: skip
OFFICIAL: dict[str, Any] = {
    "averageScoreClasses": 0.6306, "averageScoreInstClasses": 0.3406,
    "averageScoreCategories": 0.8358, "averageScoreInstCategories": 0.6105,
}  # fmt: skip
FOUR = {
    "dataset_miou": 0.6306, "class_iiou": 0.3406, "category_iou": 0.8358, "category_iiou": 0.6105
}  # fmt: skip

NAMES = VOC.names
TABLE_3 = [  # the column "Lovász + equibatch, 30K"
    92.63, 41.55, 87.87, 68.41, 77.75, 94.71, 86.71, 90.37, 38.59, 86.24, 74.50, 89.02, 91.69,
    87.28, 86.37, 65.92, 87.13, 65.21, 83.69, 68.64,
]  # fmt: skip
MEAN = 79.00
OBJECTS = dict(zip(NAMES[1:], TABLE_3, strict=True))
ALL = {"background": 94.72} | OBJECTS
"""21 * 79.00 - 1564.28 = 94.72."""
SERVER = [
    "aero plane", *NAMES[2:11], "dining table", "dog", "horse", "motor bike", "person",
    "potted plant", "sheep", "sofa", "train", "tv/ monitor",
]  # fmt: skip
"""As the leaderboard's columns are called."""
FRACTIONS = {"dataset_miou": 0.79} | {f"iou/{name}": v / 100 for name, v in OBJECTS.items()}
SPELLED = dict(zip(SERVER, TABLE_3, strict=True))
Reader = Callable[[Path], dict[str, float]]
CITYSCAPES: Reader = partial(read_server_scores, classes=CLASSES)
PASCAL: Reader = partial(read_voc_server_scores, classes=NAMES)


def write(folder: Path, content: Any, name: str = "scores.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def without(scores: dict[str, float], *names: str) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name not in names}


def refused(read: Reader, file: Path) -> str:
    """The one line of a file that cannot be meant."""
    with pytest.raises(UserError) as caught:
        read(file)
    text = str(caught.value)
    assert str(file) in text
    assert "\n" not in text
    assert len(text) < 400
    return text


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", PLAIN),
        ("a.json", OFFICIAL),
        ("a.yaml", yaml.safe_dump(PLAIN)),
        ("a.YML", yaml.safe_dump(OFFICIAL)),
    ],
)
def test_the_four_scores_in_every_form(tmp_path: Path, name: str, content: Any) -> None:
    scores = read_server_scores(write(tmp_path, content, name), CLASSES)
    assert scores == pytest.approx(FOUR, abs=1e-12)


def test_classes_where_they_are_known(tmp_path: Path) -> None:
    classes = {"road": 97.5, "traffic light": 0.4}
    for file in (
        write(tmp_path, PLAIN | {"classes": classes}),
        write(tmp_path, yaml.safe_dump(PLAIN | {"classes": classes}), "a.yaml"),
    ):
        scores = read_server_scores(file, CLASSES)
        assert scores == pytest.approx(FOUR | {"iou/road": 0.975, "iou/traffic light": 0.004})


def test_the_official_scripts_own_file(tmp_path: Path) -> None:
    """Keys as ``createResultDict`` writes them: NaN for labels that are not scored."""
    content = OFFICIAL | {
        "confMatrix": [[1, 2], [3, 4]],
        "priors": {"road": 0.3, "unlabeled": math.nan},
        "labels": {"road": 7, "unlabeled": 0},
        "classScores": {"unlabeled": math.nan, "road": 0.975, "bicycle": math.nan},
        "classInstScores": {"bicycle": 0.2},
        "categoryScores": {"flat": 0.9, "void": math.nan},
        "categoryInstScores": {"flat": math.nan},
    }
    scores = read_server_scores(write(tmp_path, content), CLASSES)
    assert scores == pytest.approx(FOUR | {"iou/road": 0.975})


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"mean": MEAN, "classes": OBJECTS}),
        ("a.json", {"mean": 79, "classes": SPELLED}),
        ("a.yaml", yaml.safe_dump({"mean": MEAN, "classes": SPELLED})),
        ("a.YML", yaml.safe_dump({"mean": MEAN, "classes": OBJECTS})),
    ],
)
def test_twenty_objects_and_the_mean_in_every_form(tmp_path: Path, name: str, content: Any) -> None:
    scores = read_voc_server_scores(write(tmp_path, content, name), NAMES)
    assert scores == pytest.approx(FRACTIONS, abs=1e-12)
    assert list(scores) == ["dataset_miou", *(f"iou/{name}" for name in NAMES[1:])]


def test_the_background_where_it_is_known(tmp_path: Path) -> None:
    file = write(tmp_path, {"mean": 79.0, "classes": ALL})
    scores = read_voc_server_scores(file, NAMES)
    assert scores == pytest.approx(FRACTIONS | {"iou/background": 0.9472})


def test_the_mean_alone(tmp_path: Path) -> None:
    scores = read_voc_server_scores(write(tmp_path, "mean: 78.05\n", "a.yaml"), NAMES)
    assert scores == pytest.approx({"dataset_miou": 0.7805})


@pytest.mark.parametrize("mean", [78.941, 79.059, 79.05, 78.95])
def test_a_rounded_mean_is_taken(tmp_path: Path, mean: float) -> None:
    assert read_voc_server_scores(write(tmp_path, {"mean": mean, "classes": ALL}), NAMES)


CITYSCAPES_JSON = [
    (PLAIN | {"class_iou": 0.6306}, "percent (is it a fraction?), not 0.6306"),
    (OFFICIAL | {"averageScoreClasses": 63.06}, "fraction in 0-1 (is it in percent?)"),
    (PLAIN | {"class_iou": 163.06}, "equal to 100, not 163.06"),
    (PLAIN | {"class_iou": -2.0}, "equal to 0, not -2.0"),
    (PLAIN | {"class_iou": "63,06"}, "class_iou: input should be a valid number, not '63,06'"),
    (PLAIN | {"class_iou": "63.06"}, "not the text '63.06'"),
    (PLAIN | {"class_iou": True}, "valid number"),
    (PLAIN | {"class_iou": math.inf}, "finite number"),
    (PLAIN | {"class_iou": 10**400}, "finite number"),
    (OFFICIAL | {"averageScoreClasses": math.nan}, "finite number"),
    (without(PLAIN, "class_iiou"), "class_iiou: field required"),
    (PLAIN | {"clases": {}}, "unknown key clases (did you mean classes?)"),
    (PLAIN | OFFICIAL, "unknown key averageScoreClasses"),
    ({}, "class_iou: field required"),
    (PLAIN | {"classes": [97.5]}, "classes: input should be an object"),
    (PLAIN | {"classes": {"raod": 97.5}}, "no class 'raod' (did you mean road?)"),
    (PLAIN | {"classes": {"road": math.nan}}, "classes.road: input should be a finite number"),
    (PLAIN | {"classes": {"road": 197.5}}, "equal to 100, not 197.5"),
    (PLAIN | {"classes": {"road": 0.975, "bicycle": 0.5}}, "(are they fractions?)"),
    (OFFICIAL | {"classScores": {"road": 97.5}}, "(is it in percent?)"),
    (OFFICIAL | {"classScores": {"caravan": 0.5}}, "no class 'caravan'"),
    ("[1]", "expected keys and values"),
    ("{", "unreadable"),
    ('{"class_iou": 1, "class_iou": 2}', "class_iou is there twice"),
    (f'{{"class_iou": {"[" * 500}{"]" * 500}}}', "recursion"),
    (f'{{"class_iou": {"7" * 5_000}}}', "unreadable"),
    (" " * 5_000_000, "too large"),
]
CITYSCAPES_LINES = [
    ("a.csv", "class_iou,63.06", "expected .yaml or .json, with class_iou: 63.1, class_iiou, "),
    ("a.yaml", "class_iou,63.06", "expected keys and values"),
    ("a.yaml", "class_iou: 1\nclass_iou: 2\n", "given twice"),
    ("a.yaml", "- 1", "expected keys and values"),
    ("a.yaml", "63: 06\nclass_iou: 63\n", "unknown key 63"),
]
PASCAL_JSON = [
    ({"mean": 79.1, "classes": ALL}, "a mean of 79.1 over 21 classes leaves 96.82 percent"),
    ({"mean": 74.4, "classes": OBJECTS}, "leaves -1.88 percent"),  # 1562.4 - 1564.28
    ({"mean": 79.3, "classes": OBJECTS}, "leaves 101.02 percent"),  # 1665.3 - 1564.28
    ({"mean": 79.0, "classes": OBJECTS | {"boat": 6.841}}, "leaves 156.29 percent"),
    ({"classes": ALL}, "mean: field required"),
    ({"mean": 0.79, "classes": OBJECTS}, "mean: expected percent (is it a fraction?)"),
    ({"mean": 79.0, "classes": {k: v / 100 for k, v in ALL.items()}}, "are they fractions?"),
    ({"mean": 79.0, "classes": without(OBJECTS, "bus")}, "no bus. Give the IoU of all 20"),
    ({"mean": 79.0, "classes": {"bird": 87.9}}, "no aeroplane, bicycle, boat and 16 more."),
    ({"mean": 79.0, "classes": OBJECTS | {"aero plane": 92.6}}, "aeroplane is there twice"),
    ({"mean": 79.0, "bird": 87.9}, "unknown key bird"),
    ({"mean": 79.0, "classes": {"aeroplan": 92.6}}, "class 'aeroplan' (did you mean aeropl"),
    ({"mean": 79.0, "classes": {"unlabelled": 2.0}}, "no class 'unlabelled'"),
    ({"mean": 79.0, "classes": [1, 2]}, "classes: input should be an object"),
    ({"mean": "79.0"}, "mean: input should be a valid number, not the text '79.0'"),
    ({"mean": 179.0}, "mean: input should be less than or equal to 100, not 179.0"),
    ({"mean": 79.0, "classes": OBJECTS | {"dog": 189.0}}, "dog: input should be less"),
    ({}, "mean: field required"),
]
PASCAL_LINES = [
    (
        "a.txt",
        "mean 79.0",
        "expected .yaml or .json, with mean: 79.0 and, if known, classes: {aero",
    ),
    ("a.yaml", "mean 79.0", "expected keys and values"),
    ("a.yaml", "mean: .nan", "finite number"),
    ("a.yaml", "mean: 79\nclasses: {bird: }", "classes.bird: input should be a valid number"),
]
WRONG: list[Any] = [(CITYSCAPES, "a.json", *row) for row in CITYSCAPES_JSON]
WRONG += [(CITYSCAPES, *row) for row in CITYSCAPES_LINES]
WRONG += [(PASCAL, "a.json", *row) for row in PASCAL_JSON]
WRONG += [(PASCAL, *row) for row in PASCAL_LINES]


@pytest.mark.parametrize(
    ("read", "name", "content", "told"), WRONG, ids=[f"{n}-{row[1]}" for n, row in enumerate(WRONG)]
)
def test_a_file_that_cannot_be_meant(
    tmp_path: Path, read: Reader, name: str, content: Any, told: str
) -> None:
    assert told in refused(read, write(tmp_path, content, name))


@pytest.mark.parametrize("read", [CITYSCAPES, PASCAL])
def test_a_file_that_is_not_there_or_no_text(tmp_path: Path, read: Reader) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "Not a regular file" in refused(read, tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="name too long"):
        read(tmp_path / f"{'x' * 300}.json")
    for name in ("a.json", "a.yaml"):
        assert "No such file" in refused(read, tmp_path / name)
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        assert name in refused(read, tmp_path / name)


CITYSCAPES_FILES = st.dictionaries(
    st.sampled_from([*PLAIN, *OFFICIAL, "classes", "classScores", "else"]),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
        st.dictionaries(st.sampled_from(CLASSES), st.floats() | st.text(max_size=3)),
    ),
)  # fmt: skip
PASCAL_FILES = st.text(max_size=60) | st.lists(
    st.tuples(st.sampled_from(["mean", *NAMES, "tv/ monitor", "x"]), st.floats() | st.text())
).map(lambda rows: "mean: 79\nclasses:\n" + "\n".join(f" {name}: {value}" for name, value in rows))


@pytest.mark.parametrize("read", [CITYSCAPES, PASCAL])
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_is_written_gives_fractions_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, read: Reader, data: st.DataObject
) -> None:
    ours = read is CITYSCAPES
    content = data.draw(CITYSCAPES_FILES if ours else PASCAL_FILES)
    file = tmp_path_factory.getbasetemp() / ("any.json" if ours else "any.yaml")
    text = content if isinstance(content, str) else json.dumps(content)
    file.write_text(text, encoding="utf-8", errors="replace")
    scores, refusal = FOUR, ""
    try:
        scores = read(file)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert all(0 <= score <= 1 for score in scores.values())
    assert set(FOUR if ours else ["dataset_miou"]) <= set(scores)


# -- recording -----------------------------------------------------------------------------------


def put_run(store: Store, identity: str = "id", status: str = "FINISHED") -> str:
    params = {"data.name": "cityscapes"}
    run_id = store.open_child("cityscapes-enet", None, "lovasz-b10-s0", identity, params, {})
    store.log(run_id, [Point("val/dataset_miou", 0.6, 9000, 1), Point("train/loss", 0.5, 9000, 1)])
    store.close(run_id, status, 1_763_888_400.456)
    return run_id


def get(store: Store, run_id: str) -> StoredRun:
    run = store.get(run_id)
    assert run is not None
    return run


def record(store: Store, run_id: str, file: Path, **options: bool) -> bool:
    scores = read_server_scores(file, CLASSES)
    return record_server_scores(store, get(store, run_id), scores, file, **options)


def test_recorded_apart_from_the_runs_own_scores(store: Store, tmp_path: Path) -> None:
    run_id = put_run(store)
    before = get(store, run_id)
    after = write(tmp_path, PLAIN | {"classes": {"road": 97.5}})
    first = write(tmp_path, {key: value - 5 for key, value in PLAIN.items()}, "before.json")
    assert record(store, run_id, after)
    assert record(store, run_id, first, initial=True)
    run = get(store, run_id)
    new = {key: value for key, value in run.metrics.items() if key not in before.metrics}
    expected = {f"server/{name}": score for name, score in FOUR.items()}
    expected |= {f"initial/server/{name}": score - 0.05 for name, score in FOUR.items()}
    assert new == pytest.approx(expected | {"server/iou/road": 0.975})
    assert {key: run.metrics[key] for key in before.metrics} == before.metrics
    assert (run.status, run.ended) == ("FINISHED", before.ended)
    assert store.artifact(run_id, "server-scores/scores.json").read_bytes() == after.read_bytes()
    kept = store.artifact(run_id, "initial/server-scores/before.json")
    assert kept.read_bytes() == first.read_bytes()
    for tag in ("server/recorded", "initial/server/recorded"):
        assert run.tags[tag].startswith("20")
        assert run.tags[tag].endswith("Z")


def test_the_report_finds_them_under_the_names_it_asks_for() -> None:
    assert set(SCORES.values()) == set(FOUR)


def test_the_same_again_changes_nothing_and_others_need_to_be_meant(
    store: Store, tmp_path: Path
) -> None:
    run_id = put_run(store)
    file = write(tmp_path, PLAIN | {"classes": {"road": 97.5, "bicycle": 50.0}})
    assert record(store, run_id, file)
    before = get(store, run_id), store.points(run_id)
    assert not record(store, run_id, file)
    assert not record(store, run_id, file, replace=True)
    assert (get(store, run_id), store.points(run_id)) == before
    other = write(tmp_path, PLAIN | {"class_iou": 64.0, "classes": {"road": 97.5}}, "other.json")
    with pytest.raises(UserError) as caught:
        record(store, run_id, other)
    assert "server/dataset_miou 63.06%, now 64.00% and 1 more. Give --replace" in str(caught.value)
    assert (get(store, run_id), store.points(run_id)) == before
    assert record(store, run_id, other, replace=True)
    run = get(store, run_id)
    assert run.metrics["server/dataset_miou"] == 0.64
    assert run.metrics["server/class_iiou"] == before[0].metrics["server/class_iiou"]
    assert math.isnan(run.metrics["server/iou/bicycle"])  # no longer known
    assert run.tags["server/recorded"] > before[0].tags["server/recorded"]
    assert not record(store, run_id, other)
    assert record(store, run_id, file, replace=True)  # and back
    assert get(store, run_id).metrics == before[0].metrics


def test_a_clock_that_was_set_back_does_not_bring_old_scores_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = put_run(store)
    record(store, run_id, write(tmp_path, PLAIN | {"class_iou": 70.0}))
    monkeypatch.setattr("lovasz_repro.store.server_scores._now", lambda: 1_000_000_000_000)
    record(store, run_id, write(tmp_path, PLAIN), replace=True)
    assert get(store, run_id).metrics["server/dataset_miou"] == pytest.approx(0.6306)
    assert dict(store.history(run_id, "server/dataset_miou"))[0] == pytest.approx(0.6306)


def test_a_recording_that_was_cut_short_is_completed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, file = put_run(store), write(tmp_path, PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(store, "set_tags", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            record(store, run_id, file)
    assert "server/recorded" not in get(store, run_id).tags
    assert record(store, run_id, file)
    assert "server/recorded" in get(store, run_id).tags
    assert not record(store, run_id, file)


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_only_a_finished_run_has_scores(store: Store, tmp_path: Path, status: str) -> None:
    run_id = put_run(store, status=status)
    with pytest.raises(UserError, match=r"is \w+, not FINISHED"):
        record(store, run_id, write(tmp_path, PLAIN))


Call = Callable[..., str]


@pytest.fixture
def call(tmp_path: Path) -> Call:
    """``runs record`` on the store in ``tmp_path / "results"``: what it says, or its error."""

    def invoke(*arguments: object) -> str:
        given = [*map(str, arguments), "--results", str(tmp_path / "results")]
        result = CliRunner().invoke(runs_app, ["record", *given])
        if isinstance(result.exception, UserError):
            return f"Error: {result.exception}"
        assert result.exit_code == 0, result.output
        return result.output

    return invoke


def test_the_command(make_store: MakeStore, tmp_path: Path, call: Call) -> None:
    here, there = make_store("here"), make_store()
    run_id = put_run(here)
    export_runs(here, tmp_path / "out")
    import_runs(there, tmp_path / "out")
    file = write(tmp_path, PLAIN)

    said = call(run_id[:8], "--server-scores", file)  # the id that it was made under
    assert said.startswith("recorded: Class IoU / iIoU / Category IoU / iIoU 63.06 / 34.06 / ")
    assert "63.06 / 34.06 / 83.58 / 61.05 of lovasz-b10-s0 after training (run " in said
    [run] = there.runs()
    assert run.run_id in said
    assert run.metrics["server/dataset_miou"] == pytest.approx(0.6306)
    assert call(run.run_id, "--server-scores", file).startswith("recorded before:")
    assert "before training" in call(run.run_id, "--server-scores", file, "--initial")
    other = write(tmp_path, PLAIN | {"class_iou": 60.0}, "b.json")
    assert "Give --replace" in call(run_id[:8], "--server-scores", other)
    said = call(run_id[:8], "--server-scores", other, "--replace")
    assert said.startswith("recorded:")
    assert "at least 6 characters" in call(run_id[:3], "--server-scores", file)
    assert "no run 'zzzzzz'" in call("zzzzzz", "--server-scores", file)
    camvid = there.open_child("camvid-enet", None, "a", "id2", {"data.name": "camvid"}, {})
    there.close(camvid, "FINISHED")
    assert "is of camvid; only scores of the Cityscapes" in call(camvid, "--server-scores", file)
    for folder, scale in (("cityscapes-demo", "demo"), ("camvid-cityscapes", "paper")):
        params = {"data.name": "cityscapes", "data.folder": folder}
        drawn = there.open_child("cityscapes-enet", None, "a", folder, params, {"scale": scale})
        there.close(drawn, "FINISHED")
        assert "no server scores it" in call(drawn, "--server-scores", file)


def put_voc_run(store: Store, scale: str = "paper", **params: str) -> str:
    number = len(store.runs())
    params = {"data.name": "voc", "data.category": "None", "data.images": "photographs"} | params
    tags = {"scale": scale}
    run_id = store.open_child("voc-multiclass", None, "lovasz-s0", f"id{number}", params, tags)
    store.close(run_id, "FINISHED")
    return run_id


def test_the_command_for_pascal_voc(store: Store, tmp_path: Path, call: Call) -> None:
    run_id = put_voc_run(store)
    file = write(tmp_path, yaml.safe_dump({"mean": MEAN, "classes": SPELLED}), "voc.yaml")
    said = call(run_id, "--server-scores", file)
    assert said == (
        f"recorded: dataset-mIoU 79.00, 20 classes of lovasz-s0 after training (run {run_id})\n"
    )
    run = get(store, run_id)
    expected = {f"server/{name}": value for name, value in FRACTIONS.items()}
    assert run.metrics == pytest.approx(expected)
    assert store.artifact(run_id, "server-scores/voc.yaml").read_bytes() == file.read_bytes()
    assert call(run_id, "--server-scores", file).startswith("recorded before: ")
    alone = write(tmp_path, "mean: 79.00", "alone.yaml")
    assert "server/iou/aeroplane 92.63%, now none" in call(run_id, "--server-scores", alone)
    whole = write(tmp_path, {"mean": MEAN, "classes": ALL})
    said = call(run_id, "--server-scores", whole, "--replace")
    assert "dataset-mIoU 79.00, 21 classes of lovasz-s0" in said
    assert "is for Cityscapes alone" in call(run_id, "--server-scores", file, "--initial")
    for other, words in (
        (put_voc_run(store, "demo"), "is of drawn pictures: no server scores it"),
        (put_voc_run(store, **{"data.images": "features"}), "has seen no photograph"),
        (put_voc_run(store, **{"data.category": "cat"}), "tells cat from the rest"),
    ):
        said = call(other, "--server-scores", file)
        assert words in said
        assert not get(store, other).metrics
