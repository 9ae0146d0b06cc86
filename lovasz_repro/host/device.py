"""Which device to compute on."""

import numpy as np
import torch

from lovasz_repro.errors import UserError


def choose_device(name: str) -> torch.device:
    """ "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; others are a UserError.

    From here on this process takes numbers below 1.2e-38 for 0, in the threads it starts later too.
    One weight in twenty of the ENet authors' network is that small, and each costs a CPU hundreds
    of cycles a product: a training step took four times as long.
    """
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # looks once, and would warn of what it finds below
    torch.set_flush_denormal(True)
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
