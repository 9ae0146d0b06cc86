"""Runs a grid in this process: alone, or as one rank of a team."""

import os
from dataclasses import replace

import torch

from lovasz_repro.config.schema import ExperimentConfig
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.device import choose_device
from lovasz_repro.host.output import say
from lovasz_repro.host.processes import cores, decoding_workers, threads_of
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.terminal import Terminal
from lovasz_repro.launch.launcher import check_devices
from lovasz_repro.launch.meeting import meet
from lovasz_repro.launch.rank import ALONE, Rank
from lovasz_repro.launch.request import Request
from lovasz_repro.run.experiment import Outcome, run_experiment
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


def place_and_problem(request: Request) -> tuple[Place, str]:
    """Where a request would run, and why it cannot on this machine, or "".

    Without the device that it asks for, the place is that of a CPU, which finds the same files.

    Raises:
        UserError: a device that no machine has.
    """
    try:
        if request.gpus:
            check_devices(request.gpus)
        return place_of(request, ALONE), ""
    except UserError as error:
        if not request.gpus and not request.device.startswith("cuda"):
            raise
        return place_of(replace(request, device="cpu", gpus=None), ALONE), str(error)


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
    if outcome.failed:
        say("Next: mend what failed and give the same command again; it goes on there.")
    elif not outcome.elsewhere:
        say("Next: lovasz-repro report tables; lovasz-repro report figures")
