"""Claims on the terminal, as Markdown and as JSON."""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lovasz_repro.host.output import plural, print_note, print_table
from lovasz_repro.report.claims import ClaimVerdict, Effect, Interval, SetEvidence, Verdict
from lovasz_repro.report.claims_schema import Claim
from lovasz_repro.report.layout import MINUS, number, precise
from lovasz_repro.report.render import md_escape, md_line, md_text
from lovasz_repro.report.runs import SCALES
from lovasz_repro.report.words import sentence

VERDICTS: dict[Verdict, str] = {
    "holds": "green",
    "does not hold": "red",
    "undecided": "yellow",
    "not yet run": "dim",
    "tested": "green",
    "as written": "green",
    "differs": "red",
    "no rule": "dim",
}
SEVERAL = {"holds": "hold", "does not hold": "do not hold"}
"""Verdicts of none or of more than one."""
ORDER: tuple[Verdict, ...] = ("does not hold", "undecided", "holds", "not yet run", "no rule")
OF_OTHERS: dict[Verdict, str] = {
    "holds": "others: hold", "does not hold": "do not", "undecided": "open"
}  # fmt: skip
"""Columns that count the sets of runs that decide nothing."""
MOST_EFFECTS = 4
"""Most effects (or published numbers) that are listed; of more effects only the weakest."""
INDENT = "  "


def print_claim(item: ClaimVerdict, console: Console) -> None:
    """Show a claim, its verdict at paper scale, and the evidence of other runs."""
    verdict = Text(item.verdict, style=VERDICTS[item.verdict])
    scale = " at paper scale" if item.claim.rule else ""
    console.print(Text.assemble((item.claim.id, "bold"), ": ", verdict, scale))
    print_note(console, item.claim.statement)
    print_note(console, published_text(item), "dim")
    for line in evidence_lines(item.evidence):
        text = line.lstrip(" ")
        print_note(console, text, indent=1 + len(line) - len(text))
    for ground in grounds(item.claim):
        print_note(console, ground, "dim")
    if item.command:
        print_note(console, f"decided by {item.command}", "dim")
    console.print()


def print_overview(
    verdicts: Sequence[ClaimVerdict], news: Collection[str], console: Console
) -> None:
    """How many claims hold, and a line for each of them that runs or nothing decide.

    Args:
        verdicts: all of them.
        news: ids of those that are new, or not what they were in the report before.
        console: where.
    """
    console.print(f"{summary(verdicts)}.")
    rows = []
    for item in verdicts:
        if item.verdict in ("tested", "as written"):
            continue
        others = Counter(one.outcome.verdict for one in item.evidence if not one.decides)
        rows.append(
            [
                item.claim.id,
                item.claim.place.split(",")[0].removeprefix("Sec. "),
                Text(item.verdict, VERDICTS[item.verdict]),
                *(str(others[verdict] or "") for verdict in OF_OTHERS),
                "new" if item.claim.id in news else "",
            ]
        )
    heads = ["claim", "Sec.", "paper scale", *OF_OTHERS.values(), ""]
    print_table(console, heads, rows, words=(0, 1, 2, 6))
    if commands := dict.fromkeys(item.command for item in verdicts if item.command):
        print_note(console, f"not yet run: {'; '.join(commands)}", "dim")


def claims_files(verdicts: Sequence[ClaimVerdict]) -> dict[str, str]:
    """The files of the claims: name and text."""
    return {"claims.md": to_markdown(verdicts), "claims.json": to_json(verdicts)}


