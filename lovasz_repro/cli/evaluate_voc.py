"""``evaluate`` of a DeepLab-v2 on Pascal VOC: scores, a search for the CRF, a submission."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lovasz_repro.errors import UserError
from lovasz_repro.run.evaluate_source import Request
from lovasz_repro.run.evaluate_voc_job import LISTS, Job, open_job, remarks
from lovasz_repro.run.evaluate_voc_settings import VocOptions, VocSettings, settings_of

if TYPE_CHECKING:
    from lovasz_repro.host.progress import Progress, ProgressTask

ARCHIVES = (".tar.gz", ".tgz")


def evaluate_voc(request: Request, options: VocOptions) -> None:
    """Score the network on a labelled split, or predict the test set, and print what came out.

    Raises:
        UserError: what was asked for cannot be, or data or network are missing or wrong.
        RunFailed: the disk refuses, or a process died.
    """
    from lovasz_repro.cli import evaluate_voc_render as render
    from lovasz_repro.evaluation.crf import check_installed
    from lovasz_repro.host.progress import Progress

    settings = settings_of(options, request.network.params)
    check_options(request, options, settings)
    if settings.crfs:
        check_installed()
    job = open_job(request, options, settings)
    with Progress() as progress:
        for remark in remarks(job):
            progress.line(remark)
        show: Callable[[], None]  # not before the bars are off the screen
        if request.split == "test":
            show = partial(render.show_test, job, predict_test(job, progress))
        elif len(settings.crfs) > 1:
            show = partial(render.show_search, job, *search(job, progress))
        else:
            show = partial(render.show_scores, job, score(job, progress))
    show()


# -- what is asked for ---------------------------------------------------------------------------


def check_options(request: Request, options: VocOptions, settings: VocSettings) -> None:
    """Raise UserError for options that contradict each other."""
    test, submission = request.split == "test", request.submission
    if submission:
        if not test:
            raise UserError("--submission is of the test photographs: add --split test.")
        if submission.is_dir() or not submission.name.endswith(ARCHIVES):
            raise UserError(f"--submission {submission}: name a .tar.gz file.")
        if options.images:
            raise UserError("--submission is of all test photographs: leave out --images.")
    if test and len(settings.crfs) > 1:
        raise UserError("--crf-set with several values compares them on labelled photographs, "
                        "which test has not: --split val.")  # fmt: skip
    if request.out and not test:
        raise UserError("--out is for the predictions of --split test; on VOC others are scored "
                        "and not kept.")  # fmt: skip
    if request.processes and not test and not settings.multi_scale:
        raise UserError("--processes work on several scales and the CRF: add --multi-scale or "
                        "--crf.")  # fmt: skip


# -- what is done --------------------------------------------------------------------------------


def score(job: Job, progress: "Progress") -> dict[str, Any]:
    """The scorings of "single_scale" and, where asked for, "multi_scale" and "crf"."""
    from lovasz_repro.evaluation.predictor import Predictor
    from lovasz_repro.evaluation.voc_regimes import score_regimes
    from lovasz_repro.evaluation.voc_score import score_voc

    with bar(progress, f"single-scale on {LISTS[job.split]}", len(job.images)) as task:
        single = Predictor(job.model, job.predictor.kind, job.device)
        scorings = {"single_scale": score_voc(single, job.images, advance=task.advance)}
    if not job.settings.multi_scale:
        return scorings
    crf = next(iter(job.settings.crfs), None)
    with bars(job, progress, crf=bool(crf)) as (predicting, refining):
        return scorings | score_regimes(
            job.predictor, job.images, job.folder, crf, processes=job.processes,
            predicted=predicting.advance, refined=refining.advance,
        )  # fmt: skip


def search(job: Job, progress: "Progress") -> tuple[Any, list[Any]]:
    """The scoring without the CRF, and what each set of its parameters reaches, the best first."""
    from lovasz_repro.evaluation.probability_cache import png_file
    from lovasz_repro.evaluation.voc_crf_search import compare_crfs
    from lovasz_repro.evaluation.voc_regimes import score_regimes

    with bars(job, progress, crf=False) as (predicting, _):
        without = score_regimes(
            job.predictor, job.images, job.folder, None, processes=job.processes,
            predicted=predicting.advance,
        )["multi_scale"]  # fmt: skip
    files = [png_file(job.folder, image.name) for image in job.images]
    crfs = job.settings.crfs
    with bar(progress, f"the CRF with {len(crfs)} settings", len(crfs) * len(files)) as refining:
        compared = compare_crfs(
            job.images, files, job.folder, crfs, processes=job.processes, refined=refining.advance
        )
    return without, compared


def predict_test(job: Job, progress: "Progress") -> Path:
    """Write the label files of the test photographs, and pack them where that is asked for."""
    from lovasz_repro.evaluation.voc_submission import check_predictions, write_submission
    from lovasz_repro.evaluation.voc_test_labels import write_predictions

    out, crf = job.request.predictions, next(iter(job.settings.crfs), None)
    with bars(job, progress, crf=bool(crf)) as (predicting, refining):
        write_predictions(
            job.predictor, job.images, job.folder, crf, out, processes=job.processes,
            predicted=predicting.advance, refined=refining.advance,
        )  # fmt: skip
    if job.request.submission:
        with bar(progress, "checking", len(job.images)) as task:
            check_predictions(out, job.images, count=len(job.images), advance=task.advance)
        write_submission(out, job.images, job.request.submission)
    return out


@contextmanager
def bars(
    job: Job, progress: "Progress", *, crf: bool
) -> "Iterator[tuple[ProgressTask, ProgressTask]]":
    """One bar for predicting and one for the CRF, or the first alone, twice."""
    count, scales = len(job.images), len(job.predictor.multi_scale.scales)
    scaled = f"at {scales} scales" if scales > 1 else "at one scale"
    with bar(progress, f"predicting {LISTS[job.split]} {scaled}", count) as predicting:
        if not crf:
            yield predicting, predicting
            return
        with bar(progress, "refining by the CRF", count) as refining:
            yield predicting, refining


@contextmanager
def bar(progress: "Progress", what: str, total: int) -> "Iterator[ProgressTask]":
    """A bar that goes away in any case."""
    task = progress.task(what, total)
    try:
        yield task
    finally:
        task.close()
