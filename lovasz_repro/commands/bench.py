"""``bench``: time, memory and precision on this machine."""

from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from lovasz_repro.commands.shared import RESULTS, AsJson, Data, Device, Results, Set, terminal
from lovasz_repro.errors import UserError

bench_app = typer.Typer(help="Measure time, memory and precision on this machine.")
AsMarkdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown.")]


class Logits(StrEnum):
    """Networks whose logits ``bench losses`` imitates."""

    random = "random"
    trained = "trained"


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
    from lovasz_repro.device import choose_device
    from lovasz_repro.progress import Progress

    kinds = [kind.value for kind in logits or Logits]
    settings = choose_settings(size, kinds, choose_device(device), threads, repeats, seed)
    with Progress() as progress:
        task = progress.task("bench losses", settings.passes)
        report = run_bench(settings, lambda name: task.advance(note=name))
    show(report, render, as_markdown, as_json)


@bench_app.command("training")
def bench_training(
    size: Annotated[
        str | None,
        typer.Option(
            help="BxHxW or BxCxHxW; default: 4x176x240 on a CPU, 10x20x512x1024 on a GPU."
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
        typer.Option(min=1, help="Of all variants in turn; default: 5 on a CPU, 20 on a GPU."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Of each variant in a round; default: 3 on a CPU, 10 on a GPU."),
    ] = None,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """What a training step of ENet costs: processes, precisions, the loss in it, checkpoints."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import training_render as render
    from lovasz_repro.bench.training import choose_settings, run_bench
    from lovasz_repro.device import choose_device
    from lovasz_repro.progress import Progress

    settings = choose_settings(size, procs, choose_device(device), threads, rounds, steps)
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
    from lovasz_repro.progress import Progress

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
    weights: Annotated[Path | None, typer.Option(help="Released weights to start from.")] = None,
    device: Device = "auto",
    results: Results = RESULTS,
    as_markdown: AsMarkdown = False,
    as_json: AsJson = False,
) -> None:
    """Whether an experiment's images are loaded as fast as they are trained on."""
    check_form(as_markdown, as_json)
    from lovasz_repro.bench import loading
    from lovasz_repro.config import load_experiment
    from lovasz_repro.data.locate import data_folder
    from lovasz_repro.device import choose_device
    from lovasz_repro.place import Place
    from lovasz_repro.progress import Progress
    from lovasz_repro.settings import parse_overrides

    cell = load_experiment(experiment).cells(profile, overrides=parse_overrides(set_ or []))[-1]
    place = Place(results, data_folder(data), weights, choose_device(device))
    settings = loading.Settings(cell, place, tuple(workers or (0, 1, 2)), batches, rounds)
    with Progress() as progress:
        task = progress.task("bench loading", settings.passes)
        report = loading.run_bench(settings, lambda name: task.advance(note=name))
    show(report, loading, as_markdown, as_json)


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
        typer.echo(render.to_json(report) if as_json else render.to_markdown(report))
    else:
        render.print_report(report, terminal())
