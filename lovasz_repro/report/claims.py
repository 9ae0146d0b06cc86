"""What the paper claims, and what the stored runs say about it.

A claim is decided by paper-scale runs of its experiment alone. Runs of other scales, and related
experiments, are evidence beside it, each set of runs for itself.

A rule looks at independent numbers, their mean and spread. A mean is above (below) a bound when the
bound lies outside its 95 % confidence interval (Student's t). One number has none, and decides
nothing.

n counts what was drawn independently: seeds of a training; categories, where each has trainings of
its own (its seeds are averaged first); or, in the synthetic experiment, draws of the images. What a
single network does on several batches or at several steps shares that network: it counts once.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lovasz_repro.report.claims_schema import (
    Claim,
    ClaimsFile,
    Correlated,
    Difference,
    OnlyBelow,
    Operand,
    RisesWith,
    Rule,
    Selection,
    Tolerated,
    load_claims,
)
from lovasz_repro.report.layout import number
from lovasz_repro.report.published import printed_numbers
from lovasz_repro.report.runs import (
    BATCH_SIZE,
    Cohort,
    Provenance,
    Run,
    RunStore,
    correlation_along,
    margin,
    mean_and_spread,
    remember,
    score_at,
    seed,
    setting,
    sources,
    with_batch_size,
)
from lovasz_repro.report.sets import data_name, plans

Verdict = Literal[
    "holds", "does not hold", "undecided", "not yet run",
    "tested", "as written", "differs", "no rule",
]  # fmt: skip
"""What runs say of a statement; or tests, or the settings of an experiment."""
Key = tuple[str, ...]
Samples = dict[Key, tuple[float, Run]]
UNSET = object()
TOO_FEW = "n = 1 decides nothing"
ROUNDING = 1e-9
"""Of binary fractions, a hundred thousand times below the last digit of a score: 0.7849 - 0.7799 is
no more than 0.005."""

COUNTED = {
    "holes_per_object": "holes an object",
    "extraneous_classes": "classes an image",
    "missed_classes": "classes an image",
}
"""Measures that are no shares -> what they count."""
FEWEST = 10
"""Validations of a run, without that before the training, that a correlation is decided by."""
SHARED = 1 + 2 * ((2 / 3) ** 2 + (1 / 6) ** 2)
"""How many second differences count as one: neighbours share validations, and those of white noise
are correlated by -2/3 and 1/6."""


@dataclass(frozen=True)
class Interval:
    """Where a mean should lie; None: no bound on that side."""

    low: float | None = None
    high: float | None = None
    closed: bool = False
    """Whether a mean on a bound lies inside: a tolerance may be used up."""

    def scaled(self, factor: float) -> "Interval":
        """The same in another unit."""
        return Interval(
            None if self.low is None else factor * self.low,
            None if self.high is None else factor * self.high,
            self.closed,
        )

    def slack(self, mean: float) -> float:
        """How far inside a mean lies; negative outside."""
        return min(
            math.inf if self.low is None else mean - self.low,
            math.inf if self.high is None else self.high - mean,
        )


@dataclass(frozen=True)
class Effect:
    """One number that a rule looks at, over seeds, and what it says."""

    label: str
    verdict: Verdict
    mean: float
    spread: float | None
    """Sample standard deviation over the n; None for a single value."""
    n: int
    """Independent numbers behind the mean."""
    unit: str
    """ "points" of a difference of shares, what `COUNTED` says, or "r" of a correlation."""
    asked: "Interval"
    """Where the rule wants the mean, in the same unit."""
    sources: tuple[Provenance, ...]


@dataclass(frozen=True)
class RuleOutcome:
    """What a rule says about one set of runs."""

    verdict: Verdict
    effects: tuple[Effect, ...]
    missing: tuple[str, ...]
    """What the rule needs and the runs do not have."""


@dataclass(frozen=True)
class SetEvidence:
    """What one set of runs says about a claim."""

    experiment: str
    data: str
    scale: str
    heading: str
    decides: bool
    """Paper-scale runs of the claim's own experiment."""
    outcome: RuleOutcome
    note: str
    """Why a related experiment is shown."""
    remark: str
    """What to keep in mind about these runs."""


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim, its verdict at paper scale, and all evidence."""

    claim: Claim
    verdict: Verdict
    evidence: tuple[SetEvidence, ...]
    command: str
    """What decides the claim; empty where it is decided."""
    published: Mapping[str, float]
    """What the paper prints of the numbers that the rule reads."""


def evaluate_claims(store: RunStore) -> list[ClaimVerdict]:
    """Compare every claim with the stored runs, in the order of the paper.

    Raises:
        UserError: ``experiments/claims.yaml`` is not as it should be.
    """
    remembered = remember(store)
    known = load_claims()
    return [_evaluate(remembered, known, claim) for claim in known.claims]


def _evaluate(store: RunStore, known: ClaimsFile, claim: Claim) -> ClaimVerdict:
    if claim.rule is None:
        return ClaimVerdict(claim, _without_runs(claim), (), "", {})
    own = list(_evidence(store, known, claim.experiment, claim.rule, decides=True))
    related = [
        item
        for also in claim.also
        for item in _evidence(store, known, also.experiment, also.rule, note=also.note)
    ]
    deciding = [item for item in own if item.decides]
    verdict = _headline([item.outcome for item in deciding])
    names = known.experiments[claim.experiment]
    command = (claim.command or names.command) if verdict == "not yet run" else ""
    published = dict(printed_numbers(claim).values())
    return ClaimVerdict(claim, verdict, (*own, *related), command, published)


def _without_runs(claim: Claim) -> Verdict:
    if claim.recipe:
        return "as written" if claim.recipe.is_followed() else "differs"
    return "tested" if claim.tests else "no rule"


def _headline(outcomes: list[RuleOutcome]) -> Verdict:
    """The verdict of the largest set of complete paper-scale runs."""
    complete = [outcome for outcome in outcomes if outcome.verdict != "not yet run"]
    if not complete:
        return "not yet run"
    return max(complete, key=lambda o: min(effect.n for effect in o.effects)).verdict


def _evidence(
    store: RunStore,
    known: ClaimsFile,
    experiment: str,
    rule: Rule,
    *,
    decides: bool = False,
    note: str = "",
) -> Iterator[SetEvidence]:
    pairs = known.experiments[experiment].pairs
    for cohort, heading in _sets_of_runs(store, experiment, rule):
        outcome = decide(store, cohort, rule, pairs)
        if not outcome.effects:
            continue
        single = any(effect.n == 1 for effect in outcome.effects)
        lacking = f"lacks {', '.join(outcome.missing)}" if outcome.missing else ""
        remarks = [TOO_FEW if single else "", lacking]
        yield SetEvidence(
            experiment,
            data_name(cohort),
            cohort.scale,
            heading,
            decides and cohort.scale == "paper",
            outcome,
            note,
            "; ".join(remark for remark in remarks if remark),
        )


def _sets_of_runs(store: RunStore, experiment: str, rule: Rule) -> Iterator[tuple[Cohort, str]]:
    """Cohorts, one per batch size unless the rule compares batch sizes, with their headings."""
    wanted = {operand.variant for operand in rule.operands()}
    for cohort, heading in plans(store, experiment):
        if "" not in wanted and not wanted & set(cohort.variants):
            continue
        if isinstance(rule, RisesWith) and rule.parameter == BATCH_SIZE:
            yield cohort, heading
        else:
            for size in cohort.batch_sizes:
                yield cohort.of_batch_size(size), with_batch_size(heading, size)


# -- how a rule is applied ----------------------------------------------------------------------


def decide(store: RunStore, cohort: Cohort, rule: Rule, pairs: Sequence[str] = ()) -> RuleOutcome:
    """Apply a rule to runs that may stand together.

    Args:
        store: where histories are read.
        cohort: the runs.
        rule: what to look at.
        pairs: parameters by which differences are paired, beside the seed.
    """
    found: list[Effect | str]
    if isinstance(rule, Difference):
        found = [
            effect
            for pair in rule.differences()
            for effect in _difference(store, cohort, rule, pairs, *pair)
        ]
    elif isinstance(rule, OnlyBelow):
        found = [_bounded(store, cohort, rule, operand) for operand in rule.operands()]
    elif isinstance(rule, RisesWith):
        found = [_slope(store, cohort, rule)]
    else:
        found = [_correlation(store, cohort, rule)]
    effects = tuple(item for item in found if isinstance(item, Effect))
    missing = tuple(dict.fromkeys(item for item in found if isinstance(item, str)))
    return RuleOutcome(_together(effects, missing), effects, missing)


def judge(values: Sequence[float], asked: Interval) -> Verdict:
    """Whether the mean lies in an interval, with its whole 95 % confidence interval."""
    mean, spread = mean_and_spread(values)
    if spread is None:
        return "undecided"
    far = margin(spread / math.sqrt(len(values)), len(values))
    slack = asked.slack(mean)
    if slack + (ROUNDING if asked.closed else -ROUNDING) > far:
        return "holds"
    return "does not hold" if -slack - ROUNDING > far else "undecided"


def _together(effects: Sequence[Effect], missing: Sequence[str]) -> Verdict:
    verdicts = {effect.verdict for effect in effects}
    if missing or not effects:
        return "not yet run"
    if "does not hold" in verdicts:
        return "does not hold"
    return "undecided" if "undecided" in verdicts else "holds"


def _difference(
    store: RunStore,
    cohort: Cohort,
    rule: Difference,
    pairs: Sequence[str],
    of: Operand,
    over: Operand,
) -> list[Effect | str]:
    first = _samples(store, cohort, rule, of, pairs)
    second = _samples(store, cohort, rule, over, pairs)
    for operand, samples in ((of, first), (over, second)):
        if not samples:
            return [f"{operand.metric} of {_named(operand)}"]
    shared = [key for key in first if key in second]
    if not shared:
        return [f"{of.variant} and {over.variant} with a common seed"]
    differences = {key: first[key][0] - second[key][0] for key in shared}
    runs = [side[key][1] for key in shared for side in (first, second)]
    label, asked = _difference_label(of, over), _asked(rule)
    if rule.samples != "crossed":
        return [_effect(label, _independent(differences), asked, "points", runs)]
    found = [
        _effect(f"{label}, over {name}", _averaged(differences, by), asked, "points", runs)
        for name, by in (("batches", -1), ("seeds", 0))
    ]
    if any(effect.verdict == "undecided" for effect in found):  # one mean, with either error
        found = [replace(effect, verdict="undecided") for effect in found]
    return list(found)


def _asked(rule: Difference) -> Interval:
    if isinstance(rule, Tolerated):
        low = -rule.tolerance if rule.kind == "within" else None
        return Interval(low, rule.tolerance, closed=True)
    return Interval(low=0.0) if rule.kind == "greater" else Interval(high=0.0)


def _bounded(store: RunStore, cohort: Cohort, rule: OnlyBelow, operand: Operand) -> Effect | str:
    samples = _samples(store, cohort, rule, operand, ())
    if not samples:
        return operand.metric
    below = operand.metric == rule.only
    asked = Interval(high=rule.tolerance, closed=True) if below else Interval(rule.tolerance)
    values = _independent({key: value for key, (value, _) in samples.items()})
    return _effect(operand.metric, values, asked, "points", [run for _, run in samples.values()])


def _slope(store: RunStore, cohort: Cohort, rule: RisesWith) -> Effect | str:
    """Change of the metric per doubling of the parameter, a least-squares line per seed."""
    operand = Operand(rule.variant, rule.metric, rule.at)
    samples = _samples(store, cohort, rule, operand, (rule.parameter,))
    by_seed: dict[str, list[tuple[float, float]]] = {}
    for (of_seed, parameter, *_), (value, _) in samples.items():
        by_seed.setdefault(of_seed, []).append((math.log2(float(parameter)), value))
    usable = {s: points for s, points in by_seed.items() if len({x for x, _ in points}) > 1}
    if not usable:
        return f"{rule.metric} of {rule.variant} at two or more values of {rule.parameter}"
    values = [
        statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
        for points in usable.values()
    ]
    runs = [run for key, (_, run) in samples.items() if key[0] in usable]
    label = f"{rule.variant}: {rule.metric} per doubling of {rule.parameter}"
    return _effect(label, values, Interval(low=0.0), "points", runs)


def _correlation(store: RunStore, cohort: Cohort, rule: Correlated) -> Effect | str:
    """Whether two histories bend together, a number per run."""
    asked = Interval(low=rule.at_least)
    found = [
        (*along, run)
        for run in _selected(cohort, rule, rule.variant)
        if (along := correlation_along(store, run, rule.metrics))
    ]
    if not found:
        return f"{' and '.join(rule.metrics)} of {rule.variant} along a run"
    label = f"{rule.variant}: rank correlation of the bends of {' and '.join(rule.metrics)}"
    return _correlation_effect(label, found, asked)


def _correlation_effect(
    label: str, found: Sequence[tuple[float, int, Run]], asked: Interval
) -> Effect:
    """Judge correlations by Fisher's z, whose error follows from the number of validations.

    The spread between runs counts where it is larger than these errors explain.
    """
    values = [math.atanh(max(-0.999, min(0.999, r))) for r, _, _ in found]
    enough = all(points >= FEWEST for _, points, _ in found)
    errors = [((points - 2) / SHARED - 3) ** -0.5 for _, points, _ in found] if enough else []
    error = math.hypot(*errors) / len(found) if enough else math.inf
    _, between = mean_and_spread(values)
    error = max(error, (between or 0.0) / math.sqrt(len(found)))
    z = statistics.fmean(values)
    bound = math.atanh(asked.low or 0.0)
    verdict: Verdict = "undecided"
    if len(found) > 1 and abs(z - bound) > 2 * error:
        verdict = "holds" if z > bound else "does not hold"
    low, high = (math.tanh(z + side * error) for side in (-2, 2))
    points = " or ".join(str(count) for count in sorted({points for _, points, _ in found}))
    label += f" at {points} steps of a run, two standard errors: {number(low, 2)} to "
    label += number(high, 2)
    mean, spread = mean_and_spread([r for r, _, _ in found])
    runs = [run for _, _, run in found]
    return Effect(label, verdict, mean, spread, len(found), "r", asked, sources(runs))


def _samples(
    store: RunStore, cohort: Cohort, rule: Selection, operand: Operand, pairs: Sequence[str]
) -> Samples:
    """(seed, pairing parameters, step) -> value and run; what is not a number is left out."""
    if operand.above:
        plain = operand._replace(above="")
        ours = _samples(store, cohort, rule, plain, pairs)
        others = _samples(store, cohort, rule, plain._replace(variant=operand.above), pairs)
        return {k: (v - others[k][0], run) for k, (v, run) in ours.items() if k in others}
    samples: Samples = {}
    for run in _selected(cohort, rule, operand.variant):
        key = (seed(run), *(str(setting(run, name, "")) for name in pairs))
        if rule.samples != "runs":
            for step, value in store.history(run.run_id, operand.metric):
                samples[*key, str(step)] = value, run
        elif (found := score_at(store, run, operand.metric, operand.at)) is not None:
            samples[key] = found, run
    return {
        key: (value + operand.plus, run)
        for key, (value, run) in samples.items()
        if math.isfinite(value)
    }


def _independent(samples: dict[Key, float]) -> list[float]:
    """A value per category, its seeds averaged; where there is one category, a value per seed."""
    categories: dict[Key, list[float]] = {}
    for (_, *category), value in samples.items():
        categories.setdefault(tuple(category), []).append(value)
    if len(categories) == 1:
        return list(samples.values())
    return [statistics.fmean(values) for values in categories.values()]


def _averaged(samples: dict[Key, float], by: int) -> list[float]:
    """The mean of the samples that share a part of their key."""
    parts: dict[str, list[float]] = {}
    for key, value in samples.items():
        parts.setdefault(key[by], []).append(value)
    return [statistics.fmean(values) for values in parts.values()]


def _selected(cohort: Cohort, rule: Selection, variant: str) -> list[Run]:
    runs = cohort.select(variant) if variant else list(cohort.runs)
    return [r for r in runs if all(setting(r, k, UNSET) == v for k, v in rule.where.items())]


def _effect(
    label: str, values: Sequence[float], asked: Interval, unit: str, runs: Iterable[Run]
) -> Effect:
    unit = next((counted for name, counted in COUNTED.items() if name in label), unit)
    factor = 100.0 if unit == "points" else 1.0
    mean, spread = mean_and_spread([factor * value for value in values])
    verdict = judge(values, asked)
    return Effect(
        label, verdict, mean, spread, len(values), unit, asked.scaled(factor), sources(runs)
    )


def _named(operand: Operand) -> str:
    return f"{operand.variant} over {operand.above}" if operand.above else operand.variant


def _difference_label(of: Operand, over: Operand) -> str:
    """What differs between the two sides, once, and what they share, once."""
    moments = {"best": "best snapshot", "start": "before training", "last": "end of training",
               "first_half": "first half of training",
               "rise": "rise from the first half to the end"}  # fmt: skip
    if of.above:
        return f"gain of {_named(of)}: {of.metric} − {over.metric}"
    if of.variant == over.variant and of.metric == over.metric:
        return f"{of.variant}, {of.metric}: {moments[of.at]} − {moments[over.at]}"
    if of.variant == over.variant:
        spared = f" + {of.plus:g}" if of.plus else ""
        return f"{of.variant}: {of.metric}{spared} − {over.metric}"
    if of.metric == over.metric:
        during = f", {moments[of.at]}" if of.at == over.at in ("first_half", "rise") else ""
        return f"{of.variant} − {over.variant}: {of.metric}{during}"
    return f"{of.variant} {of.metric} − {over.variant} {over.metric}"
