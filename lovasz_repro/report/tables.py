"""Every table of the report: one function that reads a store, one line in ``TABLES``.

Here are the tables of Sec. 4.1 and of ENet: on CamVid, on Cityscapes (Sec. 4.4), and on CamVid in
the layout of Cityscapes. The paper's own tables hold paper-scale runs on its data alone.
"""

import math
from collections.abc import Callable, Sequence

from lovasz_repro.data import classes
from lovasz_repro.data.classes import CAMVID_FROM_CITYSCAPES, CITYSCAPES
from lovasz_repro.report.model import (
    Block,
    Cell,
    Column,
    Score,
    Table,
    TableRow,
    count,
    measured,
    once,
    over_seeds,
)
from lovasz_repro.report.published import Cells, fullest, paper_table
from lovasz_repro.report.runs import Cohort, Run, RunStore, command, fill_of
from lovasz_repro.report.sets import (
    CAMVID,
    CAMVID_LAYOUT,
    ENET,
    PAPER_BATCH,
    Found,
    in_order,
    named_cohorts,
    named_sets,
    settings_of,
)
from lovasz_repro.report.style import LOVASZ, SEARCHED, variant_order, variant_title
from lovasz_repro.report.tables_voc import (
    SEEDS,
    decision_rule,
    decision_rule_by_scale,
    table_1,
    table_2,
    table_3,
    voc_binary,
    voc_binary_classes,
    voc_measures,
    voc_multiclass,
    voc_multiclass_classes,
)
from lovasz_repro.report.words import starting_point

CAMVID_VARIANTS = {"weighted-cross-entropy", "lovasz-softmax", "sum"}
"""Rows of its tables, also before they are run."""
CAMVID_SCORES = (
    Score("val", "val dataset-mIoU", ("val/dataset_miou",), "best"),
    Score("test", "test dataset-mIoU", ("test/dataset_miou",)),
    Score("test-image", "test image-mIoU", ("test/image_miou",)),
)
SCORES = {
    "class-iou": "dataset_miou",
    "class-iiou": "class_iiou",
    "category-iou": "category_iou",
    "category-iiou": "category_iiou",
}
"""Columns of Table 4 and the names of their metrics, without the split."""
STREET_TITLES = ("Class IoU", "Class iIoU", "Cat. IoU", "Cat. iIoU")
CAMVID_CLASSES = tuple(CITYSCAPES.names[i] for i in CAMVID_FROM_CITYSCAPES.values() if i)
"""The 11 classes of Cityscapes that CamVid's annotations hold."""
CITYSCAPES_SCORES = tuple(
    Score(key, title, (f"val/{metric}",), "best")
    for (key, metric), title in zip(SCORES.items(), STREET_TITLES, strict=True)
)
LAYOUT_SCORES = (
    *(Score(s.key, f"val {s.title}", s.metrics, s.at) for s in CITYSCAPES_SCORES),
    Score("test-class-iou", "test Class IoU", ("test/dataset_miou",)),
    Score(
        "val-eleven", "val IoU, 11 classes", tuple(f"val/iou/{n}" for n in CAMVID_CLASSES), "best"
    ),
    Score("test-eleven", "test IoU, 11 classes", tuple(f"test/iou/{n}" for n in CAMVID_CLASSES)),
)
CLASS_ROWS = {
    CAMVID: ("mean of the classes", sorted(classes.CAMVID.names)),
    CAMVID_LAYOUT: ("Class IoU", CITYSCAPES.names),
}
"""Experiment -> how its tables call the mean, and its classes in their order."""


def synthetic(store: RunStore) -> Table:
    """Sec. 4.1 in numbers: where each loss has its minimum, and what that costs in Jaccard."""
    return Table(
        name="synthetic",
        title="Sec. 4.1: minimum of each loss over the bias b",
        caption=(
            "Exhaustive search over the bias b of the classifier f > −b on images of noisy "
            "circles: where each loss is smallest, the Jaccard loss there, and how far that is "
            "above the smallest Jaccard loss of any b. Mean ± standard deviation over seeds. "
            f"Filled by `{command('synthetic')}`."
        ),
        row_title="minimised loss",
        columns=(
            Column("argmin", "arg min b"),
            Column("jaccard_at_argmin", "Jaccard loss there", "%"),
            Column("excess", "above the minimum", "points"),
            SEEDS,
        ),
        blocks=tuple(
            Block(heading, _synthetic_rows(store, run))
            for cohort, heading in named_cohorts(store, "synthetic")
            for run in cohort.runs
        )
        or (Block("", _synthetic_rows(store, None)),),
    )


