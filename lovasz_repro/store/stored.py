"""What the store tells of one run, typed here once for every reader.

A store may hold runs of older versions, of other tools and of exports that a stranger made: a run
whose values are not what the reports take them for is no `StoredRun`, and is passed over.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from lovasz_repro.config.read import Name, check_name, check_relative, read_yaml
from lovasz_repro.config.schema import experiment_file, experiment_names
from lovasz_repro.errors import UserError

HEARTBEAT = "heartbeat"  # tag: epoch seconds at which the training process was last alive
STALE_AFTER = 180.0  # seconds without a heartbeat; the shipper renews it every 30
ROLE, IDENTITY = "role", "identity"
RUN_NAME = "run_name"  # without what MLflow's list of runs adds
GROUP, GROUP_TAGS = "group", "group_tags"  # what a run belongs to, and what an export says of that
LEFT_OUT, ORIGIN, IMPORTED = "left_out", "origin_run_id", "imported"
SHORTEST_ID = 6  # characters of a run id that a person has to give
LARGEST = 1e100  # of a metric: its square and its sums are finite too
FAR = 32503680000  # epoch seconds of the year 3000
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def iso(seconds: float) -> str:
    """Epoch seconds as UTC with milliseconds, "2026-11-23T07:45:12.123Z"."""
    milliseconds = round(seconds * 1000)
    day = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return f"{day:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"


def seconds_of(moment: str) -> float:
    """Epoch seconds of what `iso` wrote; raises ValueError where it did not."""
    if not re.fullmatch(r"(19[7-9]\d|2\d{3})(-\d\d){2}T\d\d(:\d\d){2}\.\d{3}Z", moment, re.ASCII):
        raise ValueError("not a moment like 2026-11-23T07:45:12.123Z")
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC).timestamp()


def _json_of(kind: Any, what: str) -> Callable[[str], None]:
    json = TypeAdapter(kind)

    def check(text: str) -> None:
        try:
            json.validate_json(text)
        except ValidationError:
            raise ValueError(f"not {what}") from None

    return check


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds characters that cannot be printed")
    return text


def _matches(pattern: str, what: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"not {what}")

    return check


_WHOLE = _matches("[0-9]{1,9}", "a whole number")
_PARAMS = {
    "training.batch_size": _WHOLE,
    "training.iterations": _WHOLE,
    "seeds": _WHOLE,
    "data.size": _matches(r"[\[(][0-9]{1,6}, ?[0-9]{1,6}[\])]", "height and width"),
    "data.folder": check_relative,
}
_TAGS = {
    "seed": _matches("[0-9]{1,10}(-[0-9]{1,10})?", "a seed"),
    "ranks": _WHOLE,
    "variant": check_name,
    "profile": check_name,
    "scale": check_name,
    "device": _printable,
    "git_commit": _printable,
    "config_hash": _printable,
    "data_fingerprint": _printable,
    HEARTBEAT: _matches("[0-9]{1,11}([.][0-9]{1,9})?", "epoch seconds"),
    ORIGIN: check_name,
    LEFT_OUT: _json_of(list[str], "a JSON list of text"),
    GROUP_TAGS: _json_of(dict[str, str], "a JSON object of text"),
    "server/recorded": seconds_of,
    "initial/server/recorded": seconds_of,
}


def _known(checks: Mapping[str, Callable[[str], object]]) -> AfterValidator:
    """Holds the values that the tool reads to what it takes them for; others are text."""

    def check(values: dict[str, str]) -> dict[str, str]:
        for key in checks.keys() & values.keys():
            try:
                checks[key](values[key])
            except ValueError as error:
                raise ValueError(f"{key} {values[key][:40]!r}: {error}") from None
        return values

    return AfterValidator(check)


def check_metric(key: str, value: float) -> None:
    """Raises ValueError where a metric that the tool reads as a whole number is none."""
    if key == "best/iteration" and not (0 <= value < 1e9 and value == int(value)):
        raise ValueError(f"{key} {value}: not a whole number")


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    for key, value in metrics.items():
        check_metric(key, value)
    return {key: number(value) for key, value in metrics.items()}


def number(value: float) -> float:
    """A value of a metric; NaN for what is infinite or nearly so, as MLflow's databases have it."""
    return value if abs(value) <= LARGEST else math.nan


Moment = Annotated[str, AfterValidator(lambda text: iso(seconds_of(text)))]
Title = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(_printable)]
KNOWN_PARAMS, KNOWN_TAGS = _known(_PARAMS), _known(_TAGS)


@dataclass(frozen=True)
class StoredRun:
    """One run as the store knows it; times in seconds since the epoch, scores in [0, 1].

    Raises:
        ValidationError: a value is not what it is taken for.
    """

    run_id: Name
    experiment: Name
    name: Title
    status: Status
    group: str | None
    """What it belongs to: a profile of its experiment."""
    started: Annotated[float, Field(ge=0, lt=FAR)]
    ended: Annotated[float, Field(ge=0, lt=FAR)] | None
    """None while RUNNING."""
    params: Annotated[dict[str, str], KNOWN_PARAMS]
    tags: Annotated[dict[str, str], KNOWN_TAGS]
    metrics: Annotated[dict[str, float], AfterValidator(_numbers)]
    """The value at the last step of each metric."""

    @property
    def identity(self) -> str:
        """Hash of the resolved config and the data fingerprint."""
        return self.tags.get(IDENTITY, "")


