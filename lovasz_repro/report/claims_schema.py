"""What may stand in ``experiments/claims.yaml``: claims, and the few rules that decide them."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from lovasz_repro.config.read import SPELT_OUT, Strict, dotted, read_yaml, validate
from lovasz_repro.config.schema import BASIS, experiments_folder
from lovasz_repro.report.runs import Moment, shipped

Tolerance = Annotated[float, Field(ge=0)]


class Operand(NamedTuple):
    """One number per run: a metric of a variant, at a moment of its training."""

    variant: str
    metric: str
    at: Moment
    above: str = ""
    """A variant of the same seed that this one is measured from; then the number is a gain."""
    plus: float = 0.0
    """Added to it."""


class Side(Strict):
    """One side of a difference; what is left out comes from the rule."""

    variant: str
    above: str = ""
    metric: str | None = None
    at: Moment | None = None
    plus: float = 0.0
    """What a difference may fall short by."""


class Compare(Strict):
    """A difference ``of`` - ``over``; a bare name is a variant."""

    of: str | Side
    over: str | Side
    metric: str | None = None


class Selection(Strict):
    """What every rule can narrow."""

    samples: Literal["runs", "steps", "crossed"] = "runs"
    """A sample is a run, or a step of a metric's history where each step is a draw of its own;
    crossed: a step that every run shares, so that what is asked is asked over steps and runs."""
    where: dict[str, bool | int | float | str | None] = Field(default_factory=dict)
    """Settings that runs must have."""


class Difference(Selection):
    """Every difference is above 0 (``greater``) or below (``less``)."""

    kind: Literal["greater", "less"]
    metric: str | None = None
    metrics: list[str] = Field(default_factory=list)
    """Take every difference in each of these."""
    at: Moment = "last"
    compare: list[Compare] = Field(min_length=1)

    def differences(self) -> Iterator[tuple[Operand, Operand]]:
        """All differences, as operands with nothing left out."""
        for compare in self.compare:
            for metric in self.metrics or [compare.metric or self.metric or ""]:
                yield self._operand(compare.of, metric), self._operand(compare.over, metric)

    def operands(self) -> Iterator[Operand]:
        """Every number that the rule reads."""
        for pair in self.differences():
            yield from pair

    @model_validator(mode="after")
    def _metrics_are_named(self) -> "Difference":
        if not all(operand.metric for operand in self.operands()):
            raise ValueError("a side of a comparison has no metric, nor has the rule")
        return self

    def _operand(self, side: str | Side, metric: str) -> Operand:
        if isinstance(side, str):
            return Operand(side, metric, self.at)
        return Operand(
            side.variant, side.metric or metric, side.at or self.at, side.above, side.plus
        )


class Tolerated(Difference):
    """No difference exceeds the tolerance (``no_greater``), nor its negative (``within``)."""

    kind: Literal["no_greater", "within"]  # type: ignore[assignment]
    tolerance: Tolerance
    because: str
    """Why this tolerance."""


class OnlyBelow(Selection):
    """Of several metrics of a run, only one does not exceed the tolerance."""

    kind: Literal["only_below"]
    only: str
    others: list[str] = Field(min_length=1)
    tolerance: Tolerance
    because: str

    def operands(self) -> Iterator[Operand]:
        """Every number that the rule reads."""
        for metric in (self.only, *self.others):
            yield Operand("", metric, "last")


class RisesWith(Selection):
    """The slope of a metric over log2 of a parameter is above 0."""

    kind: Literal["rises_with"]
    variant: str
    metric: str
    at: Moment = "last"
    parameter: str

    def operands(self) -> Iterator[Operand]:
        """The number that the rule reads."""
        yield Operand(self.variant, self.metric, self.at)


class Correlated(Selection):
    """Two metrics bend together along each run, beyond what they share as learning curves."""

    kind: Literal["correlated"]
    variant: str
    metrics: tuple[str, str]
    at_least: Annotated[float, Field(ge=0, lt=1)]
    because: str

    def operands(self) -> Iterator[Operand]:
        """The two histories that the rule reads."""
        for metric in self.metrics:
            yield Operand(self.variant, metric, "last")


Rule = Annotated[
    Difference | Tolerated | OnlyBelow | RisesWith | Correlated, Field(discriminator="kind")
]


class Also(Strict):
    """A related experiment, shown beside the claim; it decides nothing."""

    experiment: str
    note: str
    rule: Rule


class Recipe(Strict):
    """Settings of an experiment that a statement is about."""

    experiment: str
    profile: str = "paper"
    variants: list[str] = Field(default_factory=list)
    """Empty: all that the profile runs."""
    settings: dict[str, Any] = Field(min_length=1)
    """Dotted key -> what the statement says."""

    def is_followed(self) -> bool:
        """Whether all runs of the experiment have these settings.

        Raises:
            UserError: there is no such experiment, profile or variant.
        """
        cells = shipped(self.experiment).cells(
            self.profile, variants=self.variants or None, with_basis=BASIS in self.variants
        )
        asked = {key: str(value) for key, value in self.settings.items()}
        return all(
            asked.items() <= dotted(cell.model_dump(mode="json", context=SPELT_OUT)).items()
            for cell in cells
        )


class Claim(Strict):
    """One checkable statement of the paper."""

    id: str
    statement: str
    place: str
    experiment: str = ""
    """Whose paper-scale runs decide it."""
    command: str = ""
    """What runs these, where it is not the experiment's command."""
    rule: Rule | None = None
    tests: list[str] = Field(default_factory=list)
    """Tests of this project that decide it in the place of runs: file::function."""
    recipe: Recipe | None = None
    """Settings that are as it says, in the place of a rule."""
    undecidable: str = ""
    """Why nothing decides it, in the place of these."""
    also: list[Also] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_ground(self) -> "Claim":
        grounds = self.rule, self.tests, self.recipe, self.undecidable
        if sum(map(bool, grounds)) != 1 or bool(self.rule) != bool(self.experiment):
            raise ValueError(f"claim {self.id} needs one of a rule with an experiment, tests, a "
                             "recipe, or undecidable: why")  # fmt: skip
        return self


