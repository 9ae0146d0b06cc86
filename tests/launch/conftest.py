"""Commands as real processes, and a test Slurm, once for all tests that need it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.command import Bench, Process
from tests.slurm_cluster import SlurmCluster, missing


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Bench:
    """A small CamVid with an experiment, and results folders, shared by the tests of a file."""
    return Bench(tmp_path_factory.mktemp("bench"), empty_database)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """Processes that must not outlive a test."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill_all()


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    if reason := missing():
        pytest.skip(reason)
    with SlurmCluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def slurm(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SlurmCluster]:
    """A running Slurm that sbatch, squeue and the others find; its queue is emptied afterwards."""
    pytest.importorskip("submitit")
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield slurm_cluster
    slurm_cluster.command("scancel", "--signal=KILL", "--user=root")
