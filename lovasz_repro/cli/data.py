"""``data``: checks data sets, draws small ones, brings one into the layout of another."""

import re
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lovasz_repro.cli.options import AsJson, Data, data_option
from lovasz_repro.config.read import known_name
from lovasz_repro.config.tables import DATASET_LINES, OWN_SETTINGS
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import plural, say, say_json

if TYPE_CHECKING:
    from lovasz_repro.data.check import CheckReport
    from lovasz_repro.data.check_own import OwnReport

data_app = typer.Typer(
    help="Check data sets, draw small ones, convert between their layouts.", no_args_is_help=True
)
Layout = Annotated[
    str,
    typer.Argument(
        help=f"{', '.join(DATASET_LINES)}: layout, and folder below the data folder.",
        autocompletion=lambda: list(DATASET_LINES),
    ),
]
OutFolder = Annotated[
    Path | None, typer.Option("--out", help="Folder to make; default: below the data folder.")
]
MOST_SEED = 2**63 - 1
DRAWABLE = "cityscapes", "voc", "own"
"""What `data demo` draws."""


@data_app.command("check")
def check(
    name: Layout,
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
    sheet: Annotated[
        Path | None,
        typer.Option(help="Of own: PNG to write, of images with masks over them; default: none."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Decode every file of a data set and list everything that is wrong; exit code 1 if any is."""
    known_name(name, DATASET_LINES, "data set", "data check")
    if masks_only and name not in OWN_SETTINGS["data.images"]:
        raise UserError(f"--masks-only is for voc: {name} has no use for masks alone.")
    if sheet and name not in OWN_SETTINGS["data.resize"]:
        raise UserError(f"--sheet is of own, not of {name}.")
    from lovasz_repro.data.datasets import dataset
    from lovasz_repro.host.processes import cores
    from lovasz_repro.host.progress import Progress

    how: dict[str, Any] = {"masks_only": True} if masks_only else {}
    how |= {"sheet": sheet} if sheet else {}
    with Progress() as progress:
        report = dataset(name).check(
            root or usual_folder(name, data),
            lambda images: progress.task(f"check {name}", images).advance,
            processes=processes or cores(),
            **how,
        )
    print_report(report, as_json)
    if not report.ok:
        raise typer.Exit(1)


def usual_folder(name: str, data: Path | None) -> Path:
    """Where a data set lies: below the data folder; one of the user's own may be that folder."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.data.own_files import own_folder

    return own_folder(data_folder(data)) if name == "own" else data_folder(data) / name


@data_app.command("prepare")
def prepare(
    name: Annotated[Literal["own"], typer.Argument(help="Photographs and masks of your own.")],
    data: Data = None,
    root: Annotated[
        Path | None, typer.Option(help="The folder; default: own/ below the data folder.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of the split.")] = 0,
    share: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Of the images, for validation.")
    ] = 0.2,
    processes: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Default: one per core.")
    ] = None,
) -> None:
    """Write what a folder does not say: classes.txt, found in the masks; train.txt and val.txt."""
    from lovasz_repro.data.own_look import prepare_own
    from lovasz_repro.host.processes import cores
    from lovasz_repro.host.progress import Progress

    folder = root or usual_folder(name, data)
    with Progress() as progress:
        found = prepare_own(
            folder,
            seed=seed,
            share=share,
            begin=lambda images: progress.task("reading images and masks", images).advance,
            processes=processes or cores(),
        )
    for note in found.notes:
        say(note)
    for file in found.wrote:
        say(f"wrote: {file}")
    counts = ", ".join(f"{count:,} {split}" for split, count in found.images.items())
    say(f"{folder}: {counts}; {plural(len(found.classes.names), 'class')}: {found.classes}")


@data_app.command("demo")
def draw(
    name: Annotated[
        str,
        typer.Argument(
            help=f"{', '.join(DRAWABLE)}: layout, and folder below the data folder with -demo.",
            autocompletion=lambda: list(DRAWABLE),
        ),
    ],
    data: Data = None,
    out: OutFolder = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Of what is drawn.")] = 0,
    images: Annotated[
        str | None,
        typer.Option(
            help="How many for train,val,test; default: 40,12,6, of voc 160,80,6, of own 60,20,20."
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Pixels: HEIGHTxWIDTH, default 256x512; the long side of voc, 128, and own, 160."
        ),
    ] = None,
    kinds: Annotated[
        int, typer.Option(min=1, max=5, help="Of own: kinds of objects that have labels.")
    ] = 1,
) -> None:
    """Draw a small VOC or Cityscapes, which needs no registration, or a set for `run own`."""
    known_name(name, DATASET_LINES, "data set", "data demo")
    counts = parse_counts(images) if images else None
    if kinds > 1 and name not in OWN_SETTINGS["data.resize"]:
        raise UserError(f"--kinds is of own, not of {name}.")
    from lovasz_repro.data.demo import DEMOS
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.progress import Progress

    demo = DEMOS.get(name)
    if demo is None:
        raise UserError(f"{name} cannot be drawn; `lovasz-repro doctor` says where it comes from.")
    counts, shape = counts or demo.counts, demo.size
    if size:
        shape = parse_size(size, demo.size, demo.smallest)
    folder = out or data_folder(data) / f"{name}-demo"
    with Progress() as progress:
        advance = progress.task(f"demo {name}", sum(counts)).advance
        how = {"kinds": kinds} if kinds > 1 else {}
        new = demo.write(folder, seed, counts, shape, advance, **how)
    train, val, test = counts
    what = f"{train} train, {val} val and {test} test images of drawn {demo.things}"
    then = f"data check {name} --root {shlex.quote(str(folder))}"
    if demo.experiment:
        then = f"run {demo.experiment} --profile demo{options(data, out)}"
    say_what_next(new, folder, what, then)


@data_app.command("convert")
def convert(
    source: Annotated[Literal["camvid"], typer.Argument(help="Data set, below the data folder.")],
    target: Annotated[Literal["cityscapes"], typer.Argument(help="Layout to write.")],
    data: Data = None,
    out: OutFolder = None,
) -> None:
    """Write a data set in the layout of another."""
    from lovasz_repro.data.camvid import CAMVID_SIZES, convert_camvid, list_files
    from lovasz_repro.data.locate import data_folder, dataset_folder, find_weights
    from lovasz_repro.host.progress import Progress

    folder = dataset_folder(data_folder(data), source)
    images = sum(len(list_files(folder, split)) for split in CAMVID_SIZES)
    usual = data_folder(data) / f"{source}-{target}"
    with Progress() as progress:
        task = progress.task(f"{source} to {target}", images)
        new = convert_camvid(folder, out or usual, task.advance)
    what = f"{plural(images, 'image')} of CamVid"
    experiment = f"run camvid-as-cityscapes --profile reduced{options(data, out)}"
    weights = find_weights(data_folder(data), "enet-cityscapes")
    if out and weights:
        experiment += f" --weights {shlex.quote(str(weights))}"
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


def parse_size(text: str, like: tuple[int, ...], smallest: tuple[int, ...]) -> tuple[int, ...]:
    """ "256x512" as height and width, or "128" as a long side.

    Args:
        text: what was given.
        like: the usual size.
        smallest: what it needs at least.

    Raises:
        UserError: another form, or too small.
    """
    sides = tuple(map(int, re.findall(r"[0-9]+", text)))
    form = "x".join(["[0-9]{1,4}"] * len(like))
    if not re.fullmatch(form, text.lower()) or any(map(int.__lt__, sides, smallest)):
        what = "HEIGHTxWIDTH" if len(like) == 2 else "long side in pixels"
        least, usual = ("x".join(map(str, size)) for size in (smallest, like))
        raise UserError(f"--size {text}: {what}, {least} to 9999, such as {usual}.")
    return sides


def say_what_next(new: bool, folder: Path, what: str, command: str) -> None:
    """One line: what is where, and the command that uses it."""
    done = "wrote" if new else "there already"
    say(f"{done}: {folder} ({what}). Next: lovasz-repro {command}")


def options(data: Path | None, out: Path | None) -> str:
    """What a run needs to be told to find a tree that is not in the usual place."""
    if out is None:
        return data_option(data)
    place = out.resolve()  # a name below the data folder is all that `data.folder` takes
    folder = shlex.quote(f"data.folder={place.name}")
    return f"{data_option(place.parent)} --set {folder}"


def print_report(report: "CheckReport", as_json: bool) -> None:
    """A table of the splits, then every problem on a line of its own."""
    if as_json:
        say_json(asdict(report) | {"ok": report.ok})
        return
    from lovasz_repro.data.check_own import OwnReport
    from lovasz_repro.host.output import Terminal, print_table

    columns = sorted(asdict(report.splits[0]), key=lambda column: column == "problems")
    rows = [
        [row.split, *(f"{getattr(row, column):,}" for column in columns[1:])]
        for row in report.splits
    ]
    print_table(Terminal(), columns, rows)
    if isinstance(report, OwnReport):
        print_classes(report)
    for problem in report.problems:
        say(str(problem))
    if report.advice:
        say(report.advice)
    count = len(report.problems)
    verdict = plural(count, "problem") if count else "whole"
    size = ", {}x{}".format(*report.size) if report.size else ""
    say(f"{report.root}: {verdict} ({report.content}{size})")


def print_classes(report: "OwnReport") -> None:
    """A table of the classes, sizes and what is odd."""
    from lovasz_repro.data.check_own import size_words
    from lovasz_repro.host.output import Terminal, print_table

    splits = [row.split for row in report.splits]
    heads = ["class", "in masks", *(f"% of {s}" for s in splits), *(f"{s} images" for s in splits)]
    rows = [
        [
            one.name,
            one.value,
            *(f"{100 * one.shares.get(split, 0):.2f}" for split in splits),
            *(f"{one.images[split]:,}" for split in splits),
        ]
        for one in report.classes
    ]
    say("")
    print_table(Terminal(), heads, rows, words=(0, 1))
    say("")
    say(f"sizes: {size_words(report.sizes)}")
    for note in report.notes:
        say(f"note: {note}")
