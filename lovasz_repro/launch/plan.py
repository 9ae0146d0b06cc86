"""What ``run --dry-run`` says: what would run, what is done, how long it takes."""

import shlex
from collections.abc import Sequence

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import Terminal, plural, print_table, say
from lovasz_repro.host.provenance import device_name
from lovasz_repro.launch.dispatch import place_and_problem
from lovasz_repro.launch.request import GridRequest
from lovasz_repro.launch.slurm import SlurmOptions
from lovasz_repro.run.inputs import Known, Place, check_extras, find_inputs, run_folder
from lovasz_repro.store import Store, StoredRun
from lovasz_repro.training.checkpoint import Checkpoints
from lovasz_repro.training.loop import SPEED

SPEED_DEPENDS_ON = (
    "data.name", "data.size", "model.name", "model.callable", "training.batch_size",
    "training.precision",
    "training.channels_last", "training.batch_norm",
)  # fmt: skip


def print_plan(request: GridRequest, slurm: SlurmOptions | None = None) -> None:
    """Print what a request would run: the state of each run, where, how long it takes.

    Nothing runs. A run that lacks something is "not ready"; ``check_way`` and ``check_cells`` say
    what it lacks.
    """
    place, problem = place_and_problem(request)
    store = Store(request.results, request.tracking_uri)
    known, left, firsts = Known(), list[tuple[CellConfig, int]](), dict[str, CellConfig]()
    rows: list[tuple[str, str, str]] = []
    for cell in request.cells:
        first = firsts.setdefault(cell.variant, cell)
        try:
            state, iterations = state_of(cell, place, store, known)
        except UserError:
            state, iterations = "not ready", cell.training.iterations
        left.append((cell, iterations))
        base = request.cells[0] if first is cell else first
        rows.append((cell.name, state, differences(base, cell)))
    say(f"{request.experiment.experiment}: {request.experiment.title}")
    if request.overrides:
        say(f"with --set {shlex.join(request.overrides)}")
    say("")
    print_table(Terminal(), ["run", "state", "differs in"], rows, words=range(3))
    if len(request.cells) > 1:
        say("Each variant differs from the first run, its other runs from its own first.")
    where = where_it_runs(request, slurm, place)
    say("", f"Runs on {where}; results go to {place.results} and {store.shown_uri}.")
    device = device_name(place.device) if not problem else "GPU"
    say(estimate(left, store.runs(), device, request.per_node * request.nodes))
    say("--print-config prints all settings, as a file that `run` takes.")


def where_it_runs(request: GridRequest, slurm: SlurmOptions | None, place: Place) -> str:
    """Devices and machines in words."""
    ranks = request.per_node * request.nodes
    kind = "GPU" if request.gpus else str(place.device)
    devices = f"{ranks} processes, each on a {kind}" if ranks > 1 else kind
    if slurm is None:
        return devices
    partition = f" in partition {slurm.partition}" if slurm.partition else ""
    return f"Slurm{partition}, {devices}, for at most {plural(slurm.time_minutes, 'minute')} a job"


def state_of(cell: CellConfig, place: Place, store: Store, known: Known) -> tuple[str, int]:
    """ "done", "goes on from iteration k of n" or "new", and the iterations that are left.

    Raises:
        UserError: data, weights or a package are missing.
    """
    inputs = find_inputs(cell, place, known=known)
    stored = store.finished(cell.experiment, inputs.identity)
    if stored:
        return f"done (run {stored.run_id})", 0
    check_extras(cell)
    folder = run_folder(place.results, cell, inputs.identity)
    iteration = Checkpoints(folder).latest_iteration() if folder.is_dir() else None
    total = cell.training.iterations
    if iteration is None:
        return f"new, {plural(total, 'iteration')}", total
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
    units = {"h": 3600, "min": 60, "s": 1}
    unit = next((unit for unit, length in units.items() if seconds >= length), "s")
    time = f"{seconds / units[unit]:.2g} {unit}"
    text = f"Trains for about {time} on {devices} ({'; '.join(sources.values())})"
    more = f"; not measured: the size of {plural(unknown, 'run')}" if unknown else ""
    return f"{text}{more}. Validation comes on top."


def _as_fast(run: StoredRun, cell: CellConfig, device: str, ranks: int) -> bool:
    """Whether a stored run tells how fast a cell trains."""
    ours = cell.params
    same = all(run.params.get(key) == ours.get(key) for key in SPEED_DEPENDS_ON)
    there = (run.tags.get("device"), run.tags.get("ranks", "1")) == (device, str(ranks))
    return same and there and SPEED in run.metrics


def differences(base: CellConfig, cell: CellConfig) -> str:
    """Keys of ``cell`` with another value than in ``base``, as ``key=value``.

    A section that one of them leaves empty is told by what the cell has of it.
    """
    theirs, ours = base.params, cell.params
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]

    def is_told(key: str) -> bool:  # "a" by "a.b", and "a.b" by "a"
        return any(f"{one}.".startswith(f"{key}.") or key.startswith(f"{one}.") for one in ours)

    keys = [key for key in keys if key in ours or not is_told(key)]
    return ", ".join(f"{key}={ours.get(key, 'none')}" for key in keys if key != "variant") or "-"
