"""How often a process that died is started again, and how a launched command ends."""

import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lovasz_repro.errors import RunFailed

BACKOFF = 2.0  # seconds before the second attempt in a row without a checkpoint, then twice as long


class RankFailed(RunFailed):
    """A process's error as its launcher repeats it, with its exit code."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Failure:
    """Why processes ended: the first cause."""

    rank: int
    kind: str
    """As ``rank.kind_of`` names it, or "died"."""
    exit_code: int
    message: str


def killed_by(exit_code: int) -> str:
    """What a negative exit code of a child process says: "killed by SIGKILL"."""
    return f"killed by {signal.Signals(-exit_code).name}"


class Attempts:
    """Counts attempts in a row that brought no checkpoint.

    Args:
        limit: how many there may be.
        progress_mark: changes whenever a checkpoint was written.
    """

    def __init__(self, limit: int, progress_mark: Callable[[], object]) -> None:
        self._limit, self._mark = limit, progress_mark
        self._seen, self._vain = progress_mark(), 0

    def next_wait(self, failure: Failure) -> float:
        """Seconds to wait before another attempt.

        Raises:
            RankFailed: there were too many.
        """
        seen = self._mark()
        self._vain = 1 if seen != self._seen else self._vain + 1
        self._seen = seen
        if self._vain > self._limit:
            often = f"{self._vain} times in a row without a new checkpoint in between"
            raise RankFailed(1, f"rank {failure.rank}: {failure.message} ({often}).")
        return BACKOFF * 2.0 ** (self._vain - 2) if self._vain > 1 else 0.0


def newest_checkpoints(folders: Iterable[Path]) -> frozenset[str]:
    """Names of the checkpoints in some runs' folders, which change whenever one is written."""
    return frozenset(path.name for folder in folders for path in folder.glob("checkpoint-*.pt"))
