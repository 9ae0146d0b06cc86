"""Which stored runs of the binary VOC experiment (Sec. 4.2) stand together, and on what data.

A set is one run per loss, category and seed. Runs of the basis network are no part of it: what that
network scores on a category's images is stored with the binary runs.
"""

from dataclasses import replace

from lovasz_repro.data.palettes import VOC
from lovasz_repro.report.runs import (
    SCALES,
    Cohort,
    Run,
    RunStore,
    cohorts,
    headings,
    variant,
    with_batch_size,
)
from lovasz_repro.report.style import LOSSES

BINARY = "voc-binary"
BASIS = "basis"
"""The network for all categories, which every binary run starts from."""
TRAINED = ("cross-entropy", "hinge", "lovasz-hinge", "soft-iou")
"""Losses that binary networks are trained with: variants of the experiment."""
CATEGORIES = VOC.names[1:]
AXES = ("data.category",)
"""What runs of a set differ in beside variant and seed."""
FOLDERS = {
    "voc": "Pascal VOC 2012",
    "voc-demo": "drawn pictures in the layout of Pascal VOC",
}


def named_sets(store: RunStore) -> list[tuple[Cohort, str]]:
    """Binary runs that may stand together, and a heading that names their data.

    First those that may enter the paper's table, then by scale, photographs before features.
    Runs of the basis network are left out: what it scores is stored with the binary runs.
    """
    every = [_binary(cohort) for cohort in cohorts(store, BINARY, AXES)]
    found = [cohort for cohort in every if cohort.runs]
    named = [
        (cohort.of_batch_size(size), f"{data_title(cohort)}: {with_batch_size(heading, size)}")
        for cohort, heading in zip(found, headings(found), strict=True)
        for size in cohort.batch_sizes
    ]
    return sorted(named, key=lambda pair: papers_first(pair[0]))


def is_papers(cohort: Cohort) -> bool:
    """Whether a set may stand in the paper's table: its scale, its photographs."""
    return cohort.scale == "paper" and _folder(cohort) == "voc" and not on_features(cohort)


def on_features(cohort: Cohort) -> bool:
    """Whether the networks saw features drawn from the masks, and no photograph."""
    return dict(cohort.settings).get("data.images", "photographs") != "photographs"


def data_title(cohort: Cohort) -> str:
    """What the networks of a set were trained and scored on."""
    folder = _folder(cohort)
    title = FOLDERS.get(folder, f"data in {folder}")
    if on_features(cohort):
        real = "real " if folder == "voc" else ""
        return f"Evidence drawn from the {real}masks ({title})"
    return title[0].upper() + title[1:]


def category(run: Run) -> str:
    """The category that a run tells from the rest."""
    return run.params.get("data.category", "")


def losses_of(cohort: Cohort) -> list[str]:
    """Losses that a set has runs of, in the order of the tables."""
    return [name for name in TRAINED if name in cohort.variants]


def loss_title(name: str) -> str:
    """A loss (or the basis network) as a reader sees it."""
    return "basis network" if name == BASIS else LOSSES[name.replace("-", "_")][0]


def shared_categories(cohort: Cohort) -> list[str]:
    """Categories that every loss of a set has a run of: over these its losses may be compared."""
    of_each = [{category(run) for run in cohort.select(name)} for name in losses_of(cohort)]
    return [name for name in CATEGORIES if all(name in categories for categories in of_each)]


def _binary(cohort: Cohort) -> Cohort:
    kept = (r for r in cohort.runs if variant(r) in TRAINED and category(r) in CATEGORIES)
    return replace(cohort, runs=tuple(kept))


def papers_first(cohort: Cohort) -> tuple[bool, int, bool]:
    """Sort key: those that may enter the paper's table, then by scale, photographs first."""
    scale = SCALES.index(cohort.scale) if cohort.scale in SCALES else len(SCALES)
    return not is_papers(cohort), scale, on_features(cohort)


def _folder(cohort: Cohort) -> str:
    """Folder of the data; "None" means the one that is called as the data set."""
    folder = dict(cohort.settings).get("data.folder", "voc")
    return "voc" if folder == "None" else folder
