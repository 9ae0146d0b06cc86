"""The command line: each command reads its options, calls one function, prints what it got.

torch, mlflow, pandas and matplotlib are imported inside the commands, so that ``--help`` and
shell completion answer at once.
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from lovasz_repro import __version__
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.launch.orphan import stop_when_orphaned
from lovasz_repro.launch.rank import is_rank, tell

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

    from lovasz_repro.report.drawing import Missing

app = typer.Typer(
    name="lovasz-repro",
    help='Reproduce "The Lovász-Softmax loss" (CVPR 2018): experiments, tables, figures.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
report_app = typer.Typer(help="Rebuild tables, figures and claims from stored runs.")
runs_app = typer.Typer(invoke_without_command=True)
bench_app = typer.Typer(help="Measure time, memory and precision on this machine.")
app.add_typer(report_app, name="report", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
app.add_typer(bench_app, name="bench", no_args_is_help=True)

Results = Annotated[
    Path,
    typer.Option(
        "--results",
        envvar="LOVASZ_REPRO_RESULTS",
        help="Folder of the store, checkpoints and reports.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        help="MLflow tracking URI; default: MLFLOW_TRACKING_URI, else SQLite in the results folder."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of data sets and weights; default: LOVASZ_REPRO_DATA, else ./data."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")]
Out = Annotated[Path | None, typer.Option("--out", help="Default: <results>/report.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the recipe: --set training.lr=1.0e-4; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print config and plan; run nothing.")]
RESULTS = Path("results")
DEBUG = "LOVASZ_REPRO_DEBUG"
DEVICES = "Several devices"  # panels of `run --help`
GRIDS = "Many runs at once"


class Network(StrEnum):
    """Architectures that ``predict`` knows."""

    enet = "enet"


class TableFormat(StrEnum):
    """How a table is written."""

    md = "md"
    tex = "tex"
    csv = "csv"
    json = "json"


class Logits(StrEnum):
    """Networks whose logits ``bench losses`` imitates."""

    random = "random"
    trained = "trained"


def complete_experiment(incomplete: str) -> Iterator[str]:
    """Names of experiments, for the shell."""
    from lovasz_repro.config import experiment_names

    return (name for name in experiment_names() if name.startswith(incomplete))


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        typer.echo(f"lovasz-repro {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")
    ] = False,
) -> None:
    """Options of every command; ``main`` has read ``--debug`` already."""


@app.command()
def synthetic(
    seeds: Annotated[int | None, typer.Option(min=1, help="Draws of the ten images.")] = None,
    set_: Set = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    device: Device = "cpu",
    dry_run: DryRun = False,
) -> None:
    """Sec. 4.1, Fig. 3: which loss finds the bias that minimises the Jaccard loss?"""
    from lovasz_repro.config import parse_overrides
    from lovasz_repro.synthetic.config import load_synthetic

    changes = parse_overrides(set_ or []) | ({"seeds": seeds} if seeds else {})
    config = load_synthetic(overrides=changes)
    if dry_run:
        typer.echo(to_yaml(config), nl=False)
        return
    from lovasz_repro.device import choose_device
    from lovasz_repro.progress import Progress
    from lovasz_repro.report.tables import TABLES
    from lovasz_repro.report.terminal import print_table
    from lovasz_repro.store import Store
    from lovasz_repro.synthetic.experiment import run_synthetic

    store = Store(results, tracking_uri)
    with Progress() as progress:
        task = progress.task("synthetic", config.seeds)
        done = run_synthetic(config, store, choose_device(device), task.reach)
    print_table(TABLES["synthetic"](store), terminal())
    note = "stored before" if done.reused else "stored"
    typer.echo(f"{note} as run {done.run.run_id}. Next: lovasz-repro report figures figure-3")


@app.command()
def run(
    experiment: Annotated[
        str,
        typer.Argument(
            help="Name of an experiment, or a YAML file.", autocompletion=complete_experiment
        ),
    ],
    profile: Annotated[str, typer.Option(help="Size of the experiment.")] = "paper",
    variant: Annotated[
        list[str] | None, typer.Option(help="Only this variant; repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="This seed instead; repeatable.")] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="This batch size instead; repeatable.")
    ] = None,
    set_: Set = None,
    data: Data = None,
    weights: Annotated[Path | None, typer.Option(help="Released weights to start from.")] = None,
    device: Device = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that decode images, for each rank; default: 0 on a CPU, else up to 4.",
        ),
    ] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    dry_run: DryRun = False,
    gpus: Annotated[
        int | None,
        typer.Option(min=0, help="Train each run on this many GPUs.", rich_help_panel=DEVICES),
    ] = None,
    procs: Annotated[
        int | None,
        typer.Option(min=1, help="The same on CPUs: processes.", rich_help_panel=DEVICES),
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
            help="HOST:PORT of machine 0, where they meet.",
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
            help="Runs side by side on this machine; with --slurm, on the cluster.",
            rich_help_panel=GRIDS,
        ),
    ] = None,
    slurm: Annotated[
        bool,
        typer.Option("--slurm", help="Submit the grid to Slurm.", rich_help_panel=GRIDS),
    ] = False,
    partition: Annotated[
        str | None, typer.Option(help="Slurm partition.", rich_help_panel=GRIDS)
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
        typer.Option(min=1, help="Slurm: CPU cores of each machine.", rich_help_panel=GRIDS),
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
    from lovasz_repro.config import load_experiment, parse_overrides
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.launch.dispatch import Way, dispatch, plan
    from lovasz_repro.launch.options import check_options, slurm_options
    from lovasz_repro.launch.request import Request

    loaded = load_experiment(experiment)
    cells = loaded.cells(
        profile,
        variants=variant,
        seeds=seed,
        batch_sizes=batch_size,
        overrides=parse_overrides(set_ or []),
    )
    request = Request(
        experiment,
        loaded,
        cells,
        set_ or [],
        results,
        data_folder(data),
        weights,
        tracking_uri,
        device,
        workers,
        gpus,
        procs,
        nodes,
    )
    cluster = {"partition": partition, "time": time, "cpus": cpus, "sbatch": sbatch}
    check_options(request, slurm, cluster)
    options = slurm_options(request, partition, time, cpus, jobs, sbatch) if slurm else None
    if dry_run:
        plan(request)
    else:
        dispatch(request, Way(jobs or 1, options, node_rank, rdzv, max_restarts))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Photographs.")],
    weights: Annotated[
        Path, typer.Option(help="The authors' Torch7 file, or a run's best.safetensors.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for label ids and overlays.")],
    model: Annotated[Network, typer.Option(help="Architecture of the weights.")] = Network.enet,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH that the network sees; default: each image's own."),
    ] = None,
    device: Device = "auto",
) -> None:
    """Label photographs with a network: a PNG of label ids and a coloured overlay of each."""
    from lovasz_repro.evaluation.predict import parse_size, predict_images
    from lovasz_repro.progress import Progress

    with Progress() as progress:
        task = progress.task(f"{model.value} on images", len(images))
        predictions = predict_images(
            images,
            weights,
            out,
            parse_size(size) if size else None,
            device,
            lambda image: task.advance(note=image.name),
        )
    for prediction in predictions:
        typer.echo(f"{prediction.label_ids}  {prediction.overlay}")


@app.command()
def doctor(
    data: Data = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """What is installed and found, and what each missing thing is needed for."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.doctor import examine, print_findings

    findings = examine(data_folder(data), results, tracking_uri)
    print_findings(findings, as_json)
    if not all(finding.ok for finding in findings if finding.essential):
        raise typer.Exit(1)


