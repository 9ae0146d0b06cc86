"""A resolved grid, written back as the experiment file that would give it."""

from collections.abc import Mapping, Sequence
from typing import Any

from lovasz_repro.config.read import SPELT_OUT
from lovasz_repro.config.schema import CellConfig, ExperimentConfig

OUTSIDE_RECIPE = {"experiment", "profile", "scale", "variant", "seed", "start"}
"""What a file says of a cell elsewhere than in its recipe."""


def experiment_of(experiment: ExperimentConfig, cells: Sequence[CellConfig]) -> dict[str, Any]:
    """The file of an experiment whose only profile has these cells, with every setting spelt out.

    Args:
        experiment: what the cells are of.
        cells: of one profile.
    """
    firsts: dict[str, CellConfig] = {}
    for cell in cells:
        firsts.setdefault(cell.variant, cell)
    recipe, profile = settings(cells[0]), cells[0].profile
    order = unique([*(experiment.profiles[profile].only or ()), *experiment.variants])
    about = ("experiment", "kind", "title", "section", "claim", "cost")
    return {key: getattr(experiment, key) for key in about} | {
        "seeds": unique(cell.seed for cell in cells),
        "batch_sizes": unique(cell.training.batch_size for cell in cells),
        "categories": unique(cell.data.category for cell in cells if cell.data.category),
        "recipe": recipe,
        "variants": {
            name: changes(recipe, settings(firsts[name])) | axes(name, cells)
            for name in order
            if name in firsts
        },
        "profiles": {
            profile: {"scale": cells[0].scale, "about": experiment.profiles[profile].about}
        },
    }


def settings(cell: CellConfig) -> dict[str, Any]:
    """A cell's recipe, without what the axes of the grid say."""
    content = cell.model_dump(mode="json", exclude=OUTSIDE_RECIPE, context=SPELT_OUT)
    del content["training"]["batch_size"], content["data"]["category"]
    return content


def axes(variant: str, cells: Sequence[CellConfig]) -> dict[str, Any]:
    """The batch sizes and categories that a variant runs with, where they are not all."""
    own = [cell for cell in cells if cell.variant == variant]
    found: dict[str, Any] = {}
    sizes = unique(cell.training.batch_size for cell in own)
    if set(sizes) != {cell.training.batch_size for cell in cells}:
        found["batch_sizes"] = sizes
    categories = unique(cell.data.category for cell in own if cell.data.category)
    if set(categories) != {cell.data.category for cell in cells if cell.data.category}:
        found["categories"] = categories
    return found


def changes(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What ``merge`` lays over ``base`` to have ``other``; the terms of a loss are taken whole."""
    found: dict[str, Any] = {}
    for key, value in other.items():
        before = base.get(key)
        if value == before:
            continue
        if isinstance(value, Mapping) and isinstance(before, Mapping) and key != "terms":
            value = changes(before, value)
        found[key] = value
    return found


def unique(values: Any) -> list[Any]:
    """Each value once, in order."""
    return list(dict.fromkeys(values))
