"""Processes: cores for each, stop requests, the end of a launcher, ``map`` over several.

A launcher that is killed outright cannot stop the processes it started: each of them looks every
second whether its parent still lives, and where it does not, saves and stops, so that the next
command can go on.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from lovasz_repro.errors import RunFailed

MOST_WORKERS = 8  # processes that decode images, for each GPU
PARENT_VARIABLE = "LOVASZ_REPRO_PARENT"  # process id of the launcher
GRACE = 60.0  # seconds that an orphan may take to save and stop
SAVING = 120.0  # seconds that processes asked to stop may take before they are killed
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""kill, Ctrl-C, Slurm's pre-emption. Ctrl-C reaches every process of a terminal, and a cluster's
signals every one of a job."""

Map = Callable[..., Iterator[Any]]
"""``map``, or that of a pool of processes."""


# -- cores -----------------------------------------------------------------------------------------


def cores() -> int:
    """Cores that this job may use here: what Slurm allotted it, else those it is bound to.

    Not every cluster binds a job to its cores, and threads beyond them slow each other down by far
    more than they help.
    """
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if allotted.isdigit():
        return max(int(allotted), 1)
    return len(os.sched_getaffinity(0))


def decoding_workers(device: str, ranks: int = 1) -> int:
    """Processes that decode images for each of the ranks on a machine, where nobody says how many.

    On a CPU the training needs the cores itself.
    """
    return 0 if device == "cpu" else min(MOST_WORKERS, cores() // ranks)


def threads_of(processes: int) -> dict[str, str]:
    """Environment that gives each of ``processes`` its part of the cores, unless the user did."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(cores() // processes, 1))}


# -- stop requests ---------------------------------------------------------------------------------


class Interrupted(Exception):
    """The run stopped because a signal asked it to, after writing a checkpoint."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + number
        """130 after Ctrl-C, 143 after SIGTERM, as a shell reports them."""


class StopRequest:
    """Context in which SIGTERM, SIGINT and SIGUSR2 are noted instead of ending the process.

    A second SIGINT (Ctrl-C again) raises KeyboardInterrupt at once.

    Args:
        say: called at the first request, to tell the user that it was heard.
    """

    def __init__(self, say: Callable[[], None] = lambda: None) -> None:
        self.number: int | None = None
        """The signal that asked, or None."""
        self._say, self._process = say, os.getpid()

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._note) for number in STOPS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT:
            raise KeyboardInterrupt
        asked_before, self.number = self.number, number
        if not asked_before and os.getpid() == self._process:  # not in a forked reader of images
            threading.Thread(target=self._say).start()  # this one may be amid a line of its own


# -- parents ---------------------------------------------------------------------------------------


def child_environment() -> dict[str, str]:
    """What a child needs in its environment to outlive this process by no more than it must."""
    return {PARENT_VARIABLE: str(os.getpid())}


def stop_when_orphaned() -> None:
    """Watch the parent named in the environment, if there is one; returns at once."""
    parent = os.environ.pop(PARENT_VARIABLE, None)
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)


def end_all(processes: Sequence["subprocess.Popen[bytes]"], number: int = signal.SIGTERM) -> None:
    """Have processes save and end; kill those that do not."""
    deadline = time.monotonic() + SAVING
    try:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
    finally:  # also when Ctrl-C comes again
        for process in processes:
            process.kill()
            process.wait()


# -- a pool ----------------------------------------------------------------------------------------


@contextmanager
def mapped(processes: int, what: str) -> Iterator[Map]:
    """``map``, by this process alone or by several that share the items; results in order.

    Args:
        processes: how many; up to 1 starts none.
        what: what they do, for the message when one dies: "scored images".

    Raises:
        RunFailed: a process died.
    """
    if processes <= 1:
        yield map
        return
    from concurrent.futures import ProcessPoolExecutor  # slow to import, and seldom needed
    from multiprocessing import get_context

    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start_process)

    def map_(function: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        with _deaths_told(what):
            return _told(pool.map(function, *items), what)  # hands out everything at once

    try:
        yield map_
    finally:
        pool.shutdown(cancel_futures=True)


def _told(results: Iterator[Any], what: str) -> Iterator[Any]:
    with _deaths_told(what):
        yield from results


@contextmanager
def _deaths_told(what: str) -> Iterator[None]:
    from concurrent.futures.process import BrokenProcessPool

    try:
        yield
    except BrokenProcessPool:
        raise RunFailed(f"a process that {what} died (killed, or out of memory).") from None


def _start_process() -> None:
    """Leave requests to stop to the process that started this one; end when it ends."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    from multiprocessing import parent_process

    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
