"""What a run on Pascal VOC scores after its training (Sec. 4.3): its network at several scales and
with the CRF (Table 2), and single batches (prior work).
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from lovasz_repro.config.schema import BatchesConfig, CellConfig
from lovasz_repro.data.datasets import ScoredSet, kind_of
from lovasz_repro.data.voc import list_images, presence_of
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation import pictures
from lovasz_repro.evaluation.crf import refine
from lovasz_repro.evaluation.expected_iou import (
    BatchScores,
    covering_batches,
    fit_temperature,
    held_out,
    sampled_pixels,
    score_batch,
)
from lovasz_repro.evaluation.predictor import Predictor
from lovasz_repro.evaluation.regimes import chunks_of, open_folder, score_regimes
from lovasz_repro.host.output import plural
from lovasz_repro.host.processes import Interrupted
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.provenance import fingerprint_files
from lovasz_repro.metrics import sum_over_ranks
from lovasz_repro.run.build import (
    loaded,
    multi_scale_of,
    predictor_of,
)
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.session import Session
from lovasz_repro.training.distributed import Team

BATCHES_SEED = 0
PROBABILITIES = "probabilities"
"""Folder below ``<results>/work`` of what networks predicted."""
SAID = {
    "miou": "",
    "miou_decision_rule": "by the decision rule ",
    "miou_rankseg": "by rankseg ",
    "miou_calibrated_rule": "by the rule on calibrated probabilities ",
}
"""Scores of batches, as a line of them says."""
DESCRIPTIONS = {"multi_scale": "at several scales", "crf": "at several scales with the CRF"}


# -- several scales and the CRF -----------------------------------------------------------------


def score_regimes_of_run(
    model: nn.Module,
    cell: CellConfig,
    inputs: Inputs,
    place: Place,
    session: Session,
    *,
    split: str = "val",
) -> None:
    """Log ``<split>/multi_scale/...`` and ``<split>/crf/...`` of val, shared among the ranks.

    Probabilities and labels are kept as files under ``<results>/work/probabilities``, so that what
    was stopped is gone on with, and parameters of the CRF can be searched without the network.

    Raises:
        UserError: files cannot be read.
        RunFailed: the disk refuses, or a process died.
        Interrupted: a signal asked to stop; what is done is kept.
    """
    crf, team, task = cell.evaluation.crf, session.team, session.progress.task
    images = list_images(inputs.data, "val")
    own = images[team.share(len(images))]
    predictor = multi_scale_of(model, cell, place.device)
    if cell.training.batch_norm == "per-rank":
        team.share_buffers(model)
    work = place.results / "work"
    photographs = [image.image for image in images]  # probabilities do not depend on the masks
    data = fingerprint_files(photographs, inputs.data, work / "fingerprints.json")
    folder = team.on_all(lambda: open_folder(work / PROBABILITIES, predictor, data))
    processes = -team.largest(-place.processes)  # the fewest of any rank: chunks are alike
    with ExitStack() as stack:
        predicting = stack.enter_context(task("  predicting at several scales", len(images)))
        refining = stack.enter_context(task("  refining by the CRF", len(images))) if crf else None
        scorings = score_regimes(
            predictor,
            own,
            folder,
            crf,
            processes=place.processes,
            chunks=chunks_of(len(own), processes, most=-(-len(images) // team.size)),
            do=lambda work: do_and_look(work, session),
            group=team.group,
            predicted=lambda count: predicting.advance(count * team.size),
            refined=lambda count: refining.advance(count * team.size) if refining else None,
        )
    for regime, scoring in scorings.items():
        session.log(cell.training.iterations, scoring.as_metrics(f"{split}/{regime}"))
        session.line(f"{split} {DESCRIPTIONS[regime]}: {scoring.summary()}")
    size = sum(file.stat().st_size for file in folder.rglob("*.png"))
    session.line(f"probabilities in {folder} ({size / 1e6:,.0f} MB); they may be removed")


def do_and_look(work: Callable[[], None], session: Session) -> None:
    """Do a part of the work on every rank.

    Raises:
        Interrupted: a signal asked one of them to stop.
    """
    session.team.on_all(work)
    stop = session.stop_asked()
    if stop:
        raise Interrupted(stop, "Stopped while scoring, predictions so far are kept. "
                          "Run the same command to go on.")  # fmt: skip


def regimes_of(
    model: nn.Module, cell: CellConfig, device: torch.device
) -> dict[str, pictures.Regime]:
    """How a run's network predicts: ``prediction`` at one scale, ``crf`` where it has one."""
    single = predictor_of(model, cell, device)

    def prediction(image: Tensor, size: Sequence[int]) -> np.ndarray:
        return single.classes(image[None], size)[0].to(torch.uint8).cpu().numpy()

    regimes: dict[str, pictures.Regime] = {"prediction": prediction}
    if cell.evaluation.multi_scale and cell.evaluation.crf:
        fused, parameters = multi_scale_of(model, cell, device), cell.evaluation.crf

        def crf(image: Tensor, size: Sequence[int]) -> np.ndarray:
            probabilities = fused.probabilities(image[None], size)[0].cpu().numpy()
            return refine(pictures.pixels_of(image), probabilities, parameters)

        regimes["crf"] = crf
    return regimes


# -- single batches -----------------------------------------------------------------------------


def batches_of_run(cell: CellConfig, root: Path) -> list[list[int]]:
    """The batches of validation images that a cell wants scored; none where it wants none.

    They are the same for all runs on the same data, so that runs can be compared batch by batch.
    Every class is one that some validation image contains: all 21 of Pascal VOC.

    Returns: the images of each batch, as indices into the validation split.

    Raises:
        UserError: there are no such batches, or a mask is missing or unreadable.
    """
    wanted = cell.evaluation.batches
    without = "Set evaluation.batches.size, or do without: evaluation.batches=null."
    return drawn_batches(root, wanted, without) if wanted else []


