"""The machine that is measured: its name in titles, how busy it is, when its memory is full."""

import os

import torch


def device_title(name: str, device: torch.device, threads: int) -> str:
    """ "CPU (2 threads)", or the name of a GPU."""
    if device.type != "cpu":
        return name
    return f"CPU ({threads} {'thread' if threads == 1 else 'threads'})"


def load() -> float | None:
    """Processes that wanted a core in the last minute, this one included; None: not known."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        return None


def contended(load: float | None) -> bool:
    """Whether that is more than there are cores: who waits for others then waits long."""
    return load is not None and load > (os.cpu_count() or 1) + 0.5


def warning(load: float | None) -> str:
    """What to think of times that were measured on a busy machine."""
    return (
        f"Other programs kept the machine busy (load average {load:.1f}, {os.cpu_count()} cores): "
        "these times may mislead."
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """A CPU allocation that fails has no exception of its own."""
    cpu = "can't allocate memory", "not enough memory"
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in cpu)


def synchronise(device: torch.device) -> None:
    """Wait for what the device was asked to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
