"""A network of the user's own: any callable that makes an ``nn.Module``, asked like the others.

``package.module:function`` is imported and called with the number of classes. It is the user's own
code, named on the command line or in their own experiment file; what a store or an archive brought
is never imported.
"""

import importlib
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lovasz_repro.errors import UserError, one_line
from lovasz_repro.host.files import write_durably
from lovasz_repro.models.snapshot import (
    OF_OWN_NETWORK,
    check_shapes,
    check_values,
    encoded,
    kind_of_file,
    read_pytorch,
    read_safetensors,
    told,
)

SIDE_STEP = 32
"""Images are continued to sides that are multiples of it: networks halve them five times at most,
with few exceptions."""
LOGITS_UNDER = "logits", "out"
"""Where networks that answer with several things have their logits: transformers, torchvision."""


class OwnNetwork(nn.Module):
    """Logits at the size of the images, whatever the user's network answers with.

    Arguments:
        network: RGB (B, 3, H, W) in [0, 1], H and W multiples of `SIDE_STEP`, to logits (B, C, h,
            w), or to a mapping that has them under one of `LOGITS_UNDER`.
        num_classes: C.
        source: where it comes from, `package.module:function`.
    """

    def __init__(self, network: nn.Module, num_classes: int, source: str) -> None:
        super().__init__()
        self.network, self.num_classes, self.source = network, num_classes, source

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, H, W).

        Raises UserError where the network answers with anything else than logits of C classes.
        """
        height, width = images.shape[-2:]
        whole = F.pad(images, (0, -width % SIDE_STEP, 0, -height % SIDE_STEP), mode="replicate")
        logits = self._logits(self.network(whole))
        if logits.shape[-2:] != whole.shape[-2:]:
            size = whole.shape[-2:]
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def _logits(self, answer: Any) -> Tensor:
        if isinstance(answer, Mapping):
            answer = next((answer[key] for key in LOGITS_UNDER if key in answer), answer)
        what = type(answer).__name__
        if isinstance(answer, Tensor):
            if answer.ndim == 4 and answer.shape[1] == self.num_classes:
                return answer
            what = f"a tensor {tuple(answer.shape)}"
        raise UserError(
            f"{self.source} answers with {what}: expected logits (B, {self.num_classes}, h, w), or "
            f"a mapping with {' or '.join(LOGITS_UNDER)}. It is called with the number of classes."
        )


def build_own(source: str, classes: int) -> OwnNetwork:
    """What a callable of the user makes for so many classes.

    Raises UserError in one line where it cannot be imported, fails, or makes no network.
    """
    module, _, name = source.partition(":")
    find_own(source)
    try:
        make = reduce(getattr, name.split("."), importlib.import_module(module))
        network = make(classes)  # type: ignore[operator]
    except Exception as error:  # somebody else's code raises anything
        raise UserError(f"network {source}: {_told(error)}") from error
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        what = type(network).__name__
        raise UserError(
            f"network {source}: called with {classes}, the number of classes, it gives a {what}, "
            "not an nn.Module with parameters."
        )
    return OwnNetwork(network, classes, source)


def find_own(source: str) -> Path | None:
    """The file that a callable's module is in, if it is in one; the current folder is looked in.

    Raises UserError where there is no such module.
    """
    module = source.partition(":")[0]
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(module)
    except Exception as error:  # its package is imported
        raise UserError(f"network {source}: {_told(error)}") from error
    if found is None:
        raise UserError(
            f"network {source}: no module {module} in {os.getcwd()} or among installed packages."
        )
    return Path(found.origin) if found.origin and os.path.isfile(found.origin) else None


@torch.no_grad()
def try_own(model: OwnNetwork, size: Sequence[int]) -> None:
    """Ask a network for a black image of a size, before anything is trained.

    Raises UserError in one line where it fails or answers with no logits.
    """
    weight = next(model.parameters())
    image = torch.zeros(1, 3, *size, dtype=weight.dtype, device=weight.device)
    training = model.training
    try:
        model.eval()(image)
    except UserError:
        raise
    except Exception as error:
        shape = f"(1, 3, {', '.join(str(side + -side % SIDE_STEP) for side in size)})"
        raise UserError(f"network {model.source}: on an image {shape}: {_told(error)}") from error
    model.train(training)


def load_own(model: OwnNetwork, path: Path) -> None:
    """Give a user's network the weights in a file: safetensors, or a state dict that PyTorch reads
    without running code (``weights_only``).

    Raises UserError where the file cannot be read or is of another network.
    """
    advice = (f"They must fit {model.source}; parts of a network, such as all but its classifier, "
              "are loaded best by that function itself.")  # fmt: skip
    with told(path, advice):
        ours = kind_of_file(path) == "safetensors" or path.suffix == ".safetensors"
        tensors = read_safetensors(path)[0] if ours else read_pytorch(path)
        check_shapes(tensors, model.network.state_dict())
        check_values(tensors)
    model.network.load_state_dict(tensors)


def save_own(model: OwnNetwork, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a snapshot under the names that the user's network itself has for its tensors.

    Raises ValueError for a missing entry of the metadata, OSError where the file cannot be written.
    """
    tensors = {name: t.detach().clone() for name, t in model.network.state_dict().items()}
    own = {"callable": model.source}
    write_durably(path, encoded(OF_OWN_NETWORK, tensors, metadata, model.num_classes, own))


def _told(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 300)
