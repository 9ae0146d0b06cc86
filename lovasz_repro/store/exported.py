"""One run as plain files, and whether they are what `runs export` writes.

    run.json  metrics.csv  artifacts/...

The files may come from anybody. All of them are checked before anything of them is used.
"""

import csv
import io
import json
import math
import os
import posixpath
import re
import stat
from collections.abc import Sequence
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

from lovasz_repro.config.names import Name, Relative
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import read_text
from lovasz_repro.store.journal import Point
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
    Title,
    check_metric,
    first_problem,
)

RUN, METRICS, ARTIFACTS = "run.json", "metrics.csv", "artifacts"
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
