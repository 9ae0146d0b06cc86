"""How things are called and drawn, the same in every table and figure.

Sizes are those of a two-column paper. Colours are Okabe and Ito's palette, which stays apart under
the common forms of colour blindness; orange and purple are darker than theirs, so that lines have a
contrast of 3 to 1 with white, as grey text has one of 4.5 to 1. Sky and yellow are for areas.
"""

from typing import Any

from lovasz_repro.config.tables import SCORE_TITLES

COLUMN, PAGE = 3.35, 6.95
"""Width of a column and of a page's text, inches."""

BLACK, GREY = "#000000", "#666666"
ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PURPLE = (
    "#c27c00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#b3568c",
)  # fmt: skip

DOT_RED = "#e3170a"
"""The red dots of Figures 1 and 2."""

LOSS_COLOURS = {"lovasz_hinge": RED, "hinge": PURPLE, "cross_entropy": BLUE, "soft_iou": GREEN}
SEARCHED = {"jaccard": ("Jaccard loss", BLACK)} | {
    name: (SCORE_TITLES[name], colour) for name, colour in LOSS_COLOURS.items()
}
"""Losses of the synthetic experiment, in the order of tables and legends."""

VARIANTS = {
    "weighted-cross-entropy": ("weighted cross-entropy", BLUE),
    "lovasz-softmax": ("Lovász-Softmax", RED),
    "lovasz-softmax-equibatch": ("Lovász-Softmax + equibatch", PURPLE),
    "sum": ("sum of both", GREEN),
    "x-loss": ("cross-entropy", BLUE),
    "x-loss-equibatch": ("cross-entropy + equibatch", BLUE),
    "x-loss-equibatch-30k": ("cross-entropy + equibatch 30K", BLUE),
    "lovasz": ("Lovász-Softmax", RED),
    "lovasz-equibatch": ("Lovász-Softmax + equibatch", RED),
    "lovasz-equibatch-30k": ("Lovász-Softmax + equibatch 30K", RED),
    "lovasz-all-classes": ("Lovász-Softmax, all classes", ORANGE),
    "lovasz-per-image-present": ("Lovász-Softmax per image, present classes", PURPLE),
    "lovasz-per-image": ("Lovász-Softmax per image, all classes", GREEN),
    "cross-entropy": ("cross-entropy", BLUE),
    "cross-entropy-then-lovasz": ("cross-entropy, then Lovász-Softmax", PURPLE),
    "soft-dice": ("soft Dice", ORANGE),
    "soft-jaccard": ("soft Jaccard", BLACK),
    "binary-cross-entropy": ("binary cross-entropy", BLUE),
    "lovasz-hinge": ("Lovász hinge", RED),
    "soft-iou": ("soft IoU", GREEN),
}
"""Variants of ENet and multiclass VOC experiments and of data of one's own, in the order of tables
and legends."""

LOVASZ, EQUIBATCH = "lovasz-softmax", "lovasz-softmax-equibatch"

DASHES = {"equibatch": "--", "equibatch-30k": "-."}
"""Endings of the variants that are not drawn solid."""

SPARE = (ORANGE, BLACK, GREY)
"""Colours of variants without one of their own."""

LIGHTEST, DARKEST = 0.55, -0.6
"""Ends of a row of shades: shares of white and of black in them."""

RC: dict[str, Any] = {
    "font.family": "serif",
    "font.serif": ["STIXGeneral"],
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
    "image.interpolation": "nearest",
}
"""matplotlib settings of every figure, used through ``matplotlib.rc_context``."""


def variant_order(names: set[str]) -> list[str]:
    """Known variants in their order, then others by name; after each its other kinds."""
    known = list(VARIANTS)

    def place(name: str) -> tuple[int, str]:
        own = name.partition(" (")[0]
        return known.index(own) if own in known else len(known), name

    return sorted(names, key=place)


def variant_title(name: str) -> str:
    """A variant as a reader sees it; one of another kind tells after a bracket what differs."""
    own, bracket, told = name.partition(" (")
    return (VARIANTS[own][0] if own in VARIANTS else own.replace("-", " ")) + bracket + told


def variant_colours(names: set[str]) -> dict[str, str]:
    """A colour per variant, its own or a spare one."""
    others = sorted(names - set(VARIANTS))
    spare = {name: SPARE[i % len(SPARE)] for i, name in enumerate(others)}
    return spare | {name: VARIANTS[name][1] for name in VARIANTS if name in names}


def variant_dash(name: str) -> str:
    """Line style of a variant: what it is sampled with, and how long it trains."""
    own = name.partition(" (")[0]
    return next((dash for ending, dash in DASHES.items() if own.endswith(ending)), "-")


def shades(colour: str, count: int) -> list[str]:
    """A colour from light to dark, as ``#rrggbb``; the colour itself where one is asked for."""
    if count == 1:
        return [colour]
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    mixed = []
    for step in range(count):
        at = LIGHTEST + (DARKEST - LIGHTEST) * step / (count - 1)  # 0: the colour itself
        target = 255 if at > 0 else 0
        mixed.append([round(c + (target - c) * abs(at)) for c in channels])
    return ["#" + "".join(f"{c:02x}" for c in rgb) for rgb in mixed]
