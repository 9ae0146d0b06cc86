"""Which sets of stored runs the tables and figures of an experiment show, and on what data.

Runs of the basis network of Pascal VOC are no part of any: what it scores is stored with the runs
that start from it.
"""

from collections.abc import Sequence

from lovasz_repro.config.schema import BASIS, ExperimentConfig
from lovasz_repro.config.tables import SCORE_TITLES
from lovasz_repro.data.classes import VOC
from lovasz_repro.report.runs import (
    SCALES,
    Cohort,
    Remembered,
    Run,
    RunStore,
    batch_size,
    cohorts,
    headings,
    setting,
    shipped,
    variant,
    with_batch_size,
)
from lovasz_repro.report.style import variant_order

CAMVID_RUNS, CAMVID_LAYOUT, ENET_RUNS = "camvid-enet", "camvid-as-cityscapes", "cityscapes-enet"
BINARY, MULTICLASS = "voc-binary", "voc-multiclass"
SETTINGS_APART = {
    BINARY: ("data.category",),
    MULTICLASS: ("training.iterations",),
    "own": ("training.lr", "training.iterations", "model.weights"),
}
"""Experiment -> what its runs differ in beside seed, loss and equibatch."""
TOLD_OTHERWISE = {"own": ("data.folder", "data.classes", "model.name", "model.callable")}
"""Experiment -> settings that no heading needs: tables say in their words what these are."""
DATA = {
    "synthetic": "circles",
    BINARY: "voc",
    MULTICLASS: "voc",
    ENET_RUNS: "cityscapes",
    CAMVID_LAYOUT: "camvid-cityscapes",
    CAMVID_RUNS: "camvid",
}
"""Experiment -> folder of its data."""
FOLDERS = {
    "circles": "noisy circles",
    "voc": "Pascal VOC 2012",
    "voc-demo": "drawn pictures in the layout of Pascal VOC",
    "cityscapes": "Cityscapes",
    "cityscapes-demo": "drawn streets in the layout of Cityscapes",
    "camvid-cityscapes": "CamVid in the layout of Cityscapes",
    "camvid": "CamVid",
}
PAPER_BATCH = 10
"""Images per step, Sec. 4.3 and 4.4."""
TRAINED_SCORES = tuple(score.replace("_", "-") for score in SCORE_TITLES)
"""Losses that binary networks are trained with: variants of the experiment."""
VOC_CATEGORIES = VOC.names[1:]
LONGER = "-30k"
"""Ending of the variants on all classes that train half as long again."""

Found = Sequence[tuple[Cohort, str]]
"""Sets of runs and their headings."""
Setting = tuple[str, int]
"""Variant and batch size."""


def named_cohorts(store: RunStore, experiment: str) -> list[tuple[Cohort, str]]:
    """Runs that may stand together, all batch sizes, and a heading that names their data.

    First those that may enter the paper's tables, then by scale, photographs before features. On
    all classes of VOC, runs that trained on the validation images are left out.
    """
    return [pair for pair in _named(store, experiment) if not saw_validation(pair[0])]


def named_sets(store: RunStore, experiment: str) -> list[tuple[Cohort, str]]:
    """The same, of one batch size each."""
    return _by_batch_size(named_cohorts(store, experiment))


def server_sets(store: RunStore) -> list[tuple[Cohort, str]]:
    """Runs on VOC that trained on the validation images too: they alone fill the test columns."""
    found = _named(store, MULTICLASS)
    return _by_batch_size([pair for pair in found if saw_validation(pair[0])])


def ten_first(found: Found) -> list[tuple[Cohort, str]]:
    """Sets in the order in which a figure looks for one: as they come, batches of 10 first."""
    return sorted(found, key=lambda p: (papers_first(p[0]), p[0].batch_sizes != [PAPER_BATCH]))


def saw_validation(cohort: Cohort) -> bool:
    """Whether the validation images were in the training."""
    of_voc = cohort.experiment == MULTICLASS
    return of_voc and cohort.setting("data.train_split", "train_aug") != "train_aug"