def camvid_enet(store: RunStore) -> Table:
    """The ENet authors' network on CamVid, before and after fine-tuning with each variant."""
    return Table(
        name="camvid-enet",
        title="ENet fine-tuned on CamVid",
        caption=(
            "The ENet authors' Cityscapes network on CamVid (11 classes), before training and "
            "after fine-tuning. Best snapshot on the validation set, scored once on the test "
            "set. Mean ± standard deviation over seeds. CamVid is not a data set of the paper: "
            "these numbers stand beside none of it. "
            f"Filled by `{command(CAMVID)}` (`--profile demo` on a laptop)."
        ),
        row_title="network",
        columns=(*(score.column for score in CAMVID_SCORES), SEEDS),
        blocks=tuple(
            Block(heading, _camvid_rows(store, cohort))
            for cohort, heading in named_sets(store, CAMVID)
        )
        or (Block("", _camvid_rows(store, None)),),
    )


def camvid_enet_classes(store: RunStore) -> Table:
    """Test IoU of every CamVid class, before and after fine-tuning."""
    found = named_sets(store, CAMVID)
    shown = variant_order({name for c, _ in found for name in c.variants} | CAMVID_VARIANTS)
    return Table(
        name="camvid-enet-classes",
        title="ENet fine-tuned on CamVid: IoU per class",
        caption=(
            "Test IoU (%) per class of the runs in the table `camvid-enet`. Mean ± standard "
            f"deviation over seeds. Filled by `{command(CAMVID)}`."
        ),
        row_title="class",
        columns=(
            Column("initial", "initial network", "%"),
            *(Column(name, variant_title(name), "%") for name in shown),
        ),
        blocks=_class_blocks(store, CAMVID, found, [(name, None) for name in shown]),
    )


def table_4(store: RunStore) -> Table:
    """Cityscapes scores before and after fine-tuning; paper-scale runs on Cityscapes alone."""

    def cells_of(cohort: Cohort) -> Cells:
        tuned, fill = cohort.select(LOVASZ, PAPER_BATCH), command(ENET)
        ours: Cells = {}
        for score, name in zip(CITYSCAPES_SCORES, SCORES.values(), strict=True):
            sent = f"initial/server/{name}"
            scored = [(run, run.metrics[sent]) for run in cohort.runs if sent in run.metrics]
            ours["enet-test", score.key] = once(scored, fill)
            ours["finetuned-test", score.key] = over_seeds(tuned, f"server/{name}", fill)
            ours["enet-val", score.key] = score.before(store, cohort.runs, fill)
            ours["finetuned-val", score.key] = score.after(store, tuned, fill)
        return ours

    ours, heading = fullest(named_cohorts(store, ENET), cells_of, ENET)
    return paper_table("table-4", ours, heading)


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
    title = "ENet fine-tuned on Cityscapes, by scale"
    return _street_scores(store, ENET, title, caption, CITYSCAPES_SCORES)


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
        f"Filled by `{command(CAMVID_LAYOUT)}` (`--profile reduced` on a few CPU cores)."
    )
    title = "CamVid in the layout of Cityscapes: ENet before and after fine-tuning"
    return _street_scores(store, CAMVID_LAYOUT, title, caption, LAYOUT_SCORES)


def camvid_as_cityscapes_classes(store: RunStore) -> Table:
    """Test IoU of the classes that occur in CamVid in the layout of Cityscapes."""
    found = named_cohorts(store, CAMVID_LAYOUT)
    stored = {setting for cohort, _ in found for setting in settings_of(CAMVID_LAYOUT, cohort)}
    shown = in_order(stored or set(settings_of(CAMVID_LAYOUT, None)))
    return Table(
        name="camvid-as-cityscapes-classes",
        title="CamVid in the layout of Cityscapes: IoU per class",
        caption=(
            "Test IoU of the classes that are annotated or predicted, of the runs in the table "
            f"`{CAMVID_LAYOUT}`; in brackets the batch size. Not a table of the paper. Mean ± "
            f"standard deviation over seeds. Filled by `{command(CAMVID_LAYOUT)}`."
        ),
        row_title="class",
        columns=(
            Column("initial", "before training", "%"),
            *(Column(f"{n}-b{b}", f"{variant_title(n)} ({b})", "%") for n, b in shown),
        ),
        blocks=_class_blocks(store, CAMVID_LAYOUT, found, shown),
    )


TABLES: dict[str, Callable[[RunStore], Table]] = {
    "synthetic": synthetic,
    "camvid-enet": camvid_enet,
    "camvid-enet-classes": camvid_enet_classes,
    "cityscapes-enet": cityscapes_enet,
    "camvid-as-cityscapes": camvid_as_cityscapes,
    "camvid-as-cityscapes-classes": camvid_as_cityscapes_classes,
    "voc-binary": voc_binary,
    "voc-binary-classes": voc_binary_classes,
    "voc-multiclass": voc_multiclass,
    "voc-multiclass-classes": voc_multiclass_classes,
    "decision-rule-by-scale": decision_rule_by_scale,
    "voc-measures": voc_measures,
    "table-1": table_1,
    "table-2": table_2,
    "table-3": table_3,
    "decision-rule": decision_rule,
    "table-4": table_4,
}


