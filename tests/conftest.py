"""What every test shares: where real data lies, and calm settings for property tests."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from lovasz_repro.store import Store
    from tests.ranks import RankPool

if "PYTEST_XDIST_WORKER" in os.environ:  # the other core is the other worker's
    os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile(
    "shared", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("shared")


def real_data(*parts: str) -> Path:
    """Path below LOVASZ_REPRO_DATA, or skip the test where it is not there."""
    root = os.environ.get("LOVASZ_REPRO_DATA")
    if not root:
        pytest.skip("LOVASZ_REPRO_DATA is not set")
    path = Path(root, *parts).resolve()
    if not path.exists():
        pytest.skip(f"{Path(*parts)} is not under LOVASZ_REPRO_DATA")
    return path


LONG_FIRST = ("launch", "run", "test_readme.py", "store", "bench", "cli", "host")
"""Folders and files whose tests start processes and wait for them, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with long files: one at the end would leave the other worker without work."""

    def order(item: pytest.Item) -> int:
        names = item.path.name, item.path.parent.name
        return min((i for i, name in enumerate(LONG_FIRST) if name in names), default=99)

    items.sort(key=order)


@pytest.fixture(autouse=True)
def tiny_numbers() -> Iterator[None]:
    """Undo what `choose_device` does to a process: Hypothesis draws numbers below 1e-38."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def camvid_root() -> Path:
    """The SegNet-layout CamVid folder."""
    return real_data("camvid")


@pytest.fixture
def enet_weights() -> Path:
    """The Torch7 file that the ENet authors released for Cityscapes."""
    return real_data("weights", "enet-model.net")


@pytest.fixture(scope="session")
def rank_pool() -> Iterator["RankPool"]:
    """Up to 4 processes that talk over gloo: ``rank_pool.run(function, world_size, *args)``."""
    from tests.ranks import RankPool

    with RankPool() as pool:
        yield pool


# -- stores: one empty MLflow database per session, copied into each test ------------------------


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them (seconds to make)."""
    from lovasz_repro.store.mlflow_store import _make_database

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    _make_database(path)
    return path


@pytest.fixture
def make_store(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., "Store"]:
    """``make_store("name")``: an empty store in the folder ``tmp_path / name``."""
    from lovasz_repro.store import Store

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(name: str = "results") -> Store:
        results = tmp_path / name
        results.mkdir()
        shutil.copy(empty_database, results / "mlflow.db")
        return Store(results)

    return make


@pytest.fixture
def store(make_store: Callable[..., "Store"]) -> "Store":
    """An empty store in ``tmp_path / "results"``."""
    return make_store()


# -- end of stores -------------------------------------------------------------------------------
