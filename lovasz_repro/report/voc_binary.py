"""Tables of the binary VOC experiment (Sec. 4.2): the paper's Table 1, every set of runs, classes.

A run is one category against the rest under one loss; its metrics are fractions, shown ×100. Runs
on features that are drawn from the masks, and those of other scales, never enter the paper's table.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from lovasz_repro.report.cells import once, over_seeds
from lovasz_repro.report.model import Better, Block, Cell, Column, Row, Table, measured
from lovasz_repro.report.published import paper_table
from lovasz_repro.report.runs import Cohort, Run, RunStore, command, natural, seed, variant
from lovasz_repro.report.voc_binary_runs import (
    BASIS,
    BINARY,
    CATEGORIES,
    TRAINED,
    category,
    is_papers,
    loss_title,
    named_sets,
    shared_categories,
)

IOU = "val/image_iou"
BASIS_IOU = "basis/image_iou"
MEASURES: dict[str, tuple[str, str, Better]] = {
    "cross-entropy": ("val/cross_entropy", "cross-entropy", "lower"),
    "hinge": ("val/hinge", "hinge", "lower"),
    "lovasz-hinge": ("val/lovasz_hinge", "Lovász hinge", "lower"),
    "soft-iou": ("val/soft_iou", "soft IoU", "lower"),
    "image-iou": (IOU, "image-IoU", "higher"),
}
"""Row of the tables -> metric, title, which is better."""


def table_1(store: RunStore) -> Table:
    """Validation losses after training with each loss; paper-scale runs on photographs alone."""
    found = [(cohort, heading) for cohort, heading in named_sets(store) if is_papers(cohort)]
    if not found:
        return paper_table("table-1")
    grids = [(_paper_cells(cohort), heading) for cohort, heading in found]
    ours, heading = max(grids, key=lambda grid: sum(c.value is not None for c in grid[0].values()))
    table = paper_table("table-1", ours)
    others = f" {len(found) - 1} more: table `{BINARY}`." if len(found) > 1 else ""
    note = (
        f"Paper-scale runs here: {heading}.{others} Mean over the {len(CATEGORIES)} categories, a "
        "dash where one is missing; ± is over seeds."
    )
    return replace(table, notes=(*table.notes, note))


def voc_binary(store: RunStore) -> Table:
    """Validation losses of every stored set of binary runs, at any scale."""
    blocks = []
    for cohort, heading in named_sets(store):
        classes = shared_categories(cohort)
        blocks.append(Block(_with_classes(heading, classes), _rows(cohort, classes)))
    return Table(
        name=BINARY,
        title="Binary segmentation on Pascal VOC, by scale",
        caption=(
            f"Every stored set of runs of `{BINARY}`, whatever its data and scale, each under a "
            "heading that names them. This is not the paper's table: only paper-scale runs on "
            "photographs enter Table 1. Where a heading says features, these are noise drawn from "
            "the masks in the place of photographs, as Sec. 4.1 does for circles. Losses and "
            "image-IoU (×100) on validation images half of which show the category, after training "
            "with each loss; the basis network is the one trained for all categories. Mean ± "
            "standard deviation over the categories that every loss of the set has, each category "
            f"first averaged over seeds. Filled by `{command(BINARY)}`."
        ),
        row_title="validation measure",
        columns=_columns("trained with "),
        blocks=tuple(blocks) or (Block("", _rows(None, ())),),
    )


def voc_binary_classes(store: RunStore) -> Table:
    """Validation image-IoU of every category under each loss."""
    blocks = [Block(heading, _class_rows(cohort)) for cohort, heading in named_sets(store)]
    empty = Row("mean", "mean", (Cell(command=command(BINARY)),) * (len(TRAINED) + 1))
    return Table(
        name=f"{BINARY}-classes",
        title="Binary segmentation on Pascal VOC: image-IoU per category",
        caption=(
            f"Validation image-IoU (×100) per category of the runs in the table `{BINARY}`, with "
            "its headings: on features, no network has seen a photograph. Mean ± standard "
            "deviation over seeds. The last row is the mean over the categories that every loss "
            f"of the set has. Not a table of the paper. Filled by `{command(BINARY)}`."
        ),
        row_title="category",
        columns=_columns(""),
        blocks=tuple(blocks) or (Block("", (empty,)),),
    )


# -- numbers -----------------------------------------------------------------------------------


def per_category(runs: Sequence[Run], key: str) -> dict[str, float]:
    """Category -> mean of a metric over its runs; what is not a number is left out."""
    values: dict[str, list[float]] = {}
    for run in _having(runs, key):
        values.setdefault(category(run), []).append(run.metrics[key])
    return {name: fmean(found) for name, found in values.items()}


def _over_categories(runs: Sequence[Run], key: str, classes: Sequence[str], fill: str) -> Cell:
    """Mean and spread over categories; missing where one of them is."""
    means = per_category(runs, key)
    if not set(classes) <= set(means):
        return Cell(command=fill)
    used = [run for run in _having(runs, key) if category(run) in classes]
    return measured([means[name] for name in classes], used, fill, factor=100)


def _all_over_seeds(runs: Sequence[Run], key: str, fill: str) -> Cell:
    """Mean over all 20 categories of each seed that has them; mean and spread over those seeds."""
    means, used = [], []
    for number in sorted({seed(run) for run in runs}, key=natural):
        of_seed = [run for run in _having(runs, key) if seed(run) == number]
        found = per_category(of_seed, key)
        if set(found) == set(CATEGORIES):
            means.append(fmean(found.values()))
            used += of_seed
    return measured(means, used, fill, factor=100)


def _having(runs: Sequence[Run], key: str) -> list[Run]:
    return [run for run in runs if math.isfinite(run.metrics.get(key, math.nan))]


# -- rows --------------------------------------------------------------------------------------


def _paper_cells(cohort: Cohort) -> dict[tuple[str, str], Cell]:
    fill = command(BINARY)
    cells = {
        (row, name): _all_over_seeds(cohort.select(name), key, fill)
        for row, (key, *_) in MEASURES.items()
        for name in TRAINED
    }
    return cells | {("image-iou", BASIS): _all_over_seeds(cohort.runs, BASIS_IOU, fill)}


def _rows(cohort: Cohort | None, classes: Sequence[str]) -> tuple[Row, ...]:
    fill = command(BINARY, cohort.profile) if cohort else command(BINARY)
    rows = []
    for row, (key, title, better) in MEASURES.items():
        cells: list[Cell | None] = [
            _over_categories(cohort.select(name) if cohort else [], key, classes, fill)
            for name in TRAINED
        ]
        runs = cohort.runs if cohort else ()
        basis = _over_categories(runs, BASIS_IOU, classes, fill) if row == "image-iou" else None
        rows.append(Row(row, title, (*cells, basis), better))
    return tuple(rows)


def _class_rows(cohort: Cohort) -> tuple[Row, ...]:
    fill = command(BINARY, cohort.profile)
    rows = []
    for name in CATEGORIES:
        runs = [run for run in cohort.runs if category(run) == name]
        if runs:
            cells = [over_seeds([r for r in runs if variant(r) == t], IOU, fill) for t in TRAINED]
            basis = [(run, run.metrics[BASIS_IOU]) for run in _having(runs, BASIS_IOU)]
            rows.append(Row(name, name, (*cells, once(basis, fill)), "higher"))
    shared = shared_categories(cohort)
    means = [_over_categories(cohort.select(t), IOU, shared, fill) for t in TRAINED]
    means.append(_over_categories(cohort.runs, BASIS_IOU, shared, fill))
    label = "mean" if len(shared) == len(rows) else f"mean of {len(shared)} categories"
    return (*rows, Row("mean", label, tuple(replace(m, spread=None) for m in means), "higher"))


def _columns(prefix: str) -> tuple[Column, ...]:
    trained = (Column(name, prefix + loss_title(name)) for name in TRAINED)
    return (*trained, Column(BASIS, loss_title(BASIS)))


def _with_classes(heading: str, classes: Sequence[str]) -> str:
    return heading if len(classes) == len(CATEGORIES) else f"{heading}, {_counted(len(classes))}"


def _counted(classes: int) -> str:
    noun = "category" if classes == 1 else "categories"
    return f"{classes} {noun} of {len(CATEGORIES)}"
