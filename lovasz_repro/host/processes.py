"""``map`` over several processes, for work that is done file by file."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from lovasz_repro.errors import RunFailed

Map = Callable[..., Iterator[Any]]
"""``map``, or that of a pool of processes."""
LEFT_TO_THE_FIRST = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""Ctrl-C reaches every process of a terminal, and a cluster's signals every one of a job."""


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
    pool = ProcessPoolExecutor(processes, get_context("spawn"), initializer=_start_process)

    def map_(function: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        with _deaths_told(what):
            results = pool.map(function, *items)  # hands out everything at once
        return _told(results, what)

    try:
        yield map_
    finally:
        pool.shutdown(cancel_futures=True)


def _told(results: Iterator[Any], what: str) -> Iterator[Any]:
    with _deaths_told(what):
        yield from results


@contextmanager
def _deaths_told(what: str) -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool:
        raise RunFailed(f"a process that {what} died (killed, or out of memory).") from None


def _start_process() -> None:
    """Leave requests to stop to the process that started this one; end when it ends."""
    for number in LEFT_TO_THE_FIRST:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended; returns at once."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
