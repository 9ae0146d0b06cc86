"""Where a run works and what it reads: folders, device, files with their fingerprints."""

from dataclasses import dataclass
from pathlib import Path

import torch

from lovasz_repro.config.schema import CellConfig, DataConfig, experiment_names
from lovasz_repro.data.datasets import kind_of
from lovasz_repro.data.locate import dataset_folder, made_by, weights_file
from lovasz_repro.errors import UserError
from lovasz_repro.host.progress import Progress
from lovasz_repro.host.provenance import config_hash, fingerprint_files, run_identity
from lovasz_repro.models.own_network import find_own
from lovasz_repro.training.distributed import Team

WEIGHTS = "best.safetensors"
"""Weights file in a run's folder."""
START = "run-"
"""Before the identity of the run whose weights a run starts from, in the place of a fingerprint."""


@dataclass(frozen=True)
class Place:
    """Where runs read and write, and on what they compute; changes no result on one device."""

    results: Path
    data: Path
    weights: Path | None
    device: torch.device
    workers: int = 0
    """Processes that decode images; 0 decodes in the training process."""
    processes: int = 1
    """Processes that share work done file by file, beside the training process."""
    basis: Path | None = None
    """Weights file that stands for the run of the variant basis."""


@dataclass(frozen=True)
class Inputs:
    """What a run reads, found and fingerprinted."""

    data: Path
    weights: Path | None
    fingerprints: dict[str, str]
    """Tags ``data_fingerprint``, where training starts from a file ``weights_fingerprint``, and of
    the file that makes a user's own network ``network_fingerprint``."""
    identity: str
    """Hash of config and inputs: the same run has the same one everywhere."""


class Known(dict[tuple[str, DataConfig], str]):
    """Fingerprints of the data of a grid, which most of its cells have in common.

    By scale and data without the category; kept for a moment only, since files change.
    """


def find_inputs(
    cell: CellConfig,
    place: Place,
    progress: Progress | None = None,
    known: Known | None = None,
) -> Inputs:
    """Find what a cell reads and take its fingerprint, which reads all of it the first time.

    Args:
        cell, place: the run.
        progress: shows how far the reading is.
        known: fingerprints of the data of other cells, found a moment ago; added to.

    Raises:
        UserError: data or weights are not there, or a paper-scale run would read other data.
    """
    data, cache = folder_of(cell, place), place.results / "work" / "fingerprints.json"
    start = find_inputs(cell.start, place, progress, known) if cell.start else None
    weights = None if start else released_weights(cell, place)
    known = Known() if known is None else known
    what = cell.scale, cell.data.model_copy(update={"category": None})
    if what not in known:
        known[what] = data_fingerprint(cell, data, cache, progress)
    tags = {"data_fingerprint": known[what]}
    if cell.start and start:
        weights = run_folder(place.results, cell.start, start.identity) / WEIGHTS
        tags["weights_fingerprint"] = START + start.identity
    elif weights:
        tags["weights_fingerprint"] = fingerprint_files([weights], weights.parent, cache)
    if cell.model.callable and (source := find_own(cell.model.callable)):
        tags["network_fingerprint"] = fingerprint_files([source], source.parent, cache)
    hashed = config_hash(cell.model_dump(mode="json"))
    beside = {"weights": tags.get("weights_fingerprint", "none")}
    if "network_fingerprint" in tags:  # a network whose code was changed is another one
        beside["network"] = tags["network_fingerprint"]
    identity = run_identity(hashed, tags["data_fingerprint"], **beside)
    return Inputs(data, weights, tags, identity)


def folder_of(cell: CellConfig, place: Place) -> Path:
    """The folder of a cell's data set.

    Raises:
        UserError: it is not there.
    """
    try:
        return dataset_folder(place.data, cell.data.folder or cell.data.name)
    except UserError as error:
        command = made_by(f"{cell.data.folder or cell.data.name}-demo")
        if command is None or cell.experiment not in experiment_names():
            raise
        instead = f"Drawn images instead: `{command}`, then --profile demo."
        raise UserError(f"{error} {instead}") from None


def data_fingerprint(cell: CellConfig, data: Path, cache: Path, progress: Progress | None) -> str:
    """Of all files that a cell may read.

    Raises:
        UserError: some are missing, or a paper-scale run would read other data.
    """
    kind = kind_of(cell.data)
    files = kind.files(data, cell.data)
    if cell.scale == "paper":
        kind.check_papers(data, cell.data)
    if progress is None:
        return fingerprint_files(files, data, cache)
    with progress.task("  reading data", len(files)) as bar:
        return fingerprint_files(files, data, cache, bar.advance)


def released_weights(cell: CellConfig, place: Place) -> Path | None:
    """The file that training starts from, or None.

    Raises:
        UserError: it is not there.
    """
    name = cell.model.weights
    if name == "file":
        if place.weights is None or not place.weights.is_file():
            raise UserError(f"--weights {place.weights}: there is no such file.")
        return place.weights
    if name != "basis":
        return weights_file(place.data, name, place.weights) if name else None
    if place.basis is None or not place.basis.is_file():
        raise UserError(f"no basis network at {place.basis}. Name its file with --basis.")
    return place.basis


def check_extras(cell: CellConfig) -> None:
    """Make sure that the optional packages are installed that a cell needs after its training.

    Raises:
        UserError: one is not.
    """
    if cell.evaluation.crf:
        from lovasz_repro.evaluation.crf import check_installed

        check_installed(", or score without it: --set evaluation.crf=null")
    if cell.evaluation.batches and cell.evaluation.batches.rankseg:
        from lovasz_repro.evaluation.expected_iou import check_rankseg

        check_rankseg(", or score without it: --set evaluation.batches.rankseg=false")


def run_folder(results: Path, cell: CellConfig, identity: str) -> Path:
    """Where a run works; the same run finds the same folder again."""
    name = f"{cell.name}-{identity[:8]}"
    return results / "work" / cell.experiment / cell.profile / name


def inputs_of_all(cell: CellConfig, place: Place, team: Team, progress: Progress) -> Inputs:
    """What this rank reads, after making sure that every rank reads the same.

    Raises:
        UserError: data or weights are not there, or another machine has others.
    """
    found: list[Inputs] = []  # the leader's first: it fills the cache of fingerprints
    team.on_leader(lambda: found.append(find_inputs(cell, place, progress)))
    inputs = found[0] if found else find_inputs(cell, place)
    team.check_same(inputs.identity, "data or weights")
    return inputs
