"""Moves runs between stores as plain files, so that runs of several machines meet in one report.

    <out>/<experiment>/<run name>-<identity>/run.json  metrics.csv  artifacts/...

The same run gives the same bytes wherever it is exported, so an export kept in git changes only
where a run has changed. Runs are known by their identity: importing twice adds nothing. Scores of
an evaluation server, which a finished run may still get, are brought to where it is already.
"""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    StringConstraints,
    ValidationError,
    field_validator,
)

from lovasz_repro.errors import UserError
from lovasz_repro.store import Store, artifacts
from lovasz_repro.store.journal import Point
from lovasz_repro.store.server_scores import KINDS, Kind, put_scores
from lovasz_repro.store.shipping import to_stderr
from lovasz_repro.store.stored import HEARTBEAT, StoredRun, is_stale

MAX_ARTIFACT = 5_000_000  # bytes; larger files stay where they are
MAX_JSON = 4_000_000  # bytes of a run.json
HEADER = ["key", "step", "value", "timestamp"]
LEFT_OUT, ORIGIN, IMPORTED = "left_out", "origin_run_id", "imported"
NOT_EXPORTED = {"identity", HEARTBEAT, LEFT_OUT, ORIGIN, IMPORTED}

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=200)]


def _moment(text: str) -> str:
    _seconds(text)
    return text


Moment = Annotated[str, AfterValidator(_moment)]


class ParentFile(BaseModel):
    """The parent run as run.json names it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Name
    tags: dict[str, str]


class RunFile(BaseModel):
    """The content of run.json."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal[1]
    experiment: Name
    parent: ParentFile | None
    name: Name
    identity: Name
    origin_run_id: Name
    """Id in the store where the run was made."""
    status: Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
    started: Moment
    ended: Moment | None
    params: dict[str, str]
    tags: dict[str, str]
    left_out: list[str]
    """Artifacts that were too large to travel."""

    @field_validator("tags")
    @classmethod
    def _recorded_at_moments(cls, tags: dict[str, str]) -> dict[str, str]:
        for kind in KINDS:
            if kind.tag in tags:
                _moment(tags[kind.tag])
        return tags

    @property
    def title(self) -> str:
        """What the run is called in messages."""
        return f"{self.experiment}/{self.name}"


@dataclass
class ImportReport:
    """What an import did, run by run ("experiment/name")."""

    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    """Were here unfinished; the import knows more and took their place."""
    present: list[str] = field(default_factory=list)
    """Were here already; nothing changed."""
    scored: list[str] = field(default_factory=list)
    """Were here already, and got the scores of an evaluation server that were recorded since."""
    kept: list[str] = field(default_factory=list)
    """Train here at this moment; import again when they are done."""


def export_runs(
    store: Store,
    out: Path,
    experiment: str | None = None,
    run_ids: Sequence[str] | None = None,
    *,
    max_artifact: int = MAX_ARTIFACT,
    without: Sequence[str] = (),
    say: Callable[[str], None] = to_stderr,
) -> int:
    """Write runs as plain files below ``out``; returns how many.

    ``run_ids`` may be shortened as long as each means one run. Folders of runs exported before
    are replaced; others there are left alone. Files of more than ``max_artifact`` bytes, and files
    and metrics that match one of ``without`` ("examples/*", "train/*"), stay behind and are named
    in run.json; the large ones through ``say`` too.

    Raises:
        UserError: an id that is not that of one run in the store, or ``out`` cannot be written.
    """
    runs = store.runs(experiment)
    if run_ids is not None:
        runs = [_by_id(runs, run_id) for run_id in run_ids]
    # Of several runs with one identity the finished one counts, then the oldest.
    runs.sort(key=lambda run: (run.status != "FINISHED", run.started, run.run_id))
    unique = {(run.experiment, run.identity): run for run in reversed(runs)}
    for run in unique.values():
        _export(store, run, out, max_artifact, without, say)
    return len(unique)


