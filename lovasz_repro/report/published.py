"""The paper's own tables: numbers in ``experiments/published.yaml``, ours beside them.

They hold paper-scale runs on the paper's data alone; on Pascal VOC, on photographs. There scores
are those of the last iteration, as in the paper.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal

from pydantic import Field, model_validator

from lovasz_repro.config.read import Strict, read_yaml, validate
from lovasz_repro.config.schema import experiments_folder
from lovasz_repro.config.tables import SCORE_TITLES
from lovasz_repro.report.claims_schema import Claim, Operand
from lovasz_repro.report.model import Better, Block, Cell, Column, Table, TableRow
from lovasz_repro.report.runs import Cohort, Moment, RunStore, command
from lovasz_repro.report.scores import (
    OverBatches,
    Score,
    all_over_seeds,
    once,
    over_seeds,
)
from lovasz_repro.report.sets import (
    BINARY,
    ENET_RUNS,
    MULTICLASS,
    PAPER_BATCH,
    VOC_CATEGORIES,
    Found,
    is_papers,
    named_cohorts,
    named_sets,
    server_sets,
)
from lovasz_repro.report.style import LOVASZ
from lovasz_repro.report.words import sentence

Cells = dict[tuple[str, str], Cell]
"""(row key, column key) -> cell."""

Printed = float | Literal["none", "n/a"]
"""A number; "none": the paper leaves the cell empty; "n/a": the cell does not apply."""


class Reads(Strict):
    """Where a run stores what the paper prints; a row and a column name parts of it."""

    variant: str | None = None
    metric: str | None = None
    at: Moment | None = None


class PublishedColumn(Strict):
    """A column of a printed table."""

    title: str
    reads: Reads = Reads()
    better: Better | None = None
    command: str | None = None
    """What fills this column, where it is not the table's command."""


class PublishedRow(Strict):
    """A row of a printed table, with its numbers in the order of the columns."""

    title: str
    better: Better | None = None
    command: str | None = None
    block: str = ""
    """Heading that the row stands under."""
    reads: Reads = Reads()
    values: list[Printed]
    spreads: list[float] = Field(default_factory=list)
    """What the paper prints after ±, where it does."""


class PublishedTable(Strict):
    """A table as the paper prints it."""

    title: str
    place: str
    caption: str
    command: str
    """What fills the table."""
    experiment: str = ""
    """Whose runs store what its cells `read`."""
    unit: str
    row_title: str
    columns: dict[str, PublishedColumn] = Field(min_length=1)
    rows: dict[str, PublishedRow] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _rows_fit_columns(self) -> "PublishedTable":
        for key, row in self.rows.items():
            for name, numbers in (("values", row.values), ("spreads", row.spreads or row.values)):
                if len(numbers) != len(self.columns):
                    raise ValueError(f"row {key} has {len(numbers)} {name}, "
                                     f"the table {len(self.columns)} columns")  # fmt: skip
        return self

    def reads(self) -> Iterator[tuple[str, str, Operand, Printed]]:
        """Row, column, what a run stores there, and what is printed, of cells that say it."""
        for key, row in self.rows.items():
            for (name, column), value in zip(self.columns.items(), row.values, strict=True):
                variant = column.reads.variant or row.reads.variant
                metric = column.reads.metric or row.reads.metric
                if variant and metric and value != "n/a":
                    at = column.reads.at or row.reads.at or "last"
                    yield key, name, Operand(variant, metric, at), value


class PublishedFile(Strict):
    """``experiments/published.yaml``."""

    tables: dict[str, PublishedTable]


@cache
def published_tables() -> dict[str, PublishedTable]:
    """Every table of the paper, by name.

    Raises:
        UserError: the file is missing or holds something else.
    """
    path = experiments_folder() / "published.yaml"
    return validate(PublishedFile, read_yaml(path), path.name).tables


