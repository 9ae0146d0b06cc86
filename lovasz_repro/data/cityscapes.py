"""Cityscapes in its official layout: 2,975 / 500 / 1,525 street photographs of 1024x2048.

cityscapes/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png     photograph
cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png      official ids 0-33
cityscapes/gtFine/train/aachen/aachen_000000_000019_gtFine_instanceIds.png   id * 1000 + number

The network's classes are the 20 of the released ENet: 0 for every id that is not scored, then the
19 scored ones in official order. Other trees in this layout (``data demo``,
``data convert``) may have other sizes.

``check_cityscapes`` finds everything that is wrong with a tree. The processes that decode its files
import neither torch nor the loader, so that they start at once and stay small.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lovasz_repro.data.check import (
    SHOWN,
    Begin,
    CheckReport,
    Fault,
    FilesOfImage,
    Size,
    SplitReport,
    check_each,
    read_note,
    unseen,
)
from lovasz_repro.data.classes import CITYSCAPES, CITYSCAPES_IDS, CITYSCAPES_INSTANCES
from lovasz_repro.data.images import by_name, read_mask
from lovasz_repro.errors import UserError, install

STREET_CLASSES = CITYSCAPES.names
SPLITS = ("train", "val", "test")
CITYSCAPES_SIZES: dict[str, int] = {"train": 2975, "val": 500, "test": 1525}
FULL_SIZE = (1024, 2048)
LEFT_IMAGES, FINE_MASKS = "leftImg8bit", "gtFine"

TO_LABEL_ID = np.array(CITYSCAPES.label_ids, dtype=np.uint8)
"""Class 0..19 -> official label id, (20,)."""
TO_CLASS = np.zeros(CITYSCAPES_IDS.highest + 1, dtype=np.uint8)
"""Official label id 0..33 -> class 0..19, (34,)."""
TO_CLASS[TO_LABEL_ID[1:]] = np.arange(1, len(STREET_CLASSES), dtype=np.uint8)


@dataclass(frozen=True)
class Frame:
    """One photograph and where its annotation lies, there or not."""

    name: str
    """Like ``aachen_000000_000019``."""
    city: str
    image: Path
    label_ids: Path
    instance_ids: Path


def list_frames(root: Path, split: str, *, labelled: bool = True) -> list[Frame]:
    """Every photograph of a split, sorted by name.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        split: "train", "val" or "test".
        labelled: insist on the annotations, which the official test set lacks.

    Raises:
        UserError: the folders, the annotation of a city or of some photographs are missing.
    """
    folder = root / LEFT_IMAGES / split
    if not folder.is_dir():
        raise UserError(
            f"Cityscapes not found: no folder {folder}. `lovasz-repro data check cityscapes` says "
            "where it comes from and what is missing."
        )
    frames = list(frames_of(root, split))
    if not frames:
        raise UserError(f"{folder}: no city folders with *_{LEFT_IMAGES}.png photographs.")
    if labelled:
        for city in sorted({frame.city for frame in frames}):
            if not (root / FINE_MASKS / split / city).is_dir():
                raise UserError(
                    f"{root / FINE_MASKS / split}: no folder {city}, whose photographs are in "
                    f"{folder / city}."
                )
        lonely = [f for frame in frames for f in (frame.label_ids, frame.instance_ids)
                  if not f.is_file()]  # fmt: skip
        if lonely:
            more = f" (and {len(lonely) - 1} more such files)" if len(lonely) > 1 else ""
            raise UserError(f"{lonely[0]}: missing; its photograph is there{more}.")
    return sorted(frames, key=lambda frame: frame.name)


def read_label_ids(frame: Frame) -> np.ndarray:
    """Official label ids, (H, W) uint8 in 0..33.

    Raises:
        UserError: as ``read_mask``.
    """
    return read_mask(frame.label_ids, CITYSCAPES_IDS)


def read_instances(frame: Frame) -> np.ndarray:
    """Official instance ids, (H, W) int32: a label id, or label id * 1000 + number.

    Raises:
        UserError: as ``read_mask``.
    """
    return read_mask(frame.instance_ids, CITYSCAPES_INSTANCES)


def frames_of(root: Path, split: str) -> Iterator[Frame]:
    """The photographs of a split that there are, in no order."""
    images = (root / LEFT_IMAGES / split).glob("[!.]*/*")
    for name, image in by_name(images, (f"_{LEFT_IMAGES}.png",)).items():
        city = image.parent.name
        masks = root / FINE_MASKS / split / city / f"{name}_gtFine"
        yield Frame(
            name,
            city,
            image,
            Path(f"{masks}_labelIds.png"),
            Path(f"{masks}_instanceIds.png"),
        )


# ---- the check -----------------------------------------------------------------------------------

HOW_TO_GET_IT = (
    "Register at www.cityscapes-dataset.com, run `csDownload leftImg8bit_trainvaltest.zip "
    f"gtFine_trainvaltest.zip` (of `{install('cityscapes')}`) and unpack both into"
)


@dataclass(frozen=True)
class CitiesReport(SplitReport):
    """What was found of one split."""

    cities: int


def check_cityscapes(root: Path, begin: Begin = unseen, *, processes: int = 1) -> CheckReport:
    """Read a whole tree and list everything that is wrong.

    A tree that this tool wrote is held against its note, any other against the official release.
    Train and val need label ids and instance ids. Test needs them in trees made of an annotated
    data set; the official ones hold no labels and may be missing.

    Args:
        root: the folder that holds ``leftImg8bit`` and ``gtFine``.
        begin: see ``Begin``.
        processes: how many share the photographs.

    Raises:
        UserError: there is no such tree, or its note cannot be read.
        RunFailed: a process died.
    """
    frames = {split: list_photographs(root, split) for split in SPLITS}
    note = read_note(root)
    expected = note.images if note else CITYSCAPES_SIZES
    size = note.size if note else FULL_SIZE
    problems: list[Fault] = []
    jobs: list[FilesOfImage] = []
    for split in SPLITS:
        found, wanted = len(frames[split]), expected.get(split, 0)
        if found != wanted:
            what = f"{found:,} photographs, not {wanted:,}"
            problems.append(Fault(split, f"{LEFT_IMAGES}/{split}", what))
        labelled = split != "test" or (note is not None and note.content != "demo")
        problems += [
            *_missing_annotations(root, split, frames[split] if labelled else []),
            *_lonely_annotations(root, split, {frame.name for frame in frames[split]}),
        ]
        jobs += [_files(root, split, frame, size) for frame in frames[split]]
    problems += check_each(jobs, begin, processes)
    return CheckReport(
        str(root),
        note.content if note else "official",
        size,
        tuple(
            CitiesReport(
                split,
                len(frames[split]),
                expected=expected.get(split, 0),
                problems=sum(problem.split == split for problem in problems),
                cities=len({frame.city for frame in frames[split]}),
            )
            for split in SPLITS
        ),
        tuple(sorted(problems, key=lambda problem: SPLITS.index(problem.split))),
    )


def list_photographs(root: Path, split: str) -> list[Frame]:
    """Photographs of a split, sorted by name; empty where its folder is missing.

    Raises:
        UserError: there is no tree in this layout at ``root``.
    """
    if not (root / LEFT_IMAGES).is_dir():
        raise UserError(
            f"Cityscapes not found: no folder {root / LEFT_IMAGES}. {HOW_TO_GET_IT} {root}"
        )
    try:
        return list_frames(root, split, labelled=False)
    except UserError:
        return []


def _missing_annotations(root: Path, split: str, frames: Sequence[Frame]) -> Iterator[Fault]:
    """Annotations that are not there; a city without any is one problem, not hundreds."""
    folders = Counter(frame.label_ids.parent for frame in frames)
    missing = {folder for folder in folders if not folder.is_dir()}
    for folder in sorted(missing):
        what = f"no such folder, but the city has {folders[folder]:,} photographs"
        yield Fault(split, folder.relative_to(root).as_posix(), what)
    for frame in frames:
        for file in (frame.label_ids, frame.instance_ids):
            if file.parent not in missing and not file.is_file():
                where = file.relative_to(root).as_posix()
                yield Fault(split, where, "missing; its photograph is there")


def _lonely_annotations(root: Path, split: str, photographs: set[str]) -> Iterator[Fault]:
    """Annotated frames whose photograph is not there, each once."""
    lonely: dict[Path, list[str]] = {}
    for kind in ("labelIds", "instanceIds"):
        ending = f"_{FINE_MASKS}_{kind}.png"
        for file in (root / FINE_MASKS / split).glob(f"*/*{ending}"):
            name = file.name.removesuffix(ending)
            if name not in photographs:
                lonely.setdefault(file.parent / name, []).append(kind)
    for frame, kinds in sorted(lonely.items()):
        annotation = f"{frame.relative_to(root).as_posix()}_{FINE_MASKS}_{kinds[0]}.png"
        yield Fault(split, annotation, "its photograph is missing")


def _files(root: Path, split: str, frame: Frame, size: Size) -> FilesOfImage:
    annotations = (
        (frame.label_ids, partial(read_mask, ids=CITYSCAPES_IDS)),
        (frame.instance_ids, partial(read_mask, ids=CITYSCAPES_INSTANCES)),
    )
    there = tuple(annotation for annotation in annotations if annotation[0].is_file())
    return FilesOfImage(root, split, frame.image, there, size, _contradictions)


def _contradictions(label_ids: np.ndarray, instances: np.ndarray) -> Iterator[str]:
    """Instance ids (H, W) whose class is not the label id (H, W) there."""
    wrong = np.where(instances < 1000, instances, instances // 1000) != label_ids
    if wrong.any():
        pairs = np.unique(np.stack([instances[wrong], label_ids[wrong]]), axis=1).T
        shown = ", ".join(f"{instance} on {label_id}" for instance, label_id in pairs[:SHOWN])
        more = f", and {len(pairs) - SHOWN} other pairs" if len(pairs) > SHOWN else ""
        yield (f"instance ids contradict label ids on {wrong.sum():,} pixels (instance id on "
               f"label id: {shown}{more})")  # fmt: skip
