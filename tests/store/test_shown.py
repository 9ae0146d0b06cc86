"""What MLflow's own pages show, asked of MLflow's own client."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lovasz_repro.config.read import read_yaml
from lovasz_repro.config.schema import experiment_file
from lovasz_repro.store import Store
from lovasz_repro.store.transfer import export_runs, import_runs

TAGS = {"profile": "reduced", "variant": "sum", "seed": "3", "git_commit": "c0ffee1234",
        "data_fingerprint": "a5a48c45f6ed6142"}  # fmt: skip
PARAMS = {"data.name": "camvid", "data.size": "[176, 240]"}


def opened(store: Store) -> str:
    return store.open_child("camvid-enet", "g", "sum-b10-s3", "id", PARAMS, TAGS)


def experiment(store: Store, name: str = "camvid-enet") -> Any:
    return store._client.get_experiment_by_name(name)


def test_pages_say_what_is_to_be_seen_and_of_what_data(
    store: Store, make_store: Callable[..., Store], tmp_path: Path
) -> None:
    run_id = opened(store)
    store.close(run_id, "FINISHED")
    export_runs(store, tmp_path / "out")
    [file] = (tmp_path / "out").rglob("run.json")
    assert not [key for key in json.loads(file.read_text())["tags"] if key.startswith("mlflow")]
    there = make_store("there")
    import_runs(there, tmp_path / "out")
    about = read_yaml(experiment_file("camvid-enet"))
    for each in (store, there):
        shown = experiment(each).tags
        assert shown["mlflow.experimentKind"] == "custom_model_development"
        for text in (about["title"], about["claim"].strip(), about["section"], "arxiv.org"):
            assert text in shown["mlflow.note.content"]
        [found] = each.runs()
        run = each._client.get_run(found.run_id)
        note = run.data.tags["mlflow.note.content"]
        for text in (
            about["title"],
            "variant sum",
            "seed 3",
            about["profiles"]["reduced"]["about"],
        ):
            assert text in note
        assert (
            run.data.tags["mlflow.source.name"] == "lovasz-repro run camvid-enet --profile reduced"
        )
        assert run.data.tags["mlflow.source.git.commit"] == "c0ffee1234"
        assert "mlflow.parentRunId" not in run.data.tags
        assert (run.info.run_name, found.name) == ("sum-b10-s3 reduced", "sum-b10-s3")
        [data] = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.digest) == ("camvid", "a5a48c45f6ed6142")
        assert json.loads(data.dataset.profile)["data.size"] == "[176, 240]"
        assert [(tag.key, tag.value) for tag in data.tags] == [("mlflow.data.context", "training")]


def test_what_a_person_writes_in_mlflow_stays(store: Store) -> None:
    run_id = opened(store)
    number = experiment(store).experiment_id
    store._client.set_experiment_tag(number, "mlflow.note.content", "mine")
    store._client.set_tag(run_id, "mlflow.note.content", "mine, too")
    store._client.update_run(run_id, name="the good one")
    again = Store(store.results)
    assert opened(again) == run_id
    assert experiment(again).tags["mlflow.note.content"] == "mine"
    assert again._client.get_run(run_id).data.tags["mlflow.note.content"] == "mine, too"
    assert [run.name for run in again.runs()] == ["the good one"]


def test_experiments_of_earlier_versions_and_of_others_are_described_as_far_as_known(
    store: Store,
) -> None:
    store._client.create_experiment("camvid-enet")
    opened(store)
    assert "CamVid" in experiment(store).tags["mlflow.note.content"]
    run_id = store.open_child("of-mine", None, "run", "id", {}, {"seed": "0"})
    assert "mlflow.note.content" not in experiment(store, "of-mine").tags
    assert "seed 0" in store._client.get_run(run_id).data.tags["mlflow.note.content"]
    assert store._client.get_run(run_id).inputs.dataset_inputs == []
