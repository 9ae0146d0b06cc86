"""What can be known before a run is stored or a step is trained, and is said then.

A run may train for days before it meets what it lacks. So before the first run of a grid data and
packages are looked for, the starting weights are loaded and every mask is read: once, its counts
are kept (see ``count_labels``).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lovasz_repro.config.schema import CellConfig
from lovasz_repro.data.datasets import kind_of
from lovasz_repro.errors import UserError
from lovasz_repro.host.progress import Progress
from lovasz_repro.models.own_network import OwnNetwork, try_own
from lovasz_repro.run.build import build_model, draw_batches, open_data
from lovasz_repro.run.inputs import Inputs, Known, Place, check_extras, find_inputs
from lovasz_repro.run.scores import Masks, count_labels
from lovasz_repro.store import Store


def check_grid(
    cells: Sequence[CellConfig], place: Place, store: Store, progress: Progress, problem: str = ""
) -> None:
    """Make sure that the runs of a grid that are not done can be trained and scored.

    Args:
        cells, place, store, progress: the grid, where it runs, is kept and is shown.
        problem: what this machine is known to lack; it is told with what else is missing.

    Raises:
        UserError: all data, weights and packages that are missing, or the first that is wrong.
    """
    known, left = Known(), list[tuple[CellConfig, Inputs]]()
    lacking = dict.fromkeys([problem] if problem else [])
    for cell in cells:
        try:
            inputs = find_inputs(cell, place, progress, known)
            if not store.finished(cell.experiment, inputs.identity):
                left.append((cell, inputs))
                check_extras(cell)
        except UserError as error:
            lacking[str(error)] = None
    if lacking:
        raise UserError(*lacking)
    loaded = set[object]()
    for cell, inputs in left:
        what = cell.model, cell.data.name, inputs.weights
        if ((inputs.weights and not cell.start) or cell.model.callable) and what not in loaded:
            own = replace(inputs, weights=None) if cell.start else inputs
            model = build_model(cell, own, torch.device("cpu"))
            if isinstance(model, OwnNetwork):
                try_own(model, cell.data.size)
            loaded.add(what)
    for cell, inputs in left:
        check_masks(cell, inputs, place, progress)


def check_masks(cell: CellConfig, inputs: Inputs, place: Place, progress: Progress) -> None:
    """Make sure that every mask can be read and that they show what a cell trains and scores on.

    Raises:
        UserError: which mask cannot, or which class no image shows.
    """
    whole = cell.model_copy(update={"data": cell.data.model_copy(update={"category": None})})
    train_set, scored = open_data(whole, inputs)  # evidence is drawn from all masks, read here
    counts = count_labels(train_set, cell.data.train_split, cell, inputs, place, progress)
    if cell.data.images == "photographs":
        for split, images in scored.items():
            masks = Masks(images, kind_of(cell.data).official_scores)
            count_labels(masks, split, cell, inputs, place, progress)
    draw_batches(cell, len(train_set), counts, start=0)
    if cell.evaluation.batches:
        from lovasz_repro.run.regimes import batches_of_run

        batches_of_run(cell, inputs.data)
    if cell.data.category:
        open_data(cell, inputs)
