"""``runs``: lists and compares runs, moves them as plain files, records scores, frees the disk."""

import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lovasz_repro.cli.options import RESULTS, AsCsv, AsJson, AsMarkdown, Results, TrackingUri
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.output import plural, say, say_csv, say_json

if TYPE_CHECKING:
    from lovasz_repro.launch.slurm import TaskState
    from lovasz_repro.store import StoredRun

RunId = Annotated[str, typer.Argument(help="Id of a run, or how it begins.")]
runs_app = typer.Typer(invoke_without_command=True)
JUDGED_BY = {
    "test/dataset_miou": "test mIoU",
    "val/dataset_miou": "val mIoU",
    "val/image_iou": "val image-IoU",
}
"""What a training run is judged by, best first."""
AWAY = {"queued": "QUEUED", "running": "STARTING", "gone": "LOST"}
"""Status of a run that is with Slurm and not in the store."""
UNDONE = ("STOPPED", "STALE", "FAILED")
GOES_ON = "the command that started it goes on with it"


@runs_app.callback()
def runs(
    context: typer.Context,
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List runs, stored and queued: status, experiment, variant, best score, age."""
    if context.invoked_subcommand is None:
        from lovasz_repro.launch.slurm import slurm_folder, states
        from lovasz_repro.store import Store

        found = Store(results, tracking_uri).runs(experiment)
        if as_csv:
            from lovasz_repro.report.runs import frame

            table = frame(found).drop(columns=["run", "experiment"], errors="ignore")
            for column in ("status", "name", "experiment", "run_id"):
                table.insert(0, column, [getattr(run, column) for run in found])
            say_csv(table)
            return
        try:
            tasks = states(slurm_folder(results))
        except UserError as error:  # the runs are there all the same
            say(f"What is queued is not known: {error}", err=True)
            tasks = {}
        prefix = f"{experiment}/" if experiment else ""
        wanted = {key: task for key, task in tasks.items() if task.name.startswith(prefix)}
        print_runs(found, as_json, wanted)


@runs_app.command()
def show(
    run: RunId,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
) -> None:
    """One run in full: where it comes from, its settings, scores, files, and how to repeat it."""
    from lovasz_repro.report.compare import again, of_moments
    from lovasz_repro.report.runs import source
    from lovasz_repro.store import Store

    store = Store(results, tracking_uri)
    found = store.by_id(run)
    tags = asdict(source(found))
    status = status_of(found, None)
    marks = {
        "run": full_name(found),
        "id": found.run_id,
        "made as": found.tags.get("origin_run_id", ""),
        "status": f"{status} ({GOES_ON})" if status in UNDONE else status,
        "started": time.strftime("%Y-%m-%d %H:%M", time.localtime(found.started)),
        "took": age(found.ended - found.started) if found.ended else "",
        **{key: tags[key] for key in ("git_commit", "config_hash", "data_fingerprint", "device")},
        "again": again(found, found.experiment),
    }
    scores, files = of_moments(store, found), store.artifact_names(found.run_id)
    if as_json:
        say_json(asdict(found) | {"moments": scores, "artifacts": files, "again": marks["again"]})
        return
    print_parts(
        (["", ""], [[key, value] for key, value in marks.items() if value], (0, 1)),
        (
            ["metric", "before training", "best snapshot", "end"],
            [[name, *map(brief, values.values())] for name, values in scores.items()],
            (0,),
        ),
        (["setting", "value"], [[key, text] for key, text in sorted(found.params.items())], (0, 1)),
        (["file"], [[name] for name in files], (0,)),
    )


@runs_app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Ids of two runs or more, or how they begin.")],
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    as_markdown: AsMarkdown = False,
) -> None:
    """Runs side by side: settings that differ, metrics, and the last run's minus the first's."""
    from lovasz_repro.report.compare import side_by_side
    from lovasz_repro.store import Store

    if len(runs) < 2:
        raise UserError("compare takes two runs or more; `lovasz-repro runs` lists them")
    store = Store(results, tracking_uri)
    found = [store.by_id(run) for run in runs]
    parts = side_by_side(found)
    if as_json:
        say_json({"runs": [asdict(run) for run in found], **parts})
        return
    if as_csv:
        import pandas as pd

        say_csv(
            pd.DataFrame([{"part": part} | row for part, rows in parts.items() for row in rows])
        )
        return
    names = [
        [str(number), full_name(run), status_of(run, None), run.run_id[:12]]
        for number, run in enumerate(found, start=1)
    ]
    for number, name, status, _ in names:
        if status != "FINISHED":
            say(f"run {number} ({name}) is not finished ({status}): its metrics are those that it "
                "had reached.", err=True)  # fmt: skip
    numbers = [number for number, *_ in names]

    def columns(title: str, part: str, *more: str) -> tuple[list[str], list[list[str]], tuple[int]]:
        keys = [*numbers, *more]
        rows = [[row["name"], *(brief(row[key]) for key in keys)] for row in parts[part]]
        return [title, *keys], rows, (0,)

    tables = (
        (["", "run", "status", "run id"], names, (0, 1, 2, 3)),
        columns("setting", "settings"),
        columns("metric", "metrics", "difference"),
    )
    if as_markdown:
        say_markdown(tables)
        return
    print_parts(*tables)


@runs_app.command("export")
def export_(
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    run: Annotated[list[str] | None, typer.Option(help="Only this run id; repeatable.")] = None,
    max_artifact: Annotated[
        int, typer.Option(min=0, help="Leave out files of more bytes than this (weights).")
    ] = 1_000_000,
    without: Annotated[
        list[str] | None,
        typer.Option(help="Leave out files and metrics: --without 'examples/*'; repeatable."),
    ] = None,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Write runs as plain files, for git or for another machine."""
    from lovasz_repro.store import Store
    from lovasz_repro.store.transfer import export_runs

    store = Store(results, tracking_uri)
    if len(out.name) > 7 and any(one.run_id.startswith(out.name) for one in store.runs()):
        raise UserError(f"{out} is a run; export takes the folder to write to: "
                        f"lovasz-repro runs export FOLDER --run {out.name}")  # fmt: skip
    count = export_runs(
        store, out, experiment, run, max_artifact=max_artifact, without=without or ()
    )
    say(f"{plural(count, 'run')} in {out}")


@runs_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Folder that `runs export` wrote.")],
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Bring exported runs into the store; those it has already are left alone."""
    from lovasz_repro.host.progress import Progress
    from lovasz_repro.store import Store
    from lovasz_repro.store.transfer import import_runs

    with Progress() as progress:
        report = import_runs(Store(results, tracking_uri), source, progress)
    scored = f", {len(report.scored)} with new scores of a server" if report.scored else ""
    say(
        f"{len(report.added)} added, {len(report.updated)} updated{scored}, "
        f"{len(report.present)} there already, {len(report.kept)} left alone (running here)"
    )


@runs_app.command()
def record(
    run: Annotated[str, typer.Argument(help="Id of a finished run, or how it begins.")],
    server_scores: Annotated[
        Path,
        typer.Option(
            help="YAML or JSON, in percent. Cityscapes: class_iou, class_iiou, category_iou, "
            "category_iiou and classes, or the official script's JSON. VOC: mean and classes."
        ),
    ],
    initial: Annotated[
        bool, typer.Option("--initial", help="They are of the network before training.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put them in place of others that were recorded.")
    ] = False,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Keep the scores that an evaluation server gave to a run's predictions."""
    from lovasz_repro.store import Store
    from lovasz_repro.store.server_scores import record_server_scores

    store = Store(results, tracking_uri)
    found = store.by_id(run)
    scores, words = read_scores(found, server_scores, initial=initial)
    new = record_server_scores(
        store, found, scores, server_scores, initial=initial, replace=replace
    )
    what = "before training" if initial else "after training"
    say(
        f"{'recorded' if new else 'recorded before'}: {words} of {found.name} {what} "
        f"(run {found.run_id})"
    )


@runs_app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")] = False,
    results: Results = RESULTS,
    tracking_uri: TrackingUri = None,
) -> None:
    """Delete the work folders (checkpoints) of finished runs, whose results the store keeps."""
    from lovasz_repro.host.output import Terminal, print_table
    from lovasz_repro.run.prune import remove, work_folders
    from lovasz_repro.store import Store

    found = work_folders(results, Store(results, tracking_uri))
    sizes = [(folder, folder.size) for folder in found if folder.kept is None]
    for why, count in Counter(folder.kept for folder in found if folder.kept).items():
        say(f"kept: {count} ({why})")
    if not sizes:
        say(f"no work folders of finished runs below {results / 'work'}")
        return
    rows = [[str(folder.path), f"{size:,}"] for folder, size in sizes]
    print_table(Terminal(), ["work folder of a finished run", "bytes"], rows)
    folders = plural(len(sizes), "work folder")
    what = f"{folders}, {sum(size for _, size in sizes):,} bytes"
    if not yes and not sys.stdin.isatty():
        raise UserError(f"{what}: nobody can be asked here; add --yes to delete them")
    if not yes and not typer.confirm(f"Delete {what}?"):
        say("nothing deleted")
        return
    failed = []
    for folder, _ in sizes:
        try:
            remove(folder)
        except RunFailed as error:
            failed.append(str(error))
    say(*failed, err=True)
    if failed:
        raise RunFailed(f"{len(failed)} of {folders} not deleted, see above")
    say(f"deleted {what}")


