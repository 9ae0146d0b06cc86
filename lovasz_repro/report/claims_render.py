"""Claims on the terminal, as Markdown and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lovasz_repro.report.claims import ClaimVerdict, Evidence
from lovasz_repro.report.layout import MINUS, number
from lovasz_repro.report.render import md_escape
from lovasz_repro.report.rules import Effect, Interval, Verdict

COLOURS: dict[Verdict, str] = {
    "holds": "green",
    "does not hold": "red",
    "undecided": "yellow",
    "not yet run": "dim",
}
ORDER: tuple[Verdict, ...] = ("does not hold", "undecided", "holds", "not yet run")
SHOWN = 4
"""Most effects (or published numbers) that are listed; of more effects only the weakest."""
INDENT = "  "
HOW_TO_READ = (
    "± is the standard deviation over n independent numbers: seeds, categories (their seeds "
    "averaged), or draws of images. A claim is decided two standard errors from what it asks; "
    "n = 1 decides nothing."
)


def print_claims(verdicts: Sequence[ClaimVerdict], console: Console) -> None:
    """Show every claim with its verdict at paper scale, and the evidence of other runs."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    shown.add_column("claim", ratio=2)
    shown.add_column("at paper scale", no_wrap=True)
    shown.add_column("stored runs", ratio=3)
    for item in verdicts:
        claim = Group(Text(item.claim.statement), Text(published_text(item), style="dim"))
        verdict = Text(item.verdict, style=COLOURS[item.verdict])
        lines = [_hanging(line) for line in evidence_lines(item.evidence)]
        if item.command:
            lines.append(_hanging(f"decided by {item.command}", "dim"))
        shown.add_row(claim, verdict, Group(*lines))
    console.print(shown)
    console.print(HOW_TO_READ, style="dim")
    console.print(summary(verdicts))


def write_claims(verdicts: Sequence[ClaimVerdict], out: Path) -> list[Path]:
    """Write ``claims.md`` and ``claims.json``; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "claims.md", out / "claims.json"]
    for file, text in zip(files, (to_markdown(verdicts), to_json(verdicts)), strict=True):
        file.write_bytes(text.encode())
    return files


def summary(verdicts: Sequence[ClaimVerdict]) -> str:
    """How many claims have which verdict at paper scale."""
    counts = Counter(item.verdict for item in verdicts)
    return "At paper scale: " + ", ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS)


def to_markdown(verdicts: Sequence[ClaimVerdict]) -> str:
    """A table: claims, the paper's numbers, verdicts and evidence."""
    lines = ["### Claims of the paper", "", f"{summary(verdicts)}. {HOW_TO_READ}", ""]
    lines += [
        _md_row(["claim", "in the paper", "at paper scale", "stored runs"]),
        "|---|---|---|---|",
    ]
    for item in verdicts:
        evidence = [
            md_escape(line).replace(INDENT, "&emsp;") for line in evidence_lines(item.evidence)
        ]
        if item.command:
            evidence.append(f"decided by `{item.command}`")
        words = [md_escape(item.claim.statement), md_escape(published_text(item))]
        lines.append(_md_row([*words, f"**{item.verdict}**", "<br>".join(evidence)]))
    return "\n".join(lines) + "\n"


def to_json(verdicts: Sequence[ClaimVerdict]) -> str:
    """Everything: rules, published numbers, effects, and the runs behind each."""
    content = [
        {
            "id": item.claim.id,
            "verdict": item.verdict,
            "command": item.command,
            "claim": item.claim.model_dump(mode="json"),
            "evidence": [asdict(evidence) for evidence in item.evidence],
        }
        for item in verdicts
    ]
    return json.dumps(_precise(content), indent=1, ensure_ascii=False) + "\n"


def evidence_lines(evidence: Sequence[Evidence]) -> list[str]:
    """A line for each data set (why it is shown), each set of runs and each effect."""
    lines, told = [], ""
    for item in evidence:
        about = f"on {item.data}" + (f": {item.note}" if item.note else "")
        if about != told:
            lines.append(about)
            told = about
        marks = f" ({item.remark})" if item.remark else ""
        lines.append(f"{INDENT}{item.outcome.verdict}: {item.heading}{marks}")
        lines += [f"{INDENT}{INDENT}{line}" for line in _effect_lines(item.outcome.effects)]
    return lines


def published_text(item: ClaimVerdict) -> str:
    """The paper's numbers, where they are few; else only where they stand."""
    numbers = item.claim.published
    if not numbers or len(numbers) > SHOWN:
        return item.claim.place
    return f"{item.claim.place}: " + ", ".join(f"{name} {x:g}" for name, x in numbers.items())


def effect_text(effect: Effect) -> str:
    """ "+1.92 ± 0.30 points, n = 3, asked above 0: a − b, val/dataset_miou"."""
    unit = "" if effect.unit == "r" else f" {effect.unit}"
    spread = "" if effect.spread is None else f" ± {number(effect.spread, 2)}"
    mean = number(effect.mean, 2, signed=effect.unit == "points")
    asked = asked_text(effect.asked)
    return f"{mean}{spread}{unit}, n = {effect.n}, asked {asked}: {effect.label}"


def asked_text(asked: Interval) -> str:
    """ "above 0", "below 2", "between −0.5 and 0.5"."""
    low, high = (
        None if bound is None else f"{bound:.3g}".replace("-", MINUS)
        for bound in (asked.low, asked.high)
    )
    if low is not None and high is not None:
        return f"between {low} and {high}"
    return f"above {low}" if high is None else f"below {high}"


def _effect_lines(effects: Sequence[Effect]) -> list[str]:
    if len(effects) <= SHOWN:
        return [effect_text(effect) for effect in effects]
    agree = sum(effect.verdict == "holds" for effect in effects)
    weakest = min(effects, key=lambda e: (ORDER.index(e.verdict), e.asked.slack(e.mean)))
    return [f"{agree} of {len(effects)} hold; the weakest:", effect_text(weakest)]


def _md_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _hanging(line: str, style: str = "") -> Padding:
    """A line that keeps its indent where it wraps."""
    text = line.lstrip(" ")
    return Padding(Text(text, style), (0, 0, 0, len(line) - len(text)))


def _precise(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, dict):
        return {key: _precise(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_precise(item) for item in value]
    return value
