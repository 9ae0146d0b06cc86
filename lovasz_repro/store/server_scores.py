"""Scores that an evaluation server gave to a run's predictions (Tables 2, 3 and 4).

A person brings them in a file, since a test set's annotations are not public: JSON or YAML, or a
name and a number on each line (.csv, .txt), as on a server's page or in Table 3. Cityscapes has,
with ``classes.road`` for a class on a line,

* ``class_iou``, ``class_iiou``, ``category_iou``, ``category_iiou`` and, if known, ``classes``,
  in percent, as the server shows them; or
* the keys of the official Cityscapes script's result file, whose scores are fractions.

Pascal VOC has, in percent, ``mean`` over 21 classes and, if known, ``classes`` in any spelling. Its
server shows the 20 objects. The background is what the mean, which counts it, leaves for it.

They are kept with a finished run as metrics ``server/...``, or ``initial/server/...`` for the
network before training, apart from what the run measured itself, with the file.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, field_validator

from lovasz_repro.config.read import Strict, known_name, near_match, read_yaml, validate
from lovasz_repro.errors import UserError, one_line
from lovasz_repro.host.files import read_text
from lovasz_repro.store.journal import Point
from lovasz_repro.store.mlflow_store import Store
from lovasz_repro.store.stored import StoredRun, iso, seconds_of, shown_status

# -- files -----------------------------------------------------------------------------------------

MOST_SCORES = 1_000_000  # bytes; the official script may add something per image
MEAN, BACKGROUND = "mean", "background"
MEANS = ("mean", "meaniou", "miou")
"""Spellings of VOC's mean, without all but letters and digits."""
SPELLINGS = {
    "airplane": "aeroplane",
    "cycle": "bicycle",
    "dtable": "diningtable",
    "mbike": "motorbike",
    "plant": "pottedplant",
    "tv": "tvmonitor",
}
"""Of Table 3, to those of the data set, without all but letters and digits."""
MOST_OFF = 0.06
"""Percentage points between the mean and that of the classes; a mean of one decimal is off by
0.05."""


def _no_fraction(value: float) -> float:
    if value <= 1:
        raise ValueError("expected percent (is it a fraction?)")
    return value


def _no_percentage(value: float) -> float:
    if 1 < value <= 100:
        raise ValueError("expected a fraction in 0-1 (is it in percent?)")
    return value


def _no_fractions(values: dict[str, float]) -> dict[str, float]:
    if 0 < max(values.values(), default=0) <= 1:
        raise ValueError("no class has more than 1 percent (are they fractions?)")
    return values


Percentage = Annotated[float, Field(ge=0, le=100)]
Average = Annotated[Percentage, AfterValidator(_no_fraction)]
Fraction = Annotated[float, AfterValidator(_no_percentage), Field(ge=0, le=1)]
Percentages = Annotated[dict[str, Percentage], AfterValidator(_no_fractions)]


class Cityscapes(Strict):
    """Scores as the Cityscapes server shows them."""

    dataset_miou: Average = Field(alias="class_iou")
    class_iiou: Average
    category_iou: Average
    category_iiou: Average
    classes: Percentages = Field(default={})


class CityscapesScript(Strict):
    """The result file of the official Cityscapes script, which holds much more."""

    model_config = ConfigDict(extra="ignore")
    dataset_miou: Fraction = Field(alias="averageScoreClasses")
    class_iiou: Fraction = Field(alias="averageScoreInstClasses")
    category_iou: Fraction = Field(alias="averageScoreCategories")
    category_iiou: Fraction = Field(alias="averageScoreInstCategories")
    classes: dict[str, Fraction] = Field(default={}, alias="classScores")

    @field_validator("classes", mode="before")
    @classmethod
    def _scored(cls, given: Any) -> Any:
        """The script gives NaN to labels that it does not score."""
        return {k: v for k, v in given.items() if v == v} if isinstance(given, dict) else given


class Voc(Strict):
    """Scores as Pascal VOC's server shows them, under the data set's names."""

    mean: Average
    classes: Percentages = Field(default={})


def read_server_scores(file: Path, classes: Collection[str]) -> dict[str, float]:
    """The scores of Cityscapes as fractions: ``dataset_miou``, ..., ``iou/<class>``.

    Args:
        file: its ending says how it is read.
        classes: names of the classes that are scored.

    Raises:
        UserError: one line; unreadable, a key is missing or unknown, a value is no number, out of
            range, or in the other unit than its key says.
    """
    by_server, by_script = _keys(Cityscapes), _keys(CityscapesScript)
    content = _content(file, lambda name: name.partition(".")[0] in by_server | by_script)
    of_script = bool(by_script & content.keys()) and not by_server & content.keys()
    model, unit = (CityscapesScript, 1) if of_script else (Cityscapes, 100)
    found = validate(model, content, str(file)).model_dump()
    for name in found["classes"]:
        known_name(name, classes, "class", f"{file}:")
    scores = {name: found[name] / unit for name in Cityscapes.model_fields if name != "classes"}
    return scores | {f"iou/{name}": score / unit for name, score in found["classes"].items()}


