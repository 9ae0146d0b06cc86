"""Scores of Pascal VOC's server: every spelling, one unit, a mean that fits its classes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lovasz_repro.cli.runs import runs_app
from lovasz_repro.data.classes import VOC
from lovasz_repro.errors import UserError
from lovasz_repro.store import Store
from lovasz_repro.store.server_scores import implied_background, read_voc_server_scores

NAMES = VOC.names
TABLE_3 = {  # the column "Lovász + equibatch, 30K", in the paper's words
    "airplane": 92.63, "cycle": 41.55, "bird": 87.87, "boat": 68.41, "bottle": 77.75,
    "bus": 94.71, "car": 86.71, "cat": 90.37, "chair": 38.59, "cow": 86.24, "d. table": 74.50,
    "dog": 89.02, "horse": 91.69, "mbike": 87.28, "person": 86.37, "plant": 65.92,
    "sheep": 87.13, "sofa": 65.21, "train": 83.69, "tv": 68.64,
}  # fmt: skip
MEAN = 79.00
OBJECTS = dict(zip(NAMES[1:], TABLE_3.values(), strict=True))
"""The same in the data set's words: the paper keeps its order."""
ALL = {"background": 94.72} | OBJECTS
"""21 * 79.00 - 1564.28 = 94.72."""
SERVER = [
    "aero plane", *NAMES[2:11], "dining table", "dog", "horse", "motor bike", "person",
    "potted plant", "sheep", "sofa", "train", "tv/ monitor",
]  # fmt: skip
"""As the leaderboard's columns are called."""
FRACTIONS = {"dataset_miou": 0.79} | {f"iou/{name}": v / 100 for name, v in OBJECTS.items()}


def write(folder: Path, content: Any, name: str = "scores.json") -> Path:
    file = folder / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def lines(scores: dict[str, float], between: str) -> str:
    return "".join(f"{name}{between}{value}\n" for name, value in scores.items())


SPELLED = dict(zip(SERVER, TABLE_3.values(), strict=True))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", {"mean": MEAN, "classes": OBJECTS}),
        ("a.json", {"mean_iou": 79, "classes": TABLE_3}),
        ("a.yaml", yaml.safe_dump({"mIoU": MEAN, "classes": SPELLED})),
        ("a.csv", "key,value\n" + lines({"mean": MEAN} | {f"classes.{k}": v for k, v in
                                                          OBJECTS.items()}, ",")),
        ("a.csv", "class;IoU\r\n" + lines({"Mean": MEAN} | TABLE_3, ";")),
        ("a.csv", lines({f'"{k}"': v for k, v in ({"mean": MEAN} | TABLE_3).items()}, ", ")),
        ("a.txt", "VOC2012, comp6\n\nclass  IoU\n" + lines(TABLE_3 | {"mean": MEAN}, "   ")),
        ("a.TXT", lines({"mean": MEAN} | SPELLED, "\t")),
        ("a.txt", lines({"Mean IoU": MEAN} | {k: f"{v} %" for k, v in SPELLED.items()}, ": ")),
    ],
)  # fmt: skip
def test_twenty_objects_and_the_mean_in_every_form(tmp_path: Path, name: str, content: Any) -> None:
    scores = read_voc_server_scores(write(tmp_path, content, name), NAMES)
    assert scores == pytest.approx(FRACTIONS, abs=1e-12)
    assert list(scores) == ["dataset_miou", *(f"iou/{name}" for name in NAMES[1:])]
    assert implied_background(scores, NAMES) == pytest.approx(0.9472, abs=1e-9)


def test_the_background_where_it_is_known(tmp_path: Path) -> None:
    file = write(tmp_path, {"mean": 79.0, "classes": ALL})
    scores = read_voc_server_scores(file, NAMES)
    assert scores == pytest.approx(FRACTIONS | {"iou/background": 0.9472})
    assert implied_background(scores, NAMES) is None


def test_the_mean_alone(tmp_path: Path) -> None:
    scores = read_voc_server_scores(write(tmp_path, "mean 78.05\n", "a.txt"), NAMES)
    assert scores == pytest.approx({"dataset_miou": 0.7805})
    assert implied_background(scores, NAMES) is None


@pytest.mark.parametrize("mean", [78.941, 79.059, 79.05, 78.95])
def test_a_rounded_mean_is_taken(tmp_path: Path, mean: float) -> None:
    assert read_voc_server_scores(write(tmp_path, {"mean": mean, "classes": ALL}), NAMES)