def say_markdown(tables: Iterable[tuple[list[str], list[list[str]], tuple[int, ...]]]) -> None:
    """Print tables as GitHub's Markdown, an empty line between them."""
    from lovasz_repro.report.render import md_escape, md_line

    for heads, rows, _ in tables:
        lines = [heads, *rows]
        head, *body = (md_line(md_escape(cell) for cell in line) for line in lines)
        say(head, "|---" * len(heads) + "|", *body, "")


# -- tables of runs ---------------------------------------------------------------------------


def print_parts(*parts: tuple[list[str], list[list[str]], tuple[int, ...]]) -> None:
    """Tables under each other: heads, rows, and which columns hold words; empty ones are left
    out."""
    from lovasz_repro.host.output import Terminal, print_table

    console = Terminal()
    for number, (heads, rows, words) in enumerate(part for part in parts if part[1]):
        if number:
            say("")
        print_table(console, heads, rows, words=words)


def brief(value: object) -> str:
    """A value in a table of any metrics: six significant digits of a number; nothing of None."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else str(value)


# -- the list ---------------------------------------------------------------------------------


def print_runs(
    runs: Sequence["StoredRun"], as_json: bool, tasks: Mapping[str, "TaskState"] | None = None
) -> None:
    """Newest first: status, experiment/profile/run, best score, age, run id.

    Args:
        runs: stored runs, newest first.
        as_json: machine-readable.
        tasks: what was submitted to Slurm, by the run's identity. A run that waits there is
            QUEUED; one that Slurm has no more and that never reached the store is LOST.
    """
    tasks = tasks or {}
    status = {run.run_id: status_of(run, tasks.get(run.identity)) for run in runs}
    stored = {run.identity for run in runs}
    only_tasks = [task for task in tasks.values() if task.key not in stored]
    if as_json:
        content = [asdict(run) | {"shown_status": status[run.run_id]} for run in runs]
        content += [
            {"name": task.name, "shown_status": AWAY[task.state], "slurm_job": task.job_id}
            for task in only_tasks
        ]
        say_json(content)
        return
    if not runs and not only_tasks:
        say("No runs stored yet. Start with: lovasz-repro synthetic")
        return
    from lovasz_repro.host.output import Terminal, print_table

    rows = [_task_row(task) for task in only_tasks]
    for run in runs:
        old = age(time.time() - run.started)
        rows.append([status[run.run_id], full_name(run), score(run), old, run.run_id[:12]])
    heads = ["status", "run", "score", "age", "run id"]
    print_table(Terminal(), heads, rows, words=range(len(heads)))
    if undone := [word for word in UNDONE if word in status.values()]:
        say(f"{' or '.join(undone)}: {GOES_ON}. `lovasz-repro runs show ID` prints it.")


def full_name(run: "StoredRun") -> str:
    """Experiment, profile and name of a run."""
    return "/".join([run.experiment, run.tags.get("profile", ""), run.name])


def status_of(run: "StoredRun", task: "TaskState | None") -> str:
    """The status for people, QUEUED where a run that is not finished waits with Slurm."""
    if task and task.state == "queued" and run.status != "FINISHED":
        return AWAY["queued"]
    from lovasz_repro.store.stored import shown_status

    return shown_status(run)


def score(run: "StoredRun") -> str:
    """The score that the run is judged by, in words."""
    for key, title in JUDGED_BY.items():
        if key in run.metrics:
            return f"{title} {100 * run.metrics[key]:.2f}"
    return ""


def age(seconds: float) -> str:
    """How long ago, in the largest unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _task_row(task: "TaskState") -> list[str]:
    lost = task.state == "gone" and task.log
    where = f"see {task.log}" if lost else f"Slurm {task.job_id}"
    return [AWAY[task.state], task.name, "", "", where]


