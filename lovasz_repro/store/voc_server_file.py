"""Reads the scores of the Pascal VOC server from a file that a person wrote or copied.

All are in percent: the mean over 21 classes and, if known, the IoU of each class. The file is

* JSON or YAML with ``mean`` and ``classes``, a mapping; or
* CSV or text with a name and a number on each line, as on the server's page or in Table 3.

The server shows the 20 objects. The background is what the mean, which counts it, leaves for it.
"""

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lovasz_repro.config.read import near_match
from lovasz_repro.errors import UserError
from lovasz_repro.store.server_file import read_content, read_text

ENDINGS = (".json", ".yaml", ".yml", ".csv", ".txt")
MEAN = "mean"
MEANS = ("mean", "meaniou", "miou")
"""Spellings of the mean, without all but letters and digits."""
SPELLINGS = {
    "airplane": "aeroplane",
    "cycle": "bicycle",
    "dtable": "diningtable",
    "mbike": "motorbike",
    "plant": "pottedplant",
    "tv": "tvmonitor",
}
"""Of Table 3, to those of the data set, without all but letters and digits."""
BACKGROUND = "background"
TOLERANCE = 0.06
"""Percentage points between the mean and that of the classes; a mean of one decimal is off by
0.05."""
PAIR = re.compile(r"(.*?)[\s,;:=|]+([^\s,;:=|]+?)\s*%?\s*")
"""A name and what may be a number."""


def read_voc_server_scores(file: Path, classes: Sequence[str]) -> dict[str, float]:
    """The scores in a file as fractions: ``dataset_miou`` and, where known, ``iou/<class>``.

    Args:
        file: its ending says how it is read.
        classes: names of the 21 classes.

    Raises:
        UserError: one line; unreadable, no mean, a name is unknown or there twice, only some of
            the objects, a value is no percentage, or mean and classes contradict each other.
    """
    named: dict[str, float] = {}
    for given, value in _pairs(file, classes):
        name = _canonical(given, classes)
        if name is None:
            near = near_match(given.lower(), [*classes, MEAN])
            raise UserError(f"{file}: unknown class {given[:60]!r}{near}.")
        if name in named:
            raise UserError(f"{file}: {name} is there twice.")
        named[name] = _percentage(file, given, value)
    if MEAN not in named:
        raise UserError(f"{file}: no {MEAN} (over 21 classes, in percent).")
    mean = named.pop(MEAN)
    if mean <= 1:
        raise UserError(f"{file}: {MEAN} is {mean:g}, expected percent (is it a fraction?).")
    if named:
        _check(file, mean, named, classes)
    in_order = {f"iou/{name}": named[name] / 100 for name in classes if name in named}
    return {"dataset_miou": mean / 100} | in_order


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


def _pairs(file: Path, classes: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Every name in a file with its value."""
    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"{file}: expected one of {', '.join(ENDINGS)}.")
    if file.suffix.lower() in (".csv", ".txt"):
        yield from _from_lines(file, read_text(file, ENDINGS), classes)
        return
    for key, value in read_content(file).items():
        if key == "classes" and not isinstance(value, Mapping):
            raise UserError(f"{file}: classes is no mapping of classes to scores.")
        if isinstance(value, Mapping) and key == "classes":
            yield from ((str(name), score) for name, score in value.items())
        else:
            yield str(key), value


def _from_lines(file: Path, text: str, classes: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Name and number on each line; a heading, which has no number and names no class, is no pair.

    Raises:
        UserError: a class without a number.
    """
    for line in text.splitlines():
        found = PAIR.fullmatch(line.strip())
        name, last = found.groups() if found else (line, "")
        name = name.strip().strip("\"'").removeprefix("classes.")
        number = _number(last)
        if number is not None:
            yield name, number
        elif _canonical(line, classes) or _canonical(name, classes):
            raise UserError(f"{file}: no number in the line {line.strip()[:60]!r}.")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _canonical(given: str, classes: Collection[str]) -> str | None:
    """The data set's name of a class, however it is written; ``MEAN`` for the mean."""
    plain = re.sub("[^a-z0-9]", "", given.lower())
    if plain in MEANS:
        return MEAN
    name = SPELLINGS.get(plain, plain)
    return name if name in classes else None


def _percentage(file: Path, name: str, value: Any) -> float:
    """A score in [0, 100]."""
    shown = str(value)[:40]
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UserError(f"{file}: {name} is {shown!r}, not a number.")
    if not 0 <= value <= 100:
        raise UserError(f"{file}: {name} is {shown}, not a percentage in 0-100.")
    return float(value)


def _check(file: Path, mean: float, named: Mapping[str, float], classes: Sequence[str]) -> None:
    """Raise UserError unless there are all objects, in percent, and the mean is theirs."""
    missing = [name for name in classes if name not in named and name != BACKGROUND]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{file}: no {', '.join(missing[:3])}{more}. Give the IoU of all "
                        f"{len(classes) - 1} objects, or the mean alone.")  # fmt: skip
    if 0 < max(named.values()) <= 1:
        raise UserError(f"{file}: no class has more than 1 percent (are they fractions?).")
    total = sum(named.values())
    if BACKGROUND in named:
        of_classes = total / len(classes)
        if abs(of_classes - mean) > TOLERANCE:
            raise UserError(f"{file}: {MEAN} is {mean:g}, that of the {len(classes)} classes is "
                            f"{of_classes:.2f}.")  # fmt: skip
        return
    background = len(classes) * mean - total
    if not 0 <= background <= 100:
        raise UserError(f"{file}: with a {MEAN} of {mean:g} over {len(classes)} classes the "
                        f"background would have {background:.2f} percent. Is a number mistyped, "
                        f"or the {MEAN} over the objects alone?")  # fmt: skip
