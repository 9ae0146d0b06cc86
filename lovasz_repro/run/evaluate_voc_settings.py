"""How ``evaluate`` predicts on VOC: what is asked for, over what the run was trained with."""

import ast
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from lovasz_repro.config.read import validate
from lovasz_repro.config.schema import CrfConfig, MultiScaleConfig
from lovasz_repro.errors import UserError

MULTI_SCALE, CRF = "evaluation.multi_scale", "evaluation.crf"


@dataclass(frozen=True)
class VocOptions:
    """Options of the command that are of VOC alone, as they were given."""

    multi_scale: bool = False
    scales: str | None = None
    """Numbers with commas between."""
    fusion: str | None = None
    least_side: int | None = None
    crf: bool = False
    crf_set: Sequence[str] = ()
    """NAME=VALUE[,VALUE...]"""
    images: int | None = None

    @property
    def given(self) -> list[str]:
        """What they are called on the command line."""
        return [f"--{name.replace('_', '-')}" for name, value in vars(self).items() if value]


@dataclass(frozen=True)
class VocSettings:
    """How photographs are predicted."""

    multi_scale: MultiScaleConfig | None
    """None: single-scale."""
    crfs: tuple[CrfConfig, ...]
    """Parameters of the CRF; several are compared."""


def settings_of(options: VocOptions, params: Mapping[str, str]) -> VocSettings:
    """What is asked for; a run's own settings are the defaults, else those of the paper.

    Args:
        options: of the command.
        params: of the run, by dotted key; empty for a file.

    Raises:
        UserError: a value that cannot be.
    """
    asked = {
        "scales": None if options.scales is None else parse_scales(options.scales),
        "fusion": options.fusion,
        "least_side": options.least_side,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    grid = parse_grid(options.crf_set)
    with_crf = options.crf or bool(grid)
    if not (options.multi_scale or asked or with_crf):
        return VocSettings(None, ())
    content = own_settings(params, MULTI_SCALE) | asked
    multi_scale = validate(MultiScaleConfig, content, "--scales, --fusion, --least-side")
    if not with_crf:
        return VocSettings(multi_scale, ())
    own, names = own_settings(params, CRF), list(grid)
    crfs = [
        validate(CrfConfig, own | dict(zip(names, values, strict=True)), "--crf-set")
        for values in product(*grid.values())
    ]
    return VocSettings(multi_scale, tuple(dict.fromkeys(crfs)))  # 3 and 3.0 are one value


def own_settings(params: Mapping[str, str], under: str) -> dict[str, Any]:
    """What a run was told below a dotted key; empty where that is null."""
    below = {key.removeprefix(f"{under}."): text for key, text in params.items() if
             key.startswith(f"{under}.")}  # fmt: skip
    return {name: literal(text) for name, text in below.items()}


def literal(text: str) -> Any:
    """A value that ``str`` has written, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parse_scales(text: str) -> list[float]:
    """``1,0.75,0.5`` as numbers.

    Raises:
        UserError: something else.
    """
    scales = [number(part) for part in text.split(",")]
    if any(isinstance(scale, str) for scale in scales):
        raise UserError(f"--scales {text}: give numbers like 1,0.75,0.5.")
    return [float(scale) for scale in scales]


def parse_grid(pairs: Sequence[str]) -> dict[str, list[float | str]]:
    """``["bilateral_rgb=3,5"]`` -> ``{"bilateral_rgb": [3, 5]}``.

    Raises:
        UserError: no such pair, a value is missing, or a name is given twice.
    """
    grid: dict[str, list[float | str]] = {}
    for pair in pairs:
        name, _, text = (part.strip() for part in pair.partition("="))
        values = [number(part) for part in text.split(",")]
        if not name or "" in values:
            raise UserError(f"--crf-set {pair}: expected NAME=VALUE or NAME=VALUE,VALUE, for "
                            "example bilateral_rgb=3,4,5.")  # fmt: skip
        if name in grid:
            raise UserError(f"--crf-set {name}: given twice; write {name}=VALUE,VALUE.")
        grid[name] = values
    return grid


def number(text: str) -> float | int | str:
    """A number, whole where it is written so; the text where it is none."""
    text = text.strip()
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text
