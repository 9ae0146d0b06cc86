"""``run``: an experiment, on one device or many, here or on a cluster."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from lovasz_repro.cli.options import (
    RESULTS,
    Data,
    Device,
    DryRun,
    PrintConfig,
    Results,
    Set,
    TrackingUri,
    say_yaml,
)
from lovasz_repro.cli.synthetic import run_search
from lovasz_repro.errors import UserError

DEVICES = "Several devices"  # panels of `run --help`
GRIDS = "Many runs at once"
OF_SEARCHES = {
    "experiment", "set_", "results", "tracking_uri", "device", "dry_run", "print_config",
}  # fmt: skip
"""What `run synthetic` takes, as `synthetic` does."""
BINARY = "One class against the rest (voc-binary)"


def complete_experiment(incomplete: str) -> Iterator[str]:
    """Names of experiments, for the shell."""
    from lovasz_repro.config.schema import experiment_names

    return (name for name in experiment_names() if name.startswith(incomplete))


def run(
    context: typer.Context,
    experiment: Annotated[
        str,
        typer.Argument(
            help="Name of an experiment, or a YAML file.", autocompletion=complete_experiment
        ),
    ],
    profile: Annotated[
        str | None,
        typer.Option(help="Size of the experiment; default: paper, or the only one of the file."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this variant; repeatable; default: all.")
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="This seed; repeatable; default: the profile's.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="This batch size; repeatable; default: the profile's.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Only these, such as bicycle,cat; default: the profile's.",
            rich_help_panel=BINARY,
        ),
    ] = None,
    losses: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="Only these variants, and the basis network that they start from; default: all.",
            rich_help_panel=BINARY,
        ),
    ] = None,
    basis: Annotated[
        Path | None,
        typer.Option(
            help="Weights of a 21-class network. Default: such a network is trained first.",
            rich_help_panel=BINARY,
        ),
    ] = None,
    set_: Set = None,
    data: Data = None,
    weights: Annotated[
        Path | None,
        typer.Option(help="Released weights to start from; default: those found below --data."),
    ] = None,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images, for each rank; default: 0 on a CPU, else up to 8.",
        ),
    ] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
    gpus: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Train each run on this many GPUs; default: on the one --device.",
            rich_help_panel=DEVICES,
        ),
    ] = None,
    procs: Annotated[
        int | None,
        typer.Option(
            min=1, help="The same on CPUs: processes; default: 1.", rich_help_panel=DEVICES
        ),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            help="On this many machines; give the command on each.",
            rich_help_panel=DEVICES,
        ),
    ] = 1,
    node_rank: Annotated[
        int,
        typer.Option(
            min=0,
            envvar="LOVASZ_REPRO_NODE_RANK",
            help="Number of this machine.",
            rich_help_panel=DEVICES,
        ),
    ] = 0,
    rdzv: Annotated[
        str,
        typer.Option(
            envvar="LOVASZ_REPRO_RDZV",
            help="HOST:PORT of machine 0, where they meet; needed with --nodes.",
            rich_help_panel=DEVICES,
        ),
    ] = "",
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0,
            help="Restarts in a row without a new checkpoint, where a process dies.",
            rich_help_panel=DEVICES,
        ),
    ] = 3,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Runs at a time here, default: 1; with --slurm on the cluster, default: all.",
            rich_help_panel=GRIDS,
        ),
    ] = None,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="Submit the grid to Slurm.", rich_help_panel=GRIDS),
    ] = False,
    partition: Annotated[
        str | None,
        typer.Option(help="Slurm partition; default: the cluster's.", rich_help_panel=GRIDS),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="[D-]H:MM[:SS]",
            help="Slurm time limit; a run that meets it goes on in a new one. Default: 24:00.",
            rich_help_panel=GRIDS,
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Slurm: CPU cores of each machine; default: --procs, else the cluster's.",
            rich_help_panel=GRIDS,
        ),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=VALUE]",
            help="More for sbatch: --sbatch account=vision; repeatable.",
            rich_help_panel=GRIDS,
        ),
    ] = None,
) -> None:
    """Run an experiment: skips what is done, goes on with what was stopped, starts the rest."""
    from lovasz_repro.config.grid import experiment_of
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.schema import load_experiment
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.launch.request import GridRequest

    if is_search(experiment):
        refuse_others(context)
        on = "cpu" if device == "auto" else device
        run_search(experiment, set_ or [], results, tracking_uri, on, dry_run, print_config)
        return
    loaded = load_experiment(experiment)
    cells = loaded.cells(
        profile or ("paper" if len(loaded.profiles) > 1 else next(iter(loaded.profiles))),
        variants=(variant or []) + names(losses) or None,
        categories=names(classes) or None,
        seeds=seed,
        batch_sizes=batch_size,
        overrides=parse_overrides(set_ or []),
        with_basis=basis is None or print_config,
    )
    if print_config:
        say_yaml(experiment_of(loaded, cells))
        return
    request = GridRequest(
        source=experiment,
        experiment=loaded,
        cells=cells,
        overrides=set_ or [],
        results=results,
        data=data_folder(data),
        weights=weights,
        basis=basis,
        tracking_uri=tracking_uri,
        device=device,
        workers=workers,
        gpus=gpus,
        procs=procs,
        nodes=nodes,
    )
    from lovasz_repro.launch.dispatch import Way, check_options, dispatch
    from lovasz_repro.launch.slurm import slurm_options

    cluster = {"partition": partition, "time": time, "cpus": cpus, "sbatch": sbatch}
    check_options(request, slurm, cluster)
    options = slurm_options(request, partition, time, cpus, jobs, sbatch) if slurm else None
    if dry_run:
        from lovasz_repro.launch.plan import print_plan

        print_plan(request, options)
    else:
        dispatch(request, Way(jobs or 1, options, node_rank, rdzv, max_restarts))


def is_search(experiment: str) -> bool:
    """Whether an experiment, given by name or file, is a bias search, which trains nothing."""
    from lovasz_repro.config.read import read_yaml
    from lovasz_repro.config.schema import experiment_file

    return read_yaml(experiment_file(experiment)).get("kind") == "synthetic"


def refuse_others(context: typer.Context) -> None:
    """Refuse options that a bias search has no use for.

    Raises:
        UserError: one was given.
    """
    for option in context.command.params:
        source = context.get_parameter_source(option.name or "")
        if source and source.name == "COMMANDLINE" and option.name not in OF_SEARCHES:
            raise UserError(f"{option.opts[0]} is not for a bias search, which trains no network.")


def names(text: str | None) -> list[str]:
    """ "bicycle, cat" as a list."""
    return [name.strip() for name in (text or "").split(",") if name.strip()]
