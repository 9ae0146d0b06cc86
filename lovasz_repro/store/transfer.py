"""Moves runs between stores as plain files, so that runs of several machines meet in one report.

    <out>/<experiment>/<run name>-<identity>/run.json  metrics.csv  artifacts/...

The same run gives the same bytes wherever it is exported, so an export kept in git changes only
where a run has changed. Runs are known by their identity: importing twice adds nothing. Scores of
an evaluation server, which a finished run may still get, are brought to where it is already.

The files may come from anybody. All of them are checked before anything of them is used.
"""

import csv
import io
import json
import math
import os
import posixpath
import re
import shutil
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    ValidationError,
    field_validator,
)

from lovasz_repro.config.read import Name, Relative, as_name, below
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import read_text, unfinished
from lovasz_repro.host.output import to_stderr
from lovasz_repro.host.progress import Progress
from lovasz_repro.store import Store
from lovasz_repro.store.journal import Point
from lovasz_repro.store.server_scores import KINDS, Kind, put_scores
from lovasz_repro.store.stored import (
    FAR,
    GROUP,
    GROUP_TAGS,
    HEARTBEAT,
    IDENTITY,
    IMPORTED,
    KNOWN_PARAMS,
    KNOWN_TAGS,
    LARGEST,
    LEFT_OUT,
    ORIGIN,
    ROLE,
    RUN_NAME,
    Moment,
    Status,
    StoredRun,
    Title,
    check_metric,
    first_problem,
    is_stale,
    iso,
    one_by_id,
    seconds_of,
)

# -- the files of a run ----------------------------------------------------------------------------

RUN, METRICS, ARTIFACTS = "run.json", "metrics.csv", "artifacts"
MAX_ARTIFACT = 5_000_000  # bytes; larger files stay where they are
MOST_JSON = 4_000_000  # bytes of a run.json
MOST_CSV = 100_000_000  # bytes of a metrics.csv, of two million points
MOST_STEP = 10**12
HEADER = ["key", "step", "value", "timestamp"]
OURS = {IDENTITY, HEARTBEAT, LEFT_OUT, ORIGIN, IMPORTED, RUN_NAME, GROUP, GROUP_TAGS}
"""Tags that each store sets by itself, as MLflow does ``mlflow.*``."""


def is_ours(tag: str) -> bool:
    """Whether a tag is of the store that a run is in, and does not travel."""
    return tag in OURS or tag.startswith("mlflow.")


def _key(text: str) -> str:
    if not re.fullmatch(r"\w[\w .:/-]{0,249}", text) or posixpath.normpath(text) != text:
        raise ValueError("not the name of a value")
    return text


def _value(text: str) -> str:
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text):
        raise ValueError("holds control characters")
    return text


def _not_ours(tags: dict[str, str]) -> dict[str, str]:
    for tag in tags:
        if is_ours(tag):
            raise ValueError(f"{tag} is set by the store alone")
    return tags


Key = Annotated[str, AfterValidator(_key)]
Value = Annotated[str, Field(max_length=6000), AfterValidator(_value)]  # as MLflow's parameters
TagValue = Annotated[str, Field(max_length=8000), AfterValidator(_value)]
Tags = Annotated[dict[Key, TagValue], AfterValidator(_not_ours), KNOWN_TAGS]


class ParentFile(BaseModel):
    """What a run belongs to, as run.json names it; once a run without numbers of its own."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,: +-]{0,199}$")]
    tags: Tags

    @field_validator("tags")
    @classmethod
    def _a_parent(cls, tags: dict[str, str]) -> dict[str, str]:
        if tags.get(ROLE, "parent") != "parent":
            raise ValueError(f"{ROLE} is set by the store alone")
        return tags


class RunFile(BaseModel):
    """The content of run.json."""

    model_config = ConfigDict(extra="forbid", strict=True)
    format: Literal[1]
    experiment: Name
    parent: ParentFile | None
    name: Title
    identity: Name
    origin_run_id: Name
    """Id in the store where the run was made."""
    status: Status
    started: Moment
    ended: Moment | None
    params: Annotated[dict[Key, Value], KNOWN_PARAMS]
    tags: Tags
    left_out: list[Value]
    """Artifacts that were too large to travel, and metrics that were not wanted."""
    points: NonNegativeInt | None = None
    """Rows of metrics.csv; earlier versions did not count them."""
    files: dict[Relative, NonNegativeInt] | None = None
    """Bytes of each artifact."""

    @field_validator("tags")
    @classmethod
    def _no_parent(cls, tags: dict[str, str]) -> dict[str, str]:
        if ROLE in tags:
            raise ValueError(f"{ROLE} is set by the store alone")
        return tags

    @property
    def title(self) -> str:
        """What the run is called in messages."""
        return f"{self.experiment}/{self.name}"


class Exported:
    """The folder of one exported run, read and found whole.

    Raises:
        UserError: it is not as `runs export` writes it, in one line.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        sizes = _plain_files(folder)
        self.run = _read_run(folder / RUN)
        self.points = _read_points(folder / METRICS)
        prefix = f"{ARTIFACTS}/"
        there = {n.removeprefix(prefix): s for n, s in sizes.items() if n.startswith(prefix)}
        self.files = {name: folder / ARTIFACTS / name for name in self.run.files or there}
        """Artifacts by relative path."""
        if self.run.points not in (None, len(self.points)):
            raise UserError(f"{folder / METRICS} has {len(self.points)} of the {self.run.points} "
                            "values that its run.json counts; copy the export again")  # fmt: skip
        for name, size in (self.run.files or {}).items():
            if there.get(name) != size:
                has = there.get(name, "none")
                raise UserError(f"{self.files[name]} has {has} of the {size} bytes that its "
                                "run.json counts; copy the export again")  # fmt: skip


