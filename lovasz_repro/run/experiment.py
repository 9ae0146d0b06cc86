"""The pipeline of a training experiment; ``run_cell`` is the whole of it, in order.

    experiment YAML -> config -> data -> model -> loss -> train -> evaluate -> store -> report

A cell is one variant x batch size x seed, and where one class is told from the rest x category.
Its identity is the hash of its resolved config, the data's fingerprint and the starting weights: a
finished cell is skipped, an unfinished one goes on from its last checkpoint, the rest start. All of
it runs on every rank of a team in step, on one device or many; what only one may do is left to the
leader.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lovasz_repro.config.schema import CellConfig, ExperimentConfig
from lovasz_repro.data.datasets import category_of, kind_of
from lovasz_repro.data.sampling import class_presence, class_shares
from lovasz_repro.errors import RunFailed, UserError
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.provenance import config_hash, device_name, git_commit, package_versions
from lovasz_repro.models.own_network import OwnNetwork, try_own
from lovasz_repro.run.build import (
    build_model,
    build_optimizer,
    draw_batches,
    open_data,
    spread_model,
    training_batches,
)
from lovasz_repro.run.inputs import (
    START,
    Inputs,
    Known,
    Place,
    check_extras,
    find_inputs,
    inputs_of_all,
    run_folder,
)
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.run.scores import (
    Masks,
    count_labels,
    keep_pictures,
    score_basis,
    score_on,
)
from lovasz_repro.run.session import Session
from lovasz_repro.store import Store
from lovasz_repro.store.journal import JOURNAL, InUse
from lovasz_repro.store.shipping import ship_pending
from lovasz_repro.training.distributed import ALONE, Team
from lovasz_repro.training.loop import TrainingState, train
from lovasz_repro.training.objective import build_objective


@dataclass
class Outcome:
    """What became of a grid."""

    finished: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Run name -> what went wrong, one line."""
    elsewhere: list[str] = field(default_factory=list)
    """Runs that another process is at work on."""


def run_experiment(
    experiment: ExperimentConfig,
    cells: Sequence[CellConfig],
    place: Place,
    store: Store,
    progress: Progress,
    team: Team = ALONE,
) -> Outcome:
    """Run every cell that is not done; one that fails does not keep the others from running.

    Raises:
        UserError: data or weights are missing or wrong.
        Interrupted: a signal asked to stop; the running cell is saved.
    """
    team.on_leader(lambda: check_grid(cells, place, store, progress))
    journals = f"work/*/*/*/{JOURNAL}"  # what earlier processes could not send to the store
    team.on_leader(lambda: ship_pending(store, sorted(place.results.glob(journals)), progress.line))
    outcome, overview, several = Outcome(), Overview(cells, progress), len(cells) > 1
    with ExitStack() as stack:
        stack.callback(overview.close)
        shown: Iterable[CellConfig] = cells
        if several:
            grid = progress.task(f"{experiment.experiment}: runs", len(cells))
            shown = stack.enter_context(grid).over(cells)
        for number, cell in enumerate(shown, start=1):
            label = f"[{number}/{len(cells)}] {cell.name}"
            inputs = inputs_of_all(cell, place, team, progress)
            done = team.on_leader(partial(done_before, cell, inputs, store))
            if done:
                progress.line(f"{label}  done before (run {done[0]})")
                outcome.skipped.append(cell.name)
                overview.done(cell, done[1])
                continue
            overview.running(cell)
            team.on_leader(partial(fetch_start, cell, inputs, store))
            run_id = team.on_leader(partial(open_run, cell, inputs, place, store, team.size))
            folder = run_folder(place.results, cell, inputs.identity)
            try:
                with Session(team, store, run_id, folder, cell, progress, label) as session:
                    scores = run_cell(cell, inputs, place, session)
                outcome.finished.append(cell.name)
                overview.done(cell, scores)
            except InUse as error:
                if several:  # of a run alone the command's last line says it
                    progress.line(f"{label}  {error}")
                outcome.elsewhere.append(cell.name)
                overview.elsewhere(cell)
            except RunFailed as error:
                if several:
                    progress.line(f"{label}  failed: {error}")
                outcome.failed[cell.name] = str(error)
                overview.failed(cell)
    return outcome


