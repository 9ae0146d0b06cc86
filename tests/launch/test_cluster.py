"""``--slurm`` as a user runs it, against a real Slurm: submit, look, pre-empt, submit again."""

import contextlib
import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lovasz_repro.launch.slurm import minutes, slurm_options
from lovasz_repro.store import Store
from tests.launch.command import PATIENCE, Bench, wait_until
from tests.slurm_cluster import SlurmCluster

SHORT = ("--profile", "demo")


def shown(bench: Bench, name: str) -> dict[str, str]:
    """Run -> status, as ``runs --json`` tells."""
    process = bench.start(name, command=["runs", "--json"])
    assert process.wait() == 0, process.said()
    return {run["name"].split("/")[-1]: run["shown_status"] for run in json.loads(process.said())}


@pytest.mark.slow
def test_a_grid_on_slurm(bench: Bench, slurm: SlurmCluster) -> None:
    """Queued, running, pre-empted, requeued, done; the second command submits what is missing."""
    long = ("--set", "training.iterations=60", "--set", "training.validate_every=60")
    # a login node has no GPU, and one that is asked for is none of its business
    process = bench.start("no-gpus", "--slurm", "--gpus", "2", *SHORT)
    assert process.wait() == 2, process.said()
    assert "sbatch refuses" in process.said()
    names = ("lovasz-softmax-b5-s0", "weighted-cross-entropy-b5-s0")
    said = bench.run("grid", "--slurm", "--jobs", "1", "--time", "0:30", *SHORT, *long)
    assert "2 runs submitted as job" in said
    assert set(shown(bench, "grid")) >= set(names) or len(shown(bench, "grid")) == 2
    bench.wait_for("grid", "checkpoint-0000000[2-9]-*.pt")
    job = said.split("job ")[1].split(".")[0]
    running = slurm.command("squeue", "--noheader", "--array", "--states=running", "--format=%i")
    slurm.command("scancel", "--signal=USR2", running.split()[0])
    assert "0 runs submitted" in bench.run("grid", "--slurm", *SHORT, *long)  # all are there
    wait_until(lambda: "STOPPED" in shown(bench, "grid").values() or done(bench, names), job)
    wait_until(lambda: done(bench, names), "both runs")
    bench.run("alone-longer", *SHORT, *long)
    bench.assert_same("grid", "alone-longer")
    assert "0 runs submitted, 2 done before" in bench.run("grid", "--slurm", *SHORT, *long)


def done(bench: Bench, names: tuple[str, ...], results: str = "grid") -> bool:
    statuses = bench.statuses(results)
    return all(statuses.get(name) == "FINISHED" for name in names)


@pytest.mark.slow
def test_tasks_of_srun_are_ranks(bench: Bench, slurm: SlurmCluster) -> None:
    program = ("srun", "--ntasks=2", sys.executable, "-m", "lovasz_repro.cli")
    process = bench.start("srun", *SHORT, program=program)
    assert process.wait() == 0, process.said()
    assert process.said().count("tiny: 2 finished.") == 1
    bench.run("alone", *SHORT)
    bench.assert_same("srun", "alone", tolerance=1e-9)
    assert {run.tags["ranks"] for run in Store(bench.results("srun")).runs("tiny")} == {"2"}


@pytest.mark.slow
def test_a_command_in_a_shell_of_srun_waits_for_nobody(bench: Bench, slurm: SlurmCluster) -> None:
    terminal, other_end = pty.openpty()
    shell = subprocess.Popen(
        ["srun", "--pty", "--ntasks=4", "bash", "--norc", "-i"],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,
    )
    os.close(other_end)
    command = shlex.join([sys.executable, "-m", "lovasz_repro.cli", *bench.arguments("a", *SHORT)])
    os.write(terminal, f"cd {Path.cwd()}; {command}; echo code=$?; exit\n".encode())
    said = ""
    with contextlib.suppress(OSError):  # how a terminal ends
        while piece := os.read(terminal, 4096):
            said += piece.decode(errors="replace")
    shell.wait(PATIENCE)
    os.close(terminal)
    assert "this shell is one of the 4 tasks of its srun" in said, said
    assert "code=2" in said


@pytest.mark.slow
def test_a_run_on_two_machines_of_slurm(bench: Bench, slurm: SlurmCluster) -> None:
    bench.run("nodes", "--slurm", "--nodes", "2", "--procs", "1", *SHORT)
    names = ("lovasz-softmax-b5-s0", "weighted-cross-entropy-b5-s0")
    wait_until(lambda: done(bench, names, "nodes"), "both runs")
    bench.run("alone", *SHORT)
    bench.assert_same("nodes", "alone", tolerance=1e-9)
    assert {run.tags["ranks"] for run in Store(bench.results("nodes")).runs("tiny")} == {"2"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90), ("1:30", 90), ("1:30:00", 90), ("1:30:01", 91), ("24:00", 1440),
        ("2-12", 3600), ("2-12:30", 3630), ("1-00:00:00", 1440),
    ],
)  # fmt: skip
def test_times(text: str, expected: int) -> None:
    assert minutes(text) == expected


def test_options_reach_slurm(bench: Bench) -> None:
    from tests.launch.test_jobs import request_for

    request = request_for(bench, gpus=4, nodes=2)
    found = slurm_options(request, "gpu", "2:00", None, 8, ["account=vision", "--exclusive"])
    assert (found.partition, found.time_minutes, found.gpus, found.nodes) == ("gpu", 120, 4, 2)
    assert (found.at_once, found.cpus) == (8, None)
    assert found.extra == {"account": "vision", "exclusive": ""}
    assert slurm_options(request_for(bench, procs=3), None, None, None, None, None).cpus == 3