def drawn_batches(root: Path, wanted: BatchesConfig, otherwise: str) -> list[list[int]]:
    """The same for given numbers of batches and of their images; ``otherwise``: what else to do."""
    presence = presence_of(root, "val")
    present = presence[:, presence.any(axis=0)]
    try:
        return covering_batches(present, wanted.count, wanted.size, seed=BATCHES_SEED)
    except ValueError as error:
        raise UserError(f"{root}: {error}. {otherwise}") from None


def score_batches_of_run(
    model: nn.Module,
    images: ScoredSet,
    batches: Sequence[Sequence[int]],
    cell: CellConfig,
    place: Place,
    session: Session,
    prefix: str = "",
) -> None:
    """Score every batch by arg max and by decision rules, and log what comes out.

    ``batches/miou``, ``batches/miou_decision_rule``, what the network expects of both and
    ``batches/miou_calibrated_rule`` have batch k at step k; ``batches/mean_...`` and
    ``batches/temperature``, which calibrates, stand at the last iteration. Ranks take turns at the
    batches; a batch is one rank's, so its scores do not depend on how many there are. The scores
    are kept nowhere else than in the run's journal: a run that is stopped here scores them all
    again.

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
    team, found, config = session.team, list[BatchScores](), cell.evaluation.batches
    rankseg = bool(config and config.rankseg)
    mine = batches[team.rank :: team.size]
    predictor = predictor_of(model, cell, place.device)
    each = in_order(predictor, images, mine, place.workers)
    sizes = iter([len(batch) for batch in mine])
    void = kind_of(cell.data).ignore_index
    temperature = team.on_leader(
        lambda: temperature_beside(
            predictor, images, batches, void, session.progress, place.workers, session.stop_if_asked
        )
    )

    def score_next() -> BatchScores | None:
        size = next(sizes, None)
        if size is None:
            return None
        return score_batch(predictor, islice(each, size), void, temperature, rankseg=rankseg)

    with session.progress.task("  scoring batches", len(batches)) as bar:
        while len(found) < len(batches):
            own = team.on_all(score_next)
            for scores in _of_all_ranks(own, team)[: len(batches) - len(found)]:
                session.log(len(found), scored(f"{prefix}batches/", scores))
                found.append(scores)
                bar.advance()
            stop = session.stop_asked()
            if stop and len(found) < len(batches):
                where = f"Stopped after {len(found)} of {len(batches)} batches, training is saved."
                raise Interrupted(stop, f"{where} Run the same command to go on.")
    means = BatchScores(*(statistics.fmean(column) for column in zip(*found, strict=True)))
    session.log(cell.training.iterations, scored(f"{prefix}batches/mean_", means))
    if temperature:
        session.log(cell.training.iterations, {f"{prefix}batches/temperature": temperature})
    session.line(told_of_batches(found, len(batches[0]), temperature))


def told_of_batches(found: Sequence[BatchScores], size: int, temperature: float | None) -> str:
    """Means and spreads of the batches' scores, in one line."""
    columns = dict(zip(BatchScores._fields, zip(*found, strict=True), strict=True))
    told = ", ".join(
        f"{words}{_mean_and_spread(columns[name])}"
        for name, words in SAID.items()
        if name in scored("", found[0])
    )
    fitted = f" (temperature {temperature:.2f})" if temperature else ""
    return f"{plural(len(found), 'batch')} of {plural(size, 'image')}: batch-mIoU {told}{fitted}"


def temperature_beside(
    predictor: Predictor,
    images: Any,
    batches: Sequence[Sequence[int]],
    void: int,
    progress: Progress,
    workers: int = 0,
    after_each: Callable[[], None] = lambda: None,
) -> float | None:
    """The temperature fitted on validation images that are in no batch; None if all are in one."""
    chosen = held_out(len(images), batches)
    if not chosen:
        return None
    with progress.task("  fitting the temperature", len(chosen)) as bar:

        def advance() -> None:
            bar.advance()
            after_each()

        each = in_order(predictor, images, [chosen], workers)
        return fit_temperature(*sampled_pixels(predictor, each, void, advance))


def in_order(
    predictor: Predictor, images: Any, batches: Sequence[Sequence[int]], workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The images of all batches, one after the other, as (image (1, C, h, w), labels (1, H, W))."""
    chosen = Subset[Any](images, list(chain(*batches)))
    return loaded(chosen, workers, pinned=predictor.device.type == "cuda")


def _of_all_ranks(own: BatchScores | None, team: Team) -> list[BatchScores]:
    """What each rank brings, in their order; zeros where one brings nothing."""
    scores = torch.zeros(team.size, len(BatchScores._fields), dtype=torch.float64)
    if own:
        scores[team.rank] = torch.tensor(own, dtype=torch.float64)
    if team.group:
        scores = sum_over_ranks(scores, team.group)
    return [BatchScores(*row) for row in scores.tolist()]


def scored(prefix: str, scores: BatchScores) -> dict[str, float]:
    """Scores by name, without those that were not asked for."""
    unasked = {name for name in BatchScores._field_defaults if math.isnan(getattr(scores, name))}
    return {prefix + k: value for k, value in scores._asdict().items() if k not in unasked}


def _mean_and_spread(values: Sequence[float]) -> str:
    """Mean and, of several, standard deviation, in %."""
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread} %"
