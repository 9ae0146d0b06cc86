"""The data sets that experiments can train on: how each is read, and how it is scored.

One line in ``DATASETS`` per layout of files. ``data/`` reads files and ``evaluation/`` scores;
this is where the two meet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lovasz_repro.data import camvid, cityscapes
from lovasz_repro.data.palettes import CAMVID, CAMVID_FROM_CITYSCAPES, CITYSCAPES, ClassTable
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.examples import Photographed
from lovasz_repro.evaluation.scoring import CityscapesScoring, Scoring, SegmentationScoring


class ScoredSet(Photographed, Protocol):
    """Images with what their scoring needs."""


class TrainingSet(Protocol):
    """Images and labels to train on; its items may be ``Draw``s."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: Any) -> Any: ...

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of an item, without its photograph."""
        ...


@dataclass(frozen=True)
class DatasetKind:
    """What the pipeline needs to know of a data set."""

    table: ClassTable
    """Classes in the order of the network's outputs."""
    ignore_index: int
    """Label of pixels that are neither trained on nor scored."""
    first_class: int
    """Classes below it are never predicted."""
    from_cityscapes: Mapping[int, int | None] | None
    """Which output of the released Cityscapes network each class starts from; None: its own."""
    files: Callable[[Path], list[Path]]
    """Every file below a root that a run may read."""
    train: Callable[[Path, tuple[int, int], bool, int], TrainingSet]
    """(root, size, flip, seed) -> training set."""
    scored: Callable[[Path, str, tuple[int, int]], ScoredSet]
    """(root, split, size) -> images at the network's size with what their scoring needs."""
    scored_splits: Callable[[Path], tuple[str, ...]]
    """Splits that have labels, "val" first."""
    scoring: Callable[[], Scoring]
    """Makes an empty scoring."""
    paper_sizes: Mapping[str, int]
    """Images of each split that the paper trained and scored on; empty: not a set of the paper."""
    in_memory: bool
    """Whether decoded images are kept, so that loading in other processes gains nothing."""


def _camvid_files(root: Path) -> list[Path]:
    pairs = [pair for split in camvid.SPLIT_SIZES for pair in camvid.list_files(root, split)]
    return [file for pair in pairs for file in pair]


def _cityscapes_splits(root: Path) -> tuple[str, ...]:
    """Validation, and test where it has labels, which the official one does not."""
    folder = root / cityscapes.IMAGES / "test"
    frames = cityscapes.list_frames(root, "test", labelled=False) if folder.is_dir() else []
    labelled = bool(frames) and frames[0].label_ids.is_file()
    if labelled and cityscapes.TO_CLASS[cityscapes.read_label_ids(frames[0])].any():
        return "val", "test"
    return ("val",)


def _cityscapes_files(root: Path) -> list[Path]:
    frames = [
        frame
        for split in ("train", *_cityscapes_splits(root))
        for frame in cityscapes.list_frames(root, split)
    ]
    return [file for f in frames for file in (f.image, f.label_ids, f.instance_ids)]


DATASETS: dict[str, DatasetKind] = {
    "camvid": DatasetKind(
        table=CAMVID,
        ignore_index=camvid.VOID,
        first_class=0,
        from_cityscapes=CAMVID_FROM_CITYSCAPES,
        files=_camvid_files,
        train=lambda root, size, flip, seed: camvid.CamVid(
            root, "train", size, flip=flip, seed=seed
        ),
        scored=lambda root, split, size: camvid.CamVid(root, split, size, native_labels=True),
        scored_splits=lambda root: ("val", "test"),
        scoring=lambda: SegmentationScoring(CAMVID.names, camvid.VOID),
        paper_sizes={},
        in_memory=True,
    ),
    "cityscapes": DatasetKind(
        table=CITYSCAPES,
        ignore_index=cityscapes.IGNORE,
        first_class=1,
        from_cityscapes=None,
        files=_cityscapes_files,
        train=lambda root, size, flip, seed: cityscapes.Cityscapes(
            root, "train", size, flip=flip, seed=seed
        ),
        scored=cityscapes.ScoredCityscapes,
        scored_splits=_cityscapes_splits,
        scoring=lambda: CityscapesScoring(cityscapes.TO_LABEL_ID),
        paper_sizes={"train": 2975, "val": 500},
        in_memory=False,
    ),
}


def check_paper_data(kind: DatasetKind, root: Path) -> None:
    """Make sure that a folder holds what the paper trained on, which paper-scale runs need.

    Raises:
        UserError: a split has more or fewer images.
    """
    for split, expected in kind.paper_sizes.items():
        found = len(kind.scored(root, split, (8, 8)))
        if found != expected:
            raise UserError(
                f"{root}: {found} images in {split}, but the paper's {kind.table.dataset} has "
                f"{expected}, which runs of paper scale need. Other data: another --profile."
            )
