"""How ``evaluate`` shows what came out on VOC: tables on the terminal, and JSON."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lovasz_repro.cli.evaluate_render import numbers, percent
from lovasz_repro.host.output import say, say_json

if TYPE_CHECKING:
    from lovasz_repro.evaluation.scoring import SegmentationScoring
    from lovasz_repro.evaluation.voc_crf_search import Compared
    from lovasz_repro.run.evaluate_voc_job import Job


def show_scores(job: "Job", scorings: "Mapping[str, SegmentationScoring]") -> None:
    """A column for each way of evaluating the network, and a line for each.

    Args:
        job: what was done.
        scorings: "single_scale", "multi_scale", "crf", or the first of them.
    """
    from lovasz_repro.host.terminal import Terminal, print_table

    prefixes = {name: prefix_of(job, name) for name in scorings}
    metrics = {name: scores.as_metrics(prefixes[name]) for name, scores in scorings.items()}
    if job.request.as_json:
        every = {key: value for of_one in metrics.values() for key, value in of_one.items()}
        print_json(job, scores=numbers(every))
        return
    heads = [title_of(job, name) for name in scorings] if len(scorings) > 1 else ["IoU"]
    keys = {row: f"iou/{row}" for row in scorings["single_scale"].classes}
    rows = [
        [row, *(percent(metrics[name][f"{prefixes[name]}/{key}"]) for name in scorings)]
        for row, key in (keys | {"mean": "dataset_miou"}).items()
    ]
    print_table(Terminal(), ["class", *heads], rows)
    for name, scores in scorings.items():
        say(f"{scores.summary()} ({images_of(job)}, {title_of(job, name)})")
    show_folder(job)


def show_search(job: "Job", without: "SegmentationScoring", compared: "Sequence[Compared]") -> None:
    """A row for each set of parameters of the CRF, the best first."""
    from lovasz_repro.host.terminal import Terminal, print_table

    settings = [one.crf.model_dump(mode="json") for one in compared]
    if job.request.as_json:
        found = [
            {"crf": crf, "dataset_miou": one.dataset_miou,
             "image_miou": one.scoring.per_image.mean_iou()}
            for crf, one in zip(settings, compared, strict=True)
        ]  # fmt: skip
        scores = numbers(without.as_metrics(f"{job.split}/multi_scale"))
        print_json(job, scores=scores, search=found)
        return
    varied = [name for name in settings[0] if len({crf[name] for crf in settings}) > 1]
    rows = []
    for crf, one in zip(settings, compared, strict=True):
        reached = one.dataset_miou, one.scoring.per_image.mean_iou()
        rows.append([*(value_of(crf, name) for name in varied), *map(percent, reached)])
    print_table(Terminal(), [*varied, "mIoU", "image-mIoU"], rows)
    fixed = ", ".join(f"{name} {value_of(settings[0], name)}" for name in settings[0]
                      if name not in varied)  # fmt: skip
    say(f"In all of them: {fixed}")
    say(f"Without the CRF: {without.summary()} ({images_of(job)})")
    best = [("--crf-set", f"{name}={value_of(settings[0], name)}") for name in varied]
    say(f"The best: {shlex.join(word for words in best for word in words)}")
    show_folder(job)


def show_test(job: "Job", out: Path) -> None:
    """Where the label files are, and what to do with them."""
    from lovasz_repro.evaluation.voc_submission import RESULTS, how_to_submit

    submission, run_id = job.request.submission, shlex.quote(job.request.network.short_id)
    if job.request.as_json:
        print_json(job, scores=None, out=str(out), submission=submission and str(submission))
        return
    names = ["crf"] if job.settings.crfs else ["multi_scale"] if job.settings.multi_scale else []
    how = title_of(job, *names) if names else "single scale"
    say(f"{len(job.images)} label files in {out / RESULTS} ({how})")
    if submission:
        steps = how_to_submit(submission, run_id)
        say(f"submission in {submission}", *steps.split("\n"))
    else:
        say("No scores: the annotations of test are not public. For the test server: the "
                   "same command with --submission FILE.tar.gz")  # fmt: skip
    show_folder(job)


def title_of(job: "Job", name: str) -> str:
    """A way of evaluating the network, in words."""
    if name == "single_scale" or not job.settings.multi_scale:
        return "single scale"
    count = len(job.settings.multi_scale.scales)
    scales = f"{count} scales" if count > 1 else "1 scale"
    return f"{scales} + CRF" if name == "crf" else scales


def prefix_of(job: "Job", name: str) -> str:
    """What the names of its scores begin with, as in the store."""
    return job.split if name == "single_scale" else f"{job.split}/{name}"


def images_of(job: "Job") -> str:
    """Which photographs, in words."""
    count, total = len(job.images), len(job.all_images)
    what = f"{count} images" if count == total else f"the first {count} of {total} images"
    split = "train_aug" if job.split == "train" else job.split
    return f"{what} of {split} in {job.root}"


def value_of(crf: Mapping[str, Any], name: str) -> str:
    """A parameter, short."""
    value = crf[name]
    return value if isinstance(value, str) else f"{value:g}"


def show_folder(job: "Job") -> None:
    """Where probabilities are kept, if they are."""
    if job.settings.multi_scale or job.split == "test":
        size = sum(file.stat().st_size for file in job.folder.rglob("*.png"))
        say(f"probabilities in {job.folder} ({size / 1e6:,.0f} MB); they may be removed")


def print_json(job: "Job", **found: Any) -> None:
    """What was asked for and what came out."""
    request, settings = job.request, job.settings
    told = {
        "source": request.source,
        "run_id": request.network.run_id,
        "weights": str(request.network.weights),
        "split": job.split,
        "images": len(job.images),
        "images_of_split": len(job.all_images),
        "data": str(job.root),
        "multi_scale": settings.multi_scale and settings.multi_scale.model_dump(mode="json"),
        "crf": settings.crfs[0].model_dump(mode="json") if len(settings.crfs) == 1 else None,
    }
    say_json(told | found)
