"""Commands as tasks of a real Slurm, and the ends that a task can come to."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.launch.slurm import SlurmOptions, SubmittedTask, Task, record, states, submit
from lovasz_repro.launch.slurm_job import CommandJob, rendezvous
from tests.launch.command import alive, wait_until
from tests.slurm_cluster import SlurmCluster

OPTIONS = SlurmOptions(time_minutes=30)
until = partial(wait_until, every=0.1)

# Trains for ever; asked to stop it saves; started again after that it finishes. Its second copy
# would fail, because the first one holds "running".
CELL = """if True:
    import os, signal, sys, time
    from pathlib import Path

    folder = Path(sys.argv[1] + os.environ.get("LOVASZ_REPRO_NODE_RANK", ""))
    folder.mkdir(exist_ok=True)
    open(folder / "running", "x").close()

    def stop(number, frame):
        for each in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        (folder / "saved").write_text(str(number))
        (folder / "running").unlink()
        sys.exit(128 + number)

    if (folder / "saved").exists():
        print("goes on")
        (folder / "done").touch()
        sys.exit()
    for each in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(each, stop)
    (folder / "env").write_text(os.environ.get("LOVASZ_REPRO_RDZV", ""))
    (folder / "pid").write_text(str(os.getpid()))
    (folder / "ready").touch()
    while True:
        time.sleep(0.05)
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def shown(slurm: SlurmCluster, job_id: str) -> str:
    """The state that Slurm shows for a job."""
    job = slurm.command("scontrol", "--oneliner", "show", "job", job_id)
    state = re.search(r"JobState=(\S+)", job)
    assert state is not None
    return state[1]


def one_cell(tmp_path: Path, **options: Any) -> tuple[str, Path]:
    """Submit CELL and wait until it trains; its job id and its folder."""
    (job,), (folder,) = cells(tmp_path, 1, **options)
    return job, folder


def cells(tmp_path: Path, count: int, **options: Any) -> tuple[list[str], list[Path]]:
    """Submit CELL as the runs k0, k1, ... and wait until all train; their job ids and folders."""
    folders = [tmp_path / f"cell{i}" for i in range(count)]
    tasks = [Task(f"k{i}", "cell", python(CELL, each)) for i, each in enumerate(folders)]
    submitted = submit(tasks, SlurmOptions(**({"time_minutes": 30} | options)), tmp_path)
    suffix = "0" if options.get("nodes", 1) > 1 else ""
    until(lambda: all(Path(f"{each}{suffix}", "ready").exists() for each in folders))
    return [task.job_id for task in submitted], folders


def gone(folder: Path, key: str) -> Callable[[], bool]:
    return lambda: states(folder)[key].state == "gone"


# -- with Slurm ----------------------------------------------------------------------------------


def test_tasks_of_an_array_run_in_turn(slurm: SlurmCluster, tmp_path: Path) -> None:
    code = (
        "import os, sys, time\n"
        "while not os.path.exists('go'): time.sleep(0.05)\n"
        "print('said', sys.argv[1], os.environ['SLURM_CPUS_PER_TASK'])"
    )
    tasks = [Task(f"key{i}", f"task {i}", python(code, f"it's {i}")) for i in range(2)]
    options = SlurmOptions(time_minutes=30, at_once=1, cpus=2, extra={"comment": "a b"})
    submitted = submit(tasks, options, tmp_path / "results")

    array = submitted[0].job_id.partition("_")[0]
    assert [task.job_id for task in submitted] == [f"{array}_{i}" for i in range(2)]
    until(lambda: states(tmp_path / "results")["key0"].state == "running")
    now = states(tmp_path / "results")
    assert [now[f"key{i}"].state for i in range(2)] == ["running", "queued"]
    assert now["key1"].name == "task 1"
    assert now["key1"].log is None
    assert "Comment=a b" in slurm.command("scontrol", "show", "job", array)

    Path("go").touch()
    until(lambda: {task.state for task in states(tmp_path / "results").values()} == {"gone"})
    for i, state in enumerate(states(tmp_path / "results").values()):
        assert state.log is not None
        assert f"\nsaid it's {i} 2\n" in state.log.read_text()


def test_a_failed_command_is_a_failed_job(slurm: SlurmCluster, tmp_path: Path) -> None:
    task = Task("k", "fails", python("import sys; sys.exit('no data')"))
    (submitted,) = submit([task], OPTIONS, tmp_path)
    until(gone(tmp_path, "k"))
    assert shown(slurm, submitted.job_id) == "FAILED"
    log = (tmp_path / submitted.log).read_text()
    assert "no data" in log
    assert "the command ended with exit code 1" in log


