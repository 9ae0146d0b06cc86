"""How ``bench validation`` takes a pass apart: longer sets, scorings without counts, a clock."""

import time
from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, distributed

from lovasz_repro.run.datasets import ScoredSet


class Repeated:
    """The first images of a set, again and again, ``count`` in all."""

    def __init__(self, images: ScoredSet, count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if index >= self.count:
            raise IndexError(index)
        return self.images[index % len(self.images)]

    def name(self, index: int) -> str:
        """What the image is called."""
        return self.images.name(index % len(self.images))


class Unscored:
    """A scoring that counts nothing, so that the network alone is measured."""

    def update(self, predictions: Tensor, targets: Any) -> None:
        """Leave the batch alone."""

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """Nothing is added up."""
        return self

    def as_metrics(self, split: str) -> dict[str, float]:
        """No numbers."""
        return {}

    def summary(self) -> str:
        """No scores."""
        return ""


class Seen(Unscored):
    """Keeps what a scoring would be given."""

    def __init__(self) -> None:
        self.batches: list[tuple[Tensor, Any]] = []

    def update(self, predictions: Tensor, targets: Any) -> None:
        """Keep the batch."""
        self.batches.append((predictions, targets))


class Clock:
    """Milliseconds an image, from the end of the batch with which ``untimed`` images are done."""

    def __init__(self, untimed: int, now: Callable[[], float] = time.perf_counter) -> None:
        self.untimed, self.now = untimed, now
        self.done = 0
        self.first: tuple[int, float] | None = None
        self.last = 0.0

    def tick(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        self.last = self.now()
        if self.first is None and self.done >= self.untimed:
            self.first = self.done, self.last

    def milliseconds(self) -> float:
        """Of an image, those that are timed."""
        assert self.first is not None, "more images than are not timed"
        done, began = self.first
        return 1000 * (self.last - began) / (self.done - done)