class Names(Strict):
    """An experiment as the rules see it: every name they use, and what it means."""

    command: str
    """What runs it at paper scale."""
    pairs: list[str] = Field(default_factory=list)
    """Parameters by which differences are paired, beside the seed."""
    variants: dict[str, str]
    metrics: dict[str, str]


class ClaimsFile(Strict):
    """``experiments/claims.yaml``."""

    experiments: dict[str, Names]
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> "ClaimsFile":
        ids = [claim.id for claim in self.claims]
        repeated = {name for name in ids if ids.count(name) > 1}
        if repeated:
            raise ValueError(f"claim {min(repeated)} is given twice")
        for claim in self.claims:
            if claim.rule:
                self._check(claim.id, claim.experiment, claim.rule)
            for also in claim.also:
                self._check(claim.id, also.experiment, also.rule)
        return self

    def _check(self, claim: str, experiment: str, rule: Rule) -> None:
        if experiment not in self.experiments:
            raise ValueError(f"claim {claim}: experiment {experiment} is not described")
        names = self.experiments[experiment]
        for operand in rule.operands():
            for variant in filter(None, (operand.variant, operand.above)):
                if variant not in names.variants:
                    raise ValueError(f"claim {claim}: {experiment} has no variant {variant}")
            if operand.metric not in names.metrics:
                raise ValueError(f"claim {claim}: {experiment} has no metric {operand.metric}")


def load_claims() -> ClaimsFile:
    """The claims, read and checked once.

    Raises:
        UserError: unknown key, wrong type, a name that is not described; one line.
    """
    return _read_claims(experiments_folder() / "claims.yaml")


@cache
def _read_claims(path: Path) -> ClaimsFile:
    return validate(ClaimsFile, read_yaml(path), path.name)
