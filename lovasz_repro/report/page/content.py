"""What stands on the page: for every section of the paper its statements, tables and figures, the
runs behind each number, and what is missing."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from lovasz_repro.host.output import plural
from lovasz_repro.report.claims import ClaimVerdict, SetEvidence, Verdict, evaluate_claims
from lovasz_repro.report.claims_render import grounds
from lovasz_repro.report.claims_schema import load_claims
from lovasz_repro.report.figures import FIGURES
from lovasz_repro.report.layout import number, precise
from lovasz_repro.report.model import Block, Curve, Drawing, Missing, Table
from lovasz_repro.report.page.svg import inline_svg
from lovasz_repro.report.runs import SCALES, Provenance, RunStore, command, remember, sources
from lovasz_repro.report.style import RC, SEARCHED
from lovasz_repro.report.synthetic_figure import JACCARD_CURVE, LOSS_DASHES, relative, searched
from lovasz_repro.report.tables import TABLES
from lovasz_repro.report.words import SectionWords, captions

SEARCH_SECTION = "4.1"
MIXED = "sets disagree"
VERDICTS_AT: tuple[str, ...] = (
    "holds", "does not hold", MIXED, "undecided", "not yet run",
    "tested", "as written", "differs", "no rule",
)  # fmt: skip
"""What may be said of a statement at one scale, in the order of the summary."""


@dataclass(frozen=True)
class ShownFigure:
    """A figure, or why there is none."""

    name: str
    caption: str
    svg: Markup | None
    curves: tuple[Curve, ...]
    scales: str
    missing: Missing | None

    @property
    def number(self) -> str:
        """Which figure of the paper it is; "" for one of ours."""
        number = self.name.removeprefix("figure-")
        return number if number != self.name else ""


@dataclass(frozen=True)
class ShownClaim:
    """A statement, with its verdict at every scale and the sets of runs at each."""

    item: ClaimVerdict
    number: int
    verdicts: Mapping[str, str]
    sets: Mapping[str, tuple[SetEvidence, ...]]

    @property
    def grounds(self) -> list[str]:
        """Of a statement that no run decides: what does, or why nothing does."""
        return grounds(self.item.claim)

    @property
    def pairs(self) -> str:
        """What the filters ask for: "paper:holds reduced:undecided"."""
        found = {("paper", self.item.verdict): None}
        found |= {
            (scale, one.outcome.verdict): None for scale, sets in self.sets.items() for one in sets
        }
        return " ".join(f"{scale}:{slug(verdict)}" for scale, verdict in found)


@dataclass(frozen=True)
class PageSection:
    """A section of the paper; without a number what the paper has not."""

    words: SectionWords
    claims: tuple[ShownClaim, ...]
    tables: tuple[Table, ...]
    figures: tuple[ShownFigure, ...]
    slider: "BiasSlider | Missing | None"
    names: Mapping[str, str]
    """Variants and metrics that the evidence names -> what they are."""

    @property
    def anchor(self) -> str:
        """Of its heading."""
        return f"section-{slug(self.words.number or self.words.title)}"

    @property
    def missing(self) -> Mapping[str, list[str]]:
        """Command -> what it decides, fills and draws."""
        waiting: dict[str, list[str]] = {}
        for claim in self.claims:
            if claim.item.command:
                waiting.setdefault(claim.item.command, []).append(str(claim.number))
        found = {
            fill: [f"statement{'s' if numbers[1:] else ''} {', '.join(numbers)}"]
            for fill, numbers in waiting.items()
        }
        for table in self.tables:
            cells = [cell for cell in table.cells if cell.value is None]
            for fill in dict.fromkeys(cell.command for cell in cells):
                count = sum(cell.command == fill for cell in cells)
                found.setdefault(fill, []).append(f"{plural(count, 'number')} of {table.name}")
        for figure in self.figures:
            if figure.missing:
                found.setdefault(figure.missing.command, []).append(figure.name)
        return found


@dataclass(frozen=True)
class PageContent:
    """Everything on the page."""

    sections: tuple[PageSection, ...]
    claims: tuple[ShownClaim, ...]

    def count(self, scale: str, verdict: str) -> int:
        """Statements of a verdict at a scale."""
        return sum(claim.verdicts[scale] == verdict for claim in self.claims)


PAGE_STEPS = len(TABLES) + len(FIGURES) + 1
"""How often `page_content` tells how far it is."""


def page_content(store: RunStore, told: Callable[[str], None] = lambda name: None) -> PageContent:
    """Read the store and make everything of it.

    Args:
        store: where to read.
        told: called with the name of what has been made, `PAGE_STEPS` times.

    Raises:
        UserError: a file of ``experiments/`` is not as it should be.
    """
    remembered = remember(store)
    verdicts = evaluate_claims(remembered)
    told("claims")
    claims = [_claim(item, number) for number, item in enumerate(verdicts, start=1)]
    tables, figures = dict[str, Table](), dict[str, ShownFigure]()
    for name, build in TABLES.items():
        tables[name] = build(remembered)
        told(name)
    for name, draw in FIGURES.items():
        figures[name] = _figure(name, draw, remembered)
        told(name)
    sections = tuple(_sections(claims, tables, figures, remembered))
    return PageContent(sections, tuple(claims))


def slug(text: str) -> str:
    """A text as a part of an address or a class: "does not hold" -> "does-not-hold"."""
    return "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _sections(
    claims: Sequence[ShownClaim],
    tables: Mapping[str, Table],
    figures: Mapping[str, ShownFigure],
    store: RunStore,
) -> Iterator[PageSection]:
    """The sections of the paper; the last one, without a number, takes what no other names."""
    known = captions().sections
    named_tables = {name for words in known for name in words.tables}
    named_figures = {name for words in known for name in words.figures}
    for words in known:
        of_tables, of_figures = list(words.tables), list(words.figures)
        if not words.number:
            of_tables += [name for name in tables if name not in named_tables]
            of_figures += [name for name in figures if name not in named_figures]
        here = tuple(claim for claim in claims if _section_of(claim) == words.number)
        yield PageSection(
            words=words,
            claims=here,
            tables=tuple(tables[name] for name in of_tables),
            figures=tuple(figures[name] for name in of_figures),
            slider=bias_slider(store) if words.number == SEARCH_SECTION else None,
            names=_names(here),
        )


def _section_of(claim: ShownClaim) -> str:
    """ "Sec. 4.1, Fig. 3b" -> "4.1"; "Sec. 2.2" -> "2" and "Sec. 3" -> "3.1", the nearest there is;
    "" where the page has none."""
    number = claim.item.claim.place.split(",")[0].removeprefix("Sec. ")
    known = [words.number for words in captions().sections]
    near = [other for other in known if other[:1] == number[:1]]
    return number if number in known else next(iter(near), "")


# -- claims ------------------------------------------------------------------------------------


def _claim(item: ClaimVerdict, number: int) -> ShownClaim:
    by_scale = {
        scale: tuple(one for one in item.evidence if one.scale == scale)
        for scale in dict.fromkeys((*SCALES, *(one.scale for one in item.evidence)))
    }
    return ShownClaim(item, number, {scale: verdict_at(item, scale) for scale in SCALES}, by_scale)


def verdict_at(item: ClaimVerdict, scale: str) -> str:
    """What the sets of runs at a scale say together; at paper scale, the claim's verdict."""
    if scale == "paper" or item.claim.rule is None:
        return item.verdict
    said: set[Verdict] = {one.outcome.verdict for one in item.evidence if one.scale == scale}
    if {"holds", "does not hold"} <= said:
        return MIXED
    return next((verdict for verdict in VERDICTS_AT if verdict in said), "not yet run")


