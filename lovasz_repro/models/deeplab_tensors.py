"""Which tensors a DeepLab-v2 consists of, and whether given ones are those of one.

Stored are the tensors that a released port stores: 520 of the backbone and 8 of the classifier
for ResNet-101, without the counters `num_batches_tracked` that frozen batch normalisations have
no use for.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from lovasz_repro.models.deeplab import DeepLab

BLOCK = re.compile(r"(layer[1-4])\.(\w+)\.")
MAX_BLOCKS = 200  # ResNet-152 has 50


def stored_tensors(model: DeepLab) -> dict[str, Tensor]:
    """The part of a state dict that files hold; shares memory with `model`."""
    state = model.state_dict()
    return {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")}


def without_classifier(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the backbone."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("aspp.")}


def backbone_sizes(tensors: Mapping[str, Tensor]) -> str:
    """In words what `tensors`, checked or of a model, say of depth and width."""
    return f"blocks {block_counts(tensors)} and width {len(tensors['conv1.weight'])}"


def block_counts(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many bottlenecks layer1 to layer4 have by the names."""
    found = {match.groups() for name in tensors if (match := BLOCK.match(name))}
    return tuple(sum(stage == f"layer{k}" for stage, _ in found) for k in (1, 2, 3, 4))


def fitting_network(tensors: Mapping[str, Tensor]) -> DeepLab:
    """The DeepLab, without storage, that `tensors` are the weights of; draws no random numbers.

    Without `aspp.*` its classifier has one output, and none of `tensors` is for it.

    Raises ValueError naming the first difference where no DeepLab has exactly these tensors.
    """
    stem = tensors.get("conv1.weight")
    if stem is None or stem.shape[1:] != (3, 7, 7):
        raise ValueError("not a DeepLab-v2: no 'conv1.weight' of shape (width, 3, 7, 7)")
    blocks = block_counts(tensors)
    if sum(blocks) > MAX_BLOCKS:
        raise ValueError(f"not a DeepLab-v2: {sum(blocks)} blocks, more than {MAX_BLOCKS}")
    bias = tensors.get("aspp.0.bias")
    outputs = 1 if bias is None else bias.numel()
    try:
        with torch.device("meta"):
            model = DeepLab(outputs, blocks, len(stem))
        expected = stored_tensors(model)
        if len(without_classifier(tensors)) == len(tensors):
            expected = without_classifier(expected)
        check_shapes(tensors, expected)
    except ValueError as error:
        raise ValueError(f"not a DeepLab-v2: {error}") from error
    return model


def check_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the first difference in names, shapes or types."""
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    if missing or surplus:
        name, count = (missing or surplus)[0], len(missing or surplus)
        raise ValueError(f"{'lacks' if missing else 'surplus'} tensor {name[:80]!r} ({count} such)")
    for name, tensor in tensors.items():
        have, want = (tensor.dtype, tensor.shape), (expected[name].dtype, expected[name].shape)
        if have != want:
            raise ValueError(
                f"tensor {name!r} is {have[0]} {tuple(have[1])}, not {want[0]} {tuple(want[1])}"
            )


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming a tensor that is not finite, or a variance below 0."""
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"tensor {name!r} holds values that are not finite")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"tensor {name!r} holds a variance below 0")
