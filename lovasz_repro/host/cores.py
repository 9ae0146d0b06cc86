"""How many CPU threads a process shall use, so that those on one machine do not fight."""

import os

MOST_WORKERS = 8
"""Processes that decode images, for each GPU."""


def cores() -> int:
    """Cores that this job may use here: what Slurm allotted it, else those it is bound to.

    Not every cluster binds a job to its cores, and threads beyond them slow each other down by far
    more than they help.
    """
    allotted = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if allotted.isdigit():
        return max(int(allotted), 1)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decoding_workers(device: str, ranks: int = 1) -> int:
    """Processes that decode images for each of the ranks on a machine, where nobody says how many.

    On a CPU the training needs the cores itself.
    """
    return 0 if device == "cpu" else min(MOST_WORKERS, cores() // ranks)


def threads_of(processes: int) -> dict[str, str]:
    """Environment that gives each of ``processes`` its part of the cores, unless the user did."""
    if "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(cores() // processes, 1))}