def is_papers(cohort: Cohort) -> bool:
    """Whether a set may stand in the paper's tables: its scale, its photographs."""
    own = DATA.get(cohort.experiment) == _folder(cohort)
    return cohort.scale == "paper" and own and not on_features(cohort)


def on_features(cohort: Cohort) -> bool:
    """Whether the networks saw features drawn from the masks, and no photograph."""
    return cohort.setting("data.images", "photographs") != "photographs"


def data_name(cohort: Cohort) -> str:
    """What the networks of a set were trained and scored on."""
    folder = _folder(cohort)
    name = FOLDERS.get(folder, f"data in {folder}")
    if on_features(cohort):
        real = "real " if folder == "voc" else ""
        return f"evidence drawn from the {real}masks ({name})"
    return name


def data_title(cohort: Cohort) -> str:
    """The same with a capital letter first."""
    name = data_name(cohort)
    return name[0].upper() + name[1:]


def papers_first(cohort: Cohort) -> tuple[bool, int, bool]:
    """Sort key: those that may enter the paper's table, then by scale, photographs first."""
    scale = SCALES.index(cohort.scale) if cohort.scale in SCALES else len(SCALES)
    return not is_papers(cohort), scale, on_features(cohort)


def settings_of(experiment: str, cohort: Cohort | None) -> list[Setting]:
    """Variants and batch sizes that a cohort has and that its profile plans; without a cohort,
    those of the paper."""
    profile, scale = (cohort.profile, cohort.scale) if cohort else ("paper", "paper")
    stored = {(variant(run), batch_size(run)) for run in cohort.runs} if cohort else set()
    return in_order(stored | _planned(shipped(experiment), profile, scale))


def planned_variants(experiment: str, cohort: Cohort | None) -> list[str]:
    """Variants of ``settings_of`` of the batch sizes that a set has."""
    sizes = cohort.batch_sizes if cohort else [PAPER_BATCH]
    names = {name for name, size in settings_of(experiment, cohort) if size in sizes}
    return variant_order(names - {BASIS})


def in_order(found: set[Setting]) -> list[Setting]:
    """By variant as everywhere, then by batch size."""
    names = variant_order({name for name, _ in found})
    return sorted(found, key=lambda setting: (names.index(setting[0]), setting[1]))


def _planned(known: ExperimentConfig, profile: str, scale: str) -> set[Setting]:
    """Variants and batch sizes of a profile; none for one that was altered when it was run."""
    if profile not in known.profiles or known.profiles[profile].scale != scale:
        return set()
    return {(cell.variant, cell.training.batch_size) for cell in known.cells(profile)}


# -- one category against the rest -------------------------------------------------------------


def category(run: Run) -> str:
    """The category that a run tells from the rest."""
    return str(setting(run, "data.category", ""))


def losses_of(cohort: Cohort) -> list[str]:
    """Losses that a set has runs of, in the order of the tables."""
    return [name for name in TRAINED_SCORES if name in cohort.variants]


def loss_title(name: str) -> str:
    """A loss (or the basis network) as a reader sees it."""
    return "basis network" if name == BASIS else SCORE_TITLES[name.replace("-", "_")]


def shared_categories(cohort: Cohort) -> list[str]:
    """Categories that every loss of a set has a run of: over these its losses may be compared."""
    of_each = [{category(run) for run in cohort.select(name)} for name in losses_of(cohort)]
    return [name for name in VOC_CATEGORIES if all(name in categories for categories in of_each)]


# -- what optimising each measure does to the others (Sec. 3.1) --------------------------------

FEATURES = "features"
"""Profile of the study."""
STUDIED = {
    "x-loss": "cross-entropy",
    "x-loss-equibatch": "cross-entropy + equibatch",
    "lovasz": "Lovász-Softmax, batch, present classes",
    "lovasz-equibatch": "Lovász-Softmax, batch, present classes + equibatch",
    "lovasz-all-classes": "Lovász-Softmax, batch, all classes",
    "lovasz-per-image-present": "Lovász-Softmax, image, present classes",
    "lovasz-per-image": "Lovász-Softmax, image, all classes",
}
"""Variants of the study, in order, and titles: the loss is taken over the batch or image by image,
averaged over present or all classes."""
MEASURED = {
    "dataset": "val/dataset_miou",
    "image": "val/image_miou",
    "batch": "val/batch_miou",
}
"""What they are measured by."""