def read_voc_server_scores(file: Path, classes: Sequence[str]) -> dict[str, float]:
    """The scores of VOC as fractions: ``dataset_miou`` and, where known, ``iou/<class>``.

    Args:
        file: its ending says how it is read.
        classes: names of the 21 classes.

    Raises:
        UserError: one line; unreadable, no mean, a name is unknown or there twice, only some of
            the objects, a value is no percentage, or mean and classes contradict each other.
    """
    content, named = _content(file, lambda name: _canonical(name, classes) is not None), {}
    inner = content.pop("classes") if isinstance(content.get("classes"), dict) else {}
    for given, value in [*content.items(), *inner.items()]:
        name = _canonical(given, classes)
        if name is None:
            near = near_match(given.lower(), [*classes, MEAN])
            raise UserError(f"{file}: unknown class {one_line(repr(given), 60)}{near}.")
        if name in named:
            raise UserError(f"{file}: {name} is there twice.")
        named[name] = value
    mean = {MEAN: named.pop(MEAN)} if MEAN in named else {}
    found = validate(Voc, mean | {"classes": named}, str(file))
    if found.classes:
        _check(file, found, classes)
    in_order = [name for name in classes if name in found.classes]
    return {"dataset_miou": found.mean / 100} | {
        f"iou/{name}": found.classes[name] / 100 for name in in_order
    }


def implied_background(scores: Mapping[str, float], classes: Collection[str]) -> float | None:
    """The background's IoU that the mean leaves for it, as a fraction; None where it is not so.

    Args:
        scores: what ``read_voc_server_scores`` gives.
        classes: names of the 21 classes.
    """
    objects = [value for name, value in scores.items() if name.startswith("iou/")]
    if len(objects) != len(classes) - 1:
        return None
    return len(classes) * scores["dataset_miou"] - sum(objects)


def _content(file: Path, known: Callable[[str], bool]) -> dict[str, Any]:
    """The content of a file, a mapping.

    Args:
        file: JSON, YAML, or lines.
        known: whether a line that has no number should have one; others are headings.
    """
    match file.suffix.lower():
        case ".json":
            return _read_json(file)
        case ".yaml" | ".yml":
            return read_yaml(file)
        case ".csv" | ".txt":
            return _read_lines(file, known)
    raise UserError(f"{file}: expected one of .json, .yaml, .yml, .csv, .txt.")


