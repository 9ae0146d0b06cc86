"""``evaluate``: scores of a network, its predictions, a submission to a test server.

``run/evaluate.py`` does the work; what came out is printed here: tables, and JSON for programs.
"""

import math
import shlex
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lovasz_repro.cli.options import RESULTS, AsJson, Data, Device, Results, TrackingUri
from lovasz_repro.errors import UserError
from lovasz_repro.host.output import Terminal, plural, print_table, say, say_json

if TYPE_CHECKING:
    from lovasz_repro.evaluation.cityscapes import CityscapesScores
    from lovasz_repro.evaluation.submission import Server
    from lovasz_repro.run.evaluate import OnCityscapes, OnVoc, Request

VOC_PANEL, CITYSCAPES_PANEL = "Pascal VOC", "Cityscapes"


class Split(StrEnum):
    """Splits of both data sets; train is train_aug on VOC."""

    train = "train"
    val = "val"
    test = "test"


class Upsampling(StrEnum):
    """What is brought to the photographs' size."""

    logits = "logits"
    predictions = "predictions"


class Unlabelled(StrEnum):
    """What becomes of the released network's output for pixels without a label."""

    dropped = "dropped"
    kept = "kept"


class Fusion(StrEnum):
    """How scores of several scales become one."""

    probabilities = "probabilities"
    max_logits = "max-logits"