def printed_numbers(claim: Claim) -> dict[Operand, tuple[str, float]]:
    """What the paper prints of the numbers that a claim's rule reads, each with its title.

    Raises:
        UserError: as `published_tables`.
    """
    if claim.rule is None:
        return {}
    printed = {
        operand: (f"{table.rows[row].title}, {table.columns[column].title}", value)
        for table in published_tables().values()
        if table.experiment == claim.experiment
        for row, column, operand, value in table.reads()
        if isinstance(value, float)
    }
    return {operand: printed[operand] for operand in claim.rule.operands() if operand in printed}


def fullest(
    found: Found, cells_of: Callable[[Cohort], Cells], table: str = "", about: str = "here"
) -> tuple[Cells, str]:
    """Cells of the paper's set that has the most numbers, and the note that says which it is.

    Args:
        found: sets and their headings; those that are not the paper's are left out.
        cells_of: what a set fills.
        table: which table shows all sets.
        about: what the runs are of.
    """
    grids = [(cells_of(cohort), heading) for cohort, heading in found if is_papers(cohort)]
    if not grids:
        return {}, ""
    cells, heading = max(grids, key=lambda grid: sum(c.value is not None for c in grid[0].values()))
    more, others = len(grids) - 1, "more-in-table" if table else "more-not-shown"
    told = sentence(others, more=more, table=table) if more else ""
    return cells, sentence("papers-runs", about=about, heading=heading, others=told)


def paper_table(name: str, ours: Cells | None = None, *notes: str) -> Table:
    """A table of the paper with our numbers beside the printed ones.

    Args:
        name: its key in the file.
        ours: cells from paper-scale runs; the rest are dashes.
        notes: more of them; empty ones are left out.

    Raises:
        ValueError: a cell comes from a run of another scale.
    """
    printed = published_tables()[name]
    headings = list(dict.fromkeys(row.block for row in printed.rows.values()))
    rows = {key: _row(printed, key, ours or {}) for key in printed.rows}
    return Table(
        name=name,
        title=f"{printed.place}: {printed.title}",
        caption=printed.caption,
        row_title=printed.row_title,
        columns=tuple(
            Column(key, column.title, printed.unit, better=column.better)
            for key, column in printed.columns.items()
        ),
        blocks=tuple(
            Block(
                heading, tuple(rows[k] for k, row in printed.rows.items() if row.block == heading)
            )
            for heading in headings
        ),
        notes=tuple(note for note in (*printed.notes, *notes) if note),
    )


def _row(printed: PublishedTable, key: str, ours: Cells) -> TableRow:
    row = printed.rows[key]
    spreads: Sequence[float | None] = row.spreads or [None] * len(row.values)
    cells = tuple(
        _cell(value, spread, ours.get((key, name)),
              column.command or row.command or printed.command)
        for (name, column), value, spread in zip(
            printed.columns.items(), row.values, spreads, strict=True,
        )
    )  # fmt: skip
    return TableRow(key, row.title, cells, row.better)


def _cell(value: Printed, spread: float | None, ours: Cell | None, command: str) -> Cell | None:
    if value == "n/a":
        return None
    published = value if isinstance(value, float) else None
    ours = ours or Cell(command=command)
    foreign = [s.name for s in ours.sources if s.scale != "paper"]
    if foreign:
        raise ValueError(f"{foreign[0]} is no paper-scale run: it cannot stand in a paper table")
    return Cell(ours.value, ours.spread, ours.n, ours.sources, published, spread, command)


# -- ours beside the paper's -------------------------------------------------------------------

IOU_OF_IMAGE, BASIS_IOU = "val/image_iou", "basis/image_iou"
MEASURES: dict[str, tuple[str, str, Better]] = {
    **{
        score.replace("_", "-"): (f"val/{score}", title, "lower")
        for score, title in SCORE_TITLES.items()
    },
    "image-iou": (IOU_OF_IMAGE, "image-IoU", "higher"),
}
"""Rows of the tables of Sec. 4.2 -> metric, title, which is better."""
SCORES = {
    "class-iou": "dataset_miou",
    "class-iiou": "class_iiou",
    "category-iou": "category_iou",
    "category-iiou": "category_iiou",
}
"""Columns of Table 4 and the names of their metrics, without the split."""
STREET_TITLES = ("Class IoU", "Class iIoU", "Cat. IoU", "Cat. iIoU")
CITYSCAPES_SCORES = tuple(
    Score(key, title, (f"val/{metric}",), "best")
    for (key, metric), title in zip(SCORES.items(), STREET_TITLES, strict=True)
)
SERVER, ON_SERVER = "server/", "on the test set"
"""What the names of the scores of an evaluation server begin with, and where they are of."""


