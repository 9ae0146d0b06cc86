"""Does a Lovász loss help on data of one's own? The table `own` and its sentences.

Losses are compared at equal steps, seed by seed. A difference is decided where zero lies outside
its 95 % confidence interval over paired seeds; fewer than three seeds decide nothing.
"""

import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from lovasz_repro.config.schema import BASIS
from lovasz_repro.report.layout import number
from lovasz_repro.report.model import Better, Block, Cell, Column, Table, TableRow
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    batch_size,
    command,
    having,
    margin,
    natural,
    seed,
    setting,
    shipped,
    sources,
    variant,
)
from lovasz_repro.report.scores import measured
from lovasz_repro.report.sets import named_cohorts
from lovasz_repro.report.style import variant_title
from lovasz_repro.report.words import captions, sentence, table_caption

OWN = "own"
"""The experiment."""
BASELINES = ("cross-entropy", "binary-cross-entropy")
THEN = "cross-entropy-then-lovasz"
LOVASZ_LOSSES = ("lovasz-softmax", "sum", THEN, "lovasz-hinge")
"""Variants that the question is about."""
DATASET_MIOU, IMAGE_MIOU = "dataset_miou", "image_miou"
MEASURED_OWN: dict[str, tuple[str, Better]] = {
    DATASET_MIOU: ("dataset-mIoU (%)", "higher"),
    IMAGE_MIOU: ("image-mIoU (%)", "higher"),
    "miou_i": ("mIoU of images, present classes (%)", "higher"),
    "miou_i_worst": ("that of the worst 5 % of the images (%)", "higher"),
    "miou_c": ("mIoU of classes, image by image (%)", "higher"),
    "iou_by_size/small": ("IoU where a class has less than 32² pixels (%)", "higher"),
    "iou_by_size/medium": ("IoU where it has 32² to 96² pixels (%)", "higher"),
    "iou_by_size/large": ("IoU where it has more (%)", "higher"),
    "boundary_miou": ("mIoU within 3 pixels of a boundary (%)", "higher"),
    "calibration_error": ("calibration error (%)", "lower"),
}
"""Scores of a split -> how they are called, and which are better."""
COMPARED = (DATASET_MIOU, IMAGE_MIOU, "miou_i", "miou_c", "boundary_miou")
"""Those whose difference to cross-entropy has a row."""
RARE_SHARE = 0.02
"""Share of the training pixels below which a class is called small."""
LEARNT, FOUND = 0.1, 0.2
"""IoU below which a network has not learnt a class; from which on cross-entropy has found it."""
FEWEST_SEEDS = 3
"""With fewer nothing is decided: their spread says too little of itself."""
IMAGES_PER_SECOND = "train/images_per_second"
"""Metric of a run: images that it trains on."""


@dataclass(frozen=True)
class Gain:
    """What a loss gains over another, in points, over paired seeds."""

    mean: float
    error: float | None
    """Standard error; None of one seed."""
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Gain | None":
        """Of the differences of seeds; None of none."""
        if not values:
            return None
        count = len(values)
        error = statistics.stdev(values) / math.sqrt(count) if count > 1 else None
        return cls(statistics.fmean(values), error, count)

    @property
    def sign(self) -> int:
        """1 for a gain, -1 for a loss, 0 where it is not decided."""
        few = self.error is None or self.seeds < FEWEST_SEEDS
        if few or abs(self.mean) <= margin(self.error or 0.0, self.seeds):
            return 0
        return 1 if self.mean > 0 else -1

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {number(self.error, 1)}"
        return number(abs(self.mean), 1) + error

    @property
    def signed(self) -> str:
        """With its sign."""
        error = "" if self.error is None else f" ± {number(self.error, 1)}"
        return number(self.mean, 1, signed=True) + error


