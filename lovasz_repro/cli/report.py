"""``report``: tables, figures, claims and a page of all of them, from stored runs."""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lovasz_repro.cli.options import RESULTS, Out, Results, TrackingUri
from lovasz_repro.host.output import plural, say, write_files

if TYPE_CHECKING:
    from lovasz_repro.report.model import Missing
    from lovasz_repro.report.runs import RunStore

report_app = typer.Typer(invoke_without_command=True)

MOST_SHOWN = 3
"""Of what is new, in full on a terminal that did not ask for it by name."""
ONE_BY_NAME = "in full by name: lovasz-repro report {} NAME"


TableFormat = StrEnum("TableFormat", ["md", "tex", "csv", "json"])
Names = Annotated[list[str] | None, typer.Argument(help="Which; default: all.")]


@report_app.callback()
def report(
    context: typer.Context,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Rebuild tables, figures, claims and their page from stored runs; by name, one of these."""
    if context.invoked_subcommand is None:
        folder = out or results / "report"
        tables(out=folder / "tables", results=results, tracking_uri=tracking_uri)
        figures(out=folder / "figures", results=results, tracking_uri=tracking_uri)
        claims(out=folder, results=results, tracking_uri=tracking_uri)
        page(out=folder, results=results, tracking_uri=tracking_uri)


@report_app.command()
def tables(
    names: Names = None,
    formats: Annotated[
        list[TableFormat] | None, typer.Option("--format", help="Repeatable; default: all four.")
    ] = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's tables, published and reproduced numbers side by side."""
    from lovasz_repro.host.output import Terminal
    from lovasz_repro.report.render import build_tables, print_overview, print_table, rendered
    from lovasz_repro.store import Store

    folder, console = out or results / "report" / "tables", Terminal()
    built = build_tables(Store(results, tracking_uri), names)
    forms = [form.value for form in formats or TableFormat]
    files = {table.name: rendered(table, forms) for table in built}
    news = {name for name, texts in files.items() if differ(folder, texts)}
    kept = [
        table
        for table in built
        if names or table.filled or any((folder / file).exists() for file in files[table.name])
    ]
    count = sum(len(write_files(folder, files[table.name])) for table in kept)
    shown = [table for table in kept if names or (table.filled and table.name in news)]
    if not names:
        print_overview(built, news, console)
        if not console.is_terminal:
            shown = [table for table in kept if table.filled]
        elif len(shown) > MOST_SHOWN:
            shown = []
    for table in shown:
        print_table(table, console)
    say(
        f"{plural(count, 'file')} in {folder}"
        + ("" if names else f"; {ONE_BY_NAME.format('tables')}")
    )


@report_app.command()
def figures(
    names: Names = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's figures, as PDF and PNG, each with its caption, and its data and runs as JSON."""
    from lovasz_repro.store import Store

    folder = out or results / "report" / "figures"
    if draw(Store(results, tracking_uri), folder, names) and names:
        raise typer.Exit(1)


def draw(store: "RunStore", folder: Path, names: list[str] | None) -> list[str]:
    """Write figures and say where; what could not be drawn is said too, and returned."""
    from lovasz_repro.report.figures import write_figures

    undrawn = list[str]()

    def tell(name: str, missing: "Missing") -> None:
        undrawn.append(name)
        line = f"{name}: not drawn, {missing.reason}. Run: {missing.command}"
        say(line, err=bool(names))

    for file in write_figures(store, folder, names, missing=tell):
        if file.suffix == ".png":
            say(f"{file} (and .pdf, .txt, .json)")
    return undrawn


@report_app.command()
def claims(
    names: Names = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """What the paper claims, and whether the stored runs bear it out."""
    from lovasz_repro.config.read import known_name
    from lovasz_repro.host.output import Terminal
    from lovasz_repro.report.claims import evaluate_claims
    from lovasz_repro.report.claims_render import (
        changed,
        claims_files,
        print_claim,
        print_overview,
    )
    from lovasz_repro.report.words import sentence
    from lovasz_repro.store import Store

    folder, console = out or results / "report", Terminal()
    verdicts = evaluate_claims(Store(results, tracking_uri))
    known = {item.claim.id: item for item in verdicts}
    shown = [known[known_name(name, known, "claim", "report")] for name in names or ()]
    news = changed(verdicts, folder / "claims.json")
    files = write_files(folder, claims_files(verdicts))
    if not names:
        print_overview(verdicts, news, console)
        shown = [item for item in verdicts if item.claim.id in news]
        if not console.is_terminal:
            shown = [item for item in verdicts if item.evidence]
        elif len(shown) > MOST_SHOWN:
            shown = []
    if shown:
        console.print()
    for item in shown:
        print_claim(item, console)
    say(sentence("how-to-read-claims"), ONE_BY_NAME.format("claims"), *files)


@report_app.command()
def page(
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Everything on one page, index.html or the .html of --out, for any browser."""
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.report.page.content import PAGE_STEPS
    from lovasz_repro.report.page.write import write_page
    from lovasz_repro.store import Store

    folder = out or results / "report"
    with Progress() as progress, progress.task("page", PAGE_STEPS) as bar:
        path = write_page(Store(results, tracking_uri), folder, lambda name: bar.advance(note=name))
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


def differ(folder: Path, texts: Mapping[str, str]) -> bool:
    """Whether a folder has not these files, or others of their names."""
    try:
        return any((folder / name).read_bytes() != text.encode() for name, text in texts.items())
    except OSError:
        return True
