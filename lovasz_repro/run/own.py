"""What ``run own`` fills into its experiment: the folder, the classes in it, the network."""

from pathlib import Path
from typing import Any

from lovasz_repro.config.read import known_name, merge
from lovasz_repro.config.schema import ExperimentConfig
from lovasz_repro.data.own_files import check_folder, expect_classes
from lovasz_repro.errors import UserError

BUILT_IN = ("enet", "deeplab-v2", "deeplab-v2-small")
FILES_OF = {"enet": "enet-cityscapes", "deeplab-v2": "deeplab-coco", "callable": "file"}
"""Network -> how ``model.weights`` calls a file that ``--weights`` names for it."""


def filled_in(
    experiment: ExperimentConfig, folder: Path, network: str | None, weights: Path | None
) -> ExperimentConfig:
    """The experiment on a folder, with a network.

    Args:
        experiment: of data of the user's own.
        folder: of the data.
        network: one of `BUILT_IN` or package.module:function; None: that of the experiment.
        weights: file that training starts from; None: what the experiment says.

    Raises:
        UserError: the folder says no classes, or there is no such network.
    """
    check_folder(folder)
    classes = expect_classes(folder)
    data: dict[str, Any] = {"folder": folder.name, "classes": list(classes.names)}
    model = _named(network) if network else {}
    recipe = merge(experiment.recipe, {"data": data, "model": model})
    if str(recipe["model"].get("name", "")).startswith("deeplab"):
        grid = [side + 1 if side % 8 == 0 else side for side in recipe["data"].get("size", ())]
        recipe = merge(recipe, {"data": {"size": grid}})  # DeepLab's crops: 8 n + 1 pixels
    if weights:
        name = recipe["model"]["name"]
        if name not in FILES_OF:
            raise UserError(f"--weights: {name} starts at random alone.")
        recipe = merge(recipe, {"model": {"weights": FILES_OF[name]}})
    return experiment.model_copy(update={"recipe": recipe})


def _named(network: str) -> dict[str, Any]:
    if ":" in network:
        return {"name": "callable", "callable": network}
    known_name(network, BUILT_IN, "network", "--network takes package.module:function, or: it")
    return {"name": network, "callable": None}
