"""Runs that start from another run of their grid: in turn, on ranks, side by side, on Slurm."""

from pathlib import Path

import pytest

from tests.launch.command import Bench, Process, kill, wait_until
from tests.slurm_cluster import SlurmCluster
from tests.tiny_voc import write_binary_experiment, write_voc

GRID = ("--profile", "features", "--classes", "bird")
BASIS, HINGE, LOVASZ = "basis-b3-s0", "hinge-bird-b3-s0", "lovasz-hinge-bird-b3-s0"
TWO = ("--losses", "hinge,lovasz-hinge")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Bench:
    """A small VOC without photographs, in double precision, and the grid run in turn: "whole"."""
    bench = Bench(tmp_path_factory.mktemp("bench"), empty_database)
    write_voc(bench.data / "tiny", photographs=False)
    bench.experiment = write_binary_experiment(bench.folder, "tiny", precision="float64")
    said = bench.run("whole", *GRID, *TWO)
    assert "3 finished" in said
    return bench


@pytest.mark.slow
def test_ranks_train_what_one_process_trains(bench: Bench) -> None:
    said = bench.run("ranks", *GRID, *TWO, "--procs", "2")
    assert "3 finished" in said
    bench.assert_same("ranks", "whole", 1e-9)


@pytest.mark.slow
def test_side_by_side_the_basis_comes_first_and_a_kill_loses_nothing(
    bench: Bench, started: list[Process]
) -> None:
    process = bench.start("grid", "--jobs", "2", *GRID, *TWO)
    started.append(process)
    bench.wait_for("grid", "checkpoint-0000000[2-9]-*.pt", process)
    assert [folder.name.rpartition("-")[0] for folder in bench.folders("grid")] == [BASIS]
    kill(process.descendants()[0])
    wait_until(lambda: "killed by SIGKILL; it starts again" in process.said(), "a restart")
    assert process.wait() == 0, process.said()
    bench.assert_same("grid", "whole")
    assert "3 done before" in bench.run("grid", "--jobs", "2", *GRID, *TWO)


@pytest.mark.slow
def test_side_by_side_a_failed_basis_is_told_once(bench: Bench) -> None:
    """Weights that cannot be written."""
    (name,) = [folder.name for folder in bench.folders("whole") if BASIS in folder.name]
    blocked = bench.results("failing") / "work" / "tiny" / "features" / name
    (blocked / "best.safetensors").mkdir(parents=True)
    process = bench.start("failing", "--jobs", "2", *GRID, "--losses", "hinge")
    assert process.wait() == 1, process.said()
    assert f"{BASIS}  failed: {blocked}/best.safetensors: not" in process.said()
    assert process.said().splitlines()[-1] == "Error: 2 of 2 runs failed, see above."


@pytest.mark.slow
def test_on_slurm_the_others_wait_for_the_basis(bench: Bench, slurm: SlurmCluster) -> None:
    said = bench.run("slurm", "--slurm", "--jobs", "2", *GRID, *TWO)
    assert "3 runs submitted as job" in said
    again = bench.run("slurm", "--slurm", *GRID, *TWO)
    assert "0 runs submitted" in again

    def done() -> bool:
        statuses = bench.statuses("slurm")
        return all(statuses.get(name) == "FINISHED" for name in (BASIS, HINGE, LOVASZ))

    wait_until(done, "all three runs")
    bench.assert_same("slurm", "whole")