def test_usr2_requeues_a_task_that_then_goes_on(slurm: SlurmCluster, tmp_path: Path) -> None:
    (job, other), (cell, beside) = cells(tmp_path, 2)
    slurm.command("scancel", "--signal=USR2", job)
    with suppress(subprocess.CalledProcessError):  # by then it may be on its way to the queue
        slurm.command("scancel", "--signal=USR2", job)
    until((cell / "done").exists)
    assert (cell / "saved").read_text() == str(int(signal.SIGUSR2))
    until(gone(tmp_path, "k0"))
    assert shown(slurm, job) == "COMPLETED"
    assert shown(slurm, other) == "RUNNING"
    assert not (beside / "saved").exists()
    log = (tmp_path / f"logs/{job}_0_log.out").read_text()
    assert "is preempted" in log
    assert "goes on" in log  # both starts are in one log


@pytest.mark.slow
def test_preemption_with_a_time_of_grace_requeues(slurm: SlurmCluster, tmp_path: Path) -> None:
    (job, other), (cell, beside) = cells(tmp_path, 2, partition="scavenge")
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=urgent", "--wrap=true")
    slurm.command("sbatch", *urgent)
    for each in (cell, beside):
        until((each / "done").exists)
        assert (each / "saved").read_text() == str(int(signal.SIGTERM))
    until(gone(tmp_path, "k0"))
    until(gone(tmp_path, "k1"))
    assert {shown(slurm, job), shown(slurm, other)} == {"COMPLETED"}


def test_a_cancelled_task_leaves_nothing_behind(slurm: SlurmCluster, tmp_path: Path) -> None:
    job, cell = one_cell(tmp_path)
    pid = (cell / "pid").read_text()
    slurm.command("scancel", job)
    until(gone(tmp_path, "k0"))
    assert not Path("/proc", pid).exists()
    assert shown(slurm, job) == "CANCELLED"  # and not back in the queue
    assert (cell / "saved").exists()
    assert "the command has stopped" in (tmp_path / f"logs/{job}_0_log.out").read_text()


@pytest.mark.slow
def test_two_nodes_meet_and_are_requeued_together(slurm: SlurmCluster, tmp_path: Path) -> None:
    job, cell = one_cell(tmp_path, nodes=2)
    nodes = [cell.with_name(f"{cell.name}{rank}") for rank in range(2)]
    until((nodes[1] / "ready").exists)
    port = 20000 + int(job) % 10000
    assert [(node / "env").read_text() for node in nodes] == [f"127.0.0.1:{port}"] * 2

    slurm.command("scancel", "--signal=USR2", job)
    until(lambda: all((node / "done").exists() for node in nodes))
    until(gone(tmp_path, "k0"))
    assert shown(slurm, job) == "COMPLETED"


@pytest.mark.slow
def test_the_time_limit_requeues(slurm: SlurmCluster, tmp_path: Path) -> None:
    job, cell = one_cell(tmp_path, time_minutes=1, signal_delay_s=25)
    until((cell / "done").exists)
    until(gone(tmp_path, "k0"))
    assert shown(slurm, job) == "COMPLETED"


def test_refusal_of_sbatch_is_one_line(
    slurm: SlurmCluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"^sbatch refuses: .*[Ii]nvalid partition") as caught:
        submit([Task("k", "n", ["true"])] * 2, SlurmOptions(partition="nowhere"), tmp_path)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert states(tmp_path) == {}


@pytest.mark.parametrize("jobs", [["900001"], ["900001", "900002_3"]])
def test_jobs_that_slurm_has_forgotten_are_gone(
    slurm: SlurmCluster, tmp_path: Path, jobs: list[str]
) -> None:
    record(tmp_path, [SubmittedTask(job, "run", job, 1.5, "log") for job in jobs])
    assert {each.state for each in states(tmp_path).values()} == {"gone"}


