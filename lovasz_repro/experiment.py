"""The pipeline of a training experiment; ``run_cell`` is the whole of it, in order.

    experiment YAML -> config -> data -> model -> loss -> train -> evaluate -> store -> report

A cell is one variant x batch size x seed. Its identity is the hash of its resolved config, the
data's fingerprint and the starting weights: a finished cell is skipped, an unfinished one goes on
from its last checkpoint, the rest start.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from lovasz_repro.config import CellConfig, ExperimentConfig, TrainingConfig, dotted
from lovasz_repro.data import camvid
from lovasz_repro.data.locate import dataset_folder, enet_weights_file
from lovasz_repro.data.palettes import CAMVID_FROM_CITYSCAPES
from lovasz_repro.data.sampling import ShuffledBatches
from lovasz_repro.errors import RunFailed
from lovasz_repro.evaluation.evaluate import Scores, evaluate
from lovasz_repro.models.enet import ENet
from lovasz_repro.models.weights import load_enet, map_classifier, save_weights
from lovasz_repro.progress import Progress
from lovasz_repro.provenance import (
    config_hash,
    device_name,
    fingerprint_files,
    git_commit,
    package_versions,
    run_identity,
)
from lovasz_repro.session import RunSession, run_folder
from lovasz_repro.store import Store
from lovasz_repro.store.shipping import ship_pending
from lovasz_repro.training.loop import TrainingState, train
from lovasz_repro.training.objective import build_objective


@dataclass(frozen=True)
class Place:
    """Where runs read and write, and on what they compute; changes no result on one device."""

    results: Path
    data: Path
    weights: Path | None
    device: torch.device
    workers: int = 0
    """Processes that decode images; 0 decodes in the training process."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, found and fingerprinted."""

    data: Path
    weights: Path | None
    fingerprints: dict[str, str]
    """Tags ``data_fingerprint`` and, where training starts from a file, ``weights_fingerprint``."""
    identity: str
    """Hash of config and inputs: the same run has the same one everywhere."""


@dataclass
class Outcome:
    """What became of a grid."""

    finished: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    """Run name -> what went wrong, one line."""


def run_experiment(
    experiment: ExperimentConfig,
    cells: Sequence[CellConfig],
    place: Place,
    store: Store,
    progress: Progress,
) -> Outcome:
    """Run every cell that is not done; one that fails does not keep the others from running.

    Raises:
        UserError: data or weights are missing or wrong.
        Interrupted: a signal asked to stop; the running cell is saved.
    """
    ship_pending(store, sorted(place.results.glob("work/*/*/*/journal.jsonl")), progress.line)
    tags = {"profile": cells[0].profile, "title": experiment.title}
    name = f"{experiment.experiment}-{cells[0].profile}"
    parent = store.open_parent(experiment.experiment, name, tags)
    outcome = Outcome()
    for number, cell in enumerate(cells, start=1):
        label = f"[{number}/{len(cells)}] {cell.name}"
        inputs = find_inputs(cell, place)
        done = store.find(cell.experiment, inputs.identity)
        if done and done.status == "FINISHED":
            progress.line(f"{label}  done before (run {done.run_id})")
            outcome.skipped.append(cell.name)
            continue
        run_id = open_run(cell, inputs, parent, place, store)
        folder = run_folder(place.results, cell, inputs.identity)
        try:
            with RunSession(store, run_id, folder, cell, progress, label) as session:
                run_cell(cell, inputs, place, session)
            outcome.finished.append(cell.name)
        except RunFailed as error:
            progress.line(f"{label}  failed: {error}")
            outcome.failed[cell.name] = str(error)
    return outcome


def run_cell(cell: CellConfig, inputs: Inputs, place: Place, session: RunSession) -> None:
    """The pipeline of one run, from wherever it stands to its stored scores."""
    torch.manual_seed(cell.seed)
    train_set, val_set, test_set = open_data(cell, inputs.data)
    model = build_model(cell, inputs.weights).to(place.device)
    if cell.training.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    objective = build_objective(cell.loss, camvid.VOID, train_set.class_shares())
    state = TrainingState(model, build_optimizer(model, cell.training))
    session.resume(state, place.device)

    def score(split: str, dataset: camvid.CamVid, snapshot: int) -> dict[str, float]:
        scores = score_on(model, dataset, split, cell, place, session.progress)
        session.line(f"iteration {snapshot:5d}  {describe(split, scores)}")
        return scores.as_metrics(split, camvid.CLASSES)

    if state.iteration == 0:
        session.log(0, score("initial/test", test_set, snapshot=0))
    train(
        state,
        training_batches(cell, train_set, place, start=state.iteration),
        objective,
        cell.training,
        place.device,
        validate=lambda: score("val", val_set, snapshot=state.iteration),
        log=session.log,
        save=session.save,
        stop=session.stop,
    )
    state.load_best()
    save_weights(model, session.best_weights, weights_metadata(cell, state))
    session.log(cell.training.iterations, score("test", test_set, snapshot=state.best_iteration))
    session.log(cell.training.iterations, {"best/iteration": float(state.best_iteration)})
    session.keep(session.folder / "config.yaml", session.best_weights)


