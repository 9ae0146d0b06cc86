"""Options that several commands take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

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


def to_yaml(config: "BaseModel") -> str:
    """A resolved config as the YAML that says the same."""
    import yaml

    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
