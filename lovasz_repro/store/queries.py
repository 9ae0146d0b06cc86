"""What is asked of an MLflow client in more than one call, or in MLflow's filter language.

``client`` is an ``mlflow.MlflowClient`` throughout; runs are MLflow's ``Run``.
"""

import contextlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lovasz_repro.store.journal import Point
from lovasz_repro.store.stored import IMPORTED, StoredRun
from lovasz_repro.store.tracking import LOCK_TIMEOUT, StoreError


def quotable(text: str) -> str:
    """``text``, if it may stand between quotes in a filter.

    Raises:
        StoreError: characters that could end the quotes.
    """
    if not re.fullmatch(r"[\w.,: +-]+", text):
        raise StoreError(f"{text!r} cannot name a run: use letters, digits and . _ - only")
    return text


def experiment_names(client: Any) -> dict[str, str]:
    """{experiment id: name} of every experiment that is not deleted."""
    found: dict[str, str] = {}
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        found |= {experiment.experiment_id: experiment.name for experiment in page}
        token = page.token
        if not token:
            return found


def search(client: Any, experiment_ids: list[str], where: str) -> list[Any]:
    """Every run of the experiments for which the filter ``where`` holds, oldest first."""
    found: list[Any] = []
    token = None
    while experiment_ids:
        page = client.search_runs(
            experiment_ids,
            where,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            break
    return found


def ranked(client: Any, experiment_id: str, where: str) -> list[Any]:
    """The runs for which ``where`` holds: finished ones before others, then the oldest first.

    Every process that asks gets the same order; the first is the one that stands.
    """
    found = search(client, [experiment_id], where)
    return sorted(
        found, key=lambda r: (r.info.status != "FINISHED", r.info.start_time, r.info.run_id)
    )


def settle(client: Any, where: str, made: Any, sound: Callable[[Any], object]) -> Any:
    """The run that stands for ``where`` after ``made`` was created for it.

    Another ``sound`` one where two machines did so; ``made`` is then taken back. So is its twin,
    of the same millisecond, which a server makes whose answer was lost and which was asked again.
    """
    stands, *others = filter(sound, ranked(client, made.info.experiment_id, where))
    for run in others:
        if run.info.start_time == made.info.start_time:
            client.delete_run(run.info.run_id)
    return stands


def differences(run: Any, params: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Tags that keep what would be lost when ``run`` goes on with these params and tags.

    ``changed/<param>`` is the present value of a parameter (MLflow's are immutable),
    ``previous/<tag>`` the former values of a tag.
    """
    before, had = run.data.tags, run.data.params
    changed = {f"changed/{k}": v for k, v in params.items() if had.get(k, v) != v}
    previous = {
        f"previous/{k}": ", ".join(filter(None, [before.get(f"previous/{k}"), before[k]]))
        for k, v in tags.items()
        if before.get(k, v) != v
    }
    return changed | previous


def artifact_names(client: Any, run_id: str, folder: str | None = None) -> Iterator[str]:
    """Relative path of every file that the run has below ``folder``."""
    for entry in client.list_artifacts(run_id, folder):
        if entry.is_dir:
            yield from artifact_names(client, run_id, entry.path)
        else:
            yield entry.path


def fill(database: Path, run_id: str, run: StoredRun, points: Sequence[Point]) -> None:
    """Write what is to be known of a run that was just made, in one transaction.

    Through MLflow the 138 runs of results/reference take five times as long.
    """
    rows = {(p.key, p.step, p.timestamp, 0.0 if p.value != p.value else p.value, p.value != p.value)
            for p in points}  # fmt: skip
    last = {row[0]: row for row in sorted(rows)}
    ended = None if run.ended is None else round(run.ended * 1000)
    columns = "(key, step, timestamp, value, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)"
    with contextlib.closing(sqlite3.connect(database, timeout=LOCK_TIMEOUT)) as opened, opened:
        write = opened.executemany
        write("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)",
              [(k, v, run_id) for k, v in run.params.items()])  # fmt: skip
        write(f"INSERT INTO metrics {columns}", [(*row, run_id) for row in rows])
        write(f"INSERT INTO latest_metrics {columns}", [(*row, run_id) for row in last.values()])
        write("UPDATE tags SET value = 'complete' WHERE key = ? AND run_uuid = ?",
              [(IMPORTED, run_id)])  # fmt: skip
        write("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?",
              [(run.status, ended, run_id)])  # fmt: skip
