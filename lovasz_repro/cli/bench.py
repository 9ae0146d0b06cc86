"""``bench``: time, memory and precision on this machine."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from lovasz_repro.cli.options import RESULTS, AsJson, Data, Device, Results, Set
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say

bench_app = typer.Typer(help="Measure time, memory and precision on this machine.")
MODULES = {
    "losses": "losses",
    "training": "training",
    "scoring": "scoring",
    "loading": "loading",
    "validation": "validation",
    "metrics": "counting",
    "crf": "refining",
}
"""Command -> module of ``lovasz_repro.bench`` with ``choose_settings`` and ``run_bench``."""

Experiment = Annotated[str, typer.Argument(help="Name of an experiment, or a YAML file.")]
Profile = Annotated[str, typer.Option(help="Size of the experiment.")]
Sizes = Annotated[
    list[str] | None,
    typer.Option(help="BxCxHxW of logits; repeatable; default: two or three sizes of the paper."),
]
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
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]


class LogitsChoice(StrEnum):
    """Networks whose logits ``bench losses`` imitates."""

    random = "random"
    trained = "trained"


class TrainedKind(StrEnum):
    """Networks that ``bench training`` trains."""

    enet = "enet"
    deeplab = "deeplab-v2"
    small_deeplab = "deeplab-v2-small"


@bench_app.command("losses")
def bench_losses(
    size: Sizes = None,
    logits: Annotated[
        list[LogitsChoice] | None,
        typer.Option(help="Of an untrained or a trained network; repeatable; default: both."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Rounds; default: 5 on a CPU, 30 on a GPU.")
    ] = None,
    seed: Seed = 0,
    figure: Annotated[
        Path | None,
        typer.Option(
            help="Also measure how time grows with pixels (1e4 to 1e7) and classes (2 to 150); "
            "draw it into this .pdf, .png or .svg. Default: neither."
        ),
    ] = None,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Time, memory and precision of the losses, beside cross-entropy and a plain Algorithm 1.

    Where kornia, MONAI or segmentation_models_pytorch is installed, its loss is measured too.
    """
    from lovasz_repro.bench.growth import check_figure, draw

    if figure:
        check_figure(figure)
    kinds = [kind.value for kind in logits or LogitsChoice]
    given = size, kinds, chosen(device), threads, repeats, seed, figure is not None
    report = measure("losses", as_markdown, as_json, *given)
    if figure:
        draw(report.growth, report.machine, figure)


@bench_app.command("training")
def bench_training(
    network: Annotated[TrainedKind, typer.Option(help="What is trained.")] = TrainedKind.enet,
    size: Annotated[
        str | None,
        typer.Option(
            help="BxHxW or BxCxHxW; default: ENet 4x176x240 on a CPU, 10x20x512x1024 on a GPU; "
            "DeepLab 2x97x97 and 10x321x321."
        ),
    ] = None,
    procs: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Processes to compare with one on a CPU; repeatable; default: 2."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: SomeRounds = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of each variant in a round; default: 1 to 10.")
    ] = None,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """What a training step costs: processes, precisions, the loss in it, memory, checkpoints."""
    given = size, procs, chosen(device), threads, rounds, steps, network.value
    measure("training", as_markdown, as_json, *given)


@bench_app.command("scoring")
def bench_scoring(
    images: Annotated[int, typer.Option(min=1, max=1000, help="Generated scenes to score.")] = 10,
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="More than 1: measure so many of ours as well.")
    ] = 1,
    rounds: Rounds = 5,
    seed: Seed = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """The Cityscapes scores, beside the official script: the same numbers, and the time of each."""
    measure("scoring", as_markdown, as_json, images, processes, rounds, seed)


@bench_app.command("loading")
def bench_loading(
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
    weights: Annotated[
        Path | None,
        typer.Option(help="Released weights to start from; default: those found below --data."),
    ] = None,
    device: Device = "auto",
    results: Results = RESULTS,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Whether an experiment's images are loaded as fast as they are trained on."""
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.run.inputs import Place

    place = Place(results, data_folder(data), weights, chosen(device))
    cell = last_cell(experiment, profile, set_)
    measure("loading", as_markdown, as_json, cell, place, workers, batches, rounds)


@bench_app.command("validation")
def bench_validation(
    experiment: Experiment = "voc-multiclass",
    profile: Profile = "paper",
    images: Annotated[
        int | None, typer.Option(min=1, help="In a round; default: 1 on a CPU, 100 on a GPU.")
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(help="Of a DeepLab, like 1,0.75,0.5; default: those of the experiment."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that decode images; default: that of a run."),
    ] = None,
    rounds: SomeRounds = None,
    set_: Set = None,
    data: Data = None,
    device: Device = "auto",
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """A validation pass as a run makes it: loading, network, metric, and which of them limits it.

    Where VOC's photographs are not there, others of their size are drawn.
    """
    from lovasz_repro.config.read import validate
    from lovasz_repro.config.schema import MultiScaleConfig
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.processes import decoding_workers
    from lovasz_repro.run.inputs import Place

    cell, where = last_cell(experiment, profile, set_), chosen(device)
    if workers is None:
        workers = decoding_workers(where.type)
    several = None
    if scales:
        given = {"scales": parse_numbers("--scales", scales)}
        several = validate(MultiScaleConfig, given, "--scales").scales
    place = Place(RESULTS, data_folder(data), None, where, workers)
    measure("validation", as_markdown, as_json, cell, place, several, images, rounds)


@bench_app.command("metrics")
def bench_metrics(
    size: Sizes = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: SomeRounds = None,
    seed: Seed = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """The confusion matrix beside that of torchmetrics: the same counts, and the time of each."""
    measure("metrics", as_markdown, as_json, size, chosen(device), threads, rounds, seed)


@bench_app.command("crf")
def bench_crf(
    processes: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="To compare with one; repeatable; default: 2."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=1000, help="To refine in a round.")] = 6,
    rounds: Rounds = 3,
    seed: Seed = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """How many photographs a second the dense CRF refines, by the number of processes."""
    from lovasz_repro.host.processes import cores

    measure("crf", as_markdown, as_json, processes, images, rounds, seed, cores())


def measure(name: str, as_markdown: bool, as_json: bool, *given: Any) -> Any:
    """Run a bench with what its ``choose_settings`` takes; print its report, which is returned.

    Raises:
        UserError: two forms at once, or what the bench refuses.
    """
    if as_markdown and as_json:
        raise UserError("give --markdown or --json, not both.")
    from lovasz_repro.bench import harness
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.host.terminal import Terminal

    module = import_module(f"lovasz_repro.bench.{MODULES[name]}")
    settings = module.choose_settings(*given)
    with Progress() as progress:
        task = progress.task(f"bench {name}", settings.passes)
        report = module.run_bench(settings, lambda done: task.advance(note=done))
    if as_json or as_markdown:
        text = harness.to_json(report) if as_json else harness.to_markdown(report)
        say(*text.split("\n"))
    else:
        harness.print_report(report, Terminal())
    return report


def chosen(device: str) -> Any:
    """The device of that name."""
    from lovasz_repro.host.device import choose_device

    return choose_device(device)


def last_cell(experiment: str, profile: str, overrides: list[str] | None) -> Any:
    """The run of an experiment that is measured."""
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.schema import load_experiment

    return load_experiment(experiment).cells(profile, overrides=parse_overrides(overrides or []))[
        -1
    ]


def parse_numbers(option: str, text: str) -> list[float]:
    """ "1,0.75,0.5" as numbers.

    Raises:
        UserError: something else.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers like 1,0.75,0.5.") from None
