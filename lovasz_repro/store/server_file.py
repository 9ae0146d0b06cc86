"""Reads the scores of the Cityscapes server from a file that a person wrote or downloaded.

The file is JSON, YAML, or CSV of ``key,value`` where a dot separates ``classes.road``. It has

* the keys of the official Cityscapes script's result file, whose scores are fractions; or
* ``class_iou``, ``class_iiou``, ``category_iou``, ``category_iiou`` and, if known, ``classes``,
  in percent, as the server shows them.
"""

import csv
import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lovasz_repro.config.read import near_match, read_yaml
from lovasz_repro.errors import UserError

MAX_FILE = 4_000_000  # bytes; the official script may add something per image
ENDINGS = (".json", ".yaml", ".yml", ".csv")


class Form(NamedTuple):
    """One way in which a file may name its scores."""

    averages: Mapping[str, str]
    """Key -> name of the score in the store; all are required."""
    classes: str
    """Key of the mapping from class to IoU; may be absent."""
    passed_over: frozenset[str]
    """Keys that may be there too."""
    highest: float
    """The scores are in [0, highest]: 1 for fractions, 100 for percent."""


OFFICIAL = Form(
    {
        "averageScoreClasses": "dataset_miou",
        "averageScoreInstClasses": "class_iiou",
        "averageScoreCategories": "category_iou",
        "averageScoreInstCategories": "category_iiou",
    },
    "classScores",
    frozenset(
        {
            "confMatrix",
            "priors",
            "labels",
            "classInstScores",
            "categoryScores",
            "categoryInstScores",
            "perImageScores",
        }
    ),
    1.0,
)
PLAIN = Form(
    {
        "class_iou": "dataset_miou",
        "class_iiou": "class_iiou",
        "category_iou": "category_iou",
        "category_iiou": "category_iiou",
    },
    "classes",
    frozenset(),
    100.0,
)


def read_server_scores(file: Path, classes: Collection[str]) -> dict[str, float]:
    """The scores in a file as fractions: ``dataset_miou``, ..., ``iou/<class>``.

    Args:
        file: its ending says which of the three it is.
        classes: names of the classes that are scored.

    Raises:
        UserError: one line; unreadable, a key is missing or unknown, a value is no number, out of
            range, or in the other unit than its key says.
    """
    content = read_content(file)
    form = _form(file, content)
    scores = {name: _fraction(file, key, content[key], form) for key, name in form.averages.items()}
    return scores | _class_scores(file, content.get(form.classes), form, classes)


def read_content(file: Path) -> dict[str, Any]:
    """The content of a file, a mapping; keys of a CSV with a dot in them are one level below.

    Raises:
        UserError: another ending, unreadable, too large, or no mapping.
    """
    if file.suffix.lower() in (".yaml", ".yml"):
        check_size(file)
        return read_yaml(file)
    text = read_text(file, ENDINGS)
    try:
        return _from_csv(text) if file.suffix.lower() == ".csv" else _from_json(text)
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: unreadable ({error}).") from None


def read_text(file: Path, endings: Collection[str]) -> str:
    """The text of a file of one of these endings.

    Raises:
        UserError: another ending, unreadable, or too large.
    """
    if file.suffix.lower() not in endings:
        raise UserError(f"{file}: expected one of {', '.join(endings)}.")
    check_size(file)
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}.") from None
    except ValueError as error:
        raise UserError(f"{file}: unreadable ({error}).") from None


def check_size(file: Path) -> None:
    """Raise UserError unless a file is there and small enough to be one of scores."""
    try:
        size = file.stat().st_size
    except OSError as error:
        raise UserError(f"{file}: {error.strerror or error}.") from None
    if size > MAX_FILE:
        raise UserError(f"{file}: too large for a file of scores.")


def _from_json(text: str) -> dict[str, Any]:
    content = json.loads(text, object_pairs_hook=_once)
    if not isinstance(content, dict):
        raise ValueError("not a mapping of keys to scores")
    return content


def _from_csv(text: str) -> dict[str, Any]:
    rows = [row for row in csv.reader(text.splitlines(), strict=True) if row]
    if rows and [cell.strip() for cell in rows[0]] == ["key", "value"]:
        rows = rows[1:]
    content: dict[str, Any] = {}
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise ValueError(f"row {number} has {len(row)} cells, not key,value")
        group, _, name = row[0].strip().rpartition(".")
        level = content.setdefault(group, {}) if group else content
        if not isinstance(level, dict) or name in level:
            raise ValueError(f"{row[0].strip()} is there twice")
        level[name] = _number_or_text(row[1])
    return content


def _number_or_text(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell.strip()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)} is there twice")
    return content


def _form(file: Path, content: Mapping[str, Any]) -> Form:
    """How a file names its scores; raises UserError unless it does so in one way, whole."""
    found = [form for form in (OFFICIAL, PLAIN) if set(content) & set(form.averages)]
    if len(found) != 1:
        what = "keys of both kinds" if found else "no scores"
        raise UserError(f"{file}: {what}; expected either {', '.join(PLAIN.averages)} (percent) "
                        f"or {', '.join(OFFICIAL.averages)} (fractions).")  # fmt: skip
    form = found[0]
    known = {*form.averages, form.classes, *form.passed_over}
    for key in content:
        if key not in known:
            near = near_match(str(key), list(known))
            raise UserError(f"{file}: unknown key {str(key)[:60]!r}{near}.")
    missing = [key for key in form.averages if key not in content]
    if missing:
        raise UserError(f"{file}: no {', '.join(missing)}.")
    return form


def _fraction(file: Path, key: str, value: Any, form: Form, *, average: bool = True) -> float:
    """A score in [0, 1], whose file gives it in the unit of ``form``."""
    shown = str(value)[:40]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise UserError(f"{file}: {key} is {shown!r}, not a number.")
    unit = "fraction" if form is OFFICIAL else "percentage"
    if not 0 <= value <= form.highest:
        hint = " (is it in percent?)" if form is OFFICIAL and 1 < value <= 100 else ""
        raise UserError(f"{file}: {key} is {shown}, not a {unit} in 0-{form.highest:g}{hint}.")
    if average and form is PLAIN and value <= 1:
        raise UserError(f"{file}: {key} is {shown}, expected percent (is it a fraction?).")
    return value / form.highest


def _class_scores(file: Path, given: Any, form: Form, classes: Collection[str]) -> dict[str, float]:
    """IoU by ``iou/<class>``; the official script gives NaN to labels that it does not score."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{file}: {form.classes} is no mapping of classes to scores.")
    scores = {}
    for name, value in given.items():
        if form is OFFICIAL and isinstance(value, float) and math.isnan(value):
            continue
        if name not in classes:
            near = near_match(str(name), list(classes))
            raise UserError(
                f"{file}: {form.classes} has the unknown class {str(name)[:60]!r}{near}."
            )
        key = f"{form.classes}.{name}"
        scores[f"iou/{name}"] = _fraction(file, key, value, form, average=False)
    if form is PLAIN and scores and 0 < max(scores.values()) <= 0.01:
        raise UserError(f"{file}: no class has more than 1 percent (are they fractions?).")
    return scores
