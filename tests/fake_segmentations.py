"""Stored runs on all classes of VOC with masks of a few pixels, for the figures of the report."""

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

LABELS = [[0, 0, 255], [15, 15, 0]]
PHOTO = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)


def png(pixels: Any, mode: str | None = None) -> bytes:
    """A PNG file, grey or RGB."""
    buffer = io.BytesIO()
    image = Image.fromarray(np.asarray(pixels, np.uint8))
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def masks_of(*wrong: int, cat: int = 8) -> list[list[list[int]]]:
    """Masks of 2x3 pixels: the person of ``LABELS`` with the first so many pixels a cat's."""
    flat = [0, 0, 0, 15, 15, 0]
    masks = [[cat if place < count else c for place, c in enumerate(flat)] for count in wrong]
    return [[mask[:3], mask[3:]] for mask in masks]


def listing(masks: int, *, crf: bool, score: float = 0.5, **changed: Any) -> bytes:
    """``segmentations.json``; ``changed``: of every entry."""
    scores = {"prediction": score} | ({"crf": score + 0.125} if crf else {})
    entry = {"height": 2, "width": 3, "batch_miou": scores}
    content = [{"name": f"2007_00000{k}"} | entry | changed for k in range(masks)]
    return json.dumps({"segmentations": content}).encode()


def add(
    store: Any,
    variant: str,
    masks: Sequence[Any],
    *,
    crf: Sequence[Any] | None = None,
    seed: int = 0,
    scale: str = "paper",
    images: str = "photographs",
    score: float = 0.5,
    batch: int = 10,
    folder: str = "None",
    labels: Any = LABELS,
    files: Mapping[str, bytes | None] | None = None,
) -> Any:
    """A run with masks; ``files``: name -> other bytes, None: none."""
    longer = variant.endswith("30k")
    params = {
        "data.images": images,
        "data.folder": folder,
        "data.equibatch": str("equibatch" in variant),
        "data.train_split": "train_aug",
        "training.iterations": "30000" if longer else "20000",
    }
    run = store.add("voc-multiclass", variant, seed, scale=scale, params=params, batch=batch)
    target = store.folder / run.run_id / "segmentations"
    target.mkdir(parents=True)
    content: dict[str, bytes | None] = {
        "segmentations.json": listing(len(masks), crf=crf is not None, score=score)
    }
    for k, mask in enumerate(masks):
        content |= {f"{k}-prediction.png": png(mask), f"{k}-labels.png": png(labels)}
        content |= {f"{k}-photo.png": png(PHOTO)} if images == "photographs" else {}
        content |= {f"{k}-crf.png": png(crf[k])} if crf is not None else {}
    for name, data in (content | dict(files or {})).items():
        if data is not None:
            (target / name).write_bytes(data)
    return run
