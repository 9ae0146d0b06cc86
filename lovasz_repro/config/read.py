"""Settings files: strict models, YAML without surprises, values laid over one another.

An unknown key, a wrong type or an impossible value ends in one line that names file and key.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lovasz_repro.errors import UserError

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """No unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def parse_overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """``["training.lr=1.0e-4"]`` -> ``{"training.lr": 0.0001}``; values are YAML.

    Raises:
        UserError: a pair without ``=`` or with a value that is not YAML.
    """
    overrides = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator or not key:
            raise UserError(f"--set {pair}: expected key=value, for example training.lr=1.0e-4.")
        try:
            overrides[key] = yaml.load(text, Loader=_NoDuplicates)
        except yaml.YAMLError as error:
            raise UserError(f"--set {pair}: {_one_line(error)}") from None
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
        UserError: not readable, not YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({_one_line(error)}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {_one_line(error)}") from None
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
        problems = "; ".join(_problem(model, content, detail) for detail in error.errors())
        raise UserError(f"{where}: {problems}.") from None


def _problem(model: type[BaseModel], content: Mapping[str, Any], detail: Any) -> str:
    location = [part for part in detail["loc"] if part != "[key]"]
    key = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, location[:-1])
        return f"unknown key {key}{near_match(str(location[-1]), known)}"
    message = detail["msg"].removeprefix("Value error, ")
    value = detail["input"]
    if isinstance(value, str) and _is_number(value):
        message += f", not text; YAML reads {value} as text, write it like 1.0e-4"
    elif not isinstance(value, dict | list) and detail["type"] != "missing":
        message += f", not {value!r}"
    return f"{key}: {message[0].lower()}{message[1:]}" if key else message


def _fields_at(model: type[BaseModel], location: Sequence[Any]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def known_name(name: str, known: Any, what: str, where: str) -> str:
    """``name`` if it is one of ``known``.

    Raises:
        UserError: it is not; says what is near and what there is.
    """
    if name not in known:
        near = near_match(name, list(known))
        raise UserError(f"{where} has no {what} {name!r}{near}. There are: {', '.join(known)}.")
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _NoDuplicates(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that is given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = {str(key) for key in keys if keys.count(key) > 1}
        if repeated:
            raise yaml.constructor.ConstructorError(
                None, None, f"key given twice: {', '.join(sorted(repeated))}", node.start_mark
            )
        return super().construct_mapping(node, deep)
