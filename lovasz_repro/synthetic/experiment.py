"""The synthetic experiment: which loss has its minimum where the Jaccard loss has its (Sec. 4.1).

A pixel of feature f is foreground where f > -b. For each loss the bias b is searched
exhaustively, and what counts is the Jaccard loss (Eq. 4, the mean over the images) at the bias
that the loss likes best: how far it lies above the lowest Jaccard loss of any bias.
"""

import csv
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch

from lovasz_repro.config.synthetic import CirclesConfig, SearchConfig, SyntheticConfig
from lovasz_repro.errors import UserError
from lovasz_repro.host.provenance import (
    config_hash,
    device_name,
    git_commit,
    package_versions,
    run_identity,
)
from lovasz_repro.store import Point, Store, StoredRun
from lovasz_repro.synthetic.bias_search import (
    SEARCHED_LOSSES,
    SURROGATES,
    Circles,
    SortedImage,
    draw_circles,
    grid_minimum,
    jaccard,
    jaccard_minimum,
    loss_curves,
    over_images,
    sort_images,
)

Found = TypeVar("Found")
COLUMNS = ("argmin", "jaccard_at_argmin", "excess")


@dataclass(frozen=True)
class SyntheticResult:
    """What the search found."""

    seeds: tuple[int, ...]
    metrics: Mapping[str, np.ndarray]
    """Per seed, (S,) float64: `argmin/<loss>`, the bias where the loss is lowest;
    `jaccard_at_argmin/<loss>`, the Jaccard loss there; `excess/<loss>`, that minus the lowest
    Jaccard loss of any bias in the range. Each for the Jaccard loss itself too."""
    curves: Mapping[str, np.ndarray]
    """Of the first seed, (K,) float64: `b` and the value of each loss there (Fig. 3b)."""
    label: np.ndarray
    """(size, size) uint8, the first image of the first seed (Fig. 3a)."""
    features: np.ndarray
    """(size, size) float32, its features."""


