"""Every table of the report: an entry of ``TABLES``, which builds it from a store.

Here are the tables of every stored set of runs, whatever its scale; those of the paper, which hold
paper-scale runs on its data alone, are in ``published.py``. What is written beside the numbers is
in ``experiments/captions.yaml`` under the table's name.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from lovasz_repro.config.schema import BASIS
from lovasz_repro.data import classes
from lovasz_repro.data.classes import CAMVID_FROM_CITYSCAPES, CITYSCAPES, VOC
from lovasz_repro.report.model import Block, Cell, Column, Table, TableRow
from lovasz_repro.report.own import OWN, own_table
from lovasz_repro.report.published import (
    BASIS_IOU,
    CITYSCAPES_SCORES,
    IOU_OF_IMAGE,
    MEASURES,
    decision_rule,
    table_1,
    table_2,
    table_3,
    table_4,
)
from lovasz_repro.report.runs import Cohort, Run, RunStore, command, fill_of, having, variant
from lovasz_repro.report.scores import (
    ARG_MAX,
    OTHER_RULES,
    REGIMES,
    RULE,
    RULE_REFERENCE,
    OverBatches,
    Score,
    count,
    measured,
    once,
    over_categories,
    over_seeds,
)
from lovasz_repro.report.sets import (
    BINARY,
    CAMVID_LAYOUT,
    CAMVID_RUNS,
    ENET_RUNS,
    FEATURES,
    MEASURED,
    MULTICLASS,
    STUDIED,
    TRAINED_SCORES,
    VOC_CATEGORIES,
    Found,
    category,
    loss_title,
    named_cohorts,
    named_sets,
    planned_variants,
    settings_of,
    shared_categories,
    studied_sets,
)
from lovasz_repro.report.style import SEARCHED, variant_order, variant_title
from lovasz_repro.report.words import captions, starting_point, table_caption

SEEDS = Column("seeds", "seeds", digits=0)
Row = tuple[str, str, str, int | None]
"""Key, label, variant and batch size, None where the set has one."""


def _table(
    name: str,
    columns: Iterable[Column],
    found: Found,
    rows_of: Callable[[Cohort | None], Iterable[TableRow]],
    experiment: str,
    profile: str = "paper",
    **words: object,
) -> Table:
    """A block per set of runs, or one of dashes where there is none."""
    blocks = [Block(heading, tuple(rows_of(cohort))) for cohort, heading in found]
    told, fill = captions().tables[name], command(experiment, profile)
    return Table(
        name=name,
        title=told.title,
        caption=table_caption(name, experiment=experiment, command=fill, **words),
        row_title=told.row_title,
        columns=tuple(columns),
        blocks=tuple(blocks) or (Block("", tuple(rows_of(None))),),
    )


# -- networks: scores before training, and after that with each variant ------------------------

CAMVID_SCORES = (
    Score("val", "val dataset-mIoU", ("val/dataset_miou",), "best"),
    Score("test", "test dataset-mIoU", ("test/dataset_miou",)),
    Score("test-image", "test image-mIoU", ("test/image_miou",)),
)
CAMVID_CLASSES = tuple(CITYSCAPES.names[i] for i in CAMVID_FROM_CITYSCAPES.values() if i)
"""The 11 classes of Cityscapes that CamVid's annotations hold."""
LAYOUT_SCORES = (
    *(replace(score, title=f"val {score.title}") for score in CITYSCAPES_SCORES),
    Score("test-class-iou", "test Class IoU", ("test/dataset_miou",)),
    Score(
        "val-eleven", "val IoU, 11 classes", tuple(f"val/iou/{n}" for n in CAMVID_CLASSES), "best"
    ),
    Score("test-eleven", "test IoU, 11 classes", tuple(f"test/iou/{n}" for n in CAMVID_CLASSES)),
)
MULTICLASS_SCORES = (
    *(
        Score(key, f"val, {name}", (f"{prefix}dataset_miou",), needs=setting)
        for key, (prefix, name, setting) in REGIMES.items()
    ),
    Score("image", "val image-mIoU", ("val/image_miou",)),
    Score("batch", "val batch-mIoU", ("val/batch_miou",)),
)
"""The last two are single-scale."""
STUDY_SCORES = tuple(Score(name, f"val {name}-mIoU", (key,)) for name, key in MEASURED.items())


