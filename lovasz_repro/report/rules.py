"""How stored runs decide a claim: numbers per seed, their mean and spread, a verdict.

A mean is above (below) a bound when it is farther from it than two standard errors. A single
seed has no spread: its sign counts, and the report says so.
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lovasz_repro.report.claims_schema import (
    Correlated,
    Difference,
    OnlyBelow,
    Operand,
    RisesWith,
    Rule,
    Selection,
    Tolerated,
)
from lovasz_repro.report.runs import (
    Cohort,
    Run,
    RunStore,
    Source,
    at_best,
    before_training,
    mean_and_spread,
    seed,
    sources,
)

Verdict = Literal["holds", "does not hold", "undecided", "not yet run"]
Position = Literal["above", "below", "unclear"]
Key = tuple[str, ...]
Samples = dict[Key, tuple[float, Run]]
NO_SPREAD = "1 seed, no spread"


@dataclass(frozen=True)
class Effect:
    """One number that a rule looks at, over seeds, and what it says."""

    label: str
    verdict: Verdict
    mean: float
    spread: float | None
    """Sample standard deviation; None for a single value."""
    n: int
    unit: str
    bound: str
    """What the rule asks of the mean."""
    margin: float
    """How far the mean is on the right side of its bound; negative on the wrong side."""
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class Outcome:
    """What a rule says about one set of runs."""

    verdict: Verdict
    effects: tuple[Effect, ...]
    missing: tuple[str, ...]
    """What the rule needs and the runs do not have."""


def decide(store: RunStore, cohort: Cohort, rule: Rule, pairs: Sequence[str] = ()) -> Outcome:
    """Apply a rule to runs that may stand together.

    Args:
        store: where histories are read.
        cohort: the runs.
        rule: what to look at.
        pairs: parameters by which differences are paired, beside the seed.
    """
    found: list[Effect | str]
    if isinstance(rule, Difference):
        found = [_difference(store, cohort, rule, pairs, *pair) for pair in rule.differences()]
    elif isinstance(rule, OnlyBelow):
        found = [_bounded(store, cohort, rule, operand) for operand in rule.operands()]
    elif isinstance(rule, RisesWith):
        found = [_slope(store, cohort, rule)]
    else:
        found = [_correlation(store, cohort, rule)]
    effects = tuple(item for item in found if isinstance(item, Effect))
    missing = tuple(dict.fromkeys(item for item in found if isinstance(item, str)))
    return Outcome(_together(effects, missing), effects, missing)


def position(values: Sequence[float], bound: float) -> Position:
    """Where the mean lies: above or below the bound by more than two standard errors."""
    mean, spread = mean_and_spread(values)
    margin = 2 * (spread or 0.0) / math.sqrt(len(values))
    if mean - bound > margin:
        return "above"
    return "below" if bound - mean > margin else "unclear"


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
) -> Effect | str:
    first = _samples(store, cohort, rule, of, pairs)
    second = _samples(store, cohort, rule, over, pairs)
    for operand, samples in ((of, first), (over, second)):
        if not samples:
            return f"{operand.metric} of {operand.variant}"
    shared = [key for key in first if key in second]
    if not shared:
        return f"{of.variant} and {over.variant} with a common seed"
    values = [first[key][0] - second[key][0] for key in shared]
    runs = [side[key][1] for key in shared for side in (first, second)]
    verdict, bound = _difference_verdict(rule, values)
    return _effect(_difference_label(of, over), verdict, values, "points", bound, runs)


def _difference_verdict(rule: Difference, values: Sequence[float]) -> tuple[Verdict, str]:
    if not isinstance(rule, Tolerated):
        wanted: Position = "above" if rule.kind == "greater" else "below"
        return _asked(position(values, 0.0), wanted), f"{wanted} 0"
    tolerance = rule.tolerance
    upper = _asked(position(values, tolerance), "below")
    if rule.kind == "no_greater":
        return upper, f"below {100 * tolerance:g}"
    lower = _asked(position(values, -tolerance), "above")
    both: tuple[Verdict, Verdict] = (upper, lower)
    bound = f"between −{100 * tolerance:g} and {100 * tolerance:g}"
    if "does not hold" in both:
        return "does not hold", bound
    return ("holds" if both == ("holds", "holds") else "undecided"), bound


def _bounded(store: RunStore, cohort: Cohort, rule: OnlyBelow, operand: Operand) -> Effect | str:
    samples = _samples(store, cohort, rule, operand, ())
    if not samples:
        return operand.metric
    wanted: Position = "below" if operand.metric == rule.only else "above"
    values = [value for value, _ in samples.values()]
    verdict = _asked(position(values, rule.tolerance), wanted)
    runs = [run for _, run in samples.values()]
    return _effect(
        operand.metric, verdict, values, "points", f"{wanted} {100 * rule.tolerance:g}", runs
    )


def _slope(store: RunStore, cohort: Cohort, rule: RisesWith) -> Effect | str:
    """Change of the metric per doubling of the parameter, a least-squares line per seed."""
    operand = Operand(rule.variant, rule.metric, rule.at)
    samples = _samples(store, cohort, rule, operand, (rule.parameter,))
    by_seed: dict[str, list[tuple[float, float]]] = {}
    for (number, parameter, *_), (value, _) in samples.items():
        by_seed.setdefault(number, []).append((math.log2(float(parameter)), value))
    usable = {s: points for s, points in by_seed.items() if len({x for x, _ in points}) > 1}
    if not usable:
        return f"{rule.metric} of {rule.variant} at two or more values of {rule.parameter}"
    values = [
        statistics.linear_regression([x for x, _ in points], [y for _, y in points]).slope
        for points in usable.values()
    ]
    runs = [run for key, (_, run) in samples.items() if key[0] in usable]
    label = f"{rule.variant}: {rule.metric} per doubling of {rule.parameter}"
    return _effect(label, _asked(position(values, 0.0), "above"), values, "points", "above 0", runs)


def _correlation(store: RunStore, cohort: Cohort, rule: Correlated) -> Effect | str:
    """Pearson's correlation of two histories at their common steps, a number per run."""
    values, runs = [], []
    for run in _selected(cohort, rule, rule.variant):
        first, second = (dict(store.history(run.run_id, metric)) for metric in rule.metrics)
        steps = [s for s in first if s in second and math.isfinite(first[s] + second[s])]
        pair = [first[s] for s in steps], [second[s] for s in steps]
        if len(steps) > 2 and all(len(set(side)) > 1 for side in pair):
            values.append(statistics.correlation(*pair))
            runs.append(run)
    if not values:
        return f"{' and '.join(rule.metrics)} of {rule.variant} along a run"
    label = f"{rule.variant}: correlation of {' and '.join(rule.metrics)}"
    verdict = _asked(position(values, rule.at_least), "above")
    return _effect(label, verdict, values, "r", f"above {rule.at_least:.2g}", runs)


