"""What a run came to, as a table and a figure among its files: for who opens it in MLflow."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from lovasz_repro.host.files import write_durably
from lovasz_repro.store.journal import read_records

SUMMARY = "summary"
History = Mapping[int, float]
"""Step -> value."""


def write_summary(journal: Path, folder: Path) -> list[Path]:
    """Write ``scores.csv`` and ``curves.png`` of what a journal holds; returns the files.

    Raises:
        OSError: the disk refuses.
    """
    found: dict[str, dict[int, float]] = {}
    for record, _ in read_records(journal):
        for point in record.points:
            found.setdefault(point.key, {})[point.step] = point.value
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "scores.csv", folder / "curves.png"]
    for file, content in zip(files, (scores(found), curves(found)), strict=True):
        write_durably(file, content)
    return files


def scores(found: Mapping[str, History]) -> bytes:
    """Each score before training, at the best snapshot and at the end, where it was measured."""
    best = [*found.get("best/iteration", {0: 0}).values()][-1]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["score", "before training", "best snapshot", "end"])
    for key, history in sorted(found.items()):
        if not key.startswith(("train/", "initial/", "batches/", "best/")):
            start = found.get(f"initial/{key}", history).get(0)
            values = (start, history.get(int(best)), history[max(history)])
            rows.writerow([key, *("" if v is None else f"{v:.6g}" for v in values)])
    return text.getvalue().encode()


def curves(found: Mapping[str, History]) -> bytes:
    """The loss of each step, and the scores of each validation, as a PNG."""
    from matplotlib.figure import Figure

    shown = {key: history for key, history in sorted(found.items())
             if key.rpartition("/")[2] in ("dataset_miou", "image_miou", "image_iou")
             and len(history) > 1}  # fmt: skip
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    training, validation = figure.subplots(1, 2)
    loss = found.get("train/loss", {})
    training.plot(list(loss), list(loss.values()), linewidth=0.7)
    training.set(xlabel="iteration", ylabel="training loss")
    for key, history in shown.items():
        validation.plot(list(history), [100 * v for v in history.values()], ".-", label=key)
    validation.set(xlabel="iteration", ylabel="%")
    if shown:
        validation.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