def by_variant(experiment: str, cohort: Cohort | None) -> list[Row]:
    """A row per variant that a set has or that its profile plans."""
    names = planned_variants(experiment, cohort)
    return [(name, variant_title(name), name, None) for name in names]


def by_batch_size(experiment: str, cohort: Cohort | None) -> list[Row]:
    """The same for sets of several batch sizes."""
    return [
        (f"{name}-b{size}", f"{variant_title(name)}, batch size {size}", name, size)
        for name, size in settings_of(experiment, cohort)
    ]


def studied(experiment: str, cohort: Cohort | None) -> list[Row]:
    """A row per variant of the study of measures, and per other one that a set has."""
    others = sorted(set(cohort.variants) - set(STUDIED)) if cohort else []
    titles = STUDIED | {name: variant_title(name) for name in others}
    return [(name, title, name, None) for name, title in titles.items()]


@dataclass(frozen=True)
class Networks:
    """A table of the scores of networks: of an experiment's, by row and set."""

    name: str
    experiment: str
    scores: tuple[Score, ...]
    rows: Callable[[str, Cohort | None], list[Row]] = by_batch_size
    sets: Callable[[RunStore, str], Found] = named_cohorts
    profile: str = "paper"
    start: str = ""
    """How the network before training is called; "": by its weights."""
    start_is_planned: bool = True
    """Whether its row is there before its scores are known."""

    def __call__(self, store: RunStore) -> Table:
        """Of every stored set of runs, at any scale."""
        return _table(
            self.name,
            (*(score.column for score in self.scores), SEEDS),
            self.sets(store, self.experiment),
            lambda cohort: _network_rows(store, self, cohort),
            self.experiment,
            self.profile,
        )


def _network_rows(store: RunStore, entry: Networks, cohort: Cohort | None) -> list[TableRow]:
    fill = command(entry.experiment, cohort.profile if cohort else entry.profile)
    rows, runs = [], cohort.runs if cohort else ()
    before = [score.before(store, runs, fill) for score in entry.scores]
    if entry.start_is_planned or any(cell.value is not None for cell in before):
        label = entry.start or starting_point(cohort)
        rows.append(TableRow("initial", label, (*_scored(entry.scores, before, cohort), None)))
    for key, label, name, size in entry.rows(entry.experiment, cohort):
        chosen = cohort.select(name, size) if cohort else []
        after = [score.after(store, chosen, fill) for score in entry.scores]
        cells = _scored(entry.scores, after, cohort)
        rows.append(TableRow(key, label, (*cells, count(after[0]))))
    return rows


def _scored(
    scores: Sequence[Score], cells: Sequence[Cell], cohort: Cohort | None
) -> list[Cell | None]:
    """Cells of one network: what it lacks where it has others does not apply to its data."""
    known = any(cell.value is not None for cell in cells)
    return [
        cell if cell.value is not None or (not known and score.applies(cohort)) else None
        for score, cell in zip(scores, cells, strict=True)
    ]


# -- classes: the IoU of each, and their mean --------------------------------------------------


