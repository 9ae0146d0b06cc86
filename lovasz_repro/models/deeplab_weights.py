"""Weights of DeepLab-v2: our safetensors files, with or without a classifier.

Files that others released are not read here but converted once, see `convert_deeplab`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import open_regular, write_durably
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.deeplab_tensors import (
    backbone_sizes,
    block_counts,
    check_shapes,
    check_values,
    fitting_network,
    stored_tensors,
    without_classifier,
)
from lovasz_repro.models.snapshot_file import class_names, ordered, read_safetensors

ARCHITECTURE = "deeplab-v2"


@dataclass(frozen=True)
class DeepLabWeights:
    """Weights of a DeepLab and what they were trained for.

    Attributes:
        tensors: those of `stored_tensors`, on the CPU; without `aspp.*` where the file has the
            backbone alone.
        num_classes: number of outputs, None for the backbone alone.
        dataset: short name of the data set, "unknown" where the file does not say.
        class_names: one for each output; empty where the file does not say.
        notes: whatever else the metadata holds (run id, git commit, where it was converted from).
    """

    tensors: dict[str, Tensor]
    num_classes: int | None
    dataset: str
    class_names: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def load_into(self, model: DeepLab, *, classifier: bool = True) -> None:
        """Copy the weights into `model`, in place, on any device.

        Arguments:
            model: with the same blocks and width, and with a classifier the same outputs.
            classifier: whether `model.aspp` is loaded too; False leaves it as it is.

        Raises UserError, and leaves `model` as it is, where the sizes differ or where a
        classifier is wanted and there is none.
        """
        own = stored_tensors(model)
        have, want = backbone_sizes(self.tensors), backbone_sizes(own)
        if have != want:
            raise UserError(f"The weights are of a DeepLab with {have}; the model has {want}.")
        if classifier and self.num_classes is None:
            raise UserError("The weights hold the backbone alone, without a classifier: train one.")
        if classifier and self.num_classes != model.num_classes:
            raise UserError(
                f"The weights have {self.num_classes} outputs, the model {model.num_classes}."
            )
        tensors = self.tensors
        if not classifier:
            own, tensors = without_classifier(own), without_classifier(tensors)
        try:
            check_shapes(tensors, own)
        except ValueError as error:
            raise UserError(f"The weights do not fit the model: {error}.") from error
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)


def load_deeplab_weights(path: Path) -> DeepLabWeights:
    """The weights in one of our .safetensors files.

    Raises UserError where the file is missing, damaged, or somebody else's.
    """
    try:
        with open_regular(path) as file:
            head = file.read(9)
        if head[8:] != b"{":
            raise ForeignFile("no safetensors file")
        return read_weights(path)
    except OSError as error:
        raise UserError(f"weights {path}: {error.strerror or error}") from error
    except ForeignFile as error:
        raise UserError(
            f"weights {path}: {error}. Released weights are converted once: "
            f"lovasz-repro weights convert {path} DST.safetensors"
        ) from error
    except ValueError as error:
        raise UserError(f"weights {path}: {error}. Convert or fetch it again.") from error


class ForeignFile(ValueError):
    """A weight file that is not one of ours; perhaps it can be converted."""


def read_weights(path: Path) -> DeepLabWeights:
    """Weights in one of our files; raises ValueError where it is damaged or not ours."""
    tensors, notes = read_safetensors(path)
    architecture = notes.pop("architecture", "")
    if architecture != ARCHITECTURE:
        what = f"weights of {architecture[:60]!r}" if architecture else "no weights of ours"
        raise ForeignFile(f"{what}, not of {ARCHITECTURE!r}")
    model = fitting_network(tensors)
    check_values(tensors)
    has_classifier = "aspp.0.bias" in tensors
    for key, value in sizes(tensors).items():
        if notes.pop(key, None) != value:
            raise ValueError(f"its metadata entry {key!r} disagrees with its tensors ({value})")
    names = class_names(notes.pop("class_names", ""))
    check_names(names, model.num_classes if has_classifier else None)
    return DeepLabWeights(
        tensors=tensors,
        num_classes=model.num_classes if has_classifier else None,
        dataset=notes.pop("dataset", "unknown"),
        class_names=names,
        notes=notes,
    )


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Metadata entries that tell people what the tensors themselves tell us."""
    bias = tensors.get("aspp.0.bias")
    return {
        "blocks": json.dumps(block_counts(tensors)),
        "width": str(len(tensors["conv1.weight"])),
        "num_classes": "none" if bias is None else str(len(bias)),
    }


def check_names(names: tuple[str, ...], outputs: int | None) -> None:
    """Raise ValueError unless there are no class names or one for each output."""
    if names and len(names) != outputs:
        raise ValueError(f"{len(names)} class names for {outputs or 'no'} outputs")


def save_deeplab_weights(model: DeepLab, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a snapshot that `load_deeplab_weights` reads; see `write_converted`.

    `model` may be on any device, in any memory format; "class_names" must be one per output.
    """
    entries = {"bn_eps": model.bn1.eps, **metadata}
    if "class_names" in entries and len(entries["class_names"]) != model.num_classes:
        names = len(entries["class_names"])
        raise ValueError(f"{names} class names for {model.num_classes} outputs")
    write_converted(stored_tensors(model), path, entries)


def write_converted(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights, with or without a classifier; never leaves a half-written file at `path`.

    Equal weights and metadata give equal bytes.

    Arguments:
        tensors: all of `stored_tensors`, or all but `aspp.*`.
        path: ends in .safetensors.
        metadata: "dataset" (short name) and "class_names" (one for each output, or none) are
            required; further entries are stored as strings and come back as `notes`.

    Raises ValueError where an entry is missing or the tensors are those of no DeepLab, OSError
    where the file cannot be written.
    """
    write_durably(path, encoded(tensors, metadata))


def encoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> bytes:
    """The bytes of the file that `write_converted` writes."""
    entries = dict(metadata)
    try:
        dataset, names = entries.pop("dataset"), tuple(entries.pop("class_names"))
    except KeyError as error:
        raise ValueError(f"metadata needs an entry {error}") from error
    kept = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    model = fitting_network(kept)
    check_names(names, model.num_classes if "aspp.0.bias" in kept else None)
    header = {key: str(value) for key, value in entries.items()} | {
        "architecture": ARCHITECTURE,
        "dataset": str(dataset),
        "class_names": json.dumps(names),
        **sizes(kept),
    }
    return ordered(safetensors.torch.save(kept, header))
