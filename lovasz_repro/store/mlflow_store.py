"""Stored runs, on MLflow: the only file that imports it.

By default an SQLite file in the results folder with the artifacts beside it; an MLflow server or
another database through MLFLOW_TRACKING_URI or ``tracking_uri``. One parent run per experiment,
one child per variant and seed, found again by its ``identity`` tag.

MLflow is imported when the store is first asked, and a store that does not exist yet is made by
the first write; until then it reads as empty.
"""

import contextlib
import functools
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from lovasz_repro.config.names import below, check_name
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import remove_left_over, unfinished
from lovasz_repro.store import artifacts, queries
from lovasz_repro.store.journal import Point
from lovasz_repro.store.shipping import MAX_BATCH, to_stderr
from lovasz_repro.store.stored import (
    HEARTBEAT,
    IDENTITY,
    IMPORTED,
    PARENT,
    ROLE,
    StoredRun,
    first_problem,
    from_mlflow,
    number,
)
from lovasz_repro.store.tracking import (
    StoreError,
    check_database,
    check_server,
    choose_uri,
    database_of,
    explain,
)

SETTLE = 1.0  # seconds in which runs that other machines create at the same moment arrive
SHORTEST_ID = 6  # characters of a run id that a person has to give
LOCK_PATIENCE = 300.0  # seconds; hundreds of processes may want to open their runs at once


