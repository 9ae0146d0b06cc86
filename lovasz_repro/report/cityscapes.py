"""Tables of the Cityscapes experiment (Sec. 4.4): the paper's Table 4, and every set of runs.

The same experiment on CamVid's photographs is ``camvid-as-cityscapes``. Its numbers, and those of
reduced or demo scale, have tables of their own and never enter the paper's.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from lovasz_repro.config.schema import load_experiment
from lovasz_repro.data.palettes import CAMVID_FROM_CITYSCAPES, CITYSCAPES
from lovasz_repro.report.cells import at_best_over_seeds, count, initial, once, over_seeds
from lovasz_repro.report.model import Block, Cell, Column, Row, Table, measured
from lovasz_repro.report.published import paper_table
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    at_best,
    batch_size,
    before_training,
    cohorts,
    command,
    headings,
    variant,
)
from lovasz_repro.report.style import variant_order, variant_title

ENET = "cityscapes-enet"
CAMVID = "camvid-as-cityscapes"
LOVASZ = "lovasz-softmax"
PAPER_BATCH = 10
"""Images per step of the paper's fine-tuned network."""
AXES = ("data.equibatch",)
"""What variants change beside the loss."""
SCORES = {
    "class-iou": "dataset_miou",
    "class-iiou": "class_iiou",
    "category-iou": "category_iou",
    "category-iiou": "category_iiou",
}
"""Columns of Table 4 and the names of their metrics, without the split."""
FOLDERS = {
    "cityscapes": "Cityscapes",
    "cityscapes-demo": "drawn streets in the layout of Cityscapes",
    "camvid-cityscapes": "CamVid in the layout of Cityscapes",
}
CAMVID_COLUMNS = {
    "test-class-iou": "test Class IoU",
    "val-eleven": "val IoU, 11 classes",
    "test-eleven": "test IoU, 11 classes",
}
MEAN = "Class IoU"
CAMVID_CLASSES = tuple(CITYSCAPES.names[i] for i in CAMVID_FROM_CITYSCAPES.values() if i)
"""The 11 classes of Cityscapes that CamVid's annotations hold."""

Setting = tuple[str, int]
"""Variant and batch size."""


def table_4(store: RunStore) -> Table:
    """Cityscapes scores before and after fine-tuning; paper-scale runs on Cityscapes alone."""
    found = [(c, h) for c, h in named_cohorts(store, ENET) if is_papers(c)]
    if not found:
        return paper_table("table-4")
    cohort, heading = next((f for f in found if f[0].select(LOVASZ, PAPER_BATCH)), found[0])
    tuned = cohort.select(LOVASZ, PAPER_BATCH)
    fill = command(ENET)
    ours: dict[tuple[str, str], Cell] = {}
    for column, score in SCORES.items():
        sent = f"initial/server/{score}"
        having = [(run, run.metrics[sent]) for run in cohort.runs if sent in run.metrics]
        ours["enet-test", column] = once(having, fill)
        ours["finetuned-test", column] = over_seeds(tuned, f"server/{score}", fill)
        ours["enet-val", column] = initial(store, cohort.runs, f"val/{score}", fill)
        ours["finetuned-val", column] = at_best_over_seeds(store, tuned, f"val/{score}", fill)
    table = paper_table("table-4", ours)
    others = f" {len(found) - 1} more: table `{ENET}`." if len(found) > 1 else ""
    return replace(table, notes=(*table.notes, f"Paper-scale runs here: {heading}.{others}"))


def cityscapes_enet(store: RunStore) -> Table:
    """Scores of every stored set of Cityscapes runs, at any scale."""
    caption = (
        f"Every stored set of runs of `{ENET}`, whatever its data and scale, each under a heading "
        "that names them. This is not the paper's table: only paper-scale runs on Cityscapes "
        "enter Table 4. Demo scale trains on drawn streets and says nothing about Cityscapes. "
        "Validation scores by the official definitions, of the network before training and of "
        "each run's best snapshot, that of the highest validation Class IoU. Mean ± standard "
        f"deviation over seeds. Filled by `{command(ENET)}` (`--profile demo` on a laptop)."
    )
    return _scores_table(store, ENET, "ENet fine-tuned on Cityscapes, by scale", caption)


