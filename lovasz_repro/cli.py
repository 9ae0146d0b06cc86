"""The command line: each command reads its options, calls one function, prints what it got.

torch, mlflow, pandas and matplotlib are imported inside the commands, so that ``--help`` and
shell completion answer at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lovasz_repro import __version__
from lovasz_repro.errors import RunFailed, UserError

app = typer.Typer(
    name="lovasz-repro",
    help='Reproduce "The Lovász-Softmax loss" (CVPR 2018): experiments, tables, figures.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
report_app = typer.Typer(help="Rebuild tables, figures and claims from stored runs.")
runs_app = typer.Typer(help="List stored runs; move them between stores as plain files.")
app.add_typer(report_app, name="report", no_args_is_help=True)
app.add_typer(runs_app, name="runs", invoke_without_command=True)

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
RESULTS = Path("results")


class TableFormat(StrEnum):
    """How a table is written."""

    md = "md"
    tex = "tex"
    csv = "csv"
    json = "json"


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
    seeds: Annotated[int, typer.Option(min=1, help="Random draws of the ten images.")] = 100,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    device: Device = "cpu",
) -> None:
    """Sec. 4.1, Fig. 3: which loss finds the bias that minimises the Jaccard loss?"""
    from lovasz_repro import synthetic as experiment
    from lovasz_repro.experiment import choose_device
    from lovasz_repro.store import Store

    raise NotImplementedError((experiment, choose_device, Store, seeds, results, tracking_uri))


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
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: training.lr=1.0e-4.")
    ] = None,
    data: Data = None,
    weights: Annotated[Path | None, typer.Option(help="Released weights to start from.")] = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.")] = 0,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print config and plan; run nothing.")
    ] = False,
) -> None:
    """Run an experiment: skips what is done, goes on with what was stopped, starts the rest."""
    from lovasz_repro.config import load_experiment, parse_overrides

    loaded = load_experiment(experiment)
    cells = loaded.cells(
        profile,
        variants=variant,
        seeds=seed,
        batch_sizes=batch_size,
        overrides=parse_overrides(set_ or []),
    )
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.experiment import Place, choose_device, run_experiment
    from lovasz_repro.plan import print_outcome, print_plan
    from lovasz_repro.progress import Progress
    from lovasz_repro.store import Store

    place = Place(results, data_folder(data), weights, choose_device(device), workers)
    store = Store(results, tracking_uri)
    if dry_run:
        print_plan(cells, place, store)
        return
    with Progress() as progress:
        outcome = run_experiment(loaded, cells, place, store, progress)
    print_outcome(loaded, outcome)
    if outcome.failed:
        raise RunFailed(f"{len(outcome.failed)} of {len(cells)} runs failed, see above.")


@report_app.command()
def tables(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.")] = None,
    formats: Annotated[
        list[TableFormat] | None,
        typer.Option("--format", help="Repeatable; default: all four."),
    ] = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's tables, published and reproduced numbers side by side."""


@report_app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.")] = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's figures, as PDF and PNG."""


@report_app.command()
def claims(
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """What the paper claims, and whether the stored runs bear it out."""


def main() -> None:
    """Entry point: turns errors into one line and an exit code.

    0 done, 1 a run failed, 2 a mistake in what was given, 130 / 143 stopped by Ctrl-C / SIGTERM.
    """
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with one_line_errors(debug):
        app()


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Print an error in one line and exit with its code; with ``debug`` let it through."""
    try:
        yield
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"Error: {describe(error)}\n")
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("Stopped.\n")
        sys.exit(130)


def describe(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError | RunFailed) or hasattr(error, "exit_code"):
        return text
    return f"unexpected {type(error).__name__}: {text} (--debug shows where)"


def exit_code(error: Exception) -> int:
    """2 for a user's mistake, 1 for a failure, or what the error itself asks for."""
    if isinstance(error, UserError):
        return 2
    return int(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