@dataclass(frozen=True)
class ComparedSet:
    """Runs on the same data, with the same network and as many steps, one a variant and seed."""

    heading: str
    cohort: Cohort
    runs: Mapping[str, Mapping[str, Run]]
    """Variant -> seed -> run, each variant at its learning rate."""
    starts: Sequence[Run]
    """Those that fine-tuning starts from."""
    tuned: bool
    """Whether learning rates were searched."""

    @property
    def data(self) -> tuple[str, str]:
        """Folder and fingerprint of the data."""
        folder = str(self.cohort.setting("data.folder", "unknown"))
        return folder, self.cohort.data_fingerprint

    @cached_property
    def baseline(self) -> str | None:
        """The variant of cross-entropy, if it was run."""
        return next((name for name in BASELINES if name in self.runs), None)

    @cached_property
    def split(self) -> str:
        """The test split where runs have one, else validation."""
        return "test" if having(self.cohort.runs, f"test/{DATASET_MIOU}") else "val"

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the labels."""
        return tuple(re.findall("'([^']+)'", self.cohort.runs[0].params.get("data.classes", "")))

    def labelled(self, split: str) -> list[str]:
        """Classes without those that no mask of a split shows, as far as it is known: these have no
        IoU in a run that predicts none, and one of 0 in another."""
        runs = [*self.starts, *(run for of_one in self.runs.values() for run in of_one.values())]
        found = {
            c: [run.metrics.get(f"{split}/iou/{c}", 0.0) for run in runs] for c in self.classes
        }
        return [name for name, ious in found.items() if not any(map(math.isnan, ious))]

    def share(self, name: str) -> float | None:
        """Share of the training pixels of a class."""
        return _mean(self.cohort.runs, f"train/share/{name}")

    def mean(self, name: str, key: str) -> float | None:
        """A metric of a variant, the mean over seeds."""
        return _mean(self.runs.get(name, {}).values(), key)

    def above(self, name: str, *keys: str) -> Gain | None:
        """What a variant gains over cross-entropy in the mean of some scores, in points."""
        base = self.runs[self.baseline] if self.baseline else {}
        values = []
        for number_, run in self.runs.get(name, {}).items():
            if number_ in base:
                pairs = [(run.metrics.get(k), base[number_].metrics.get(k)) for k in keys]
                gains = [a - b for a, b in pairs if a is not None and b is not None]
                values += [100 * statistics.fmean(gains)] if gains else []
        return Gain.of([value for value in values if math.isfinite(value)])

    def gain(self, name: str, score: str) -> Gain | None:
        """The same of a score of the split; the dataset-mIoU is that of the labelled classes."""
        classes = self.labelled(self.split) if score == DATASET_MIOU else []
        keys = [f"iou/{label}" for label in classes] or [score]
        return self.above(name, *(f"{self.split}/{key}" for key in keys))


def _mean(runs: Iterable[Run], key: str) -> float | None:
    found = [run.metrics[key] for run in having(runs, key)]
    return statistics.fmean(found) if found else None


# -- which runs are compared -------------------------------------------------------------------


def compared_sets(store: RunStore) -> list[ComparedSet]:
    """Every stored set of runs on data of one's own, those on the data of the newest run first."""
    by_identity = {run.tags.get("identity", ""): run for run in store.runs(OWN)}
    found = []
    for cohort, heading in named_cohorts(store, OWN):
        parts: dict[tuple[int, str, int], list[Run]] = {}
        for run in cohort.runs:
            parts.setdefault(_plan(run, by_identity), []).append(run)
        for (steps, weights, size), runs in sorted(parts.items()):
            title = f"{heading}, {_network(runs[0])} from {weights}, {steps} steps of {size}"
            found.append(_compared(title, cohort, runs))
    started: dict[tuple[str, str], list[float]] = {}
    for one in found:
        started.setdefault(one.data, []).extend(run.started for run in one.cohort.runs)
    return sorted((one for one in found if one.runs), key=lambda one: -max(started[one.data]))


def _plan(run: Run, by_identity: Mapping[str, Run]) -> tuple[int, str, int]:
    """Steps, starting weights and batch size of a run, with the one that it started from."""
    steps = int(setting(run, "training.iterations", 0))
    weights = str(setting(run, "model.weights", None) or "random weights")
    if weights == BASIS:
        fingerprint = run.tags.get("weights_fingerprint", "")
        start = by_identity.get(fingerprint.removeprefix("run-"))
        weights = str(setting(start, "model.weights", None) or "random weights") if start else BASIS
        steps += int(setting(start, "training.iterations", 0)) if start else 0
    return 2 * steps if variant(run) == BASIS else steps, weights, batch_size(run)


def _network(run: Run) -> str:
    return str(run.params.get("model.callable") or run.params.get("model.name", "unknown network"))


def _compared(heading: str, cohort: Cohort, runs: Sequence[Run]) -> ComparedSet:
    rates: dict[str, dict[float, dict[str, Run]]] = {}
    for run in runs:
        rates.setdefault(variant(run), {}).setdefault(_rate(run), {})[seed(run)] = run
    starts = [run for of_rate in rates.pop(BASIS, {}).values() for run in of_rate.values()]
    chosen = {name: max(of_rates.values(), key=_preferred) for name, of_rates in rates.items()}
    tuned = any(len(of_rates) > 1 for of_rates in rates.values())
    fine_tuned = {run.tags.get("weights_fingerprint") for run in chosen.get(THEN, {}).values()}
    starts = [run for run in starts if f"run-{run.tags.get('identity')}" in fine_tuned]
    planned = [name for name in shipped(OWN).variants if name in chosen]
    order = [*planned, *sorted(set(chosen) - set(planned))]
    return ComparedSet(heading, cohort, {n: _by_seed(chosen[n]) for n in order}, starts, tuned)


