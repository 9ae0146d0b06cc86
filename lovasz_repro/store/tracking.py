"""Which MLflow store is meant, and whether it can be used: checked before MLflow is asked.

MLflow's own answers to a dead server, a locked or a broken database take minutes and pages; here
each is one line. Nothing in this file imports MLflow.
"""

import contextlib
import os
import re
import sqlite3
from pathlib import Path

import requests

from lovasz_repro.errors import UserError
from lovasz_repro.host.download import innermost

HEALTH_TIMEOUT = 10.0  # seconds; one that many processes log to may be busy for some
LOCK_TIMEOUT = 10.0  # seconds to wait for another process to finish its write


class StoreError(UserError):
    """The store is absent, locked, read-only, broken or not reachable."""


def choose_uri(results: Path, tracking_uri: str | None) -> str:
    """The store to use: the argument, else MLFLOW_TRACKING_URI, else results/mlflow.db.

    Raises:
        StoreError: a folder or ``file:`` URI (MLflow has given up that store), or a path that
            an SQLite URI cannot hold.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        if re.search("[%?]", str(results)):
            raise StoreError(f"{results}: a results folder may not have % or ? in its path")
        return f"sqlite:///{results.as_posix()}/mlflow.db"
    if uri.startswith("file:") or ("://" not in uri and not uri.startswith("databricks")):
        raise StoreError(
            f"tracking URI {uri} is a folder, which MLflow no longer writes to; use"
            " sqlite:///PATH/mlflow.db or http://HOST:PORT"
        )
    return uri


def database_of(uri: str) -> Path | None:
    """The database file of a plain SQLite URI, else None."""
    path = uri.removeprefix("sqlite:///")
    return Path(path).absolute() if path != uri and not re.search("[?:]", path[2:]) else None


def without_password(uri: str) -> str:
    """An address that may be shown."""
    return re.sub("(?<=://)[^/@]*@", "***@", uri)


def check_server(uri: str) -> None:
    """Raise StoreError unless an MLflow server answers GET /health within 10 seconds."""
    health = uri.rstrip("/") + "/health"
    try:
        with requests.get(health, timeout=HEALTH_TIMEOUT, stream=True) as answer:
            code = answer.status_code
        if answer.ok or code in (401, 403):  # MLflow itself has the credentials
            return
        problem = f"answers HTTP {code} on /health: not an MLflow server, or one in trouble"
    except (OSError, ValueError) as error:
        problem = f"does not answer ({innermost(error)})"
    raise StoreError(
        f"MLflow server {without_password(uri)} {problem}; start it, or unset MLFLOW_TRACKING_URI"
        " to use a file"
    )


def check_database(path: Path) -> None:
    """Raise StoreError where an SQLite store is locked, unreadable, or no store of MLflow's."""
    try:
        uri = path.absolute().as_uri() + "?mode=rw"  # rw rolls back what a killed writer left
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT)) as database:
            database.execute("SELECT version_num FROM alembic_version").fetchone()
    except sqlite3.Error as error:
        raise explain(error, f"{path}") from None


def explain(error: BaseException, where: str) -> StoreError:
    """One line for an error of SQLite, SQLAlchemy, MLflow, the network or the file system."""
    text = str(error)
    for sign, meaning in _MEANINGS:
        if re.search(sign, text, re.IGNORECASE):
            return StoreError(f"store {where}: {meaning}")
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return StoreError(f"store {where}: {first}")


_MEANINGS = [
    ("database is locked", "locked by another process; wait for it, or stop it, and run again"),
    (
        "readonly database|read-only|Permission denied",
        "cannot be written; check the rights of the file and folder",
    ),
    (
        "not a database|malformed|disk image",
        "damaged; restore a copy, or move it away and bring runs back with `runs import`",
    ),
    ("unable to open", "cannot be opened; check that the path exists and its rights"),
    ("disk is full|disk I/O error|No space left", "the disk is full or failing; make room"),
    ("no such table", "is not an MLflow store; move it away or give another --tracking-uri"),
    (
        "out-of-date database schema|Can't locate revision",
        "made by another MLflow version; copy it, then run `mlflow db upgrade URI`",
    ),
    ("too many .* error responses", "the server answers with errors; see its log"),
    (
        "Max retries exceeded|Connection (refused|aborted|broken|reset)|timed out|Failed to est",
        "the server does not answer; start it and run again",
    ),
]
