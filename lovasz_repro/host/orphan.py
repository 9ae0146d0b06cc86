"""A process whose launcher is gone saves and stops, so that the next command can go on.

A launcher that is killed outright cannot stop the processes it started. Each of them looks every
second whether its parent still lives.
"""

import os
import signal
import threading
import time

PARENT = "LOVASZ_REPRO_PARENT"  # process id of the launcher
GRACE = 60.0  # seconds that an orphan may take to save and stop


def child_environment() -> dict[str, str]:
    """What a child needs in its environment to outlive this process by no more than it must."""
    return {PARENT: str(os.getpid())}


def stop_when_orphaned() -> None:
    """Watch the parent named in the environment, if there is one; returns at once."""
    parent = os.environ.pop(PARENT, None)
    if parent:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
