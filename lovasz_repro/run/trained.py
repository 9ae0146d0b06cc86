"""A trained network that a person names, by its run or its weights, and how it is asked.

``predict`` and ``export`` use it on photographs of any size and of anybody.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lovasz_repro.config.read import read_stored
from lovasz_repro.config.schema import DataConfig, EvaluationConfig, MultiScaleConfig
from lovasz_repro.data.classes import ClassTable, class_table
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.predictor import OF_ANY_SIZE, Feeding, MultiScale, Predictor
from lovasz_repro.models.deeplab import DeepLab
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.own_network import build_own, load_own
from lovasz_repro.models.snapshot import Snapshot, class_names, load_snapshot, metadata_of
from lovasz_repro.run.inputs import WEIGHTS
from lovasz_repro.run.networks import NETWORKS
from lovasz_repro.store import Store, StoredRun, shown_status
from lovasz_repro.store.stored import ORIGIN

RUN_ID = re.compile(r"[0-9a-f]{1,32}")


@dataclass(frozen=True)
class Trained:
    """A trained network, and what its run or its file says of how it sees photographs."""

    title: str
    """What it is called in messages."""
    snapshot: Snapshot
    table: ClassTable
    category: int | None
    """The output that tells one class from the rest, or None: all of them compete."""
    answers: Sequence[int]
    """Outputs among which it chooses."""
    precision: str
    evaluation: EvaluationConfig
    size: tuple[int, int] | None
    """(height, width) at which it saw images in training; None: nothing says."""
    run_id: str | None = None

    @property
    def feeding(self) -> Feeding:
        """How it is fed with photographs of any size."""
        name = self.snapshot.architecture
        return OF_ANY_SIZE.get(name) or NETWORKS[name].on_canvas(self.evaluation.least_side)

    def predictor(self, device: torch.device, scales: MultiScaleConfig | None = None) -> Predictor:
        """What asks it, at one scale or at several.

        Raises:
            UserError: it cannot be asked at several.
        """
        model = self.snapshot.model.to(device)
        if scales is None:
            first, on_enet = self.answers[0], isinstance(model, ENet)
            return Predictor(model, self.feeding, device, self.precision, on_enet, first)
        if self.category is not None or not isinstance(model, DeepLab):
            raise UserError(f"{self.title}: several scales are for a DeepLab-v2 of all classes.")
        kind = NETWORKS[self.snapshot.architecture]
        return MultiScale(model, kind, device, self.precision, multi_scale=scales)


def find_trained(source: str, results: Path, tracking_uri: str | None) -> Trained:
    """The network that a person means: a finished run's id, or how it begins; or a file of weights.

    Raises:
        UserError: neither of them, or a network that sees no photographs.
    """
    file, run = find_weights(source, results, tracking_uri)
    if run is None:
        network = load_snapshot(file)
        least_side = MultiScaleConfig().least_side if network.architecture == "deeplab-v2" else None
        evaluation, precision = EvaluationConfig(least_side=least_side), "float32"
        title, category = f"weights {file}", network.notes.get("category")
        noted = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", network.notes.get("input_size", ""))
        size = (int(noted[1]), int(noted[2])) if noted else None
    else:
        title = title_of_run(run)
        data = read_stored(DataConfig, run.params, "data", title)
        if data.images == "features":
            raise UserError(f"{title} has seen no photograph, only features drawn from masks.")
        evaluation = read_stored(EvaluationConfig, run.params, "evaluation", title)
        precision, category = run.params.get("training.precision", "float32"), data.category
        size = data.size
        own = run.params.get("model.name") == "callable"
        network = own_snapshot(run, file) if own else load_snapshot(file)
    table = class_table(network.dataset, network.class_names, network.outputs)
    if category is not None and category not in table.names:
        raise UserError(f"{title}: no output for {category[:60]!r}, which it is to tell apart.")
    kept = evaluation.unlabelled == "kept"
    answers = [index for index, there in enumerate(table.predictable) if there or kept]
    output = None if category is None else table.names.index(category)
    how = precision, evaluation, size, run.run_id if run else None
    return Trained(title, network, table, output, answers, *how)


def own_snapshot(run: StoredRun, file: Path) -> Snapshot:
    """The user's own network that a run has trained.

    Raises:
        UserError: it cannot be made, or the run was imported: it does not say which code is run.
    """
    if ORIGIN in run.tags:
        raise UserError(f"{title_of_run(run)} was imported, and code that it names is not run.")
    notes = metadata_of(file)
    names = class_names(notes.get("class_names", "[]"))
    model = build_own(run.params.get("model.callable", ""), len(names))
    load_own(model, file)
    about = notes.get("dataset", "unknown"), names, notes
    return Snapshot("callable", model.eval(), len(names), *about)


def find_weights(
    source: str, results: Path, tracking_uri: str | None
) -> tuple[Path, StoredRun | None]:
    """The file of weights that a person means, and its run where they named that.

    Raises:
        UserError: neither a file nor the id of one finished run that has its weights.
    """
    file = Path(source)
    if not file.is_file() and RUN_ID.fullmatch(source):
        store = Store(results, tracking_uri)
        run = store.by_id(source)
        return _weights_of(run, store), run
    if not file.exists() and not file.suffix and len(file.parts) == 1:
        raise UserError(f"{file}: neither a file of weights nor the id of a run; "
                        "`lovasz-repro runs` lists runs.")  # fmt: skip
    return file, None


def _weights_of(run: StoredRun, store: Store) -> Path:
    title = title_of_run(run)
    if run.status != "FINISHED":
        raise UserError(
            f"{title} is {shown_status(run)}, not FINISHED: it has no best snapshot yet."
        )
    if WEIGHTS not in store.artifact_names(run.run_id):
        stayed = WEIGHTS in run.tags.get("left_out", "")
        why = " (too large to be exported, see `runs export --max-artifact`)" if stayed else ""
        raise UserError(f"{title} has no {WEIGHTS} in this store{why}. Give the file instead.")
    return store.artifact(run.run_id, WEIGHTS)


def title_of_run(run: StoredRun) -> str:
    """What a run is called in messages."""
    return f"run {run.run_id} ({run.name})"
