"""What is known of each data set that experiments name: all of it in its ``KIND``.

``config/tables.py`` lists them. Elsewhere nothing asks for a data set by name: what differs
between them is a field here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.config.tables import DATASET_LINES
from lovasz_repro.data.check import CheckReport
from lovasz_repro.data.classes import (
    CAMVID,
    CAMVID_FROM_CITYSCAPES,
    CITYSCAPES,
    ClassTable,
    class_table,
)
from lovasz_repro.errors import UserError


class ScoredSet(Protocol):
    """Images with what their scoring needs."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any]:
        """An image as the network takes it, (C, h, w), and its target."""
        ...

    def name(self, index: int) -> str:
        """What the image is called."""
        ...


class TrainingSet(Protocol):
    """Images and labels to train on; its items may be ``Draw``s."""

    def __len__(self) -> int: ...
    def __getitem__(self, item: Any) -> Any: ...

    def labels(self, index: int) -> np.ndarray:
        """Labels (H, W) uint8 of an item, without its photograph."""
        ...


@dataclass(frozen=True, kw_only=True)
class DatasetKind:
    """Everything that the pipeline needs to know of a data set."""

    table: ClassTable
    """Classes in the order of the network's outputs."""
    from_cityscapes: Mapping[int, int | None] | None = None
    """Which output of the released Cityscapes network each class starts from; None: its own."""
    files: Callable[[Path, DataConfig], list[Path]]
    """Every file below a root that a run may read."""
    train: Callable[[Path, DataConfig, int], TrainingSet]
    """(root, config, seed) -> training set."""
    scored: Callable[[Path, str, DataConfig], ScoredSet]
    """(root, split, config) -> images as the network takes them with what their scoring needs."""
    scored_splits: Callable[[Path], tuple[str, ...]] = lambda root: ("val",)
    """Splits that have labels, "val" first."""
    official_scores: bool = False
    """Whether the official scores of Cityscapes are computed, of label ids and instance ids; else
    those of classes."""
    balanced: bool = False
    """Whether half of the batches' images show the category on average (Sec. 4.2)."""
    in_memory: bool = False
    """Whether decoded images are kept, so that loading in other processes gains nothing."""
    sizes_differ: bool = False
    """Whether images are scored at sizes of their own, one at a time."""
    examples: Literal["crops", "segmentations"] = "crops"
    """What a run on all classes keeps for pictures: crops in which its network differs most from
    what it was before training, or the whole masks of images that are the same for all runs."""
    evaluation: Literal["cityscapes", "voc"] | None = None
    """Which of the two ways of ``evaluate`` scores a network on it; None: it does not."""
    published: Mapping[str, int]
    """How many images there are in the splits of the real data set that have to be there; none of
    data that everybody has their own of."""
    count: Callable[[Path, str], int]
    """(root, split) -> how many images a split has; raises UserError where files are missing."""
    source: str
    """What it is for and how to get it, as ``doctor`` says it."""
    check_papers: Callable[[Path, DataConfig], None] = lambda root, data: None
    """Raises UserError unless the data are those of the paper, which paper-scale runs need."""
    check: Callable[..., CheckReport]
    """(root, begin, processes) -> everything that is wrong, for ``data check``."""

    @property
    def ignore_index(self) -> int:
        """Label of pixels that are neither trained on nor scored."""
        return self.table.ignore_index

    @property
    def first_class(self) -> int:
        """Classes below it are never predicted."""
        return self.table.first_class


@cache
def dataset(name: str) -> DatasetKind:
    """What is known of the data set of this name."""
    kind: DatasetKind = import_module(f"lovasz_repro.data.{DATASET_LINES[name].file}").KIND
    return kind


def kind_of(data: DataConfig) -> DatasetKind:
    """What is known of the data set of a run, with the classes that its config names.

    The released Cityscapes network gives each class of a name that Cityscapes or CamVid has the
    output of that class.
    """
    kind = dataset(data.name)
    if not data.classes:
        return kind
    known = {CAMVID.names[label]: output for label, output in CAMVID_FROM_CITYSCAPES.items()}
    known |= {name: output for output, name in enumerate(CITYSCAPES.names) if output}
    return replace(
        kind,
        table=class_table(data.name, data.classes, len(data.classes)),
        from_cityscapes={label: known.get(name) for label, name in enumerate(data.classes)},
    )


def category_of(data: DataConfig) -> int | None:
    """The class id that is told from the rest, or None for all classes."""
    return None if data.category is None else kind_of(data).table.names.index(data.category)


def not_the_papers(root: Path, found: int, split: str, name: str, expected: int) -> UserError:
    """Another number of images than the paper's."""
    return UserError(
        f"{root}: {found} images in {split}, but the paper's {name} has {expected}, which runs of "
        "paper scale need. Other data: another --profile."
    )