def from_mlflow(run: Any, experiment: str) -> StoredRun:
    """A ``StoredRun`` from MLflow's ``Run``; raises ValidationError where it is none."""
    info, running = run.info, run.info.status == "RUNNING"
    tags, name = run.data.tags, run.data.tags.get(RUN_NAME, "")
    renamed = info.run_name != title_in_list(name, tags)  # in MLflow's pages, or made before
    return StoredRun(
        run_id=info.run_id,
        experiment=experiment,
        name=info.run_name if renamed else name,
        status=info.status,
        group=tags.get(GROUP),
        started=(info.start_time or 0) / 1000,
        ended=None if running or info.end_time is None else info.end_time / 1000,
        params=dict(run.data.params),
        tags=dict(tags),
        metrics=dict(run.data.metrics),
    )


def one_by_id(runs: Iterable[StoredRun], start: str) -> StoredRun:
    """The run whose id begins with ``start``, here or where it was made.

    Raises:
        UserError: fewer than 6 characters, no such run, or several.
    """
    if len(start) < SHORTEST_ID:
        raise UserError(f"run {start!r}: give at least {SHORTEST_ID} characters of its id")
    found = [
        run
        for run in runs
        if run.run_id.startswith(start) or run.tags.get(ORIGIN, "").startswith(start)
    ]
    if len(found) != 1:
        count = f"{len(found)} runs begin with" if found else "no run"
        raise UserError(f"{count} {start!r} in this store; `lovasz-repro runs` lists them")
    return found[0]


def first_problem(error: ValidationError) -> str:
    """What is wrong, in one line: where, and why."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    return repr(f"{place[:80]}: {text}" if place else text)[1:-1][:300]


def is_stale(run: StoredRun, now: float | None = None) -> bool:
    """Whether a RUNNING run has no living process: no heartbeat for three minutes.

    SIGKILL and power loss leave a run RUNNING for ever; ``now`` is in epoch seconds.
    """
    if run.status != "RUNNING":
        return False
    beat = float(run.tags.get(HEARTBEAT, 0))
    return (now or time.time()) - max(beat, run.started) > STALE_AFTER


def shown_status(run: StoredRun, now: float | None = None) -> str:
    """The status for people: MLflow's, but STALE for a run whose process is gone, and STOPPED for
    one that a signal ended, which goes on."""
    words = {"KILLED": "STOPPED"}
    return "STALE" if is_stale(run, now) else words.get(run.status, run.status)


# ---- How MLflow's own pages show experiments and runs --------------------------------------------
#
# Beside their numbers. Descriptions say what is to be seen, where it stands in the paper, and how
# it was run; the list of runs has the command and the data in columns. None of it travels with an
# export: each store makes its own of what a run says of itself.

PAPER = "https://arxiv.org/abs/1705.08790"
DESCRIPTION = "mlflow.note.content"
OPENS_ON_RUNS = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment; where MLflow has a switch for it ("Model training"), that decides."""
LONGEST_DIGEST = 36  # characters that MLflow takes


@cache
def _about(experiment: str) -> Mapping[str, Any]:
    """What an experiment that comes with the tool says of itself."""
    known = experiment in experiment_names()
    return read_yaml(experiment_file(experiment)) if known else {}


def experiment_tags(experiment: str) -> dict[str, str]:
    """Tags of an experiment: its description, and that it is of training runs."""
    about = _about(experiment)
    if not about:
        return dict(OPENS_ON_RUNS)
    note = [
        f"**{about['title']}** ({about['section']}; [the paper]({PAPER}))",
        str(about["claim"]).strip(),
        f"What it takes: {str(about['cost']).strip()}",
        f"`lovasz-repro run {experiment} --dry-run` says what runs and what it needs; "
        "`lovasz-repro report` makes tables, figures and claims of these runs.",
    ]
    return OPENS_ON_RUNS | {DESCRIPTION: "\n\n".join(note)}


def title_in_list(name: str, tags: Mapping[str, str]) -> str:
    """The name of a run among those of all profiles."""
    return f"{name} {tags.get('profile', '')}".strip()


def run_tags(experiment: str, tags: Mapping[str, str]) -> dict[str, str]:
    """MLflow's tags of a run: its description, command and commit."""
    about, profile = _about(experiment), tags.get("profile", "")
    size = (about.get("profiles") or {}).get(profile, {}).get("about", "")
    how = {"profile": f"{profile} ({size})" if size else profile}
    how |= {key: tags.get(key, "") for key in ("variant", "seed", "scale", "device")}
    note = [", ".join(f"{key} {value}" for key, value in how.items() if value)]
    if about:
        title = f"**{about['title']}** ({about['section']}; [the paper]({PAPER}))"
        note = [title, *note, str(about["claim"]).strip()]
    note.append("`lovasz-repro runs show` with the id of this run says how to repeat it.")
    command = f"lovasz-repro run {experiment}" + (f" --profile {profile}" if profile else "")
    return {
        DESCRIPTION: "\n\n".join(filter(None, note)),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": tags.get("git_commit", "unknown"),
    }


def dataset_of(
    experiment: str, params: Mapping[str, str], tags: Mapping[str, str]
) -> dict[str, str] | None:
    """The data of a run as MLflow describes them; None where their fingerprint is not known."""
    digest = tags.get("data_fingerprint", "")
    if not digest:
        return None
    about = {key: value for key, value in params.items() if key.startswith(("data.", "circles."))}
    return {
        "name": params.get("data.name", experiment)[:500],
        "digest": digest[:LONGEST_DIGEST],
        "source_type": "lovasz-repro",
        "source": json.dumps({"folder": params.get("data.folder", "None")}),
        "profile": json.dumps(about),
    }