def _plain_files(folder: Path) -> dict[str, int]:
    """Size of every file by relative path, but of those that begin with a dot."""
    sizes: dict[str, int] = {}
    try:
        for top, folders, names in os.walk(folder, onerror=_raise):
            folders[:] = [name for name in folders if name[0] != "."]
            for path in (Path(top, name) for name in [*folders, *names] if name[0] != "."):
                status = path.lstat()
                if stat.S_ISLNK(status.st_mode):
                    raise UserError(f"{path} is a link; an exported run holds plain files only")
                if stat.S_ISREG(status.st_mode):
                    sizes[path.relative_to(folder).as_posix()] = status.st_size
                elif not stat.S_ISDIR(status.st_mode):
                    raise UserError(f"{path} is no plain file; an exported run holds nothing else")
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from None
    return sizes


def _raise(error: OSError) -> None:
    raise error


def _read_run(path: Path) -> RunFile:
    try:
        return RunFile.model_validate_json(read_text(path, MOST_JSON))
    except ValidationError as error:
        raise UserError(f"{path} is not an exported run: {first_problem(error)}") from None


def _read_points(path: Path) -> list[Point]:
    text = read_text(path, MOST_CSV)
    if text and not text.endswith("\n"):
        raise UserError(f"{path} is cut off in its last line; copy the export again")
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        if next(rows, None) != HEADER:
            raise ValueError("expected " + ",".join(HEADER))
        return [_point(row) for row in rows]
    except (ValueError, csv.Error) as error:
        place = f"{path}, line {max(rows.line_num, 1)}"
        told = repr(str(error))[1:-1][:200]
        raise UserError(f"{place}: not an exported metrics file ({told})") from None


def _point(row: Sequence[str]) -> Point:
    key, step, value, moment = row
    point = Point(_key(key), float(value), int(step), int(moment))
    if not (math.isnan(point.value) or abs(point.value) <= LARGEST):
        raise ValueError(f"{value[:40]} is too large for a value")
    check_metric(key, point.value)
    if not (0 <= point.step <= MOST_STEP and 0 <= point.timestamp < 1000 * FAR):
        raise ValueError(f"step {step[:40]}, timestamp {moment[:40]}")
    return point


def to_json(content: RunFile) -> bytes:
    """The bytes of run.json."""
    text = json.dumps(content.model_dump(), sort_keys=True, indent=2, ensure_ascii=False)
    return text.encode() + b"\n"


def to_csv(points: Sequence[Point]) -> bytes:
    """The bytes of metrics.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([p.key, p.step, repr(p.value), p.timestamp] for p in points)
    return text.getvalue().encode()


# -- export ----------------------------------------------------------------------------------------


def export_runs(
    store: Store,
    out: Path,
    experiment: str | None = None,
    run_ids: Sequence[str] | None = None,
    *,
    max_artifact: int = MAX_ARTIFACT,
    without: Sequence[str] = (),
) -> int:
    """Write runs as plain files below ``out``; returns how many.

    ``run_ids`` may be shortened as long as each means one run. Folders of runs exported before
    are replaced; others there are left alone. Files of more than ``max_artifact`` bytes, and files
    and metrics that match one of ``without`` ("examples/*", "train/*"), stay behind and are named
    in run.json; the large ones on stderr too.

    Raises:
        UserError: an id that is not that of one run in the store, or ``out`` cannot be written.
    """
    runs = store.runs(experiment)
    if run_ids is not None:
        runs = [one_by_id(runs, run_id) for run_id in run_ids]
    unique = _standing(runs).values()
    return sum(_export(store, run, out, max_artifact, without) for run in unique)


def _export(
    store: Store, run: StoredRun, out: Path, max_artifact: int, without: Sequence[str]
) -> bool:
    """Write one run aside, then put it in place of its former export; False if it cannot be."""
    points = store.points(run.run_id)
    unwanted = {p.key for p in points if any(fnmatch(p.key, each) for each in without)}
    points = [p for p in points if p.key not in unwanted]
    try:
        content = _describe(run, points)
    except ValidationError as error:
        to_stderr(f"run {run.run_id} is left out: {first_problem(error)}")
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
                elif (size := source.stat().st_size) > max_artifact:
                    to_stderr(f"{content.title}: {name} is larger than {max_artifact} bytes, left "
                              f"out; --max-artifact {size} takes it along")  # fmt: skip
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
        return _read_run(folder / RUN).identity == content.identity
    except UserError:
        return False


def _describe(run: StoredRun, points: Sequence[Point]) -> RunFile:
    """What run.json says of a run, but for its files; raises ValidationError if it cannot."""
    tags = json.loads(run.tags.get(GROUP_TAGS, "{}"))
    parent = ParentFile(name=run.group, tags=tags) if run.group else None
    return RunFile(
        format=1,
        experiment=run.experiment,
        parent=parent,
        name=run.name,
        identity=run.identity,
        origin_run_id=run.tags.get(ORIGIN, run.run_id),
        status=run.status,
        started=iso(run.started),
        ended=None if run.ended is None else iso(run.ended),
        params=run.params,
        tags={key: value for key, value in run.tags.items() if not is_ours(key)},
        left_out=json.loads(run.tags.get(LEFT_OUT, "[]")),
        points=len(points),
    )


# -- import ----------------------------------------------------------------------------------------


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
    for folder in bar.over(folders) if bar else folders:
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
    return _describe(here, points) == described and repr(points) == repr(export.points)


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