def _rate(run: Run) -> float:
    """The learning rate; 0 where a run has none."""
    rate = setting(run, "training.lr")
    return float(rate) if isinstance(rate, int | float) else 0.0


def _by_seed(runs: Mapping[str, Run]) -> dict[str, Run]:
    return {number_: runs[number_] for number_ in sorted(runs, key=natural)}


def _preferred(runs: Mapping[str, Run]) -> tuple[int, float]:
    """Of the learning rates of a variant: that of the most seeds; of those, the best by
    validation."""
    scores = [run.metrics.get(f"val/{DATASET_MIOU}", 0.0) for run in runs.values()]
    return len(runs), statistics.fmean(scores)


# -- the table ---------------------------------------------------------------------------------


def own_table(store: RunStore) -> Table:
    """Scores of each loss, differences to cross-entropy, the IoU of each class, and sentences.

    Of several data sets, each is a part.
    """
    by_data: dict[tuple[str, str], list[ComparedSet]] = {}
    for one in compared_sets(store):
        by_data.setdefault(one.data, []).append(one)
    table = _table_of([one for sets in by_data.values() for one in sets])
    if len(by_data) < 2:
        return table
    parts: list[Table] = []
    for (folder, fingerprint), sets in by_data.items():
        twins = [name for name, _ in by_data].count(folder) > 1
        name = f"{folder}, {len(sets[0].classes)} classes" + twins * f", data {fingerprint[:8]}"
        part = _table_of(sets)
        parts.append(replace(part, name=f"{OWN}-{len(parts) + 1}", title=f"{table.title}: {name}"))
    return replace(table, parts=tuple(parts))


def _table_of(found: Sequence[ComparedSet]) -> Table:
    told, fill = captions().tables[OWN], f"{command(OWN)} --data DIR"
    names = list(dict.fromkeys(name for one in found for name in one.runs))
    names = names or [n for n in shipped(OWN).fitting if n != BASIS]
    blocks = [block for one in found for block in _blocks(one, names, fill)]
    empty = TableRow(
        DATASET_MIOU, MEASURED_OWN[DATASET_MIOU][0], (Cell(command=fill),) * len(names)
    )
    several = len(found) > 1
    notes = [f"{one.heading}: {t}" if several else t for one in found for t in answer(one)]
    return Table(
        name=OWN,
        title=told.title,
        caption=table_caption(OWN, command=fill),
        row_title=told.row_title,
        columns=tuple(Column(name, variant_title(name), digits=1) for name in names),
        blocks=tuple(blocks) or (Block("", (empty,)),),
        notes=tuple(notes),
    )


def _blocks(one: ComparedSet, names: Sequence[str], fill: str) -> Iterator[Block]:
    runs = [list(one.runs.get(name, {}).values()) for name in names]

    def row(key: str, label: str, better: Better | None = "higher") -> TableRow:
        cells = [_over_seeds(of_one, key, fill) for of_one in runs]
        return TableRow(key, label, tuple(cells), better)

    scores = [row(f"{one.split}/{k}", title, how) for k, (title, how) in MEASURED_OWN.items()]
    ious = [row(f"{one.split}/iou/{name}", _class_label(one, name)) for name in one.classes]
    gains = [_gain_row(one, key, names) for key in COMPARED] if one.baseline else []
    base = variant_title(one.baseline or "")
    where = "test" if one.split == "test" else "validation"
    counts = sorted({len(of_one) for of_one in runs if of_one})
    seeds = f"{' or '.join(map(str, counts))} seed{'s' if counts[-1] > 1 else ''}"
    for heading, rows in {
        f"{one.heading}: {where}, {seeds}": [*scores, _time_row(runs, fill)],
        f"difference to {base}, ± its standard error (points)": gains,
        "IoU of each class (%), and its share of the training pixels": ious,
    }.items():
        filled = tuple(row for row in rows if any(row.cells))
        if filled:
            yield Block(heading, filled)


def _over_seeds(runs: Sequence[Run], key: str, fill: str) -> Cell | None:
    kept = having(runs, key)
    return measured([r.metrics[key] for r in kept], kept, fill) if kept else None


def _class_label(one: ComparedSet, name: str) -> str:
    share = one.share(name)
    return name if share is None else f"{name} ({100 * share:.2g} %)"


def _time_row(runs: Sequence[Sequence[Run]], fill: str) -> TableRow:
    """Milliseconds of a step."""
    cells = []
    for of_one in runs:
        kept = having(of_one, IMAGES_PER_SECOND)
        times = [batch_size(run) / run.metrics[IMAGES_PER_SECOND] for run in kept]
        cells.append(measured(times, kept, fill, factor=1000) if kept else None)
    return TableRow("time", "time of a step (ms)", tuple(cells), "lower")


