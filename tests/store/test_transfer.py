"""Export and import: the same bytes after a round trip, nothing twice, nothing foreign let in."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lovasz_repro.errors import UserError
from lovasz_repro.store import Store, StoredRun, mlflow_store
from lovasz_repro.store.journal import Point
from lovasz_repro.store.server_scores import record_server_scores
from lovasz_repro.store.stored import ORIGIN, iso, one_by_id, seconds_of
from lovasz_repro.store.transfer import export_runs, import_runs

MakeStore = Callable[..., Store]
STARTED, ENDED = 1_763_884_800.123, 1_763_888_400.456


FIRST, _, LAST = IDENTITIES = [f"{number}0123456789abcde" for number in range(3)]


def fill(store: Store, folder: Path) -> None:
    """Three runs, one of each end."""
    for number, status in enumerate(("FINISHED", "FAILED", "RUNNING")):
        run_id = store.open_child(
            "camvid-enet",
            "camvid-enet-paper",
            f"sum-b5-s{number}",
            IDENTITIES[number],
            {"loss": "Lovász, with ”quotes”\n and a line", "training.lr": 0.1},
            {"seed": str(number), "device": "CPU Größe (2 cores)"},
            started=STARTED + number,
        )
        values = [0.1, 1 / 3, math.nan, 1e-300, -math.inf]
        store.log(run_id, [Point("val/iou/sign big", v, s, 1000 * s) for s, v in enumerate(values)])
        store.log(run_id, [Point("loss", v, s, 1000 * s + 1) for s, v in enumerate(values)])
        for name, place in (("small.new", None), ("small.csv", "plots/deep")):
            (folder / name).write_text(f"{number} {place}")
            store.add_artifact(run_id, folder / name, place)
        if status != "RUNNING":
            store.close(run_id, status, ENDED + number)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """Results folders "here", with the three runs, and "there", which got them from "out"."""
    folder = tmp_path_factory.mktemp("filled")
    here, there = (store_in(folder / name, empty_database) for name in ("here", "there"))
    fill(here, folder)
    export_runs(here, folder / "out")
    import_runs(there, folder / "out")
    return folder


def store_in(folder: Path, database: Path) -> Store:
    folder.mkdir(exist_ok=True)
    shutil.copy(database, folder / "mlflow.db")
    return Store(folder, f"sqlite:///{folder.as_posix()}/mlflow.db")


@pytest.fixture
def here(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with the three runs, exported to ``tmp_path / "out"``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(filled / "out", tmp_path / "out")
    return Store(shutil.copytree(filled / "here", tmp_path / "here"))


@pytest.fixture
def there(filled: Path, tmp_path: Path, here: Store) -> Store:
    """A store that imported them."""
    return Store(shutil.copytree(filled / "there", tmp_path / "there"))


@pytest.fixture
def new(make_store: MakeStore) -> Store:
    """A store without runs."""
    return make_store("new")


def found(store: Store, identity: str = FIRST) -> StoredRun:
    run = store.find("camvid-enet", identity)
    assert run is not None
    return run


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_round_trip_keeps_everything_and_gives_the_same_bytes(
    here: Store, new: Store, tmp_path: Path
) -> None:
    report = import_runs(new, tmp_path / "out")
    assert sorted(report.added) == [f"camvid-enet/sum-b5-s{n}" for n in range(3)]
    assert not report.present + report.updated + report.kept
    for identity in IDENTITIES:
        before, after = found(here, identity), found(new, identity)
        for name in ("name", "status", "params", "started", "ended", "group"):
            assert getattr(after, name) == getattr(before, name)
        assert after.group == "camvid-enet-paper"
        assert after.tags["origin_run_id"] == before.run_id
        assert after.tags["device"] == "CPU Größe (2 cores)"
        assert after.tags["nonfinite/loss"] == "-inf at step 4"
        assert repr(new.points(after.run_id)) == repr(here.points(before.run_id))
        assert new.artifact(after.run_id, "plots/deep/small.csv").read_text().endswith("deep")
    assert export_runs(new, tmp_path / "two") == 3
    assert tree(tmp_path / "out") == tree(tmp_path / "two")
    assert len(tree(tmp_path / "out")) == 3 * 4


def test_importing_twice_adds_nothing(here: Store, there: Store, tmp_path: Path) -> None:
    before = there.runs()
    report = import_runs(there, tmp_path / "out")
    assert len(report.present) == 3
    assert not report.added + report.updated + report.kept
    assert repr(there.runs()) == repr(before)
    assert len(import_runs(here, tmp_path / "out").present) == 3  # back where they came from
    assert len(here.runs()) == 3


def test_exporting_again_changes_no_byte_and_leaves_no_old_file(
    here: Store, tmp_path: Path
) -> None:
    before = tree(tmp_path / "out")
    [stale] = (tmp_path / "out").glob("*/sum-b5-s0-*/artifacts")
    (stale / "stale.txt").write_text("of an earlier export")
    export_runs(here, tmp_path / "out")
    assert tree(tmp_path / "out") == before
    assert not list((tmp_path / "out").rglob(".*"))


def test_some_runs_only(here: Store, tmp_path: Path) -> None:
    here.open_child("other", None, "run", "id", {}, {})
    assert export_runs(here, tmp_path / "a", "other") == 1
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["other"]
    one = found(here).run_id
    assert export_runs(here, tmp_path / "b", run_ids=[one[:12]]) == 1
    [folder] = (tmp_path / "b" / "camvid-enet").iterdir()
    assert folder.name == "sum-b5-s0-00123456"
    with pytest.raises(UserError, match="no run 'unknown' in this store"):
        export_runs(here, tmp_path / "c", run_ids=[one, "unknown"])
    with pytest.raises(UserError, match="run '': give at least 6 characters"):
        export_runs(here, tmp_path / "c", run_ids=[""])
    assert export_runs(here, tmp_path / "d", "nothing") == 0


def test_a_shortened_id_must_mean_one_run() -> None:
    """For every command; an imported run answers to where it was made, too."""
    tags: dict[str, dict[str, str]] = {"abcdef1": {}, "abcdef2": {}, "000000": {ORIGIN: "fedcba9"}}
    runs = [StoredRun(i, "e", "n", "FINISHED", None, 0, 1, {}, of, {}) for i, of in tags.items()]
    assert one_by_id(runs, "abcdef2") is runs[1]
    assert one_by_id(runs, "fedcba") is runs[2]
    with pytest.raises(UserError, match="2 runs begin with 'abcdef'"):
        one_by_id(runs, "abcdef")


def test_an_import_that_was_cut_short_is_completed(
    here: Store, new: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(new, "_put", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_runs(new, tmp_path / "out")
    assert new.runs() == []  # whole or not at all
    with monkeypatch.context() as patch:
        patch.setattr(mlflow_store, "fill", interrupt)
        patch.setattr(new._client, "delete_run", lambda *_: None)  # killed, not interrupted
        with pytest.raises(KeyboardInterrupt):
            import_runs(new, tmp_path / "out")
    assert [run.status for run in new.runs()] == ["RUNNING"]  # not taken for finished
    assert len(import_runs(new, tmp_path / "out").added) == 3
    export_runs(new, tmp_path / "two")
    assert tree(tmp_path / "out") == tree(tmp_path / "two")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_run_that_went_on_is_imported_anew(here: Store, there: Store, tmp_path: Path) -> None:
    running = found(here, LAST).run_id
    here.log(running, [Point("loss", 0.01, 99, 1)])
    export_runs(here, tmp_path / "out")
    report = import_runs(there, tmp_path / "out")
    assert report.updated == ["camvid-enet/sum-b5-s2"]
    here.close(running, "FINISHED", ENDED)
    export_runs(here, tmp_path / "out")
    assert import_runs(there, tmp_path / "out").updated == ["camvid-enet/sum-b5-s2"]
    export_runs(there, tmp_path / "two")
    assert tree(tmp_path / "out") == tree(tmp_path / "two")
    assert len(there.runs()) == 3


def test_a_finished_run_takes_the_place_of_a_dead_one_not_of_a_living_one(
    here: Store, new: Store, tmp_path: Path
) -> None:
    own = new.open_child("camvid-enet", None, "sum-b5-s0", FIRST, {}, {})
    assert import_runs(new, tmp_path / "out").kept == ["camvid-enet/sum-b5-s0"]
    new.close(own, "KILLED")
    assert import_runs(new, tmp_path / "out").updated == ["camvid-enet/sum-b5-s0"]
    assert (found(new).status, found(new).run_id != own) == ("FINISHED", True)


def test_what_is_too_large_or_not_wanted_stays_behind_and_is_named(
    store: Store, new: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = store.open_child("e", None, "run", "id", {}, {})
    sizes = {"best/weights.bin": 101, "curves/curve.csv": 100, "examples/photo.png": 1}
    for name, size in sizes.items():
        file = tmp_path / Path(name).name
        file.write_bytes(bytes(size))
        store.add_artifact(run_id, file, Path(name).parent.name)
    store.log(run_id, [Point("train/loss", 0.5, 1, 1), Point("val/iou", 0.25, 1, 1)])
    store.close(run_id, "FINISHED")
    unwanted = ["examples/*", "*.bat", "train/*"]
    export_runs(store, tmp_path / "one", max_artifact=100, without=unwanted)
    said = capsys.readouterr().err
    assert said.startswith("e/run: best/weights.bin is larger than 100 bytes, left out")
    assert "--max-artifact 101 " in said
    folder = tmp_path / "one" / "e" / "run-id"
    assert set(tree(folder)) == {"artifacts/curves/curve.csv", "metrics.csv", "run.json"}
    left_out = ["best/weights.bin", "examples/photo.png", "train/loss"]
    assert json.loads((folder / "run.json").read_text())["left_out"] == left_out
    import_runs(new, tmp_path / "one")
    (run,) = new.runs("e")
    assert run.metrics == {"val/iou": 0.25}
    export_runs(new, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


# -- scores that a finished run got since --------------------------------------------------------


def score(store: Store, run_id: str, tmp_path: Path, value: float, **options: bool) -> None:
    run = store.get(run_id)
    assert run is not None
    file = tmp_path / f"{value}.json"
    file.write_text(str(value))
    scores = {"dataset_miou": value, "iou/road": value} if value > 0.5 else {"dataset_miou": value}
    record_server_scores(store, run, scores, file, **options)


def test_recorded_scores_travel_with_a_run_and_to_where_it_is_already(
    here: Store, there: Store, new: Store, tmp_path: Path
) -> None:
    finished = found(here).run_id
    score(here, finished, tmp_path, 0.6)
    score(here, finished, tmp_path, 0.3, initial=True)
    export_runs(here, tmp_path / "out")
    assert len(import_runs(new, tmp_path / "out").added) == 3
    report = import_runs(there, tmp_path / "out")
    assert (report.scored, len(report.present)) == (["camvid-enet/sum-b5-s0"], 2)
    assert not report.added + report.updated + report.kept
    for store in (there, new):
        assert found(store).metrics["server/dataset_miou"] == 0.6
        assert found(store).metrics["initial/server/dataset_miou"] == 0.3
        export_runs(store, tmp_path / "again")
        assert tree(tmp_path / "again") == tree(tmp_path / "out")
    assert len(import_runs(there, tmp_path / "out").present) == 3  # once is enough
    assert len(import_runs(here, tmp_path / "out").present) == 3


def test_the_scores_recorded_last_count_wherever_they_were(
    here: Store, there: Store, tmp_path: Path
) -> None:
    finished = found(here).run_id
    score(here, finished, tmp_path, 0.6)
    export_runs(here, tmp_path / "first")
    import_runs(there, tmp_path / "first")
    score(there, found(there).run_id, tmp_path, 0.4, replace=True)
    assert len(import_runs(there, tmp_path / "first").present) == 3  # older than what is there
    export_runs(there, tmp_path / "second")
    assert import_runs(here, tmp_path / "second").scored == ["camvid-enet/sum-b5-s0"]
    for store in (here, there):
        assert found(store).metrics["server/dataset_miou"] == 0.4
        assert math.isnan(found(store).metrics["server/iou/road"])  # of the first scores only
    assert "server-scores/0.4.json" in here.artifact_names(finished)


def test_scores_are_of_one_runs_weights(here: Store, new: Store, tmp_path: Path) -> None:
    """Two machines may have trained the same run; the server saw the weights of one."""
    own = new.open_child("camvid-enet", None, "sum-b5-s0", FIRST, {}, {})
    new.close(own, "FINISHED")
    score(here, found(here).run_id, tmp_path, 0.6)
    export_runs(here, tmp_path / "one", run_ids=[found(here).run_id])
    assert import_runs(new, tmp_path / "one").present == ["camvid-enet/sum-b5-s0"]
    assert not [key for key in found(new).metrics if "server" in key]


def test_an_import_of_scores_that_was_cut_short_is_completed(
    here: Store, there: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(here, found(here).run_id, tmp_path, 0.6)
    export_runs(here, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(there, "set_tags", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_runs(there, tmp_path / "out")
    assert import_runs(there, tmp_path / "out").scored == ["camvid-enet/sum-b5-s0"]
    export_runs(there, tmp_path / "two")
    assert tree(tmp_path / "out") == tree(tmp_path / "two")


@given(milliseconds=st.integers(0, 4_000_000_000_000))
def test_times_keep_their_millisecond(milliseconds: int) -> None:
    assert round(seconds_of(iso(milliseconds / 1000)) * 1000) == milliseconds


def test_the_time_format_is_plain_utc() -> None:
    assert iso(1_763_884_800.007) == "2025-11-23T08:00:00.007Z"


# -- hostile and broken files --------------------------------------------------------------------


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A folder with one exported run."""
    folder = tmp_path_factory.mktemp("template")
    store = store_in(folder, empty_database)
    run_id = store.open_child("e", None, "run", "id", {}, {})
    store.log(run_id, [Point("loss", 0.5, 1, 1)])
    (folder / "a.txt").write_text("x")
    store.add_artifact(run_id, folder / "a.txt")
    store.close(run_id, "FINISHED")
    export_runs(store, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    """A store that stays empty, whatever is offered to it."""
    return store_in(tmp_path_factory.mktemp("empty"), empty_database)


@pytest.fixture
def exported(template: Path, tmp_path: Path) -> Path:
    """The folder of one exported run."""
    return shutil.copytree(template, tmp_path / "out") / "e" / "run-id"


def refused(store: Store, source: Path) -> str:
    with pytest.raises(UserError) as caught:
        import_runs(store, source)
    assert store.runs() == []  # all files are checked before the first run is added
    text = str(caught.value)
    assert "\n" not in text
    return text


WRONG = [
    # what is wrong, a key of run.json, its value
    ("experiment: use at most", "experiment", "../../outside"),
    ("experiment", "experiment", "a/b"),
    ("name", "name", "two\nlines"),
    ("name", "name", ""),
    ("identity", "identity", "x' OR 1=1 --"),
    ("identity", "identity", "id\n"),
    ("status", "status", "DONE"),
    ("started", "started", "yesterday"),
    ("started", "started", "9999-12-31T23:59:59.999Z"),
    ("params.lr: Input should be a valid string", "params", {"lr": 0.1}),
    ("training.batch_size", "params", {"training.batch_size": "x"}),
    ("training.batch_size", "params", {"training.batch_size": "9" * 5000}),
    ("data.size", "params", {"data.size": "²"}),
    ("data.folder", "params", {"data.folder": "/etc"}),
    ("tags", "tags", []),
    ("server/recorded", "tags", {"server/recorded": "today"}),
    ("by the store alone", "tags", {"identity": "other"}),
    ("by the store alone", "tags", {"role": "parent"}),
    ("by the store alone", "tags", {"heartbeat": "99999999999"}),
    ("by the store alone", "tags", {"imported": "complete"}),
    ("by the store alone", "tags", {"origin_run_id": "other"}),
    ("by the store alone", "tags", {"mlflow.parentRunId": "other"}),
    ("seed", "tags", {"seed": "²"}),
    ("profile", "tags", {"profile": "[/red]"}),
    ("variant", "tags", {"variant": "../x"}),
    ("device", "tags", {"device": "\x1b[31m"}),
    ("name of a value", "tags", {"a//b": "x"}),
    ("name of a value", "tags", {"k" * 251: "x"}),
    ("control characters", "tags", {"note": "x\0"}),
    ("format", "format", 2),
    ("extra: Extra inputs are not permitted", "extra", 1),
    ("parent.name", "parent", {"name": "../x", "tags": {}}),
    ("parent.tags", "parent", {"name": "p", "tags": {"identity": "x"}}),
    ("parent.tags", "parent", {"name": "p", "tags": {"role": "child"}}),
]


@pytest.mark.parametrize(("told", "key", "value"), WRONG, ids=range(len(WRONG)))
def test_a_run_file_that_is_not_ours(
    empty: Store, exported: Path, told: str, key: str, value: Any
) -> None:
    content = json.loads((exported / "run.json").read_text())
    (exported / "run.json").write_text(json.dumps(content | {key: value}))
    text = refused(empty, exported.parents[1])
    assert told in text
    assert "run.json is not an exported run" in text
    assert len(text) < 600


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b" " * 5_000_000])
def test_a_run_file_that_is_no_object(empty: Store, exported: Path, content: bytes) -> None:
    (exported / "run.json").write_bytes(content)
    assert "run.json" in refused(empty, exported)


