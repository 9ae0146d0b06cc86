"""``run``: an experiment, on one device or many, here or on a cluster; ``synthetic``."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Weights,
    say_yaml,
)
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import plural, say, store_option
from lovasz_repro.launch.rank import is_rank

if TYPE_CHECKING:
    from lovasz_repro.launch.request import GridRequest

OF_SEARCHES = {
    "experiment", "set_", "results", "tracking_uri", "device", "dry_run", "print_config",
}  # fmt: skip
"""What `run synthetic` takes, as `synthetic` does."""
LISTED = "NAME,..."


def option_of(panel: str) -> Callable[..., Any]:
    """Options of a panel of `run --help`."""
    return lambda help_, *names, **given: typer.Option(
        *names, help=help_, rich_help_panel=panel, **given
    )


of_binary = option_of("One class against the rest (voc-binary)")
of_own = option_of("Your own data and network (own)")
of_devices = option_of("Several devices")
of_grids = option_of("Many runs at once")


def complete_experiment(incomplete: str) -> Iterator[str]:
    """Names of experiments, for the shell."""
    from lovasz_repro.config.schema import experiment_names

    return (name for name in experiment_names() if name.startswith(incomplete))


def run(
    context: typer.Context,
    experiment: Annotated[
        str | None,
        typer.Argument(
            help="Name of an experiment, or a YAML file; without one they are listed.",
            autocompletion=complete_experiment,
            show_default=False,
        ),
    ] = None,
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
        of_binary("Only these, such as bicycle,cat; default: the profile's.", metavar=LISTED),
    ] = None,
    losses: Annotated[
        str | None,
        of_binary(
            "Only these variants, and the basis network that they start from; default: all.",
            metavar=LISTED,
        ),
    ] = None,
    basis: Annotated[
        Path | None,
        of_binary("Weights of a 21-class network. Default: such a network is trained first."),
    ] = None,
    network: Annotated[
        str | None,
        of_own(
            "enet, deeplab-v2, deeplab-v2-small, or your own: what makes an nn.Module when it is "
            "called with the number of classes; default: enet. --data names your images.",
            metavar="NAME|PACKAGE.MODULE:FUNCTION",
        ),
    ] = None,
    tune: Annotated[
        bool, of_own("First search the learning rate of each loss, by validation.", "--tune")
    ] = False,
    set_: Set = None,
    data: Data = None,
    weights: Weights = None,
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
        of_devices("Train each run on this many GPUs; default: on the one --device.", min=0),
    ] = None,
    procs: Annotated[
        int | None, of_devices("The same on CPUs: processes; default: 1.", min=1)
    ] = None,
    nodes: Annotated[
        int, of_devices("On this many machines; give the command on each.", min=1)
    ] = 1,
    node_rank: Annotated[
        int, of_devices("Number of this machine.", min=0, envvar="LOVASZ_REPRO_NODE_RANK")
    ] = 0,
    rdzv: Annotated[
        str,
        of_devices(
            "HOST:PORT of machine 0, where they meet; needed with --nodes.",
            envvar="LOVASZ_REPRO_RDZV",
        ),
    ] = "",
    max_restarts: Annotated[
        int,
        of_devices("Restarts in a row without a new checkpoint, where a process dies.", min=0),
    ] = 3,
    jobs: Annotated[
        int | None,
        of_grids(
            "Runs at a time here, default: 1; with --slurm on the cluster, default: all.", min=1
        ),
    ] = None,
    slurm: Annotated[bool, of_grids("Submit the grid to Slurm.", "--slurm")] = False,
    partition: Annotated[str | None, of_grids("Slurm partition; default: the cluster's.")] = None,
    time: Annotated[
        str | None,
        of_grids(
            "Slurm time limit; a run that meets it goes on in a new one. Default: 24:00.",
            metavar="[D-]H:MM[:SS]",
        ),
    ] = None,
    cpus: Annotated[
        int | None,
        of_grids("Slurm: CPU cores of each machine; default: --procs, else the cluster's.", min=1),
    ] = None,
    sbatch: Annotated[
        list[str] | None,
        of_grids("More for sbatch: --sbatch account=vision; repeatable.", metavar="NAME[=VALUE]"),
    ] = None,
) -> None:
    """Run an experiment: skips what is done, goes on with what was stopped, starts the rest."""
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.schema import load_experiment
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.launch.request import GridRequest

    if experiment is None:
        experiments()
        raise UserError("which experiment? Give one of these names, or a YAML file.")
    if is_search(experiment):
        refuse_others(context)
        on = "cpu" if device == "auto" else device
        run_search(experiment, set_ or [], results, tracking_uri, on, dry_run, print_config)
        return
    loaded = load_experiment(experiment)
    root, more = data_folder(data), list[str]()
    own, overrides = loaded.recipe.get("data", {}).get("name") == "own", parse_overrides(set_ or [])
    if own and "data.category" in overrides:
        raise UserError("data.category: run own compares the binary losses where there are two "
                        "classes. To tell one from the rest, give all others one name in "
                        "classes.txt.")  # fmt: skip
    if own:
        from lovasz_repro.data.own_files import own_folder
        from lovasz_repro.run.own import filled_in

        folder = own_folder(root.resolve())
        loaded, root = filled_in(loaded, folder, network, weights), folder.parent
        more = ["--data", str(folder), *(["--network", network] if network else [])]
    elif network or tune:
        raise UserError(f"--{'network' if network else 'tune'} is for data of your own: run own.")
    cells = loaded.cells(
        profile or ("paper" if "paper" in loaded.profiles else next(iter(loaded.profiles))),
        variants=(variant or []) + names(losses) or None,
        categories=names(classes) or None,
        seeds=seed,
        batch_sizes=batch_size,
        overrides=overrides,
        with_basis=basis is None or print_config,
    )
    if print_config:
        from lovasz_repro.config.grid import experiment_of

        say_yaml(experiment_of(loaded, cells))
        return
    request = GridRequest(
        source=experiment,
        experiment=loaded,
        cells=cells,
        overrides=set_ or [],
        results=results,
        data=root,
        weights=weights,
        basis=basis,
        tracking_uri=tracking_uri,
        device=device,
        workers=workers,
        gpus=gpus,
        procs=procs,
        nodes=nodes,
        more=more,
    )
    from lovasz_repro.launch.dispatch import Way, check_cells, check_options, check_way, dispatch

    cluster = {"partition": partition, "time": time, "cpus": cpus, "sbatch": sbatch}
    check_options(request, slurm, cluster, tune)
    options = None
    if slurm:
        from lovasz_repro.launch.slurm import slurm_options

        options = slurm_options(request, partition, time, cpus, jobs, sbatch)
    way = Way(jobs or 1, options, node_rank, rdzv, max_restarts)
    if dry_run:
        from lovasz_repro.launch.plan import print_plan

        print_plan(request, options)
        if tune:
            say("--tune runs the first seed at three learning rates, then all seeds at the best.")
        check_way(request, way)
        check_cells(request)
        return
    if tune:
        from lovasz_repro.launch.tune import dispatch_tuned

        dispatch_tuned(request, way)
    else:
        dispatch(request, way)
    if own and len(cells) > 1 and not slurm and not is_rank():
        say_answer(request)


def say_answer(request: "GridRequest") -> None:
    """Print what the stored runs on the data of a request say, and draw where losses differ."""
    from lovasz_repro.cli.report import draw
    from lovasz_repro.host.output import Terminal, write_files
    from lovasz_repro.launch.dispatch import place_and_problem
    from lovasz_repro.report.own import own_table
    from lovasz_repro.report.render import RENDERERS, print_table, rendered
    from lovasz_repro.report.runs import OfData
    from lovasz_repro.run.inputs import find_inputs
    from lovasz_repro.store import Store

    inputs = find_inputs(request.cells[0], place_and_problem(request)[0])
    every, folder = Store(request.results, request.tracking_uri), request.results / "report"
    here = OfData(every, inputs.fingerprints["data_fingerprint"])
    print_table(own_table(here), Terminal())
    table, store = own_table(every), store_option(request.results, request.tracking_uri)
    write_files(folder / "tables", rendered(table, [*RENDERERS]))
    others = f"; of all data sets: lovasz-repro report tables own{store}" if table.parts else ""
    say(f"{len(RENDERERS)} files in {folder / 'tables'}{others}")
    draw(here, folder / "figures", ["own"])


def experiments() -> None:
    """List what can be run: what the paper claims there, and the sizes it can be run at."""
    from lovasz_repro.config.read import read_yaml
    from lovasz_repro.config.schema import experiment_file, experiment_names
    from lovasz_repro.host.output import Terminal, print_note

    console = Terminal()
    for name in experiment_names():
        about = read_yaml(experiment_file(name))
        say(f"{name}: {about['title']} ({about['section']})")
        print_note(console, about["claim"])
        profiles = about.get("profiles") or {"paper": {"about": about["cost"]}}
        for profile, of_size in profiles.items():
            print_note(console, f"--profile {profile}: {of_size['about']}")
        say("")
    say("lovasz-repro run NAME [--profile PROFILE]; --dry-run says what a run needs and lacks.")


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


def synthetic(
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Draws of the ten images; default: 100.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Other radii and noise instead, each a run of its own.")
    ] = False,
    set_: Set = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    device: Device = "cpu",
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Sec. 4.1, Fig. 3: which loss finds the bias that minimises the Jaccard loss?"""
    given = (set_ or []) + ([f"seeds={seeds}"] if seeds else [])
    run_search(
        "synthetic", given, results, tracking_uri, device, dry_run, print_config, sweep=sweep
    )


