"""Tables of the report as files, as the command writes them."""

from collections.abc import Sequence
from pathlib import Path

from lovasz_repro.host.output import write_files
from lovasz_repro.report.render import build_tables, rendered
from lovasz_repro.report.runs import RunStore


def write_tables(
    store: RunStore,
    out: Path,
    names: Sequence[str] | None = None,
    formats: Sequence[str] = ("md", "tex", "csv", "json"),
) -> list[Path]:
    """``<out>/<name>.<format>`` of every table, in that order."""
    texts = [rendered(table, formats) for table in build_tables(store, names)]
    return [file for files in texts for file in write_files(out, files)]
