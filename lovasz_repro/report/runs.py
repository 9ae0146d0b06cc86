"""Which stored runs may stand together in a report, and what can be read from them.

A *cohort* is a set of finished runs that differ only in what an experiment varies on purpose
(variant, loss, batch size, seed). Runs of another profile, scale, data set or setting are
another cohort: the report shows them apart and never averages over them. In a cohort, runs of one
variant with another loss are a variant of their own, whose name tells what differs.
"""

import json
import math
import re
import shlex
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from lovasz_repro.config.read import dotted
from lovasz_repro.config.schema import (
    DataConfig,
    EvaluationConfig,
    ExperimentConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
    experiments_folder,
    load_experiment,
)

if TYPE_CHECKING:
    import pandas as pd

Moment = Literal["last", "best", "start", "first_half", "rise"]
"""The end of a training, its best snapshot, before it, the mean over its first half, and the rise
from that mean to the end."""
SCALES = ("paper", "reduced", "demo")
BATCH_SIZE = "training.batch_size"
GRID = ("experiment", "profile", "scale", "variant", "seed", BATCH_SIZE,
        "evaluation.batches", "evaluation.examples")  # fmt: skip
"""Parameters (and all below them) that do not separate cohorts: what an experiment varies, and what
adds numbers or pictures without changing others."""
LOSS_SETTINGS = (
    "loss.terms",
    "loss.class_weights",
    "loss.classes",
    "loss.per_image",
    "data.equibatch",
)
"""Parameters (and all below them) that make a variant what it is: they separate no cohorts, but
within one the runs of a variant that differ in them."""
USUAL = dotted({
    section: {
        name: list(field.default) if isinstance(field.default, tuple) else field.default
        for name, field in config.model_fields.items()
        if not field.is_required()
    }
    for section, config in (
        ("data", DataConfig),
        ("model", ModelConfig),
        ("loss", LossConfig),
        ("training", TrainingConfig),
        ("evaluation", EvaluationConfig),
    )
})  # fmt: skip
"""What a run was trained and scored with that was made before a setting and does not name it."""

MARKS = ("git_commit", "config_hash", "data_fingerprint", "seed", "device", "profile", "scale")
"""Tags that say where a number comes from."""
PYTHON = {"None": "null", "True": "true", "False": "false"}
"""Words of a stored setting -> JSON's."""

HEADED = ("data.size", "data.images", "training.iterations")
"""Parameters that every heading shows; of images, only that they are no photographs."""


