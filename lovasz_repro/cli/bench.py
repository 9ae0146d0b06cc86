"""``bench``: time, memory and precision on this machine."""

from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from lovasz_repro.cli.options import RESULTS, AsJson, Data, Device, Results, Set
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say

bench_app = typer.Typer(help="Measure time, memory and precision on this machine.")
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]


class Logits(StrEnum):
    """Networks whose logits ``bench losses`` imitates."""

    random = "random"
    trained = "trained"


class Network(StrEnum):
    """Networks that ``bench training`` trains."""

    enet = "enet"
    deeplab = "deeplab-v2"
    small_deeplab = "deeplab-v2-small"


@bench_app.command("losses")
def bench_losses(
    size: Annotated[
        list[str] | None,
        typer.Option(help="BxCxHxW of the logits; repeatable; default: two sizes for the device."),
    ] = None,
    logits: Annotated[
        list[Logits] | None,
        typer.Option(help="Of an untrained or a trained network; repeatable; default: both."),
    ] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads, steadiest with 1; default: torch's."),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Rounds; default: 5 on a CPU, 30 on a GPU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of logits and labels.")] = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Time, memory and precision of the losses, beside cross-entropy and a plain Algorithm 1."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import render
    from lovasz_repro.bench.losses import choose_settings, run_bench
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.progress import Progress

    kinds = [kind.value for kind in logits or Logits]
    settings = choose_settings(size, kinds, choose_device(device), threads, repeats, seed)
    with Progress() as progress:
        task = progress.task("bench losses", settings.passes)
        report = run_bench(settings, lambda name: task.advance(note=name))
    show(report, render, as_markdown, as_json)


@bench_app.command("training")
def bench_training(
    network: Annotated[Network, typer.Option(help="What is trained.")] = Network.enet,
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
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="CPU threads that all share; default: torch's."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Of all variants in turn; default: 3 to 20."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of each variant in a round; default: 1 to 10."),
    ] = None,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """What a training step costs: processes, precisions, the loss in it, memory, checkpoints."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import training_render as render
    from lovasz_repro.bench.training import choose_settings, run_bench
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.progress import Progress

    chosen = choose_device(device)
    settings = choose_settings(size, procs, chosen, threads, rounds, steps, network.value)
    with Progress() as progress:
        task = progress.task("bench training", settings.passes)
        report = run_bench(settings, lambda name: task.advance(note=name))
    show(report, render, as_markdown, as_json)


@bench_app.command("scoring")
def bench_scoring(
    images: Annotated[int, typer.Option(min=1, max=1000, help="Generated scenes to score.")] = 10,
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="More than 1: measure so many of ours as well.")
    ] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Of all ways to score in turn.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the scenes.")] = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """The Cityscapes scores, beside the official script: the same numbers, and the time of each."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import scoring_render as render
    from lovasz_repro.bench.scoring import Settings, run_bench
    from lovasz_repro.host.progress import Progress

    settings = Settings(images, processes, rounds, seed)
    with Progress() as progress:
        task = progress.task("bench scoring", settings.passes)
        report = run_bench(settings, lambda name: task.advance(note=name))
    show(report, render, as_markdown, as_json)


@bench_app.command("loading")
def bench_loading(
    experiment: Annotated[str, typer.Argument(help="Name of an experiment, or a YAML file.")],
    profile: Annotated[str, typer.Option(help="Size of the experiment.")] = "paper",
    workers: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Processes that decode images; repeatable; default: 0, 1 and 2."),
    ] = None,
    batches: Annotated[int, typer.Option(min=1, help="To load in a round.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Of loader and training step in turn.")] = 3,
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
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import loading
    from lovasz_repro.config.read import parse_overrides
    from lovasz_repro.config.schema import load_experiment
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run.inputs import Place

    cell = load_experiment(experiment).cells(profile, overrides=parse_overrides(set_ or []))[-1]
    place = Place(results, data_folder(data), weights, choose_device(device))
    settings = loading.Settings(cell, place, tuple(workers or (0, 1, 2)), batches, rounds)
    with Progress() as progress:
        task = progress.task("bench loading", settings.passes)
        report = loading.run_bench(settings, lambda name: task.advance(note=name))
    show(report, loading, as_markdown, as_json)


