"""``data``: checks data sets, draws small ones, brings one into the layout of another."""

import re
import shlex
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lovasz_repro.commands.shared import AsJson, Data, terminal
from lovasz_repro.errors import UserError

if TYPE_CHECKING:
    from lovasz_repro.data.check_cityscapes import CheckReport

data_app = typer.Typer(
    help="Check data sets, draw small ones, convert between their layouts.", no_args_is_help=True
)
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder to make; default: below the data folder.")
]
MOST_SEED = 2**63 - 1


class Checked(StrEnum):
    """Layouts that ``data check`` knows."""

    cityscapes = "cityscapes"


class Drawn(StrEnum):
    """Layouts that ``data demo`` draws."""

    cityscapes = "cityscapes"


class Source(StrEnum):
    """Data sets that ``data convert`` reads."""

    camvid = "camvid"


class Target(StrEnum):
    """Layouts that ``data convert`` writes."""

    cityscapes = "cityscapes"


@data_app.command("check")
def check(
    name: Annotated[Checked, typer.Argument(help="Layout, and folder below the data folder.")],
    data: Data = None,
    root: Annotated[
        Path | None, typer.Option(help="Any folder in this layout, in place of the usual one.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Default: one per core.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decode every file of a data set and list everything that is wrong; exit code 1 if any is."""
    from lovasz_repro.data.check_cityscapes import check_cityscapes, count_photographs
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.launch.cores import cores
    from lovasz_repro.progress import Progress

    folder = root or data_folder(data) / name.value
    photographs = count_photographs(folder)
    with Progress() as progress:
        task = progress.task(f"check {name.value}", photographs)
        report = check_cityscapes(folder, task.advance, processes=processes or cores())
    print_report(report, as_json)
    if not report.ok:
        raise typer.Exit(1)


@data_app.command("demo")
def demo(
    name: Annotated[Drawn, typer.Argument(help="Layout.")],
    data: Data = None,
    out: OutFolder = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of what is drawn.")] = 0,
    images: Annotated[
        str | None, typer.Option(help="How many for train,val,test; default: 40,12,6.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH of them, pixels; default: 256x512.")
    ] = None,
) -> None:
    """Draw a small data set in an official layout, which needs no registration."""
    counts = parse_counts(images) if images else None
    chosen = parse_image_size(size) if size else None
    from lovasz_repro.data.demo_cityscapes import COUNTS, SIZE, write_demo
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.progress import Progress

    counts = counts or COUNTS
    usual = data_folder(data) / f"{name.value}-demo"
    with Progress() as progress:
        task = progress.task(f"demo {name.value}", sum(counts))
        new = write_demo(out or usual, seed, counts, chosen or SIZE, task.advance)
    train, val, test = counts
    what = f"{train} train, {val} val and {test} test images of drawn streets"
    say_what_next(new, out or usual, what, f"cityscapes-enet --profile demo{options(data, out)}")


@data_app.command("convert")
def convert(
    source: Annotated[Source, typer.Argument(help="Data set, below the data folder.")],
    target: Annotated[Target, typer.Argument(help="Layout to write.")],
    data: Data = None,
    out: OutFolder = None,
) -> None:
    """Write a data set in the layout of another."""
    from lovasz_repro.data import camvid
    from lovasz_repro.data.convert_camvid import convert_camvid
    from lovasz_repro.data.locate import data_folder, dataset_folder
    from lovasz_repro.progress import Progress

    folder = dataset_folder(data_folder(data), source.value)
    images = sum(len(camvid.list_files(folder, split)) for split in camvid.SPLIT_SIZES)
    usual = data_folder(data) / f"{source.value}-{target.value}"
    with Progress() as progress:
        task = progress.task(f"{source.value} to {target.value}", images)
        new = convert_camvid(folder, out or usual, task.advance)
    what = f"{images} images of CamVid"
    experiment = f"camvid-as-cityscapes --profile reduced{options(data, out)}"
    say_what_next(new, out or usual, what, experiment)


def parse_counts(text: str) -> tuple[int, int, int]:
    """ "40,12,6" as numbers.

    Raises:
        UserError: not three whole numbers of at least 1.
    """
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise UserError(f"--images {text}: three whole numbers of at least 1, for train,val,test, "
                        "such as 40,12,6.")  # fmt: skip
    train, val, test = (int(part) for part in parts)
    return train, val, test


def parse_image_size(text: str) -> tuple[int, int]:
    """ "256x512" as height and width.

    Raises:
        UserError: another form, or less than streets need.
    """
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text.lower())
    if not found or int(found[1]) < 64 or int(found[2]) < 128:
        raise UserError(f"--size {text}: HEIGHTxWIDTH of at least 64x128, such as 256x512.")
    return int(found[1]), int(found[2])


def say_what_next(new: bool, folder: Path, what: str, experiment: str) -> None:
    """One line: what is where, and the command that uses it."""
    done = "wrote" if new else "there already"
    typer.echo(f"{done}: {folder} ({what}). Next: lovasz-repro run {experiment}")


def options(data: Path | None, out: Path | None) -> str:
    """What a run needs to be told to find a tree that is not in the usual place."""
    where = f" --data {shlex.quote(str(data))}" if data else ""
    return where + (f" --set data.folder={shlex.quote(str(out.resolve()))}" if out else "")


def print_report(report: "CheckReport", as_json: bool) -> None:
    """A table of the splits, then every problem on a line of its own."""
    if as_json:
        import json

        typer.echo(json.dumps(asdict(report) | {"ok": report.ok}, indent=2))
        return
    from rich.table import Table

    table = Table("split", box=None, pad_edge=False)
    for column in ("images", "expected", "cities", "problems"):
        table.add_column(column, justify="right")
    for row in report.splits:
        numbers = row.images, row.expected, row.cities, row.problems
        table.add_row(row.split, *(f"{number:,}" for number in numbers))
    terminal().print(table)
    for problem in report.problems:
        typer.echo(str(problem))
    height, width = report.size
    verdict = "whole" if report.ok else f"{len(report.problems):,} problems"
    typer.echo(f"{report.root}: {verdict} ({report.content}, {height}x{width})")