@report_app.command()
def tables(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.")] = None,
    formats: Annotated[
        list[TableFormat] | None, typer.Option("--format", help="Repeatable; default: all four.")
    ] = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's tables, published and reproduced numbers side by side."""
    from lovasz_repro.report.render import write_tables
    from lovasz_repro.report.tables import TABLES
    from lovasz_repro.report.terminal import print_table
    from lovasz_repro.store import Store

    store = Store(results, tracking_uri)
    folder = out or results / "report" / "tables"
    chosen = [form.value for form in formats or TableFormat]
    files = write_tables(store, folder, names, chosen)
    for name in names or TABLES:
        print_table(TABLES[name](store), terminal())
    typer.echo(f"{len(files)} files in {folder}")


@report_app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.")] = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's figures, as PDF and PNG, with the data and runs behind each as JSON."""
    from lovasz_repro.report.figures import write_figures
    from lovasz_repro.store import Store

    folder = out or results / "report" / "figures"

    def say(name: str, missing: "Missing") -> None:
        typer.echo(f"{name}: not drawn, {missing.reason}. Run: {missing.command}")

    for file in write_figures(Store(results, tracking_uri), folder, names, missing=say):
        if file.suffix == ".png":
            typer.echo(f"{file} (and .pdf, .json)")


@report_app.command()
def claims(
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """What the paper claims, and whether the stored runs bear it out."""
    from lovasz_repro.report.claims import evaluate_claims
    from lovasz_repro.report.claims_render import print_claims, write_claims
    from lovasz_repro.store import Store

    verdicts = evaluate_claims(Store(results, tracking_uri))
    print_claims(verdicts, terminal())
    for file in write_claims(verdicts, out or results / "report"):
        typer.echo(str(file))


@runs_app.callback()
def runs(
    context: typer.Context,
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """List runs, stored and queued: status, experiment, variant, best score, age."""
    if context.invoked_subcommand is None:
        from lovasz_repro.launch.slurm_queue import slurm_folder, states
        from lovasz_repro.listing import print_runs
        from lovasz_repro.store import Store

        found = Store(results, tracking_uri).runs(experiment)
        try:
            tasks = states(slurm_folder(results))
        except UserError as error:  # the runs are there all the same
            sys.stderr.write(f"What is queued is not known: {error}\n")
            tasks = {}
        prefix = f"{experiment}/" if experiment else ""
        wanted = {key: task for key, task in tasks.items() if task.name.startswith(prefix)}
        print_runs(found, as_json, wanted)


@runs_app.command("export")
def export_(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    run: Annotated[list[str] | None, typer.Option(help="Only this run id; repeatable.")] = None,
    max_artifact: Annotated[
        int, typer.Option(min=0, help="Leave out files of more bytes than this (weights).")
    ] = 1_000_000,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write runs as plain files, for git or for another machine."""
    from lovasz_repro.store import Store
    from lovasz_repro.store.transfer import export_runs

    store = Store(results, tracking_uri)
    count = export_runs(store, out, experiment, run, max_artifact=max_artifact)
    typer.echo(f"{count} runs in {out}")


@runs_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder that `runs export` wrote.")],
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Bring exported runs into the store; those it has already are left alone."""
    from lovasz_repro.store import Store
    from lovasz_repro.store.transfer import import_runs

    report = import_runs(Store(results, tracking_uri), source)
    typer.echo(
        f"{len(report.added)} added, {len(report.updated)} updated, "
        f"{len(report.present)} there already, {len(report.kept)} left alone (running here)"
    )


@bench_app.command("losses")
def bench_losses(
    size: Annotated[
        list[str] | None,
        typer.Option(help="BxCxHxW of the logits; repeatable; default: two sizes for the device."),
    ] = None,
    logits: Annotated[
        list[Logits] | None,
        typer.Option(help="Of an untrained or a trained network; repeatable; default: both."),
    ] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads, steadiest with 1; default: torch's."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Rounds; default: 5 on a CPU, 30 on a GPU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of logits and labels.")] = 0,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time, memory and precision of the losses, beside cross-entropy and a plain Algorithm 1."""
    if as_markdown and as_json:
        raise UserError("give --markdown or --json, not both.")
    from lovasz_repro.bench.losses import choose_settings, run_bench
    from lovasz_repro.bench.render import print_report, to_json, to_markdown
    from lovasz_repro.device import choose_device
    from lovasz_repro.progress import Progress

    kinds = [kind.value for kind in logits or Logits]
    settings = choose_settings(size, kinds, choose_device(device), threads, repeats, seed)
    with Progress() as progress:
        task = progress.task("bench losses", settings.passes)
        report = run_bench(settings, lambda name: task.advance(note=name))
    if as_json or as_markdown:
        typer.echo(to_json(report) if as_json else to_markdown(report))
    else:
        print_report(report, terminal())


@bench_app.command("training")
def bench_training(
    size: Annotated[
        str | None,
        typer.Option(help="BxHxW of the images; default: 4x176x240 on a CPU, else 10x512x1024."),
    ] = None,
    procs: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Processes to compare with one on a CPU; repeatable; default: 2."),
    ] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads that all share; default: torch's."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Of all variants in turn; default: 5 on a CPU, 20 on a GPU."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of each variant in a round; default: 3 on a CPU, 10 on a GPU."),
    ] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a training step of ENet costs: processes, precisions, the loss in it, checkpoints."""
    if as_markdown and as_json:
        raise UserError("give --markdown or --json, not both.")
    from lovasz_repro.bench.training import choose_settings, run_bench
    from lovasz_repro.bench.training_render import print_report, to_json, to_markdown
    from lovasz_repro.device import choose_device
    from lovasz_repro.progress import Progress

    settings = choose_settings(size, procs, choose_device(device), threads, rounds, steps)
    with Progress() as progress:
        task = progress.task("bench training", settings.passes)
        report = run_bench(settings, lambda name: task.advance(note=name))
    if as_json or as_markdown:
        typer.echo(to_json(report) if as_json else to_markdown(report))
    else:
        print_report(report, terminal())


def terminal() -> "Console":
    """Where results go: stdout, at full width when it is not a terminal."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def to_yaml(config: "BaseModel") -> str:
    """A resolved config as the YAML that says the same."""
    import yaml

    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def main() -> None:
    """Entry point: turns errors into one line and an exit code.

    0 done, 1 a run failed, 2 a mistake in what was given, 130 / 143 stopped by Ctrl-C / SIGTERM.
    """
    if "--debug" in sys.argv:
        os.environ[DEBUG] = "1"  # also for the processes that this one starts
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    stop_when_orphaned()
    with one_line_errors(bool(os.environ.get(DEBUG))):
        app()


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Print an error in one line and exit with its code; with ``debug`` let it through."""
    try:
        yield
    except SystemExit as end:
        leave(end.code)
    except (Exception, KeyboardInterrupt) as error:
        if debug and not is_rank():
            raise
        if debug:
            traceback.print_exc()
        tell(error, describe(error))
        leave(exit_code(error))


def leave(code: int | str | None) -> NoReturn:
    """End this process with an exit code.

    A rank goes at once: threads of its process group may wait for a rank that is gone, and gloo's
    now and then abort a process that ends in order.
    """
    if is_rank():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)


def describe(error: BaseException) -> str:
    """An error in one line; being asked to stop is none."""
    if isinstance(error, KeyboardInterrupt):
        return "Stopped."
    text = " ".join(str(error).split())
    if hasattr(error, "exit_code"):
        return text
    if isinstance(error, UserError | RunFailed):
        return f"Error: {text}"
    return f"Error: unexpected {type(error).__name__}: {text} (--debug shows where)"


def exit_code(error: BaseException) -> int:
    """2 for a user's mistake, 1 for a failure, or what the error itself asks for."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, UserError):
        return 2
    return int(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
