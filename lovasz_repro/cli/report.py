"""``report``: tables, figures and claims from stored runs."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from lovasz_repro.cli.options import RESULTS, Out, Results, TrackingUri
from lovasz_repro.host.output import say

if TYPE_CHECKING:
    from lovasz_repro.report.drawing import Missing

report_app = typer.Typer(help="Rebuild tables, figures and claims from stored runs.")


class TableFormat(StrEnum):
    """How a table is written."""

    md = "md"
    tex = "tex"
    csv = "csv"
    json = "json"


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
    from lovasz_repro.host.terminal import Terminal
    from lovasz_repro.report.render import write_tables
    from lovasz_repro.report.tables import TABLES
    from lovasz_repro.report.terminal import print_table
    from lovasz_repro.store import Store

    store = Store(results, tracking_uri)
    folder = out or results / "report" / "tables"
    chosen = [form.value for form in formats or TableFormat]
    files = write_tables(store, folder, names, chosen)
    for name in names or TABLES:
        print_table(TABLES[name](store), Terminal())
    say(f"{len(files)} files in {folder}")


@report_app.command()
def figures(
    names: Annotated[list[str] | None, typer.Argument(help="Which; default: all.")] = None,
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """The paper's figures, as PDF and PNG, each with its caption, and its data and runs as JSON."""
    from lovasz_repro.report.figures import write_figures
    from lovasz_repro.store import Store

    folder, undrawn = out or results / "report" / "figures", list[str]()

    def tell(name: str, missing: "Missing") -> None:
        undrawn.append(name)
        line = f"{name}: not drawn, {missing.reason}. Run: {missing.command}"
        say(line, err=bool(names))

    for file in write_figures(Store(results, tracking_uri), folder, names, missing=tell):
        if file.suffix == ".png":
            say(f"{file} (and .pdf, .txt, .json)")
    if names and undrawn:
        raise typer.Exit(1)


@report_app.command()
def claims(
    out: Out = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """What the paper claims, and whether the stored runs bear it out."""
    from lovasz_repro.host.terminal import Terminal
    from lovasz_repro.report.claims import evaluate_claims
    from lovasz_repro.report.claims_render import print_claims, write_claims
    from lovasz_repro.store import Store

    verdicts = evaluate_claims(Store(results, tracking_uri))
    files = write_claims(verdicts, out or results / "report")
    print_claims(verdicts, Terminal())
    say(*files)
