"""Weights of ENet: the authors' Torch7 file, our own snapshots, and a classifier for new classes.

Everything ends in a state dict of `ENet` plus what one must know to use it: data set, class
names, decoder, dropout convention. A file of another architecture, a damaged one or one with
values that are not finite ends in a `UserError` of one line.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn

from lovasz_repro.errors import UserError
from lovasz_repro.host.files import open_regular, write_durably
from lovasz_repro.models.enet import Activation, ENet
from lovasz_repro.models.layers import DropoutConvention
from lovasz_repro.models.snapshot_file import class_names, ordered, read_safetensors
from lovasz_repro.models.torch7 import read_torch7
from lovasz_repro.models.torch7_enet import enet_tensors

RELEASED_OUTPUTS = 20  # the released network: "unlabelled" and the 19 classes of Cityscapes


@dataclass(frozen=True)
class Weights:
    """Weights of an ENet and what they were trained for.

    Attributes:
        tensors: state dict of `ENet`, on the CPU.
        num_classes: number of outputs.
        decoder: see `ENet`.
        dropout_convention: see `ENet`.
        dataset: short name of the data set, "unknown" where the file does not say.
        class_names: one for each output; empty where the file does not say.
        notes: whatever else a snapshot's metadata holds (run id, git commit, score).
    """

    tensors: dict[str, Tensor]
    num_classes: int
    decoder: Activation
    dropout_convention: DropoutConvention
    dataset: str
    class_names: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)

    def build(self) -> ENet:
        """The network with a copy of these weights, in training mode; draws no random numbers."""
        model = self.empty_model()
        model.load_state_dict({k: v.clone() for k, v in self.tensors.items()}, assign=True)
        return model

    def empty_model(self) -> ENet:
        """The network without storage for its weights."""
        with torch.device("meta"):
            return ENet(self.num_classes, self.decoder, self.dropout_convention)


def check_tensors(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raise ValueError, naming the first difference, unless `tensors` fit `model` exactly."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    if missing or surplus:
        name, count = (missing or surplus)[0], len(missing or surplus)
        what = "lacks" if missing else "has a surplus"
        raise ValueError(f"not an ENet: {what} tensor {name!r} ({count} such)")
    for name, tensor in tensors.items():
        shape, wanted = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != wanted or tensor.dtype != expected[name].dtype:
            raise ValueError(
                f"tensor {name!r} is {tensor.dtype} {shape}, not {expected[name].dtype} {wanted}"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} holds values that are not finite")


def load_weights(path: Path) -> Weights:
    """Weights of an ENet from the authors' Torch7 file or from one of our snapshots.

    The kind of file is told by its content. Raises UserError where the file is missing,
    unreadable, damaged, or not an ENet.
    """
    try:
        with open_regular(path) as file:
            head = file.read(9)
        if head[8:] == b"{" or path.suffix == ".safetensors":
            weights = read_snapshot(path)
        elif head[:1] == b"\x80" or head[:4] == b"PK\x03\x04":
            raise ValueError("a PyTorch pickle, which is not read")
        else:
            weights = read_released(path)
        check_tensors(weights.tensors, weights.empty_model())
    except OSError as error:
        raise UserError(f"weights {path}: {error.strerror or error}") from error
    except ValueError as error:
        problem = str(error).removeprefix(f"{path}: ")
        raise UserError(
            f"weights {path}: {problem}. "
            "Give the authors' Torch7 file (enet-model.net) or a .safetensors snapshot of a run"
        ) from error
    return weights


def load_enet(path: Path) -> ENet:
    """The network in a weight file, see `load_weights`; on the CPU, in training mode."""
    return load_weights(path).build()


def read_released(path: Path) -> Weights:
    """Weights in a Torch7 file; raises ValueError where it is damaged or not an ENet."""
    tensors, decoder = enet_tensors(read_torch7(path))
    outputs = tensors["classifier.bias"].shape[0]
    dataset = "cityscapes" if outputs == RELEASED_OUTPUTS else "unknown"
    return Weights(tensors, outputs, decoder, "torch7", dataset)


def read_snapshot(path: Path) -> Weights:
    """Weights in one of our .safetensors files; raises ValueError where it is not one."""
    tensors, notes = read_safetensors(path)
    architecture = notes.pop("architecture", "missing")
    if architecture != "enet":
        raise ValueError(f"not an ENet: architecture {architecture[:60]!r} in its metadata")
    try:
        names = class_names(notes.pop("class_names"))
        if notes.pop("num_classes") != str(len(names)):
            raise ValueError(f"its metadata names {len(names)} classes, but counts others")
        return Weights(
            tensors=tensors,
            num_classes=len(names),
            decoder=cast(Activation, notes.pop("decoder")),
            dropout_convention=cast(DropoutConvention, notes.pop("dropout_convention")),
            dataset=notes.pop("dataset"),
            class_names=names,
            notes=notes,
        )
    except KeyError as error:
        raise ValueError(f"its metadata has no entry {error}") from error


def save_weights(model: ENet, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a snapshot that `load_weights` reads; never leaves a half-written file at `path`.

    Arguments:
        model: any device, any memory format.
        path: ends in .safetensors.
        metadata: "dataset" (short name) and "class_names" (one for each output) are required;
            further entries are stored as strings and come back as `Weights.notes`.

    Raises ValueError for a missing entry or a wrong number of names, OSError where the file
    cannot be written.
    """
    entries = dict(metadata)
    try:
        dataset, names = entries.pop("dataset"), list(entries.pop("class_names"))
    except KeyError as error:
        raise ValueError(f"metadata needs an entry {error}") from error
    if len(names) != model.num_classes:
        raise ValueError(f"{len(names)} class names for {model.num_classes} outputs")
    header = {key: str(value) for key, value in entries.items()} | {
        "architecture": "enet",
        "num_classes": str(model.num_classes),
        "decoder": model.decoder,
        "dropout_convention": model.dropout_convention,
        "dataset": str(dataset),
        "class_names": json.dumps(names),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    write_durably(path, ordered(safetensors.torch.save(tensors, header)))


def map_classifier(model: ENet, class_mapping: Mapping[int, int | None]) -> ENet:
    """A copy of `model` whose classifier answers for new classes; `model` stays as it is.

    Arguments:
        model: any ENet.
        class_mapping: new class 0..N-1 -> output of `model` that it starts from, or None for
            a newly initialised one (drawn from torch's global generator).

    Returns the network with N outputs, every other weight being a copy, in `model`'s mode.
    Raises ValueError unless the keys are 0..N-1 and the values outputs of `model`.
    """
    count = len(class_mapping)
    if sorted(class_mapping) != list(range(count)) or count == 0:
        raise ValueError(f"class_mapping must have the keys 0..N-1, got {sorted(class_mapping)}")
    for new, old in class_mapping.items():
        if old is not None and not 0 <= old < model.num_classes:
            raise ValueError(f"class {new} cannot start from {old} of {model.num_classes} outputs")
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    fresh = nn.ConvTranspose2d(model.classifier.in_channels, count, kernel_size=2, stride=2)
    for name, values in fresh.state_dict(prefix="classifier.").items():
        tensors[name] = _mapped(values, tensors[name], class_mapping)
    mapped = ENet(count, model.decoder, model.dropout_convention)
    mapped.load_state_dict(tensors, assign=True)
    return mapped.train(model.training)


def _mapped(fresh: Tensor, old: Tensor, class_mapping: Mapping[int, int | None]) -> Tensor:
    """`fresh` (in, N, 2, 2) or (N,) on `old`'s device, mapped classes taken from `old`."""
    result = fresh.to(old)
    axis = 0 if old.ndim == 1 else 1  # a transposed convolution stores inputs first
    for new, source in class_mapping.items():
        if source is not None:
            result.select(axis, new).copy_(old.select(axis, source))
    return result
