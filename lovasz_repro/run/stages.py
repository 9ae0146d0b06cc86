"""What a run does beside training: counts classes, scores, looks for examples; each with a bar."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import nn

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.statistics import Labelled, class_counts
from lovasz_repro.evaluation.binary import BasisScoring
from lovasz_repro.evaluation.examples import (
    MOST_IMAGES,
    Photographed,
    find_examples,
    write_examples,
)
from lovasz_repro.evaluation.masks import find_mask, write_masks
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.scoring import Scoring
from lovasz_repro.host.progress import Progress
from lovasz_repro.run.build import build_model, predictor_of, score, scored_batches
from lovasz_repro.run.datasets import DATASETS, ScoredSet, TrainingSet, category_of, scoring_of
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.run.segmentations import keep_segmentations
from lovasz_repro.run.session import Session


def count_classes(
    cell: CellConfig, train_set: TrainingSet, inputs: Inputs, place: Place, session: Session
) -> torch.Tensor | None:
    """Pixels of each label in each training image, (N, 256), where a cell needs them."""
    wanted = cell.loss.class_weights != "none" or cell.data.equibatch or cell.data.category
    if not wanted:
        return None
    split = cell.data.train_split
    counts = count_labels(train_set, split, cell, inputs, place, session.progress)
    return torch.from_numpy(counts)


def count_labels(
    images: Labelled, split: str, cell: CellConfig, inputs: Inputs, place: Place, progress: Progress
) -> np.ndarray:
    """Pixels of each label in each image of a split, (N, 256); read once and kept.

    Raises:
        UserError: a mask cannot be read, or holds an unknown id.
    """
    sizes_differ = DATASETS[cell.data.name].sizes_differ  # then labels come at their own
    size = "own-size" if sizes_differ else "x".join(str(side) for side in cell.data.size)
    part = {"train_aug": "", "trainval_aug": "-trainval"}.get(split, f"-{split}")
    name = f"{inputs.fingerprints['data_fingerprint']}-{size}{part}.npy"
    cache = place.results / "work" / "class-counts" / name
    with progress.task("  reading masks", len(images)) as bar:

        def follow(indices: Iterable[int]) -> Iterator[int]:
            for index in indices:
                yield index
                bar.advance()

        return class_counts(images, cache, follow)


def score_on(
    model: nn.Module,
    images: ScoredSet,
    split: str,
    cell: CellConfig,
    place: Place,
    session: Session,
    scoring: Scoring | None = None,
    *,
    when: str = "",
    unsaved: bool = False,
) -> Scoring:
    """Score a model on a whole split, shared among the ranks.

    Args:
        model, images, split, cell, place, session: what is scored and where.
        scoring: by default that of the data set.
        when: "before training" and the like, for the bar.
        unsaved: whether steps were taken that no checkpoint has; a request to stop waits then.
    """
    team = session.team
    scoring = scoring or scoring_of(cell)
    predictor = predictor_of(model, cell, place.device)
    batches = scored_batches(cell, images, place, team)
    with session.progress.task(f"  scoring {split} {when}".rstrip(), len(images)) as bar:

        def advance(count: int) -> None:
            bar.advance(count * team.size)
            if not unsaved:
                session.stop_if_asked()

        return score(predictor, batches, scoring, group=team.group, advance=advance)


def score_basis(
    model: nn.Module, images: ScoredSet, cell: CellConfig, place: Place, session: Session
) -> dict[str, float]:
    """``basis/image_iou``: what the network of all classes reaches before it is trained further."""
    kind, category = DATASETS[cell.data.name], category_of(cell.data)
    assert category is not None, "a basis network is compared for one category"
    scoring = BasisScoring(category, kind.ignore_index)
    return score_on(model, images, "val", cell, place, session, scoring).as_metrics("basis")


def keep_examples(
    model: nn.Module,
    images: ScoredSet,
    cell: CellConfig,
    inputs: Inputs,
    place: Place,
    session: Session,
) -> None:
    """Store crops in which the network differs most from what it was before training, or masks."""
    kind, category = DATASETS[cell.data.name], category_of(cell.data)
    if category is not None:
        keep_masks(model, images, category, cell, inputs, place, session)
        return
    if kind.examples == "segmentations":
        keep_segmentations(model, images, cell, inputs, place.device, session)
        return

    def write(folder: Path) -> list[Path]:
        torch.manual_seed(cell.seed)  # a network that began at random begins so again
        network = NETWORKS[cell.model.name]
        before, after = (
            Predictor(of_run, network, place.device, first_class=kind.first_class)
            for of_run in (build_model(cell, inputs, place.device), model)
        )
        most = min(len(images), MOST_IMAGES)
        with session.progress.task("  looking for examples", most) as bar:
            found = find_examples(
                before,
                after,
                cast(Photographed, images),
                kind.table,
                cell.evaluation.examples,
                advance=bar.advance,
            )
        return write_examples(found, folder)

    session.keep_files("examples", write)


def keep_masks(
    model: nn.Module,
    images: ScoredSet,
    category: int,
    cell: CellConfig,
    inputs: Inputs,
    place: Place,
    session: Session,
) -> None:
    """Store what the network and the one before training find in the first images (Figure 4)."""
    network = NETWORKS[cell.model.name]

    def write(folder: Path) -> list[Path]:
        before = Predictor(build_model(cell, inputs, place.device), network, place.device)
        after = Predictor(model, network, place.device)
        count = min(cell.evaluation.examples, len(images))
        found = [find_mask(before, after, images, i, category) for i in range(count)]
        return write_masks(found, folder)

    session.keep_files("masks", write)
