"""``map`` over several processes, for work that is done file by file."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any

from lovasz_repro.errors import RunFailed


@contextmanager
def mapped(processes: int, what: str) -> Iterator[Callable[..., Iterator[Any]]]:
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
    try:
        yield pool.map
    except BrokenProcessPool:
        raise RunFailed(f"a process that {what} died (killed, or out of memory).") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_process() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the first; end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process as soon as the one that started it has ended; returns at once."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