def _read_json(file: Path) -> dict[str, Any]:
    """A mapping in JSON, which knows NaN and 1e-05, unlike YAML."""
    text = read_text(file, MOST_SCORES)
    try:
        content = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: unreadable ({one_line(str(error), 120)}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected keys and values, found {type(content).__name__}.")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"{key} is there twice")
    return dict(pairs)


def _read_lines(file: Path, known: Callable[[str], bool]) -> dict[str, Any]:
    """A name and a number a line; ``classes.road`` is a name in a mapping."""
    content: dict[str, Any] = {}
    groups: dict[str, dict[str, float]] = {}
    for line in read_text(file, MOST_SCORES).splitlines():
        last = re.findall(r"[^\s,;:=|%]+", line)[-1:]
        name = line[: line.rindex(last[0])].strip(" \t,;:=|\"'") if last else ""
        try:
            number = float(last[0])
        except (IndexError, ValueError):
            if known(line) or known(name):
                problem = f"no number in the line {one_line(repr(line), 60)}"
                raise UserError(f"{file}: {problem}.") from None
            continue
        group, _, item = name.partition(".")
        level = groups.setdefault(group, {}) if group in ("classes", "classScores") else content
        name = item if level is not content else name
        if name in level:
            raise UserError(f"{file}: {one_line(name, 60)} is there twice.")
        level[name] = number
    return content | groups


def _keys(model: type[Strict]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _canonical(given: str, classes: Collection[str]) -> str | None:
    """The data set's name of a class, however it is written; ``MEAN`` for the mean."""
    plain = re.sub("[^a-z0-9]", "", given.lower())
    if plain in MEANS:
        return MEAN
    name = SPELLINGS.get(plain, plain)
    return name if name in classes else None


def _check(file: Path, found: Voc, classes: Sequence[str]) -> None:
    """Raise UserError unless all objects are there and the mean is theirs."""
    mean, total, count = found.mean, sum(found.classes.values()), len(classes)
    missing = [name for name in classes if name not in found.classes and name != BACKGROUND]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{file}: no {', '.join(missing[:3])}{more}. Give the IoU of all "
                        f"{count - 1} objects, or the mean alone.")  # fmt: skip
    if BACKGROUND in found.classes:
        if abs(total / count - mean) > MOST_OFF:
            raise UserError(f"{file}: {MEAN} is {mean:g}, that of the {count} classes is "
                            f"{total / count:.2f}.")  # fmt: skip
        return
    background = count * mean - total
    if not 0 <= background <= 100:
        raise UserError(f"{file}: with a {MEAN} of {mean:g} over {count} classes the background "
                        f"would have {background:.2f} percent. Is a number mistyped, or the "
                        f"{MEAN} over the objects alone?")  # fmt: skip


# -- runs ------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Which of a run's networks was scored."""

    metrics: str
    """What the names of its metrics begin with."""
    folder: str
    """Where the file is kept."""

    @property
    def tag(self) -> str:
        """Tag that holds when the scores were recorded."""
        return f"{self.metrics}recorded"


TRAINED = Kind("server/", "server-scores")
INITIAL = Kind("initial/server/", "initial/server-scores")
KINDS = (TRAINED, INITIAL)


def record_server_scores(
    store: Store,
    run: StoredRun,
    scores: Mapping[str, float],
    file: Path,
    *,
    initial: bool = False,
    replace: bool = False,
) -> bool:
    """Keep an evaluation server's scores with a finished run; False if it has them already.

    Args:
        store: holds the run.
        run: as the store knows it now.
        scores: name, without ``server/``, -> fraction.
        file: where they were read from; a copy is kept.
        initial: they are of the network before training.
        replace: take the place of others that were recorded.

    Raises:
        UserError: the run has other scores, and ``replace`` is not set; or it is not finished.
    """
    if run.status != "FINISHED":
        raise UserError(f"run {run.run_id} ({run.name}) is {shown_status(run)}, not FINISHED.")
    kind = INITIAL if initial else TRAINED
    wanted = {kind.metrics + name: score for name, score in scores.items()}
    had = recorded_scores(run, kind)
    if had == wanted and kind.tag in run.tags:
        return False
    different = {key for key in had | wanted if had.get(key) != wanted.get(key)} if had else set()
    if different and not replace:
        raise UserError(f"run {run.run_id} ({run.name}) has other scores of the server, recorded "
                        f"{run.tags.get(kind.tag, 'before')}: {_told(different, had, wanted)}. "
                        "Give --replace to put these in their place.")  # fmt: skip
    moment = max(_now(), 1 + _milliseconds(run.tags.get(kind.tag, "")))  # the later value counts
    store.add_artifact(run.run_id, file, kind.folder)
    put_scores(
        store, run, kind, [Point(k, v, 0, moment) for k, v in wanted.items()], iso(moment / 1000)
    )
    return True


def recorded_scores(run: StoredRun, kind: Kind) -> dict[str, float]:
    """The scores of a kind that a run has, by the full names of their metrics."""
    return {
        key: value
        for key, value in run.metrics.items()
        if key.startswith(kind.metrics) and not math.isnan(value)
    }


def put_scores(
    store: Store, run: StoredRun, kind: Kind, points: Sequence[Point], recorded: str
) -> None:
    """Log scores in place of those that the run has; those without a successor become NaN.

    The tag comes last: a process that dies before leaves what the next one does again.
    """
    moment = max((point.timestamp for point in points), default=_milliseconds(recorded))
    gone = recorded_scores(run, kind).keys() - {point.key for point in points}
    store.log(run.run_id, [*points, *(Point(key, math.nan, 0, moment) for key in sorted(gone))])
    store.set_tags(run.run_id, {kind.tag: recorded})


def _told(keys: Collection[str], had: Mapping[str, float], wanted: Mapping[str, float]) -> str:
    """The first difference in words, and how many there are."""
    first = min(keys, key=lambda key: ("/iou/" in key, key))
    shown = [f"{100 * s[first]:.2f}%" if first in s else "none" for s in (had, wanted)]
    more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
    return f"{first} {shown[0]}, now {shown[1]}{more}"


def _now() -> int:
    return time.time_ns() // 1_000_000


def _milliseconds(moment: str) -> int:
    """Epoch milliseconds of a tag; 0 for none."""
    return round(seconds_of(moment) * 1000) if moment else 0