def _gain_row(one: ComparedSet, key: str, names: Sequence[str]) -> TableRow:
    cells: list[Cell | None] = []
    for name in names:
        gain = one.gain(name, key) if name != one.baseline else None
        runs = [*one.runs.get(name, {}).values()]
        cells.append(Cell(gain.mean, gain.error, gain.seeds, sources(runs)) if gain else None)
    return TableRow(f"gain/{key}", MEASURED_OWN[key][0].replace(" (%)", ""), tuple(cells), "higher")


# -- the answer in sentences -------------------------------------------------------------------


def answer(one: ComparedSet) -> list[str]:
    """Whether the Lovász losses help, classes that are not learnt, what the numbers rest on."""
    if one.baseline is None:
        return [sentence("own-no-baseline")]
    told = [_verdict(one, name, one.baseline) for name in LOVASZ_LOSSES if name in one.runs]
    return [text for text in (*told, *_not_learnt(one, one.baseline), *_basis_of_it(one)) if text]


def _verdict(one: ComparedSet, name: str, baseline: str) -> str:
    gain = one.gain(name, DATASET_MIOU)
    if gain is None:
        return ""
    loss, base = variant_title(name), variant_title(baseline)
    kind = {1: "gains", -1: "loses", 0: "undecided"}[gain.sign]
    kind = "few-seeds" if gain.seeds < FEWEST_SEEDS else kind
    parts = [
        sentence(f"own-{kind}", loss=loss, base=base, amount=gain, signed=gain.signed,
                 seeds=gain.seeds, fewest=FEWEST_SEEDS)
    ]  # fmt: skip
    shares = {label: one.share(label) for label in one.labelled(one.split)}
    rare = [label for label, share in shares.items() if share is not None and share < RARE_SHARE]
    if small := one.above(name, *(f"{one.split}/iou/{c}" for c in rare)):
        parts.append(sentence("own-rare", rare=f"{100 * RARE_SHARE:g}", signed=small.signed))
    if image := one.gain(name, IMAGE_MIOU):
        kind = {1: "gains", -1: "loses", 0: "keeps"}[image.sign]
        kind = "undecided" if kind == "keeps" and (image.error is None or image.mean < 0) else kind
        parts.append(sentence(f"own-image-{kind}", amount=image, signed=image.signed))
    return capital("; ".join(parts)) + "."


def _not_learnt(one: ComparedSet, baseline: str) -> Iterator[str]:
    """Classes that the start of fine-tuning, one loss or all of them lack, and what to try."""

    def iou(name: str, label: str) -> float:
        value = one.mean(name, f"{one.split}/iou/{label}")
        return math.nan if value is None else value

    def listed(found: Mapping[str, float]) -> str:
        return ", ".join(f"{label} ({100 * value:.0f} %)" for label, value in found.items())

    begun = {label: _mean(one.starts, f"val/iou/{label}") for label in one.labelled("val")}
    if lacking := {label: v for label, v in begun.items() if v is not None and v < LEARNT}:
        yield sentence("own-start", loss=capital(variant_title(THEN)), classes=listed(lacking))
    every = {c: max((v for n in one.runs if (v := iou(n, c)) == v), default=math.nan)
             for c in one.labelled(one.split)}  # fmt: skip
    if never := {label: value for label, value in every.items() if value < LEARNT}:
        yield sentence("own-never", classes=listed(never))
    for name in one.runs:
        lost = {c: iou(name, c) for c in one.classes
                if iou(name, c) < LEARNT and iou(baseline, c) >= FOUND}  # fmt: skip
        if lost:
            has = listed({label: iou(baseline, label) for label in lost})
            yield sentence("own-lost", loss=capital(variant_title(name)), classes=listed(lost),
                           base=variant_title(baseline), has=has)  # fmt: skip


def _basis_of_it(one: ComparedSet) -> Iterator[str]:
    """Classes that no mask shows, the learning rates, and the split."""
    labelled = one.labelled(one.split)
    if unseen := [label for label in one.classes if label not in labelled]:
        yield sentence("own-unlabelled", split=one.split, classes=", ".join(unseen))
    rates = {name: _rate(next(iter(runs.values()))) for name, runs in one.runs.items()}
    if one.tuned:
        each = ", ".join(f"{variant_title(name)} {rate:g}" for name, rate in rates.items())
        yield sentence("own-tuned", rates=each)
    elif len({*rates.values()}) == 1:
        yield sentence("own-untuned", rate=f"{next(iter(rates.values())):g}")
    if one.split == "val":
        yield sentence("own-validation")


def capital(text: str) -> str:
    """The text with a capital letter first."""
    return text[:1].upper() + text[1:]