def find_inputs(cell: CellConfig, place: Place) -> Inputs:
    """Find what a cell reads and take its fingerprint.

    Raises:
        UserError: data or weights are not there.
    """
    data = dataset_folder(place.data, cell.data.name)
    weights = enet_weights_file(place.data, place.weights) if cell.model.weights else None
    pairs = [pair for split in camvid.SPLIT_SIZES for pair in camvid.list_files(data, split)]
    cache = place.results / "work" / "fingerprints.json"
    files = [file for pair in pairs for file in pair]
    tags = {"data_fingerprint": fingerprint_files(files, data, cache)}
    if weights:
        tags["weights_fingerprint"] = fingerprint_files([weights], weights.parent, cache)
    hashed = config_hash(cell.model_dump(mode="json"))
    identity = run_identity(
        hashed, tags["data_fingerprint"], weights=tags.get("weights_fingerprint", "none")
    )
    return Inputs(data, weights, tags, identity)


def open_run(cell: CellConfig, inputs: Inputs, parent: str, place: Place, store: Store) -> str:
    """The stored run of a cell, found or made, with everything its numbers can be traced by."""
    resolved = cell.model_dump(mode="json")
    tags = inputs.fingerprints | {
        "config_hash": config_hash(resolved),
        "git_commit": git_commit(),
        "seed": str(cell.seed),
        "device": device_name(place.device),
        "packages": json.dumps(package_versions(), sort_keys=True),
        "profile": cell.profile,
        "scale": cell.scale,
        "variant": cell.variant,
        "experiment": cell.experiment,
    }
    return store.open_child(
        cell.experiment, parent, cell.name, inputs.identity, dotted(resolved), tags
    )


def open_data(cell: CellConfig, root: Path) -> tuple[camvid.CamVid, camvid.CamVid, camvid.CamVid]:
    """Training, validation and test set; the latter two keep their labels' own size."""
    size = cell.data.size
    train_set = camvid.CamVid(root, "train", size, flip=cell.data.flip, seed=cell.seed)
    val_set = camvid.CamVid(root, "val", size, native_labels=True)
    test_set = camvid.CamVid(root, "test", size, native_labels=True)
    return train_set, val_set, test_set


def build_model(cell: CellConfig, weights: Path | None) -> ENet:
    """ENet with one output per class, from the released weights or at random (seeded)."""
    model = ENet(len(camvid.CLASSES), cell.model.decoder, cell.model.dropout)
    if weights:
        released = map_classifier(load_enet(weights), CAMVID_FROM_CITYSCAPES)
        model.load_state_dict(released.state_dict())
    return model


def training_batches(
    cell: CellConfig, train_set: camvid.CamVid, place: Place, start: int
) -> DataLoader[camvid.Example]:
    """Batches from iteration ``start`` on; the same ones whenever training begins there."""
    batches = ShuffledBatches(
        len(train_set),
        cell.training.batch_size,
        cell.training.iterations,
        seed=cell.seed,
        start=start,
    )
    return DataLoader(
        train_set,
        batch_sampler=batches,
        num_workers=place.workers,
        pin_memory=place.device.type == "cuda",
        generator=torch.Generator().manual_seed(cell.seed),  # leaves the global one alone
    )


def score_on(
    model: nn.Module,
    dataset: camvid.CamVid,
    split: str,
    cell: CellConfig,
    place: Place,
    progress: Progress,
) -> Scores:
    """Score a model on a whole split."""
    loader = DataLoader(dataset, batch_size=10, generator=torch.Generator().manual_seed(0))
    task = progress.task(f"  scoring on {split}", len(dataset))
    try:
        return evaluate(
            model,
            loader,
            len(camvid.CLASSES),
            camvid.VOID,
            place.device,
            bfloat16=cell.training.precision == "bfloat16",
            channels_last=cell.training.channels_last,
            advance=task.advance,
        )
    finally:
        task.close()


def weights_metadata(cell: CellConfig, state: TrainingState) -> dict[str, object]:
    """What a weights file says about itself."""
    return {
        "dataset": cell.data.name,
        "class_names": camvid.CLASSES,
        "input_size": "x".join(str(side) for side in cell.data.size),
        "run": f"{cell.experiment}/{cell.profile}/{cell.name}",
        "iteration": state.best_iteration,
    }


def build_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam (paper Sec. 4.4) over all parameters; the loop sets the learning rate."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def describe(split: str, scores: Scores) -> str:
    """Scores in a few words."""
    return f"{split} mIoU {scores.dataset_miou:.2%}, image-mIoU {scores.image_miou:.2%}"
