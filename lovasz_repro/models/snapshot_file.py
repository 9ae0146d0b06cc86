"""What our weight files share: safetensors with metadata, equal bytes for equal weights.

A file is the length of its header (8 bytes), the header as JSON padded to a multiple of 8, and
the tensors. The header's entry `__metadata__` maps strings to strings.
"""

import json
from pathlib import Path

import safetensors
from torch import Tensor

from lovasz_repro.host.files import open_regular


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file.

    Raises OSError where the file cannot be read and ValueError where it is not such a file.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"unreadable safetensors file ({error})") from error


def class_names(text: str) -> tuple[str, ...]:
    """Class names from a JSON list of strings; raises ValueError where it is none."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its metadata entry 'class_names' is no list of names")
    return tuple(names)


def ordered(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: equal weights give equal bytes.

    The library writes the metadata in random order.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def architecture_of(path: Path) -> str | None:
    """Which network one of our files is of, or None for any other file or none at all."""
    try:
        with open_regular(path), safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("architecture")
    except (OSError, safetensors.SafetensorError):
        return None
