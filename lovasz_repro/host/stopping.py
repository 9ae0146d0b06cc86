"""Stop requests: a signal asks, the training loop answers after its next checkpoint."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # kill, Ctrl-C, Slurm's pre-emption


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
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
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
