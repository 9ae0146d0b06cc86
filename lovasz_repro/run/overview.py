"""A grid at a glance while it runs: which run is at work, what is done and how it came out.

Only where runs tell one class from the rest, of which there are 80: one line for each class, one
column for each loss. On a terminal it stands above the bars; a log file has lines enough.
"""

from collections.abc import Mapping, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.host.progress import Progress

WAITING, RUNNING, FAILED, WITH_OTHERS = "·", Text("▸", "bold"), Text("failed", "red"), "elsewhere"
SCORE = "val/image_iou"
MOST_LINES = 10
"""Classes in a column of the screen."""


class Overview:
    """What became of each run of a grid, drawn by ``progress`` until ``close``.

    Args:
        cells: the grid.
        progress: the screen.
    """

    def __init__(self, cells: Sequence[CellConfig], progress: Progress) -> None:
        self._cells = [cell for cell in cells if cell.data.category]
        self._states: dict[str, str | Text] = {cell.name: WAITING for cell in self._cells}
        self._progress = progress
        progress.header = self.table if self._cells else None

    def running(self, cell: CellConfig) -> None:
        """A run has begun."""
        self._states[cell.name] = RUNNING

    def done(self, cell: CellConfig, metrics: Mapping[str, float]) -> None:
        """A run is done; its image-IoU (%) stands in its place."""
        self._states[cell.name] = f"{metrics[SCORE]:.1%}" if SCORE in metrics else "done"

    def failed(self, cell: CellConfig) -> None:
        """A run has failed."""
        self._states[cell.name] = FAILED

    def elsewhere(self, cell: CellConfig) -> None:
        """Another process is at work on a run."""
        self._states[cell.name] = WITH_OTHERS

    def close(self) -> None:
        """Take it from the screen."""
        self._progress.header = None

    def table(self) -> RenderableType:
        """The grid as it stands, some classes beside each other."""
        rows: dict[str, dict[str, str | Text]] = {}
        several = len({(cell.seed, cell.training.batch_size) for cell in self._cells}) > 1
        for cell in self._cells:
            setting = f" b{cell.training.batch_size} s{cell.seed}" if several else ""
            row = f"{cell.data.category}{setting}"
            rows.setdefault(row, {})[cell.variant] = self._states[cell.name]
        variants = list(dict.fromkeys(cell.variant for cell in self._cells))
        lines = [[row, *(states.get(v, "") for v in variants)] for row, states in rows.items()]
        height = MOST_LINES if len(variants) <= 4 else max(len(lines), 1)
        blocks = [lines[start : start + height] for start in range(0, len(lines), height)]
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        for _ in blocks:
            table.add_column("image-IoU")
            for variant in variants:
                table.add_column(Text(variant.replace("-", "-\n")), justify="right")
        empty = [""] * (1 + len(variants))
        for number in range(max(map(len, blocks), default=0)):
            parts = [block[number] if number < len(block) else empty for block in blocks]
            table.add_row(*(text for part in parts for text in part))
        return table
