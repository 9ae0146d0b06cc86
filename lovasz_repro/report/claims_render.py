"""Claims on the terminal, as Markdown and as JSON."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from lovasz_repro.report.claims import ClaimVerdict, Evidence
from lovasz_repro.report.layout import number
from lovasz_repro.report.render import md_escape
from lovasz_repro.report.rules import Effect

COLOURS = {
    "holds": "green",
    "does not hold": "red",
    "undecided": "yellow",
    "not yet run": "dim",
}
SHOWN = 3
"""Most effects of one set of runs that are listed; of more, only the one nearest its bound."""


def print_claims(verdicts: Sequence[ClaimVerdict], console: Console) -> None:
    """Show every claim with its verdict at paper scale, and the evidence of other runs."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=True)
    shown.add_column("claim", ratio=2)
    shown.add_column("at paper scale", no_wrap=True)
    shown.add_column("stored runs", ratio=3)
    for item in verdicts:
        claim = Group(Text(item.claim.statement), Text(item.claim.place, style="dim"))
        verdict = Text(item.verdict, style=COLOURS[item.verdict])
        lines = [Text(line) for evidence in item.evidence for line in evidence_lines(evidence)]
        if item.command:
            lines.append(Text(f"decided by: {item.command}", style="dim"))
        shown.add_row(claim, verdict, Group(*lines))
    console.print(shown)
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
    """A table of all claims, then the published numbers and the evidence of each."""
    lines = ["### Claims of the paper", "", f"{summary(verdicts)}.", ""]
    lines += ["| claim | place | at paper scale | stored runs |", "|---|---|---|---|"]
    for item in verdicts:
        cells = [item.claim.statement, item.claim.place, f"**{item.verdict}**"]
        evidence = [md_escape(line) for e in item.evidence for line in evidence_lines(e)]
        if item.command:
            evidence.append(f"decided by `{item.command}`")
        row = [md_escape(cells[0]), md_escape(cells[1]), cells[2], "<br>".join(evidence)]
        lines.append("| " + " | ".join(row) + " |")
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


def evidence_lines(evidence: Evidence) -> list[str]:
    """One line for the verdict of a set of runs, one for each of its effects."""
    outcome = evidence.outcome
    note = f" ({evidence.note})" if evidence.note else ""
    lines = [f"{outcome.verdict} on {evidence.data}, {evidence.heading}{note}"]
    if len(outcome.effects) <= SHOWN:
        return lines + [f"  {effect_text(effect)}" for effect in outcome.effects]
    agree = sum(effect.verdict == "holds" for effect in outcome.effects)
    lines.append(f"  {agree} of {len(outcome.effects)} hold; the weakest:")
    return [*lines, f"  {effect_text(_weakest(outcome.effects))}"]


def effect_text(effect: Effect) -> str:
    """ "a − b: val/dataset_miou +1.92 ± 0.30 points, n = 3 (asked: above 0)"."""
    unit = f" {effect.unit}" if effect.unit == "points" else ""
    spread = "" if effect.spread is None else f" ± {number(effect.spread, 2)}"
    mean = number(effect.mean, 2, signed=effect.unit == "points")
    return f"{effect.label} {mean}{spread}{unit}, n = {effect.n} (asked: {effect.bound})"


def _weakest(effects: Sequence[Effect]) -> Effect:
    """An effect that speaks against the claim, else one that leaves it open, else the smallest."""
    order = ("does not hold", "undecided", "holds", "not yet run")
    return min(effects, key=lambda e: (order.index(e.verdict), abs(e.mean)))


def _precise(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.10g}")
    if isinstance(value, dict):
        return {key: _precise(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_precise(item) for item in value]
    return value