class Store:
    """The runs of ``results`` (or of the store that ``tracking_uri`` names).

    Opening the same identity from N processes gives one run: for SQLite through a lock file
    beside it, for a server through the lock of a common results folder. Processes on machines
    that share only a server wait a second after they created a run, then settle on the oldest.

    A run whose values are not what the reports take them for is passed over by every method, and
    ``say`` gets one line about it.

    Raises (from every method):
        StoreError: one line; the store is absent, locked, read-only, broken, not reachable.
    """

    def __init__(
        self,
        results: Path,
        tracking_uri: str | None = None,
        say: Callable[[str], None] = to_stderr,
    ):
        self.results = Path(results).absolute()
        self.uri = choose_uri(self.results, tracking_uri)
        self._database = database_of(self.uri)
        self._remote = not self.uri.startswith(("sqlite", "postgres", "mysql", "mssql"))
        self._own = self._database == self.results / "mlflow.db"
        self._made: tuple[int, int] | None = None  # device and inode of the database
        self._experiments: dict[str, str] = {}  # name -> id
        self._client_or_none: Any = None
        self._say, self._told = say, set[str]()
        if self.uri.startswith("http"):
            check_server(self.uri)

    # -- runs: write -----------------------------------------------------------------------

    def open_parent(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        """Find or create the run that groups an experiment's children; returns its id.

        One that is found keeps the tags that it has.
        """
        where = f"tags.role = 'parent' AND attributes.run_name = '{queries.quotable(name)}'"
        with self._asking(), self._lock():
            experiment_id = self._experiment_id(experiment, create=True)
            found = queries.ranked(self._client, experiment_id, where)
            if found:
                run_id: str = found[0].info.run_id
                had = found[0].data.tags
                self._set_tags(run_id, {k: v for k, v in tags.items() if k not in had})
                return run_id
            fixed = {ROLE: "parent"}
            run = self._create(where, experiment_id, name, {**_strings(tags), **fixed})
            self._client.set_terminated(run.info.run_id)  # it only groups; children have states
            return run.info.run_id

    def open_child(
        self,
        experiment: str,
        parent_id: str | None,
        name: str,
        identity: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        *,
        started: float | None = None,
    ) -> str:
        """Find the run of ``identity`` or create it; it is RUNNING afterwards. Returns its id.

        A new one counts as ``started`` now or at these epoch seconds. One that is found keeps
        its parameters (MLflow's are immutable); what differs now becomes the tag
        ``changed/<param>``, and a tag that changes (the git commit, the device) leaves its
        former values in ``previous/<tag>``.
        """
        with self._asking(), self._lock():
            experiment_id = self._experiment_id(experiment, create=True)
            run = self._of_identity(experiment_id, experiment, identity)
            if run is None:
                fixed = {IDENTITY: identity} | ({PARENT: parent_id} if parent_id else {})
                where = f"tags.identity = '{identity}'"
                run = self._create(where, experiment_id, name, {**_strings(tags), **fixed}, started)
            alive = {HEARTBEAT: str(int(time.time()))} if started is None else {}
            self._go_on(run, _strings(params), _strings(tags))
            self._set_tags(run.info.run_id, alive)
            return str(run.info.run_id)

    def bring_in(
        self,
        run: StoredRun,
        points: Sequence[Point],
        files: Mapping[str, Path],
        replaces: str | None = None,
    ) -> str | None:
        """Add a run that was made elsewhere, whole or not at all.

        Args:
            run: its ``run_id`` and ``metrics`` do not count.
            points: its metrics.
            files: its artifacts by relative path.
            replaces: id of the run of the same identity that gives way to it.

        Returns:
            Its id here, or None where another process has brought it in meanwhile.
        """
        with self._asking(), self._lock():
            experiment_id = self._experiment_id(run.experiment, create=True)
            old = self._of_identity(experiment_id, run.experiment, run.identity)
            if old and old.info.run_id != replaces:
                return None
            parent = {PARENT: run.parent_id} if run.parent_id else {}
            tags = run.tags | parent | {IMPORTED: "incomplete"}
            moment = round(run.started * 1000)
            made = self._client.create_run(experiment_id, moment, tags, run.name)
        run_id = str(made.info.run_id)
        try:
            for name, file in files.items():
                self._put(self._folder(run.experiment, run_id), run_id, file, name)
            with self._asking():
                if self._database:
                    queries.fill(self._database, run_id, run, points)
                else:
                    self._fill(run_id, run, points)
                if old:
                    self._client.delete_run(old.info.run_id)
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.delete_run(run_id)
            raise
        return run_id

    def _fill(self, run_id: str, run: StoredRun, points: Sequence[Point]) -> None:
        """Parameters, metrics and end of a run that was just made, in as few calls as may be."""
        entities = _mlflow().entities
        params = [entities.Param(k, v) for k, v in run.params.items()]
        metrics = [entities.Metric(p.key, p.value, p.timestamp, p.step) for p in points]
        calls = max(1, math.ceil(len(metrics) / MAX_BATCH), math.ceil(len(params) / 99))
        for i in range(calls):
            self._client.log_batch(
                run_id,
                metrics[i * MAX_BATCH : (i + 1) * MAX_BATCH],
                params[i * 99 : (i + 1) * 99],
                [entities.RunTag(IMPORTED, "complete")] if i == calls - 1 else [],
            )
        if run.status != "RUNNING":
            ended = None if run.ended is None else round(run.ended * 1000)
            self._client.set_terminated(run_id, run.status, ended)

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add points to a run; a point that it has already is not added again.

        MLflow cannot hold infinities: such a value is stored as NaN and the tag
        ``nonfinite/<metric>`` tells the first of them.
        """
        metric = _mlflow().entities.Metric
        metrics = [
            metric(p.key, p.value if math.isfinite(p.value) else math.nan, p.timestamp, p.step)
            for p in points
        ]
        with self._asking():
            self._note_infinities(run_id, points)
            for start in range(0, len(metrics), MAX_BATCH):
                self._client.log_batch(run_id, metrics=metrics[start : start + MAX_BATCH])

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self._asking():
            self._set_tags(run_id, tags)

    def close(self, run_id: str, status: str, ended: float | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED, now or at ``ended`` (epoch seconds)."""
        moment = None if ended is None else round(ended * 1000)
        with self._asking():
            self._client.set_terminated(run_id, status, moment)

    def remove(self, run_id: str) -> None:
        """Hide a run; MLflow keeps it and can restore it."""
        with self._asking():
            self._client.delete_run(run_id)

    # -- runs: read ------------------------------------------------------------------------

    def get(self, run_id: str) -> StoredRun | None:
        """The run of this id, parent or child; None where the store does not hold it."""
        if self._absent():
            return None
        with self._asking():
            try:
                run = self._client.get_run(run_id)
            except self._mlflow_error() as error:
                if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
            if run.info.lifecycle_stage != "active":
                return None
            experiment = self._client.get_experiment(run.info.experiment_id).name
            return self._typed(run, experiment)

    def runs(self, experiment: str | None = None) -> list[StoredRun]:
        """The child runs of one experiment, or of all, newest first."""
        if self._absent():
            return []
        with self._asking():
            names = queries.experiment_names(self._client)
            wanted = [i for i, name in names.items() if experiment in (None, name)]
            found = queries.search(self._client, wanted, "tags.identity LIKE '%'")
            runs = [self._typed(run, names[run.info.experiment_id]) for run in found]
        return sorted(filter(None, runs), key=lambda run: (-run.started, run.run_id))

    def by_id(self, start: str) -> StoredRun:
        """The child run whose id begins with ``start``, here or where it was made.

        Raises:
            UserError: fewer than 6 characters, no such run, or several.
        """
        if len(start) < SHORTEST_ID:
            raise UserError(f"run {start!r}: give at least {SHORTEST_ID} characters of its id")
        found = [
            run
            for run in self.runs()
            if run.run_id.startswith(start) or run.tags.get("origin_run_id", "").startswith(start)
        ]
        if len(found) != 1:
            count = f"{len(found)} runs begin with" if found else "no run"
            raise UserError(f"{count} {start!r} in this store; `lovasz-repro runs` lists them")
        return found[0]

    def find(self, experiment: str, identity: str) -> StoredRun | None:
        """The run of ``identity``, or None; a finished one before others, then the oldest."""
        if self._absent():
            return None
        with self._asking():
            experiment_id = self._experiment_id(experiment, create=False)
            if not experiment_id:
                return None
            run = self._of_identity(experiment_id, experiment, identity)
            return None if run is None else self._typed(run, experiment)

    def finished(self, experiment: str, identity: str) -> StoredRun | None:
        """The finished run of ``identity``, or None: it has not run, or not to its end."""
        run = self.find(experiment, identity)
        return run if run and run.status == "FINISHED" else None

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """(step, value) of one metric by step; of values at one step the latest logged."""
        return [(step, value) for step, (value, _) in sorted(self._latest(run_id, key).items())]

    def points(self, run_id: str) -> list[Point]:
        """Every metric of a run, sorted by key and step, one value a step."""
        run = self.get(run_id)
        keys = sorted(run.metrics) if run else []
        return [
            Point(key, value, step, moment)
            for key in keys
            for step, (value, moment) in sorted(self._latest(run_id, key).items())
        ]

    def _latest(self, run_id: str, key: str) -> dict[int, tuple[float, int]]:
        with self._asking():
            history = self._client.get_metric_history(run_id, key)
        history.sort(key=lambda metric: metric.timestamp)
        return {m.step: (number(m.value), m.timestamp) for m in history}

    def _typed(self, run: Any, experiment: str) -> StoredRun | None:
        """MLflow's run as ours, or None and one line where its values are odd."""
        try:
            return from_mlflow(run, experiment)
        except ValidationError as error:
            run_id = str(run.info.run_id)
            if run_id not in self._told:
                self._told.add(run_id)
                self._say(f"run {run_id[:32]!r} is passed over: {first_problem(error)}")
            return None

    def _of_identity(self, experiment_id: str, experiment: str, identity: str) -> Any:
        """MLflow's run that stands for ``identity``, or None; one that is odd does not count."""
        where = f"tags.identity = '{queries.quotable(identity)}'"
        found = queries.ranked(self._client, experiment_id, where)
        return next((run for run in found if self._typed(run, experiment)), None)

    # -- artifacts -------------------------------------------------------------------------

    def add_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """Copy a file into a run, under ``folder``; an older one of the same name is replaced."""
        with self._asking():
            root = self._artifacts(run_id)
        self._put(root, run_id, path, f"{folder}/{path.name}" if folder else path.name)

    def artifact(self, run_id: str, relative_path: str) -> Path:
        """Local path of a file of a run; fetched first where another store holds it.

        Found below the present results folder also when that was moved after the run.

        Raises:
            StoreError: the run has no such file.
        """
        with self._asking():
            root = self._artifacts(run_id)
            file = below(root, relative_path)
            if file.is_file() and not self._remote:
                return file
            if not self._own:
                root.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(self._mlflow_error(), OSError):
                    found = self._client.download_artifacts(run_id, relative_path, str(root))
                    return Path(found)
        raise StoreError(f"run {run_id} has no artifact {relative_path} (looked in {root})")

    def artifact_names(self, run_id: str) -> list[str]:
        """Relative paths of all files of a run, sorted."""
        with self._asking():
            if self._own:
                return artifacts.names(self._artifacts(run_id))
            return sorted(queries.artifact_names(self._client, run_id))

    def _artifacts(self, run_id: str) -> Path:
        """Where the files of a run lie (or are fetched to) below the results folder."""
        experiment_id = self._client.get_run(run_id).info.experiment_id
        return self._folder(self._client.get_experiment(experiment_id).name, run_id)

    def _folder(self, experiment: str, run_id: str) -> Path:
        return below(self.results / "artifacts", f"{experiment}/{run_id}/artifacts")

    def _put(self, root: Path, run_id: str, file: Path, relative: str) -> None:
        """Copy a file into a run, to ``relative`` among its artifacts in ``root``."""
        target = below(root, relative)
        with self._asking():
            if self._own:
                artifacts.put(target, file)
            else:
                folder = target.parent.relative_to(root).as_posix()
                self._client.log_artifact(run_id, str(file), None if folder == "." else folder)

    # -- MLflow ----------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        """The MLflow client; makes the database first where it does not exist."""
        if self._client_or_none is None:
            if self._absent():
                _make_database(self._database)
            if self._own:
                remove_left_over(self.results)
            if self._database:
                check_database(self._database)
                self._made = _inode(self._database)
            self._client_or_none = _mlflow().MlflowClient(tracking_uri=self.uri)
        elif self._database and _inode(self._database) != self._made:
            raise StoreError(f"{self._database} was removed or replaced while in use")
        return self._client_or_none

    def _absent(self) -> bool:
        return self._client_or_none is None and bool(self._database and not self._database.exists())

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever goes wrong below into one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise explain(error, str(self._database or self.uri)) from error

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One process at a time looks for a run and creates it."""
        path = self._database or self.results / "mlflow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock"), timeout=LOCK_PATIENCE):
            yield

    def _experiment_id(self, name: str, *, create: bool) -> str:
        if name not in self._experiments:
            found = self._client.get_experiment_by_name(name)
            if found is None and not create:
                return ""
            try:
                check_name(name)  # it names a folder too
            except ValueError as error:
                raise StoreError(f"{name[:60]!r} cannot name an experiment: {error}") from None
            if found is not None and found.lifecycle_stage != "active":
                raise StoreError(
                    f"experiment {name} was deleted in MLflow; bring it back with"
                    f" `mlflow experiments restore -x {found.experiment_id}`"
                )
            self._experiments[name] = found.experiment_id if found else self._new_experiment(name)
        return self._experiments[name]

    def _new_experiment(self, name: str) -> str:
        local = None if self._remote else (self.results / "artifacts" / name).as_uri()
        try:
            return self._client.create_experiment(name, artifact_location=local)
        except self._mlflow_error():  # another machine was quicker
            return self._client.get_experiment_by_name(name).experiment_id

    def _create(
        self,
        where: str,
        experiment_id: str,
        name: str,
        tags: dict[str, str],
        started: float | None = None,
    ) -> Any:
        """Create a run that the filter ``where`` finds; the one that stands if there are more."""
        moment = None if started is None else round(started * 1000)
        made = self._client.create_run(experiment_id, moment, tags, name)
        if self._database is None and started is None:  # no lock keeps two machines apart
            time.sleep(SETTLE)
        return queries.settle(self._client, where, made, lambda run: self._typed(run, "any"))

    def _go_on(self, run: Any, params: dict[str, str], tags: dict[str, str]) -> None:
        """Bring a run that was found, or just made, up to what is known now."""
        run_id, had = run.info.run_id, run.data.params
        self._log_params(run_id, {k: v for k, v in params.items() if k not in had})
        self._set_tags(run_id, tags | queries.differences(run, params, tags))
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")

    def _log_params(self, run_id: str, params: dict[str, str]) -> None:
        items = [_mlflow().entities.Param(k, v) for k, v in params.items()]
        for start in range(0, len(items), 100):
            self._client.log_batch(run_id, params=items[start : start + 100])

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        items = [_mlflow().entities.RunTag(k, v) for k, v in _strings(tags).items()]
        for start in range(0, len(items), 100):
            self._client.log_batch(run_id, tags=items[start : start + 100])

    def _note_infinities(self, run_id: str, points: Sequence[Point]) -> None:
        infinite = {f"nonfinite/{p.key}": p for p in reversed(points) if math.isinf(p.value)}
        if infinite:
            known = self._client.get_run(run_id).data.tags
            tags = {k: f"{p.value} at step {p.step}" for k, p in infinite.items() if k not in known}
            self._set_tags(run_id, tags)

    @staticmethod
    def _mlflow_error() -> type[Exception]:
        return _mlflow().exceptions.MlflowException


@functools.cache
def _mlflow() -> Any:
    """Import MLflow, quiet: no telemetry, no migration log, no progress bars, no URLs."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the shipper repeats; MLflow would take minutes
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_TRUNCATE_LONG_VALUES": "false",  # an error rather than a cut value
    }.items():
        os.environ.setdefault(name, value)
    import mlflow

    for logger in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)  # its errors reach us as exceptions
    return mlflow


def _make_database(path: Path | None) -> None:
    """Create an empty MLflow database aside and link it into place, whole or not at all."""
    assert path is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished(path) as fresh:
        _mlflow().MlflowClient(tracking_uri=f"sqlite:///{fresh.as_posix()}").search_experiments()
        try:
            os.link(fresh, path)
        except FileExistsError:  # another process was quicker
            pass
        except OSError:  # a file system without links; `Store._lock` keeps others away
            os.replace(fresh, path)


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _strings(values: Mapping[str, object]) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}
