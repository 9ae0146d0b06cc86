"""A store in memory with the interface of ``lovasz_repro.store.Store``, and runs to put in it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lovasz_repro.errors import UserError

History = Mapping[str, list[tuple[int, float]]]


@dataclass(frozen=True)
class FakeRun:
    run_id: str
    experiment: str
    name: str
    status: str
    started: float
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]


@dataclass
class FakeStore:
    folder: Path
    stored: list[FakeRun] = field(default_factory=list)
    histories: dict[str, History] = field(default_factory=dict)

    def runs(self, experiment: str | None = None) -> list[FakeRun]:
        newest_first = sorted(self.stored, key=lambda run: -run.started)
        return [run for run in newest_first if experiment in (None, run.experiment)]

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        return sorted(self.histories[run_id].get(key, []))

    def artifact(self, run_id: str, relative_path: str) -> Path:
        return self.folder / run_id / relative_path

    def strict(self) -> Any:
        """The same, refusing to name a file that is not there, as the store of the tool does."""
        return StrictStore(self)

    def add(
        self,
        experiment: str = "camvid-enet",
        variant: str = "lovasz-softmax",
        seed: int | str = 0,
        *,
        batch: int | None = 10,
        scale: str = "reduced",
        profile: str | None = None,
        status: str = "FINISHED",
        metrics: Mapping[str, float] | None = None,
        history: History | None = None,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> FakeRun:
        """Store a run; the last value of every history is a metric too, as in MLflow."""
        number = len(self.stored)
        profile = profile or scale
        given: dict[str, str] = {"data.size": "[176, 240]", "training.iterations": "600"}
        given |= {"loss.terms.lovasz_softmax": "1.0", "variant": variant, "seed": str(seed)}
        given |= {"training.batch_size": str(batch)} if batch else {}
        marks: dict[str, Any] = {"variant": variant, "seed": str(seed), "scale": scale}
        marks |= {"profile": profile, "device": "cpu", "git_commit": "c0ffee"}
        marks |= {"config_hash": f"hash{number}", "data_fingerprint": "d4ta5e7f1234"}
        last = {key: points[-1][1] for key, points in (history or {}).items()}
        run = FakeRun(
            run_id=f"id{number:03d}",
            experiment=experiment,
            name=f"{variant}-b{batch}-s{seed}",
            status=status,
            started=1000.0 + number,
            params=given | dict(params or {}),
            tags=marks | dict(tags or {}),
            metrics=last | dict(metrics or {}),
        )
        self.stored.append(run)
        self.histories[run.run_id] = dict(history or {})
        return run


class StrictStore:
    def __init__(self, store: FakeStore) -> None:
        self.runs, self.history, self.known = store.runs, store.history, store.artifact

    def artifact(self, run_id: str, relative_path: str) -> Path:
        path = self.known(run_id, relative_path)
        if not path.is_file():
            raise UserError(f"run {run_id} has no artifact {relative_path}")
        return path


@pytest.fixture
def store(tmp_path: Path) -> FakeStore:
    """An empty store."""
    return FakeStore(tmp_path / "artifacts")


@pytest.fixture
def camvid(store: FakeStore) -> FakeStore:
    """Two seeds of each CamVid variant at reduced scale, one seed at demo scale."""
    return fill_camvid(store)


def fill_camvid(store: FakeStore) -> FakeStore:
    scores = {"weighted-cross-entropy": 0.480, "lovasz-softmax": 0.527, "sum": 0.520}
    for seed in (0, 1):
        for variant, score in scores.items():
            add_camvid(store, variant, seed, score + 0.010 * seed)
    for variant, score in scores.items():
        add_camvid(store, variant, 0, score - 0.2, scale="demo", device="gpu")
    return store


@pytest.fixture
def add_run(store: FakeStore) -> Callable[..., FakeRun]:
    """Adds a CamVid run with scores around a test score."""
    return lambda *args, **kwargs: add_camvid(store, *args, **kwargs)


def add_camvid(
    store: FakeStore,
    variant: str,
    seed: int,
    test: float,
    *,
    device: str = "cpu",
    **kwargs: Any,
) -> FakeRun:
    """A run whose best snapshot is at iteration 400 with a validation score of test + 0.02."""
    curve = [(0, 0.30), (200, test), (400, test + 0.02), (600, test + 0.01)]
    metrics = {
        "best/iteration": 400.0,
        "test/dataset_miou": test,
        "test/image_miou": test + 0.1,
        "initial/test/dataset_miou": 0.31,
    }
    for name, offset in {"sky": 0.3, "car": 0.0, "sign symbol": -0.3}.items():
        metrics[f"test/iou/{name}"] = test + offset
        metrics[f"initial/test/iou/{name}"] = 0.31 + offset
    history = {"val/dataset_miou": curve}
    tags = {"device": device}
    return store.add(
        variant=variant, seed=seed, metrics=metrics, history=history, tags=tags, **kwargs
    )
