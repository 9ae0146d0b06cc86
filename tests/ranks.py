"""Run a test's function on several processes that talk over gloo, on the CPU.

    def total(rank, group, start):
        value = torch.tensor([start + rank])
        dist.all_reduce(value, group=group)
        return value

    def test_total(rank_pool):
        assert rank_pool.run(total, 3, 10) == [33, 33, 33]

`rank_pool` (tests/conftest.py) keeps its processes over the whole session, so a run costs about
0.1 s. Each run has a new default group of exactly `world_size` ranks: `group` is that group, and
code that takes the default group sees the same. Each run starts from `torch.manual_seed(0)`, has
one thread a rank, and turns warnings into errors.

The function is a module-level function of the test file or of the package. It travels by file and
name, its arguments and its result by pickle (tensors as copies). A process imports the test file
once: keep slow imports out of a file whose functions run on ranks. Environment variables set after
the first run do not reach the processes.

A rank that raises, dies or hangs fails the run with a `RankError` that holds the rank's traceback;
the other ranks are killed, and the next run gets new processes.
"""

import importlib.util
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

COLLECTIVE_TIMEOUT = timedelta(seconds=60)
GRACE = 0.5  # seconds: how long a failed run waits for the other ranks' side of the story

# Every process is forked from one that has imported torch already: 0.3 s a start, not 3 s.
CONTEXT = get_context("forkserver")
PRELOAD = ["torch", "torch.distributed", "pytest", "hypothesis"]


class RankError(Exception):
    """A rank raised, died or hung; the message holds the traceback of the one that did first."""


class Job(NamedTuple):
    """What a worker needs to run a function."""

    file: str
    module: str
    name: str
    arguments: bytes  # a pickle, which may need the module: load that first
    world_size: int
    store: str  # the file through which the ranks find each other


class Worker(NamedTuple):
    """One process and this side of the pipe to it."""

    process: BaseProcess
    pipe: Connection

    def answer(self) -> tuple[bool, Any]:
        """(True, result) or (False, traceback), of a process that has answered or died."""
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.process.join(1)
            code = self.process.exitcode
            how = signal.Signals(-code).name if code and code < 0 else f"exit code {code}"
            return False, f"died: {how}"


class RankPool:
    """Processes that stay, `size` of them, started by the first run (and after a failed one).

    `limit` is how many seconds a run may take before its ranks are killed.
    """

    def __init__(self, size: int = 4, limit: float = 120.0) -> None:
        self.size = size
        self.limit = limit
        self._workers: list[Worker] = []
        self._runs = 0

    def __enter__(self) -> "RankPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
        """Results of `function(rank, group, *args)` on ranks 0..world_size-1, by rank."""
        if not 1 <= world_size <= self.size:
            raise ValueError(f"world_size must be 1..{self.size}, got {world_size}")
        if "<" in function.__qualname__:
            raise ValueError(f"{function.__qualname__} is no module-level function")
        module, name = function.__module__, function.__qualname__
        file, arguments = str(sys.modules[module].__file__), pickle.dumps(args)
        with tempfile.TemporaryDirectory() as folder:
            job = Job(file, module, name, arguments, world_size, str(Path(folder, "store")))
            try:
                self._start()
                for worker in self._workers[:world_size]:
                    worker.pipe.send_bytes(pickle.dumps(job))
                return self._collect(world_size)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Kill the processes. Another run would start new ones."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.process.close()
            worker.pipe.close()
        self._workers = []

    def _start(self) -> None:
        """Make sure that all processes are alive."""
        if self._workers and all(worker.process.is_alive() for worker in self._workers):
            return
        self.close()
        CONTEXT.set_forkserver_preload(PRELOAD)
        for rank in range(self.size):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self._workers.append(Worker(process, ours))

    def _collect(self, world_size: int) -> list[Any]:
        """The ranks' results, or RankError soon after the first failure."""
        results: dict[int, Any] = {}
        failures: dict[int, str] = {}  # in the order of arrival
        waiting = dict(enumerate(self._workers[:world_size]))
        deadline = time.monotonic() + self.limit
        while waiting and (left := deadline - time.monotonic()) > 0:
            workers = waiting.values()
            ready = wait([w.pipe for w in workers] + [w.process.sentinel for w in workers], left)
            for rank, worker in list(waiting.items()):
                if worker.pipe in ready or worker.process.sentinel in ready:
                    done, answer = waiting.pop(rank).answer()
                    (results if done else failures)[rank] = answer
                    if not done:
                        deadline = min(deadline, time.monotonic() + GRACE)
        if waiting and not failures:
            failures = dict.fromkeys(waiting, f"not done after {self.limit:g} s")
        if failures:
            raise RankError(_report(failures, world_size))
        return [results[rank] for rank in range(world_size)]


def _report(failures: dict[int, str], world_size: int) -> str:
    """The first cause in full, the others in a line each. A death is the cause of what follows."""
    ordered = sorted(failures.items(), key=lambda failure: not failure[1].startswith("died"))
    (rank, first), *others = ordered
    lines = [f"rank {rank} of {world_size} {first.strip()}"]
    lines += [f"rank {rank} as well: {text.strip().splitlines()[-1]}" for rank, text in others]
    return "\n".join(lines)


def _serve(rank: int, pipe: Connection) -> None:
    """The life of a worker: jobs in, answers out, until the pipe closes."""
    torch.set_num_threads(1)
    while True:
        try:
            job = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, _run_job(rank, job)))
        except BaseException:  # pytest's own failures are no Exception
            answer = pickle.dumps((False, f"raised:\n{traceback.format_exc()}"))
        pipe.send_bytes(answer)


def _run_job(rank: int, job: Job) -> Any:
    function = _find(job)
    arguments = pickle.loads(job.arguments)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{job.store}",
        rank=rank,
        world_size=job.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    dist.barrier()  # nobody leaves before all are connected
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = function(rank, dist.group.WORLD, *arguments)
    dist.barrier()  # nor before all are done
    dist.destroy_process_group()
    return result


def _find(job: Job) -> Callable[..., Any]:
    """The function of a job, from its file: pytest's names of test modules need not import."""
    module = sys.modules.get(job.module)
    if module is None:
        spec = importlib.util.spec_from_file_location(job.module, job.file)
        assert spec is not None, job.file
        assert spec.loader is not None, job.file
        module = sys.modules[job.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return getattr(module, job.name)
