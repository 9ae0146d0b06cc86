"""``weights``: says which released weights there are, fetches them, converts them to our files."""

import re
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import typer

from lovasz_repro.cli.options import AsJson, Data, data_option
from lovasz_repro.config.read import known_name
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say, say_json

if TYPE_CHECKING:
    from lovasz_repro.host.progress import Progress, ProgressTask
    from lovasz_repro.models.catalogue import Released

weights_app = typer.Typer(
    help="Find, fetch and convert the released weights that experiments start from.",
    no_args_is_help=True,
)
MEGABYTE = 1_000_000
WEIGHT_FILE = re.compile(r"[\w-][\w.-]*\.(zip|caffemodel|pth|pt|safetensors|net)")
RUN_COMMAND = "lovasz-repro run"


@weights_app.command("list")
def list_(data: Data = None, as_json: AsJson = False) -> None:
    """List released weights: what needs them, whether they are here, and how to get them."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.models.catalogue import RELEASED

    folder = data_folder(data) / "weights"
    rows = [row(entry, folder, data) for entry in RELEASED.values()]
    if as_json:
        say_json(rows)
        return
    from lovasz_repro.host.output import Terminal, print_table

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "weights": lambda found: found["name"],
        "for": lambda found: ", ".join(found["experiments"]) or found["purpose"],
        "state": lambda found: found["state"],
        "size": lambda found: (
            f"{found['size'] / MEGABYTE:.1f} MB" if found["size"] else "not known"
        ),
    }
    lines = [[cell(found) for cell in columns.values()] for found in rows]
    print_table(Terminal(), list(columns), lines, words=range(4))
    for found in rows:
        say("", *wrap(f"{found['name']}: {found['what']}.", 80))
        for title in ("url", "page", "licence", "elsewhere", "path", "next"):
            if found[title]:
                say(f"  {title:<9}  {found[title]}")


@weights_app.command("fetch")
def fetch(
    name: Annotated[str, typer.Argument(help="Weights that `weights list` names.")],
    data: Data = None,
    url: Annotated[str | None, typer.Option(help="Another address that has them.")] = None,
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of the file, 8 to 64 digits. Default: if known.")
    ] = None,
) -> None:
    """Download released weights; goes on where it was stopped, and checks what came."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.download import UnavailableError, download
    from lovasz_repro.host.files import sha256_of
    from lovasz_repro.host.progress import Progress

    entry = known(name)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{8,64}", sha256):
        raise UserError(f"--sha256 {sha256}: expected 8 to 64 hexadecimal digits.")
    folder = data_folder(data) / "weights"
    used = entry.find_used(folder)
    if used and entry.file not in entry.used:
        say(f"there already: {used}", *after(entry, folder, used, data))
        return
    target = used or folder / file_name(entry, url)
    same = target.name == entry.file or target.name in entry.used
    digits = (sha256 or (entry.sha256 if same else None) or "").lower()
    if target.is_file():
        checked = check_present(target, digits)
        say(f"there already: {target}{checked}", *after(entry, folder, target, data))
        return
    size = entry.size if same and sha256 is None else None
    with Progress() as progress:
        try:
            bar = megabytes(progress, entry.name)
            download(url or entry.url, target, size=size, sha256=digits or None, progress=bar)
        except UnavailableError as error:
            raise UnavailableError(f"{error} {other_ways(entry, target)}") from error
    checked = "as expected" if digits else "nobody published one to compare with"
    say(f"fetched: {target} ({target.stat().st_size:,} bytes)")
    say(f"SHA-256: {sha256_of(target)} ({checked})", *after(entry, folder, target, data))


