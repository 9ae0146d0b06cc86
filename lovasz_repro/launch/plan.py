"""What ``run`` would do before it does it, and what it says when it is done."""

from collections.abc import Sequence

import yaml

from lovasz_repro.config.schema import CellConfig, ExperimentConfig
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say
from lovasz_repro.host.provenance import device_name
from lovasz_repro.host.terminal import Terminal, print_table
from lovasz_repro.run.experiment import Outcome
from lovasz_repro.run.inputs import Place, check_extras, find_inputs, run_folder
from lovasz_repro.store import Store, StoredRun
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.speed import SPEED

SPEED_DEPENDS_ON = (
    "data.name", "data.size", "model.name", "training.batch_size", "training.precision",
    "training.channels_last", "training.batch_norm",
)  # fmt: skip


def print_plan(cells: list[CellConfig], place: Place, store: Store, ranks: int = 1) -> None:
    """Print the resolved config of the first cell, how the others differ, and the state of each.

    Nothing is written and nothing runs; missing data is told, not raised.
    """
    config = yaml.safe_dump(cells[0].model_dump(mode="json"), sort_keys=False)
    say(*config.rstrip("\n").split("\n"))
    rows: list[tuple[str, str, str]] = []
    missing: set[str] = set()
    left: list[tuple[CellConfig, int]] = []
    firsts: dict[str, CellConfig] = {}
    for cell in cells:
        first = firsts.setdefault(cell.variant, cell)
        try:
            state, iterations = state_of(cell, place, store)
        except UserError as error:
            missing.add(str(error))
            state, iterations = "lacks data", cell.training.iterations
        left.append((cell, iterations))
        rows.append((cell.name, differences(cells[0] if first is cell else first, cell), state))
    say("", "The first run of each variant against the config above, the others against that:")
    print_table(Terminal(), ["run", "differs in", "state"], rows, words=range(3))
    for line in sorted(missing):
        say("", f"missing: {line}")
    where = f"{ranks} processes on {place.device.type}" if ranks > 1 else f"{place.device}"
    say("", f"Runs on {where}; results go to {place.results} and {store.uri}.")
    device = device_name(place.device)
    say(estimate(left, store.runs(), device, ranks))


def state_of(cell: CellConfig, place: Place, store: Store) -> tuple[str, int]:
    """ "done", "goes on from iteration k of n" or "new", and the iterations that are left.

    Raises:
        UserError: data or weights are missing.
    """
    inputs = find_inputs(cell, place)
    stored = store.finished(cell.experiment, inputs.identity)
    if stored:
        return f"done (run {stored.run_id})", 0
    check_extras(cell)
    folder = run_folder(place.results, cell, inputs.identity)
    iteration = Checkpoints(folder).latest_iteration() if folder.is_dir() else None
    total = cell.training.iterations
    if iteration is None:
        return f"new, {total} iterations", total
    return f"goes on from iteration {iteration} of {total}", total - iteration


def estimate(
    left: Sequence[tuple[CellConfig, int]], runs: Sequence[StoredRun], device: str, ranks: int
) -> str:
    """How long training takes, from the speed of stored runs, or that it is not known.

    Args:
        left: cells and the iterations that each has left.
        runs: stored runs, newest first. Those count that trained the same network at the same
            size, batch size and precision on as many devices of the same name.
        device, ranks: name and number of devices.
    """
    seconds, sources, unknown = 0.0, dict[str, str](), 0
    for cell, iterations in left:
        if not iterations:
            continue
        source = next((run for run in runs if _as_fast(run, cell, device, ranks)), None)
        if source is None:
            unknown += 1
            continue
        rate = source.metrics[SPEED]
        seconds += iterations * cell.training.batch_size / rate
        sources[source.run_id] = f"{rate:.3g} images/s, measured in run {source.run_id[:12]}"
    devices = f"{ranks} x {device}" if ranks > 1 else device
    if not any(iterations for _, iterations in left):
        return "Nothing is left to train."
    if not sources:
        return f"How long it trains is not known: no stored run of this size on {devices}."
    text = (
        f"Trains for about {seconds / 3600:.2g} hours on {devices} ({'; '.join(sources.values())})"
    )
    more = f"; {unknown} runs are of a size that was not measured" if unknown else ""
    return f"{text}{more}. Validation comes on top."


def _as_fast(run: StoredRun, cell: CellConfig, device: str, ranks: int) -> bool:
    """Whether a stored run tells how fast a cell trains."""
    ours = cell.params
    same = all(run.params.get(key) == ours[key] for key in SPEED_DEPENDS_ON)
    there = (run.tags.get("device"), run.tags.get("ranks", "1")) == (device, str(ranks))
    return same and there and SPEED in run.metrics


def differences(base: CellConfig, cell: CellConfig) -> str:
    """Keys of ``cell`` with another value than in ``base``, as ``key=value``."""
    theirs, ours = base.params, cell.params
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    return ", ".join(f"{key}={ours.get(key, 'none')}" for key in keys if key != "variant") or "-"


def print_outcome(experiment: ExperimentConfig, outcome: Outcome) -> None:
    """Say what ran and what to do next."""
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
    say(f"{experiment.experiment}: {', '.join(counts)}.")
    say("Next: lovasz-repro report tables; lovasz-repro report figures")
