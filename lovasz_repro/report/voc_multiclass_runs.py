"""Which stored runs of the multiclass VOC experiment (Sec. 4.3) stand together, and on what data.

A set holds one run per variant and seed, of one batch size. Runs that trained on the validation
images, for the test server, are sets of their own. Runs of the basis network are no part of any:
what it scores is the first validation of the runs that start from it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from lovasz_repro.config.schema import BASIS, experiments_folder, load_experiment
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    cohorts,
    headings,
    variant,
    with_batch_size,
)
from lovasz_repro.report.style import variant_order
from lovasz_repro.report.voc_binary_runs import data_title, papers_first

MULTICLASS = "voc-multiclass"
PAPER_BATCH = 10
"""Images per step, Sec. 4.3."""
AXES = ("data.equibatch", "training.iterations")
"""What variants change beside the loss."""
LONGER = "-30k"
"""Ending of the variants that train half as long again."""


def named_sets(store: RunStore) -> list[tuple[Cohort, str]]:
    """Runs that trained without the validation images, one batch size each, with headings.

    First those that may enter the paper's tables, then by scale, photographs before features.
    """
    return [
        (cohort.of_batch_size(size), with_batch_size(heading, size))
        for cohort, heading in named_cohorts(store)
        for size in cohort.batch_sizes
    ]


def named_cohorts(store: RunStore) -> list[tuple[Cohort, str]]:
    """The same with all batch sizes together."""
    return [pair for pair in _named(store) if not saw_validation(pair[0])]


def server_sets(store: RunStore) -> list[tuple[Cohort, str]]:
    """Runs that trained on the validation images too: they alone fill the test columns."""
    return [
        (cohort.of_batch_size(size), with_batch_size(heading, size))
        for cohort, heading in _named(store)
        if saw_validation(cohort)
        for size in cohort.batch_sizes
    ]


def saw_validation(cohort: Cohort) -> bool:
    """Whether the validation images were in the training."""
    return dict(cohort.settings).get("data.train_split", "train_aug") != "train_aug"


def planned_variants(cohort: Cohort | None) -> list[str]:
    """Variants of a set and those that its profile plans; without a set, those of the paper."""
    profile, scale = (cohort.profile, cohort.scale) if cohort else ("paper", "paper")
    stored = set(cohort.variants) if cohort else set()
    sizes = cohort.batch_sizes if cohort else [PAPER_BATCH]
    grid = _grid(experiments_folder() / f"{MULTICLASS}.yaml", profile, scale)
    return variant_order((stored | {name for name, size in grid if size in sizes}) - {BASIS})


@cache
def _grid(file: Path, profile: str, scale: str) -> frozenset[tuple[str, int]]:
    """Variants and batch sizes of a profile; none for one that was altered when it was run."""
    known = load_experiment(str(file))
    if profile not in known.profiles or known.profiles[profile].scale != scale:
        return frozenset()
    return frozenset((cell.variant, cell.training.batch_size) for cell in known.cells(profile))


def ten_first(found: Sequence[tuple[Cohort, str]]) -> list[tuple[Cohort, str]]:
    """Sets in the order in which a figure looks for one: as they come, batches of 10 first."""
    return sorted(found, key=lambda p: (papers_first(p[0]), p[0].batch_sizes != [PAPER_BATCH]))


def _named(store: RunStore) -> list[tuple[Cohort, str]]:
    """Every cohort without the basis network, each with a heading that names its data."""
    found = [part for cohort in cohorts(store, MULTICLASS, AXES) for part in _parts(cohort)]
    named = [
        (cohort, f"{data_title(cohort)}: {heading}, {_iterations(cohort.runs)}")
        for cohort, heading in zip(found, headings(found), strict=True)
    ]
    return sorted(named, key=lambda pair: papers_first(pair[0]))


def _parts(cohort: Cohort) -> list[Cohort]:
    """A cohort by the plan of its runs.

    Iterations and equibatch do not separate cohorts, for the variants differ in them. Two runs of
    one variant that differ in them are of two plans all the same.
    """
    runs = [run for run in cohort.runs if variant(run) != BASIS]
    plans = list(dict.fromkeys(_plan(run) for run in runs))
    parts = [tuple(run for run in runs if _plan(run) == plan) for plan in sorted(plans)]
    return [replace(cohort, runs=part) for part in parts]


def _plan(run: Run) -> tuple[float, bool]:
    """Iterations of the variants that do not train longer; whether equibatch is as named."""
    name, iterations = variant(run), float(run.params.get("training.iterations", "0"))
    base = iterations / 1.5 if name.endswith(LONGER) else iterations
    equibatch = run.params.get("data.equibatch", str("equibatch" in name)) == "True"
    return -round(base, 6), equibatch != ("equibatch" in name)


def _iterations(runs: Sequence[Run]) -> str:
    """ "20000 and 30000 iterations"; what a heading says of the variants that train longer."""
    found = sorted({int(run.params.get("training.iterations", "0")) for run in runs})
    return f"{' and '.join(str(number) for number in found)} iterations"
