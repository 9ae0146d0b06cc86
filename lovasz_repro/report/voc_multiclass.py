"""Tables of the multiclass VOC experiment (Sec. 4.3): Tables 2 and 3, and every set of runs.

A score is that of the last iteration, as in the paper. Runs on features that are drawn from the
masks, and those of other scales, never enter the paper's tables.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from lovasz_repro.data.palettes import VOC
from lovasz_repro.report.cells import count, initial, over_seeds
from lovasz_repro.report.model import Block, Cell, Column, Row, Table
from lovasz_repro.report.published import paper_table, published_tables
from lovasz_repro.report.runs import Cohort, RunStore, command
from lovasz_repro.report.style import variant_order, variant_title
from lovasz_repro.report.voc_binary_runs import is_papers
from lovasz_repro.report.voc_multiclass_runs import (
    MULTICLASS,
    PAPER_BATCH,
    named_sets,
    planned_variants,
    server_sets,
)

REGIMES = {
    "val-single": ("val/", "single-scale"),
    "val-multi": ("val/multi_scale/", "multi-scale"),
    "val-crf": ("val/crf/", "multi-scale + CRF"),
}
"""Columns of Table 2 -> what the names of their metrics begin with, and how they are called."""
SERVER = "server/"
SETTING = {"val-multi": "evaluation.multi_scale", "val-crf": "evaluation.crf"}
"""Columns -> the setting without which a run has no such score."""
MEASURES = {"image": ("val/image_miou", "image-mIoU"), "batch": ("val/batch_miou", "batch-mIoU")}
"""Further columns of the table by scale, single-scale."""
PRINTED = {
    "airplane": "aeroplane",
    "cycle": "bicycle",
    "d-table": "diningtable",
    "mbike": "motorbike",
    "plant": "pottedplant",
    "tv": "tvmonitor",
}
"""Classes that Table 3 spells otherwise than Pascal VOC."""
STARTS = {"deeplab-coco": "released weights", "basis": "basis network", "None": "random weights"}
MEAN = "dataset-mIoU"
LONGER_IS = "30K: trained half as long again, as the 30K iterations of the paper beside its 20K."

Cells = dict[tuple[str, str], Cell]
"""(row, column) -> cell."""


def table_2(store: RunStore) -> Table:
    """Validation and test mIoU under each regime; paper-scale runs on photographs alone."""
    variants = list(published_tables()["table-2"].rows)
    val, val_heading = _fullest(named_sets(store), lambda c: _validation(c, variants))
    test, test_heading = _fullest(server_sets(store), lambda c: _on_server(c, variants))
    table = paper_table("table-2", val | test)
    return replace(table, notes=(*table.notes, *_told(val_heading, test_heading)))


def table_3(store: RunStore) -> Table:
    """Test IoU of every class, of paper-scale runs that trained on the validation images too."""
    ours, heading = _fullest(server_sets(store), _classes_on_server)
    table = paper_table("table-3", ours)
    return replace(table, notes=(*table.notes, *_told("", heading)))


def voc_multiclass(store: RunStore) -> Table:
    """Validation scores of every stored set of runs, at any scale."""
    found = named_sets(store)
    blocks = [Block(heading, _rows(store, cohort)) for cohort, heading in found]
    return Table(
        name=MULTICLASS,
        title="Multiclass segmentation on Pascal VOC, by scale",
        caption=(
            f"Every stored set of runs of `{MULTICLASS}`, whatever its data and scale, each under "
            "a heading that names them. This is not the paper's table: only paper-scale runs on "
            "photographs enter Table 2. Where a heading says features, these are noise drawn from "
            "the masks in the place of photographs, as Sec. 4.1 does for circles. Validation "
            "dataset-mIoU under each way of evaluating, and single-scale the image-mIoU and the "
            "batch-mIoU over present classes, in batches as large as those of the training; at "
            f"the last iteration. {LONGER_IS} Mean ± standard deviation over seeds. "
            f"Filled by `{command(MULTICLASS)}` (`--profile demo` on a laptop)."
        ),
        row_title="training",
        columns=(
            *(Column(k, f"val, {name}", "%", better="higher") for k, (_, name) in REGIMES.items()),
            *(Column(k, f"val {name}", "%", better="higher") for k, (_, name) in MEASURES.items()),
            Column("seeds", "seeds", digits=0),
        ),
        blocks=tuple(blocks) or (Block("", _rows(store, None)),),
    )


def voc_multiclass_classes(store: RunStore) -> Table:
    """Validation IoU of every class under the last way of evaluating that a set has."""
    found = named_sets(store)
    names = {name for cohort, _ in found for name in planned_variants(cohort)}
    shown = variant_order(names or set(planned_variants(None)))
    blocks = [
        Block(f"{heading}, {REGIMES[regime][1]}", _class_rows(cohort, REGIMES[regime][0], shown))
        for cohort, heading in found
        for regime in [_last_regime(cohort)]
    ]
    empty = Row(MEAN, MEAN, (Cell(command=command(MULTICLASS)),) * len(shown))
    return Table(
        name=f"{MULTICLASS}-classes",
        title="Multiclass segmentation on Pascal VOC: IoU per class",
        caption=(
            f"Validation IoU (%) per class of the runs in the table `{MULTICLASS}`, with its "
            "headings: on features, no network has seen a photograph. At the last iteration, "
            f"evaluated as the heading says. {LONGER_IS} Mean ± standard deviation over seeds. "
            f"Not a table of the paper. Filled by `{command(MULTICLASS)}`."
        ),
        row_title="class",
        columns=tuple(Column(name, variant_title(name), "%") for name in shown),
        blocks=tuple(blocks) or (Block("", (empty,)),),
    )


# -- the paper's tables ------------------------------------------------------------------------


def _fullest(
    found: Sequence[tuple[Cohort, str]], cells_of: Callable[[Cohort], Cells]
) -> tuple[Cells, str]:
    """Cells of the paper's set that has the most numbers, and its heading; "" where none is."""
    papers = [pair for pair in found if is_papers(pair[0]) and pair[0].batch_sizes == [PAPER_BATCH]]
    grids = [(cells_of(cohort), heading) for cohort, heading in papers]
    if not grids:
        return {}, ""
    most = max(grids, key=lambda grid: sum(cell.value is not None for cell in grid[0].values()))
    others = f" ({len(grids) - 1} more sets are not shown)" if len(grids) > 1 else ""
    return most[0], most[1] + others


