"""Where a request runs: in this process, on ranks, side by side, or on a cluster."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import machine
from lovasz_repro.host.output import say
from lovasz_repro.launch.rank import (
    ALONE,
    Rank,
    in_typed_shell,
    rank_from_environment,
    tasks_of_step,
)
from lovasz_repro.launch.request import Request
from lovasz_repro.launch.slurm import SlurmOptions

if TYPE_CHECKING:
    from lovasz_repro.run.inputs import Place


@dataclass(frozen=True)
class Way:
    """How the user wants a request to run."""

    jobs: int = 1
    slurm: SlurmOptions | None = None
    node_rank: int = 0
    rendezvous: str = ""
    max_restarts: int = 3


def dispatch(request: Request, way: Way) -> None:
    """Run a request in the way that was asked for.

    A process that torchrun or srun started as one of several is a rank, whatever else is asked
    for; with ``--nodes``, srun starts one launcher on each machine instead.

    Raises:
        UserError: options that contradict each other or this machine.
        RunFailed: some runs failed.
    """
    from lovasz_repro.launch.here import run_here

    rank = rank_from_environment()
    if rank and (rank.by_torch or request.nodes == 1):
        check_world(request, rank)
        check_batches(request, rank.world_size)
        run_here(request, rank)
        return
    if way.jobs == 1 and not (way.slurm or request.procs or request.gpus):
        check_shell()
    if way.slurm:
        _submit(request, way.slurm)
        return
    check_device(request)
    if way.jobs > 1:
        _side_by_side(request, way)
    elif request.per_node * request.nodes > 1:
        _on_ranks(request, way)
    else:
        run_here(request, ALONE)


def check_device(request: Request) -> None:
    """Make sure that this machine has the devices; where it has not, say what else is missing.

    Raises:
        UserError: all of it.
    """
    from lovasz_repro.launch.here import place_and_problem
    from lovasz_repro.run.preflight import what_lacks

    place, problem = place_and_problem(request)
    if problem:
        raise UserError(problem, *what_lacks(request.cells, place))


def check_world(request: Request, rank: Rank) -> None:
    """Make sure that the launcher started as many ranks as were asked for, if it was said.

    Raises:
        UserError: both numbers.
    """
    asked = (request.procs or request.gpus or 0) * request.nodes
    if asked > 1 and asked != rank.world_size:
        raise UserError(f"asked for {asked} processes, but started as {rank.world_size}.")


def check_shell() -> None:
    """Make sure that nobody takes a shell of srun for all of its tasks.

    Raises:
        UserError: how to run on several processes.
    """
    if in_typed_shell() and tasks_of_step() != "1":
        raise UserError(
            f"this shell is one of the {tasks_of_step()} tasks of its srun, and nobody types into"
            " the others. Give --procs N (or --gpus N) for processes on this machine, or leave it"
            " and put srun before the command."
        )


def _submit(request: Request, options: SlurmOptions) -> None:
    from lovasz_repro.launch.cluster import submit_grid
    from lovasz_repro.launch.here import place_and_problem

    place, _ = place_and_problem(request)  # where one submits there may be no GPU
    check_before(request, place)
    say(submit_grid(request, options, place))


def check_before(request: Request, place: "Place") -> None:
    """Find here, once, what would end each process of a grid.

    Raises:
        UserError: what is missing or wrong.
    """
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run.preflight import check_grid
    from lovasz_repro.store import Store

    with Progress() as progress:
        store = Store(request.results, request.tracking_uri)
        check_grid(request.cells, place, store, progress)


def _side_by_side(request: Request, way: Way) -> None:
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.launch.here import place_of, print_outcome
    from lovasz_repro.launch.jobs import SideBySide

    place = place_of(request, ALONE)
    check_before(request, place)
    with Progress() as progress:
        outcome = SideBySide(request, place, way.jobs, way.max_restarts, progress).run()
    print_outcome(request.experiment, outcome)
    if outcome.failed:
        raise RunFailed(f"{len(outcome.failed)} of {len(request.cells)} runs failed, see above.")


def _on_ranks(request: Request, way: Way) -> None:
    from lovasz_repro.launch.attempts import newest_checkpoints
    from lovasz_repro.launch.launcher import Launch, launch
    from lovasz_repro.launch.slurm_job import rendezvous

    meeting = {} if way.rendezvous else rendezvous()  # of a job of Slurm
    address = way.rendezvous or meeting.get("LOVASZ_REPRO_RDZV", "")
    number = int(meeting.get("LOVASZ_REPRO_NODE_RANK", way.node_rank))
    if request.nodes > 1 and not address:
        raise UserError("--nodes needs --rdzv HOST:PORT, an address of machine 0, on each machine.")
    check_batches(request, request.per_node * request.nodes)
    plan = Launch(request.per_node, request.nodes, number, address, way.max_restarts)
    work = request.results / "work"
    launch(
        plan,
        work / "ranks" / f"{machine()}-{os.getpid()}",
        lambda: newest_checkpoints((work / request.experiment.experiment).glob("*/*")),
    )


def check_batches(request: Request, ranks: int) -> None:
    """Make sure that every rank has an image of every batch.

    Raises:
        UserError: names the smallest batch size.
    """
    smallest = min(cell.training.batch_size for cell in request.cells)
    if smallest < ranks:
        raise UserError(
            f"{ranks} processes cannot share a batch of {smallest}: give at most {smallest}, or"
            " run the larger batch sizes with --batch-size."
        )
