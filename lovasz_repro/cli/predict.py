"""``predict`` and ``export``: a trained network at work here, or as a file for other programs."""

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
    out: Annotated[
        Path, typer.Option(help="Folder for label ids and overlays; older ones are replaced.")
    ],
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


def export(
    source: Annotated[
        str,
        typer.Argument(help="A finished run's id, or how it begins; or a file of weights."),
    ],
    target: Annotated[
        Path, typer.Argument(help="File to write or replace, .onnx or .pt2 (torch.export).")
    ],
    photograph: Annotated[
        Path | None,
        typer.Option(help="Compare the answers on this photograph. Default: on a drawn one."),
    ] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write a network for other programs, with its preprocessing, once its answers are the same.

    The file takes batches of any size, and every height and width that the network takes. What to
    do before and after it stands in its metadata and in TARGET.json.
    """
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run.export import export_network
    from lovasz_repro.run.trained import find_trained

    network = find_trained(source, results, tracking_uri)
    with Progress() as progress, progress.task(f"exporting {target.name}", 3) as bar:
        done = export_network(network, target, photograph, lambda step: bar.advance(note=step))
    found = done.about["compared"]
    say(f"wrote: {done.file} ({done.size:,} bytes); how to use it: {done.notes}")
    for end in ("input", "output"):
        shape = ", ".join(map(str, done.about[end]["shape"]))
        sides = f", height and width {done.about[end]['sides']}" if end == "input" else ""
        say(f"{end}: {done.about[end]['name']} ({shape}){sides}")
    say(
        f"compared on a photograph ({found['photograph']}): logits differ by at most "
        f"{found['largest_difference']:.2g} of {found['largest_logit']:.3g}; "
        f"{found['same_class']:.4%} of the answers are the same"
    )
