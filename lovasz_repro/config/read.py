"""Settings files: strict models, YAML without surprises, values laid over one another.

An unknown key, a wrong type or an impossible value ends in one line that names file and key. Names
in them that become paths are those of strangers, and are checked here too.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from lovasz_repro.errors import UserError, one_line
from lovasz_repro.host.files import read_text

MOST_YAML_BYTES = 100_000  # of a YAML file
MOST_VALUES = 10_000  # in it, each alias counted as all that it stands for
DEEPEST = 20  # levels of lists and mappings
LONGEST_NUMBER = 40  # characters
MOST_PROBLEMS = 3  # that one message tells

Model = TypeVar("Model", bound=BaseModel)
ADDED = "added"
"""Marks a setting, as ``Annotated[..., ADDED]``, that came after runs had been stored. Its default
is what was done before it, and where it has that it is left out of what is stored and hashed."""
SPELT_OUT = "spelt_out"
"""Context of ``model_dump`` in which it is not."""


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no infinities, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _as_before_additions(
        self, whole: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        content: dict[str, Any] = whole(self)
        if info.context == SPELT_OUT:
            return content
        for name, field in type(self).model_fields.items():
            if ADDED in field.metadata and getattr(self, name) == field.default:
                content.pop(name, None)
        return content


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["training.lr=1.0e-4"]`` -> ``{"training.lr": 0.0001}``; values are YAML.

    Raises:
        UserError: a pair without ``=`` or with a value that is not YAML.
    """
    overrides = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        where = f"--set {one_line(pair, 60)}"
        if not separator or not key or key.count(".") > DEEPEST:
            raise UserError(f"{where}: expected key=value, for example training.lr=1.0e-4.")
        overrides[key] = _parse(text, where)
    return overrides


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, mapping by mapping; neither is altered.

    ``terms`` of a loss are replaced whole: a variant names all of its terms.
    """
    merged = dict(base)
    for key, value in changes.items():
        both_mappings = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both_mappings and key != "terms" else value
    return merged


def override(content: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` with values laid over it by dotted key: {"training.lr": 0.1}."""
    changed = dict(content)
    for key, value in overrides.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        changed = merge(changed, value)
    return changed


def dotted(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as one, with dotted keys: {"training": {"lr": 0.1}} -> training.lr: 0.1."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping safely; a repeated key is an error.

    Raises:
        UserError: not readable, too large, not YAML, or not a mapping.
    """
    content = _parse(read_text(path, MOST_YAML_BYTES), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected keys and values, found {type(content).__name__}.")
    return content


def validate(model: type[Model], content: Mapping[str, Any], where: str) -> Model:
    """Check ``content`` against ``model``.

    Raises:
        UserError: one line with every problem: dotted key, what is wrong, a near match.
    """
    try:
        return model.model_validate_json(json.dumps(content))
    except ValidationError as error:
        details = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        problems = [_problem(model, detail) for detail in details]
        told = "; ".join(problems[:MOST_PROBLEMS])
        more = f"; and {len(problems) - MOST_PROBLEMS} more" if problems[MOST_PROBLEMS:] else ""
        raise UserError(f"{where}: {told}{more}.") from None


def read_stored(model: type[Model], params: Mapping[str, str], under: str, where: str) -> Model:
    """A part of a stored run's config, typed again after ``dotted`` made text of it.

    What an older run lacks has its default.

    Raises:
        UserError: one line; a setting that is not known, or a value that cannot be.
    """
    content: dict[str, Any] = {}
    for key, text in params.items():
        if key.startswith(f"{under}."):
            listed = _parse(text, f"{where}: {key}") if text.startswith("[") else text
            value = {key.removeprefix(f"{under}."): None if text == "None" else listed}
            content = override(content, value)
    try:
        return model.model_validate(content, strict=False)
    except ValidationError as error:
        problem = _problem(model, error.errors()[0])
        raise UserError(f"{where}: {under}: {problem}.") from None


def _problem(model: type[BaseModel], detail: Any) -> str:
    location = [part for part in detail["loc"] if part != "[key]"]
    key = one_line(".".join(str(part) for part in location), 80)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"unknown key {key}{near_match(str(location[-1]), known)}"
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    if isinstance(value, str) and _is_number(value):
        text = one_line(repr(value), 60)
        message += f", not the text {text}: write it without quotes, in YAML like 1.0e-4"
    elif not isinstance(value, dict | list) and detail["type"] not in ("missing", "json_invalid"):
        message += f", not {one_line(repr(value), 60)}"
    message = one_line(message, 200)
    return f"{key}: {message[0].lower()}{message[1:]}" if key else message


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def known_name(name: str, known: Any, what: str, where: str) -> str:
    """``name`` if it is one of ``known``.

    Raises:
        UserError: it is not; says what is near and what there is.
    """
    if name not in known:
        near, given = near_match(name, list(known)), one_line(repr(name), 60)
        raise UserError(f"{where} has no {what} {given}{near}. There are: {', '.join(known)}.")
    return name


def near_match(name: str, known: Sequence[str]) -> str:
    """`` (did you mean ...?)``, or nothing where none is near."""
    matches = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {matches[0]}?)" if matches else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse(text: str, where: str) -> Any:
    """What a YAML document says, in values that JSON has too.

    Raises:
        UserError: no YAML, more than `MOST_VALUES` or deeper than `DEEPEST`, or another value.
    """
    try:
        return yaml.load(text, Loader=_JsonValues)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        problem = f"{line}{error.problem}"
    except (yaml.YAMLError, ValueError) as error:  # a character or number that cannot be
        problem = str(error)
    except RecursionError:
        problem = TOO_DEEP
    raise UserError(f"{where}: {one_line(problem, 160)}.") from None


TOO_DEEP = f"lists and mappings in one another, more than {DEEPEST} deep"
YAML_TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = {f"{YAML_TAG}{name}" for name in ("null", "bool", "int", "float", "str")}
UNPRINTABLE = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")


class _JsonValues(yaml.SafeLoader):
    """PyYAML's safe loader for values that JSON has too, as many as a settings file can need.

    Keys are text, and are given once. What an alias stands for is built, and counted, each time.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - so that dates are text
        first: [pair for pair in pairs if pair[0] in PLAIN_TAGS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        """The value of a document."""
        self.values = 0
        return self._value(node, 1)

    def _value(self, node: yaml.Node, depth: int) -> Any:
        self.values += 1
        if self.values > MOST_VALUES:
            raise _refusal(node, f"more than {MOST_VALUES:,} values, aliases counted in full")
        if depth > DEEPEST:
            raise _refusal(node, TOO_DEEP)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if node.tag not in (self.DEFAULT_SEQUENCE_TAG, self.DEFAULT_MAPPING_TAG):
            raise _refusal(node, f"the tag {node.tag.replace(YAML_TAG, '!!')} is not read here")
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, depth + 1) for item in node.value]
        content: dict[str, Any] = {}
        for key, value in node.value:
            name = _text(key)
            if name in content:
                raise _refusal(key, f"key given twice: {name}")
            content[name] = self._value(value, depth + 1)
        return content

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text = _text(node)
        if node.tag == self.DEFAULT_SCALAR_TAG:
            return text
        if node.tag != self.resolve(yaml.ScalarNode, text, (True, False)):
            raise _refusal(node, f"the tag {node.tag.replace(YAML_TAG, '!!')} is not read here")
        if len(text) > LONGEST_NUMBER:
            raise _refusal(node, f"a number of more than {LONGEST_NUMBER} characters")
        return self.construct_object(node)