def studies(store: RunStore, experiment: str = MULTICLASS) -> list[tuple[Cohort, str]]:
    """Sets of runs on features with a variant of the study, all batch sizes, with headings."""
    return [
        (cohort, heading)
        for cohort, heading in named_cohorts(store, experiment)
        if on_features(cohort) and set(cohort.variants) & set(STUDIED)
    ]


def studied_sets(store: RunStore, experiment: str = MULTICLASS) -> list[tuple[Cohort, str]]:
    """The same, of one batch size each."""
    sizes = [(*pair, studied_batch(pair[0])) for pair in studies(store, experiment)]
    return [(c.of_batch_size(size), with_batch_size(text, size)) for c, text, size in sizes]


def studied_batch(cohort: Cohort) -> int:
    """Batches of 10, as in the paper; where there are none, the largest."""
    sizes = cohort.batch_sizes
    return PAPER_BATCH if PAPER_BATCH in sizes else max(sizes)


# -- how cohorts become sets -------------------------------------------------------------------


def _by_batch_size(found: Found) -> list[tuple[Cohort, str]]:
    return [
        (cohort.of_batch_size(size), with_batch_size(heading, size))
        for cohort, heading in found
        for size in cohort.batch_sizes
    ]


def plans(store: RunStore, experiment: str) -> list[tuple[Cohort, str]]:
    """Cohorts of an experiment as reports and claims see them, with headings."""
    kept = store.plans if isinstance(store, Remembered) else {}
    if experiment not in kept:
        kept[experiment] = _plans(store, experiment)
    return kept[experiment]


def _plans(store: RunStore, experiment: str) -> list[tuple[Cohort, str]]:
    found = cohorts(
        store,
        experiment,
        SETTINGS_APART.get(experiment, ()),
        PARTS.get(experiment, lambda run: 0.0),
    )
    told = zip(found, headings(found, TOLD_OTHERWISE.get(experiment, ())), strict=True)
    return [(cohort, f"{heading}{_iterations(cohort)}") for cohort, heading in told]


def _named(store: RunStore, experiment: str) -> list[tuple[Cohort, str]]:
    named = [(cohort, f"{_data(cohort)}{heading}") for cohort, heading in plans(store, experiment)]
    return sorted(named, key=lambda pair: papers_first(pair[0]))


def _plan(run: Run) -> float | None:
    """Iterations of the variants that do not train longer, the most first. The variants of all
    classes of VOC differ in theirs, so that these separate no cohorts; two runs of one variant that
    differ in them are of two plans all the same."""
    name, iterations = variant(run), int(setting(run, "training.iterations", 0))
    base = iterations / 1.5 if name.endswith(LONGER) else iterations
    return None if name == BASIS else -round(base, 6)


def _has_a_column(run: Run) -> float | None:
    return 0.0 if variant(run) in TRAINED_SCORES and category(run) in VOC_CATEGORIES else None


PARTS = {MULTICLASS: _plan, BINARY: _has_a_column}
"""Experiment -> what else separates its runs; None for one that no table shows."""


def _data(cohort: Cohort) -> str:
    """What stands before a heading, where the data are not always the same."""
    told = cohort.experiment in (*SETTINGS_APART, ENET_RUNS, CAMVID_LAYOUT)
    return f"{data_title(cohort)}: " if told else ""


def _iterations(cohort: Cohort) -> str:
    """ ", 20000 and 30000 iterations", where variants differ in them."""
    if cohort.experiment != MULTICLASS:
        return ""
    found = sorted({int(setting(run, "training.iterations", 0)) for run in cohort.runs})
    return f", {' and '.join(str(number) for number in found)} iterations"


def _folder(cohort: Cohort) -> str:
    """Folder of the data; that of the experiment where none is set."""
    return cohort.setting("data.folder") or DATA.get(cohort.experiment, "unknown")