def _samples(
    store: RunStore, cohort: Cohort, rule: Selection, operand: Operand, pairs: Sequence[str]
) -> Samples:
    """(seed, pairing parameters, step) -> value and run; what is not a number is left out."""
    samples: Samples = {}
    for run in _selected(cohort, rule, operand.variant):
        key = (seed(run), *(run.params.get(name, "") for name in pairs))
        if rule.samples == "steps":
            for step, value in store.history(run.run_id, operand.metric):
                samples[*key, str(step)] = value, run
        elif (found := _value(store, run, operand)) is not None:
            samples[key] = found, run
    return {key: sample for key, sample in samples.items() if math.isfinite(sample[0])}


def _selected(cohort: Cohort, rule: Selection, variant: str) -> list[Run]:
    runs = cohort.select(variant) if variant else list(cohort.runs)
    return [r for r in runs if all(r.params.get(k) == v for k, v in rule.where.items())]


def _value(store: RunStore, run: Run, operand: Operand) -> float | None:
    if operand.at == "best":
        return at_best(store, run, operand.metric)
    if operand.at == "start":
        return before_training(store, run, operand.metric)
    return run.metrics.get(operand.metric)


def _asked(found: Position, wanted: Position) -> Verdict:
    if found == "unclear":
        return "undecided"
    return "holds" if found == wanted else "does not hold"


def _effect(
    label: str,
    verdict: Verdict,
    values: Sequence[float],
    unit: str,
    bound: str,
    runs: Iterable[Run],
) -> Effect:
    factor = 100 if unit == "points" else 1
    mean, spread = mean_and_spread([factor * value for value in values])
    return Effect(label, verdict, mean, spread, len(values), unit, bound, sources(runs))


def _difference_label(of: Operand, over: Operand) -> str:
    """Names what differs between the two sides once, and what they share once."""
    moments = {"best": " (best snapshot)", "start": " (before training)", "last": ""}
    if of.variant == over.variant and of.metric == over.metric:
        return (
            f"{of.variant}: {of.metric}{moments[of.at]} − {moments[over.at].strip(' ()') or 'end'}"
        )
    if of.variant == over.variant:
        return f"{of.variant}: {of.metric} − {over.metric}"
    return f"{of.variant} − {over.variant}: {of.metric}"