def camvid_as_cityscapes(store: RunStore) -> Table:
    """Scores of every stored set of runs on CamVid in the layout of Cityscapes."""
    caption = (
        "The protocol of Sec. 4.4 on CamVid's photographs, converted to the layout of Cityscapes "
        "and scored as Cityscapes is, at the scale that each heading names. CamVid is not a data "
        "set of the paper: these numbers stand beside none of it. CamVid has no instance labels, "
        "so the iIoU takes connected components of a class for its instances. As in the official "
        "script, a class that is predicted and nowhere annotated counts 0 in a mean. Validation "
        "scores of the network before training and of each run's best snapshot, which is scored "
        "once on the test set. Mean ± standard deviation over seeds. "
        f"Filled by `{command(CAMVID)}` (`--profile reduced` on a few CPU cores)."
    )
    title = "CamVid in the layout of Cityscapes: ENet before and after fine-tuning"
    return _scores_table(store, CAMVID, title, caption, test=True)


def camvid_as_cityscapes_classes(store: RunStore) -> Table:
    """Test IoU of the classes that occur in CamVid in the layout of Cityscapes."""
    found = named_cohorts(store, CAMVID)
    grids = [settings_of(cohort, CAMVID) for cohort, _ in found] or [planned(CAMVID)]
    shown = _in_order({setting for grid in grids for setting in grid})
    blocks = [Block(heading, _class_rows(store, cohort, shown)) for cohort, heading in found]
    empty = Row(MEAN, MEAN, (Cell(command=command(CAMVID)),) * (1 + len(shown)))
    return Table(
        name="camvid-as-cityscapes-classes",
        title="CamVid in the layout of Cityscapes: IoU per class",
        caption=(
            "Test IoU of the classes that are annotated or predicted, of the runs in the table "
            f"`{CAMVID}`; in brackets the batch size. Not a table of the paper. Mean ± standard "
            f"deviation over seeds. Filled by `{command(CAMVID)}`."
        ),
        row_title="class",
        columns=(
            Column("initial", "before training", "%"),
            *(Column(f"{n}-b{b}", f"{variant_title(n)} ({b})", "%") for n, b in shown),
        ),
        blocks=tuple(blocks) or (Block("", (empty,)),),
    )


def named_cohorts(store: RunStore, experiment: str) -> list[tuple[Cohort, str]]:
    """Cohorts of an experiment of this section, with headings that name the data."""
    found = cohorts(store, experiment, AXES)
    return [
        (cohort, f"{data_title(cohort, experiment)}: {heading}")
        for cohort, heading in zip(found, headings(found), strict=True)
    ]


def data_title(cohort: Cohort, experiment: str) -> str:
    """The pictures that a cohort was trained and scored on."""
    folder = _folder(cohort, experiment)
    title = FOLDERS.get(folder, f"data in {folder}")
    return title[0].upper() + title[1:]


def is_papers(cohort: Cohort) -> bool:
    """Whether a cohort may stand in the paper's table: its scale, and its data."""
    return cohort.scale == "paper" and _folder(cohort, ENET) == "cityscapes"


def starting_point(cohort: Cohort | None) -> str:
    """What a network was before the first step."""
    weights = dict(cohort.settings).get("model.weights") if cohort else "enet-cityscapes"
    if weights == "enet-cityscapes":
        return "released network, before training"
    return "random weights, before training" if weights == "None" else "before training"


def settings_of(cohort: Cohort, experiment: str) -> list[Setting]:
    """Variants and batch sizes that a cohort has, and those that its profile plans."""
    stored = {(variant(run), batch_size(run)) for run in cohort.runs}
    return _in_order(stored | set(planned(experiment, cohort.profile, cohort.scale)))


def planned(experiment: str, profile: str = "paper", scale: str = "paper") -> list[Setting]:
    """Variants and batch sizes of a profile; none for one that was altered when it was run."""
    known = load_experiment(experiment)
    if profile not in known.profiles or known.profiles[profile].scale != scale:
        return []
    return _in_order({(c.variant, c.training.batch_size) for c in known.cells(profile)})


def _folder(cohort: Cohort, experiment: str) -> str:
    """Folder of the data; "None" means the one that is called as the data set."""
    usual = "camvid-cityscapes" if experiment == CAMVID else "cityscapes"
    folder = dict(cohort.settings).get("data.folder", usual)
    return "cityscapes" if folder == "None" else folder


def _in_order(found: set[Setting]) -> list[Setting]:
    names = variant_order({name for name, _ in found})
    return sorted(found, key=lambda setting: (names.index(setting[0]), setting[1]))


def _scores_table(
    store: RunStore, experiment: str, title: str, caption: str, *, test: bool = False
) -> Table:
    found = named_cohorts(store, experiment)
    blocks = [Block(heading, _rows(store, experiment, c, test)) for c, heading in found]
    titles = ("Class IoU", "Class iIoU", "Cat. IoU", "Cat. iIoU")
    split = "val " if test else ""
    last = [Column(key, title, "%", better="higher") for key, title in CAMVID_COLUMNS.items()]
    return Table(
        name=experiment,
        title=title,
        caption=caption,
        row_title="network",
        columns=(
            *(
                Column(key, split + name, "%", better="higher")
                for key, name in zip(SCORES, titles, strict=True)
            ),
            *(last if test else []),
            Column("seeds", "seeds", digits=0),
        ),
        blocks=tuple(blocks) or (Block("", _rows(store, experiment, None, test)),),
    )