@dataclass(frozen=True)
class Classes:
    """A table of classes: a row each, a column per variant."""

    name: str
    experiment: str
    names: Sequence[str]
    mean: str
    """How the mean over the classes is called."""
    sets: Callable[[RunStore, str], Found] = named_sets
    columns: Callable[[str, Cohort | None], list[Row]] = by_variant
    initial: str = ""
    """How the network before training is called; "": it has no column."""
    regimes: bool = False
    """Validation scores under the last way of evaluating that a set has, of every class; else test
    scores, of those classes that occur."""

    def __call__(self, store: RunStore) -> Table:
        """Of the runs in the table of networks."""
        found = self.sets(store, self.experiment)
        titles = _class_columns(self, [cohort for cohort, _ in found])
        initial = [Column("initial", self.initial, "%")] if self.initial else []
        if self.regimes:
            found = [(c, f"{heading}, {REGIMES[_last_regime(c)][1]}") for c, heading in found]
        return _table(
            self.name,
            (*initial, *(Column(key, title, "%") for key, title, *_ in titles)),
            found,
            lambda cohort: _class_rows(store, self, cohort, titles),
            self.experiment,
        )


def _class_columns(entry: Classes, found: Sequence[Cohort]) -> list[Row]:
    """What any set has or plans, in the order of variants and batch sizes."""
    sets: Sequence[Cohort | None] = found or [None]
    columns = {row[2:]: row for c in sets for row in entry.columns(entry.experiment, c)}
    order = variant_order({name for name, _ in columns})
    rows = sorted(columns.values(), key=lambda row: (order.index(row[2]), row[3] or 0))
    return [
        (key, label if size is None else f"{variant_title(name)} ({size})", name, size)
        for key, label, name, size in rows
    ]


def _class_rows(
    store: RunStore, entry: Classes, cohort: Cohort | None, columns: Sequence[Row]
) -> list[TableRow]:
    fill = fill_of(entry.experiment, cohort)
    if cohort is None:
        empty = (Cell(command=fill),) * (bool(entry.initial) + len(columns))
        return [TableRow(entry.mean, entry.mean, empty)]
    prefix = REGIMES[_last_regime(cohort)][0] if entry.regimes else "test/"
    keys = {name: f"{prefix}iou/{name}" for name in entry.names}
    if not entry.regimes:
        keys = {name: key for name, key in keys.items() if _occurs(cohort.runs, key)}
    planned = {row[2:] for row in entry.columns(entry.experiment, cohort)}
    rows, mean = [], f"{prefix}dataset_miou"

    def or_blank(cell: Cell, runs: Sequence[Run]) -> Cell | None:
        """None where networks were scored and the class is neither annotated nor predicted."""
        scored = any(mean in run.metrics for run in runs)
        return None if scored and cell.value is None else cell

    for label, key in (keys | {entry.mean: mean}).items():
        score = Score(label, label, (key,))
        start = score.before(store, cohort.runs, fill)
        cells = [or_blank(start, cohort.runs)] if entry.initial else []
        for _, _, name, size in columns:
            runs = cohort.select(name, size)
            cell = or_blank(score.after(store, runs, fill), runs)
            cells.append(cell if (name, size) in planned else None)
        rows.append(TableRow(label, label, tuple(cells), better="higher"))
    return rows


def _occurs(runs: Sequence[Run], key: str) -> bool:
    return any(having(runs, name) for name in (key, f"initial/{key}"))


def _last_regime(cohort: Cohort) -> str:
    """The last way of evaluating of which a set has the IoU of a class."""
    scored = [
        regime
        for regime, (prefix, *_) in REGIMES.items()
        if any(key.startswith(f"{prefix}iou/") for run in cohort.runs for key in run.metrics)
    ]
    return scored[-1] if scored else "val-single"


# -- the synthetic search ----------------------------------------------------------------------

SEARCH_COLUMNS = (
    Column("argmin", "arg min b"),
    Column("jaccard_at_argmin", "Jaccard loss there", "%"),
    Column("excess", "above the minimum", "points"),
)


def synthetic(store: RunStore) -> Table:
    """Sec. 4.1 in numbers: where each loss has its minimum, and what that costs in Jaccard."""
    found = [
        (replace(cohort, runs=(run,)), heading)
        for cohort, heading in named_cohorts(store, "synthetic")
        if cohort.profile != "sweep"  # has a figure
        for run in cohort.runs
    ]
    rows_of = partial(_search_rows, store)
    return _table("synthetic", (*SEARCH_COLUMNS, SEEDS), found, rows_of, "synthetic")