def _synthetic_rows(store: RunStore, run: Run | None) -> tuple[TableRow, ...]:
    """Rows of one stored search; every step of a metric's history is a seed."""
    rows = []
    for loss, (title, _) in SEARCHED.items():
        cells = []
        for key, factor in (("argmin", 1.0), ("jaccard_at_argmin", 100.0), ("excess", 100.0)):
            history = store.history(run.run_id, f"{key}/{loss}") if run else []
            runs, values = [run] if run else [], [value for _, value in history]
            cells.append(measured(values, runs, command("synthetic"), factor=factor))
        rows.append(TableRow(loss, title, (*cells, count(cells[0]))))
    return tuple(rows)


def _camvid_rows(store: RunStore, cohort: Cohort | None) -> tuple[TableRow, ...]:
    fill, runs = fill_of(CAMVID, cohort), cohort.runs if cohort else ()
    before = [score.before(store, runs, fill) for score in CAMVID_SCORES]
    rows = [TableRow("initial", "initial network, before training", (*before, None))]
    stored = set(cohort.variants) if cohort else set()
    for name in variant_order(stored | CAMVID_VARIANTS):
        chosen = cohort.select(name) if cohort else []
        cells = [score.after(store, chosen, fill) for score in CAMVID_SCORES]
        rows.append(TableRow(name, variant_title(name), (*cells, count(cells[1]))))
    return tuple(rows)


def _street_scores(
    store: RunStore, experiment: str, title: str, caption: str, scores: Sequence[Score]
) -> Table:
    found = [
        Block(heading, _street_rows(store, experiment, cohort, scores))
        for cohort, heading in named_cohorts(store, experiment)
    ]
    return Table(
        name=experiment,
        title=title,
        caption=caption,
        row_title="network",
        columns=(*(score.column for score in scores), SEEDS),
        blocks=tuple(found) or (Block("", _street_rows(store, experiment, None, scores)),),
    )


def _street_rows(
    store: RunStore, experiment: str, cohort: Cohort | None, scores: Sequence[Score]
) -> tuple[TableRow, ...]:
    fill, runs = fill_of(experiment, cohort), cohort.runs if cohort else ()
    before = [score.before(store, runs, fill) for score in scores]
    rows = [TableRow("initial", starting_point(cohort), (*_scored(before), None))]
    for name, size in settings_of(experiment, cohort):
        chosen = cohort.select(name, size) if cohort else []
        after = [score.after(store, chosen, fill) for score in scores]
        label = f"{variant_title(name)}, batch size {size}"
        rows.append(TableRow(f"{name}-b{size}", label, (*_scored(after), count(after[0]))))
    return tuple(rows)


def _scored(cells: Sequence[Cell]) -> list[Cell | None]:
    """Cells of one network: what it lacks where it has others does not apply to its data."""
    known = any(cell.value is not None for cell in cells)
    return [cell if cell.value is not None or not known else None for cell in cells]


def _class_blocks(
    store: RunStore, experiment: str, found: Found, shown: Sequence[tuple[str, int | None]]
) -> tuple[Block, ...]:
    """Test IoU of each class that occurs, and their mean, before and after training."""
    if found:
        return tuple(Block(heading, _class_rows(store, c, shown)) for c, heading in found)
    mean, _ = CLASS_ROWS[experiment]
    empty = TableRow(mean, mean, (Cell(command=command(experiment)),) * (1 + len(shown)))
    return (Block("", (empty,)),)


def _class_rows(
    store: RunStore, cohort: Cohort, shown: Sequence[tuple[str, int | None]]
) -> tuple[TableRow, ...]:
    fill, (mean, classes) = fill_of(cohort.experiment, cohort), CLASS_ROWS[cohort.experiment]
    keys = {name: f"test/iou/{name}" for name in classes}
    keys = {name: key for name, key in keys.items() if _occurs(cohort.runs, key)}
    mine = settings_of(cohort.experiment, cohort)
    rows = []
    for name, key in (keys | {mean: "test/dataset_miou"}).items():
        score = Score(name, name, (key,))
        cells = [_or_blank(score.before(store, cohort.runs, fill), cohort.runs)]
        for setting in shown:
            runs = cohort.select(*setting)
            cell = _or_blank(score.after(store, runs, fill), runs)
            cells.append(cell if setting[1] is None or setting in mine else None)
        rows.append(TableRow(name, name, tuple(cells), better="higher"))
    return tuple(rows)


def _or_blank(cell: Cell, runs: Sequence[Run]) -> Cell | None:
    """The cell; None where there are runs that say nothing: neither annotated nor predicted."""
    return None if runs and cell.value is None else cell


def _occurs(runs: Sequence[Run], key: str) -> bool:
    scores = [r.metrics.get(k, math.nan) for r in runs for k in (key, f"initial/{key}")]
    return any(math.isfinite(score) for score in scores)