def without(scores: dict[str, float], *names: str) -> dict[str, float]:
    return {name: value for name, value in scores.items() if name not in names}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"mean": 79.1, "classes": ALL}, "mean is 79.1, that of the 21 classes is 79.00"),
        ({"mean": 78.9, "classes": ALL}, "mean is 78.9, that of the 21 classes is 79.00"),
        ({"mean": 74.4, "classes": OBJECTS}, "would have -1.88 percent"),  # 1562.4 - 1564.28
        ({"mean": 79.3, "classes": OBJECTS}, "would have 101.02 percent"),  # 1665.3 - 1564.28
        ({"mean": 79.0, "classes": OBJECTS | {"boat": 6.841}}, "would have 156.29 percent"),
        ({"classes": ALL}, "mean: field required"),
        (
            {"mean": 0.79, "classes": OBJECTS},
            "mean: expected percent (is it a fraction?)",
        ),
        ({"mean": 79.0, "classes": {k: v / 100 for k, v in ALL.items()}}, "are they fractions?"),
        ({"mean": 79.0, "classes": without(OBJECTS, "bus")}, "no bus. Give the IoU of all 20"),
        ({"mean": 79.0, "classes": {"bird": 87.9}}, "no aeroplane, bicycle, boat and 16 more."),
        ({"mean": 79.0, "classes": OBJECTS | {"airplane": 92.6}}, "aeroplane is there twice"),
        ({"mean": 79.0, "mIoU": 79.0}, "mean is there twice"),
        ({"mean": 79.0, "classes": {"aeroplan": 92.6}}, "class 'aeroplan' (did you mean aeropl"),
        ({"mean": 79.0, "unlabelled": 2.0}, "unknown class 'unlabelled'"),
        ({"mean": 79.0, "classes": [1, 2]}, "'classes'"),
        ({"mean": "79.0"}, "mean: input should be a valid number, not the text '79.0'"),
        ({"mean": True}, "valid number"),
        ({"mean": None}, "valid number"),
        ({"mean": math.nan}, "finite number"),
        ({"mean": 179.0}, "mean: input should be less than or equal to 100, not 179.0"),
        ({"mean": -1}, "equal to 0, not -1"),
        ({"mean": 79.0, "classes": OBJECTS | {"tv": 168.6}}, "tvmonitor is there twice"),
        (
            {"mean": 79.0, "classes": OBJECTS | {"dog": 189.0}},
            "dog: input should be less",
        ),
        ({}, "mean: field required"),
        ("[1]", "expected keys and values"),
        ("{", "unreadable"),
        (" " * 5_000_000, "too large"),
    ],
)
def test_a_file_that_cannot_be_meant(tmp_path: Path, content: Any, told: str) -> None:
    file = write(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_voc_server_scores(file, NAMES)
    assert told in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.pdf", "mean 79", "expected one of .json, .yaml, .yml, .csv, .txt"),
        ("a.txt", "", "mean: field required"),
        ("a.txt", "mean 79\nbird\n", "no number in the line 'bird'"),
        ("a.txt", "mean 79\nairplane -\n", "no number in the line 'airplane -'"),
        ("a.txt", "mean nan\n", "finite number"),
        ("a.txt", "mean 79\nsubmitted on 12 Nov 2012\n", "unknown class 'submitted on 12 Nov'"),
        ("a.csv", "mean,79,00\n", "unknown class 'mean,79'"),
        ("a.csv", "mean,79\nmean,78\n", "mean is there twice"),
    ],
)
def test_lines_that_cannot_be_meant(tmp_path: Path, name: str, content: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        read_voc_server_scores(write(tmp_path, content, name), NAMES)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    for name in ("a.json", "a.csv", "a.yaml", "a.txt"):
        with pytest.raises(UserError, match=name):
            read_voc_server_scores(tmp_path / "gone" / name, NAMES)
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match=name):
            read_voc_server_scores(tmp_path / name, NAMES)


@given(text=st.text(max_size=60) | st.lists(
    st.tuples(st.sampled_from(["mean", *NAMES, "d. table", "x"]), st.floats() | st.text())
).map(lambda rows: "\n".join(f"{name} {value}" for name, value in rows)))  # fmt: skip
def test_whatever_is_written_gives_fractions_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.txt"
    file.write_text(text, encoding="utf-8", errors="replace")
    scores, refusal = {"dataset_miou": 0.5}, ""
    try:
        scores = read_voc_server_scores(file, NAMES)
    except UserError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert all(0 <= score <= 1 for score in scores.values())
    assert "dataset_miou" in scores


# -- the command ---------------------------------------------------------------------------------


def put_run(store: Store, scale: str = "paper", **params: str) -> str:
    number = len(store.runs())
    params = {"data.name": "voc", "data.category": "None", "data.images": "photographs"} | params
    tags = {"scale": scale}
    run_id = store.open_child("voc-multiclass", None, "lovasz-s0", f"id{number}", params, tags)
    store.close(run_id, "FINISHED")
    return run_id


def test_the_command(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store()

    def call(*arguments: object) -> str:
        given = [*map(str, arguments), "--results", str(tmp_path / "results")]
        result = CliRunner().invoke(runs_app, ["record", *given])
        if isinstance(result.exception, UserError):
            return f"Error: {result.exception}"
        assert result.exit_code == 0, result.output
        return result.output

    run_id = put_run(store)
    file = write(tmp_path, lines({"mean": MEAN} | TABLE_3, " "), "page.txt")
    said = call(run_id, "--server-scores", file)
    assert said == ("recorded: dataset-mIoU 79.00, 20 objects (which leave 94.72 for the "
                    f"background) of lovasz-s0 after training (run {run_id})\n")  # fmt: skip
    run = store.get(run_id)
    assert run is not None
    expected = {f"server/{name}": value for name, value in FRACTIONS.items()}
    assert run.metrics == pytest.approx(expected)
    assert store.artifact(run_id, "server-scores/page.txt").read_bytes() == file.read_bytes()
    assert call(run_id, "--server-scores", file).startswith("recorded before: ")
    alone = write(tmp_path, "mean 79.00", "alone.txt")
    assert "server/iou/aeroplane 92.63%, now none" in call(run_id, "--server-scores", alone)
    whole = write(tmp_path, {"mean": MEAN, "classes": ALL})
    said = call(run_id, "--server-scores", whole, "--replace")
    assert "dataset-mIoU 79.00, 21 classes of lovasz-s0" in said
    assert "is for Cityscapes alone" in call(run_id, "--server-scores", file, "--initial")
    for refused, words in (
        (put_run(store, "demo"), "is of drawn pictures: no server scores it"),
        (put_run(store, **{"data.images": "features"}), "has seen no photograph"),
        (put_run(store, **{"data.category": "cat"}), "tells cat from the rest"),
    ):
        said = call(refused, "--server-scores", file)
        assert words in said
        found = store.get(refused)
        assert found is not None
        assert not found.metrics
