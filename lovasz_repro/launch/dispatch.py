"""Where a request runs: in this process, on ranks, side by side, or on a cluster.

Each way is imported where a request goes it.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.files import machine
from lovasz_repro.host.output import Terminal, say, store_option
from lovasz_repro.host.processes import cores, decoding_workers, threads_of
from lovasz_repro.host.progress import Progress
from lovasz_repro.launch.rank import (
    ONE_RANK,
    Rank,
    in_typed_shell,
    newest_checkpoints,
    rank_from_environment,
    tasks_of_step,
)
from lovasz_repro.launch.request import GridRequest
from lovasz_repro.launch.slurm_job import rendezvous
from lovasz_repro.run.experiment import Outcome, check_grid, run_experiment
from lovasz_repro.run.inputs import Place
from lovasz_repro.store import Store
from lovasz_repro.training.distributed import join_team

if TYPE_CHECKING:
    from lovasz_repro.launch.slurm import SlurmOptions


@dataclass(frozen=True)
class Way:
    """How the user wants a request to run."""

    jobs: int = 1
    slurm: "SlurmOptions | None" = None
    node_rank: int = 0
    rendezvous: str = ""
    max_restarts: int = 3


def dispatch(request: GridRequest, way: Way) -> None:
    """Run a request in the way that was asked for.

    A process that torchrun or srun started as one of several is a rank, whatever else is asked
    for; with ``--nodes``, srun starts one launcher on each machine instead.

    Raises:
        UserError: options that contradict each other or this machine.
        RunFailed: some runs failed.
    """
    rank = rank_from_environment()
    if rank and (rank.by_torch or request.nodes == 1):
        check_ranks(request, rank.world_size)
        run_here(request, rank)
        return
    check_way(request, way)
    if way.slurm:
        from lovasz_repro.launch.slurm import submit_grid

        check_cells(request)
        say(submit_grid(request, way.slurm, place_and_problem(request)[0]))
    elif way.jobs > 1:
        _side_by_side(request, way)
    elif request.per_node * request.nodes > 1:
        _on_ranks(request, way)
    else:
        run_here(request, ONE_RANK)


def check_way(request: GridRequest, way: Way) -> None:
    """Raise UserError where a request cannot run in the way that was asked for."""
    if way.jobs == 1 and not (way.slurm or request.procs or request.gpus):
        check_shell()
    check_ranks(request, request.per_node * request.nodes)
    if way.slurm:  # where one submits there may be no GPU
        from lovasz_repro.launch.slurm import check_slurm

        check_slurm(way.slurm)
        return
    if request.nodes > 1 and not (way.rendezvous or rendezvous()):
        raise UserError("--nodes needs --rdzv HOST:PORT, an address of machine 0, on each machine.")
    _, problem = place_and_problem(request)
    if problem:
        check_cells(request, problem)
    if way.jobs > 1:
        from lovasz_repro.launch.jobs import environments

        environments(request, way.jobs)


def check_shell() -> None:
    """Raise UserError where somebody takes a shell of srun for all of its tasks."""
    if in_typed_shell() and tasks_of_step() != "1":
        raise UserError(
            f"this shell is one of the {tasks_of_step()} tasks of its srun, and nobody types into"
            " the others. Give --procs N (or --gpus N) for processes on this machine, or leave it"
            " and put srun before the command."
        )


def check_cells(request: GridRequest, problem: str = "") -> None:
    """Raise UserError here, once, for what would end each process of a grid."""
    place, _ = place_and_problem(request)
    with Progress() as progress:
        store = Store(request.results, request.tracking_uri)
        check_grid(request.cells, place, store, progress, problem)


def _side_by_side(request: GridRequest, way: Way) -> None:
    from lovasz_repro.launch.jobs import SideBySide

    place = place_of(request, ONE_RANK)
    check_cells(request)
    with Progress() as progress:
        outcome = SideBySide(request, place, way.jobs, way.max_restarts, progress).run()
    print_outcome(request, outcome)
    if outcome.failed:
        raise RunFailed(f"{len(outcome.failed)} of {len(request.cells)} runs failed, see above.")


def _on_ranks(request: GridRequest, way: Way) -> None:
    from lovasz_repro.launch.launcher import Launch, launch

    meeting = {} if way.rendezvous else rendezvous()  # of a job of Slurm
    address = way.rendezvous or meeting.get("LOVASZ_REPRO_RDZV", "")
    number = int(meeting.get("LOVASZ_REPRO_NODE_RANK", way.node_rank))
    plan = Launch(request.per_node, request.nodes, number, address, way.max_restarts)
    work = request.results / "work"
    launch(
        plan,
        work / "ranks" / f"{machine()}-{os.getpid()}",
        lambda: newest_checkpoints((work / request.experiment.experiment).glob("*/*")),
    )


def check_ranks(request: GridRequest, ranks: int) -> None:
    """Raise UserError unless as many ranks as were asked for each get an image of a batch."""
    asked = (request.procs or request.gpus or 0) * request.nodes
    if asked > 1 and asked != ranks:
        raise UserError(f"asked for {asked} processes, but started as {ranks}.")
    smallest = min(cell.training.batch_size for cell in request.cells)
    if smallest < ranks:
        raise UserError(
            f"{ranks} processes cannot share a batch of {smallest}: give at most {smallest}, or"
            " run the larger batch sizes with --batch-size."
        )


def check_options(
    request: GridRequest, slurm: bool, cluster: Mapping[str, object], tune: bool
) -> None:
    """Raise UserError where options of devices and cluster exclude each other."""
    if tune and (slurm or request.per_node * request.nodes > 1):
        raise UserError("--tune runs here, on one device a run: leave --slurm, --procs, --gpus "
                        "and --nodes away; --jobs N runs several at a time.")  # fmt: skip
    if request.procs and request.gpus:
        raise UserError("give --gpus or --procs, not both.")
    if request.gpus and request.device == "cpu":
        raise UserError("--gpus and --device cpu exclude each other; on CPUs: --procs.")
    if request.procs and request.device.startswith("cuda"):
        raise UserError(f"--procs and --device {request.device} exclude each other; use --gpus.")
    needless = [f"--{name}" for name, value in cluster.items() if value]
    if needless and not slurm:
        raise UserError(f"{needless[0]} is for --slurm.")


def run_here(request: GridRequest, rank: Rank) -> None:
    """Run the cells of a request, in step with the other ranks if there are any.

    Raises:
        UserError, RunFailed, Interrupted: as ``run_experiment``; RunFailed also where a run failed
            or is in work in another process.
    """
    if "SLURM_JOB_ID" in os.environ:
        for threads in threads_of(rank.local_world_size).values():
            torch.set_num_threads(int(threads))
    place = place_of(request, rank)
    store = Store(request.results, request.tracking_uri)
    leads = rank.rank == 0
    console = None if leads else Terminal(quiet=True)
    meeting = None
    if rank.world_size > 1:
        from lovasz_repro.launch.launcher import meet

        meeting = meet(rank)
    with (
        join_team(rank.rank, rank.world_size, place.device, meeting) as team,
        Progress(console) as progress,
    ):
        outcome = run_experiment(request.experiment, request.cells, place, store, progress, team)
    if leads:
        print_outcome(request, outcome)
    undone = list(outcome.failed.values())
    undone += [f"another process is at work on {name}." for name in outcome.elsewhere]
    if len(request.cells) == len(undone) == 1:
        raise RunFailed(undone[0])
    if undone:
        raise RunFailed(f"{len(undone)} of {len(request.cells)} runs not finished, see above.")


def place_of(request: GridRequest, rank: Rank) -> Place:
    """Folders and device of one rank; raises UserError where the device is not there."""
    name = request.device
    if request.procs or request.gpus == 0:
        name = "cpu"
    elif request.gpus and name == "auto":
        name = "cuda"
    device = choose_device(name)
    if rank.world_size > 1 and device.type == "cuda":
        device = choose_device(f"cuda:{rank.local_rank}")
    workers = request.workers
    if workers is None:
        workers = decoding_workers(device.type, rank.local_world_size)
    processes = max(cores() // rank.local_world_size, 1)
    return Place(
        request.results, request.data, request.weights, device, workers, processes, request.basis
    )


def place_and_problem(request: GridRequest) -> tuple[Place, str]:
    """Where a request would run, and why it cannot on this machine, or "".

    Without the device that it asks for, the place is that of a CPU, which finds the same files.

    Raises:
        UserError: a device that no machine has.
    """
    try:
        gpus, count = request.gpus or 0, torch.cuda.device_count()
        if gpus > count:
            raise UserError(f"--gpus {gpus}: this machine has {count}. On CPUs: --procs {gpus}.")
        return place_of(request, ONE_RANK), ""
    except UserError as error:
        if not request.gpus and not request.device.startswith("cuda"):
            raise
        return place_of(replace(request, device="cpu", gpus=None), ONE_RANK), str(error)


def print_outcome(request: GridRequest, outcome: Outcome) -> None:
    """Say what ran and what to do next."""
    words = {
        "finished": outcome.finished,
        "done before": outcome.skipped,
        "failed": outcome.failed,
        "in work in another process": outcome.elsewhere,
    }
    name = request.experiment.experiment
    counts = ", ".join(f"{len(names)} {word}" for word, names in words.items() if names)
    say(f"{name}: {counts}.")
    if outcome.failed:
        say("Next: mend what failed and give the same command again; it goes on there.")
    elif not outcome.elsewhere and name != "own":  # which prints its answer next
        store = store_option(request.results, request.tracking_uri)
        say(f"Next: lovasz-repro report tables{store}; lovasz-repro report figures{store}")