@bench_app.command("validation")
def bench_validation(
    experiment: Annotated[
        str, typer.Argument(help="Name of an experiment, or a YAML file.")
    ] = "voc-multiclass",
    profile: Annotated[str, typer.Option(help="Size of the experiment.")] = "paper",
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
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Of all parts in turn; default: 3 on a CPU, 5 on a GPU."),
    ] = None,
    set_: Set = None,
    data: Data = None,
    device: Device = "auto",
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """A validation pass as a run makes it: loading, network, metric, and which of them limits it.

    Where VOC's photographs are not there, others of their size are drawn.
    """
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import validation
    from lovasz_repro.bench import validation_render as render
    from lovasz_repro.config.read import parse_overrides, validate
    from lovasz_repro.config.schema import MultiScaleConfig, load_experiment
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.host.cores import decoding_workers
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run.inputs import Place

    cell = load_experiment(experiment).cells(profile, overrides=parse_overrides(set_ or []))[-1]
    chosen = choose_device(device)
    if workers is None:
        workers = decoding_workers(chosen.type)
    several = None
    if scales:
        given = {"scales": parse_numbers("--scales", scales)}
        several = validate(MultiScaleConfig, given, "--scales").scales
    place = Place(RESULTS, data_folder(data), None, chosen, workers)
    settings = validation.choose_settings(cell, place, several, images, rounds)
    with Progress() as progress:
        task = progress.task("bench validation", settings.passes)
        report = validation.run_bench(settings, lambda name: task.advance(note=name))
    show(report, render, as_markdown, as_json)


@bench_app.command("metrics")
def bench_metrics(
    size: Annotated[
        list[str] | None,
        typer.Option(help="BxCxHxW of images and classes; repeatable; default: three sizes."),
    ] = None,
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads; default: torch's.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Default: 5 on a CPU, 30 on a GPU.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of labels and errors.")] = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """The confusion matrix beside that of torchmetrics: the same counts, and the time of each."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import counting
    from lovasz_repro.host.device import choose_device
    from lovasz_repro.host.progress import Progress

    settings = counting.choose_settings(size, choose_device(device), threads, rounds, seed)
    with Progress() as progress:
        task = progress.task("bench metrics", settings.passes)
        report = counting.run_bench(settings, lambda name: task.advance(note=name))
    show(report, counting, as_markdown, as_json)


@bench_app.command("crf")
def bench_crf(
    processes: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="To compare with one; repeatable; default: 2."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, max=1000, help="To refine in a round.")] = 6,
    rounds: Annotated[int, typer.Option(min=1, help="Of all numbers of processes.")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of what is drawn.")] = 0,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """How many photographs a second the dense CRF refines, by the number of processes."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import refining
    from lovasz_repro.host.cores import cores
    from lovasz_repro.host.progress import Progress

    settings = refining.choose_settings(processes, images, rounds, seed, cores())
    with Progress() as progress:
        task = progress.task("bench crf", settings.passes)
        report = refining.run_bench(settings, lambda name: task.advance(note=name))
    show(report, refining, as_markdown, as_json)


def parse_numbers(option: str, text: str) -> list[float]:
    """ "1,0.75,0.5" as numbers.

    Raises:
        UserError: something else.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: give numbers like 1,0.75,0.5.") from None


def check_form(as_markdown: bool, as_json: bool) -> None:
    """Refuse two forms at once.

    Raises:
        UserError: both were asked for.
    """
    if as_markdown and as_json:
        raise UserError("give --markdown or --json, not both.")


def show(report: Any, render: ModuleType, as_markdown: bool, as_json: bool) -> None:
    """Print a report in the form that was asked for, with the functions of its module."""
    if as_json or as_markdown:
        text = render.to_json(report) if as_json else render.to_markdown(report)
        say(*text.split("\n"))
    else:
        from lovasz_repro.host.terminal import Terminal

        render.print_report(report, Terminal())
