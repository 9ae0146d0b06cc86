"""A Slurm of two nodes on this host, for tests: its own munged, slurmctld and two slurmd.

    with SlurmCluster(folder) as cluster:
        subprocess.run(["srun", "-N2", "hostname"], env=os.environ | cluster.environment)

Everything listens on 127.0.0.1, on ports that were free at the start, and keeps its files in
`folder`; leaving the context ends the daemons and every process of the cluster's jobs.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

START_TIMEOUT = 60  # seconds: until both nodes are idle
STOP_TIMEOUT = 5  # seconds: until a daemon that was asked to end is killed
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol")
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])

# A requeued job starts when its old credential has expired (cred_expire) and the scheduler looks
# again (bf_interval, sched_interval); Slurm's own values make that minutes. KillWait is how long
# a cancelled job has between SIGTERM and SIGKILL. The partition "scavenge" yields to "urgent".
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=5
SlurmctldTimeout=30
SlurmdTimeout=30
InactiveLimit=0
MinJobAge=600
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 State=UNKNOWN
PartitionName=debug Nodes=n1,n2 Default=YES PriorityTier=2 PreemptMode=OFF
PartitionName=scavenge Nodes=n1,n2 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=n1,n2 PriorityTier=3
"""


def missing() -> str:
    """Why no cluster can run here, or "" where one can."""
    if os.geteuid() != 0:
        return "a test Slurm needs root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if absent:
        return f"{', '.join(absent)} not installed (slurmctld, slurmd, slurm-client, munge)"
    return ""


class SlurmCluster:
    """Nodes n1 and n2 of 4 (pretended) CPUs each, partitions debug, scavenge and urgent.

    Args:
        folder: an empty folder for configuration, logs and state; a short path, it holds a socket.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.config = self.folder / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.config), "PATH": PATH}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "SlurmCluster":
        try:
            self._start()
            self._wait_for_nodes()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def command(self, *words: str) -> str:
        """What a command of Slurm prints; raises CalledProcessError where it fails."""
        return subprocess.run(
            words,
            env=os.environ | self.environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        ).stdout

    def stop(self) -> None:
        """End the jobs and the daemons, the last started first."""
        if len(self._daemons) > 1:
            with suppress(subprocess.SubprocessError):
                self.command("scancel", "--signal=KILL", "--user=root")
        while self._daemons:
            daemon = self._daemons.pop()
            daemon.terminate()
            try:
                daemon.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Ids of the processes that belong to this cluster: they know its configuration."""
        mark = f"SLURM_CONF={self.config}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def _start(self) -> None:
        ports = free_ports(3)
        host = socket.gethostname().split(".")[0]
        self.config.write_text(CONFIG.format(host=host, folder=self.folder, ports=ports))
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "seed-file": "seed"}
        options = [f"--{name}={self.folder}/munge.{end}" for name, end in files.items()]
        self._daemon(["munged", "--foreground", "--force", *options])
        self._wait_until((self.folder / "munge.socket").exists, "munged")
        self._daemon(["slurmctld", "-D", "-f", str(self.config)])
        for node in ("n1", "n2"):
            self._daemon(["slurmd", "-D", "-N", node, "-f", str(self.config)])

    def _daemon(self, command: list[str]) -> None:
        with open(self.folder / f"{command[0]}.out", "ab") as out:
            environment = os.environ | self.environment
            self._daemons.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,  # Ctrl-C ends the test, and the test the daemons
                )
            )

    def _wait_for_nodes(self) -> None:
        def idle() -> bool:
            with suppress(subprocess.SubprocessError):
                states = self.command("sinfo", "--noheader", "--Node", "--format=%T", "-pdebug")
                return states.split() == ["idle", "idle"]
            return False

        self._wait_until(idle, "the nodes")

    def _wait_until(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not ready():
            dead = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                said = "".join(path.read_text() for path in sorted(self.folder.glob("*.out")))
                raise RuntimeError(f"the test Slurm waits for {what}; ended: {dead}\n{said}")
            time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
