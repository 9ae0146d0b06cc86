"""What the paper claims, and what the stored runs say about it.

A claim is decided by paper-scale runs of its experiment alone. Runs of other scales, and related
experiments, are evidence beside it, each set of runs for itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lovasz_repro.report.claims_rules import TOO_FEW, RuleOutcome, Verdict, decide
from lovasz_repro.report.claims_schema import Claim, ClaimsFile, RisesWith, Rule, load_claims
from lovasz_repro.report.published import printed_numbers
from lovasz_repro.report.runs import (
    BATCH_SIZE,
    Cohort,
    Remembered,
    RunStore,
    with_batch_size,
)
from lovasz_repro.report.sets import plans


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
    remembered = Remembered(store)
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
    names = known.experiments[experiment]
    for cohort, heading in _sets_of_runs(store, experiment, rule):
        outcome = decide(store, cohort, rule, names.pairs)
        if not outcome.effects:
            continue
        single = any(effect.n == 1 for effect in outcome.effects)
        remarks = [TOO_FEW if single else "", _lacking(outcome)]
        yield SetEvidence(
            experiment,
            names.data,
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


def _lacking(outcome: RuleOutcome) -> str:
    return f"lacks {', '.join(outcome.missing)}" if outcome.missing else ""
