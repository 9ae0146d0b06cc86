"""What a process reads from its environment, tells of its end, and what is made of that."""

import json
import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.processes import Interrupted, cores, threads_of
from lovasz_repro.launch.dispatch import check_shell
from lovasz_repro.launch.launcher import first_cause, meet, open_store
from lovasz_repro.launch.rank import (
    Attempts,
    Failure,
    Rank,
    RankFailed,
    is_rank,
    kind_of,
    newest_checkpoints,
    rank_from_environment,
    tell,
)
from tests.launch.command import listening
from tests.slurm_cluster import free_ports

VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID",
    "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "MASTER_ADDR",
    "MASTER_PORT", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PTY_PORT", "SLURM_TASK_PID",
    "TORCHELASTIC_ERROR_FILE", "LOVASZ_REPRO_MEETING",
)  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back as well
        monkeypatch.delenv(name)


def test_a_process_on_its_own_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_from_environment() is None
    assert not is_rank()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # the only task of a step
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert rank_from_environment() is None
    assert not is_rank()


def test_a_rank_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == Rank(5, 8, 1, 4)
    assert is_rank()
    monkeypatch.setenv("RANK", "five")
    with pytest.raises(UserError, match="names no rank"):
        rank_from_environment()


def test_a_task_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lovasz_repro.launch.rank.first_host", lambda nodes: f"first of {nodes}")
    values = {
        "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "6", "SLURM_LOCALID": "2",
        "SLURM_JOB_ID": "70123", "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "gpu[1-2]",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert rank_from_environment() == Rank(6, 8, 2, 4, by_torch=False)

    assert os.environ["MASTER_ADDR"] == "first of gpu[1-2]"
    assert os.environ["MASTER_PORT"] == "20124"


def test_a_shell_of_srun_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Job control gives what is typed a process group of its own; a rank has its task's."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PTY_PORT", "40000")
    monkeypatch.setenv("SLURM_TASK_PID", str(os.getpid()))
    assert is_rank()
    check_shell()
    monkeypatch.setattr(os, "getpgid", lambda pid: os.getpgrp() + 1)
    assert rank_from_environment() is None
    assert not is_rank()
    with pytest.raises(UserError, match=r"one of the 4 tasks.*--procs"):
        check_shell()


def test_rank_0_says_whom_it_waits_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", address.rpartition(":")[2])
    monkeypatch.setattr("lovasz_repro.launch.launcher.SILENCE", 0.0)
    monkeypatch.setattr("lovasz_repro.training.distributed.RANK_PATIENCE", timedelta(seconds=1))
    with pytest.raises(RunFailed, match=rf"2 of 3 ranks \(1, 2\) did not come to {address}"):
        meet(Rank(0, 3, 0, 1, by_torch=False))
    (line,) = capsys.readouterr().err.splitlines()
    assert f"waiting at {address} for 2 of 3 ranks (1, 2)" in line


def test_a_store_listens_at_its_address_alone() -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    before = listening([os.getpid()])
    store = open_store(address, True, timedelta(seconds=5))
    assert listening([os.getpid()]) - before == {f"[127.0.0.1]:{address.rpartition(':')[2]}"}
    other = open_store(address, False, timedelta(seconds=5))
    store.set("key", "value")
    assert other.get("key") == b"value"
    with pytest.raises(UserError, match=r"not an address to listen at"):
        open_store(address, True, timedelta(seconds=5))


def test_a_name_that_only_this_machine_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    place = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 29500))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **more: [place])
    with pytest.raises(UserError, match=r"node0 is 127\.0\.1\.1 on this machine"):
        open_store("node0:29500", True, timedelta(seconds=1))


def test_an_error_reaches_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(UserError("x"), "Error: x")
    assert capsys.readouterr().err == "Error: x\n"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setenv("LOVASZ_REPRO_MEETING", "/proc/self/fd/9")
    tell(UserError("x"), "Error: x")
    assert capsys.readouterr().err == ""
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert (message["message"], message["extraInfo"]["kind"]) == ("Error: x", "user")


def test_kinds_of_errors() -> None:
    from torch.distributed import DistBackendError, DistNetworkError

    assert kind_of(UserError("gloo")) == "user"
    assert kind_of(RunFailed("disk full")) == "failed"
    assert kind_of(Interrupted(15, "Stopped")) == "stopped"
    assert kind_of(KeyboardInterrupt()) == "stopped"
    assert kind_of(RuntimeError("[/x/gloo/pair.cc:5] Read error: Connection reset")) == "lost"
    assert kind_of(DistBackendError("x")) == kind_of(DistNetworkError("x")) == "lost"
    assert kind_of(RuntimeError("CUDA error: an illegal memory access")) == "unexpected"


def told(rank: int, text: str, kind: str, exit_code: int = 1, moment: float = 100) -> Failure:
    return Failure(rank, exit_code, moment, text, kind, Path(f"/logs/rank-{rank}.log"))


def test_the_first_cause_is_found_among_what_follows_from_it() -> None:
    lost = told(0, "Connection closed by peer", "lost", moment=90)
    cases = [
        ([lost, Failure(1, -9, 100)], 1, "killed by SIGKILL"),
        ([lost, told(2, "Error: no data", "user", exit_code=2)], 2, "Error: no data"),
        ([Failure(0, -15, 80), Failure(1, -11, 100)], 1, "killed by SIGSEGV"),
        ([Failure(0, -9, 220), told(1, "CUDA", "unexpected")], 1, "CUDA (see /logs/rank-1.log"),
        ([told(1, "Stopped", "stopped", exit_code=143), lost], 1, "Stopped"),
        ([lost, told(1, "Connection", "lost")], 0, "Connection"),
        ([Failure(0, 3, 100)], 0, "ended with exit code 3"),
    ]
    for ended, rank, message in cases:
        cause = first_cause(ended)
        assert cause.rank == rank, cause
        assert cause.message.startswith(message), cause


def test_attempts_end_when_nothing_comes_of_them(tmp_path: Path) -> None:
    failure = Failure(1, -9, message="killed by SIGKILL")
    attempts = Attempts(2, lambda: newest_checkpoints([tmp_path]))
    assert attempts.next_wait(failure) == 0
    assert attempts.next_wait(failure) > 0
    (tmp_path / "checkpoint-00000002-0.pt").touch()
    assert attempts.next_wait(failure) == 0
    assert attempts.next_wait(failure) > 0
    with pytest.raises(RankFailed, match=r"^rank 1: killed by SIGKILL \(3 times in a row"):
        attempts.next_wait(failure)
    with pytest.raises(RankFailed):
        Attempts(0, lambda: 1).next_wait(failure)


@pytest.mark.parametrize("address", ["node0", "node0:", ":29500", "node0:port"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(UserError, match="expected HOST:PORT"):
        open_store(address, False, timedelta(seconds=1))


def test_cores_are_what_slurm_allots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "12")
    assert cores() == 12
    assert threads_of(5) == {"OMP_NUM_THREADS": "2"}
    assert threads_of(50) == {"OMP_NUM_THREADS": "1"}
    monkeypatch.delenv("SLURM_CPUS_ON_NODE")
    assert cores() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_of(5) == {}