def run_search(
    source: str,
    overrides: list[str],
    results: Path,
    tracking_uri: str | None,
    device: str,
    dry_run: bool,
    print_config: bool,
    *,
    sweep: bool = False,
) -> None:
    """Run the search of an experiment file, given by name or path; or tell what it would do.

    With ``sweep``, search each of its cells instead.
    """
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.synthetic import load_synthetic

    config = load_synthetic(source, parse_overrides(overrides))
    if print_config:
        say_yaml(config.model_dump(mode="json"))
        return
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.output import Terminal
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.report.render import print_table
    from lovasz_repro.report.tables import TABLES
    from lovasz_repro.store import Store
    from lovasz_repro.synthetic.experiment import run_synthetic, stored_search

    store = Store(results, tracking_uri)
    cells = config.cells() if sweep else [config]
    if not cells:
        raise UserError(f"{source} has no sweep: give it one (radius, noise, seeds, curve_step)")
    if dry_run:
        for cell in cells:
            stored = stored_search(cell, store)
            state = f"done (run {stored.run_id})" if stored else "new"
            about = f"{cell.images}, " if sweep else ""
            seeds = plural(cell.seeds, "seed")
            say(f"synthetic: {about}{seeds}, {state}; results go to {store.shown_uri}.")
        choose_device(device)
        return
    chosen, done = choose_device(device), []
    with Progress() as progress:
        task = progress.task("synthetic", sum(cell.seeds for cell in cells))
        for number, cell in enumerate(cells, start=1):
            found = run_synthetic(cell, store, chosen, lambda *_: task.advance())
            done.append(found)
            task.reach(sum(cell.seeds for cell in cells[:number]))
            if sweep:
                state = "done before" if found.reused else "finished"
                label = f"[{number}/{len(cells)}] {cell.images}"
                progress.line(f"{label}  {state} (run {found.run.run_id})")
    note = "stored before" if all(one.reused for one in done) else "stored"
    then, there = "Next: lovasz-repro report figures", store_option(results, tracking_uri)
    if sweep:
        say(f"{plural(len(done), 'run')} {note}. {then} synthetic-sweep{there}")
        return
    print_table(TABLES["synthetic"](store), Terminal())
    say(f"{note} as run {done[0].run.run_id}. {then} figure-3{there}")