def changed(verdicts: Sequence[ClaimVerdict], before: Path) -> set[str]:
    """Ids of the claims with runs that are not what an earlier ``claims.json`` says of them."""
    try:
        told = {item["id"]: item for item in json.loads(before.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError):
        told = {}
    return {
        item["id"]
        for item in json.loads(to_json(verdicts))
        if item["evidence"] and item != told.get(item["id"])
    }


def summary(verdicts: Sequence[ClaimVerdict]) -> str:
    """How many claims have which verdict at paper scale."""
    counts = Counter(item.verdict for item in verdicts)
    told = ", ".join(_several(counts[verdict], verdict) for verdict in VERDICTS)
    return f"{plural(len(verdicts), 'statement')}. At paper scale: {told}"


def counted(evidence: Sequence[SetEvidence]) -> str:
    """ "15 hold, 2 do not hold, 1 undecided"."""
    counts = Counter(one.outcome.verdict for one in evidence)
    return ", ".join(_several(counts[verdict], verdict) for verdict in VERDICTS if counts[verdict])


def _several(count: int, verdict: Verdict) -> str:
    return f"{count} {verdict if count == 1 else SEVERAL.get(verdict, verdict)}"


def statements(verdicts: Sequence[ClaimVerdict]) -> list[str]:
    """Lines of a Markdown table: every statement, its place, its verdict by scale, the evidence.

    Sets of runs that lack a number that the rule compares are no part of it.
    """
    lines = [
        md_line(["statement", "in the paper", *(f"{scale} scale" for scale in SCALES), "evidence"]),
        "|" + "---|" * (len(SCALES) + 3),
    ]
    for item in verdicts:
        whole = [one for one in item.evidence if not one.outcome.missing]
        others = [counted([one for one in whole if one.scale == scale]) for scale in SCALES[1:]]
        runs = {
            source.run_id
            for one in whole
            for effect in one.outcome.effects
            for source in effect.sources
        }
        data = "; ".join(dict.fromkeys(one.data for one in whole))
        evidence = (
            f"{plural(len(runs), 'run')} on {data}" if runs else "; ".join(grounds(item.claim))
        )
        words = [md_escape(text) for text in (item.claim.statement, item.claim.place)]
        lines.append(md_line([*words, f"**{item.verdict}**", *others, md_escape(evidence)]))
    return lines


def to_markdown(verdicts: Sequence[ClaimVerdict]) -> str:
    """All statements, then each with the paper's numbers, verdict and evidence."""
    told = sentence("how-to-read-claims")
    lines = ["### Claims of the paper", "", f"{summary(verdicts)}. {told}", ""]
    lines += [*statements(verdicts), "", "### Their evidence", ""]
    lines += [
        md_line(["claim", "in the paper", "at paper scale", "stored runs"]),
        "|---|---|---|---|",
    ]
    for item in verdicts:
        evidence = [
            md_escape(line).replace(INDENT, "&emsp;") for line in evidence_lines(item.evidence)
        ]
        evidence += [md_escape(ground) for ground in grounds(item.claim)]
        if item.command:
            evidence.append(md_text(f"decided by `{item.command}`"))
        words = [md_escape(item.claim.statement), md_escape(published_text(item))]
        lines.append(md_line([*words, f"**{item.verdict}**", "<br>".join(evidence)]))
    return "\n".join(lines) + "\n"


def to_json(verdicts: Sequence[ClaimVerdict]) -> str:
    """Everything: rules, published numbers, effects, and the runs behind each."""
    content = [
        {
            "id": item.claim.id,
            "verdict": item.verdict,
            "command": item.command,
            "claim": item.claim.model_dump(mode="json"),
            "published": item.published,
            "evidence": [asdict(evidence) for evidence in item.evidence],
        }
        for item in verdicts
    ]
    return json.dumps(precise(content), indent=1, ensure_ascii=False) + "\n"


def grounds(claim: Claim) -> list[str]:
    """What decides a statement that no run decides, or why nothing does."""
    if claim.recipe:
        asked, of = claim.recipe.settings.items(), claim.recipe
        which = f" {', '.join(of.variants)}" if of.variants else ""
        told = ", ".join(f"{key}={value}" for key, value in asked)
        return [f"{of.experiment}, profile {of.profile}{which}: {told}"]
    return claim.tests or ([claim.undecidable] if claim.undecidable else [])


def evidence_lines(evidence: Sequence[SetEvidence]) -> list[str]:
    """A line for each data set (why it is shown), each set of runs and each effect.

    Of sets that hold beside the deciding ones, the first few are told in full.
    """
    lines, told, holding = [], "", Counter[str]()
    for item in evidence:
        about = f"on {item.data}" + (f": {item.note}" if item.note else "")
        if about != told:
            lines.append(about)
            told = about
        if item.outcome.verdict == "holds" and not item.decides:
            holding[about] += 1
            if holding[about] > MOST_EFFECTS:
                continue
        marks = f" ({item.remark})" if item.remark else ""
        lines.append(f"{INDENT}{item.outcome.verdict}: {item.heading}{marks}")
        lines += [f"{INDENT}{INDENT}{line}" for line in _effect_lines(item.outcome.effects)]
    more = {about: count - MOST_EFFECTS for about, count in holding.items() if count > MOST_EFFECTS}
    lines += [f"{about}: {count} more sets hold" for about, count in more.items()]
    return lines


def published_text(item: ClaimVerdict) -> str:
    """The paper's numbers, where they are few; else only where they stand."""
    numbers = item.published
    if not numbers or len(numbers) > MOST_EFFECTS:
        return item.claim.place
    return f"{item.claim.place}: " + ", ".join(f"{name} {x:g}" for name, x in numbers.items())


def effect_text(effect: Effect) -> str:
    """ "+1.92 ± 0.30 points, n = 3, asked above 0: a − b, val/dataset_miou"."""
    asked = asked_text(effect.asked)
    return f"{effect_size(effect)}, n = {effect.n}, asked {asked}: {effect.label}"


def effect_size(effect: Effect) -> str:
    """ "+1.92 ± 0.30 points"."""
    unit = "" if effect.unit == "r" else f" {effect.unit}"
    spread = "" if effect.spread is None else f" ± {number(effect.spread, 2)}"
    return f"{number(effect.mean, 2, signed=effect.unit != 'r')}{spread}{unit}"


def asked_text(asked: Interval) -> str:
    """ "above 0", "below 2", "at most 2", "between −0.5 and 0.5"."""
    low, high = (
        None if bound is None else f"{bound:.3g}".replace("-", MINUS)
        for bound in (asked.low, asked.high)
    )
    if low is not None and high is not None:
        return f"between {low} and {high}"
    if high is None:
        return f"above {low}"
    return f"at most {high}" if asked.closed else f"below {high}"


def _effect_lines(effects: Sequence[Effect]) -> list[str]:
    if len(effects) <= MOST_EFFECTS:
        return [effect_text(effect) for effect in effects]
    agree = sum(effect.verdict == "holds" for effect in effects)
    weakest = min(effects, key=lambda e: (ORDER.index(e.verdict), e.asked.slack(e.mean)))
    return [f"{agree} of {len(effects)} hold; the weakest:", effect_text(weakest)]
