"""``bench``: time, memory and precision on this machine."""

import inspect
from collections.abc import Callable
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lovasz_repro.cli.options import (
    RESULTS,
    AsJson,
    AsMarkdown,
    Data,
    Device,
    Results,
    Set,
    Weights,
)
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say

bench_app = typer.Typer(help="Measure time, memory and precision on this machine.")

Experiment = Annotated[str, typer.Argument(help="Name of an experiment, or a YAML file.")]
Profile = Annotated[str, typer.Option(help="Size of the experiment.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="CPU threads, steadiest with 1; default: torch's."),
]
Rounds = Annotated[int, typer.Option(min=1, help="Of everything in turn.")]
SomeRounds = Annotated[
    int | None,
    typer.Option(min=1, help="Of everything in turn; default: 3 to 5 on a CPU, 5 to 30 on a GPU."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of what is drawn.")]


LogitsKind = StrEnum("LogitsKind", ["random", "trained"])
"""Networks whose logits ``bench losses`` imitates."""
NetworkToTrain = Literal["enet", "deeplab-v2", "deeplab-v2-small"]
"""Networks that ``bench training`` trains."""


def bench(module: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a command of a bench's options, beside --markdown and --json.

    What ``run_bench`` of the module takes are the options themselves, or what the function makes
    of them.
    """

    def of_options(options: Callable[..., Any]) -> Callable[..., Any]:
        def command(as_markdown: bool, as_json: bool, **given: Any) -> None:
            if as_markdown and as_json:
                raise UserError("give --markdown or --json, not both.")
            asked = options(**given) or given
            if "device" in asked:
                asked["device"] = chosen(asked["device"])
            measure(module, options.__name__, asked, as_markdown, as_json)

        own = inspect.signature(options)
        forms = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=form)
            for name, form in (("as_markdown", AsMarkdown), ("as_json", AsJson))
        ]
        command.__signature__ = own.replace(parameters=[*own.parameters.values(), *forms])  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in (*own.parameters.values(), *forms)}
        bench_app.command(options.__name__, help=inspect.getdoc(options))(command)
        return options

    return of_options


def measure(
    module: str, name: str, given: dict[str, Any], as_markdown: bool, as_json: bool
) -> None:
    """Run a bench and print its report."""
    from lovasz_repro.bench import harness
    from lovasz_repro.host.output import Terminal
    from lovasz_repro.host.progress import Progress

    class Bar(harness.Advance):
        def expect(self, turns: int) -> None:
            self.task = progress.task(f"bench {name}", turns)

        def __call__(self, name: str) -> None:
            self.task.advance(note=name)

    with Progress() as progress:
        bench = import_module(f"lovasz_repro.bench.{module}")
        report = bench.run_bench(**given, advance=Bar())
    if as_json or as_markdown:
        text = harness.to_json(report) if as_json else harness.to_markdown(report)
        say(*text.split("\n"))
    else:
        harness.print_report(report, Terminal())


@bench("losses")
def losses(
    size: Annotated[
        list[str] | None,
        typer.Option(help="BxCxHxW of logits; repeatable; default: two sizes of the paper."),
    ] = None,
    logits: Annotated[
        list[LogitsKind] | None,
        typer.Option(help="Of an untrained or a trained network; repeatable; default: both."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: SomeRounds = None,
    seed: Seed = 0,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Also measure how time grows with pixels (1e4 to 1e7) and classes (2 to 150); "
            "draw it into this .pdf, .png or .svg. Default: neither."
        ),
    ] = None,
) -> Any:
    """Time, memory and precision of the losses, beside cross-entropy and a plain Algorithm 1.

    Where kornia, MONAI or segmentation_models_pytorch is installed, its loss is measured too.
    """


@bench("training")
def training(
    network: Annotated[NetworkToTrain, typer.Option(help="What is trained.")] = "enet",
    size: Annotated[
        str | None,
        typer.Option(
            help="BxHxW or BxCxHxW; default: ENet 4x176x240 on a CPU, 10x20x512x1024 on a GPU; "
            "DeepLab 2x97x97 and 10x321x321."
        ),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: SomeRounds = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of each variant in a round; default: 1 to 10.")
    ] = None,
) -> Any:
    """What a training step costs: precisions, the loss in it, memory, checkpoints."""


@bench("scoring")
def scoring(
    images: Annotated[int, typer.Option(min=1, max=1000, help="Generated scenes to score.")] = 10,
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="More than 1: measure so many of ours as well.")
    ] = 1,
    rounds: Rounds = 5,
    seed: Seed = 0,
) -> Any:
    """The Cityscapes scores, beside the official script: the same numbers, and the time of each."""


@bench("loading")
def loading(
    experiment: Experiment,
    profile: Profile = "paper",
    workers: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Processes that decode images; repeatable; default: 0, 1 and 2."),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="To load in a round.")] = 5,
    rounds: Rounds = 3,
    set_: Set = None,
    data: Data = None,
    weights: Weights = None,
    device: Device = "auto",
    results: Results = RESULTS,
) -> Any:
    """Whether an experiment's images are loaded as fast as they are trained on."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.run.inputs import Place

    place = Place(results, data_folder(data), weights, chosen(device))
    cell = last_cell(experiment, profile, set_)
    return {
        "cell": cell, "place": place, "workers": workers, "batches": batches, "rounds": rounds
    }  # fmt: skip


@bench("validation")
def validation(
    experiment: Experiment = "voc-multiclass",
    profile: Profile = "paper",
    images: Annotated[
        int | None, typer.Option(min=1, help="In a round; default: 1 on a CPU, 100 on a GPU.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode images; default: that of a run."),
    ] = None,
    rounds: SomeRounds = None,
    set_: Set = None,
    data: Data = None,
    device: Device = "auto",
) -> Any:
    """A validation pass as a run makes it: loading, network, metric, and which part limits it."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.processes import decoding_workers
    from lovasz_repro.run.inputs import Place

    where = chosen(device)
    if workers is None:
        workers = decoding_workers(where.type)
    place = Place(RESULTS, data_folder(data), None, where, workers)
    cell = last_cell(experiment, profile, set_)
    return {"cell": cell, "place": place, "images": images, "rounds": rounds}


def chosen(device: str) -> Any:
    """The device of that name."""
    from lovasz_repro.host.device import choose_device

    return choose_device(device)


def last_cell(experiment: str, profile: str, overrides: list[str] | None) -> Any:
    """The run of an experiment that is measured."""
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.schema import load_experiment

    settings = parse_overrides(overrides or [])
    return load_experiment(experiment).cells(profile, overrides=settings)[-1]
