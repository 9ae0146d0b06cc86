"""The table and the figure that a run leaves in the store."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lovasz_repro.run.session import write_summary
from lovasz_repro.store.journal import Journal


def test_scores_at_three_moments_and_curves(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.jsonl") as journal:
        for step, miou in ((0, 0.1), (10, 0.6), (20, 0.5)):
            journal.log(step, {"val/dataset_miou": miou, "val/iou/car": math.nan})
            journal.log(step, {"train/loss": 1 - miou})
        journal.log(0, {"initial/test/dataset_miou": 0.2})
        journal.log(20, {"test/dataset_miou": 0.55, "best/iteration": 10.0})
    table, figure = write_summary(journal.path, tmp_path / "summary")
    with table.open(newline="") as file:
        rows = {row.pop("score"): list(row.values()) for row in csv.DictReader(file)}
    assert rows == {
        "val/dataset_miou": ["0.1", "0.6", "0.5"],
        "val/iou/car": ["nan", "nan", "nan"],
        "test/dataset_miou": ["0.2", "", "0.55"],
    }
    with Image.open(figure) as picture:
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 3
    first = [file.read_bytes() for file in (table, figure)]
    assert [file.read_bytes() for file in write_summary(journal.path, tmp_path / "b")] == first


def test_a_run_without_scores_has_a_table_and_a_figure_too(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl").close()
    assert all(file.stat().st_size for file in write_summary(tmp_path / "journal.jsonl", tmp_path))
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        write_summary(tmp_path / "journal.jsonl", tmp_path / "scores.csv" / "below")