HEAD = b"key,step,value,timestamp\n"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "line 1"),
        (b"step,key\n", "line 1: not an exported metrics file (expected key,step,value,timestamp)"),
        (HEAD + b"loss,1,0.5,1\nloss,1,high,1\n", "line 3"),
        (HEAD + b"loss,1.5,0.5,1\n", "line 2"),
        (HEAD + b"loss,1\n", "line 2"),
        (HEAD + b'"loss,1\n', "line 2"),
        (HEAD + b"\xff,1,1,1\n", "metrics.csv"),
        (HEAD + b"x" * 200_000 + b"\n", "line 2"),
        (HEAD + b"loss,1,0.5,1", "cut off"),
        (HEAD + b"best/iteration,1,inf,1\n", "line 2"),
        (HEAD + b"best/iteration,1,0.5,1\n", "line 2"),
        (HEAD + b"x,1,1e200,1\n", "line 2"),
        (HEAD + b"x,-1,1,1\n", "line 2"),
        (HEAD + b"../x,1,1,1\n", "line 2"),
        (HEAD + b"x,1,1,99999999999999\n", "line 2"),
        (HEAD + b"\x1b[31m,1,1,1\n", "line 2"),
    ],
)
def test_a_metrics_file_that_is_not_ours(
    empty: Store, exported: Path, content: bytes, told: str
) -> None:
    (exported / "metrics.csv").write_bytes(content)
    assert told in refused(empty, exported)