def search(
    config: SyntheticConfig,
    seeds: Sequence[int],
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticResult:
    """Search the bias of every loss for every seed.

    Arguments:
        seeds: at least one.
        device: must support float64.
        progress: called with (seeds done, seeds in all) after each seed.

    Raises:
        ValueError: no seeds.
    """
    if not seeds:
        raise ValueError("search needs at least one seed")

    def search_seed(seed: int) -> dict[str, float]:
        return _search_one(sort_images(images_of(config.circles, seed), device), config.search)

    found = []
    with closing(_in_parallel(search_seed, seeds)) as results:
        for one in results:
            found.append(one)
            if progress:
                progress(len(found), len(seeds))
    metrics = {name: np.array([one[name] for one in found]) for name in found[0]}
    sample = images_of(config.circles, seeds[0])
    return SyntheticResult(
        seeds=tuple(seeds),
        metrics=metrics,
        curves=loss_curves(sort_images(sample, device), config.search),
        label=sample.labels[0].astype(np.uint8),
        features=sample.features[0].astype(np.float32),
    )


def images_of(config: CirclesConfig, seed: int) -> Circles:
    """The images of one seed."""
    return draw_circles(
        seed,
        images=config.images,
        size=config.size,
        radius=config.radius,
        mean=config.mean,
        noise=config.noise,
    )


def _in_parallel(
    function: Callable[[int], Found], seeds: Sequence[int]
) -> Generator[Found, None, None]:
    """Results in the order of the seeds: one seed a thread and one thread an operation.

    The tensors are too small to share one between threads, which waits more than it computes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(function, seeds)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _search_one(images: Sequence[SortedImage], config: SearchConfig) -> dict[str, float]:
    best = {"jaccard": jaccard_minimum(images, config.bias)}
    best |= {name: grid_minimum(loss, images, config) for name, loss in SURROGATES.items()}
    biases = images[0].foreground.new_tensor(list(best.values()))
    values = over_images(jaccard, images, biases)
    columns = zip(COLUMNS, (biases, values, values - values[0]), strict=True)
    return {
        f"{column}/{name}": value
        for column, numbers in columns
        for name, value in zip(best, numbers.tolist(), strict=True)
    }


class SeedSpread(NamedTuple):
    """Mean over seeds and sample standard deviation (None for one seed)."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class SummaryRow:
    """One line of the printed table."""

    loss: str
    argmin: SeedSpread
    jaccard: SeedSpread
    """Jaccard loss at the loss's arg min, in [0, 1]."""
    excess: SeedSpread
    """How far that is above the lowest Jaccard loss, in [0, 1]."""
    nearest: int | None
    """In how many seeds no other surrogate comes nearer to it; None for the Jaccard loss."""


def summary(result: SyntheticResult) -> list[SummaryRow]:
    """The table: one row a loss, the Jaccard loss first."""
    excesses = np.stack([result.metrics[f"excess/{name}"] for name in SURROGATES])  # (losses, S)
    nearest = dict(zip(SURROGATES, (excesses == excesses.min(axis=0)).sum(axis=1), strict=True))
    rows = []
    for name in SEARCHED_LOSSES:
        argmin, jaccard_there, excess = (
            _spread(result.metrics[f"{column}/{name}"]) for column in COLUMNS
        )
        count = int(nearest[name]) if name in nearest else None
        rows.append(SummaryRow(name, argmin, jaccard_there, excess, count))
    return rows


def _spread(values: np.ndarray) -> SeedSpread:
    return SeedSpread(values.mean().item(), values.std(ddof=1).item() if len(values) > 1 else None)


class SyntheticRun(NamedTuple):
    """What `run_synthetic` gives back."""

    run: StoredRun
    result: SyntheticResult
    reused: bool
    """Whether the run was stored before and nothing was computed."""


def run_synthetic(
    config: SyntheticConfig,
    store: Store,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticRun:
    """Search and store; a finished run of the same config and images is reported from the store.

    Where its files are missing or damaged, the search is done again and its values are replaced.

    Arguments:
        progress: as in `search`.

    Raises:
        StoreError: the store cannot be read or written.
    """
    data = fingerprint(config)
    identity = identity_of(config, data)
    stored = store.finished(config.experiment, identity)
    if stored:
        with suppress(UserError, OSError, ValueError, LookupError, BadZipFile):
            return SyntheticRun(stored, stored_result(store, stored), reused=True)
    run_id = _open(config, store, identity, data, device)
    try:
        result = search(config, range(config.seeds), device, progress)
        _keep(store, run_id, result)
    except BaseException as error:
        store.close(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    store.close(run_id, "FINISHED")
    finished = store.find(config.experiment, identity)
    assert finished is not None
    return SyntheticRun(finished, result, reused=False)


def identity_of(config: SyntheticConfig, data: str) -> str:
    """What the stored run of a config and a fingerprint is found by."""
    return run_identity(config_hash(config.recipe()), data)


def stored_search(config: SyntheticConfig, store: Store) -> StoredRun | None:
    """The finished run of a config, if there is one."""
    return store.finished(config.experiment, identity_of(config, fingerprint(config)))


def stored_result(store: Store, run: StoredRun) -> SyntheticResult:
    """The result of a finished run, read back.

    Raises:
        StoreError: an artifact is missing.
    """
    names = [f"{column}/{name}" for column in COLUMNS for name in SEARCHED_LOSSES]
    histories = {name: store.history(run.run_id, name) for name in names}
    with store.artifact(run.run_id, "curves.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    columns = np.array(rows, dtype=np.float64).T
    with np.load(store.artifact(run.run_id, "sample.npz"), allow_pickle=False) as sample:
        label, features = sample["label"], sample["features"]
    return SyntheticResult(
        seeds=tuple(step for step, _ in histories[names[0]]),
        metrics={name: np.array([v for _, v in points]) for name, points in histories.items()},
        curves=dict(zip(header, columns, strict=True)),
        label=label,
        features=features,
    )


def fingerprint(config: SyntheticConfig) -> str:
    """16 hexadecimal digits over labels and features of all images of all seeds."""
    digest = hashlib.sha256()
    for seed in range(config.seeds):
        for array in images_of(config.circles, seed):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def _open(
    config: SyntheticConfig, store: Store, identity: str, data: str, device: torch.device | str
) -> str:
    """Find or make the stored run, with all that its numbers can be traced by."""
    recipe = config.recipe()
    tags = {
        "experiment": config.experiment,
        "variant": "bias-search",
        "profile": config.profile,
        "scale": config.scale,
        "seed": f"0-{config.seeds - 1}",
        "device": device_name(device),
        "git_commit": git_commit(),
        "packages": json.dumps(package_versions(), sort_keys=True),
        "config_hash": config_hash(recipe),
        "data_fingerprint": data,
    }
    params = {"seeds": str(config.seeds)}
    for group in ("circles", "search"):
        params |= {f"{group}.{key}": str(value) for key, value in recipe[group].items()}
    name = f"bias-search-{config.seeds}-seeds"
    return store.open_child(config.experiment, config.experiment, name, identity, params, tags)


def _keep(store: Store, run_id: str, result: SyntheticResult) -> None:
    """Log metrics (step = seed) in one batch, and the artifacts of Fig. 3."""
    now = round(time.time() * 1000)
    store.log(
        run_id,
        [
            Point(name, value, seed, now)
            for name, values in result.metrics.items()
            for seed, value in zip(result.seeds, values.tolist(), strict=True)
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        curves, sample = Path(folder, "curves.csv"), Path(folder, "sample.npz")
        with curves.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(result.curves)
            writer.writerows(zip(*(v.tolist() for v in result.curves.values()), strict=True))
        np.savez_compressed(sample, label=result.label, features=result.features)
        for path in (curves, sample):
            store.add_artifact(run_id, path)
