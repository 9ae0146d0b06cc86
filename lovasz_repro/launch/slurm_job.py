"""What runs on a node: one command as a child process, stopped and requeued when Slurm asks.

submitit unpickles a `CommandJob` there, installs its signal handlers and calls it. How each end
comes about:

- SIGUSR2, from Slurm before the time limit or from ``scancel --signal=USR2``: submitit's handler
  calls `CommandJob.checkpoint`, which stops the command, and requeues the job.
- SIGTERM when a pre-empted job gets a time of grace: submitit ignores it, the command stops, and
  the job takes it as SIGUSR2.
- SIGTERM from ``scancel`` or ``scontrol requeue``: the command stops, Slurm has already decided.
- The command ends by itself: the job finishes, or fails with the command's exit code.

Slurm sends every signal to all processes of a job, so the command mostly has it before us.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lovasz_repro.errors import RunFailed
from lovasz_repro.host.output import say
from lovasz_repro.host.processes import child_environment

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

# Exit codes of a command that was asked to stop: it did so (128 + number), or the signal came
# before it could listen (-number).
BY_USR2 = (128 + signal.SIGUSR2, -signal.SIGUSR2)
BY_TERM = (128 + signal.SIGTERM, -signal.SIGTERM)
SCONTROL_SECONDS = 30
JOB_RUNS = re.compile(r"\bJobState=(RUNNING|SIGNALING)\b")
"""Of a job that runs; the second while a signal is on its way to it, as in pre-emption."""


@dataclass
class CommandJob:
    """Runs ``command`` in ``folder``; submitit's protocol is ``__call__`` and ``checkpoint``.

    Args:
        command: the command line, not passed through a shell.
        folder: the working directory of the command.
        signal_delay_s: seconds between Slurm's SIGUSR2 and its SIGKILL. The command gets all but
            20 of them to write its checkpoint, at least a quarter.
    """

    command: list[str]
    folder: Path
    signal_delay_s: int = 90
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False, repr=False)

    def __call__(self) -> None:
        """Run the command to its end.

        Raises:
            RunFailed: its exit code is not 0 and Slurm did not ask it to stop.
        """
        say(shlex.join(self.command))
        environment = dict(os.environ) | rendezvous() | child_environment()
        with _held(signal.SIGUSR2):  # or a signal amid Popen would requeue and leave an orphan
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment, process_group=0
            )
        try:
            code = self.process.wait()
            if code in BY_USR2 or code in BY_TERM:
                self._await_requeue(code)
        finally:
            _kill_group(self.process.pid)
        if code != 0:
            raise RunFailed(f"the command ended with exit code {code}: {shlex.join(self.command)}")

    def checkpoint(self) -> "DelayedSubmission":
        """Stop the command, which writes its checkpoint, and return the job to requeue.

        submitit calls this in its handler of SIGUSR2, on the first node only.
        """
        from submitit.helpers import DelayedSubmission

        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a second one would requeue a second time
        if self.process is not None:
            self.process.send_signal(signal.SIGUSR2)
            if not _ends_within(
                self.process.pid, max(self.signal_delay_s / 4, self.signal_delay_s - 20)
            ):
                say("the command does not stop: killed, it goes on from its last checkpoint")
                _kill_group(self.process.pid)
        return DelayedSubmission(replace(self))

    def _await_requeue(self, code: int) -> None:
        """The command was asked to stop: let the job be requeued, if that is what is going on.

        Returns only where Slurm knows nothing of it. Other nodes wait for the first one, because a
        task that ends early with an error would end the job amid the first one's work.
        """
        first = os.environ.get("SLURM_PROCID", "0") == "0"
        if first and code in BY_TERM and _in_grace():
            os.kill(os.getpid(), signal.SIGUSR2)
        deadline = time.monotonic() + (5 if first else self.signal_delay_s)
        while _is_running():
            if time.monotonic() > deadline:
                return
            time.sleep(1)  # the command was faster than the SIGUSR2 on its way to us
        sys.exit("the command has stopped: Slurm ends or requeues this job")


def rendezvous() -> dict[str, str]:
    """Environment of a command on several nodes: where its parts meet, and which part it is.

    ``LOVASZ_REPRO_RDZV`` is ``HOST:PORT``, a port in 20000-29999 of the job's first node, the
    same on all nodes; ``LOVASZ_REPRO_NODE_RANK`` counts the nodes from 0. Empty on a single node.
    """
    if int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) == 1:
        return {}
    host, port = first_host(os.environ["SLURM_JOB_NODELIST"]), port_of(0)
    return {
        "LOVASZ_REPRO_RDZV": f"{host}:{port}",
        "LOVASZ_REPRO_NODE_RANK": os.environ["SLURM_PROCID"],
    }


def port_of(step: int) -> int:
    """A port in 20000-29999 that every process of a step of this job works out alike."""
    return 20_000 + (int(os.environ["SLURM_JOB_ID"]) + step) % 10_000


def first_host(nodes: str) -> str:
    """Where the first node of a list like ``"gpu[3-5,8]"`` can be reached from the others.

    That is the address by which Slurm's own daemons reach it; the node's name need not resolve.
    Without scontrol it is an OSError or a SubprocessError.
    """
    name = _scontrol("show", "hostnames", nodes).split()[0]
    address = re.search(r"\bNodeAddr=(\S+)", _scontrol("--oneliner", "show", "node", name))
    return address[1] if address else name


@contextmanager
def _held(number: signal.Signals) -> Iterator[None]:
    """A signal that comes meanwhile takes effect afterwards."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True

    handler = signal.signal(number, note)
    try:
        yield
    finally:
        signal.signal(number, handler)
        if came:
            os.kill(os.getpid(), number)


def _ends_within(pid: int, seconds: float) -> bool:
    """Wait for a child without reaping it.

    Runs in a signal handler that interrupted ``Popen.wait``, whose lock makes every further
    ``wait`` or ``poll`` of the same Popen blind.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG):
                return True
        except ChildProcessError:  # reaped already
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def _kill_group(group: int) -> None:
    """Kill what is left of the command and of the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _is_running() -> bool:
    """Whether Slurm wants this job to go on; also true where Slurm does not say."""
    return bool(JOB_RUNS.search(_show_job("JobState=RUNNING")))


def _in_grace() -> bool:
    """Whether this job is being pre-empted and still has a time of grace.

    A cancelled job must not be requeued: Slurm would bring it back to life.
    """
    job = _show_job("")
    return bool(JOB_RUNS.search(job) and re.search(r"\bPreemptTime=\d", job))


def _show_job(otherwise: str) -> str:
    """What scontrol says of this job, or ``otherwise`` where it says nothing."""
    job = os.environ.get("SLURM_JOB_ID", "")
    if "SLURM_ARRAY_TASK_ID" in os.environ:  # the bare id can stand for the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        return _scontrol("--oneliner", "show", "job", job)
    except (OSError, subprocess.SubprocessError):
        return otherwise


def _scontrol(*words: str) -> str:
    command = ["scontrol", *words]
    return subprocess.check_output(command, text=True, timeout=SCONTROL_SECONDS)
