"""Which images Figure 4 shows: those on which the losses of a set differ most (Sec. 4.2)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lovasz_repro.errors import UserError
from lovasz_repro.report.runs import Cohort, Run, RunStore, natural, seed
from lovasz_repro.report.voc_binary_pictures import (
    Entry,
    read_listing,
    read_masks,
    read_photograph,
)
from lovasz_repro.report.voc_binary_runs import (
    BASIS,
    CATEGORIES,
    category,
    losses_of,
    on_features,
    shared_categories,
)

ROWS = 4
"""Most images that are shown."""


@dataclass(frozen=True)
class Candidate:
    """An image of a category that could be shown: what every loss lists for it."""

    category: str
    number: int
    """Place in the lists."""
    runs: Mapping[str, Run]
    """Loss -> run of the seed that is shown."""
    entries: Mapping[str, Entry]
    """Loss -> the image as its run lists it."""

    @property
    def run(self) -> Run:
        """The run that gives what all share: labels, basis network, photograph."""
        return next(iter(self.runs.values()))

    @property
    def entry(self) -> Entry:
        """The image as that run lists it."""
        return next(iter(self.entries.values()))

    @property
    def ious(self) -> dict[str, float]:
        """Image-IoU of the basis network's mask and of that of every loss."""
        of_losses = {loss: entry.image_iou for loss, entry in self.entries.items()}
        return {BASIS: self.entry.basis_iou} | of_losses

    @property
    def spread(self) -> float:
        """How far apart the image-IoUs of the losses are."""
        found = [entry.image_iou for entry in self.entries.values()]
        return max(found) - min(found)


@dataclass(frozen=True)
class Example:
    """A row of the figure."""

    chosen: Candidate
    photograph: np.ndarray | None
    """(H, W, 3) uint8; None on features."""
    labels: np.ndarray
    """(H, W) uint8: 0, 1, 255 = void."""
    masks: Mapping[str, np.ndarray]
    """Basis network or loss -> (H, W) uint8, 0 or 1."""


def choose_examples(store: RunStore, cohort: Cohort, broken: list[str]) -> list[Example]:
    """Of each category the image on which the losses differ most, then the next ones.

    Args:
        store: where to read.
        cohort: a set of binary runs.
        broken: what is wrong with files that are passed over is added here.
    """
    ranked = []
    for name in shared_categories(cohort) if len(losses_of(cohort)) > 1 else []:
        candidates = sorted(_candidates(store, cohort, name, broken), key=lambda c: -c.spread)
        ranked += list(enumerate(candidates))
    ranked.sort(key=lambda item: (item[0], -item[1].spread, CATEGORIES.index(item[1].category)))
    examples: list[Example] = []
    for _, candidate in ranked:
        if len(examples) == ROWS:
            break
        try:
            examples.append(_read(store, candidate, photographed=not on_features(cohort)))
        except UserError as error:
            broken.append(str(error))
    return examples


def _candidates(
    store: RunStore, cohort: Cohort, name: str, broken: list[str]
) -> Iterator[Candidate]:
    """Images of a category of which every loss has a mask."""
    runs = _of_one_seed(cohort, name)
    try:
        listings = {loss: read_listing(store, run) for loss, run in runs.items()}
    except UserError as error:
        broken.append(str(error))
        return
    images = [[(e.name, e.height, e.width) for e in listing] for listing in listings.values()]
    if any(listed != images[0] for listed in images[1:]):
        broken.append(f"{name}: the runs of its losses store masks of different images")
        return
    for number in range(len(images[0]) if images else 0):
        entries = {loss: listing[number] for loss, listing in listings.items()}
        yield Candidate(name, number, runs, entries)


def _of_one_seed(cohort: Cohort, name: str) -> dict[str, Run]:
    """Loss -> run of a category, all of the first seed that every loss has; else none."""
    by_loss = {
        loss: {seed(run): run for run in cohort.select(loss) if category(run) == name}
        for loss in losses_of(cohort)
    }
    common = set.intersection(*(set(runs) for runs in by_loss.values()))
    if not common:
        return {}
    number = min(common, key=natural)
    return {loss: runs[number] for loss, runs in by_loss.items()}


def _read(store: RunStore, chosen: Candidate, *, photographed: bool) -> Example:
    """Everything that a row shows.

    Raises:
        UserError: a file is broken, or the runs disagree on the labels; names it.
    """
    read = {
        loss: read_masks(store, run, chosen.number, chosen.entries[loss])
        for loss, run in chosen.runs.items()
    }
    one = next(iter(read.values()))
    if any(not np.array_equal(other.labels, one.labels) for other in read.values()):
        where = f"{chosen.category}, {chosen.entry.name}"
        raise UserError(f"{where}: the runs of its losses disagree on the labels")
    photograph = None
    if photographed:
        photograph = read_photograph(store, chosen.run, chosen.number, chosen.entry)
    predictions = {loss: masks.prediction for loss, masks in read.items()}
    return Example(chosen, photograph, one.labels, {BASIS: one.basis} | predictions)
