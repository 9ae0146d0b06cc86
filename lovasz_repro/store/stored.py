"""What the store tells of one run."""

import time
from dataclasses import dataclass
from typing import Any

PARENT = "mlflow.parentRunId"
HEARTBEAT = "heartbeat"  # tag: epoch seconds at which the training process was last alive
STALE_AFTER = 180.0  # seconds without a heartbeat; the shipper renews it every 30


@dataclass(frozen=True)
class StoredRun:
    """One run as the store knows it; times in seconds since the epoch, scores in [0, 1]."""

    run_id: str
    experiment: str
    name: str
    status: str
    """RUNNING, FINISHED, FAILED or KILLED."""
    parent_id: str | None
    started: float
    ended: float | None
    """None while RUNNING."""
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]
    """The value at the last step of each metric."""

    @property
    def identity(self) -> str:
        """Hash of the resolved config and the data fingerprint."""
        return self.tags.get("identity", "")


def from_mlflow(run: Any, experiment: str) -> StoredRun:
    """A ``StoredRun`` from MLflow's ``Run``."""
    info, running = run.info, run.info.status == "RUNNING"
    return StoredRun(
        run_id=info.run_id,
        experiment=experiment,
        name=info.run_name,
        status=info.status,
        parent_id=run.data.tags.get(PARENT),
        started=info.start_time / 1000,
        ended=None if running or info.end_time is None else info.end_time / 1000,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        metrics=dict(run.data.metrics),
    )


def is_stale(run: StoredRun, now: float | None = None) -> bool:
    """Whether a RUNNING run has no living process: no heartbeat for three minutes.

    SIGKILL and power loss leave a run RUNNING for ever; ``now`` is in epoch seconds.
    """
    if run.status != "RUNNING":
        return False
    beat = float(run.tags.get(HEARTBEAT, 0))
    return (now or time.time()) - max(beat, run.started) > STALE_AFTER


def shown_status(run: StoredRun, now: float | None = None) -> str:
    """The status for people: MLflow's, or STALE for a run whose process is gone."""
    return "STALE" if is_stale(run, now) else run.status
