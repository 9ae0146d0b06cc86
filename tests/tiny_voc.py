"""A small tree in the popular layout of Pascal VOC: blocks of class colours with void between."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from scipy.io import savemat  # type: ignore[import-untyped]

from lovasz_repro.config.schema import experiments_folder
from lovasz_repro.data.voc import JPEGS, MERGED_MASKS, VOC_LISTS

CLASSES_USED = (3, 8, 15)
"""bird, cat and person; the background is everywhere."""


def write_voc(
    root: Path, *, train: int = 9, val: int = 6, photographs: bool = True, seed: int = 0
) -> Path:
    """Write images of 40 to 60 pixels a side; image k holds class ``CLASSES_USED[k % 3]``."""
    folder = root / "VOC2012"
    for part in (JPEGS, MERGED_MASKS, VOC_LISTS):
        (folder / part).mkdir(parents=True)
    generator = np.random.default_rng(seed)
    start = 0
    for split, count in (("train_aug", train), ("val", val)):
        names = [f"2007_{number:06}" for number in range(start, start + count)]
        start += count
        (folder / VOC_LISTS / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for number, name in enumerate(names):
            labels = _labels(CLASSES_USED[number % 3], generator)
            Image.fromarray(labels).save(folder / MERGED_MASKS / f"{name}.png")
            if photographs:
                Image.fromarray(_photograph(labels, generator)).save(
                    folder / JPEGS / f"{name}.jpg", quality=95
                )
    return root


def _labels(category: int, generator: np.random.Generator) -> np.ndarray:
    height, width = generator.integers(40, 61, 2)
    labels = np.zeros((height, width), dtype=np.uint8)
    top, left = generator.integers(4, 14, 2)
    bottom, right = top + generator.integers(14, 24), left + generator.integers(14, 24)
    labels[top - 1 : bottom + 1, left - 1 : right + 1] = 255
    labels[top:bottom, left:right] = category
    return labels


def _photograph(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    colours = np.random.default_rng(7).integers(40, 216, (256, 3))
    noise = generator.normal(0, 12, (*labels.shape, 3))
    return np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)


def write_binary_experiment(folder: Path, name: str = "voc-binary", **training: Any) -> Path:
    """voc-binary.yaml for such a tree in the folder "tiny": two classes, four steps of a run.

    Args:
        folder: for the file.
        name: of the experiment.
        training: options of every run.
    """
    content = yaml.safe_load((experiments_folder() / "voc-binary.yaml").read_text())
    content |= {"experiment": name, "batch_sizes": [3]}
    for profile in ("features", "demo"):
        size = content["profiles"][profile]
        size["categories"] = ["bird", "cat"]
        size["recipe"]["data"] |= {"folder": "tiny", "size": [33, 33]}
        size["recipe"]["training"] |= {"iterations": 4, "validate_every": 4, "checkpoint_every": 2}
        size["recipe"]["training"] |= training
        size["recipe"]["evaluation"] = {"examples": 2}
        size["variants"]["basis"]["training"] |= {"iterations": 6, "validate_every": 3} | training
        size["variants"]["basis"]["evaluation"] = {"examples": 0}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def write_multiclass_experiment(
    folder: Path, name: str = "voc-multiclass", **evaluation: Any
) -> Path:
    """voc-multiclass.yaml for such a tree: four steps of a run at random, three scales, the CRF.

    Args:
        folder: for the file.
        name: of the experiment.
        evaluation: options of every run, in place of these.
    """
    content = yaml.safe_load((experiments_folder() / "voc-multiclass.yaml").read_text())
    content |= {"experiment": name, "batch_sizes": [3]}
    for variant in content["variants"].values():
        variant.pop("batch_sizes", None)
    size = content["profiles"]["demo"]
    size["variants"] = {}
    size["recipe"]["data"] |= {"folder": "tiny", "size": [33, 33]}
    size["recipe"]["model"]["weights"] = None
    size["recipe"]["training"] |= {"iterations": 4, "validate_every": 4, "checkpoint_every": 2}
    size["recipe"]["evaluation"] = {
        "least_side": None,
        "multi_scale": {"least_side": 65},
        "crf": {"iterations": 2},
        "batches": None,
        "examples": 0,
    } | evaluation
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def put(file: Path, content: Any) -> None:
    """Write a list of names (.txt), labels as SBD has them (.mat), or pixels."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".txt":
        file.write_text("".join(f"{name}\n" for name in content))
    elif file.suffix == ".mat":
        savemat(file, {"GTcls": {"Segmentation": content}}, do_compression=True)
    else:
        Image.fromarray(content).save(file)
