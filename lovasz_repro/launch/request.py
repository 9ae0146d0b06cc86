"""What the user asked ``run`` for, and the command line that runs one cell of it."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lovasz_repro.config.schema import CellConfig, ExperimentConfig


@dataclass(frozen=True)
class GridRequest:
    """A grid and where it runs; nothing in it needs torch."""

    source: str
    """Name of the experiment, or its file."""
    experiment: ExperimentConfig
    cells: list[CellConfig]
    overrides: list[str]
    """As given with ``--set``."""
    results: Path
    data: Path
    weights: Path | None = None
    basis: Path | None = None
    """Weights in the place of a trained basis network."""
    tracking_uri: str | None = None
    device: str = "auto"
    workers: int | None = None
    """Processes that decode images; None: 0 on a CPU, up to 4 for each GPU."""
    gpus: int | None = None
    """Ranks on this machine's GPUs; None where it was not said."""
    procs: int | None = None
    """Ranks on this machine's CPUs."""
    nodes: int = 1
    more: Sequence[str] = ()
    """Options as given that only this experiment takes."""
    tuned: bool = False
    """Whether cells have learning rates of their own."""

    @property
    def per_node(self) -> int:
        """Ranks on each machine."""
        return self.procs or self.gpus or 1


def cell_command(request: GridRequest, cell: CellConfig) -> list[str]:
    """The command that runs one cell, and that a person could type."""
    command = [sys.executable, "-P", "-m", "lovasz_repro.cli", "run", request.source]
    command += ["--profile", cell.profile, "--variant", cell.variant]
    command += ["--seed", str(cell.seed), "--batch-size", str(cell.training.batch_size)]
    if cell.data.category:
        command += ["--classes", cell.data.category]
    for override in request.overrides:
        command += ["--set", override]
    command += ["--results", str(request.results.absolute())]
    command += ["--data", str(request.data.absolute()), "--device", request.device]
    for option, value in (
        ("--weights", request.weights and request.weights.absolute()),
        ("--basis", request.basis and request.basis.absolute()),
        ("--tracking-uri", request.tracking_uri),
        ("--workers", request.workers),
        ("--gpus", request.gpus),
        ("--procs", request.procs),
        ("--nodes", request.nodes if request.nodes > 1 else None),
    ):
        if value is not None:
            command += [option, str(value)]
    rate = ["--set", f"training.lr={cell.training.lr:.9e}"] if request.tuned else []
    return [*command, *request.more, *rate]