def _search_rows(store: RunStore, cohort: Cohort | None) -> Iterable[TableRow]:
    """Rows of one stored search; every step of a metric's history is a seed."""
    runs, fill = cohort.runs if cohort else (), command("synthetic")
    for loss, (title, _) in SEARCHED.items():
        cells = []
        for column in SEARCH_COLUMNS:
            values = [v for r in runs for _, v in store.history(r.run_id, f"{column.key}/{loss}")]
            cells.append(measured(values, runs, fill, factor=100 if column.unit else 1))
        yield TableRow(loss, title, (*cells, count(cells[0])))


# -- one category of Pascal VOC against the rest -----------------------------------------------


def voc_binary(store: RunStore) -> Table:
    """Validation losses of every stored set of binary runs, at any scale."""
    found = []
    for cohort, heading in named_sets(store, BINARY):
        number = len(shared_categories(cohort))
        if number < len(VOC_CATEGORIES):
            noun = "category" if number == 1 else "categories"
            heading += f", {number} {noun} of {len(VOC_CATEGORIES)}"
        found.append((cohort, heading))
    return _table(BINARY, _loss_columns("trained with "), found, _measure_rows, BINARY)


def voc_binary_classes(store: RunStore) -> Table:
    """Validation image-IoU of every category under each loss."""
    found = named_sets(store, BINARY)
    return _table(f"{BINARY}-classes", _loss_columns(""), found, _category_rows, BINARY)


def _loss_columns(prefix: str) -> tuple[Column, ...]:
    trained = (Column(name, prefix + loss_title(name)) for name in TRAINED_SCORES)
    return (*trained, Column(BASIS, loss_title(BASIS)))


def _measure_rows(cohort: Cohort | None) -> Iterable[TableRow]:
    fill, every = fill_of(BINARY, cohort), cohort.runs if cohort else ()
    shared = shared_categories(cohort) if cohort else ()
    for row, (key, title, better) in MEASURES.items():
        chosen = [cohort.select(name) if cohort else [] for name in TRAINED_SCORES]
        cells = [over_categories(runs, key, shared, fill) for runs in chosen]
        basis = over_categories(every, BASIS_IOU, shared, fill) if key == IOU_OF_IMAGE else None
        yield TableRow(row, title, (*cells, basis), better)


def _category_rows(cohort: Cohort | None) -> list[TableRow]:
    fill = fill_of(BINARY, cohort)
    if cohort is None:
        return [TableRow("mean", "mean", (Cell(command=fill),) * (len(TRAINED_SCORES) + 1))]
    rows = []
    for name in VOC_CATEGORIES:
        runs = [run for run in cohort.runs if category(run) == name]
        if runs:
            of_each = [[run for run in runs if variant(run) == loss] for loss in TRAINED_SCORES]
            cells = [over_seeds(chosen, IOU_OF_IMAGE, fill) for chosen in of_each]
            basis = once([(run, run.metrics[BASIS_IOU]) for run in having(runs, BASIS_IOU)], fill)
            rows.append(TableRow(name, name, (*cells, basis), "higher"))
    shared = shared_categories(cohort)
    scored = [(cohort.select(loss), IOU_OF_IMAGE) for loss in TRAINED_SCORES]
    means = [
        replace(over_categories(runs, key, shared, fill), spread=None)
        for runs, key in (*scored, (cohort.runs, BASIS_IOU))
    ]
    label = "mean" if len(shared) == len(rows) else f"mean of {len(shared)} categories"
    return [*rows, TableRow("mean", label, tuple(means), "higher")]


# -- the decision rule -------------------------------------------------------------------------


