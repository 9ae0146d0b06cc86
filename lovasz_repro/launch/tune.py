"""``run own --tune``: the learning rate of each loss, searched on the validation set.

Every variant runs with the first seed at each rate, then with all seeds at the one that was best
for it. All of these are runs as any other: stored, skipped where they are done, gone on with.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from lovasz_repro.config.schema import BASIS, CellConfig
from lovasz_repro.errors import RunFailed
from lovasz_repro.host.output import say
from lovasz_repro.launch.dispatch import Way, dispatch, place_and_problem
from lovasz_repro.launch.request import GridRequest
from lovasz_repro.run.inputs import Known, Place, find_inputs
from lovasz_repro.store import Store

FACTORS = (1 / 3, 1.0, 3.0)
"""Of the recipe's learning rate."""
CHOSEN_BY = "val/dataset_miou"


def dispatch_tuned(request: GridRequest, way: Way) -> None:
    """Search, then run the grid at the rates that were found.

    Raises:
        UserError: as ``dispatch``.
        RunFailed: some runs of the grid failed; in the search they only lose.
    """
    for number, cells in enumerate(searched(request.cells), start=1):
        say(f"search {number} of {len(FACTORS)}: learning rate {cells[-1].training.lr:g}")
        try:
            dispatch(replace(request, cells=cells, tuned=True), way)
        except RunFailed as error:
            say(str(error))
    place, _ = place_and_problem(request)
    rates = best_rates(request.cells, place, Store(request.results, request.tracking_uri))
    say("learning rates: " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items()))
    dispatch(replace(request, cells=at_rates(request.cells, rates), tuned=True), way)


def searched(cells: list[CellConfig]) -> Iterator[list[CellConfig]]:
    """The cells of the first seed at each rate."""
    first = [cell for cell in cells if cell.seed == cells[0].seed]
    for factor in FACTORS:
        yield [at_rate(cell, scaled(cell.training.lr, factor)) for cell in first]


def scaled(rate: float, factor: float) -> float:
    """A rate times a factor, to two digits; the rate itself at 1."""
    return rate if factor == 1 else float(f"{rate * factor:.2g}")


def at_rate(cell: CellConfig, rate: float) -> CellConfig:
    """A cell at another learning rate, and the run that it starts from too."""
    training = cell.training.model_copy(update={"lr": rate})
    start = at_rate(cell.start, rate) if cell.start else None
    return cell.model_copy(update={"training": training, "start": start})


def best_rates(cells: list[CellConfig], place: Place, store: Store) -> dict[str, float]:
    """The rate of each variant at which the first seed's run scored best; its own where none did.

    Of equals the one nearest to the recipe's.
    """
    known, scores = Known(), dict[str, dict[float, float]]()
    for tried in searched(cells):
        for cell in tried:
            run = store.finished(cell.experiment, find_inputs(cell, place, known=known).identity)
            score = run.metrics.get(CHOSEN_BY, -1.0) if run else -1.0
            scores.setdefault(cell.variant, {})[cell.training.lr] = score
    own = {cell.variant: cell.training.lr for cell in cells}
    return {name: _best(of_rates, own[name]) for name, of_rates in scores.items()}


def _best(scores: Mapping[float, float], own: float) -> float:
    return max(scores, key=lambda rate: (scores[rate], rate == own))


def at_rates(cells: Iterable[CellConfig], rates: Mapping[str, float]) -> list[CellConfig]:
    """The cells at the rates of their variants, each after the run that it starts from."""
    moved = [at_rate(cell, rates[cell.variant]) for cell in cells if cell.variant != BASIS]
    found: dict[str, CellConfig] = {}
    for cell in moved:
        for one in (cell.start, cell):
            if one:
                found.setdefault(one.model_dump_json(), one)
    return list(found.values())
