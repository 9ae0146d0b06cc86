"""What a run scores on single batches of validation images, each with every class (Sec. 4.3).

The batches are the same for all runs on the same data, so that runs can be compared batch by batch.
They are scored after training and kept nowhere else than in the run's journal: a run that is
stopped among them scores them all again.
"""

import statistics
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.voc import presence_of
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.batch_protocol import BatchScores, score_batch
from lovasz_repro.evaluation.covering_batches import covering_batches
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.host.processes import Interrupted
from lovasz_repro.metrics import sum_over_ranks
from lovasz_repro.run.build import in_one_line, predictor_of
from lovasz_repro.run.datasets import DATASETS, ScoredSet
from lovasz_repro.run.inputs import Place
from lovasz_repro.run.session import Session
from lovasz_repro.training.distributed import Team

SEED = 0
"""Of the batches."""


def batches_of_run(cell: CellConfig, root: Path) -> list[list[int]]:
    """The batches of validation images that a cell wants scored; none where it wants none.

    Every class is one that some validation image contains: all 21 of Pascal VOC.

    Returns: the images of each batch, as indices into the validation split.

    Raises:
        UserError: there are no such batches, or a mask is missing or unreadable.
    """
    wanted = cell.evaluation.batches
    if wanted is None:
        return []
    presence = presence_of(root, "val")
    try:
        return covering_batches(
            presence[:, presence.any(axis=0)], wanted.count, wanted.size, seed=SEED
        )
    except ValueError as error:
        raise UserError(
            f"{root}: evaluation.batches: {error}. Set evaluation.batches.size, or do without: "
            "evaluation.batches=null."
        ) from None


def score_batches_of_run(
    model: nn.Module,
    images: ScoredSet,
    batches: Sequence[Sequence[int]],
    cell: CellConfig,
    place: Place,
    session: Session,
    prefix: str = "",
) -> None:
    """Score every batch by arg max and by the decision rule, and log what comes out.

    ``batches/miou``, ``batches/miou_decision_rule`` and what the network expects of both have batch
    k at step k; ``batches/mean_...`` stand at the last iteration. Ranks take turns at the batches;
    a batch is one rank's, so its scores do not depend on how many there are.

    Args:
        model: the network.
        images: the validation split.
        batches: what ``batches_of_run`` gives, on every rank.
        cell, place, session: the run.
        prefix: of every name.

    Raises:
        Interrupted: a signal asked to stop, and batches are left.
        UserError: an image is missing or unreadable.
    """
    team, found = session.team, list[BatchScores]()
    mine = batches[team.rank :: team.size]
    loaded, sizes = _images_in_order(images, mine, place), iter([len(batch) for batch in mine])
    predictor = predictor_of(model, cell, place.device)
    void = DATASETS[cell.data.name].ignore_index
    with session.progress.task("  scoring batches", len(batches)) as bar:
        while len(found) < len(batches):
            own = team.on_all(lambda: _score_next(predictor, loaded, sizes, void))
            for scores in _of_all_ranks(own, team)[: len(batches) - len(found)]:
                session.log(len(found), _named(f"{prefix}batches/", scores))
                found.append(scores)
                bar.advance()
            stop = session.stop_asked()
            if stop and len(found) < len(batches):
                where = f"Stopped after {len(found)} of {len(batches)} batches, training is saved."
                raise Interrupted(stop, f"{where} Run the same command to go on.")
    means = BatchScores(*(statistics.fmean(column) for column in zip(*found, strict=True)))
    session.log(cell.training.iterations, _named(f"{prefix}batches/mean_", means))
    session.line(_summary(found, len(batches[0])))


def _images_in_order(
    images: ScoredSet, batches: Sequence[Sequence[int]], place: Place
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images of all batches, one after the other, as (image (1, C, h, w), labels (1, H, W))."""
    chosen: Subset[Any] = Subset(images, list(chain(*batches)))  # type: ignore[arg-type]
    loader: DataLoader[Any] = DataLoader(
        chosen,
        num_workers=place.workers,
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # a loader draws a seed for its workers
    )
    return in_one_line(loader)


def _score_next(
    predictor: Predictor,
    images: Iterator[tuple[torch.Tensor, torch.Tensor]],
    sizes: Iterator[int],
    void: int,
) -> BatchScores | None:
    """Scores of the next batch of this rank, or None where it has no more."""
    size = next(sizes, None)
    return None if size is None else score_batch(predictor, islice(images, size), void)


def _of_all_ranks(own: BatchScores | None, team: Team) -> list[BatchScores]:
    """What each rank brings, in their order; zeros where one brings nothing."""
    scores = torch.zeros(team.size, len(BatchScores._fields), dtype=torch.float64)
    if own:
        scores[team.rank] = torch.tensor(own, dtype=torch.float64)
    if team.group:
        scores = sum_over_ranks(scores, team.group)
    return [BatchScores(*row) for row in scores.tolist()]


def _named(prefix: str, scores: BatchScores) -> dict[str, float]:
    return {prefix + name: value for name, value in scores._asdict().items()}


def _summary(found: Sequence[BatchScores], size: int) -> str:
    """Mean and, of several batches, standard deviation of their mIoUs, in %."""

    def written(values: Sequence[float]) -> str:
        spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{100 * statistics.fmean(values):.2f}{spread} %"

    argmax = written([scores.miou for scores in found])
    rule = written([scores.miou_decision_rule for scores in found])
    images = f"{len(found)} batches of {size} images"
    return f"{images}: batch-mIoU {argmax}, by the decision rule {rule}"
