"""How numbers and rows of measurements are written, in a terminal and in Markdown."""

from collections.abc import Sequence

from lovasz_repro.bench.measure import Spread


def with_quartiles(ratio: Spread) -> str:
    """ "2.41 (1.41–2.53)"."""
    if ratio.low == ratio.high:
        return number(ratio.median)
    return f"{number(ratio.median)} ({number(ratio.low)}–{number(ratio.high)})"


def number(value: float) -> str:
    """Three significant digits at most, never in powers of ten."""
    decimals = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:.{decimals}f}"


def md_heads(heads: Sequence[str]) -> list[str]:
    """The first two lines of such a table in Markdown."""
    names = md_line([head.replace("\n", " ") for head in heads])
    return [names, "|---" + "|---:" * (len(heads) - 1) + "|"]


def md_line(texts: Sequence[str]) -> str:
    """A row in Markdown."""
    return f"| {' | '.join(texts)} |"
