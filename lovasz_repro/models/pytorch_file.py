"""Reader of the PyTorch files (.pth, .pt) in which others released weights.

They hold a pickle. PyTorch's restricted unpickler (`weights_only`) reads it: it makes tensors
and plain containers and calls nothing that a file names. What a small file may claim to be, a
huge tensor by a stride of 0 or by compression, is refused before anything walks over it.
"""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAX_PYTORCH_BYTES = 2**31  # the largest released DeepLab has less than a third of it
NESTED_IN = ("state_dict", "model")  # entries under which trainers put the state dict


def read_pytorch(path: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file, on the CPU; at the top, or in one of `NESTED_IN`.

    Raises OSError where the file cannot be read, and ValueError where it is damaged, wants code
    to run, or holds anything but a dict of plain tensors.
    """
    size = path.stat().st_size
    if size > MAX_PYTORCH_BYTES:
        raise ValueError(f"{size} bytes is too large for a network (at most 2 GiB)")
    with path.open("rb") as file:
        archive = file.read(4) == b"PK\x03\x04"  # since PyTorch 1.6
    if archive:
        check_archive(path, size)
    content = state_dict(load(path))
    plain = {name: plain_tensor(name, value) for name, value in content.items()}
    announced = sum(tensor.numel() * tensor.element_size() for tensor in plain.values())
    if announced > size:
        raise ValueError(f"its tensors claim {announced} bytes, the file has {size}")
    return plain


def check_archive(path: Path, size: int) -> None:
    """Raise ValueError unless a zip file is PyTorch's: uncompressed, with one pickle."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # damaged archives make it raise almost anything
        raise ValueError(f"a damaged archive ({one_line(error)})") from error
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        names = ", ".join(repr(entry.filename[:60]) for entry in entries[:4]) or "nothing"
        raise ValueError(f"an archive with {names}: unpack it and give the weights inside")
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > size:
        raise ValueError("an archive that is compressed, as PyTorch's are not")


def load(path: Path) -> Any:
    """What the restricted unpickler makes of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of attributes in damaged files, refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError("a damaged PyTorch file, or one that wants code to run") from error
    except Exception as error:  # damaged files make it raise almost anything
        raise ValueError(f"a damaged PyTorch file ({one_line(error)})") from error


def one_line(error: Exception) -> str:
    """The beginning of a library's message, or its type where it has none."""
    return repr(" ".join(str(error).split())[:120] or type(error).__name__)


def state_dict(content: Any) -> dict[Any, Any]:
    """The dict of tensors in what a file holds."""
    if isinstance(content, dict):
        entries = entries_of(content)
        nested = (entries[key] for key in NESTED_IN if isinstance(entries.get(key), dict))
        return next((entries_of(inner) for inner in nested), entries)
    raise ValueError(f"a PyTorch file with a {type(content).__name__}, not a state dict")


def entries_of(content: dict[Any, Any]) -> dict[Any, Any]:
    """A plain dict: a pickle may give an OrderedDict attributes that hide its methods."""
    return dict(dict.items(content))


def plain_tensor(name: Any, value: Any) -> Tensor:
    """`value` if it is a dense tensor with a name, else ValueError."""
    if not isinstance(name, str):
        raise ValueError(f"a state dict with a {type(name).__name__} as a name")
    if type(value) not in (Tensor, nn.Parameter) or vars(value):
        raise ValueError(f"entry {name[:80]!r} is a {type(value).__name__}, not a plain tensor")
    if value.layout is not torch.strided or value.is_quantized or value.device.type != "cpu":
        raise ValueError(f"tensor {name[:80]!r} is sparse, quantised or without content")
    tensor: Tensor = value.detach()
    return tensor
