"""``evaluate`` of an ENet: its predictions of Cityscapes, their scores, a submission."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lovasz_repro.cli.evaluate_render import largest_difference, numbers, show
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import say, say_json

if TYPE_CHECKING:
    from lovasz_repro.data.check import TreeNote
    from lovasz_repro.data.cityscapes import Frame
    from lovasz_repro.evaluation.cityscapes import CityscapesScores
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run.evaluate_source import Request

MOST_PROCESSES, IMAGES_EACH = 8, 20  # to score with, unless the user says how many


def evaluate_cityscapes(
    request: "Request", *, size: str | None, upsample: str | None, official: bool
) -> None:
    """Predict a split, score it where its annotations are there, and pack a submission.

    Args:
        request: common to all data sets.
        size: HEIGHTxWIDTH that the network sees; None: the source's.
        upsample: "logits" or "predictions"; None: the source's.
        official: score with the official script too.

    Raises:
        UserError: what was asked for cannot be, or data or network are missing or wrong.
    """
    from lovasz_repro.data.check import read_note
    from lovasz_repro.evaluation.predict import parse_size
    from lovasz_repro.evaluation.submission import next_steps
    from lovasz_repro.host.progress import Progress

    network, split, submission = request.network, request.split, request.submission
    root, out = request.root, request.predictions
    note = read_note(root)
    frames, annotated = open_split(root, split)
    remarks = check_request(root, split, frames, annotated, note, submission, official)
    with Progress() as progress:
        for remark in remarks:
            progress.line(remark)
        files = predict(
            network.weights, frames, out, progress, split=split,
            data=note.content if note else "cityscapes",
            size=parse_size(size or network.size),
            upsample=upsample or network.upsample, device=request.device,
        )  # fmt: skip
        scores = score(files, frames, request.processes, progress) if annotated else None
        theirs = score_officially(files, frames, progress) if official else None
        if submission:
            submit(files, frames, submission, progress)
    if request.as_json:
        told = {
            "source": request.source, "run_id": network.run_id, "weights": str(network.weights),
            "split": split, "images": len(frames), "out": str(out),
            "scores": scores and numbers(scores.as_metrics(split)),
            "official": theirs and numbers(theirs.as_metrics(split)),
            "largest_difference": largest_difference(scores, theirs),
            "submission": submission and str(submission),
        }  # fmt: skip
        say_json(told)
        return
    if scores:
        show(scores, theirs)
    say(f"{len(frames)} predictions in {out}")
    if submission:
        steps = next_steps(submission, shlex.quote(network.short_id))
        say(f"submission in {submission}", *steps.split("\n"))
    elif not scores:
        say(
            f"No scores: the annotations of {split} are not public. For the test server: "
            "the same command with --submission FILE.zip"
        )


def open_split(root: Path, split: str) -> tuple[list["Frame"], bool]:
    """The photographs of a split, and whether their annotations are there, as they must be for
    all but the test set."""
    from lovasz_repro.data.cityscapes import list_frames
    from lovasz_repro.run.datasets import DATASETS

    annotated = split != "test" or "test" in DATASETS["cityscapes"].scored_splits(root)
    return list_frames(root, split, labelled=annotated), annotated


def check_request(
    root: Path,
    split: str,
    frames: list["Frame"],
    annotated: bool,
    note: "TreeNote | None",
    submission: Path | None,
    official: bool,
) -> list[str]:
    """What a person should know before hours of prediction.

    Raises:
        UserError: it would be in vain.
    """
    from lovasz_repro.data.cityscapes import SPLIT_SIZES

    if official and not annotated:
        raise UserError(f"{root}: no annotations of {split} that --official could score with.")
    if submission and (submission.is_dir() or submission.suffix != ".zip"):
        raise UserError(f"--submission {submission}: name a .zip file.")
    if note:
        what = f"{root} holds {note.content} in the layout of Cityscapes"
        return [f"{what}: the test server takes no such submission."] if submission else []
    if len(frames) == SPLIT_SIZES[split]:
        return []
    count = f"{root}: {len(frames)} photographs in {split}, Cityscapes has {SPLIT_SIZES[split]}"
    if submission:
        raise UserError(f"{count}. The test server takes no part of a split.")
    return [f"{count}: this is not the whole split."]


def predict(
    weights: Path, frames: list["Frame"], out: Path, progress: "Progress", **options: Any
) -> list[Path]:
    """The files of ``predict_split``, under a bar."""
    from lovasz_repro.evaluation.prediction_folder import is_complete, prediction_files
    from lovasz_repro.evaluation.split_predictions import predict_split

    before = sum(map(is_complete, prediction_files(frames, out)))
    task = progress.task(f"predicting {options['split']}", len(frames), before)
    try:
        return predict_split(weights, frames, out, advance=task.advance, **options)
    finally:
        task.close()


def score(
    files: list[Path], frames: list["Frame"], processes: int | None, progress: "Progress"
) -> "CityscapesScores":
    """Our scores, under a bar."""
    from lovasz_repro.evaluation.cityscapes_files import score_files
    from lovasz_repro.host.processes import cores

    several = min(cores(), MOST_PROCESSES, 1 + len(frames) // IMAGES_EACH)
    task = progress.task("scoring", len(frames))
    try:
        return score_files(files, frames, processes=processes or several, advance=task.advance)
    finally:
        task.close()


def score_officially(
    files: list[Path], frames: list["Frame"], progress: "Progress"
) -> "CityscapesScores":
    """The official script's scores; it does not tell how far it is."""
    from lovasz_repro.evaluation.official import official_scores

    progress.line(f"the official script is scoring {len(frames)} images (some 0.4 s each)")
    return official_scores(files, frames)


def submit(files: list[Path], frames: list["Frame"], out_zip: Path, progress: "Progress") -> None:
    """Check the predictions and pack them."""
    from lovasz_repro.evaluation.submission import check_predictions, write_submission

    task = progress.task("checking", len(frames))
    try:
        check_predictions(files, frames, task.advance)
    finally:
        task.close()
    write_submission(files, out_zip)
