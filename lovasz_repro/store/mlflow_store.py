"""Stored runs, on MLflow: the only file that imports it.

By default an SQLite file in the results folder with the artifacts beside it; an MLflow server or
another database through MLFLOW_TRACKING_URI or ``tracking_uri``. A run is found again by its
``identity`` tag.

MLflow is imported when the store is first asked, and a store that does not exist yet is made by
the first write; until then it reads as empty.
"""

import contextlib
import functools
import logging
import math
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import ValidationError

from lovasz_repro.config.read import below, check_name
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import remove_left_over, unfinished
from lovasz_repro.host.output import to_stderr
from lovasz_repro.store.journal import Point
from lovasz_repro.store.stored import (
    GROUP,
    HEARTBEAT,
    IDENTITY,
    IMPORTED,
    RUN_NAME,
    StoredRun,
    dataset_of,
    experiment_tags,
    first_problem,
    from_mlflow,
    number,
    one_by_id,
    run_tags,
    title_in_list,
)
from lovasz_repro.store.tracking import (
    LOCK_TIMEOUT,
    StoreError,
    check_database,
    check_server,
    choose_uri,
    database_of,
    explain,
    without_password,
)

MAX_BATCH = 900  # MLflow takes 1000 metrics, params and tags together in one call
SETTLE = 1.0  # seconds in which runs that other machines create at the same moment arrive
LOCK_PATIENCE = 300.0  # seconds; hundreds of processes may want to open their runs at once


