"""A trained run's scores at several scales and with the CRF (Sec. 4.3, Table 2)."""

from collections.abc import Callable
from contextlib import ExitStack

from torch import nn

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.voc import VocImage, list_images
from lovasz_repro.evaluation.voc_probabilities import open_folder
from lovasz_repro.evaluation.voc_regimes import chunks_of, score_regimes
from lovasz_repro.host.processes import Interrupted
from lovasz_repro.host.provenance import fingerprint_files
from lovasz_repro.run.build import multi_scale_of
from lovasz_repro.run.inputs import Inputs, Place
from lovasz_repro.run.session import Session

PROBABILITIES = "probabilities"
"""Folder below ``<results>/work`` of what networks predicted."""
DESCRIPTIONS = {"multi_scale": "at several scales", "crf": "at several scales with the CRF"}


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
    wanted, team = cell.evaluation, session.team
    images = list_images(inputs.data, "val")
    own = images[team.share(len(images))]
    predictor = multi_scale_of(model, cell, place.device)
    if cell.training.batch_norm == "per-rank":
        team.share_buffers(model)
    root = place.results / "work" / PROBABILITIES
    data = photographs_fingerprint(images, inputs, place)
    folder = team.on_all(lambda: open_folder(root, predictor, data))
    processes = -team.largest(-place.processes)  # the fewest of any rank: chunks are alike
    with ExitStack() as stack:
        task = session.progress.task
        bars = [stack.enter_context(task("  predicting at several scales", len(images)))]
        if wanted.crf:
            bars.append(stack.enter_context(task("  refining by the CRF", len(images))))
        scorings = score_regimes(
            predictor,
            own,
            folder,
            wanted.crf,
            processes=place.processes,
            chunks=chunks_of(len(own), processes, most=-(-len(images) // team.size)),
            do=lambda work: do_and_look(work, session),
            group=team.group,
            predicted=lambda count: bars[0].advance(count * team.size),
            refined=lambda count: bars[-1].advance(count * team.size),
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


def photographs_fingerprint(images: list[VocImage], inputs: Inputs, place: Place) -> str:
    """Of the photographs of a split, whose masks the probabilities do not depend on."""
    files = [image.image for image in images]
    return fingerprint_files(files, inputs.data, place.results / "work" / "fingerprints.json")
