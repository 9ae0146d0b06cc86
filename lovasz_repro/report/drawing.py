"""What a figure is: a picture, and for every curve in it the data and the runs it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lovasz_repro.report.runs import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Curve:
    """One curve, surface or set of points, as drawn."""

    panel: str
    label: str
    data: Mapping[str, Sequence[float]]
    """Axis name -> values as drawn."""
    sources: tuple[Source, ...] = ()
    """Runs behind it; empty where it is computed from a definition alone."""
    computed: str = ""
    """What computes it, where no run is behind it."""


@dataclass(frozen=True)
class Drawing:
    """A figure with its caption and provenance."""

    figure: "Figure"
    caption: str
    curves: tuple[Curve, ...] = field(default=())


@dataclass(frozen=True)
class Missing:
    """A figure that cannot be drawn yet."""

    reason: str
    command: str
    """What stores the runs that it needs."""
