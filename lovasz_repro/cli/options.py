"""Options that several commands take."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from lovasz_repro.host.output import say

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
Weights = Annotated[
    Path | None,
    typer.Option(help="Released weights to start from; default: those found below --data."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<number>.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write to. Default: report/ in the results folder."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change the recipe: --set training.lr=1.0e-4; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would run; run nothing.")]
PrintConfig = Annotated[
    bool,
    typer.Option("--print-config", help="Print the experiment as a YAML file that `run` takes."),
]
RESULTS = Path("results")


def say_yaml(content: dict[str, object]) -> None:
    """Print a config as YAML, its keys in their order."""
    import yaml

    say(*yaml.safe_dump(content, sort_keys=False).rstrip("\n").split("\n"))


def data_option(data: Path | None) -> str:
    """What a later command must be told to find the same folder."""
    return f" --data {shlex.quote(str(data))}" if data else ""


def without_types_of_flags(command: Any, parent: typer.Context | None = None) -> Any:
    """The same command, of whose options and subcommands no flag shows ``<bool>`` in its help."""
    context = typer.Context(command, parent, **command.context_settings)
    for option in (*command.params, command.get_help_option(context)):
        if option.param_type_name == "option" and option.is_flag:
            option.metavar = ""
    for subcommand in getattr(command, "commands", {}).values():
        without_types_of_flags(subcommand, context)
    return command