def _names(claims: Sequence[ShownClaim]) -> dict[str, str]:
    """Of the evidence of some claims, in the words of ``experiments/claims.yaml``."""
    known = load_claims().experiments
    found: dict[str, dict[str, str]] = {}
    for one in (one for claim in claims for one in claim.item.evidence):
        labels = " ".join(effect.label for effect in one.outcome.effects)
        names = known[one.experiment]
        for name, meaning in (names.variants | names.metrics).items():
            if re.search(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", labels):
                found.setdefault(name, {}).setdefault(meaning, one.experiment)
    return {
        name: "; ".join(f"{m} ({of})" for m, of in told.items())
        if len(told) > 1
        else next(iter(told))
        for name, told in found.items()
    }


# -- tables and figures ------------------------------------------------------------------------


def scale_of(block: Block) -> str:
    """Of the runs in a block; one without runs waits for those of the paper."""
    found = {s.scale for row in block.rows for cell in row.cells if cell for s in cell.sources}
    return " ".join(sorted(found)) or "paper"


def _figure(
    name: str, draw: Callable[[RunStore], Drawing | Missing], store: RunStore
) -> ShownFigure:
    import matplotlib

    with matplotlib.rc_context(RC):
        drawing = draw(store)
    if isinstance(drawing, Missing):
        return ShownFigure(name, "", None, (), "paper", drawing)
    alternative = captions().alternatives.get(name, drawing.caption)
    curves, svg = drawing.curves, inline_svg(drawing, name, alternative)
    scales = sorted({source.scale for curve in curves for source in curve.sources})
    return ShownFigure(name, drawing.caption, svg, curves, " ".join(scales) or "paper", None)


# ---- Sec. 4.1 to try -----------------------------------------------------------------------------
#
# Sec. 4.1 to try: one image, its mask at any bias, and where that is on the curve of each loss.

MOST_BIASES, MOST_PIXELS = 10_000, 128
"""Of what a stored run may hold, and a page can."""
LEFT, RIGHT, TOP, BOTTOM = 40, 590, 12, 222
"""Of the curves in the plot, in its own units."""


@dataclass(frozen=True)
class BiasCurve:
    """A loss against the bias, between its minimum (0) and its maximum (1)."""

    name: str
    title: str
    colour: str
    dashes: str
    wide: bool
    path: str
    """As SVG has it."""
    argmin: int
    """Which bias."""
    lowest: str
    """That bias as text."""


@dataclass(frozen=True)
class BiasSlider:
    """What the page shows, and the numbers that its script moves."""

    curves: tuple[BiasCurve, ...]
    biases: list[float]
    start: float
    """Where the slider stands at first: the minimum of the Lovász hinge."""
    ticks: tuple[tuple[float, str], ...]
    """Places of whole biases on the axis, and their names."""
    size: int
    data: Markup
    """JSON."""
    sources: tuple[Provenance, ...]


def bias_slider(store: RunStore) -> BiasSlider | Missing:
    """That of the search that Figure 3 shows."""
    found = searched(store)
    if isinstance(found, Missing):
        return found
    losses = {name: found.curves[name] for name in SEARCHED if name in found.curves}
    biases = found.curves.get("b", [])
    if fault := _fault(biases, losses, found.label, found.features):
        return Missing(f"{found.run.name}: {fault}", command("synthetic"))
    curves = tuple(_curve(name, biases, values) for name, values in losses.items())
    by_name = {curve.name: curve for curve in curves}
    first = by_name.get("lovasz_hinge", curves[0])
    content = {
        "b": biases,
        "losses": losses,
        "label": found.label.ravel().tolist(),
        "features": found.features.ravel().tolist(),
        "plot": [LEFT, RIGHT, TOP, BOTTOM],
    }
    return BiasSlider(
        curves=curves,
        biases=biases,
        start=biases[first.argmin],
        ticks=tuple(_ticks(biases)),
        size=len(found.label),
        data=Markup(json.dumps(precise(content, 9), separators=(",", ":")).replace("<", "\\u003c")),
        sources=sources([found.run]),
    )


def _fault(biases: Sequence[float], losses: Any, label: Any, features: Any) -> str:
    """What keeps stored files, which may be anybody's, from being shown."""
    steps = [after - before for before, after in pairwise(biases)]
    if not 2 <= len(biases) <= MOST_BIASES or min(steps) <= 0 or max(steps) > 1.01 * min(steps):
        return "curves.csv has no even grid of biases"
    if JACCARD_CURVE not in losses or not all(map(math.isfinite, sum(losses.values(), [*biases]))):
        return "curves.csv lacks the Jaccard loss, or has what is not a number"
    size = len(label) if label.ndim == 2 else 0
    square = label.shape == features.shape == (size, size) and 1 <= size <= MOST_PIXELS
    of_numbers = label.dtype.kind in "bui" and features.dtype.kind == "f"
    if not square or not of_numbers or not all(map(math.isfinite, features.ravel().tolist())):
        return "sample.npz has no square image"
    return ""


def _curve(name: str, biases: Sequence[float], values: Sequence[float]) -> BiasCurve:
    title, colour = SEARCHED[name]
    heights = relative(values)
    at = heights.index(0.0)
    points = (f"{_x(biases, b):.2f} {_y(h):.2f}" for b, h in zip(biases, heights, strict=True))
    return BiasCurve(
        name=name,
        title=title,
        colour="currentColor" if name == JACCARD_CURVE else colour,
        dashes="6 3" if name in LOSS_DASHES else "none",
        wide=name == JACCARD_CURVE,
        path="M" + "L".join(points),
        argmin=at,
        lowest=number(biases[at], 2),
    )


def _x(biases: Sequence[float], bias: float) -> float:
    return LEFT + (RIGHT - LEFT) * (bias - biases[0]) / (biases[-1] - biases[0])


def _y(height: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * height


def _ticks(biases: Sequence[float]) -> list[tuple[float, str]]:
    first, last = math.ceil(biases[0]), math.floor(biases[-1])
    step = max(1, round((last - first) / 6))
    return [(_x(biases, bias), number(bias, 0)) for bias in range(first, last + 1, step)]
