"""``synthetic``: the bias search, also as ``run synthetic``."""

from pathlib import Path
from typing import Annotated

import typer

from lovasz_repro.cli.options import (
    RESULTS,
    Device,
    DryRun,
    PrintConfig,
    Results,
    Set,
    TrackingUri,
    say_yaml,
)
from lovasz_repro.host.output import say


def synthetic(
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Draws of the ten images; default: 100.")
    ] = None,
    set_: Set = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    device: Device = "cpu",
    dry_run: DryRun = False,
    print_config: PrintConfig = False,
) -> None:
    """Sec. 4.1, Fig. 3: which loss finds the bias that minimises the Jaccard loss?"""
    given = (set_ or []) + ([f"seeds={seeds}"] if seeds else [])
    run_search("synthetic", given, results, tracking_uri, device, dry_run, print_config)


def run_search(
    source: str,
    overrides: list[str],
    results: Path,
    tracking_uri: str | None,
    device: str,
    dry_run: bool,
    print_config: bool,
) -> None:
    """Run the search of an experiment file, given by name or path; or tell what it would do."""
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.synthetic import load_synthetic

    config = load_synthetic(source, parse_overrides(overrides))
    if print_config:
        say_yaml(config.model_dump(mode="json"))
        return
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.host.terminal import Terminal
    from lovasz_repro.report.render import print_table
    from lovasz_repro.report.tables import TABLES
    from lovasz_repro.store import Store
    from lovasz_repro.synthetic.experiment import run_synthetic, stored_search

    store = Store(results, tracking_uri)
    if dry_run:
        stored = stored_search(config, store)
        state = f"done (run {stored.run_id})" if stored else "new"
        say(f"synthetic: {config.seeds} seeds, {state}; results go to {store.uri}.")
        return
    with Progress() as progress:
        task = progress.task("synthetic", config.seeds)
        done = run_synthetic(config, store, choose_device(device), task.reach)
    print_table(TABLES["synthetic"](store), Terminal())
    note = "stored before" if done.reused else "stored"
    say(f"{note} as run {done.run.run_id}. Next: lovasz-repro report figures figure-3")
