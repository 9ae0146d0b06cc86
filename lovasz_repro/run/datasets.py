"""The data sets that experiments can train on: how each is read, and how it is scored.

One line in ``DATASETS`` per layout of files. ``data/`` reads files and ``evaluation/`` scores;
this is where the two meet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lovasz_repro.config.schema import DataConfig
from lovasz_repro.data import camvid, cityscapes, voc
from lovasz_repro.data.palettes import CAMVID, CAMVID_FROM_CITYSCAPES, CITYSCAPES, VOC, ClassTable
from lovasz_repro.data.voc_evidence import Evidence, EvidenceScored, EvidenceTraining
from lovasz_repro.data.voc_training import VocScored, VocTraining, balanced_validation, presence_of
from lovasz_repro.errors import UserError
from lovasz_repro.evaluation.binary import BinaryScoring
from lovasz_repro.evaluation.scoring import CityscapesScoring, Scoring, SegmentationScoring


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
    files: Callable[[Path, DataConfig], list[Path]]
    """Every file below a root that a run may read."""
    train: Callable[[Path, DataConfig, int], TrainingSet]
    """(root, config, seed) -> training set."""
    scored: Callable[[Path, str, DataConfig], ScoredSet]
    """(root, split, config) -> images as the network takes them with what their scoring needs."""
    scored_splits: Callable[[Path], tuple[str, ...]]
    """Splits that have labels, "val" first."""
    scoring: Callable[[DataConfig, int], Scoring]
    """(config, images of a training batch) -> an empty scoring."""
    check_papers: Callable[[Path, DataConfig], None]
    """Raises UserError unless the data are those of the paper, which paper-scale runs need."""
    in_memory: bool = False
    """Whether decoded images are kept, so that loading in other processes gains nothing."""
    sizes_differ: bool = False
    """Whether images are scored at sizes of their own, one at a time."""


def _camvid_files(root: Path, data: DataConfig) -> list[Path]:
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


def _cityscapes_files(root: Path, data: DataConfig) -> list[Path]:
    frames = [
        frame
        for split in ("train", *_cityscapes_splits(root))
        for frame in cityscapes.list_frames(root, split)
    ]
    return [file for f in frames for file in (f.image, f.label_ids, f.instance_ids)]


def _check_cityscapes(root: Path, data: DataConfig) -> None:
    for split, expected in (("train", 2975), ("val", 500)):
        found = len(cityscapes.list_frames(root, split))
        if found != expected:
            raise _not_the_papers(root, found, split, "cityscapes", expected)


def _check_voc(root: Path, data: DataConfig) -> None:
    if data.images == "features":
        raise UserError("data.images=features is not the paper's data, which runs of paper scale "
                        "need. Take another --profile.")  # fmt: skip
    voc.check_train_aug(image.name for image in voc.list_images(root, "train_aug"))
    found, expected = len(voc.list_images(root, "val")), voc.SPLIT_SIZES["val"]
    if found != expected:
        raise _not_the_papers(root, found, "val", "voc", expected)


def _not_the_papers(root: Path, found: int, split: str, name: str, expected: int) -> UserError:
    return UserError(
        f"{root}: {found} images in {split}, but the paper's {name} has {expected}, which runs of "
        "paper scale need. Other data: another --profile."
    )


def category_of(data: DataConfig) -> int | None:
    """The class id that is told from the rest, or None for all classes."""
    return None if data.category is None else VOC.names.index(data.category)


def _voc_files(root: Path, data: DataConfig) -> list[Path]:
    photographs = data.images == "photographs"
    images = [
        image
        for split in (data.train_split, "val")
        for image in voc.list_images(root, split, photographs=photographs)
    ]
    files = [file for i in images for file in ((i.image, i.mask) if photographs else (i.mask,))]
    return list(dict.fromkeys(files))  # trainval_aug holds val


def _voc_train(root: Path, data: DataConfig, seed: int) -> TrainingSet:
    category, crop, shown = category_of(data), data.size[0], data.crop_with_class
    if data.images == "features":
        return EvidenceTraining(
            root,
            crop,
            Evidence(data.noise),
            seed=seed,
            category=category,
            split=data.train_split,
            crop_with_class=shown,
        )
    images = voc.list_images(root, data.train_split)
    return VocTraining(images, crop, seed=seed, category=category, crop_with_class=shown)


def _voc_scored(root: Path, split: str, data: DataConfig) -> ScoredSet:
    category, chosen = category_of(data), None
    if category is not None:
        chosen = balanced_validation(presence_of(root, split), category)
        if not chosen:
            raise UserError(f"{root}: no image of {split} contains {data.category}.")
    if data.images == "features":
        return EvidenceScored(root, split, Evidence(data.noise), category=category, chosen=chosen)
    images = voc.list_images(root, split)
    return VocScored(images if chosen is None else [images[i] for i in chosen], category=category)


def _voc_scoring(data: DataConfig, batch_size: int) -> Scoring:
    category = category_of(data)
    if category is None:
        return SegmentationScoring(VOC.names, voc.VOID, batch_size)
    return BinaryScoring(category, voc.VOID)


DATASETS: dict[str, DatasetKind] = {
    "camvid": DatasetKind(
        table=CAMVID,
        ignore_index=camvid.VOID,
        first_class=0,
        from_cityscapes=CAMVID_FROM_CITYSCAPES,
        files=_camvid_files,
        train=lambda root, data, seed: camvid.CamVid(
            root, "train", data.size, flip=data.flip, seed=seed
        ),
        scored=lambda root, split, data: camvid.CamVid(root, split, data.size, native_labels=True),
        scored_splits=lambda root: ("val", "test"),
        scoring=lambda data, batch_size: SegmentationScoring(CAMVID.names, camvid.VOID, batch_size),
        check_papers=lambda root, data: None,  # the paper has no CamVid
        in_memory=True,
    ),
    "cityscapes": DatasetKind(
        table=CITYSCAPES,
        ignore_index=cityscapes.IGNORE,
        first_class=1,
        from_cityscapes=None,
        files=_cityscapes_files,
        train=lambda root, data, seed: cityscapes.Cityscapes(
            root, "train", data.size, flip=data.flip, seed=seed
        ),
        scored=lambda root, split, data: cityscapes.ScoredCityscapes(root, split, data.size),
        scored_splits=_cityscapes_splits,
        scoring=lambda data, batch_size: CityscapesScoring(cityscapes.TO_LABEL_ID),
        check_papers=_check_cityscapes,
    ),
    "voc": DatasetKind(
        table=VOC,
        ignore_index=voc.VOID,
        first_class=0,
        from_cityscapes=None,
        files=_voc_files,
        train=_voc_train,
        scored=_voc_scored,
        scored_splits=lambda root: ("val",),
        scoring=_voc_scoring,
        check_papers=_check_voc,
        sizes_differ=True,
    ),
}
