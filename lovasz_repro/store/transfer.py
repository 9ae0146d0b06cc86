"""Moves runs between stores as plain files, so that runs of several machines meet in one report.

    <out>/<experiment>/<run name>-<identity>/run.json  metrics.csv  artifacts/...

The same run gives the same bytes wherever it is exported, so an export kept in git changes only
where a run has changed. Runs are known by their identity: importing twice adds nothing. Scores of
an evaluation server, which a finished run may still get, are brought to where it is already.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from pydantic import ValidationError

from lovasz_repro.config.names import as_name, below
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import read_text, unfinished
from lovasz_repro.host.output import to_stderr
from lovasz_repro.host.progress import Progress
from lovasz_repro.store import Store
from lovasz_repro.store.exported import (
    ARTIFACTS,
    METRICS,
    MOST_JSON,
    RUN,
    Exported,
    ParentFile,
    RunFile,
    is_ours,
    to_csv,
    to_json,
)
from lovasz_repro.store.journal import Point
from lovasz_repro.store.server_scores import KINDS, Kind, put_scores
from lovasz_repro.store.stored import (
    GROUP_TAGS,
    IDENTITY,
    IMPORTED,
    LEFT_OUT,
    ORIGIN,
    PARENT,
    StoredRun,
    first_problem,
    is_stale,
    iso,
    one_by_id,
    seconds_of,
)

MAX_ARTIFACT = 5_000_000  # bytes; larger files stay where they are


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
        runs = [one_by_id(runs, run_id) for run_id in run_ids]
    unique = _standing(runs).values()
    return sum(_export(store, run, out, max_artifact, without, say) for run in unique)


def _export(
    store: Store,
    run: StoredRun,
    out: Path,
    max_artifact: int,
    without: Sequence[str],
    say: Callable[[str], None],
) -> bool:
    """Write one run aside, then put it in place of its former export; False if it cannot be."""
    points = store.points(run.run_id)
    unwanted = {p.key for p in points if any(fnmatch(p.key, each) for each in without)}
    points = [p for p in points if p.key not in unwanted]
    try:
        content = _describe(store, run, points)
    except ValidationError as error:
        say(f"run {run.run_id} is left out: {first_problem(error)}")
        return False
    home = out / content.experiment
    folder = home / f"{as_name(content.name)}-{content.identity[:8]}"
    sizes, left = {}, set[str]()
    try:
        with unfinished(folder) as fresh:
            (fresh / ARTIFACTS).mkdir(parents=True)
            for name in store.artifact_names(run.run_id):
                source = store.artifact(run.run_id, name)
                if any(fnmatch(name, pattern) for pattern in without):
                    left.add(name)
                elif source.stat().st_size > max_artifact:
                    say(f"{content.title}: {name} is larger than {max_artifact} bytes, left out")
                    left.add(name)
                else:
                    copy = below(fresh / ARTIFACTS, name)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source, copy)
                    sizes[name] = copy.stat().st_size
            left_out = sorted((set(content.left_out) - set(sizes)) | unwanted | left)
            content = content.model_copy(update={"left_out": left_out, "files": sizes})
            (fresh / RUN).write_bytes(to_json(content))
            (fresh / METRICS).write_bytes(to_csv(points))
            olds = [*home.glob(f"*-{content.identity[:8]}")]  # of a run since renamed, too
            with unfinished(folder) as former:  # which takes long to remove
                former.mkdir()
                for old in olds:
                    if old == folder or _is_of(old, content):
                        os.replace(old, former / old.name)
                os.replace(fresh, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    return True


def _is_of(folder: Path, content: RunFile) -> bool:
    """Whether a folder is a former export of this run."""
    try:
        former = RunFile.model_validate_json(read_text(folder / RUN, MOST_JSON))
    except (UserError, ValidationError):
        return False
    return former.identity == content.identity


def _describe(store: Store, run: StoredRun, points: Sequence[Point]) -> RunFile:
    """What run.json says of a run, but for its files; raises ValidationError if it cannot."""
    return RunFile(
        format=1,
        experiment=run.experiment,
        parent=_parent(store, run),
        name=run.name,
        identity=run.identity,
        origin_run_id=run.tags.get(ORIGIN, run.run_id),
        status=run.status,
        started=iso(run.started),
        ended=None if run.ended is None else iso(run.ended),
        params=run.params,
        tags=_own_tags(run),
        left_out=json.loads(run.tags.get(LEFT_OUT, "[]")),
        points=len(points),
    )


def _parent(store: Store, run: StoredRun) -> ParentFile | None:
    if run.group:
        return ParentFile(name=run.group, tags=json.loads(run.tags.get(GROUP_TAGS, "{}")))
    parent = store.get(run.tags[PARENT]) if PARENT in run.tags else None
    return ParentFile(name=parent.name, tags=_own_tags(parent)) if parent else None


def _own_tags(run: StoredRun) -> dict[str, str]:
    return {key: value for key, value in run.tags.items() if not is_ours(key)}


def import_runs(store: Store, source: Path, progress: Progress | None = None) -> ImportReport:
    """Bring the runs exported below ``source`` into ``store``.

    All files are checked before the first run is added, and each run is added whole or not at
    all. An import that was cut short is completed by the next one.

    Raises:
        UserError: no run.json below ``source``, or a file that is not as `export_runs` writes
            it, in one line.
    """
    folders = [Path(top) for top, _, files in os.walk(source) if RUN in files]
    folders = sorted(folder for folder in folders if not folder.name.startswith("."))
    if not folders:
        raise UserError(f"no exported runs below {source} (no {RUN})")
    for folder in folders:
        Exported(folder)
    here, report = _standing(store.runs()), ImportReport()
    bar = progress.task("importing runs", len(folders)) if progress else None
    for folder in folders:
        export = Exported(folder)
        key = export.run.experiment, export.run.identity
        stands = here.get(key)
        fate = _fate(store, export, stands)
        if fate in ("added", "updated"):
            made = store.bring_in(
                _to_store(export.run),
                export.points,
                export.files,
                stands.run_id if stands else None,
            )
            here[key] = store.find(*key) or here[key]
            fate = fate if made else "present"
        elif fate == "scored" and stands:
            _import_scores(store, export, stands)
        getattr(report, fate).append(export.run.title)
        if bar:
            bar.advance()
    return report


def _standing(runs: Iterable[StoredRun]) -> dict[tuple[str, str], StoredRun]:
    """The run that counts of each experiment and identity: a finished one, then the oldest."""
    ranked = sorted(runs, key=lambda run: (run.status != "FINISHED", run.started, run.run_id))
    return {(run.experiment, run.identity): run for run in reversed(ranked)}


def _fate(store: Store, export: Exported, here: StoredRun | None) -> str:
    """Which list of the report a run belongs in."""
    content = export.run
    if here is None or here.tags.get(IMPORTED) == "incomplete":
        return "added"
    if here.status == "FINISHED" or here.run_id == content.origin_run_id:
        return "scored" if _newer_scores(here, content) else "present"
    if here.tags.get(ORIGIN) == content.origin_run_id:
        return "present" if _known(store, export, here) else "updated"
    if content.status != "FINISHED":
        return "present"
    return "kept" if here.status == "RUNNING" and not is_stale(here) else "updated"


def _known(store: Store, export: Exported, here: StoredRun) -> bool:
    """Whether a run says nothing that is not here."""
    points = store.points(here.run_id)
    described = export.run.model_copy(update={"files": None, "points": len(export.points)})
    return _describe(store, here, points) == described and repr(points) == repr(export.points)


def _newer_scores(here: StoredRun, content: RunFile) -> list[Kind]:
    """The server's scores that were recorded later than those here, if it is the same run.

    Another run of the same identity has other weights, which the server has not seen.
    """
    same = content.origin_run_id in (here.run_id, here.tags.get(ORIGIN))
    if not same or here.status != "FINISHED":
        return []
    return [k for k in KINDS if content.tags.get(k.tag, "") > here.tags.get(k.tag, "")]


def _import_scores(store: Store, export: Exported, here: StoredRun) -> None:
    """Add the server's scores, and nothing else, to a run that is here."""
    for kind in _newer_scores(here, export.run):
        for name, file in export.files.items():
            if name.startswith(f"{kind.folder}/"):
                store.add_artifact(here.run_id, file, kind.folder)
        scores = [point for point in export.points if point.key.startswith(kind.metrics)]
        put_scores(store, here, kind, scores, export.run.tags[kind.tag])


def _to_store(content: RunFile) -> StoredRun:
    """The run as the store is to have it."""
    marks = {IDENTITY: content.identity, ORIGIN: content.origin_run_id}
    if content.parent:
        marks[GROUP_TAGS] = json.dumps(content.parent.tags, sort_keys=True)
    return StoredRun(
        run_id=content.origin_run_id,
        experiment=content.experiment,
        name=content.name,
        status=content.status,
        group=content.parent.name if content.parent else None,
        started=seconds_of(content.started),
        ended=seconds_of(content.ended) if content.ended else None,
        params=content.params,
        tags=content.tags | marks | {LEFT_OUT: json.dumps(content.left_out)},
        metrics={},
    )
