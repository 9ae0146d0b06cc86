"""One table with remarks and a caption: what most benches print, for people and for documents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from lovasz_repro.bench.formats import md_heads, md_line
from lovasz_repro.bench.machine import contended, warning
from lovasz_repro.host.terminal import print_note, print_table


@dataclass(frozen=True)
class Page:
    """What is to be printed."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Cells in the order of ``heads``."""
    remarks: Sequence[str]
    """Sentences that do not fit into rows."""
    caption: str
    """How to read the numbers."""
    load: float | None
    """Of the machine (``machine.load``)."""

    def warnings(self) -> Iterator[str]:
        """What to think of the times, where the machine was busy."""
        if contended(self.load):
            yield warning(self.load)


def print_page(page: Page, console: Console) -> None:
    """The table and, below it, the rest."""
    console.print(Text(page.title, style="bold"))
    print_table(console, page.heads, page.rows)
    for remark in page.remarks:
        print_note(console, remark)
    for text in page.warnings():
        print_note(console, text, "yellow")
    console.print()
    print_note(console, page.caption, "dim")


def page_markdown(page: Page) -> str:
    """The same for a README."""
    text = [f"**{page.title}**", "", *md_heads(page.heads), *map(md_line, page.rows), ""]
    text += [f"- {remark}" for remark in page.remarks]
    text += ["", *page.warnings()] if contended(page.load) else []
    return "\n".join([*text, "", page.caption, ""])