class Run(Protocol):
    """What the report reads of a stored run (``lovasz_repro.store.StoredRun``)."""

    @property
    def run_id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def status(self) -> str: ...  # noqa: D102
    @property
    def started(self) -> float: ...  # noqa: D102
    @property
    def params(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def tags(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def metrics(self) -> Mapping[str, float]: ...  # noqa: D102


@dataclass(frozen=True)
class RenamedRun:
    """A run that stands in a cohort under another variant than its own."""

    run_id: str
    name: str
    status: str
    started: float
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


class RunStore(Protocol):
    """What the report asks of a store (``lovasz_repro.store.Store``)."""

    def runs(self, experiment: str | None = None) -> Sequence[Run]:
        """Stored runs of an experiment, newest first."""
        ...

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """All (step, value) of a metric, by step."""
        ...

    def artifact(self, run_id: str, relative_path: str) -> Path:
        """A file that a run stored."""
        ...


class Remembered:
    """A store that is asked every question once."""

    def __init__(self, store: RunStore) -> None:
        self.runs = cache(store.runs)
        self.history = cache(store.history)
        self.artifact = store.artifact
        self.plans: dict[str, list[tuple[Cohort, str]]] = {}
        """By experiment, see ``sets.plans``."""


class OfData(Remembered):
    """The runs of a store on the same data."""

    def __init__(self, store: RunStore, fingerprint: str) -> None:
        super().__init__(store)
        every = self.runs
        self.runs = cache(
            lambda experiment=None: [
                run for run in every(experiment) if run.tags.get("data_fingerprint") == fingerprint
            ]
        )


def remember(store: RunStore) -> Remembered:
    """The store as one that is asked every question once."""
    return store if isinstance(store, Remembered) else Remembered(store)


@dataclass(frozen=True)
class Provenance:
    """Where one number comes from."""

    run_id: str
    """The id under which the run was made, also where it was imported since."""
    name: str
    git_commit: str
    config_hash: str
    data_fingerprint: str
    seed: str
    device: str
    profile: str
    scale: str


@dataclass(frozen=True)
class Cohort:
    """Finished runs that may stand together; one run per variant, batch size and seed."""

    experiment: str
    scale: str
    profile: str
    data_fingerprint: str
    settings: tuple[tuple[str, Any], ...]
    runs: tuple[Run, ...]

    @property
    def batch_sizes(self) -> list[int]:
        """Batch sizes of the runs, ascending."""
        return sorted({batch_size(run) for run in self.runs})

    @property
    def variants(self) -> list[str]:
        """Variants of the runs, by name."""
        return sorted({variant(run) for run in self.runs})

    def select(self, variant_name: str, size: int | None = None) -> list[Run]:
        """Runs of a variant (and batch size), by seed."""
        return [
            run
            for run in self.runs
            if variant(run) == variant_name and size in (None, batch_size(run))
        ]

    def of_batch_size(self, size: int) -> "Cohort":
        """The runs of one batch size."""
        return replace(self, runs=tuple(run for run in self.runs if batch_size(run) == size))

    def setting(self, key: str, default: Any = None) -> Any:
        """A setting that all runs share, with its type."""
        return dict(self.settings).get(key, default)


def source(run: Run) -> Provenance:
    """Provenance of a run, from the tags that every run carries.

    An imported run keeps the id that it was made under, so a report is the same in every store;
    ``tags.origin_run_id`` finds it here.
    """
    made_as = run.tags.get("origin_run_id", run.run_id)
    return Provenance(made_as, run.name, **{key: run.tags.get(key, "unknown") for key in MARKS})


def sources(runs: Iterable[Run]) -> tuple[Provenance, ...]:
    """Provenance of several runs: each once, by name, seed and id."""
    unique = {source(run) for run in runs}
    return tuple(sorted(unique, key=lambda s: (s.name, natural(s.seed), s.run_id)))


def variant(run: Run) -> str:
    """Row of the experiment's grid that the run belongs to."""
    return run.tags.get("variant", "")


def batch_size(run: Run) -> int:
    """Images per step; 0 where the run has no such parameter."""
    return int(setting(run, BATCH_SIZE, 0))


def seed(run: Run) -> str:
    """Seed tag of the run."""
    return run.tags.get("seed", "")


def cohorts(
    store: RunStore,
    experiment: str,
    axes: Sequence[str] = (),
    part_of: Callable[[Run], float | None] = lambda run: 0.0,
) -> list[Cohort]:
    """Finished runs of an experiment, sorted apart: paper scale first, then reduced, then demo.

    Args:
        store: where to read.
        experiment: its name.
        axes: further parameters that do not separate cohorts.
        part_of: what else separates runs, the lowest first; None leaves a run out.
    """
    finished = [run for run in store.runs(experiment) if run.status == "FINISHED"]
    parts = [(part, run) for run in finished if (part := part_of(run)) is not None]
    if not parts:
        return []
    parts.sort(key=lambda pair: (pair[0], -pair[1].started, pair[1].run_id))
    newest = [run for _, run in parts]
    table: Any = frame(newest).reindex(columns=["run", "variant", *MARKS, BATCH_SIZE, *axes])
    table["settings"] = [settings(run, axes) for run in newest]
    table["part"] = [part for part, _ in parts]
    table["kind"] = [tuple(kind(run.params).items()) for run in newest]
    together = ["scale", "profile", "data_fingerprint", "settings", "part"]
    cell = ["variant", BATCH_SIZE, "seed", "kind", *axes]
    table = table.drop_duplicates([*together, *cell])
    found = [
        Cohort(experiment, scale, profile, data, shared, tuple(_in_order(runs)))
        for (scale, profile, data, shared, _), rows in table.groupby(together, sort=False)
        for runs in [_kinds_apart(list(rows["run"]), experiment, profile)]
    ]
    return sorted(found, key=_cohort_order)


def kind(params: Mapping[str, str]) -> dict[str, str]:
    """The settings that make a variant what it is, by name."""
    return {
        key: text for key, text in sorted(in_full(params).items()) if _below(key, LOSS_SETTINGS)
    }


def in_full(params: Mapping[str, str]) -> dict[str, str]:
    """Settings of a run together with those that came after it, which have their defaults.

    A run of another kind, such as a bias search, has none of these.
    """
    if "training.iterations" not in params:
        return dict(params)
    sections = {key.rsplit(".", n)[0] for key in params for n in (1, 2)}  # of evaluation.crf.x
    return {k: v for k, v in USUAL.items() if k not in sections} | dict(params)


def frame(runs: Iterable[Run]) -> "pd.DataFrame":
    """A row a run: the run itself, its metrics, its settings with their types, and its marks."""
    import pandas as pd

    unknown = dict.fromkeys(MARKS, "unknown") | {"variant": "", "seed": ""}
    rows = [
        {key: typed(value) for key, value in run.params.items()}
        | dict(run.metrics)
        | {key: run.tags.get(key, other) for key, other in unknown.items()}
        | {"run": run}
        for run in runs
    ]
    return pd.DataFrame(rows)


@lru_cache(100_000)
def typed(text: str) -> Any:
    """A stored setting as the value that it was: None, a number, a truth or several; else text."""
    try:
        value = json.loads(PYTHON.get(text, text), parse_constant=str)
    except (ValueError, RecursionError):
        return text
    value = tuple(value) if isinstance(value, list) else value
    parts = value if isinstance(value, tuple) else (value,)
    return text if any(isinstance(part, str | list | dict) for part in parts) else value


def setting(run: Run, key: str, default: Any = None) -> Any:
    """A setting of one run, with its type."""
    return typed(run.params[key]) if key in run.params else default


def settings(run: Run, axes: Sequence[str] = ()) -> tuple[tuple[str, Any], ...]:
    """Settings of a run that separate it from others, sorted."""
    varied = (*GRID, *LOSS_SETTINGS, *axes)
    return tuple(
        (key, typed(text))
        for key, text in sorted(in_full(run.params).items())
        if not _below(key, varied)
    )


def headings(found: Sequence[Cohort], told: Sequence[str] = ()) -> list[str]:
    """What a reader needs to tell cohorts apart: scale, size, device, and what else differs but
    the settings that are told elsewhere."""
    return [_heading(cohort, _different(cohort, found, told)) for cohort in found]


def with_batch_size(heading: str, size: int) -> str:
    """A heading that names the batch size, where runs have one."""
    return f"{heading}, batch size {size}" if size else heading


def command(experiment: str, profile: str = "paper") -> str:
    """The command that runs an experiment."""
    if experiment == "synthetic":
        return "lovasz-repro synthetic"
    suffix = "" if profile == "paper" else f" --profile {shlex.quote(profile)}"
    return f"lovasz-repro run {experiment}{suffix}"


def shipped(experiment: str) -> ExperimentConfig:
    """An experiment that comes with the tool, read once.

    Raises:
        UserError: there is none of this name, or its file is not as it should be.
    """
    return _read_once(experiments_folder() / f"{experiment}.yaml")


@cache
def _read_once(file: Path) -> ExperimentConfig:
    return load_experiment(str(file))


def score_at(store: RunStore, run: Run, metric: str, at: Moment) -> float | None:
    """A metric of a run at a moment of its training; None where it was not stored there.

    A score before training like ``test/dataset_miou`` is stored as ``initial/test/dataset_miou``,
    one of the validation as step 0 of its history.
    """
    last = run.metrics.get(metric)
    if at == "last":
        return last
    if at == "best":
        best = run.metrics.get("best/iteration")
        return dict(store.history(run.run_id, metric)).get(int(best)) if best is not None else None
    if at == "start":
        start = run.metrics.get(f"initial/{metric}")
        of_history = start is None and metric.startswith("val/")
        return dict(store.history(run.run_id, metric)).get(0) if of_history else start
    history = store.history(run.run_id, metric)
    early = [value for step, value in history if 0 < step <= history[-1][0] / 2]
    half = statistics.fmean(early) if early else None
    if at == "first_half" or half is None or last is None:
        return half if at == "first_half" else None
    return last - half


def finite_history(store: RunStore, run: Run, metric: str) -> list[tuple[int, float]]:
    """(step, value) of a metric wherever it is a number."""
    return [(k, score) for k, score in store.history(run.run_id, metric) if math.isfinite(score)]


def correlation_along(
    store: RunStore, run: Run, metrics: tuple[str, str]
) -> tuple[float, int] | None:
    """How closely two metrics bend together along a run, and at how many validations; None where it
    is undefined. That before training is left out: it is far from all others in every metric."""
    one, other = (dict(finite_history(store, run, metric)) for metric in metrics)
    steps = [step for step in one if step in other and step > 0]
    r = bends_together([one[step] for step in steps], [other[step] for step in steps])
    return None if r is None else (r, len(steps))


def bends_together(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's correlation of the second differences of two series; None where it is undefined.

    Two learning curves rise, bend and level off together whatever they measure. First differences
    take out a common slope only: those of a curve that levels off are large at first in both.
    Second differences take out the bend but for a few first steps, and ranks keep these few from
    outweighing the rest.
    """
    bends = [
        [after - 2 * at + before for before, at, after in zip(x, x[1:], x[2:], strict=False)]
        for x in (one, other)
    ]
    if any(len(set(bend)) < 3 for bend in bends):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(*bends).statistic)


def having(runs: Iterable[Run], metric: str) -> list[Run]:
    """The runs that ended with a number for a metric."""
    return [run for run in runs if math.isfinite(run.metrics.get(metric, math.nan))]


def fill_of(experiment: str, cohort: Cohort | None) -> str:
    """The command that fills what a set of runs lacks; without a set, that of the paper."""
    return command(experiment, cohort.profile) if cohort else command(experiment)


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1); no spread for a single value."""
    mean = math.fsum(values) / len(values)
    return mean, statistics.stdev(values) if len(values) > 1 else None


def margin(error: float, n: int) -> float:
    """Half the 95 % confidence interval of the mean of n numbers, from its standard error.

    Student's t: of 2 numbers 12.7 times the standard error, of 3 4.3, of 20 2.1 times.
    """
    from scipy.special import stdtrit

    return float(stdtrit(n - 1, 0.975)) * error


def natural(text: str) -> list[tuple[int, int | str]]:
    """Sort key under which "s10" follows "s9"."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _below(key: str, parameters: Sequence[str]) -> bool:
    """Whether a setting is one of these or below one."""
    return any(key == parameter or key.startswith(f"{parameter}.") for parameter in parameters)


def _kinds_apart(runs: Sequence[Run], experiment: str, profile: str) -> list[Run]:
    """Runs of a cohort, newest first, one kind a variant.

    Of several kinds, the one that the profile plans keeps the name, or else the newest; the others
    tell in theirs what differs.
    """
    kinds: dict[str, list[dict[str, str]]] = {}
    for run in runs:
        kinds.setdefault(variant(run), []).append(kind(run.params))
    usual = {name: of_runs[0] for name, of_runs in kinds.items()}
    if any(other != usual[name] for name, of_runs in kinds.items() for other in of_runs):
        planned = _planned_kinds(experiment, profile)
        usual |= {name: plan for name, plan in planned.items() if plan in kinds.get(name, ())}
    return [_renamed(run, kind(run.params), usual[variant(run)]) for run in runs]


def _planned_kinds(experiment: str, profile: str) -> dict[str, dict[str, str]]:
    """The kind of each variant of a profile; of none for the synthetic search."""
    known = None if experiment == "synthetic" else shipped(experiment)
    cells = known.cells(profile) if known and profile in known.profiles else []
    return {cell.variant: kind(cell.params) for cell in cells}


def _renamed(run: Run, own: Mapping[str, str], usual: Mapping[str, str]) -> Run:
    """The run under a variant that tells what differs from the usual kind, if anything does."""
    if own == usual:
        return run
    told = ", ".join(
        f"{key}={own.get(key, 'unset')}"
        for key in sorted(own.keys() | usual.keys())
        if own.get(key) != usual.get(key)
    )
    tags = {**run.tags, "variant": f"{variant(run)} ({told})"}
    fields = run.run_id, run.name, run.status, run.started, run.params
    return RenamedRun(*fields, tags, run.metrics)


def _in_order(runs: Iterable[Run]) -> list[Run]:
    return sorted(runs, key=lambda r: (variant(r), batch_size(r), natural(seed(r)), r.run_id))


def _cohort_order(cohort: Cohort) -> tuple[object, ...]:
    scale = SCALES.index(cohort.scale) if cohort.scale in SCALES else len(SCALES)
    size = sum(int(setting(run, "seeds", 1)) for run in cohort.runs)
    return scale, cohort.profile, -size, cohort.data_fingerprint, str(cohort.settings)


def _different(cohort: Cohort, found: Sequence[Cohort], elsewhere: Sequence[str]) -> list[str]:
    """Settings in which a cohort differs from others of its profile, as ``key=value``; the data
    where no setting tells them apart."""
    alike = [c for c in found if (c.scale, c.profile) == (cohort.scale, cohort.profile)]
    names = sorted({key for other in alike for key, _ in other.settings})
    differing = [n for n in names if len({dict(c.settings).get(n) for c in alike}) > 1]
    mine = dict(cohort.settings)
    others = [name for name in differing if name not in (*HEADED, *elsewhere)]
    told = [f"{name}={_shown(mine.get(name, 'unset'))}" for name in others]
    twins = [c for c in alike if c.settings == cohort.settings]
    return [*told, f"data {cohort.data_fingerprint[:8]}"] if len(twins) > 1 else told


def _heading(cohort: Cohort, different: Sequence[str]) -> str:
    parts = [f"{cohort.profile} profile"]
    if cohort.profile == "unknown":
        parts = [f"{cohort.scale} scale"]
    elif cohort.profile != cohort.scale:
        parts.append(f"{cohort.scale} scale")
    if cohort.setting("data.images") == "features":
        parts.append("no photographs")
    if size := cohort.setting("data.size"):
        parts.append("×".join(re.findall(r"\d+", str(size))))
    if iterations := cohort.setting("training.iterations"):
        parts.append(f"{iterations} iterations")
    devices = sorted({_short_device(run.tags.get("device", "")) for run in cohort.runs})
    return ", ".join([*parts, *different, " / ".join(devices)])


def _shown(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


def _short_device(device: str) -> str:
    """ "CPU Some Model @ 2.9 GHz (8 cores)" -> "CPU (8 cores)"; GPUs keep their name."""
    return re.sub(r"^CPU .*(\(\d+ cores?\))$", r"CPU \1", device) or "unknown device"
