"""``runs``: lists runs, writes them as plain files, reads them back."""

from pathlib import Path
from typing import Annotated

import typer

from lovasz_repro.cli.options import RESULTS, AsJson, Results, TrackingUri
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say

runs_app = typer.Typer(invoke_without_command=True)


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
        from lovasz_repro.cli.listing import print_runs
        from lovasz_repro.launch.slurm_queue import slurm_folder, states
        from lovasz_repro.store import Store

        found = Store(results, tracking_uri).runs(experiment)
        try:
            tasks = states(slurm_folder(results))
        except UserError as error:  # the runs are there all the same
            say(f"What is queued is not known: {error}", err=True)
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
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out files and metrics: --without 'examples/*'; repeatable."),
    ] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write runs as plain files, for git or for another machine."""
    from lovasz_repro.store import Store
    from lovasz_repro.store.transfer import export_runs

    store = Store(results, tracking_uri)
    count = export_runs(
        store, out, experiment, run, max_artifact=max_artifact, without=without or ()
    )
    say(f"{count} runs in {out}")


@runs_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder that `runs export` wrote.")],
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Bring exported runs into the store; those it has already are left alone."""
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.store import Store
    from lovasz_repro.store.transfer import import_runs

    with Progress() as progress:
        report = import_runs(Store(results, tracking_uri), source, progress)
    scored = f", {len(report.scored)} with new scores of a server" if report.scored else ""
    say(
        f"{len(report.added)} added, {len(report.updated)} updated{scored}, "
        f"{len(report.present)} there already, {len(report.kept)} left alone (running here)"
    )


@runs_app.command()
def record(
    run: Annotated[str, typer.Argument(help="Id of a finished run, or how it begins.")],
    server_scores: Annotated[
        Path,
        typer.Option(
            help="JSON, YAML, or a name and a number a line (.csv, .txt), in percent. Cityscapes: "
            "class_iou, class_iiou, category_iou, category_iiou and classes, or the official "
            "script's JSON. VOC: mean and classes."
        ),
    ],
    initial: Annotated[
        bool, typer.Option("--initial", help="They are of the network before training.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put them in place of others that were recorded.")
    ] = False,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Keep the scores that an evaluation server gave to a run's predictions."""
    from lovasz_repro.cli.runs_record import read_scores
    from lovasz_repro.store import Store
    from lovasz_repro.store.server_scores import record_server_scores

    store = Store(results, tracking_uri)
    found = store.by_id(run)
    given = read_scores(found, server_scores, initial=initial)
    new = record_server_scores(
        store, found, given.scores, server_scores, initial=initial, replace=replace
    )
    what = "before training" if initial else "after training"
    say(
        f"{'recorded' if new else 'recorded before'}: {given.words} of {found.name} {what} "
        f"(run {found.run_id})"
    )