# -- a server's scores --------------------------------------------------------------------------


def read_scores(run: "StoredRun", file: Path, *, initial: bool) -> tuple[dict[str, float], str]:
    """The scores in a file, of the server that scores a run's data set.

    Args:
        run: stored.
        file: see ``server_scores.py``.
        initial: they are of the network before training.

    Returns:
        Name in the store, without ``server/``, -> fraction; and the most important in words.

    Raises:
        UserError: no server scores such runs, or the file is not of its scores.
    """
    from lovasz_repro.report.sets import FOLDERS

    title = f"run {run.run_id} ({run.name})"
    folder, name = run.params.get("data.folder", ""), run.params.get("data.name")
    if (folder in FOLDERS and folder != name) or run.tags.get("scale") == "demo":
        raise UserError(f"{title} is of {FOLDERS.get(folder, 'drawn pictures')}: no server scores "
                        "it, only runs on the data set itself.")  # fmt: skip
    match name:
        case "cityscapes":
            return of_cityscapes(file)
        case "voc":
            check_voc_run(run, title, initial=initial)
            return of_voc(file)
        case other:
            raise UserError(f"{title} is of {other or 'no data set'}; only scores of the "
                            "Cityscapes server and of Pascal VOC's can be recorded.")  # fmt: skip


def of_cityscapes(file: Path) -> tuple[dict[str, float], str]:
    """Four averages, and classes where they are known."""
    from lovasz_repro.data.classes import CITYSCAPES
    from lovasz_repro.store.server_scores import read_server_scores

    scores = read_server_scores(file, CITYSCAPES.names[1:])
    four = ("dataset_miou", "class_iiou", "category_iou", "category_iiou")
    values = " / ".join(f"{100 * scores[name]:.2f}" for name in four)
    return scores, f"Class IoU / iIoU / Category IoU / iIoU {values}"


def check_voc_run(run: "StoredRun", title: str, *, initial: bool) -> None:
    """Raise UserError unless VOC's server can have scored a run's predictions."""
    from lovasz_repro.report.runs import setting

    if run.params.get("data.images") == "features":
        raise UserError(f"{title} has seen no photograph, only features drawn from masks: no "
                        "server scores it.")  # fmt: skip
    category = setting(run, "data.category")
    if category is not None:
        raise UserError(f"{title} tells {category} from the rest: the server scores all classes.")
    if initial:
        raise UserError(f"{title}: before training its classifier is random, so --initial is for "
                        "Cityscapes alone.")  # fmt: skip


def of_voc(file: Path) -> tuple[dict[str, float], str]:
    """The mean over 21 classes, and the classes where they are known."""
    from lovasz_repro.data.classes import VOC
    from lovasz_repro.store.server_scores import read_voc_server_scores

    scores = read_voc_server_scores(file, VOC.names)
    classes = f", {len(scores) - 1} classes" if len(scores) > 1 else ""
    return scores, f"dataset-mIoU {100 * scores['dataset_miou']:.2f}{classes}"