def decision_rule_by_scale(store: RunStore) -> Table:
    """Arg max and decision rule side by side, of every stored set of runs."""
    reference = variant_title(RULE_REFERENCE)
    sets = named_sets(store, MULTICLASS)
    found = [(c, heading) for c, heading in sets if any(ARG_MAX in run.metrics for run in c.runs)]
    scored = {name for cohort, _ in found for run in cohort.runs for name in run.metrics}
    others = [name for name in OTHER_RULES if name in scored]
    columns = (
        Column("arg-max", "arg max", "%", better="higher"),
        Column("rule", "decision rule", "%", better="higher"),
        Column("difference", "rule − arg max, ± standard error", "points"),
        *(
            Column(name, f"{OTHER_RULES[name]} − arg max, ± standard error", "points")
            for name in others
        ),
        Column("gain", f"arg max − that of {reference}, ± standard error", "points"),
        Column("batches", "batches", digits=0),
        SEEDS,
    )
    rows_of = partial(_rule_rows, store, others)
    name = "decision-rule-by-scale"
    return _table(name, columns, found, rows_of, MULTICLASS, reference=reference)


def _rule_rows(store: RunStore, others: Sequence[str], cohort: Cohort | None) -> Iterable[TableRow]:
    fill = fill_of(MULTICLASS, cohort)

    def scores(name: str, metric: str) -> OverBatches:
        return OverBatches.of(store, cohort.select(name) if cohort else [], metric)

    reference = scores(RULE_REFERENCE, ARG_MAX)
    for name in planned_variants(MULTICLASS, cohort):
        arg_max, rule = scores(name, ARG_MAX), scores(name, RULE)
        trained = bool(cohort and cohort.select(name))
        if trained and not arg_max.runs:  # scores no batches, and would not if it ran again
            continue
        reached = arg_max.cell(fill)
        by_rules = (
            rule.cell(fill),
            rule.above(arg_max, fill),
            *(scores(name, other).above(arg_max, fill) for other in others),
        )
        cells = (
            reached,
            *(None if trained and cell.value is None else cell for cell in by_rules),
            None if name == RULE_REFERENCE else arg_max.above(reference, fill),
            count(replace(reached, n=len(arg_max.by_batch))),
            count(replace(reached, n=len(arg_max.runs))),
        )
        yield TableRow(name, variant_title(name), cells)


TABLES: dict[str, Callable[[RunStore], Table]] = {
    "synthetic": synthetic,
    CAMVID_RUNS: Networks(
        CAMVID_RUNS, CAMVID_RUNS, CAMVID_SCORES, by_variant, named_sets,
        start="initial network, before training",
    ),
    f"{CAMVID_RUNS}-classes": Classes(
        f"{CAMVID_RUNS}-classes", CAMVID_RUNS, sorted(classes.CAMVID.names), "mean of the classes",
        initial="initial network",
    ),
    ENET_RUNS: Networks(ENET_RUNS, ENET_RUNS, CITYSCAPES_SCORES),
    CAMVID_LAYOUT: Networks(CAMVID_LAYOUT, CAMVID_LAYOUT, LAYOUT_SCORES),
    f"{CAMVID_LAYOUT}-classes": Classes(
        f"{CAMVID_LAYOUT}-classes", CAMVID_LAYOUT, CITYSCAPES.names, "Class IoU", named_cohorts,
        by_batch_size, initial="before training",
    ),
    BINARY: voc_binary,
    f"{BINARY}-classes": voc_binary_classes,
    MULTICLASS: Networks(
        MULTICLASS, MULTICLASS, MULTICLASS_SCORES, by_variant, named_sets, start_is_planned=False
    ),
    f"{MULTICLASS}-classes": Classes(
        f"{MULTICLASS}-classes", MULTICLASS, VOC.names, "dataset-mIoU", regimes=True
    ),
    "decision-rule-by-scale": decision_rule_by_scale,
    "voc-measures": Networks(
        "voc-measures", MULTICLASS, STUDY_SCORES, studied, studied_sets, FEATURES,
        start_is_planned=False,
    ),
    OWN: own_table,
    "table-1": table_1,
    "table-2": table_2,
    "table-3": table_3,
    "decision-rule": decision_rule,
    "table-4": table_4,
}  # fmt: skip