def _validation(cohort: Cohort, variants: Sequence[str]) -> Cells:
    return {
        (name, column): over_seeds(cohort.select(name), f"{prefix}dataset_miou", "")
        for name in variants
        for column, (prefix, _) in REGIMES.items()
    }


def _on_server(cohort: Cohort, variants: Sequence[str]) -> Cells:
    return {
        (name, "test-crf"): over_seeds(cohort.select(name), f"{SERVER}dataset_miou", "")
        for name in variants
    }


def _classes_on_server(cohort: Cohort) -> Cells:
    printed = published_tables()["table-3"]
    return {
        (row, name): over_seeds(cohort.select(name), f"{SERVER}iou/{PRINTED.get(row, row)}", "")
        for row in printed.rows
        for name in printed.columns
    }


def _told(val_heading: str, test_heading: str) -> list[str]:
    """Notes that say which runs the numbers are of."""
    notes = [f"Paper-scale runs here: {val_heading}."] if val_heading else []
    return notes + ([f"Paper-scale runs on the test set: {test_heading}."] if test_heading else [])


# -- rows of the tables by scale ---------------------------------------------------------------


def _rows(store: RunStore, cohort: Cohort | None) -> tuple[Row, ...]:
    fill = command(MULTICLASS, cohort.profile) if cohort else command(MULTICLASS)
    keys = {column: f"{prefix}dataset_miou" for column, (prefix, _) in REGIMES.items()}
    keys |= {column: key for column, (key, _) in MEASURES.items()}
    rows = [before_training(store, cohort, keys)] if cohort else []
    for name in planned_variants(cohort):
        chosen = cohort.select(name) if cohort else []
        cells = [
            over_seeds(chosen, key, fill) if applies(cohort, column) else None
            for column, key in keys.items()
        ]
        seeds = count(cells[0]) if cells[0] else None
        rows.append(Row(name, variant_title(name), (*cells, seeds)))
    return tuple(row for row in rows if row is not None)


def before_training(store: RunStore, cohort: Cohort, keys: dict[str, str]) -> Row | None:
    """What the network scored before the first step, column -> metric; None where none is known."""
    cells = [initial(store, cohort.runs, key, "") for key in keys.values()]
    if all(cell.value is None for cell in cells):
        return None
    start = STARTS.get(dict(cohort.settings).get("model.weights", ""))
    label = f"{start}, before training" if start else "before training"
    return Row("initial", label, (*(c if c.value is not None else None for c in cells), None))


def applies(cohort: Cohort | None, column: str) -> bool:
    """Whether the runs of a set are evaluated in this way at all."""
    settings = dict(cohort.settings) if cohort else {}
    return settings.get(SETTING.get(column, "")) != "None"


def _last_regime(cohort: Cohort) -> str:
    """The last way of evaluating of which a set has the IoU of a class."""
    having = [
        regime
        for regime, (prefix, _) in REGIMES.items()
        if any(key.startswith(f"{prefix}iou/") for run in cohort.runs for key in run.metrics)
    ]
    return having[-1] if having else "val-single"


def _class_rows(cohort: Cohort, prefix: str, shown: Sequence[str]) -> tuple[Row, ...]:
    """A row per class, and their mean; blank where a variant or a class is not of the set."""
    fill = command(MULTICLASS, cohort.profile)
    planned, mean = planned_variants(cohort), f"{prefix}dataset_miou"
    keys = {name: f"{prefix}iou/{name}" for name in VOC.names} | {MEAN: mean}

    def cell(name: str, key: str) -> Cell | None:
        runs = cohort.select(name)
        found = over_seeds(runs, key, fill)
        scored = any(mean in run.metrics for run in runs)  # then the class does not occur
        return None if name not in planned or (found.value is None and scored) else found

    return tuple(
        Row(label, label, tuple(cell(name, key) for name in shown), better="higher")
        for label, key in keys.items()
    )
