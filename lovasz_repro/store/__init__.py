"""Stored runs, and how metrics and files come into the store without training waiting for it.

``mlflow_store.py`` is the store; ``stored.py`` says what MLflow's own pages show beside numbers;
``journal.py`` and ``shipping.py`` bring a run's metrics to it; ``transfer.py`` moves runs between
stores as plain files.
"""

from lovasz_repro.store.journal import Point
from lovasz_repro.store.mlflow_store import Store
from lovasz_repro.store.stored import StoredRun, is_stale, shown_status
from lovasz_repro.store.tracking import StoreError

__all__ = ["Point", "Store", "StoreError", "StoredRun", "is_stale", "shown_status"]
