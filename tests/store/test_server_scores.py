"""Scores of an evaluation server: one unit each, kept with their run, apart from its own."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lovasz_repro.cli.runs import runs_app
from lovasz_repro.errors import UserError
from lovasz_repro.report.tables import SCORES
from lovasz_repro.store import Store, StoredRun
from lovasz_repro.store.journal import Point
from lovasz_repro.store.server_scores import read_server_scores, record_server_scores
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


def write(folder: Path, content: Any, name: str = "scores.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", PLAIN),
        ("a.json", OFFICIAL),
        ("a.yaml", yaml.safe_dump(PLAIN)),
        ("a.YML", yaml.safe_dump(OFFICIAL)),
        ("a.csv", "".join(f"{key},{value}\n" for key, value in PLAIN.items())),
        ("a.csv", "key,value\r\n" + "".join(f"{k}, {v}\r\n\r\n" for k, v in OFFICIAL.items())),
        ("a.txt", "Results\n" + "".join(f"{k}:\t{v} %\n" for k, v in PLAIN.items())),
        ("a.csv", "\ufeffkey,value\n" + "".join(f"{k},{v}\n" for k, v in PLAIN.items())),
    ],
)
def test_the_four_scores_in_every_form(tmp_path: Path, name: str, content: Any) -> None:
    scores = read_server_scores(write(tmp_path, content, name), CLASSES)
    assert scores == pytest.approx(FOUR, abs=1e-12)


def test_classes_where_they_are_known(tmp_path: Path) -> None:
    classes = {"road": 97.5, "traffic light": 0.4}
    rows = "".join(f"{key},{value}\n" for key, value in PLAIN.items())
    for file in (
        write(tmp_path, PLAIN | {"classes": classes}),
        write(tmp_path, yaml.safe_dump(PLAIN | {"classes": classes}), "a.yaml"),
        write(tmp_path, rows + "classes.road,97.5\nclasses.traffic light,0.4\n", "a.csv"),
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


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            PLAIN | {"class_iou": 0.6306},
            "percent (is it a fraction?), not 0.6306",
        ),
        (PLAIN | {"class_iou": 1}, "(is it a fraction?)"),
        (
            OFFICIAL | {"averageScoreClasses": 63.06},
            "fraction in 0-1 (is it in percent?)",
        ),
        (PLAIN | {"class_iou": 163.06}, "equal to 100, not 163.06"),
        (PLAIN | {"class_iou": -2.0}, "equal to 0, not -2.0"),
        (PLAIN | {"class_iou": "63,06"}, "class_iou: input should be a valid number, not '63,06'"),
        (PLAIN | {"class_iou": "63.06"}, "not the text '63.06'"),
        (PLAIN | {"class_iou": None}, "valid number"),
        (PLAIN | {"class_iou": True}, "valid number"),
        (PLAIN | {"class_iou": math.nan}, "finite number"),
        (PLAIN | {"class_iou": math.inf}, "finite number"),
        (PLAIN | {"class_iou": 10**400}, "finite number"),
        (PLAIN | {"class_iou": [63.06]}, "valid number"),
        (OFFICIAL | {"averageScoreClasses": math.nan}, "finite number"),
        (without(PLAIN, "class_iiou"), "class_iiou: field required"),
        (without(OFFICIAL, "averageScoreCategories"), "averageScoreCategories: field required"),
        (PLAIN | {"clases": {}}, "unknown key clases (did you mean classes?)"),
        (PLAIN | {"classScores": {}}, "unknown key classScores"),
        (PLAIN | OFFICIAL, "unknown key averageScoreClasses"),
        ({"miou": 60}, "class_iou: field required"),
        ({}, "class_iou: field required"),
        (PLAIN | {"classes": [97.5]}, "classes: input should be an object"),
        (PLAIN | {"classes": {"raod": 97.5}}, "no class 'raod' (did you mean road?)"),
        (PLAIN | {"classes": {"road": math.nan}}, "classes.road: input should be a finite number"),
        (
            PLAIN | {"classes": {"road": 197.5}},
            "equal to 100, not 197.5",
        ),
        (PLAIN | {"classes": {"road": 0.975, "bicycle": 0.5}}, "(are they fractions?)"),
        (OFFICIAL | {"classScores": {"road": 97.5}}, "(is it in percent?)"),
        (OFFICIAL | {"classScores": {"caravan": 0.5}}, "no class 'caravan'"),
        ("[1]", "expected keys and values"),
        ("{", "unreadable"),
        ('{"class_iou": 1, "class_iou": 2}', "class_iou is there twice"),
        ("[" * 100_000, "unreadable"),
        (f'{{"class_iou": {"[" * 500}{"]" * 500}}}', "recursion"),
        (f'{{"class_iou": {"7" * 5_000}}}', "unreadable"),
        (" " * 5_000_000, "too large"),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path: Path, content: Any, told: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_server_scores(file, CLASSES)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.pdf", "", "expected one of .json, .yaml, .yml, .csv"),
        ("a.csv", "class_iou;63.06\n", "class_iiou: field required"),
        ("a.csv", "class_iou,63.06\nclass_iou,64\n", "class_iou is there twice"),
        ("a.csv", "class_iou,63.06\nclass_iou.road,64\n", "unknown key class_iou.road"),
        ("a.csv", '"class_iou,63.06', "class_iiou: field required"),
        (
            "a.csv",
            "class_iou,high\nclass_iiou,1\ncategory_iou,1\ncategory_iiou,1\n",
            "'class_iou,high'",
        ),
        ("a.yaml", "class_iou: 1\nclass_iou: 2\n", "given twice"),
        ("a.yaml", "- 1", "expected keys and values"),
        ("a.yaml", "63: 06\nclass_iou: 63\n", "unknown key 63"),
    ],
)
def test_a_yaml_or_csv_that_cannot_be_meant(
    tmp_path: Path, name: str, content: str, told: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_server_scores(write(tmp_path, content, name), CLASSES)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="Not a regular file"):
        read_server_scores(tmp_path / "pipe.csv", CLASSES)
    with pytest.raises(UserError, match="name too long"):
        read_server_scores(tmp_path / f"{'x' * 300}.csv", CLASSES)
    with pytest.raises(UserError, match="No such file"):
        read_server_scores(tmp_path / "gone.json", CLASSES)
    for name in ("a.json", "a.csv", "a.yaml"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=name):
            read_server_scores(tmp_path / name, CLASSES)


@given(
    content=st.dictionaries(
        st.sampled_from([*PLAIN, *OFFICIAL, "classes", "classScores", "else"]),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
            st.dictionaries(st.sampled_from(CLASSES), st.floats() | st.text(max_size=3)),
        ),
    )
)  # fmt: skip
def test_whatever_is_written_gives_fractions_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    file = write(tmp_path_factory.getbasetemp(), content, "any.json")
    scores, refusal = FOUR, ""
    try:
        scores = read_server_scores(file, CLASSES)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert all(0 <= score <= 1 for score in scores.values())
    assert set(FOUR) <= set(scores)


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
    with pytest.raises(UserError, match=f"is {status}, not FINISHED"):
        record(store, run_id, write(tmp_path, PLAIN))


def test_the_command(make_store: MakeStore, tmp_path: Path) -> None:
    here, there = make_store("here"), make_store("there")
    run_id = put_run(here)
    export_runs(here, tmp_path / "out")
    import_runs(there, tmp_path / "out")
    file = write(tmp_path, PLAIN)

    def call(*arguments: str) -> str:
        where = ["--results", str(tmp_path / "there")]
        result = CliRunner().invoke(runs_app, ["record", *arguments, *where])
        if isinstance(result.exception, UserError):
            return f"Error: {result.exception}"
        assert result.exit_code == 0, result.output
        return result.output

    said = call(run_id[:8], "--server-scores", str(file))  # the id that it was made under
    assert said.startswith("recorded: Class IoU / iIoU / Category IoU / iIoU 63.06 / 34.06 / ")
    assert "63.06 / 34.06 / 83.58 / 61.05 of lovasz-b10-s0 after training (run " in said
    [run] = there.runs()
    assert run.run_id in said
    assert run.metrics["server/dataset_miou"] == pytest.approx(0.6306)
    assert call(run.run_id, "--server-scores", str(file)).startswith("recorded before:")
    assert "before training" in call(run.run_id, "--server-scores", str(file), "--initial")
    other = write(tmp_path, PLAIN | {"class_iou": 60.0}, "b.json")
    assert "Give --replace" in call(run_id[:8], "--server-scores", str(other))
    said = call(run_id[:8], "--server-scores", str(other), "--replace")
    assert said.startswith("recorded:")
    assert "at least 6 characters" in call(run_id[:3], "--server-scores", str(file))
    assert "no run 'zzzzzz'" in call("zzzzzz", "--server-scores", str(file))
    camvid = there.open_child("camvid-enet", None, "a", "id2", {"data.name": "camvid"}, {})
    there.close(camvid, "FINISHED")
    assert "is of camvid; only scores of the Cityscapes" in call(
        camvid, "--server-scores", str(file)
    )
