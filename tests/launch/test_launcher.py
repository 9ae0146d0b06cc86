"""``--procs N``: the same results as a user gets from one process, ranks that die, signals, errors.

What the launcher makes of the ends of ranks is also seen with small programs in their place, which
start in no time.
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from lovasz_repro.cli import app
from lovasz_repro.errors import UserError
from lovasz_repro.launch import launcher, rank
from lovasz_repro.launch.launcher import Launch, launch
from lovasz_repro.launch.rank import RankFailed
from tests.launch.command import Bench, Process, alive, kill, steps_in, wait_until
from tests.slurm_cluster import free_ports

ONE = ("--variant", "lovasz-softmax")
LONG = ("--set", "training.iterations=5000", "--set", "training.checkpoint_every=4000")


@pytest.fixture(scope="module")
def whole(bench: Bench) -> str:
    """Both runs on one process, and never interrupted."""
    bench.run("whole")
    return "whole"


def steps(bench: Bench, name: str) -> int:
    return sum(steps_in(folder / "journal.jsonl") for folder in bench.folders(name))


@pytest.mark.slow
def test_three_ranks_give_the_curves_of_one_process(bench: Bench, whole: str) -> None:
    said = bench.run("three", "--procs", "3")
    bench.assert_same("three", whole, tolerance=1e-9)
    assert "2 finished" in said
    assert said.count("iteration     6") == 2, "only rank 0 speaks"
    assert "Warning" not in said
    assert "done before" in bench.run("three", "--procs", "3", *ONE)
    assert not list(bench.results("three").glob("work/ranks/*")), "logs of what went well"


def test_nobody_else_can_reach_the_ranks(bench: Bench, started: list[Process]) -> None:
    """All through a run they listen on the loopback address, if at all."""
    process, seen, most = bench.start("seen", "--procs", "2", "--profile", "demo", *ONE), set(), 0
    started.append(process)

    def ended() -> bool:
        nonlocal most
        seen.update(process.listening())
        most = max(most, len(process.ranks()))
        return process.code() is not None

    wait_until(ended, "the end", every=0.2)
    assert process.wait() == 0, process.said()
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
        done = steps(bench, "fewer")
        wait_until(lambda done=done: steps(bench, "fewer") > done, "steps")
        process.signal(number)
        assert process.wait() == 128 + number, process.said()
        assert "Stopped at iteration" in process.said().splitlines()[-1]
        checkpoints = list(bench.results("fewer").glob("work/tiny/*/*/checkpoint-*.pt"))
        assert len(checkpoints) > before
        assert bench.statuses("fewer") == {"lovasz-softmax-b5-s0": "KILLED"}
    bench.run("fewer", *slow)
    bench.assert_same("fewer", "slow", tolerance=1e-9)


@pytest.mark.slow
def test_ranks_without_a_launcher_save_and_stop(bench: Bench, started: list[Process]) -> None:
    process = bench.start("orphans", "--procs", "2", *ONE, *LONG)
    started.append(process)
    wait_until(lambda: steps(bench, "orphans") > 0, "steps")
    ranks = process.ranks()
    assert sorted(ranks) == [0, 1]
    kill(process.pid)
    wait_until(lambda: not any(alive(pid) for pid in ranks.values()), "the end of the ranks")
    assert list(bench.results("orphans").glob("work/tiny/*/*/checkpoint-*.pt"))
    assert bench.statuses("orphans") == {"lovasz-softmax-b5-s0": "KILLED"}


@pytest.mark.slow
def test_a_ranks_error_is_one_line_and_no_restart(tmp_path: Path, empty_database: Path) -> None:
    broken = Bench(tmp_path, empty_database)
    file = broken.data / "camvid" / "val" / "4.png"  # the last image: the last rank's share
    file.write_bytes(file.read_bytes()[:100])
    process = broken.start("a", "--procs", "2", *ONE)
    assert process.wait() == 2, process.said()
    lines = [line for line in process.said().splitlines() if "initial/test" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"Error: {file}: unreadable image")


# -- small programs in the place of ranks ----------------------------------------------------------

Ranks = Callable[..., Path]


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    """``ranks(code, ...)`` launches two ranks that run the code, in which ``mine`` and ``other``
    are the files of a rank and of the other one; returns their folder."""

    def run(code: str, max_restarts: int = 3) -> Path:
        program = tmp_path / "program"
        program.write_text(
            f"#!{sys.executable}\n"
            "import os, sys, time\n"
            "from pathlib import Path\n"
            f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            "number = int(os.environ['RANK'])\n"
            f"mine, other = (Path({str(tmp_path)!r}, str(n)) for n in (number, 1 - number))\n{code}"
        )
        program.chmod(0o755)
        monkeypatch.setattr(launcher, "sys", SimpleNamespace(executable=program, argv=["run"]))
        monkeypatch.setattr(rank, "BACKOFF", 0.01)
        launch(Launch(2, max_restarts=max_restarts), tmp_path / "ranks" / "logs", object)
        return tmp_path

    return run


DIES = """
again = mine.exists()
mine.write_text(str(os.getpid()))
while not other.exists():
    time.sleep(0.01)
if number == 1 and not again:
    os.kill(os.getpid(), 9)
time.sleep(0 if again else 600)
"""


def test_a_killed_rank_ends_the_other_and_all_start_again(
    ranks: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = ranks(DIES)
    [line] = capfd.readouterr().err.splitlines()
    assert line == "rank 1: killed by SIGKILL; all ranks start again"
    assert not list(folder.glob("ranks/*")), "logs of what went well"


def test_a_rank_that_dies_too_often_ends_it(ranks: Ranks, tmp_path: Path) -> None:
    with pytest.raises(RankFailed, match="1 times in a row without a new checkpoint") as caught:
        ranks(DIES, max_restarts=0)
    assert caught.value.exit_code == 1
    assert not any(alive(int((tmp_path / name).read_text())) for name in "01")


def test_an_error_that_a_rank_tells_is_the_commands_own(
    ranks: Ranks, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not what the other rank says of the connection that was lost; and no restart."""
    code = """
from lovasz_repro.errors import UserError
from lovasz_repro.launch.rank import tell
if number == 1:
    tell(UserError("no data"), "Error: no data")
    mine.touch()
    sys.exit(2)
while not other.exists():
    time.sleep(0.01)
tell(RuntimeError("Connection closed by peer"), "Error: Connection closed by peer")
sys.exit(1)
"""
    with pytest.raises(RankFailed, match=r"^no data$") as caught:
        ranks(code)
    assert caught.value.exit_code == 2
    assert capfd.readouterr() == ("", "")


# -- options -------------------------------------------------------------------------------------


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
