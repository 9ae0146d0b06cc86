"""Whole runs on a small CamVid: stored, skipped, killed, resumed, failed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.experiment import Outcome, run_experiment
from lovasz_repro.run.inputs import Place
from lovasz_repro.store import Store
from tests.tiny_camvid import write_camvid, write_experiment

CPU = torch.device("cpu")
METRICS = ("train/loss", "train/lr", "val/dataset_miou", "val/image_miou", "test/dataset_miou")


class Workshop:
    """A results folder with an empty store, a small CamVid and an experiment file."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        self.database = database
        self.data = write_camvid(folder / "data")
        self.experiment = write_experiment(folder)

    def results(self, name: str) -> Path:
        results = self.folder / name
        if not results.exists():
            results.mkdir()
            shutil.copy(self.database, results / "mlflow.db")
        return results

    def run(self, name: str, profile: str = "paper", **grid: object) -> Outcome:
        loaded = load_experiment(str(self.experiment))
        cells = loaded.cells(profile, **grid)  # type: ignore[arg-type]
        place = Place(self.results(name), self.data, None, CPU)
        return run_experiment(loaded, cells, place, Store(self.results(name)), Progress())

    def start(self, name: str, *options: str) -> subprocess.Popen[str]:
        """The command line in a process of its own."""
        command = [sys.executable, "-m", "lovasz_repro.cli", "run", str(self.experiment)]
        command += ["--data", str(self.data), "--results", str(self.results(name)), *options]
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        return subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def work(self, name: str) -> Path:
        """The folder of the only run."""
        (journal,) = self.results(name).glob("work/*/*/*/journal.jsonl")
        return journal.parent

    def wait_for(self, name: str, process: subprocess.Popen[str], pattern: str) -> None:
        """Until a file of that pattern appears among the run's."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if list(self.results(name).glob(f"work/*/*/*/{pattern}")):
                return
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        pytest.fail(f"{pattern} did not appear")


@pytest.fixture
def workshop(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workshop(tmp_path, empty_database)


ONE = {"variants": ["lovasz-softmax"]}


def test_a_run_is_stored_with_all_it_can_be_traced_by_and_then_skipped(workshop: Workshop) -> None:
    outcome = workshop.run("a", "demo")
    assert outcome.finished == ["weighted-cross-entropy-b2-s0", "lovasz-softmax-b2-s0"]
    store = Store(workshop.results("a"))
    runs = store.runs("tiny")
    assert [run.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        for tag in (
            "identity", "config_hash", "data_fingerprint", "git_commit", "seed", "device",
            "packages", "profile", "scale", "variant", "experiment",
        ):  # fmt: skip
            assert run.tags[tag], tag
        assert run.params["training.iterations"] == "4"
        assert 0 <= run.metrics["test/dataset_miou"] <= 1
        assert 0 <= run.metrics["initial/test/dataset_miou"] <= 1
        assert [step for step, _ in store.history(run.run_id, "train/loss")] == [1, 2, 3, 4]
        assert [step for step, _ in store.history(run.run_id, "val/dataset_miou")] == [0, 4]
        assert store.artifact(run.run_id, "config.yaml").is_file()
        assert load_file(store.artifact(run.run_id, "best.safetensors"))
    again = workshop.run("a", "demo")
    assert (again.finished, len(again.skipped)) == ([], 2)
    assert len(store.runs("tiny")) == 2


def test_training_lowers_the_loss(workshop: Workshop) -> None:
    changes = {"training.iterations": 40, "training.lr": 0.01}
    grid = {"variants": ["weighted-cross-entropy"], "overrides": changes}
    workshop.run("a", **grid)
    store = Store(workshop.results("a"))
    losses = [value for _, value in store.history(store.runs("tiny")[0].run_id, "train/loss")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_bitwise_the_same(workshop: Workshop) -> None:
    """SIGKILL right after one checkpoint, again after another; then to the end."""
    workshop.run("whole", **ONE)
    for iteration in (4, 8):
        process = workshop.start("killed", "--variant", "lovasz-softmax")
        workshop.wait_for("killed", process, f"checkpoint-{iteration:08d}-*.pt")
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = workshop.start("killed", "--variant", "lovasz-softmax")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "goes on from iteration" in said

    whole, killed = workshop.work("whole"), workshop.work("killed")
    assert whole.name == killed.name
    expected, found = (load_file(folder / "best.safetensors") for folder in (whole, killed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    last = [next(folder.glob("checkpoint-00000012-*.pt")) for folder in (whole, killed)]
    models = [torch.load(path, weights_only=True)["model"] for path in last]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])

    stores = [Store(workshop.results(name)) for name in ("whole", "killed")]
    runs = [store.runs("tiny") for store in stores]
    assert [len(found) for found in runs] == [1, 1]
    assert runs[1][0].status == "FINISHED"
    for key in METRICS:
        histories = [
            store.history(run[0].run_id, key) for store, run in zip(stores, runs, strict=True)
        ]
        assert histories[0] == histories[1], key


def test_sigterm_saves_and_says_so(workshop: Workshop) -> None:
    options = ("--variant", "lovasz-softmax", "--set", "training.iterations=5000",
               "--set", "training.checkpoint_every=5000")  # fmt: skip
    process = workshop.start("a", *options)
    workshop.wait_for("a", process, "journal.jsonl")
    journal = workshop.work("a") / "journal.jsonl"
    while "train/loss" not in journal.read_text():
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said
    assert "Stopped at iteration" in said
    assert "same command" in said
    assert list(workshop.work("a").glob("checkpoint-*.pt"))
    assert Store(workshop.results("a")).runs("tiny")[0].status == "KILLED"


def test_a_loss_that_is_not_finite_fails_its_run_and_not_the_others(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lovasz_repro.run import experiment

    real = experiment.build_objective

    def poisoned(config, *rest):  # type: ignore[no-untyped-def]
        objective = real(config, *rest)
        nan = float("nan") if "cross_entropy" in config.terms else 1.0
        return lambda logits, labels: objective(logits, labels) * nan

    monkeypatch.setattr(experiment, "build_objective", poisoned)
    outcome = workshop.run("a", "demo")
    assert outcome.finished == ["lovasz-softmax-b2-s0"]
    assert "The loss is nan at iteration 1" in outcome.failed["weighted-cross-entropy-b2-s0"]
    statuses = {run.name: run.status for run in Store(workshop.results("a")).runs("tiny")}
    assert statuses["weighted-cross-entropy-b2-s0"] == "FAILED"


def test_other_data_is_another_run(workshop: Workshop) -> None:
    workshop.run("a", "demo", **ONE)
    file = workshop.data / "camvid" / "train" / "0.png"
    Image.open(file).rotate(180).save(file)
    assert workshop.run("a", "demo", **ONE).finished == ["lovasz-softmax-b2-s0"]
    runs = Store(workshop.results("a")).runs("tiny")
    assert len({run.tags["data_fingerprint"] for run in runs}) == 2
    assert len({run.tags["config_hash"] for run in runs}) == 1


def test_a_run_that_another_process_works_on_is_left_to_it(workshop: Workshop) -> None:
    from lovasz_repro.store.journal import Journal

    workshop.run("a", "demo", **ONE)
    folder = workshop.work("a")
    shutil.copy(workshop.database, workshop.results("a") / "mlflow.db")  # the store forgot it
    before = (folder / "journal.jsonl").read_bytes()
    with Journal(folder / "journal.jsonl"):
        outcome = workshop.run("a", "demo")
    assert outcome.elsewhere == ["lovasz-softmax-b2-s0"]
    assert outcome.finished == ["weighted-cross-entropy-b2-s0"]
    assert (folder / "journal.jsonl").read_bytes() == before
