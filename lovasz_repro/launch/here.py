"""Runs a grid in this process: alone, or as one rank of a team."""

import os

import torch

from lovasz_repro.errors import RunFailed
from lovasz_repro.host.cores import cores, decoding_workers, threads_of
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.terminal import Terminal
from lovasz_repro.launch.meeting import meet
from lovasz_repro.launch.plan import print_outcome
from lovasz_repro.launch.rank import Rank
from lovasz_repro.launch.request import Request
from lovasz_repro.run.experiment import run_experiment
from lovasz_repro.run.inputs import Place
from lovasz_repro.store import Store
from lovasz_repro.training.distributed import join_team


def run_here(request: Request, rank: Rank) -> None:
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
    meeting = meet(rank)
    with (
        join_team(rank.rank, rank.world_size, place.device, meeting) as team,
        Progress(console) as progress,
    ):
        outcome = run_experiment(request.experiment, request.cells, place, store, progress, team)
    if leads:
        print_outcome(request.experiment, outcome)
    undone = list(outcome.failed.values())
    undone += [f"another process is at work on {name}." for name in outcome.elsewhere]
    if len(request.cells) == len(undone) == 1:
        raise RunFailed(undone[0])
    if undone:
        raise RunFailed(f"{len(undone)} of {len(request.cells)} runs not finished, see above.")


def place_of(request: Request, rank: Rank) -> Place:
    """Folders and device of one rank.

    Raises:
        UserError: the device is not there.
    """
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