def test_a_controller_that_is_down_is_not_gone(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "slurm.conf"
    lines = slurm.config.read_text().splitlines()
    down = ["SlurmctldPort=1" if line.startswith("SlurmctldPort") else line for line in lines]
    config.write_text("\n".join([*down, "MessageTimeout=2"]))
    monkeypatch.setenv("SLURM_CONF", str(config))
    record(tmp_path, [SubmittedTask("a", "run", "1", 1.5, "log")])
    with pytest.raises(UserError, match="squeue"):
        states(tmp_path)


# -- without -------------------------------------------------------------------------------------


def test_no_tasks_no_job(tmp_path: Path) -> None:
    assert submit([], OPTIONS, tmp_path) == []


def test_submitit_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt '\.\[slurm\]'"):
        submit([Task("k", "n", ["true"])], OPTIONS, tmp_path)


def test_slurm_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch on the PATH"):
        submit([Task("k", "n", ["true"])], OPTIONS, tmp_path)


def test_time_limit_must_leave_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 min leaves no time"):
        submit([Task("k", "n", ["true"])], SlurmOptions(time_minutes=2), tmp_path)


@pytest.fixture
def fake_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that takes every job; the folder where it notes scripts and its environment."""
    pytest.importorskip("submitit")
    script = tmp_path / "sbatch"
    script.write_text(
        '#!/bin/sh\ncat "$1" > script\nenv > environment\necho Submitted batch job 7\n'
    )
    script.chmod(0o755)
    shutil.copy(script, tmp_path / "srun")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_reach_sbatch(fake_sbatch: Path) -> None:
    options = SlurmOptions(
        partition="gpu",
        time_minutes=90,
        gpus=4,
        nodes=2,
        cpus=8,
        at_once=3,
        extra={"account": "vision", "exclusive": ""},
    )
    submit([Task(str(i), "n", ["true"]) for i in range(5)], options, fake_sbatch)
    lines = set((fake_sbatch / "script").read_text().splitlines())
    expected = (
        "partition=gpu time=90 gpus-per-node=4 nodes=2 ntasks-per-node=1 cpus-per-task=8 "
        "array=0-4%3 account=vision exclusive requeue signal=USR2@90"
    )
    assert {f"#SBATCH --{option}" for option in expected.split()} <= lines
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert "--kill-on-bad-exit=1" in srun
    assert "--cpus-per-task=8" in srun


def test_what_is_not_asked_for_stays_with_the_cluster(fake_sbatch: Path) -> None:
    submit([Task("k", "n", ["true"])], SlurmOptions(), fake_sbatch)
    script = (fake_sbatch / "script").read_text()
    assert not re.search("gres|gpus|partition|cpus|array|kill-on", script)
    (line,) = (fake_sbatch / "tasks.jsonl").read_text().splitlines()
    assert json.loads(line)["job_id"] == "7"


def test_variables_of_an_outer_job_stay_outside(
    fake_sbatch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", "here")
    monkeypatch.setenv("SLURM_CPU_BIND", "mask_cpu:1")
    submit([Task("k", "n", ["true"])], SlurmOptions(), fake_sbatch)
    environment = (fake_sbatch / "environment").read_text()
    assert "SLURM_CONF=here\n" in environment
    assert "SLURM_CPU_BIND" not in environment
    assert os.environ["SLURM_CPU_BIND"] == "mask_cpu:1"


def test_one_node_needs_no_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "1")
    assert rendezvous() == {}


def test_a_killed_command_fails(tmp_path: Path) -> None:
    job = CommandJob(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"), tmp_path)
    with pytest.raises(RunFailed, match="exit code -9"):
        job()


@pytest.mark.parametrize("state", ["RUNNING", "SIGNALING"])
def test_a_command_that_is_faster_than_the_end_of_its_signal_is_requeued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Slurm shows a job as SIGNALING while its SIGTERM goes out to all of its processes."""
    (tmp_path / "scontrol").write_text(
        f"#!/bin/sh\necho JobId=7 JobState={state} PreemptTime=2026-11-29T18:00:26\n"
    )
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def handler(number: int, frame: FrameType | None) -> None:
        raise Requeued

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with pytest.raises(Requeued):
            CommandJob(python("import sys; sys.exit(128 + 15)"), tmp_path)()
    finally:
        signal.signal(signal.SIGUSR2, before)


class Requeued(BaseException):
    """In the place of submitit's exit after a requeue."""


@pytest.mark.parametrize("answer", ["SIG_IGN", "SIG_DFL"])
def test_checkpoint_ends_a_command_that_saves_nothing(tmp_path: Path, answer: str) -> None:
    """It ignores SIGUSR2, or dies of it before it can listen."""
    pytest.importorskip("submitit")
    code = f"""if True:
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGUSR2, signal.{answer})
        worker = subprocess.Popen(["sleep", "600"])
        open("worker", "w").write(str(worker.pid))
        os.kill(os.getppid(), signal.SIGUSR2)
        time.sleep(600)
    """
    job = CommandJob(python(code), tmp_path, signal_delay_s=4)

    def handler(number: int, frame: FrameType | None) -> None:
        again = job.checkpoint()
        assert again.function == CommandJob(job.command, tmp_path, 4)
        raise Requeued

    before = signal.signal(signal.SIGUSR2, handler)
    try:
        with pytest.raises(Requeued):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert job.process is not None
    assert job.process.wait() in (-signal.SIGKILL, -signal.SIGUSR2)
    worker = int((tmp_path / "worker").read_text())
    until(lambda: not alive(worker))