def evaluate(
    source: Annotated[
        str,
        typer.Argument(help="A finished run's id, or how it begins; or a file of weights."),
    ],
    split: Annotated[Split, typer.Option(help="Which photographs.")] = Split.val,
    data: Data = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Data set below the data folder. Default: the run's, else cityscapes or voc."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the predictions; of VOC those of test. "
            "Default: <results>/evaluate/<name>-<split>."
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Write a file for the test server: .zip, of VOC .tar.gz."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="That score or refine. Default: by cores and images."),
    ] = None,
    device: Device = "auto",
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    multi_scale: Annotated[
        bool,
        typer.Option(
            "--multi-scale",
            help="Also at several scales: the run's, else the paper's.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = False,
    scales: Annotated[
        str | None,
        typer.Option(
            help="Of --multi-scale: multiples of 1/8, like 1,0.75,0.5.", rich_help_panel=VOC_PANEL
        ),
    ] = None,
    fusion: Annotated[
        Fusion | None,
        typer.Option(
            help="Of the scales: mean of the probabilities (paper), or largest logits (DeepLab).",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    least_side: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Pixels to which smaller images are continued. Default: the run's, else 513 "
            "(DeepLab).",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    crf: Annotated[
        bool,
        typer.Option(
            "--crf",
            help="Also with the dense CRF on top of several scales: the run's, else DeepLab's.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = False,
    crf_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Of --crf: bilateral_rgb=4, or several values, bilateral_rgb=3,4,5, which are "
            "compared; repeatable, then all combinations.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only the first so many, to choose settings on; default: all.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    batches: Annotated[
        str | None,
        typer.Option(
            metavar="COUNTxIMAGES",
            help="Also by the decision rules of Sec. 4.3, on random batches of val with every "
            "class, in the paper 20x21. Default: no batches.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = None,
    rankseg: Annotated[
        bool,
        typer.Option(
            "--rankseg",
            help="Of --batches: by the rule of the package rankseg, too.",
            rich_help_panel=VOC_PANEL,
        ),
    ] = False,
    size: Annotated[
        str | None,
        typer.Option(
            help="HEIGHTxWIDTH that the network sees. Default: the run's, else 512x1024.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = None,
    upsample: Annotated[
        Upsampling | None,
        typer.Option(
            help="To the photograph's size. Default: the run's, else logits.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = None,
    unlabelled: Annotated[
        Unlabelled | None,
        typer.Option(
            help='Whether output 0, "unlabelled", is an answer, a miss on labelled pixels. '
            "Default: the run's, else dropped.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = None,
    official: Annotated[
        bool,
        typer.Option(
            "--official",
            help="Score with cityscapesscripts too, and compare.",
            rich_help_panel=CITYSCAPES_PANEL,
        ),
    ] = False,
) -> None:
    """Score a network: a DeepLab-v2 on Pascal VOC, an ENet on Cityscapes.

    Predictions are kept, but for single-scale scores on VOC, and the same command goes on where it
    was stopped. They can be packed for the test server; an ENet's be scored by the official script.
    """
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.run import evaluate as work

    of_cityscapes = work.CityscapesOptions(
        size,
        upsample.value if upsample else None,
        unlabelled.value if unlabelled else None,
        official,
    )
    of_voc = work.VocOptions(
        multi_scale, parse_scales(scales), fusion.value if fusion else None, least_side, crf,
        parse_grid(crf_set or ()), images, parse_batches(batches), rankseg,
    )  # fmt: skip
    network = work.find_network(source, results, tracking_uri)
    options, others = (of_voc, of_cityscapes) if network.dataset == "voc" else (
        of_cityscapes, of_voc
    )  # fmt: skip
    if wrong := work.given(others):
        scored_on = VOC_PANEL if network.dataset == "voc" else CITYSCAPES_PANEL
        raise UserError(f"{', '.join(wrong)} {'do' if wrong[1:] else 'does'} not apply: {source} "
                        f"is scored on {scored_on}.")  # fmt: skip
    request = work.Request(
        source, network, split.value, data, folder, out, submission, processes, device, results
    )
    with Progress() as progress:
        found = work.EVALUATORS[network.dataset](request, options, progress)
    if isinstance(found, work.OnVoc):  # not before the bars are off the screen
        show_voc(request, found, as_json)
    else:
        show_cityscapes(request, found, as_json)


# -- options that are more than a word ----------------------------------------------------------


def parse_scales(text: str | None) -> list[float] | None:
    """``1,0.75,0.5`` as numbers; raises UserError for something else."""
    if text is None:
        return None
    scales = [number(part) for part in text.split(",")]
    if any(isinstance(scale, str) for scale in scales):
        raise UserError(f"--scales {text}: give numbers like 1,0.75,0.5.")
    return [float(scale) for scale in scales]


def parse_batches(text: str | None) -> tuple[int, int] | None:
    """``20x21`` as 20 batches of 21 images; raises UserError for something else."""
    if text is None:
        return None
    count, _, size = text.partition("x")
    if not (count.isdecimal() and size.isdecimal() and int(count) and int(size)):
        raise UserError(f"--batches {text[:60]}: give COUNTxIMAGES, like 20x21.")
    return int(count), int(size)


def parse_grid(pairs: Sequence[str]) -> dict[str, list[float | str]]:
    """``["bilateral_rgb=3,5"]`` -> ``{"bilateral_rgb": [3, 5]}``.

    Raises:
        UserError: no such pair, a value is missing, or a name is given twice.
    """
    grid: dict[str, list[float | str]] = {}
    for pair in pairs:
        name, _, text = (part.strip() for part in pair.partition("="))
        values = [number(part) for part in text.split(",")]
        if not name or "" in values:
            raise UserError(f"--crf-set {pair}: expected NAME=VALUE or NAME=VALUE,VALUE, for "
                            "example bilateral_rgb=3,4,5.")  # fmt: skip
        if name in grid:
            raise UserError(f"--crf-set {name}: given twice; write {name}=VALUE,VALUE.")
        grid[name] = values
    return grid


def number(text: str) -> float | int | str:
    """A number, whole where it is written so; the text where it is none."""
    text = text.strip()
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text


# -- what came out ------------------------------------------------------------------------------


def told_of(request: "Request", **found: Any) -> dict[str, Any]:
    """What was asked for and what came out, for JSON."""
    network = request.network
    told = {"source": request.source, "run_id": network.run_id, "weights": str(network.weights)}
    submission = request.submission and str(request.submission)
    return told | {"split": request.split, "submission": submission} | found


def say_how_to_submit(request: "Request", server: "Server") -> None:
    """Where the archive is and what to do with it, or how to get one."""
    from lovasz_repro.data.check import read_note

    archive, note = request.submission, read_note(request.root)
    if note and archive:
        say(f"submission in {archive}, which no server scores: {request.root} is what "
            f"`{note.made_by}` wrote.")  # fmt: skip
    elif note:
        say(f"No scores: {request.root} has no annotations of {request.split}.")
    elif archive:
        run = shlex.quote(request.network.short_id)
        steps = server.steps.format(archive=archive, run=run)
        say(f"submission in {archive}", *steps.split("\n"))
    else:
        say(f"No scores: the annotations of {request.split} are not public. For the test server: "
            f"the same command with --submission FILE{server.ending}")  # fmt: skip


def percent(score: float | None) -> str:
    """In percent; empty for a class without instances, a dash for one that does not occur."""
    if score is None:
        return ""
    return "–" if math.isnan(score) else f"{100 * score:.2f}"


def show_cityscapes(request: "Request", found: "OnCityscapes", as_json: bool) -> None:
    """Tables of classes and categories, the four averages, and where the predictions are."""
    from lovasz_repro.evaluation.submission import CITYSCAPES_SERVER

    ours, theirs = found.scores, found.official
    difference = largest_difference(ours, theirs) if ours and theirs else None
    if as_json:
        metrics = {
            name: scores and scores.as_metrics(request.split)
            for name, scores in (("scores", ours), ("official", theirs))
        }
        say_json(told_of(request, images=found.images, out=str(found.out),
                         largest_difference=difference, **metrics))  # fmt: skip
        return
    if ours:
        for what in ("class", "category"):
            heads = [what, "IoU", "iIoU"] + (["official IoU", "official iIoU"] if theirs else [])
            columns = [column for one in (ours, theirs) if one for column in columns_of(what, one)]
            rows = [[name, *(percent(one.get(name)) for one in columns)] for name in columns[0]]
            print_table(Terminal(), heads, rows)
            say("")
        say(ours.summary())
    if theirs:
        say(f"{theirs.summary()} by the official script")
        say(f"largest difference of any score: {100 * (difference or 0):.2g} percentage points")
    say(f"{plural(found.images, 'prediction')} in {found.out}")
    if request.submission or not ours:
        say_how_to_submit(request, CITYSCAPES_SERVER)


def columns_of(what: str, scores: "CityscapesScores") -> list[dict[str, float]]:
    """IoU and iIoU by name, the mean last."""
    if what == "class":
        return [
            scores.classes | {"mean": scores.class_iou},
            scores.class_instances | {"mean": scores.class_iiou},
        ]
    return [
        scores.categories | {"mean": scores.category_iou},
        scores.category_instances | {"mean": scores.category_iiou},
    ]


def largest_difference(scores: "CityscapesScores", theirs: "CityscapesScores") -> float:
    """Between any two scores; infinite where only one of them is a number."""
    ours, official = scores.as_metrics(""), theirs.as_metrics("")
    pairs = [(value, official[key]) for key, value in ours.items()]
    gaps = [
        math.inf if math.isnan(a) or math.isnan(b) else abs(a - b)
        for a, b in pairs
        if not (math.isnan(a) and math.isnan(b))
    ]
    return max(gaps, default=0.0)


def show_voc(request: "Request", found: "OnVoc", as_json: bool) -> None:
    """The scores, the search for the CRF's parameters, or where the label files are."""
    if as_json:
        show_json(request, found)
    elif found.compared:
        show_search(request, found)
    elif found.scorings:
        show_scores(request, found)
    else:
        show_test(request, found)
    if found.probabilities and not as_json:
        size = sum(file.stat().st_size for file in found.probabilities.rglob("*.png"))
        say(f"probabilities in {found.probabilities} ({size / 1e6:,.0f} MB); they may be removed")


def show_json(request: "Request", found: "OnVoc") -> None:
    """All of it, for programs."""
    from lovasz_repro.run.regimes import scored

    settings, crfs = found.settings, found.settings.crfs
    scores = {
        key: value
        for name, scoring in found.scorings.items()
        for key, value in scoring.as_metrics(prefix_of(request, name)).items()
    }
    search = [
        {"crf": one.crf.model_dump(mode="json"), "dataset_miou": one.dataset_miou,
         "image_miou": one.scoring.per_image.mean_iou()}
        for one in found.compared
    ]  # fmt: skip
    told = told_of(
        request,
        images=found.images,
        images_of_split=found.images_of_split,
        data=str(found.root),
        multi_scale=settings.multi_scale and settings.multi_scale.model_dump(mode="json"),
        crf=crfs[0].model_dump(mode="json") if len(crfs) == 1 else None,
        scores=scores or None,
    )
    if search:
        told["search"] = search
    if found.batches:
        batches = [scored("", one) for one in found.batches]
        told |= {"batches": batches, "temperature": found.temperature}
    if request.split == "test":
        told["out"] = str(request.predictions)
    say_json(told)


def show_scores(request: "Request", found: "OnVoc") -> None:
    """A column for each way of evaluating the network, and a line for each."""
    scorings = found.scorings
    metrics = {name: one.as_metrics("") for name, one in scorings.items()}
    heads = [title_of(found, name) for name in scorings] if len(scorings) > 1 else ["IoU"]
    keys = {row: f"/iou/{row}" for row in scorings["single_scale"].classes}
    rows = [
        [row, *(percent(of_one[key]) for of_one in metrics.values())]
        for row, key in (keys | {"mean": "/dataset_miou"}).items()
    ]
    print_table(Terminal(), ["class", *heads], rows)
    for name, scoring in scorings.items():
        say(f"{scoring.summary()} ({images_of(request, found)}, {title_of(found, name)})")
    if found.batches:
        from lovasz_repro.run.regimes import told_of_batches

        say(told_of_batches(found.batches, found.batch_size, found.temperature))


def show_search(request: "Request", found: "OnVoc") -> None:
    """A row for each set of parameters of the CRF, the best first."""
    settings = [
        {
            name: value if isinstance(value, str) else f"{value:g}"
            for name, value in one.crf.model_dump(mode="json").items()
        }
        for one in found.compared
    ]
    varied = [name for name in settings[0] if len({crf[name] for crf in settings}) > 1]
    rows = []
    for crf, one in zip(settings, found.compared, strict=True):
        reached = one.dataset_miou, one.scoring.per_image.mean_iou()
        rows.append([*(crf[name] for name in varied), *map(percent, reached)])
    print_table(Terminal(), [*varied, "mIoU", "image-mIoU"], rows)
    fixed = ", ".join(f"{name} {value}" for name, value in settings[0].items()
                      if name not in varied)  # fmt: skip
    say(f"In all of them: {fixed}")
    without = found.scorings["multi_scale"].summary()
    say(f"Without the CRF: {without} ({images_of(request, found)})")
    best = [("--crf-set", f"{name}={settings[0][name]}") for name in varied]
    say(f"The best: {shlex.join(word for words in best for word in words)}")


def show_test(request: "Request", found: "OnVoc") -> None:
    """Where the label files are, and what to do with them."""
    from lovasz_repro.evaluation.submission import VOC_FOLDER, VOC_SERVER

    name = "crf" if found.settings.crfs else "multi_scale"
    say(f"{plural(found.images, 'label file')} in {request.predictions / VOC_FOLDER} "
        f"({title_of(found, name)})")  # fmt: skip
    say_how_to_submit(request, VOC_SERVER)


def title_of(found: "OnVoc", name: str) -> str:
    """A way of evaluating the network, in words."""
    if name == "single_scale" or not found.settings.multi_scale:
        return "single scale"
    scales = plural(len(found.settings.multi_scale.scales), "scale")
    return f"{scales} + CRF" if name == "crf" else scales


def prefix_of(request: "Request", name: str) -> str:
    """What the names of its scores begin with, as in the store."""
    return request.split if name == "single_scale" else f"{request.split}/{name}"


def images_of(request: "Request", found: "OnVoc") -> str:
    """Which photographs, in words."""
    count, total = found.images, found.images_of_split
    what = plural(count, "image") if count == total else f"the first {count} of {total} images"
    split = "train_aug" if request.split == "train" else request.split
    return f"{what} of {split} in {found.root}"
