"""Tables and figures of the report, as tests look at them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from lovasz_repro.host.output import write_files
from lovasz_repro.report.model import Cell, Drawing, Table
from lovasz_repro.report.render import build_tables, rendered
from lovasz_repro.report.runs import RunStore
from lovasz_repro.report.style import RC


def write_tables(
    store: RunStore,
    out: Path,
    names: Sequence[str] | None = None,
    formats: Sequence[str] = ("md", "tex", "csv", "json"),
) -> list[Path]:
    """``<out>/<name>.<format>`` of every table, in that order."""
    texts = [rendered(table, formats) for table in build_tables(store, names)]
    return [file for files in texts for file in write_files(out, files)]


def cells(table: Table, block: int = 0) -> dict[str, dict[str, Cell | None]]:
    """{row: {column: cell}} of a block."""
    keys = [column.key for column in table.columns]
    return {row.key: dict(zip(keys, row.cells, strict=True)) for row in table.blocks[block].rows}


def drawn(draw: Callable[[RunStore], Any], store: RunStore) -> Any:
    """The figure that a function of the report draws, with every place in it settled."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context(RC):
        drawing = draw(store)
        assert isinstance(drawing, Drawing)
        FigureCanvasAgg(drawing.figure).draw()
    return drawing.figure


def under(drawing: Any) -> list[list[str]]:
    """What stands under the pictures of a grid, row by row."""
    texts, columns = [ax.get_xlabel() for ax in drawing.figure.axes], len(column_heads(drawing))
    return [texts[start : start + columns] for start in range(0, len(texts), columns)]


def column_heads(drawing: Any) -> list[str]:
    """What stands over the pictures of a grid."""
    return [ax.get_title() for ax in drawing.figure.axes if ax.get_title()]


def grid_title(drawing: Any) -> str:
    """What stands over all pictures of a grid, in one line."""
    return " ".join(drawing.figure.texts[0].get_text().split())


def shown_pictures(drawing: Any) -> list[Any]:
    """The pixels of a grid of pictures, row by row."""
    return [np.asarray(ax.images[0].get_array()) for ax in drawing.figure.axes]


def shown_runs(drawing: Any) -> set[str]:
    """Ids of the runs behind a figure."""
    return {source.run_id for curve in drawing.curves for source in curve.sources}


def assert_on_page(figure: Any, things: Iterable[Any]) -> None:
    """Nothing of these leaves a drawn figure."""
    width, height = figure.canvas.get_width_height()
    for thing in things:
        box = thing.get_tightbbox()
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -0.5, thing


def assert_apart(things: Iterable[Any]) -> None:
    """No two of these overlap in a drawn figure."""
    boxes = [thing.get_window_extent() for thing in things]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def assert_tidy_grid(figure: Any) -> None:
    """A drawn grid of pictures fits its page, and what stands under them its column."""
    assert figure.get_figheight() < 9
    labels = [ax.xaxis.label for ax in figure.axes]
    titles = [ax.title for ax in figure.axes]
    texts = [text for text in (*figure.texts, *titles, *labels) if text.get_text()]
    assert_on_page(figure, [*texts, *figure.legends])
    assert_apart(labels)


def assert_same_bytes(one: Sequence[Path], other: Sequence[Path]) -> None:
    """The same files, made twice."""
    assert [path.name for path in one] == [path.name for path in other]
    for first, second in zip(one, other, strict=True):
        assert first.read_bytes() == second.read_bytes(), first.name