@weights_app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help=".caffemodel, .pth or .safetensors of others.")],
    target: Annotated[Path, typer.Argument(help="File to write, .safetensors.")],
    images: Annotated[
        Literal["rgb", "bgr"] | None,
        typer.Option(help="What a network under torchvision's names saw. Default: by its numbers."),
    ] = None,
) -> None:
    """Write weights of DeepLab that others released in our own format."""
    from lovasz_repro.data.locate import DEEPLAB_COCO, data_folder
    from lovasz_repro.models.convert import convert as convert_deeplab

    done = convert_deeplab(source, target, images=images)
    say(f"read: {source} ({done.layout})", f"SHA-256: {done.sha256}")
    say(f"classifier: {done.classifier}")
    for note in done.notes:
        say(f"note: {note}")
    outputs = f", {done.outputs} outputs" if done.outputs else ", no classifier"
    say(f"wrote: {target} ({done.tensors} tensors{outputs})")
    usual = data_folder() / "weights" / DEEPLAB_COCO
    option = "" if target.resolve() == usual.resolve() else f" --weights {shlex.quote(str(target))}"
    if done.outputs is None or not option:
        say(f"Next: {RUN_COMMAND} {known('deeplab-coco').experiments[0]}{option}")


def known(name: str) -> "Released":
    """The entry of this name; raises UserError where there is none."""
    from lovasz_repro.models.catalogue import RELEASED

    return RELEASED[known_name(name, RELEASED, "weights", "weights list")]


def row(entry: "Released", folder: Path, data: Path | None) -> dict[str, Any]:
    """What the list says of an entry."""
    found, fetched = entry.find_used(folder), folder / entry.file
    state, path = "missing", None
    if found is not None:
        state, path = "there", found
    elif fetched.is_file():
        state, path = "fetched", fetched
    fetch = f"lovasz-repro weights fetch {entry.name}{data_option(data)}"
    step = next_step(entry, folder, path, data) if path else fetch
    return asdict(entry) | {"state": state, "path": path and str(path), "next": step}


def next_step(entry: "Released", folder: Path, file: Path, data: Path | None) -> str:
    """The command that uses a file that is there, or makes of it what a run uses; may be ""."""
    steps = entry.steps(folder, file)
    if steps:
        return " && ".join(shlex.join(words) for words in steps)
    return f"{RUN_COMMAND} {entry.experiments[0]}{data_option(data)}" if entry.experiments else ""


def after(entry: "Released", folder: Path, file: Path, data: Path | None) -> list[str]:
    """``next_step`` as the last line of an output, if there is one."""
    step = next_step(entry, folder, file, data)
    return [f"Next: {step}"] if step else []


def file_name(entry: "Released", url: str | None) -> str:
    """The name to save under: that of the address where it may be another kind of file."""
    name = PurePosixPath(urlsplit(url).path).name if url else ""
    if entry.file in entry.used or not WEIGHT_FILE.fullmatch(name):
        return entry.file
    return name


def check_present(file: Path, digits: str) -> str:
    """What was checked of a file that is there; raises UserError where it is another."""
    from lovasz_repro.host.files import sha256_of

    if not digits:
        return ""
    if not (found := sha256_of(file)).startswith(digits):
        raise UserError(
            f"{file} is there, but its SHA-256 is {found}, expected {digits}. Move it away and "
            "fetch again."
        )
    return " (SHA-256 as expected)"


def other_ways(entry: "Released", target: Path) -> str:
    """What to do where an address does not give the file."""
    also = (
        " `lovasz-repro weights list` names files of the same weights." if entry.elsewhere else ""
    )
    return (
        f"Its authors' page is {entry.page}. Name another address with --url, or put the file at "
        f"{target}.{also}"
    )


def megabytes(progress: "Progress", name: str) -> Callable[[int, int | None], None]:
    """What draws a download's bar, once its size is known."""
    task: ProgressTask | None = None

    def show(there: int, whole: int | None) -> None:
        nonlocal task
        if task is None and whole:
            task = progress.task(f"{name}, MB", -(-whole // MEGABYTE), there // MEGABYTE)
        if task is not None:
            task.reach(-(-there // MEGABYTE))

    return show
