"""Every table of the report: one function that reads a store, one line in ``TABLES``."""

from collections.abc import Callable, Sequence

from lovasz_repro.report.cells import at_best_over_seeds, count, initial, over_seeds
from lovasz_repro.report.cityscapes import (
    camvid_as_cityscapes,
    camvid_as_cityscapes_classes,
    cityscapes_enet,
    table_4,
)
from lovasz_repro.report.model import Block, Cell, Column, Row, Table, measured
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    cohorts,
    command,
    headings,
    with_batch_size,
)
from lovasz_repro.report.style import LOSSES, variant_order, variant_title
from lovasz_repro.report.voc_binary import table_1, voc_binary, voc_binary_classes
from lovasz_repro.report.voc_multiclass import (
    table_2,
    table_3,
    voc_multiclass,
    voc_multiclass_classes,
)
from lovasz_repro.report.voc_multiclass_batches import decision_rule, decision_rule_by_scale
from lovasz_repro.report.voc_multiclass_measures import voc_measures

CAMVID = "camvid-enet"
CAMVID_VARIANTS = {"weighted-cross-entropy", "lovasz-softmax", "sum"}
"""Rows of its tables, also before they are run."""
MEAN = "mean of the classes"


def synthetic(store: RunStore) -> Table:
    """Sec. 4.1 in numbers: where each loss has its minimum, and what that costs in Jaccard."""
    found = cohorts(store, "synthetic")
    blocks = [
        Block(heading, _synthetic_rows(store, run))
        for cohort, heading in zip(found, headings(found), strict=True)
        for run in cohort.runs
    ]
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
            Column("seeds", "seeds", digits=0),
        ),
        blocks=tuple(blocks) or (Block("", _synthetic_rows(store, None)),),
    )


def camvid_enet(store: RunStore) -> Table:
    """The ENet authors' network on CamVid, before and after fine-tuning with each variant."""
    found = cohorts(store, CAMVID)
    blocks = [
        Block(with_batch_size(heading, size), _camvid_rows(store, cohort.of_batch_size(size)))
        for cohort, heading in zip(found, headings(found), strict=True)
        for size in cohort.batch_sizes
    ]
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
        columns=(
            Column("val", "val dataset-mIoU", "%", better="higher"),
            Column("test", "test dataset-mIoU", "%", better="higher"),
            Column("test-image", "test image-mIoU", "%", better="higher"),
            Column("seeds", "seeds", digits=0),
        ),
        blocks=tuple(blocks) or (Block("", _camvid_rows(store, None)),),
    )


def camvid_enet_classes(store: RunStore) -> Table:
    """Test IoU of every CamVid class, before and after fine-tuning."""
    found = cohorts(store, CAMVID)
    shown = variant_order({name for c in found for name in c.variants} | CAMVID_VARIANTS)
    blocks = [
        Block(with_batch_size(heading, size), _class_rows(store, cohort.of_batch_size(size), shown))
        for cohort, heading in zip(found, headings(found), strict=True)
        for size in cohort.batch_sizes
    ]
    empty = Row(MEAN, MEAN, (Cell(command=command(CAMVID)),) * (1 + len(shown)))
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
        blocks=tuple(blocks) or (Block("", (empty,)),),
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


def _synthetic_rows(store: RunStore, run: Run | None) -> tuple[Row, ...]:
    """Rows of one stored search; every step of a metric's history is a seed."""
    rows = []
    for loss, (title, _) in LOSSES.items():
        cells = []
        for key, factor in (("argmin", 1.0), ("jaccard_at_argmin", 100.0), ("excess", 100.0)):
            history = store.history(run.run_id, f"{key}/{loss}") if run else []
            values = [value for _, value in history]
            cells.append(
                measured(values, [run] if run else [], command("synthetic"), factor=factor)
            )
        rows.append(Row(loss, title, (*cells, count(cells[0]))))
    return tuple(rows)


def _camvid_rows(store: RunStore, cohort: Cohort | None) -> tuple[Row, ...]:
    fill = command(CAMVID, cohort.profile) if cohort else command(CAMVID)
    runs = cohort.runs if cohort else ()
    before = [
        initial(store, runs, key, fill)
        for key in ("val/dataset_miou", "test/dataset_miou", "test/image_miou")
    ]
    rows = [Row("initial", "initial network, before training", (*before, None))]
    for name in variant_order({r.tags.get("variant", "") for r in runs} | CAMVID_VARIANTS):
        chosen = cohort.select(name) if cohort else []
        cells = (
            at_best_over_seeds(store, chosen, "val/dataset_miou", fill),
            over_seeds(chosen, "test/dataset_miou", fill),
            over_seeds(chosen, "test/image_miou", fill),
        )
        rows.append(Row(name, variant_title(name), (*cells, count(cells[1]))))
    return tuple(rows)


def _class_rows(store: RunStore, cohort: Cohort, shown: Sequence[str]) -> tuple[Row, ...]:
    fill = command(CAMVID, cohort.profile)
    runs = cohort.runs
    prefix = "test/iou/"
    classes = sorted(
        {k.removeprefix(prefix) for r in runs for k in r.metrics if k.startswith(prefix)}
    )
    keys = [(name, prefix + name) for name in classes] + [(MEAN, "test/dataset_miou")]
    return tuple(
        Row(
            name,
            name,
            (
                initial(store, runs, key, fill),
                *(over_seeds(cohort.select(variant), key, fill) for variant in shown),
            ),
            better="higher",
        )
        for name, key in keys
    )
