"""``--procs N`` as a user runs it: the same results, ranks that die, signals, errors."""

import signal
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lovasz_repro.cli import app
from lovasz_repro.errors import UserError
from tests.launch.command import Bench, Process, alive, kill, wait_until
from tests.slurm_cluster import free_ports

ONE = ("--variant", "lovasz-softmax")
LONG = ("--set", "training.iterations=5000", "--set", "training.checkpoint_every=4000")


@pytest.fixture(scope="module")
def whole(bench: Bench) -> str:
    """Both runs on one process, and never interrupted."""
    bench.run("whole")
    return "whole"


@pytest.fixture(scope="module")
def watched(bench: Bench) -> tuple[set[str], int]:
    """Where "whole2", a run on two ranks, listened at any moment, and how many ranks it had."""
    process, seen, most = bench.start("whole2", "--procs", "2", *ONE), set[str](), 0
    try:
        while process.code() is None:
            seen |= process.listening()
            most = max(most, len(process.ranks()))
            time.sleep(0.02)
        assert process.wait() == 0, process.said()
    finally:
        process.kill_all()
    return seen, most


@pytest.mark.slow
def test_three_ranks_give_the_curves_of_one_process(bench: Bench, whole: str) -> None:
    said = bench.run("three", "--procs", "3")
    bench.assert_same("three", whole, tolerance=1e-9)
    assert "2 finished" in said
    assert said.count("iteration     6") == 2, "only rank 0 speaks"
    assert "Warning" not in said
    assert "done before" in bench.run("three", "--procs", "3", *ONE)
    assert not list(bench.results("three").glob("work/ranks/*")), "logs of what went well"


@pytest.mark.slow
def test_a_killed_rank_costs_a_restart_and_no_bit(
    bench: Bench, watched: object, started: list[Process]
) -> None:
    process = bench.start("killed", "--procs", "2", *ONE)
    started.append(process)
    bench.wait_for("killed", "checkpoint-00000004-*.pt", process)
    kill(process.ranks()[1])
    assert process.wait() == 0, process.said()
    assert "rank 1: killed by SIGKILL; all ranks start again" in process.said()
    assert "goes on from iteration" in process.said()
    bench.assert_same("killed", "whole2")


def test_nobody_else_can_reach_the_ranks(watched: tuple[set[str], int]) -> None:
    """All through a run they listen on the loopback address, if at all."""
    seen, most = watched
    assert most == 2
    assert seen, "gloo's sockets"
    assert {place.rpartition(":")[0] for place in seen} == {"[127.0.0.1]"}


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_fewer_ranks(
    bench: Bench, whole: str, started: list[Process]
) -> None:
    """SIGTERM to the launcher with three ranks, SIGUSR2 with two, then one process to the end."""
    slow = ("--set", "training.checkpoint_every=100", *ONE)
    bench.run("slow", *slow)
    for procs, number in (("3", signal.SIGTERM), ("2", signal.SIGUSR2)):
        process = bench.start("fewer", "--procs", procs, *slow)
        started.append(process)
        before = len(list(bench.results("fewer").glob("work/tiny/*/*/checkpoint-*.pt")))
        done = len(losses(bench, "fewer"))
        wait_until(lambda done=done: len(losses(bench, "fewer")) > done, "steps")
        process.signal(number)
        assert process.wait() == 128 + number, process.said()
        assert "Stopped at iteration" in process.said().splitlines()[-1]
        checkpoints = list(bench.results("fewer").glob("work/tiny/*/*/checkpoint-*.pt"))
        assert len(checkpoints) > before
        assert bench.statuses("fewer") == {"lovasz-softmax-b5-s0": "KILLED"}
    bench.run("fewer", *slow)
    bench.assert_same("fewer", "slow", tolerance=1e-9)


def losses(bench: Bench, name: str) -> list[str]:
    journals = list(bench.results(name).glob("work/tiny/*/*/journal.jsonl"))
    lines = journals[0].read_text().splitlines() if journals else []
    return [line for line in lines if "train/loss" in line]


