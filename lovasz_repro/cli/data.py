"""``data``: checks data sets, draws small ones, brings one into the layout of another."""

import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lovasz_repro.cli.options import AsJson, Data
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say, say_json

if TYPE_CHECKING:
    from lovasz_repro.data.check import CheckReport

data_app = typer.Typer(
    help="Check data sets, draw small ones, convert between their layouts.", no_args_is_help=True
)
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder to make; default: below the data folder.")
]
MOST_SEED = 2**63 - 1


class Checked(StrEnum):
    """Layouts that ``data check`` knows."""

    camvid = "camvid"
    cityscapes = "cityscapes"
    voc = "voc"


class Drawn(StrEnum):
    """Layouts that ``data demo`` draws."""

    cityscapes = "cityscapes"
    voc = "voc"


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
    masks_only: Annotated[
        bool, typer.Option("--masks-only", help="Of voc: do without the photographs.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decode every file of a data set and list everything that is wrong; exit code 1 if any is."""
    if masks_only and name is not Checked.voc:
        raise UserError(f"--masks-only is for voc: {name.value} has no use for masks alone.")
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.processes import cores

    report = check_layout(
        name, root or data_folder(data) / name.value, masks_only, processes or cores()
    )
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
        str | None,
        typer.Option(help="How many for train,val,test; default: 40,12,6, of voc 160,80,6."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Pixels: HEIGHTxWIDTH, default 256x512; of voc the long side, 128."),
    ] = None,
) -> None:
    """Draw a small data set in an official layout, which needs no registration."""
    counts = parse_counts(images) if images else None
    from lovasz_repro.data import demo as drawn
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.progress import Progress

    write: Callable[..., bool]
    if name is Drawn.voc:
        counts, side = counts or drawn.VOC_COUNTS, parse_long_side(size) if size else drawn.VOC_SIZE
        write = partial(drawn.write_voc, seed=seed, images=counts, size=side)
        things, experiment = "objects", "voc-binary"
    else:
        counts = counts or drawn.STREET_COUNTS
        shape = parse_image_size(size) if size else drawn.STREET_SIZE
        write = partial(drawn.write_cityscapes, seed=seed, images=counts, size=shape)
        things, experiment = "streets", "cityscapes-enet"
    folder = out or data_folder(data) / f"{name.value}-demo"
    with Progress() as progress:
        new = write(folder, advance=progress.task(f"demo {name.value}", sum(counts)).advance)
    train, val, test = counts
    what = f"{train} train, {val} val and {test} test images of drawn {things}"
    say_what_next(new, folder, what, f"{experiment} --profile demo{options(data, out)}")


@data_app.command("convert")
def convert(
    source: Annotated[Source, typer.Argument(help="Data set, below the data folder.")],
    target: Annotated[Target, typer.Argument(help="Layout to write.")],
    data: Data = None,
    out: OutFolder = None,
) -> None:
    """Write a data set in the layout of another."""
    from lovasz_repro.data.camvid import SPLIT_SIZES, convert_camvid, list_files
    from lovasz_repro.data.locate import data_folder, dataset_folder, find_enet_weights
    from lovasz_repro.host.progress import Progress

    folder = dataset_folder(data_folder(data), source.value)
    images = sum(len(list_files(folder, split)) for split in SPLIT_SIZES)
    usual = data_folder(data) / f"{source.value}-{target.value}"
    with Progress() as progress:
        task = progress.task(f"{source.value} to {target.value}", images)
        new = convert_camvid(folder, out or usual, task.advance)
    what = f"{images} images of CamVid"
    experiment = f"camvid-as-cityscapes --profile reduced{options(data, out)}"
    weights = find_enet_weights(data_folder(data))
    if out and weights:
        experiment += f" --weights {shlex.quote(str(weights))}"
    say_what_next(new, out or usual, what, experiment)


def check_layout(name: Checked, folder: Path, masks_only: bool, processes: int) -> "CheckReport":
    """Check a tree, with a progress bar."""
    from lovasz_repro.data.check_camvid import check_camvid
    from lovasz_repro.data.check_cityscapes import check_cityscapes
    from lovasz_repro.data.check_voc import check_voc
    from lovasz_repro.host.progress import Progress

    checks: dict[Checked, Callable[..., CheckReport]] = {
        Checked.camvid: check_camvid,
        Checked.cityscapes: check_cityscapes,
        Checked.voc: partial(check_voc, masks_only=masks_only),
    }
    with Progress() as progress:

        def begin(images: int) -> Callable[[int], None]:
            return progress.task(f"check {name.value}", images).advance

        return checks[name](folder, begin, processes=processes)


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


def parse_long_side(text: str) -> int:
    """ "128" as a number of pixels.

    Raises:
        UserError: another form, or less than objects need.
    """
    if not re.fullmatch(r"[0-9]{1,4}", text) or int(text) < 64:
        raise UserError(f"--size {text}: long side in pixels, 64 to 9999, such as 128.")
    return int(text)


def say_what_next(new: bool, folder: Path, what: str, experiment: str) -> None:
    """One line: what is where, and the command that uses it."""
    done = "wrote" if new else "there already"
    say(f"{done}: {folder} ({what}). Next: lovasz-repro run {experiment}")


def options(data: Path | None, out: Path | None) -> str:
    """What a run needs to be told to find a tree that is not in the usual place."""
    if out is None:
        return f" --data {shlex.quote(str(data))}" if data else ""
    place = out.resolve()  # a name below the data folder is all that `data.folder` takes
    folder = shlex.quote(f"data.folder={place.name}")
    return f" --data {shlex.quote(str(place.parent))} --set {folder}"


def print_report(report: "CheckReport", as_json: bool) -> None:
    """A table of the splits, then every problem on a line of its own."""
    if as_json:
        say_json(asdict(report) | {"ok": report.ok})
        return
    from lovasz_repro.host.terminal import Terminal, print_table

    columns = sorted(asdict(report.splits[0]), key=lambda column: column == "problems")
    rows = [
        [row.split, *(f"{getattr(row, column):,}" for column in columns[1:])]
        for row in report.splits
    ]
    print_table(Terminal(), columns, rows)
    for problem in report.problems:
        say(str(problem))
    if report.advice:
        say(report.advice)
    count = len(report.problems)
    verdict = f"{count:,} problem{'s' if count > 1 else ''}" if count else "whole"
    size = ", {}x{}".format(*report.size) if report.size else ""
    say(f"{report.root}: {verdict} ({report.content}{size})")