def _by_id(runs: Sequence[StoredRun], start: str) -> StoredRun:
    """The one run whose id begins so."""
    found = [run for run in runs if start and run.run_id.startswith(start)]
    if len(found) != 1:
        count = "several runs begin with" if found else "no run"
        raise UserError(f"{count} {start!r} in this store; `lovasz-repro runs` lists them")
    return found[0]


def _export(
    store: Store,
    run: StoredRun,
    out: Path,
    max_artifact: int,
    without: Sequence[str],
    say: Callable[[str], None],
) -> None:
    """Write one run aside, then put it in place of its former export."""
    content = _describe(store, run)
    folder = out / run.experiment / f"{run.name}-{run.identity[:8]}"
    fresh = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        (fresh / "artifacts").mkdir(parents=True)
        left_out = set(content.left_out)
        for name in store.artifact_names(run.run_id):
            source, target = store.artifact(run.run_id, name), fresh / "artifacts" / name
            left_out.discard(name)
            if any(fnmatch(name, pattern) for pattern in without):
                left_out.add(name)
                continue
            if source.stat().st_size > max_artifact:
                say(f"{content.title}: {name} is larger than {max_artifact} bytes, left out")
                left_out.add(name)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        points = store.points(run.run_id)
        unwanted = {p.key for p in points if any(fnmatch(p.key, each) for each in without)}
        left_out |= unwanted
        content = content.model_copy(update={"left_out": sorted(left_out)})
        (fresh / "run.json").write_bytes(_to_json(content))
        (fresh / "metrics.csv").write_bytes(_to_csv([p for p in points if p.key not in unwanted]))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(fresh, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None


def _describe(store: Store, run: StoredRun) -> RunFile:
    parent = store.get(run.parent_id) if run.parent_id else None
    try:
        return RunFile(
            format=1,
            experiment=run.experiment,
            parent=ParentFile(name=parent.name, tags=_own_tags(parent)) if parent else None,
            name=run.name,
            identity=run.identity,
            origin_run_id=run.tags.get(ORIGIN, run.run_id),
            status=run.status,  # type: ignore[arg-type]
            started=_iso(run.started),
            ended=None if run.ended is None else _iso(run.ended),
            params=run.params,
            tags=_own_tags(run),
            left_out=json.loads(run.tags.get(LEFT_OUT, "[]")),
        )
    except ValidationError as error:
        raise UserError(f"run {run.run_id} cannot be exported: {_first(error)}") from None


def _own_tags(run: StoredRun) -> dict[str, str]:
    return {
        key: value
        for key, value in run.tags.items()
        if key not in NOT_EXPORTED and not key.startswith("mlflow.")
    }


def import_runs(store: Store, source: Path) -> ImportReport:
    """Bring the runs exported below ``source`` into ``store``.

    All files are checked before the first run is added. An import that was cut short is
    completed by the next one.

    Raises:
        UserError: no run.json below ``source``, or a file that is not as `export_runs` writes
            it, in one line.
    """
    folders = [Path(top) for top, _, files in os.walk(source) if "run.json" in files]
    folders = sorted(folder for folder in folders if not folder.name.startswith("."))
    if not folders:
        raise UserError(f"no exported runs below {source} (no run.json)")
    loaded = [(folder, _read_run(folder), _read_points(folder)) for folder in folders]
    report = ImportReport()
    for folder, content, points in loaded:
        here = store.find(content.experiment, content.identity)
        fate = _fate(store, content, points, here)
        getattr(report, fate).append(content.title)
        if fate in ("added", "updated"):
            if here is not None:
                store.remove(here.run_id)
            _import(store, folder, content, points)
        elif fate == "scored" and here is not None:
            _import_scores(store, folder, content, points, here)
    return report


def _fate(store: Store, content: RunFile, points: list[Point], here: StoredRun | None) -> str:
    """Which list of the report a run belongs in."""
    if here is None or here.tags.get(IMPORTED) == "incomplete":
        return "added"
    if here.status == "FINISHED" or here.run_id == content.origin_run_id:
        return "scored" if _newer_scores(here, content) else "present"
    if _same(here, content):
        known = _describe(store, here) == content and repr(store.points(here.run_id)) == repr(
            points
        )
        return "present" if known else "updated"
    if content.status != "FINISHED":
        return "present"
    return "kept" if here.status == "RUNNING" and not is_stale(here) else "updated"


def _same(here: StoredRun, content: RunFile) -> bool:
    return here.tags.get(ORIGIN) == content.origin_run_id


def _newer_scores(here: StoredRun, content: RunFile) -> list[Kind]:
    """The server's scores that were recorded later than those here, if it is the same run.

    Another run of the same identity has other weights, which the server has not seen.
    """
    same = content.origin_run_id in (here.run_id, here.tags.get(ORIGIN))
    if not same or here.status != "FINISHED":
        return []
    return [k for k in KINDS if content.tags.get(k.tag, "") > here.tags.get(k.tag, "")]


def _import_scores(
    store: Store, folder: Path, content: RunFile, points: list[Point], here: StoredRun
) -> None:
    """Add the server's scores, and nothing else, to a run that is here."""
    names = artifacts.names(folder / "artifacts")
    for kind in _newer_scores(here, content):
        for name in names:
            if name.startswith(f"{kind.folder}/"):
                store.add_artifact(here.run_id, folder / "artifacts" / name, kind.folder)
        scores = [point for point in points if point.key.startswith(kind.metrics)]
        put_scores(store, here, kind, scores, content.tags[kind.tag])


def _import(store: Store, folder: Path, content: RunFile, points: list[Point]) -> None:
    parent = content.parent
    parent_id = store.open_parent(content.experiment, parent.name, parent.tags) if parent else None
    marks = {ORIGIN: content.origin_run_id, LEFT_OUT: json.dumps(content.left_out)}
    run_id = store.open_child(
        content.experiment,
        parent_id,
        content.name,
        content.identity,
        content.params,
        {**content.tags, **marks, IMPORTED: "incomplete"},
        started=_seconds(content.started),
    )
    store.log(run_id, points)
    for name in artifacts.names(folder / "artifacts"):
        relative = artifacts.inside(name)
        store.add_artifact(run_id, folder / "artifacts" / name, str(relative.parent))
    if content.status != "RUNNING":
        ended = _seconds(content.ended) if content.ended else None
        store.close(run_id, content.status, ended)
    store.set_tags(run_id, {IMPORTED: "complete"})


def _read_run(folder: Path) -> RunFile:
    path = folder / "run.json"
    links = [p for p in folder.rglob("*") if p.is_symlink()]
    if links:
        raise UserError(f"{links[0]} is a link; an exported run holds plain files only")
    try:
        if path.stat().st_size > MAX_JSON:
            raise UserError(f"{path} is too large for a run.json")
        return RunFile.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is not an exported run: {_first(error)}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _read_points(folder: Path) -> list[Point]:
    path = folder / "metrics.csv"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file, strict=True)
            try:
                if next(rows, None) != HEADER:
                    raise ValueError("expected " + ",".join(HEADER))
                return [Point(key, float(v), int(step), int(time)) for key, step, v, time in rows]
            except (ValueError, csv.Error) as error:
                place = f"{path}, line {max(rows.line_num, 1)}"
                raise UserError(f"{place}: not an exported metrics file ({error})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def _to_json(content: RunFile) -> bytes:
    text = json.dumps(content.model_dump(), sort_keys=True, indent=2, ensure_ascii=False)
    return text.encode() + b"\n"


def _to_csv(points: list[Point]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([p.key, p.step, repr(p.value), p.timestamp] for p in points)
    return text.getvalue().encode()


def _iso(seconds: float) -> str:
    """Epoch seconds as UTC with milliseconds, "2026-11-23T07:45:12.123Z"."""
    milliseconds = round(seconds * 1000)
    day = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{day:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def _seconds(moment: str) -> float:
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