def test_a_missing_metrics_file_and_an_empty_folder(
    empty: Store, exported: Path, tmp_path: Path
) -> None:
    (exported / "metrics.csv").unlink()
    assert "metrics.csv" in refused(empty, exported)
    shutil.rmtree(exported)
    assert "no exported runs below" in refused(empty, tmp_path / "out")
    assert "no exported runs below" in refused(empty, tmp_path / "missing")


def test_links_are_refused(empty: Store, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    os.symlink(tmp_path / "secret", exported / "artifacts" / "link")
    assert "is a link" in refused(empty, exported)


def test_a_broken_run_among_good_ones_stops_the_import_before_it_begins(
    empty: Store, exported: Path
) -> None:
    shutil.copytree(exported, exported.with_name("zzz"))
    (exported.with_name("zzz") / "run.json").write_text("{}")
    assert "zzz" in refused(empty, exported.parent)


def test_a_copy_that_was_cut_is_refused(empty: Store, exported: Path) -> None:
    """Whole lines are missing, or a file is: nothing else would tell."""
    whole = (exported / "metrics.csv").read_bytes()
    (exported / "metrics.csv").write_bytes(whole.splitlines(keepends=True)[0])
    assert "0 of the 1 values" in refused(empty, exported)
    (exported / "metrics.csv").write_bytes(whole)
    (exported / "artifacts" / "a.txt").write_bytes(b"")
    assert "a.txt has 0 of the 1 bytes" in refused(empty, exported)
    (exported / "artifacts" / "a.txt").unlink()
    assert "a.txt has none of the 1 bytes" in refused(empty, exported)


def test_an_export_of_an_earlier_version_has_no_counts(store: Store, exported: Path) -> None:
    content = json.loads((exported / "run.json").read_text())
    del content["points"], content["files"]
    (exported / "run.json").write_text(json.dumps(content | {"ended": None}))  # nor need it end
    (exported / "artifacts" / "._a.txt").write_text("of a Mac")
    (exported / "artifacts" / ".DS_Store").write_text("of a Mac")
    assert import_runs(store, exported).added == ["e/run"]
    (run,) = store.runs()
    assert store.artifact_names(run.run_id) == ["a.txt"]
    assert run.metrics == {"loss": 0.5}


@pytest.mark.parametrize("name", ["run.json", "metrics.csv", "artifacts/pipe"])
def test_a_pipe_is_not_waited_for(empty: Store, exported: Path, name: str) -> None:
    (exported / name).unlink(missing_ok=True)
    os.mkfifo(exported / name)
    assert name.rpartition("/")[2] in refused(empty, exported)


def test_a_run_renamed_in_mlflows_pages_is_exported_all_the_same(
    store: Store, new: Store, tmp_path: Path
) -> None:
    names = ("my best [/red] run", "../../up", "plain")
    for number, name in enumerate(names):
        run_id = store.open_child("e", None, "run", f"id{number}", {}, {})
        store._client.update_run(run_id, name=name)
    assert export_runs(store, tmp_path / "out") == 3
    assert {path.parent for path in tmp_path.glob("out/*/*")} == {tmp_path / "out" / "e"}
    import_runs(new, tmp_path / "out")
    assert {run.name for run in new.runs()} == set(names)
    for number, name in enumerate(names):  # renamed again: no former export is left behind
        (run,) = [run for run in store.runs() if run.identity == f"id{number}"]
        store._client.update_run(run.run_id, name=f"new {name}")
    (tmp_path / "out" / "e" / "mine-id0").mkdir()
    assert export_runs(store, tmp_path / "out") == 3
    assert len(list((tmp_path / "out" / "e").glob("*/run.json"))) == 3
    assert (tmp_path / "out" / "e" / "mine-id0").is_dir()


def test_runs_that_are_odd_all_the_same_are_passed_over_with_one_line(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a run may come from an older version, or from another tool in the same store."""
    store.open_child("e", None, "good", "good", {}, {})
    odd = store.open_child("e", None, "odd", "odd", {"training.batch_size": "x"}, {})
    for key, value in (("left_out", "[1]"), ("group_tags", "[" * 5000)):
        store.set_tags(store.open_child("e", None, "odd", key, {}, {}), {key: value})
    assert store._client.create_experiment("../../out")
    outside = store._client.get_experiment_by_name("../../out").experiment_id
    foreign = store._client.create_run(outside, tags={"identity": "i"}, run_name="foreign")
    reader = Store(store.results)
    assert [run.name for run in reader.runs()] == ["good"]
    assert [run.name for run in reader.runs("e")] == ["good"]
    assert reader.find("e", "odd") is None
    assert export_runs(reader, tmp_path / "out") == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4  # once a run
    assert [line.count("not a JSON") for line in sorted(said)].count(1) == 2
    assert any(odd in line and "training.batch_size" in line for line in said)
    with pytest.raises(UserError, match="no path inside"):
        reader.add_artifact(foreign.info.run_id, Path(__file__))
    assert reader.open_child("e", None, "odd", "odd", {}, {}) != odd
