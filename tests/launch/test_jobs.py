"""``--jobs N`` as a user runs it: a grid side by side, interrupted, killed, gone on with."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.errors import UserError
from lovasz_repro.launch.jobs import environments
from lovasz_repro.launch.request import GridRequest, cell_command
from tests.launch.command import Bench, Process, alive, kill, steps_in, wait_until

GRID = ("--seed", "0", "--seed", "1")


@pytest.mark.slow
def test_a_grid_killed_and_stopped_and_gone_on_with(bench: Bench, started: list[Process]) -> None:
    """One run is killed, then all are stopped, then the grid ends as one run after another."""
    bench.run("whole", *GRID)
    process = bench.start("grid", "--jobs", "2", *GRID)
    started.append(process)
    bench.wait_for("grid", "checkpoint-0000000[2-9]-*.pt", process)
    victim = process.descendants()[0]
    kill(victim)
    wait_until(lambda: "killed by SIGKILL; it starts again" in process.said(), "a restart")
    journals = {folder / "journal.jsonl" for folder in bench.folders("grid")}
    wait_until(lambda: any(steps_in(journal) for journal in journals), "steps")
    runs = process.descendants()
    process.signal(signal.SIGINT)
    assert process.wait() == 130, process.said()
    assert "saved. Run the same command to go on." in process.said().splitlines()[-1]
    assert not any(alive(pid) for pid in runs)
    said = bench.run("grid", "--jobs", "2", *GRID)
    assert "finished" in said
    bench.assert_same("grid", "whole")
    assert len(bench.folders("grid")) == 4
    again = bench.run("grid", "--jobs", "2", *GRID)
    assert "4 done before" in again


@pytest.mark.slow
def test_one_run_that_fails_does_not_hold_up_the_others(bench: Bench) -> None:
    """Weights that cannot be written."""
    bench.run("one", "--variant", "lovasz-softmax", "--profile", "demo")
    name = bench.folders("one")[0].name
    blocked = bench.results("failing") / "work" / "tiny" / "demo" / name
    (blocked / "best.safetensors").mkdir(parents=True)
    process = bench.start("failing", "--jobs", "2", "--profile", "demo")
    assert process.wait() == 1, process.said()
    assert f"lovasz-softmax-b5-s0  failed: {blocked}/best.safetensors: not" in process.said()
    assert "weighted-cross-entropy-b5-s0  finished" in process.said()
    assert process.said().splitlines()[-1] == "Error: 1 of 2 runs failed, see above."


def request_for(bench: Bench, **changes: object) -> GridRequest:
    loaded = load_experiment(str(bench.experiment))
    settings: dict[str, object] = {
        "overrides": ["training.lr=0.5"], "results": Path("r"), "data": Path("d"),
    }  # fmt: skip
    cells = loaded.cells("demo", overrides={"training.lr": 0.5})
    return GridRequest(str(bench.experiment), loaded, cells, **(settings | changes))  # type: ignore[arg-type]


def test_the_command_of_a_cell_means_that_cell(bench: Bench) -> None:
    request = request_for(bench, procs=2)
    for cell in request.cells:
        command = cell_command(request, cell)[5:]
        given = {key: command[command.index(key) + 1] for key in command if key.startswith("--")}
        loaded = load_experiment(str(bench.experiment))
        again = loaded.cells(
            given["--profile"],
            variants=[given["--variant"]],
            seeds=[int(given["--seed"])],
            batch_sizes=[int(given["--batch-size"])],
            overrides={"training.lr": 0.5},
        )
        assert again == [cell]
        assert given["--procs"] == "2"
        assert given["--set"] == "training.lr=0.5"


def test_a_cell_runs_what_is_installed_not_what_lies_in_the_folder(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "lovasz_repro").mkdir()
    (tmp_path / "lovasz_repro" / "__init__.py").write_text("raise SystemExit('another one')")
    request = request_for(bench)
    command = [*cell_command(request, request.cells[0])[:4], "--version"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0


def test_gpus_are_dealt_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    gpus = [found["CUDA_VISIBLE_DEVICES"] for found in environments(request_for(bench), 3)]
    assert gpus == ["0", "1", "2"]
    pairs = environments(request_for(bench, gpus=2), 2)
    assert [found["CUDA_VISIBLE_DEVICES"] for found in pairs] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,3,1")
    pairs = environments(request_for(bench, gpus=2), 2)
    assert [found["CUDA_VISIBLE_DEVICES"] for found in pairs] == ["7,5", "3,1"]
    with pytest.raises(UserError, match="needs 6; this machine has 4"):
        environments(request_for(bench, gpus=2), 3)
    on_cpus = environments(request_for(bench, procs=2), 2)
    assert all("CUDA_VISIBLE_DEVICES" not in found for found in on_cpus)
    threads = max(len(os.sched_getaffinity(0)) // 4, 1)
    assert on_cpus == [{"OMP_NUM_THREADS": str(threads)}] * 2
