"""Every figure of the report: one function that reads a store, one line in ``FIGURES``.

A figure is written as PDF, PNG (200 dpi), text (its caption) and JSON: the data of every curve and
the runs behind it. The same runs give the same bytes. Nothing here touches ``matplotlib.pyplot`` or
its state.
"""

import io
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from lovasz_repro.config.read import known_name
from lovasz_repro.host.output import visible, write_files
from lovasz_repro.report.curves import CONVERGENCE, camvid_classes
from lovasz_repro.report.curves_voc import figure_6, voc_measures_figure
from lovasz_repro.report.layout import precise
from lovasz_repro.report.model import Drawing, Missing
from lovasz_repro.report.own import OWN
from lovasz_repro.report.picture_figures import (
    FIGURE_5,
    FIGURE_7,
    figure_4,
    figure_of_classes,
    figure_of_crops,
    own_figure,
)
from lovasz_repro.report.runs import RunStore, remember
from lovasz_repro.report.sets import CAMVID_LAYOUT, CAMVID_RUNS, ENET_RUNS
from lovasz_repro.report.style import RC
from lovasz_repro.report.synthetic_figure import figure_1, figure_2, figure_3, synthetic_sweep

FIGURES: dict[str, Callable[[RunStore], Drawing | Missing]] = {
    "figure-1": figure_1,
    "figure-2": figure_2,
    "figure-3": figure_3,
    "synthetic-sweep": synthetic_sweep,
    "figure-4": figure_4,
    "figure-5": lambda store: figure_of_classes(store, FIGURE_5),
    "figure-6": figure_6,
    "figure-7": lambda store: figure_of_classes(store, FIGURE_7),
    "figure-8": lambda store: figure_of_crops(store, ENET_RUNS),
    "figure-9": CONVERGENCE["figure-9"],
    "voc-measures": voc_measures_figure,
    "camvid-enet": CONVERGENCE[CAMVID_RUNS],
    "camvid-enet-classes": camvid_classes,
    "camvid-as-cityscapes": CONVERGENCE[CAMVID_LAYOUT],
    "camvid-as-cityscapes-examples": lambda store: figure_of_crops(store, CAMVID_LAYOUT),
    OWN: own_figure,
}


def write_figures(
    store: RunStore,
    out: Path,
    names: Sequence[str] | None = None,
    *,
    missing: Callable[[str, Missing], None] | None = None,
) -> list[Path]:
    """Write figures as ``<out>/<name>.pdf``, ``.png``, ``.txt`` and ``.json``; returns the files.

    Args:
        store: where to read.
        out: folder, made if it is not there.
        names: figures to write; None: all of ``FIGURES``.
        missing: called with the name of every figure that lacks its runs.

    Raises:
        UserError: an unknown figure; says which there are.
    """
    import matplotlib

    names = [known_name(name, FIGURES, "figure", "report") for name in names or FIGURES]
    files: list[Path] = []
    remembered = remember(store)
    for name in names:
        with matplotlib.rc_context(RC):
            drawing = FIGURES[name](remembered)
            if isinstance(drawing, Drawing):
                files += _save(drawing, out, name)
            elif missing is not None:
                missing(name, drawing)
    return files


def figure_texts(drawing: Drawing, name: str) -> dict[str, str]:
    """What is written beside the pictures: file and text, the caption and the data."""
    lines = textwrap.wrap(visible(drawing.caption), 100, break_on_hyphens=False)
    curves = precise([asdict(curve) for curve in drawing.curves], 7)
    content = {"name": name, "caption": drawing.caption, "curves": curves}
    return {
        f"{name}.txt": "\n".join([*lines, ""]),
        f"{name}.json": json.dumps(content, ensure_ascii=False) + "\n",
    }


def _save(drawing: Drawing, out: Path, name: str) -> list[Path]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(drawing.figure)
    pdf, png = io.BytesIO(), io.BytesIO()
    drawing.figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    drawing.figure.savefig(png, format="png", metadata={"Software": None})
    pictures = {f"{name}.pdf": pdf.getvalue(), f"{name}.png": png.getvalue()}
    return write_files(out, {**pictures, **figure_texts(drawing, name)})