def run_cell(cell: CellConfig, inputs: Inputs, place: Place, session: Session) -> dict[str, float]:
    """The pipeline of one run, from wherever it stands to its stored scores.

    Returns:
        The scores of the last validation, or nothing where it was before a restart.
    """
    team, config, kind = session.team, cell.training, kind_of(cell.data)
    network = NETWORKS[cell.model.name]
    torch.manual_seed(cell.seed)
    train_set, scored = open_data(cell, inputs)
    model = build_model(cell, inputs, place.device)
    state = TrainingState(model, build_optimizer(model, config, cell.model.name))
    session.resume(state)
    spread_model(model, config, team)
    listed, progress = cell.data.train_split, session.progress
    counts = team.on_leader(  # read before the grid began, and kept
        lambda: torch.from_numpy(count_labels(train_set, listed, cell, inputs, place, progress))
    ).numpy()
    shares = class_shares(counts, len(kind.table))
    if not cell.data.category and state.iteration == 0:
        named = zip(kind.table.names, shares.tolist(), strict=True)
        session.log(0, {f"train/share/{name}": share for name, share in named})
    objective = build_objective(
        cell.loss, kind.ignore_index, shares, team.group, category_of(cell.data), network.to_size
    )

    last: dict[str, float] = {}
    seen = "seen/" if cell.data.train_split == "trainval_aug" else ""  # val was trained on

    def score(split: str, snapshot: int, prefix: str = "", **how: Any) -> dict[str, float]:
        if config.batch_norm == "per-rank":
            team.share_buffers(model)
        ends = split != "val" or snapshot in (0, config.iterations)
        scores = score_on(model, scored[split], split, cell, place, session, shapes=ends, **how)
        session.line(f"iteration {snapshot:5d}  {prefix}{split} {scores.summary()}")
        last.update(scores.as_metrics(prefix + split))
        return scores.as_metrics(prefix + split)

    tested = [split for split in scored if split != "val"]
    choose = "val/dataset_miou" if cell.evaluation.snapshot == "best" else None
    if state.iteration == 0:
        if counts is not None:
            present = class_presence(counts, range(kind.first_class, len(kind.table)))
            session.log(0, {f"data/{name}": value for name, value in present.items()})
        # First: a released network that scores next to nothing shows that data or weights are wrong
        for split in tested:
            session.log(0, score(split, 0, "initial/", when="before training"))
        if cell.data.category:
            session.log(0, score_basis(model, scored["val"], cell, place, session))
    train(
        state,
        training_batches(cell, train_set, counts, place, team, start=state.iteration),
        objective,
        config,
        place.device,
        network=team.wrap(model),
        prepare=network.prepare,
        choose=choose,
        validate=lambda: score("val", state.iteration, seen, unsaved=state.iteration > 0),
        log=session.log,
        save=session.save,
        stop_asked=session.stop_asked,
    )
    state.load_best()
    for split in tested:
        session.log(config.iterations, score(split, state.best_iteration))
    best = {"best/iteration": float(state.best_iteration)}
    if choose:  # also what MLflow's comparison draws first
        best["best/dataset_miou"] = state.best_score
    session.log(config.iterations, best)
    if cell.evaluation.multi_scale:
        from lovasz_repro.run.regimes import score_regimes_of_run

        score_regimes_of_run(model, cell, inputs, place, session, split=f"{seen}val")
    if cell.evaluation.batches:
        from lovasz_repro.run.regimes import batches_of_run, score_batches_of_run

        batches = team.on_leader(lambda: batches_of_run(cell, inputs.data))
        score_batches_of_run(model, scored["val"], batches, cell, place, session, prefix=seen)
    if cell.evaluation.examples:
        keep_pictures(model, scored["val"], cell, inputs, place, session)
    session.keep_summary()
    metadata = weights_metadata(cell, state)
    session.keep_weights(lambda path: network.save(model, path, metadata))
    return last


def done_before(
    cell: CellConfig, inputs: Inputs, store: Store
) -> tuple[str, dict[str, float]] | None:
    """Id and scores of the stored run of a cell that is done."""
    run = store.finished(cell.experiment, inputs.identity)
    return (run.run_id, run.metrics) if run else None


def open_run(cell: CellConfig, inputs: Inputs, place: Place, store: Store, ranks: int = 1) -> str:
    """The stored run of a cell, found or made, with everything its numbers can be traced by."""
    resolved = cell.model_dump(mode="json")
    tags = inputs.fingerprints | {
        "config_hash": config_hash(resolved),
        "git_commit": git_commit(),
        "seed": str(cell.seed),
        "device": device_name(place.device),
        "ranks": str(ranks),
        "packages": json.dumps(package_versions(), sort_keys=True),
        "profile": cell.profile,
        "scale": cell.scale,
        "variant": cell.variant,
        "experiment": cell.experiment,
    }
    params = {key: value for key, value in cell.params.items() if key not in tags}
    group = f"{cell.experiment}-{cell.profile}"
    return store.open_child(cell.experiment, group, cell.name, inputs.identity, params, tags)


def fetch_start(cell: CellConfig, inputs: Inputs, store: Store) -> None:
    """Take the weights that a run starts from out of the store, where its folder lacks them."""
    if not cell.start or not inputs.weights or inputs.weights.is_file():
        return
    identity = inputs.fingerprints["weights_fingerprint"].removeprefix(START)
    run = store.finished(cell.start.experiment, identity)
    if run:
        inputs.weights.parent.mkdir(parents=True, exist_ok=True)
        kept = store.artifact(run.run_id, inputs.weights.name)
        write_durably(inputs.weights, kept.read_bytes())


def weights_metadata(cell: CellConfig, state: TrainingState) -> dict[str, object]:
    """What a weights file says about itself."""
    category = {"category": cell.data.category} if cell.data.category else {}
    return {
        **category,
        "dataset": cell.data.name,
        "class_names": kind_of(cell.data).table.names,
        "input_size": "x".join(str(side) for side in cell.data.size),
        "run": f"{cell.experiment}/{cell.profile}/{cell.name}",
        "iteration": state.best_iteration,
    }


# ---- A grid at a glance --------------------------------------------------------------------------
#
# Which run is at work, what is done and how it came out, while a grid runs. Only where runs tell
# one class from the rest, of which there are 80: one line for each class, one column for each loss.
# On a terminal it stands above the bars; a log file has lines enough.

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


# ---- Before the first run ------------------------------------------------------------------------
#
# What can be known before a run is stored or a step is trained, and is said then.
#
# A run may train for days before it meets what it lacks. So before the first run of a grid data and
# packages are looked for, the starting weights are loaded and every mask is read: once, its counts
# are kept (see ``count_labels``).


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
