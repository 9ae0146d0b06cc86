"""What a run does beside training: counts classes, scores, looks for examples; each with a bar."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lovasz_repro.building import build_model, evaluation_batches
from lovasz_repro.config import CellConfig
from lovasz_repro.data.statistics import class_counts
from lovasz_repro.datasets import DATASETS, ScoredSet, TrainingSet
from lovasz_repro.evaluation.evaluate import evaluate
from lovasz_repro.evaluation.examples import MOST_IMAGES, find_examples, write_examples
from lovasz_repro.evaluation.scoring import Scoring
from lovasz_repro.place import Inputs, Place
from lovasz_repro.shared_session import SharedSession


def count_classes(
    cell: CellConfig, train_set: TrainingSet, inputs: Inputs, place: Place, session: SharedSession
) -> np.ndarray | None:
    """Pixels of each label in each training image, (N, 256), where a cell needs them."""
    if cell.loss.class_weights == "none" and not cell.data.equibatch:
        return None
    height, width = cell.data.size
    name = f"{inputs.fingerprints['data_fingerprint']}-{height}x{width}.npy"
    task = session.progress.task("  counting classes", len(train_set))

    def follow(indices: Iterable[int]) -> Iterator[int]:
        for index in indices:
            yield index
            task.advance()

    try:
        return class_counts(train_set, place.results / "work" / "class-counts" / name, follow)
    finally:
        task.close()


def score_on(
    model: nn.Module,
    images: ScoredSet,
    split: str,
    cell: CellConfig,
    place: Place,
    session: SharedSession,
) -> Scoring:
    """Score a model on a whole split, shared among the ranks."""
    team, kind = session.team, DATASETS[cell.data.name]
    workers = 0 if kind.in_memory else place.workers
    task = session.progress.task(f"  scoring on {split}", len(images))
    try:
        return evaluate(
            model,
            evaluation_batches(images, cell.data.size, team, workers),
            kind.scoring(),
            place.device,
            first_class=kind.first_class,
            upsample=cell.evaluation.upsample,
            bfloat16=cell.training.precision == "bfloat16",
            channels_last=cell.training.channels_last,
            group=team.group,
            advance=lambda count: task.advance(count * team.size),
        )
    finally:
        task.close()


def keep_examples(
    model: nn.Module,
    images: ScoredSet,
    cell: CellConfig,
    inputs: Inputs,
    place: Place,
    session: SharedSession,
) -> None:
    """Store crops in which the network differs most from what it was before training."""
    kind = DATASETS[cell.data.name]

    def write(folder: Path) -> list[Path]:
        torch.manual_seed(cell.seed)  # a network that began at random begins so again
        before = build_model(cell, inputs, place.device)
        task = session.progress.task("  looking for examples", min(len(images), MOST_IMAGES))
        try:
            found = find_examples(
                before,
                model,
                images,
                kind.table,
                cell.evaluation.examples,
                place.device,
                first_class=kind.first_class,
                advance=task.advance,
            )
        finally:
            task.close()
        return write_examples(found, folder)

    session.keep_files("examples", write)