def _text(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise _refusal(node, "a key that is no text")
    if UNPRINTABLE.search(node.value):
        raise _refusal(node, "a character that cannot be printed")
    return str(node.value)


def _refusal(node: yaml.Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


# ---- Names that strangers chose ------------------------------------------------------------------
#
# And how they become paths: nowhere else are the two joined.
#
# Experiments, variants, profiles and runs name folders, and come from YAML files, from exports and
# from stores that other people filled.

LONGEST_NAME = 100
LONGEST_PART = 200  # bytes; file systems take 255, and a suffix is often added
LONGEST_PATH = 1000


def check_name(text: str) -> str:
    """The text, if it is a name; else raises ValueError."""
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}", text):
        raise ValueError(f"use at most {LONGEST_NAME} letters, digits and . _ -")
    return text


def check_relative(text: str) -> str:
    """The text, if it is a path inside a folder; else raises ValueError."""
    parts = text.split("/")
    if (
        {"", ".", ".."} & set(parts)
        or not text.isprintable()
        or re.search(r"[\\:]", text)
        or max(len(part.encode()) for part in parts) > LONGEST_PART
        or len(text) > LONGEST_PATH
    ):
        raise ValueError("give a relative path, of at most 200 characters a part, without ..")
    return text


def check_class(text: str) -> str:
    """The text, if it can name a class; else raises ValueError."""
    if not re.fullmatch("[A-Za-z0-9][A-Za-z0-9 _.-]{0,59}", text):
        raise ValueError("use at most 60 letters, digits, spaces and . _ -")
    return text


ClassName = Annotated[str, AfterValidator(check_class)]
"""Text that may name a class, and stand in the names of metrics."""

Name = Annotated[str, AfterValidator(check_name)]
"""Text that may name a run, its experiment, variant or profile, and a folder."""

Relative = Annotated[str, AfterValidator(check_relative)]
"""Text that is the path of something inside a folder."""


def below(folder: Path, relative: str) -> Path:
    """The path ``relative`` inside ``folder``, whoever chose it.

    Raises:
        UserError: it would leave the folder, or cannot be a path on every machine.
    """
    try:
        return folder / check_relative(relative)
    except ValueError as error:
        raise UserError(f"{relative[:60]!r} is no path inside {folder}: {error}") from None


def as_name(text: str) -> str:
    """Text as the name of a file or folder: what may not stand in one becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).lstrip(".-")[:LONGEST_NAME] or "unnamed"
