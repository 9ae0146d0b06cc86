"""``predict``: photographs labelled by a trained network."""

from pathlib import Path
from typing import Annotated

import typer

from lovasz_repro.cli.options import RESULTS, Device, Results, TrackingUri
from lovasz_repro.host.output import say


def predict(
    images: Annotated[list[Path], typer.Argument(help="Photographs, or folders of them.")],
    weights: Annotated[
        str,
        typer.Option(
            metavar="RUN_OR_FILE",
            help="A finished run's id, or how it begins; or a file of weights: a run's "
            "best.safetensors, or ENet's of its authors.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for label ids and overlays.")],
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH that the network sees; default: each image's own."),
    ] = None,
    multi_scale: Annotated[
        bool,
        typer.Option(
            "--multi-scale", help="At several scales (DeepLab): the run's, else the paper's."
        ),
    ] = False,
    crf: Annotated[
        bool,
        typer.Option(
            "--crf",
            help="Refined by the dense CRF, of a DeepLab on all classes on top of several scales: "
            "the run's, else DeepLab's.",
        ),
    ] = False,
    device: Device = "auto",
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Label photographs with a network: a PNG of label ids and a coloured overlay of each."""
    from lovasz_repro.evaluation.photographs import parse_size, photographs_in
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run.predict import Looking, predict_images
    from lovasz_repro.run.trained import find_trained

    photographs = photographs_in(images)
    looking = Looking(parse_size(size) if size else None, multi_scale, crf)
    network = find_trained(weights, results, tracking_uri)
    name = network.snapshot.architecture
    with Progress() as progress, progress.task(f"{name} on images", len(photographs)) as bar:
        predictions = predict_images(
            photographs, network, out, looking, device,
            advance=lambda image: bar.advance(note=image.name), say=progress.line,
        )  # fmt: skip
    for prediction in predictions:
        say(f"{prediction.label_ids}  {prediction.overlay}")