class Store:
    """The runs of ``results`` (or of the store that ``tracking_uri`` names).

    Opening the same identity from N processes gives one run: for SQLite through a lock file
    beside it, for a server through the lock of a common results folder. Processes on machines
    that share only a server wait a second after they created a run, then settle on the oldest.

    A run whose values are not what the reports take them for is passed over by every method, with
    one line on stderr.

    Raises (from every method):
        StoreError: one line; the store is absent, locked, read-only, broken, not reachable.
    """

    def __init__(self, results: Path, tracking_uri: str | None = None):
        self.results = Path(results).absolute()
        self.uri = choose_uri(self.results, tracking_uri)
        self.shown_uri = without_password(self.uri)
        self._database = database_of(self.uri)
        self._remote = not self.uri.startswith(("sqlite", "postgres", "mysql", "mssql"))
        self._own = self._database == self.results / "mlflow.db"
        self._made: tuple[int, int] | None = None  # device and inode of the database
        self._experiments: dict[str, str] = {}  # name -> id
        self._client_or_none: Any = None
        self._told = set[str]()  # runs that were passed over
        if self.uri.startswith("http"):
            check_server(self.uri)

    # -- runs: write -----------------------------------------------------------------------

    def open_child(
        self,
        experiment: str,
        group: str | None,
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
        given = {key: str(value) for key, value in params.items()}
        with self._asking(), self._lock():
            experiment_id = self._experiment_id(experiment, create=True)
            run = self._standing(experiment_id, identity)
            if run is None:
                fixed = {IDENTITY: identity, RUN_NAME: name} | ({GROUP: group} if group else {})
                made = run_tags(experiment, tags) | {**tags} | fixed
                run = self._create(experiment_id, title_in_list(name, made), made, started)
                self._log_data(run.info.run_id, experiment, given, tags)
            run_id, had = str(run.info.run_id), run.data.params
            alive = {HEARTBEAT: str(int(time.time()))} if started is None else {}
            self._send(
                run_id,
                params={k: v for k, v in given.items() if k not in had},
                tags={**tags} | differences(run, given, tags) | alive,
            )
            if run.info.status != "RUNNING":
                self._client.update_run(run_id, status="RUNNING")
            return run_id

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
            old = self._standing(experiment_id, run.identity)
            if old and old.info.run_id != replaces:
                return None
            fixed = {RUN_NAME: run.name, IMPORTED: "incomplete"}
            fixed |= {GROUP: run.group} if run.group else {}
            tags = run_tags(run.experiment, run.tags) | run.tags | fixed
            moment = round(run.started * 1000)
            title = title_in_list(run.name, run.tags)
            made = self._client.create_run(experiment_id, moment, tags, title)
        run_id = str(made.info.run_id)
        try:
            for name, file in files.items():
                self._put(self._folder(run.experiment, run_id), run_id, file, name)
            with self._asking():
                self._log_data(run_id, run.experiment, run.params, run.tags)
                if self._database:
                    fill(self._database, run_id, run, points)
                else:
                    self._send(run_id, points, run.params, {IMPORTED: "complete"})
                    if run.status != "RUNNING":
                        ended = None if run.ended is None else round(run.ended * 1000)
                        self._client.set_terminated(run_id, run.status, ended)
                if old:
                    self._client.delete_run(old.info.run_id)
        except BaseException:
            with contextlib.suppress(Exception):
                self._client.delete_run(run_id)
            raise
        return run_id

    def log(self, run_id: str, points: Sequence[Point]) -> None:
        """Add points to a run; a point that it has already is not added again.

        MLflow cannot hold infinities: such a value is stored as NaN and the tag
        ``nonfinite/<metric>`` tells the first of them.
        """
        infinite = {f"nonfinite/{p.key}": p for p in reversed(points) if math.isinf(p.value)}
        with self._asking():
            if infinite:
                known = self._client.get_run(run_id).data.tags
                told = {k: f"{p.value} at step {p.step}" for k, p in infinite.items()}
                self._send(run_id, tags={k: v for k, v in told.items() if k not in known})
            self._send(run_id, points)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags of a run."""
        with self._asking():
            self._send(run_id, tags=tags)

    def close(self, run_id: str, status: str, ended: float | None = None) -> None:
        """End a run as FINISHED, FAILED or KILLED, now or at ``ended`` (epoch seconds)."""
        moment = None if ended is None else round(ended * 1000)
        with self._asking():
            self._client.set_terminated(run_id, status, moment)

    # -- runs: read ------------------------------------------------------------------------

    def get(self, run_id: str) -> StoredRun | None:
        """The run of this id; None where the store does not hold it."""
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
            names = {e.experiment_id: e.name for e in pages(self._client.search_experiments)}
            wanted = [i for i, name in names.items() if experiment in (None, name)]
            found = self._search(wanted, "tags.identity LIKE '%'")
            runs = [self._typed(run, names[run.info.experiment_id]) for run in found]
        return sorted(filter(None, runs), key=lambda run: (-run.started, run.run_id))

    def by_id(self, start: str) -> StoredRun:
        """The child run whose id begins with ``start``; see `one_by_id`."""
        return one_by_id(self.runs(), start)

    def find(self, experiment: str, identity: str) -> StoredRun | None:
        """The run of ``identity``, or None; a finished one before others, then the oldest."""
        if self._absent():
            return None
        with self._asking():
            experiment_id = self._experiment_id(experiment, create=False)
            if not experiment_id:
                return None
            run = self._standing(experiment_id, identity)
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
                to_stderr(f"run {run_id[:32]!r} is passed over: {first_problem(error)}")
            return None

    def _search(self, experiment_ids: list[str], where: str) -> list[Any]:
        """MLflow's runs of the experiments for which the filter ``where`` holds, oldest first."""
        if not experiment_ids:
            return []
        search, order = self._client.search_runs, ["attributes.start_time ASC"]
        return list(pages(search, experiment_ids, where, max_results=1000, order_by=order))

    def _ranked(self, experiment_id: str, identity: str) -> list[Any]:
        """The runs of ``identity``: finished ones before others, then the oldest first.

        Every process that asks gets the same order; the first is the one that stands. Runs that
        are odd do not count.
        """
        where = f"tags.identity = '{quotable(identity)}'"
        found = [r for r in self._search([experiment_id], where) if self._typed(r, "any")]
        return sorted(
            found, key=lambda r: (r.info.status != "FINISHED", r.info.start_time, r.info.run_id)
        )

    def _standing(self, experiment_id: str, identity: str) -> Any:
        return next(iter(self._ranked(experiment_id, identity)), None)

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
        """Relative paths of all files of a run, sorted.

        Links are passed over, and so is what begins with a dot: unfinished copies, and what a Mac
        leaves in every folder.
        """
        with self._asking():
            root = self._artifacts(run_id)
            if not self._own:
                return sorted(self._names(run_id))
            files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
        names = [file.relative_to(root) for file in files]
        return sorted(n.as_posix() for n in names if not any(part[0] == "." for part in n.parts))

    def _names(self, run_id: str, folder: str | None = None) -> Iterator[str]:
        for entry in self._client.list_artifacts(run_id, folder):
            if entry.is_dir:
                yield from self._names(run_id, entry.path)
            else:
                yield entry.path

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
                target.parent.mkdir(parents=True, exist_ok=True)
                with unfinished(target) as fresh:
                    shutil.copyfile(file, fresh)
                    os.replace(fresh, target)
            else:
                folder = target.parent.relative_to(root).as_posix()
                self._client.log_artifact(run_id, str(file), None if folder == "." else folder)

    # -- MLflow ----------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        """The MLflow client; makes the database first where it does not exist."""
        if self._client_or_none is None:
            if self._database and not self._database.exists():
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
            raise explain(error, str(self._database or self.shown_uri)) from error

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
            if create:
                had = found.tags if found else {}
                for key, text in experiment_tags(name).items():
                    if key not in had:
                        self._client.set_experiment_tag(self._experiments[name], key, text)
        return self._experiments[name]

    def _new_experiment(self, name: str) -> str:
        local = None if self._remote else (self.results / "artifacts" / name).as_uri()
        try:
            return self._client.create_experiment(name, artifact_location=local)
        except self._mlflow_error():  # another machine was quicker
            return self._client.get_experiment_by_name(name).experiment_id

    def _create(
        self, experiment_id: str, name: str, tags: dict[str, str], started: float | None
    ) -> Any:
        """Create a run; the one that stands if there are more of its identity.

        That is another one where two machines did so; ours is then taken back. So is its twin, of
        the same millisecond, which a server makes whose answer was lost and which was asked again.
        """
        moment = None if started is None else round(started * 1000)
        made = self._client.create_run(experiment_id, moment, tags, name)
        if self._database is None and started is None:  # no lock keeps two machines apart
            time.sleep(SETTLE)
        stands, *others = self._ranked(experiment_id, tags[IDENTITY])
        for run in others:
            if run.info.start_time == made.info.start_time:
                self._client.delete_run(run.info.run_id)
        return stands

    def _log_data(
        self, run_id: str, experiment: str, params: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Note what data a run is of, for MLflow's pages."""
        about = dataset_of(experiment, params, tags)
        if about:
            of = _mlflow().entities
            training = [of.InputTag("mlflow.data.context", "training")]
            self._client.log_inputs(run_id, [of.DatasetInput(of.Dataset(**about), training)])

    def _send(
        self,
        run_id: str,
        points: Sequence[Point] = (),
        params: Mapping[str, str] = {},
        tags: Mapping[str, str] = {},
    ) -> None:
        """Log to a run, in calls as large as MLflow takes."""
        of = _mlflow().entities
        finite = [p if math.isfinite(p.value) else p._replace(value=math.nan) for p in points]
        metrics = [of.Metric(p.key, p.value, p.timestamp, p.step) for p in finite]
        for kind, most, items in (
            ("params", 100, [of.Param(*param) for param in params.items()]),
            ("metrics", MAX_BATCH, metrics),
            ("tags", 100, [of.RunTag(*tag) for tag in tags.items()]),
        ):
            for start in range(0, len(items), most):
                self._client.log_batch(run_id, **{kind: items[start : start + most]})

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


def _make_database(path: Path) -> None:
    """Create an empty MLflow database aside and link it into place, whole or not at all."""
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


def quotable(text: str) -> str:
    """``text``, if it may stand between quotes in a filter.

    Raises:
        StoreError: characters that could end the quotes.
    """
    if not re.fullmatch(r"[\w.,: +-]+", text):
        raise StoreError(f"{text!r} cannot name a run: use letters, digits and . _ - only")
    return text


def pages(ask: Callable[..., Any], *given: Any, **more: Any) -> Iterator[Any]:
    """Whatever a client's search finds, page by page."""
    token = None
    while True:
        page = ask(*given, page_token=token, **more)
        yield from page
        if not (token := page.token):
            return


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
