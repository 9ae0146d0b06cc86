"""Which device to compute on."""

import torch

from lovasz_repro.errors import UserError


def choose_device(name: str) -> torch.device:
    """ "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; others are a UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device '{name}': expected auto, cpu, cuda or cuda:<number>.") from None
    count = torch.cuda.device_count()
    if device.type not in {"cpu", "cuda"} or (
        device.type == "cuda" and (device.index or 0) >= count
    ):
        raise UserError(f"device '{name}': this machine has {count} CUDA devices.")
    return device
