"""What the person at the terminal sees while something takes long.

On a terminal: a bar with rate and time left. Elsewhere (a log file, a pipe): a plain line every
half minute. Both go to stderr; results go to stdout.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from lovasz_repro.host.output import Terminal, visible

LINE_EVERY_SECONDS = 30.0
Item = TypeVar("Item")


class Progress:
    """Progress of named tasks; use as a context.

    Args:
        console: where to draw; by default stderr.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Terminal(err=True)
        self.header: Callable[[], RenderableType] | None = None
        """Drawn above the bars."""
        self._bars = _Bars(
            self,
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )

    def __enter__(self) -> "Progress":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def task(self, description: str, total: int, completed: int = 0) -> "ProgressTask":
        """Begin a task of ``total`` steps, ``completed`` of them done before."""
        return ProgressTask(self, description, total, completed)

    def line(self, text: str) -> None:
        """Print a line that stays, above the bars."""
        self.console.print(Text(visible(text)), soft_wrap=True)


class ProgressTask:
    """One bar; ``advance`` moves it, ``close`` or the end of its context takes it away."""

    def __init__(self, progress: Progress, description: str, total: int, completed: int) -> None:
        description = visible(description)
        self._progress = progress
        self._id = progress._bars.add_task(description, total=total, completed=completed, note="")
        self._description, self._total, self._completed = description, total, completed
        self._last_line = time.monotonic()
        self._first: tuple[float, int] | None = None
        """When the first step ended, and where: what came before it, as the scoring before
        training, says nothing of the rate."""
        self._note = ""

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Move on by ``steps``; ``note`` replaces the text at the end of the bar."""
        self._completed += steps
        self._note = self._note if note is None else visible(note)
        self._progress._bars.update(self._id, advance=steps, note=self._note)
        now = time.monotonic()
        if self._progress._bars.disable and now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            began, begun_at = self._first or (now, self._completed)
            rate = (self._completed - begun_at) / (now - began) if now > began else 0.0
            left = timedelta(seconds=int((self._total - self._completed) / rate)) if rate else "?"
            position = f"{self._completed}/{self._total}"
            self._progress.line(
                f"{self._description}  {position}  {_rate(rate)}  {left} left  {self._note}"
            )
        self._first = self._first or (now, self._completed)

    def over(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; one step on after each."""
        for item in items:
            yield item
            self.advance()

    def reach(self, completed: int) -> None:
        """Move to ``completed``."""
        self.advance(completed - self._completed)

    def close(self) -> None:
        """For who holds the bar longer than a block."""
        self._progress._bars.remove_task(self._id)

    def __enter__(self) -> "ProgressTask":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Bars(RichProgress):
    """Bars below whatever header there is."""

    def __init__(self, owner: Progress, *columns: ProgressColumn, **options: Any) -> None:
        self._owner = owner
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        if self._owner.header:
            yield self._owner.header()
        yield from super().get_renderables()


class _RateColumn(ProgressColumn):
    """Steps per second, or seconds per step where they are slow."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed))


def _rate(steps_per_second: float | None) -> str:
    if not steps_per_second:
        return ""
    if steps_per_second >= 1:
        return f"{steps_per_second:.1f}/s"
    return f"{1 / steps_per_second:.1f} s each"
