"""The command line as real processes, on a small CamVid, and what they left behind."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from lovasz_repro.store import Store
from lovasz_repro.training.loop import SPEED
from tests.tiny_camvid import EXPERIMENT as TINY
from tests.tiny_camvid import write_camvid, write_experiment

PATIENCE = 300.0  # seconds that a test waits for anything before it fails
Curve = dict[tuple[str, str, int], float]

EXPERIMENT = TINY.replace("batch_sizes: [2]", "batch_sizes: [5]").replace(
    "validate_every: 4", "precision: float64, validate_every: 6"
)
"""The small experiment, so that ranks of any number can share a batch and agree to 1e-9."""


class Bench:
    """A folder with a small CamVid, an experiment in double precision, and results folders.

    Args:
        folder: empty.
        database: an MLflow store without runs, copied into each results folder.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.database = folder, database
        self.data = write_camvid(folder / "data")
        self.experiment = write_experiment(folder, EXPERIMENT)

    def results(self, name: str) -> Path:
        results = self.folder / name
        if not results.exists():
            results.mkdir()
            shutil.copy(self.database, results / "mlflow.db")
        return results

    def arguments(self, name: str, *options: str) -> list[str]:
        given = ["run", str(self.experiment), "--data", str(self.data)]
        return [*given, "--results", str(self.results(name)), *options]

    def start(
        self,
        name: str,
        *options: str,
        program: tuple[str, ...] = (sys.executable, "-m", "lovasz_repro.cli"),
        command: list[str] | None = None,
        environment: dict[str, str] | None = None,
    ) -> "Process":
        """``run`` with these options, or another command, with its output in a file."""
        settings = {"OMP_NUM_THREADS": "1", "LOVASZ_REPRO_DEBUG": ""} | (environment or {})
        given = self.arguments(name, *options)
        if command:
            given = [*command, "--results", str(self.results(name)), *options]
        return Process(
            [*program, *given],
            os.environ | settings,
            self.folder / f"{name}-{time.monotonic_ns()}.log",
        )

    def run(self, name: str, *options: str) -> str:
        """The command to its good end; what it said."""
        process = self.start(name, *options)
        assert process.wait() == 0, process.said()
        return process.said()

    def folders(self, name: str) -> list[Path]:
        """The folders of the runs, by name."""
        return sorted(self.results(name).glob("work/tiny/*/*/"))

    def wait_for(self, name: str, pattern: str, process: "Process | None" = None) -> None:
        """Until a file of that pattern is in a run's folder."""

        def there() -> bool:
            assert process is None or process.code() is None, process.said()
            return bool(list(self.results(name).glob(f"work/tiny/*/*/{pattern}")))

        wait_until(there, pattern)

    def curve(self, name: str) -> Curve:
        """Every value in the store, by run, metric and step; each is there once."""
        store = Store(self.results(name))
        points = [
            (run.name, point) for run in store.runs("tiny") for point in store.points(run.run_id)
        ]
        return {(run, p.key, p.step): p.value for run, p in points if p.key != SPEED}

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The best weights of every run, under names that hold the run's."""
        return {
            f"{folder.name}/{key}": value
            for folder in self.folders(name)
            for key, value in load_file(folder / "best.safetensors").items()
        }

    def statuses(self, name: str) -> dict[str, str]:
        return {run.name: run.status for run in Store(self.results(name)).runs("tiny")}

    def assert_same(self, name: str, expected: str, tolerance: float = 0.0) -> None:
        """The runs of both results folders have the same curves and weights."""
        curves, weights = (self.curve(name), self.curve(expected)), self.weights(expected)
        assert curves[0].keys() == curves[1].keys()
        assert len(curves[1]) > 40
        for key, value in curves[1].items():
            found = curves[0][key]
            assert (
                found == value or abs(found - value) <= tolerance * abs(value) or value != value
            ), key
        found_weights = self.weights(name)
        assert found_weights.keys() == weights.keys()
        for key, tensor in weights.items():
            torch.testing.assert_close(
                found_weights[key], tensor, rtol=tolerance, atol=tolerance, msg=key
            )
        assert set(self.statuses(name).values()) == {"FINISHED"}


class Process:
    """A command at work, with all processes that come from it."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self.pid = self._process.pid

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def code(self) -> int | None:
        return self._process.poll()

    def wait(self) -> int:
        """Its exit code; all that it started is gone by then, or will be killed."""
        try:
            return self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"not done after {PATIENCE:g} s: {self.said()}") from None

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill_all(self) -> None:
        if self.code() is None:
            for pid in [*self.descendants(), self.pid]:
                kill(pid)
            self._process.wait()

    def descendants(self) -> list[int]:
        """Process ids of children, their children, and so on."""
        children: dict[int, list[int]] = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError):
                continue
            children.setdefault(parent, []).append(int(folder.name))
        found, queue = list[int](), [self.pid]
        while queue:
            queue += (new := children.get(queue.pop(), []))
            found += new
        return found

    def listening(self) -> set[str]:
        """Where the command and all that come from it take connections."""
        return listening([self.pid, *self.descendants()])

    def ranks(self) -> dict[int, int]:
        """Rank -> process id of the descendants that its launcher started as ranks."""
        found = {}
        for pid in self.descendants():
            rank = environment_of(pid).get("RANK")
            if rank is not None:
                found[int(rank)] = pid
        return found


def listening(pids: Iterable[int]) -> set[str]:
    """Where these processes take connections of TCP: "[127.0.0.1]:20001", "[::]:80"."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    inodes.add(os.readlink(entry.path))
    found = set()
    for family, file in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path("/proc/net", file).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in inodes:
                number, port = local.split(":")
                words = [int(number[i : i + 8], 16) for i in range(0, len(number), 8)]
                address = socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words))
                found.add(f"[{address}]:{int(port, 16)}")
    return found


def environment_of(pid: int) -> dict[str, str]:
    """What a process found in its environment; empty for one that is gone."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in content.split("\0") if "=" in pair)


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet buried does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], what: str = "it", every: float = 0.02) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(every)


def steps_in(journal: Path) -> int:
    """How many training steps a journal holds."""
    lines = journal.read_text().splitlines()[:-1] if journal.exists() else []
    return sum("train/loss" in json.loads(line).get("values", {}) for line in lines)