def _rows(store: RunStore, experiment: str, cohort: Cohort | None, test: bool) -> tuple[Row, ...]:
    fill = command(experiment, cohort.profile) if cohort else command(experiment)
    runs = cohort.runs if cohort else ()
    before = [initial(store, runs, f"val/{score}", fill) for score in SCORES.values()]
    if test:
        before += [
            initial(store, runs, "test/dataset_miou", fill),
            *(_eleven_before(store, runs, split, fill) for split in ("val", "test")),
        ]
    rows = [Row("initial", starting_point(cohort), (*_scored(before), None))]
    for name, size in settings_of(cohort, experiment) if cohort else planned(experiment):
        chosen = cohort.select(name, size) if cohort else []
        after = [at_best_over_seeds(store, chosen, f"val/{s}", fill) for s in SCORES.values()]
        if test:
            after += [
                over_seeds(chosen, "test/dataset_miou", fill),
                *(_eleven_after(store, chosen, split, fill) for split in ("val", "test")),
            ]
        label = f"{variant_title(name)}, batch size {size}"
        rows.append(Row(f"{name}-b{size}", label, (*_scored(after), count(after[0]))))
    return tuple(rows)


def eleven_over_training(store: RunStore, run: Run) -> list[tuple[int, float]]:
    """Mean IoU of CamVid's classes at every validation that has all of them."""
    histories = [dict(store.history(run.run_id, f"val/iou/{name}")) for name in CAMVID_CLASSES]
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    means = [(step, _mean([history[step] for history in histories])) for step in steps]
    return [(step, mean) for step, mean in means if mean is not None]


def _eleven_before(store: RunStore, runs: Sequence[Run], split: str, fill: str) -> Cell:
    """Mean IoU of CamVid's classes before training."""
    found = [
        (run, _mean([before_training(store, run, f"{split}/iou/{c}") for c in CAMVID_CLASSES]))
        for run in runs
    ]
    return once([(run, score) for run, score in found if score is not None], fill)


def _eleven_after(store: RunStore, runs: Sequence[Run], split: str, fill: str) -> Cell:
    """Mean IoU of CamVid's classes at the best snapshot."""
    found = []
    for run in runs:
        keys = [f"{split}/iou/{name}" for name in CAMVID_CLASSES]
        ious = [run.metrics.get(k) if split == "test" else at_best(store, run, k) for k in keys]
        found.append((run, _mean(ious)))
    having = [(run, score) for run, score in found if score is not None]
    return measured([score for _, score in having], [run for run, _ in having], fill, factor=100)


def _mean(scores: Sequence[float | None]) -> float | None:
    """Mean of scores, None where one is missing."""
    known = [score for score in scores if score is not None and math.isfinite(score)]
    return math.fsum(known) / len(known) if len(known) == len(scores) else None


def _scored(cells: Sequence[Cell]) -> list[Cell | None]:
    """Cells of one network: what it lacks where it has others does not apply to its data."""
    known = any(cell.value is not None for cell in cells)
    return [cell if cell.value is not None or not known else None for cell in cells]


def _class_rows(store: RunStore, cohort: Cohort, shown: Sequence[Setting]) -> tuple[Row, ...]:
    fill = command(CAMVID, cohort.profile)
    prefix = "test/iou/"
    occurring = [name for name in CITYSCAPES.names if _occurs(cohort.runs, prefix + name)]
    keys = [(name, prefix + name) for name in occurring] + [(MEAN, "test/dataset_miou")]
    mine = settings_of(cohort, CAMVID)
    rows = []
    for name, key in keys:
        cells = [_or_blank(initial(store, cohort.runs, key, fill), cohort.runs)]
        for setting in shown:
            runs = cohort.select(*setting)
            cell = _or_blank(over_seeds(runs, key, fill), runs)
            cells.append(cell if setting in mine else None)
        rows.append(Row(name, name, tuple(cells), better="higher"))
    return tuple(rows)


def _or_blank(cell: Cell, runs: Sequence[Run]) -> Cell | None:
    """The cell; None where there are runs that say nothing: neither annotated nor predicted."""
    return None if runs and cell.value is None else cell


def _occurs(runs: Sequence[Run], key: str) -> bool:
    scores = [r.metrics.get(k, math.nan) for r in runs for k in (key, f"initial/{key}")]
    return any(math.isfinite(score) for score in scores)
