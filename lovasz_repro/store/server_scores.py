"""Scores that an evaluation server gave to a run's predictions (Tables 2, 3 and 4).

A person brings them (``server_file.py``): a test set's annotations are not public. They are kept
with a finished run as metrics ``server/...``, or ``initial/server/...`` for the network before
training, apart from what the run measured itself, with the file that they were read from.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from lovasz_repro.errors import UserError
from lovasz_repro.store.journal import Point
from lovasz_repro.store.mlflow_store import Store
from lovasz_repro.store.stored import StoredRun


class Kind(NamedTuple):
    """Which of a run's networks was scored."""

    metrics: str
    """What the names of its metrics begin with."""
    folder: str
    """Where the file is kept."""

    @property
    def tag(self) -> str:
        """Tag that holds when the scores were recorded."""
        return f"{self.metrics}recorded"


TRAINED = Kind("server/", "server-scores")
INITIAL = Kind("initial/server/", "initial/server-scores")
KINDS = (TRAINED, INITIAL)


def record_server_scores(
    store: Store,
    run: StoredRun,
    scores: Mapping[str, float],
    file: Path,
    *,
    initial: bool = False,
    replace: bool = False,
) -> bool:
    """Keep an evaluation server's scores with a finished run; False if it has them already.

    Args:
        store: holds the run.
        run: as the store knows it now.
        scores: name, without ``server/``, -> fraction.
        file: where they were read from; a copy is kept.
        initial: they are of the network before training.
        replace: take the place of others that were recorded.

    Raises:
        UserError: the run has other scores, and ``replace`` is not set; or it is not finished.
    """
    if run.status != "FINISHED":
        raise UserError(f"run {run.run_id} ({run.name}) is {run.status}, not FINISHED.")
    kind = INITIAL if initial else TRAINED
    wanted = {kind.metrics + name: score for name, score in scores.items()}
    had = recorded_scores(run, kind)
    if had == wanted and kind.tag in run.tags:
        return False
    different = {key for key in had | wanted if had.get(key) != wanted.get(key)} if had else set()
    if different and not replace:
        raise UserError(f"run {run.run_id} ({run.name}) has other scores of the server, recorded "
                        f"{run.tags.get(kind.tag, 'before')}: {_told(different, had, wanted)}. "
                        "Give --replace to put these in their place.")  # fmt: skip
    moment = max(_now(), 1 + _milliseconds(run.tags.get(kind.tag)))  # the later value counts
    store.add_artifact(run.run_id, file, kind.folder)
    put_scores(store, run, kind, [Point(k, v, 0, moment) for k, v in wanted.items()], _iso(moment))
    return True


def recorded_scores(run: StoredRun, kind: Kind) -> dict[str, float]:
    """The scores of a kind that a run has, by the full names of their metrics."""
    return {
        key: value
        for key, value in run.metrics.items()
        if key.startswith(kind.metrics) and not math.isnan(value)
    }


def put_scores(
    store: Store, run: StoredRun, kind: Kind, points: Sequence[Point], recorded: str
) -> None:
    """Log scores in place of those that the run has; those without a successor become NaN.

    The tag comes last: a process that dies before leaves what the next one does again.
    """
    moment = max((point.timestamp for point in points), default=_milliseconds(recorded))
    gone = recorded_scores(run, kind).keys() - {point.key for point in points}
    store.log(run.run_id, [*points, *(Point(key, math.nan, 0, moment) for key in sorted(gone))])
    store.set_tags(run.run_id, {kind.tag: recorded})


def _told(keys: Collection[str], had: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    """The first difference in words, and how many there are."""
    first = min(keys, key=lambda key: ("/iou/" in key, key))
    shown = [f"{100 * s[first]:.2f}%" if first in s else "none" for s in (had, wanted)]
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{first} {shown[0]}, now {shown[1]}{more}"


def _now() -> int:
    return time.time_ns() // 1_000_000


def _iso(milliseconds: int) -> str:
    day = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{day:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def _milliseconds(moment: str | None) -> int:
    """Epoch milliseconds of a tag; 0 for none."""
    return round(datetime.fromisoformat(moment).timestamp() * 1000) if moment else 0
