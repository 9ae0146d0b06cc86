"""``evaluate`` of a DeepLab-v2: its scores on Pascal VOC."""

import json
from pathlib import Path

import typer

from lovasz_repro.commands.evaluate_render import numbers, percent
from lovasz_repro.commands.shared import terminal
from lovasz_repro.errors import UserError


def evaluate_voc(
    source: str,
    weights: Path,
    split: str,
    data: Path | None,
    folder: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Score the network in a file on a split and print what it reaches.

    Raises:
        UserError: the split has no labels, or data or network are missing or wrong.
    """
    from rich.table import Table

    from lovasz_repro.data.locate import data_folder, dataset_folder
    from lovasz_repro.data.voc import list_images
    from lovasz_repro.device import choose_device
    from lovasz_repro.evaluation.voc_score import load_voc_network, score_voc
    from lovasz_repro.networks import NETWORKS
    from lovasz_repro.progress import Progress

    if split == "test":
        raise UserError("VOC's test annotations are not public: --split val, or train.")
    labelled = {"val": "val", "train": "train_aug"}[split]
    model, network = load_voc_network(weights), NETWORKS["deeplab-v2"]
    root = dataset_folder(data_folder(data), folder or "voc")
    count = len(list_images(root, labelled))
    with Progress() as progress:
        task = progress.task(f"scoring on {labelled}", count)
        scores = score_voc(
            model, root, labelled, choose_device(device), network.prepare, network.to_size,
            advance=task.advance,
        )  # fmt: skip
    metrics = scores.as_metrics(split)
    if as_json:
        told = {"source": source, "weights": str(weights), "split": split, "images": count,
                "data": str(root), "scores": numbers(metrics)}  # fmt: skip
        typer.echo(json.dumps(told, indent=2))
        return
    table = Table("class", box=None, pad_edge=False)
    table.add_column("IoU", justify="right")
    for name in scores.classes:
        table.add_row(name, percent(metrics[f"{split}/iou/{name}"]))
    terminal().print(table)
    typer.echo(f"{scores.summary()} ({count} images of {labelled} in {root}, single scale)")