def table_1(store: RunStore) -> Table:
    """Validation losses after training with each loss."""

    def cell(cohort: Cohort, operand: Operand) -> Cell:
        of_basis = operand.metric == BASIS_IOU  # all runs start from it
        runs = cohort.runs if of_basis else cohort.select(operand.variant)
        return all_over_seeds(runs, operand.metric, "")

    ours, note = _as_read("table-1", named_sets(store, BINARY), cell, BINARY)
    told = sentence("over-categories", categories=len(VOC_CATEGORIES))
    return paper_table("table-1", ours, note and f"{note} {told}")


def table_2(store: RunStore) -> Table:
    """Validation and test mIoU under each regime."""
    val, val_note = _as_read("table-2", _of_ten(named_sets(store, MULTICLASS)), _of_seeds)
    test, test_note = _as_read("table-2", _of_ten(server_sets(store)), _of_seeds, about=ON_SERVER)
    return paper_table("table-2", val | test, val_note, test_note)


def table_3(store: RunStore) -> Table:
    """Test IoU of every class, of runs that trained on the validation images too."""
    found = _of_ten(server_sets(store))
    return paper_table("table-3", *_as_read("table-3", found, _of_seeds, about=ON_SERVER))


def decision_rule(store: RunStore) -> Table:
    """The paper's three numbers."""

    def cell(cohort: Cohort, operand: Operand) -> Cell:
        return OverBatches.of(store, cohort.select(operand.variant), operand.metric).cell("")

    found, every = _of_ten(named_sets(store, MULTICLASS)), "decision-rule-by-scale"
    ours, note = _as_read("decision-rule", found, cell, every)
    told = sentence("over-batches")
    return paper_table("decision-rule", ours, note and f"{note} {told}")


def _as_read(
    name: str,
    found: Found,
    cell: Callable[[Cohort, Operand], Cell],
    every: str = "",
    about: str = "here",
) -> tuple[Cells, str]:
    """Cells of a table that say what they read: the server's scores, or all others; as `fullest`
    has them."""
    reads = {
        (row, column): operand
        for row, column, operand, _ in published_tables()[name].reads()
        if operand.metric.startswith(SERVER) == (about == ON_SERVER)
    }
    return fullest(found, lambda c: {k: cell(c, read) for k, read in reads.items()}, every, about)


def _of_ten(found: Found) -> Found:
    return [pair for pair in found if pair[0].batch_sizes == [PAPER_BATCH]]


def _of_seeds(cohort: Cohort, operand: Operand) -> Cell:
    return over_seeds(cohort.select(operand.variant), operand.metric)


def table_4(store: RunStore) -> Table:
    """Cityscapes scores before and after fine-tuning."""

    def cells_of(cohort: Cohort) -> Cells:
        tuned, fill = cohort.select(LOVASZ, PAPER_BATCH), command(ENET_RUNS)
        ours: Cells = {}
        for score, name in zip(CITYSCAPES_SCORES, SCORES.values(), strict=True):
            sent = f"initial/{SERVER}{name}"
            scored = [(run, run.metrics[sent]) for run in cohort.runs if sent in run.metrics]
            ours["enet-test", score.key] = once(scored, fill)
            ours["finetuned-test", score.key] = over_seeds(tuned, f"{SERVER}{name}", fill)
            ours["enet-val", score.key] = score.before(store, cohort.runs, fill)
            ours["finetuned-val", score.key] = score.after(store, tuned, fill)
        return ours

    return paper_table("table-4", *fullest(named_cohorts(store, ENET_RUNS), cells_of, ENET_RUNS))
