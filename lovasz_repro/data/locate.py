"""Where data sets and released weights lie: below one data folder, under fixed names.

    <data>/camvid/                      SegNet-layout CamVid
    <data>/cityscapes/                  the official download
    <data>/cityscapes-demo/             what `data demo cityscapes` writes
    <data>/voc/                         the official download of VOC 2012 and SBD, or merged masks
    <data>/voc-demo/                    what `data demo voc` writes
    <data>/own/                         photographs and masks of one's own
    <data>/own-demo/                    what `data demo own` writes
    <data>/camvid-cityscapes/           what `data convert camvid cityscapes` writes
    <data>/weights/enet-model.net       the ENet authors' Cityscapes network
    <data>/weights/deeplab-coco.safetensors     DeepLab-v2 as its authors pre-trained it on COCO

The data folder is ``--data``, else the environment variable LOVASZ_REPRO_DATA, else ``./data``.
"""

import os
from pathlib import Path

from lovasz_repro.config.tables import DATASET_LINES
from lovasz_repro.errors import UserError

ENET_WEIGHT_NAMES = ("enet-model.net", "model-cityscapes.net")
DEEPLAB_COCO = "deeplab-coco.safetensors"
WEIGHT_FILES = {"enet-cityscapes": ENET_WEIGHT_NAMES, "deeplab-coco": (DEEPLAB_COCO,)}
"""Names below <data>/weights/ of the weights that `model.weights` names."""


def data_folder(given: Path | None = None) -> Path:
    """The data folder, whether or not it exists."""
    return given or Path(os.environ.get("LOVASZ_REPRO_DATA") or "data")


def find_dataset(data: Path, name: str) -> Path | None:
    """The folder of a data set, or None where it is not there."""
    folder = data / name
    return folder if folder.is_dir() else None


def find_weights(data: Path, name: str) -> Path | None:
    """The file of released weights, or None where it is not there."""
    files = [data / "weights" / file for file in WEIGHT_FILES[name]]
    return next((file for file in files if file.is_file()), None)


def made_by(name: str) -> str | None:
    """The command that makes a folder of this name, or None where none does."""
    from lovasz_repro.data.demo import DEMOS

    if name == "camvid-cityscapes":
        return "lovasz-repro data convert camvid cityscapes"
    drawn = name.removesuffix("-demo")
    if drawn != name and drawn in DEMOS:
        return f"lovasz-repro data demo {drawn}"
    return None


def dataset_folder(data: Path, name: str) -> Path:
    """The folder of a data set.

    Raises:
        UserError: it is not there; says where it was looked for, and what makes it.
    """
    folder = find_dataset(data, name)
    if folder is None and (command := made_by(name)):
        raise UserError(f"{name} not found at {data / name}. Run: {command}")
    if folder is None:
        says = f"data check {name}" if name in DATASET_LINES else "doctor"
        raise UserError(
            f"{name} not found at {data / name}. Name the folder that holds {name}/ with "
            f"--data or LOVASZ_REPRO_DATA; `lovasz-repro {says}` says where it comes from."
        )
    return folder


def weights_file(data: Path, name: str, given: Path | None = None) -> Path:
    """The file of released weights: the one given, or the one below the data folder.

    Raises:
        UserError: it is not there; says where it was looked for.
    """
    file = given if given is not None else find_weights(data, name)
    if file is None or not file.is_file():
        looked = given or data / "weights" / WEIGHT_FILES[name][0]
        raise UserError(
            f"the weights {name} were not found at {looked}. Name their file with --weights; "
            "`lovasz-repro weights list` says where they come from."
        )
    return file
