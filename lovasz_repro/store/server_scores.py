"""Scores that an evaluation server gave to a run's predictions (Tables 2, 3 and 4).

A person brings them in a file of YAML or JSON, since a test set's annotations are not public:

* Cityscapes: ``class_iou``, ``class_iiou``, ``category_iou``, ``category_iiou`` and, if known,
  ``classes``, in percent, as the server shows them; or the official Cityscapes script's own
  result file, whose scores are fractions.
* Pascal VOC: ``mean`` over 21 classes and, if known, ``classes``, in percent. Its server shows the
  20 objects, and the mean counts the background.

They are kept with a finished run as metrics ``server/...``, or ``initial/server/...`` for the
network before training, apart from what the run measured itself, with the file.
"""

import json
import math
import re
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, ConfigDict, Field, field_validator

from lovasz_repro.config.read import Strict, known_name, read_yaml, validate
from lovasz_repro.errors import UserError, one_line
from lovasz_repro.host.files import read_text
from lovasz_repro.store.journal import Point
from lovasz_repro.store.mlflow_store import Store
from lovasz_repro.store.stored import StoredRun, iso, seconds_of, shown_status

# -- files -----------------------------------------------------------------------------------------

MOST_SCORES = 1_000_000  # bytes; the official script may add something per image
BACKGROUND = "background"
MOST_OFF = 1.3
"""Percentage points that a mean of one decimal and 21 classes may be off for one of them."""


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
    """Scores as Pascal VOC's server shows them."""

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
    content = _content(file, "class_iou: 63.1, class_iiou, category_iou and category_iiou")
    of_script = "averageScoreClasses" in content and "class_iou" not in content
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
    content = _content(file, "mean: 79.0 and, if known, classes: {aeroplane: 92.6, ...}")
    found, named = validate(Voc, content, str(file)), {}
    for given, value in found.classes.items():
        plain = re.sub("[^a-z]", "", given.lower())  # the server has "tv/ monitor"
        name = known_name(plain if plain in classes else given, classes, "class", f"{file}:")
        if name in named:
            raise UserError(f"{file}: {name} is there twice.")
        named[name] = value
    if named:
        _check(file, found.mean, named, classes)
    in_order = {f"iou/{name}": named[name] / 100 for name in classes if name in named}
    return {"dataset_miou": found.mean / 100} | in_order


def _content(file: Path, form: str) -> dict[str, Any]:
    """The mapping in a file; ``form`` shows, in a message, what it should hold."""
    match file.suffix.lower():
        case ".json":
            return _read_json(file)
        case ".yaml" | ".yml":
            return read_yaml(file)
    raise UserError(f"{file}: expected .yaml or .json, with {form}, in percent.")


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


def _check(file: Path, mean: float, named: Mapping[str, float], classes: Sequence[str]) -> None:
    """Raise UserError unless all objects are there and the mean is that of the classes."""
    objects = [name for name in classes if name != BACKGROUND]
    missing = [name for name in objects if name not in named]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{file}: no {', '.join(missing[:3])}{more}. Give the IoU of all "
                        f"{len(objects)} objects, or the mean alone.")  # fmt: skip
    left = len(classes) * mean - sum(named[name] for name in objects)
    given = named.get(BACKGROUND)
    least, most = (0.0, 100.0) if given is None else (given - MOST_OFF, given + MOST_OFF)
    if not least <= left <= most:
        raise UserError(f"{file}: a mean of {mean:g} over {len(classes)} classes leaves {left:.2f} "
                        "percent for the background. Is a number mistyped, or the mean over the "
                        "objects alone?")  # fmt: skip


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
