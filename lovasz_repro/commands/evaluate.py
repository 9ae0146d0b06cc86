"""``evaluate``: scores of a network; on Cityscapes also its predictions and a submission."""

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lovasz_repro.commands.evaluate_render import largest_difference, numbers, show
from lovasz_repro.commands.evaluate_voc import evaluate_voc
from lovasz_repro.commands.shared import RESULTS, AsJson, Data, Device, Results, TrackingUri
from lovasz_repro.errors import UserError

if TYPE_CHECKING:
    from lovasz_repro.data.cityscapes import Frame
    from lovasz_repro.data.tree_note import TreeNote
    from lovasz_repro.evaluation.cityscapes import CityscapesScores
    from lovasz_repro.progress import Progress
    from lovasz_repro.store import Store, StoredRun

WEIGHTS = "best.safetensors"
FOLDER, SIZE = "cityscapes", "512x1024"
MOST_PROCESSES, IMAGES_EACH = 8, 20  # to score with, unless the user says how many
RUN_ID = re.compile(r"[0-9a-f]{1,32}")


class Split(StrEnum):
    """Splits of Cityscapes."""

    train = "train"
    val = "val"
    test = "test"


class Upsampling(StrEnum):
    """What is brought to the photographs' size."""

    logits = "logits"
    predictions = "predictions"


@dataclass(frozen=True)
class Source:
    """A network, and what a run or a snapshot says of how it sees the photographs."""

    name: str
    weights: Path
    run_id: str | None = None
    folder: str = FOLDER
    size: str = SIZE
    upsample: str = "logits"
    voc: bool = False
    """A DeepLab-v2, which is scored on Pascal VOC."""

    @property
    def short_id(self) -> str:
        """How a person may call its run."""
        return self.run_id[:8] if self.run_id else "RUN"