@pytest.mark.slow
def test_ranks_without_a_launcher_save_and_stop(bench: Bench, started: list[Process]) -> None:
    process = bench.start("orphans", "--procs", "2", *ONE, *LONG)
    started.append(process)
    wait_until(lambda: bool(losses(bench, "orphans")), "steps")
    ranks = process.ranks()
    assert sorted(ranks) == [0, 1]
    kill(process.pid)
    wait_until(lambda: not any(alive(pid) for pid in ranks.values()), "the end of the ranks")
    assert list(bench.results("orphans").glob("work/tiny/*/*/checkpoint-*.pt"))
    assert bench.statuses("orphans") == {"lovasz-softmax-b5-s0": "KILLED"}


def test_a_ranks_error_is_one_line_and_no_restart(
    bench: Bench, tmp_path: Path, empty_database: Path
) -> None:
    broken = Bench(tmp_path, empty_database)
    file = broken.data / "camvid" / "val" / "4.png"  # the last image: the last rank's share
    file.write_bytes(file.read_bytes()[:100])
    process = broken.start("a", "--procs", "2", *ONE)
    assert process.wait() == 2, process.said()
    lines = [line for line in process.said().splitlines() if "initial/test" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"Error: {file}: unreadable image")


def test_a_rank_that_dies_too_often_ends_it(bench: Bench, started: list[Process]) -> None:
    process = bench.start("hopeless", "--procs", "2", "--max-restarts", "0", *ONE, *LONG)
    started.append(process)
    wait_until(lambda: len(process.ranks()) == 2, "ranks")
    ranks = process.ranks()
    kill(ranks[1])
    assert process.wait() == 1, process.said()
    assert "1 times in a row without a new checkpoint" in process.said().splitlines()[-1]
    assert not any(alive(pid) for pid in [*ranks.values(), *process.descendants()])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--procs", "6"), "6 processes cannot share a batch of 5: give at most 5"),
        (("--gpus", "3"), "--gpus 3: this machine has 0. On CPUs: --procs 3."),
        (("--gpus", "2", "--procs", "2"), "--gpus or --procs, not both"),
        (("--procs", "2", "--device", "cuda"), "exclude each other"),
        (("--procs", "1", "--nodes", "2"), "--nodes needs --rdzv"),
        (("--partition", "gpu"), "--partition is for --slurm"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    bench: Bench, options: tuple[str, ...], problem: str
) -> None:
    import torch

    if "--gpus" in options and torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    result = CliRunner().invoke(app, bench.arguments("nothing", *options))
    assert isinstance(result.exception, UserError), result.output
    assert problem in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.slow
def test_under_the_users_own_torchrun(bench: Bench, whole: str) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    program = (*torchrun, "--nproc-per-node", "2", "-m", "lovasz_repro.cli")
    process = bench.start("torchrun", *ONE, program=program)
    assert process.wait() == 0, process.said()
    bench.run("one", *ONE)
    bench.assert_same("torchrun", "one", tolerance=1e-9)


@pytest.mark.slow
def test_two_machines_and_a_rank_killed_on_the_second(bench: Bench, started: list[Process]) -> None:
    """Two launchers of two ranks each, on this machine."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    options = ("--procs", "2", "--nodes", "2", "--rdzv", address, *ONE)
    nodes = [bench.start("nodes", *options, "--node-rank", str(rank)) for rank in (0, 1)]
    started += nodes
    bench.wait_for("nodes", "checkpoint-00000004-*.pt", nodes[0])
    kill(nodes[1].ranks()[3])
    assert [node.wait() for node in nodes] == [0, 0], [node.said() for node in nodes]
    assert "all ranks start again" in nodes[0].said()
    assert "all ranks start again" in nodes[1].said()
    bench.run("one", *ONE)
    bench.assert_same("nodes", "one", tolerance=1e-9)
