"""``evaluate``: scores of a network, its predictions, a submission to a test server."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from lovasz_repro.cli.evaluate_cityscapes import evaluate_cityscapes
from lovasz_repro.cli.options import RESULTS, AsJson, Data, Device, Results, TrackingUri
from lovasz_repro.errors import UserError
from lovasz_repro.run.evaluate_source import Request, find_source

VOC_PANEL, CITYSCAPES_PANEL = "Pascal VOC", "Cityscapes"


class Split(StrEnum):
    """Splits of both data sets; train is train_aug on VOC."""

    train = "train"
    val = "val"
    test = "test"


class Upsampling(StrEnum):
    """What is brought to the photographs' size."""

    logits = "logits"
    predictions = "predictions"


class Fusion(StrEnum):
    """How scores of several scales become one."""

    probabilities = "probabilities"
    max_logits = "max-logits"


def evaluate(
    source: Annotated[
        str,
        typer.Argument(help="A finished run's id, or how it begins; or a file of weights."),
    ],
    split: Annotated[Split, typer.Option(help="Which photographs.")] = Split.val,
    data: Data = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Data set below the data folder. Default: the run's, else cityscapes or voc."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the predictions; of VOC those of test. "
            "Default: <results>/evaluate/<name>-<split>."
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Write a file for the test server: .zip, of VOC .tar.gz."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="That score or refine. Default: by cores and images."),
    ] = None,
    device: Device = "auto",
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    multi_scale: Annotated[
        bool,
        typer.Option(
            "--multi-scale",
            help="Also at several scales: the run's, else the paper's.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = False,
    scales: Annotated[
        str | None,
        typer.Option(
            help="Of --multi-scale: multiples of 1/8, like 1,0.75,0.5.", rich_help_panel=VOC_PANEL
        ),
    ] = None,
    fusion: Annotated[
        Fusion | None,
        typer.Option(
            help="Of the scales: mean of the probabilities (paper), or largest logits (DeepLab).",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    least_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels to which smaller images are continued at several scales; 513 (DeepLab).",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    crf: Annotated[
        bool,
        typer.Option(
            "--crf",
            help="Also with the dense CRF on top of several scales: the run's, else DeepLab's.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = False,
    crf_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of --crf: bilateral_rgb=4, or several values, bilateral_rgb=3,4,5, which are "
            "compared; repeatable, then all combinations.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only the first so many, to choose settings on; default: all.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH that the network sees. Default: the run's, else 512x1024.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = None,
    upsample: Annotated[
        Upsampling | None,
        typer.Option(
            help="To the photograph's size. Default: the run's, else logits.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = None,
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="Score with cityscapesscripts too, and compare.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = False,
) -> None:
    """Score a network: a DeepLab-v2 on Pascal VOC, an ENet on Cityscapes.

    Predictions are kept, but for single-scale scores on VOC, and the same command goes on where it
    was stopped. They can be packed for the test server; an ENet's be scored by the official script.
    """
    from lovasz_repro.run.evaluate_voc_settings import VocOptions

    of_voc = VocOptions(multi_scale, scales, fusion, least_side, crf, tuple(crf_set or ()), images)
    of_cityscapes = {"--size": size, "--upsample": upsample, "--official": official}
    network = find_source(source, results, tracking_uri)
    request = Request(
        source, network, split.value, data, folder, out, submission, processes, device, results,
        as_json,
    )  # fmt: skip
    if network.voc:
        from lovasz_repro.cli.evaluate_voc import evaluate_voc

        refuse([name for name, given in of_cityscapes.items() if given], source, "Pascal VOC")
        evaluate_voc(request, of_voc)
        return
    refuse(of_voc.given, source, "Cityscapes")
    evaluate_cityscapes(
        request, size=size, upsample=upsample.value if upsample else None, official=official
    )


def refuse(given: list[str], source: str, data: str) -> None:
    """Raise UserError where options were given that are of the other data set."""
    if given:
        one = len(given) == 1
        raise UserError(f"{', '.join(given)} {'does' if one else 'do'} not apply: {source} is "
                        f"scored on {data}.")  # fmt: skip
