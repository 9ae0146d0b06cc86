"""Settings, values of --set and score files as nobody means them: one line, exit code 2, no more.

Seeded mutations of files that are right. ``LOVASZ_REPRO_HOSTILE=2000`` makes as many of each kind.
"""

import json
import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lovasz_repro.cli import MOST_CHARACTERS, describe, exit_code
from lovasz_repro.config.read import parse_overrides
from lovasz_repro.config.schema import experiments_folder, load_experiment
from lovasz_repro.config.synthetic import load_synthetic
from lovasz_repro.data.classes import CITYSCAPES, VOC
from lovasz_repro.errors import UserError
from lovasz_repro.store.server_scores import read_server_scores, read_voc_server_scores

EACH = int(os.environ.get("LOVASZ_REPRO_HOSTILE", 30))
SECONDS, MEMORY = 60, 2**30
VALUES = [
    "2001-01-01", "2001-99-99", "!!binary aGVsbG8=", "!!set {a, b}", "!!python/name:os.system x",
    "&a [*a]", "[&a [1, 1], &b [*a, *a], &c [*b, *b], [*c, *c]]", "*gone", "[" * 2_000, "[]", "{}",
    "{" * 500, "- " * 500, "7" * 5_000, "-1", "0", "1e999", "1.0e+999", ".inf", ".nan", "NaN",
    "0x" + "f" * 4_000, "0b_", "1:" * 500 + "1", "x" * 100_000, "'\\x1b]0;x\\x07'", '"\\0"',
    '"\\ud800"', '"\\U00110000"', "\x1b[31m", "\u202e", "\u00b2", "\u0663", "null", "true", "~",
    "? [a]", "{[a]: 1}", "<<: {a: 1}", "%YAML 9", "---\n", "\t", "'", '"', "|", "#", "/etc/passwd",
    "../../x", "[1, 2", "9" * 4_299, "1" * 39, "10" * 19, "[red]", "\r\n", "\x00", ",", ";",
]  # fmt: skip
KEYS = ["seeds", "batch_sizes", "recipe", "variants", "profiles", "kind", "title", "classes",
        "data.size", "data.folder", "model.weights", "training.lr", "training.iterations",
        "training.batch_size", "loss.terms", "evaluation.crf", "evaluation.multi_scale.scales",
        "data", "training", "x" * 5_000, "a." * 3_000 + "b", ".", "", "data..size"]  # fmt: skip
CITYSCAPES_SCORES = {"class_iou": 63.06, "class_iiou": 34.06, "category_iou": 83.58,
                     "category_iiou": 61.05, "classes": {"road": 97.5, "car": 90.1}}  # fmt: skip
SCRIPT_SCORES = {"averageScoreClasses": 0.6306, "averageScoreInstClasses": 0.3406,
                 "averageScoreCategories": 0.8358, "averageScoreInstCategories": 0.6105,
                 "classScores": {"road": 0.975}, "confMatrix": [[1, 2]]}  # fmt: skip
VOC_SCORES = {"mean": 50.0, "classes": dict.fromkeys(VOC.names, 50.0)}


def mutated(text: str, chance: random.Random) -> str:
    """A text with one to four hostile changes, in its structure or anywhere."""
    for _ in range(chance.randint(1, 4)):
        lines = text.splitlines(keepends=True) or [""]
        at, place = chance.randrange(len(lines)), chance.randrange(len(text) + 1)
        value = chance.choice(VALUES)
        match chance.randrange(7):
            case 0:  # another value of a key
                lines[at] = f"{lines[at].partition(':')[0]}: {value}\n"
                text = "".join(lines)
            case 1:  # a line twice, or gone
                lines[at] *= chance.choice([0, 2, 2_000])
                text = "".join(lines)
            case 2:
                text = text[:place] + value + text[place:]
            case 3:
                text = text[:place] + text[place + chance.randint(1, 40) :]
            case 4:
                text = text[:place] + chr(chance.randrange(0x3000)) + text[place + 1 :]
            case 5:
                text = text.replace(chance.choice("0123456789"), value, 1)
            case 6:  # what the text says, with another value somewhere
                text = dumped(text, value, chance)
        text = text[:300_000]
    return text


def dumped(text: str, value: str, chance: random.Random) -> str:
    """The YAML or JSON in a text with one value replaced, deep inside."""
    try:
        content = level = json.loads(text)
    except (ValueError, RecursionError):
        return text
    while isinstance(level, dict) and level:
        key = chance.choice(list(level))
        if not isinstance(level[key], dict) or chance.random() < 0.3:
            level[key] = chance.choice([value, 10**30, [value] * 3, {value: 1}, None, 1e300, -0.0])
            break
        level = level[key]
    return json.dumps(content, ensure_ascii=chance.random() < 0.5)


def yaml_file(path: Path, chance: random.Random) -> None:
    files = sorted(experiments_folder().glob("*e*t*.yaml"))
    source = chance.choice(files)
    text = source.read_text()
    if chance.random() < 0.5:
        text = json.dumps(yaml.safe_load(text), indent=1)
    path = path.with_suffix(".yaml")
    write(path, mutated(text, chance))
    if source.stem == "synthetic":
        load_synthetic(str(path))
        return
    experiment = load_experiment(str(path))
    experiment.cells(chance.choice(list(experiment.profiles)))


def set_value(path: Path, chance: random.Random) -> None:
    pairs = [f"{chance.choice(KEYS)}={mutated(chance.choice(VALUES), chance)}"]
    pairs += [f"{chance.choice(KEYS)}={chance.choice(VALUES)}"] * chance.randrange(2)
    overrides = parse_overrides(pairs)
    load_experiment("voc-multiclass").cells("demo", variants=["lovasz"], overrides=overrides)


def score_file(path: Path, chance: random.Random) -> None:
    scores = chance.choice([CITYSCAPES_SCORES, SCRIPT_SCORES, VOC_SCORES])
    ending = chance.choice([".json", ".yaml"])
    text = json.dumps(scores, indent=1) if ending == ".json" else yaml.safe_dump(scores)
    path = path.with_suffix(ending)
    write(path, mutated(text, chance))
    if scores is VOC_SCORES:
        read: Any = read_voc_server_scores(path, VOC.names)
    else:
        read = read_server_scores(path, CITYSCAPES.names[1:])
    assert all(0 <= score <= 1 for score in read.values())


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


@pytest.fixture
def bounded() -> Iterator[None]:
    """No case may take a GiB more than there is, or a minute."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    signal.alarm(0)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("case", [yaml_file, set_value, score_file])
def test_one_line_or_what_was_meant(
    tmp_path: Path, bounded: None, case: Callable[[Path, random.Random], None]
) -> None:
    refused = 0
    for seed in range(EACH):
        signal.alarm(SECONDS)
        if error := raised(case, tmp_path / "x", random.Random(seed)):
            line = describe(error)
            assert exit_code(error) == 2, (seed, line)
            assert "Error: unexpected" not in line, (seed, line)
            assert len(line) <= MOST_CHARACTERS, (seed, line)
            assert line.isprintable(), (seed, line)
            refused += 1
    print(f"{case.__name__}: {refused} of {EACH} refused")
    assert refused > EACH / 4


def test_what_to_do_stands_behind_two_long_paths() -> None:
    path = "/data" + "/a-folder-of-somebody" * 15
    message = f"{path}: no classes.txt; `data prepare own --data {path}` finds the classes."
    assert describe(UserError(message)) == f"Error: {message}"


def raised(
    case: Callable[[Path, random.Random], None], path: Path, chance: random.Random
) -> Exception | None:
    try:
        case(path, chance)
    except Exception as error:
        return error
    return None