def evaluate(
    source: Annotated[
        str,
        typer.Argument(help="A finished run's id, or how it begins; or a file of weights."),
    ],
    split: Annotated[Split, typer.Option(help="Which photographs.")] = Split.val,
    data: Data = None,
    folder: Annotated[
        str | None,
        typer.Option(help="Data set below the data folder. Default: the run's, else cityscapes."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="HEIGHTxWIDTH that the network sees. Default: the run's, else 512x1024."),
    ] = None,
    upsample: Annotated[
        Upsampling | None,
        typer.Option(help="To the photograph's size. Default: the run's, else logits."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the predictions. Default: <results>/evaluate/<name>-<split>."),
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Score with cityscapesscripts too, and compare.")
    ] = False,
    submission: Annotated[
        Path | None, typer.Option(help="Write a zip file for the test server.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="That score. Default: by cores and images.")
    ] = None,
    device: Device = "auto",
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """Score a network: an ENet on Cityscapes, a DeepLab-v2 on Pascal VOC.

    An ENet's predictions are kept, and the same command goes on where it was stopped; they can be
    scored by the official script and packed for the test server.
    """
    from lovasz_repro.data.locate import data_folder, dataset_folder
    from lovasz_repro.data.tree_note import read_note
    from lovasz_repro.evaluation.predict import parse_size
    from lovasz_repro.evaluation.submission import next_steps
    from lovasz_repro.progress import Progress

    network = find_source(source, results, tracking_uri)
    if network.voc:
        if official or submission or size or upsample or out or processes:
            raise UserError(
                f"{source} is of Pascal VOC: only --split, --folder and --device apply."
            )
        evaluate_voc(
            source, network.weights, split.value, data, folder or network.folder, device, as_json
        )
        return
    root = dataset_folder(data_folder(data), folder or network.folder)
    note = read_note(root)
    frames, annotated = open_split(root, split.value)
    remarks = check_request(root, split.value, frames, annotated, note, submission, official)
    out = out or results / "evaluate" / f"{network.name}-{split.value}"
    with Progress() as progress:
        for remark in remarks:
            progress.line(remark)
        files = predict(
            network.weights, frames, out, progress, split=split.value,
            data=note.content if note else "cityscapes",
            size=parse_size(size or network.size),
            upsample=upsample.value if upsample else network.upsample, device=device,
        )  # fmt: skip
        scores = score(files, frames, processes, progress) if annotated else None
        theirs = score_officially(files, frames, progress) if official else None
        if submission:
            submit(files, frames, submission, progress)
    if as_json:
        told = {
            "source": source, "run_id": network.run_id, "weights": str(network.weights),
            "split": split.value, "images": len(frames), "out": str(out),
            "scores": scores and numbers(scores.as_metrics(split.value)),
            "official": theirs and numbers(theirs.as_metrics(split.value)),
            "largest_difference": largest_difference(scores, theirs),
            "submission": submission and str(submission),
        }  # fmt: skip
        typer.echo(json.dumps(told, indent=2))
        return
    if scores:
        show(scores, theirs)
    typer.echo(f"{len(frames)} predictions in {out}")
    if submission:
        typer.echo(f"submission in {submission}\n{next_steps(submission, network.short_id)}")
    elif not scores:
        typer.echo(
            f"No scores: the annotations of {split.value} are not public. For the test server: "
            "the same command with --submission FILE.zip"
        )


# -- what is given -------------------------------------------------------------------------------


def find_source(source: str, results: Path, tracking_uri: str | None) -> Source:
    """The network that a person means.

    Raises:
        UserError: neither a file nor the id of one finished run that has its weights.
    """
    if Path(source).is_file() or not RUN_ID.fullmatch(source):
        return of_file(Path(source))
    from lovasz_repro.store import Store

    store = Store(results, tracking_uri)
    run = store.by_id(source)
    title = f"run {run.run_id} ({run.name})"
    if run.status != "FINISHED":
        raise UserError(f"{title} is {run.status}, not FINISHED: it has no best snapshot yet.")
    params = run.params
    if params.get("data.name") == "voc":
        return of_voc_run(run, title, store)
    if params.get("data.name", FOLDER) != FOLDER:
        raise UserError(f"{title} is of {params['data.name']}; its network has other outputs than "
                        "the 20 for Cityscapes.")  # fmt: skip
    set_folder = params.get("data.folder", "None")
    return Source(
        name=f"{run.name}-{run.run_id[:8]}",
        weights=weights_of(run, title, store),
        run_id=run.run_id,
        folder=FOLDER if set_folder == "None" else set_folder,
        size="x".join(re.findall(r"\d+", params.get("data.size", SIZE))),
        upsample=params.get("evaluation.upsample", "logits"),
    )


def of_voc_run(run: "StoredRun", title: str, store: "Store") -> Source:
    """A network of all classes of Pascal VOC, trained on photographs."""
    if run.params.get("data.category", "None") != "None":
        raise UserError(f"{title} tells {run.params['data.category']} from the rest; its scores "
                        "are in `report tables voc-binary-classes`.")  # fmt: skip
    if run.params.get("data.images") == "features":
        raise UserError(f"{title} has seen no photograph, only features drawn from masks.")
    folder = run.params.get("data.folder", "None")
    name, weights = f"{run.name}-{run.run_id[:8]}", weights_of(run, title, store)
    return Source(name, weights, run.run_id, "voc" if folder == "None" else folder, voc=True)


def of_file(file: Path) -> Source:
    """Weights in a file; a snapshot says which size its network was trained at."""
    from lovasz_repro.models.snapshot_file import architecture_of

    if architecture_of(file) == "deeplab-v2":
        return Source(file.stem, file, folder="voc", voc=True)
    from lovasz_repro.evaluation.split_predictions import load_cityscapes

    if not file.exists() and not file.suffix and len(file.parts) == 1:
        raise UserError(f"{file}: neither a file of weights nor the id of a run; "
                        "`lovasz-repro runs` lists runs.")  # fmt: skip
    return Source(file.stem, file, size=load_cityscapes(file).notes.get("input_size", SIZE))


def weights_of(run: "StoredRun", title: str, store: "Store") -> Path:
    """The file of a run's best snapshot; raises UserError where it is not in the store."""
    if WEIGHTS not in store.artifact_names(run.run_id):
        stayed = WEIGHTS in run.tags.get("left_out", "")
        why = " (too large to be exported, see `runs export --max-artifact`)" if stayed else ""
        raise UserError(f"{title} has no {WEIGHTS} in this store{why}. Give the file instead.")
    return store.artifact(run.run_id, WEIGHTS)


def open_split(root: Path, split: str) -> tuple[list["Frame"], bool]:
    """The photographs of a split, and whether their annotations are there, as they must be for
    all but the test set."""
    from lovasz_repro.data.cityscapes import list_frames
    from lovasz_repro.datasets import DATASETS

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


# -- what is done --------------------------------------------------------------------------------


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
    from lovasz_repro.launch.cores import cores

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
