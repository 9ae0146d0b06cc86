"""What ``run`` would do before it does it, and what it says when it is done."""

import yaml
from rich.console import Console
from rich.table import Table

from lovasz_repro.config import CellConfig, ExperimentConfig, dotted
from lovasz_repro.errors import UserError
from lovasz_repro.experiment import Outcome
from lovasz_repro.place import Place, find_inputs
from lovasz_repro.session import run_folder
from lovasz_repro.store import Store
from lovasz_repro.training.checkpoint import Checkpoints


def print_plan(cells: list[CellConfig], place: Place, store: Store) -> None:
    """Print the resolved config of the first cell, how the others differ, and the state of each.

    Nothing is written and nothing runs; missing data is told, not raised.
    """
    console = Console(highlight=False)
    console.print(yaml.safe_dump(cells[0].model_dump(mode="json"), sort_keys=False), end="")
    table = Table("run", "differs from the config above in", "state", box=None, pad_edge=False)
    missing: set[str] = set()
    for cell in cells:
        state = "new"
        try:
            state = state_of(cell, place, store)
        except UserError as error:
            missing.add(str(error))
            state = "lacks data"
        table.add_row(cell.name, differences(cells[0], cell), state)
    console.print()
    console.print(table)
    for line in sorted(missing):
        console.print(f"\nmissing: {line}", soft_wrap=True)
    console.print(f"\nRuns on {place.device}; results go to {place.results} and {store.uri}.")


def state_of(cell: CellConfig, place: Place, store: Store) -> str:
    """ "done", "goes on from iteration k of n" or "new".

    Raises:
        UserError: data or weights are missing.
    """
    inputs = find_inputs(cell, place)
    stored = store.find(cell.experiment, inputs.identity)
    if stored and stored.status == "FINISHED":
        return f"done (run {stored.run_id})"
    folder = run_folder(place.results, cell, inputs.identity)
    iteration = Checkpoints(folder).latest_iteration() if folder.is_dir() else None
    if iteration is None:
        return f"new, {cell.training.iterations} iterations"
    return f"goes on from iteration {iteration} of {cell.training.iterations}"


def differences(base: CellConfig, cell: CellConfig) -> str:
    """Keys of ``cell`` with another value than in ``base``, as ``key=value``."""
    theirs, ours = dotted(base.model_dump(mode="json")), dotted(cell.model_dump(mode="json"))
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return ", ".join(f"{key}={ours.get(key, 'none')}" for key in keys if key != "variant") or "-"


def print_outcome(experiment: ExperimentConfig, outcome: Outcome) -> None:
    """Say what ran and what to do next."""
    console = Console(highlight=False)
    counts = [
        f"{len(names)} {word}"
        for names, word in (
            (outcome.finished, "finished"),
            (outcome.skipped, "done before"),
            (outcome.failed, "failed"),
            (outcome.elsewhere, "in work in another process"),
        )
        if names
    ]
    console.print(f"{experiment.experiment}: {', '.join(counts)}.")
    console.print("Next: lovasz-repro report tables; lovasz-repro report figures")
