"""The list of stored runs on the terminal."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from lovasz_repro.store.stored import StoredRun, shown_status

SCORES = ("test/dataset_miou", "val/dataset_miou")
"""What a training run is judged by, best first."""


def print_runs(runs: Sequence[StoredRun], as_json: bool) -> None:
    """Newest first: status, experiment, profile, run, best score, age, run id."""
    if as_json:
        content = [asdict(run) | {"shown_status": shown_status(run)} for run in runs]
        print(json.dumps(content, indent=2, sort_keys=True))
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    if not runs:
        console.print("No runs stored yet. Start with: lovasz-repro synthetic")
        return
    table = Table(
        "status", "experiment", "profile", "run", "score", "age", "run id", box=None, pad_edge=False
    )
    for run in runs:
        table.add_row(
            shown_status(run),
            run.experiment,
            run.tags.get("profile", ""),
            run.name,
            score(run),
            age(time.time() - run.started),
            run.run_id[:12],
        )
    console.print(table)


def score(run: StoredRun) -> str:
    """The score that the run is judged by, in words."""
    for key in SCORES:
        if key in run.metrics:
            split = key.split("/")[0]
            return f"{split} mIoU {100 * run.metrics[key]:.2f}"
    return ""


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
