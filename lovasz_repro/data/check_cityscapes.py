"""Is a tree in the layout of Cityscapes whole? Finds everything that is wrong, file by file.

Every photograph and annotation is decoded, over several processes. Those that decode import
neither torch nor the loader, so that they start at once and stay small.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    TreeNote,
    check_each,
    read_note,
    unseen,
)
from lovasz_repro.data.cityscapes import (
    CITYSCAPES_SIZES,
    FINE_MASKS,
    FULL_SIZE,
    LEFT_IMAGES,
    SPLITS,
    Frame,
    list_frames,
)
from lovasz_repro.data.classes import CITYSCAPES_IDS, CITYSCAPES_INSTANCES
from lovasz_repro.data.images import read_mask
from lovasz_repro.errors import UserError

HOW_TO_GET_IT = (
    "Register at www.cityscapes-dataset.com, run `csDownload leftImg8bit_trainvaltest.zip "
    "gtFine_trainvaltest.zip` (of `pip install 'lovasz-repro[cityscapes]'`) and unpack both into"
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
        problems += [
            *_wrong_count(split, len(frames[split]), expected.get(split, 0)),
            *_missing_annotations(root, split, frames[split], _is_labelled(split, note)),
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


def _is_labelled(split: str, note: TreeNote | None) -> bool:
    return split != "test" or (note is not None and note.content != "demo")


def _wrong_count(split: str, images: int, expected: int) -> Iterator[Fault]:
    if images != expected:
        yield Fault(split, f"leftImg8bit/{split}", f"{images:,} photographs, not {expected:,}")


def _missing_annotations(
    root: Path, split: str, frames: Sequence[Frame], labelled: bool
) -> Iterator[Fault]:
    """Annotations that are not there; a city without any is one problem, not hundreds."""
    if not labelled:
        return
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
    annotations = (frame.label_ids, _label_ids), (frame.instance_ids, _instance_ids)
    there = tuple(annotation for annotation in annotations if annotation[0].is_file())
    return FilesOfImage(root, split, frame.image, there, size, _contradictions)


def _label_ids(file: Path) -> np.ndarray:
    return read_mask(file, CITYSCAPES_IDS)


def _instance_ids(file: Path) -> np.ndarray:
    return read_mask(file, CITYSCAPES_INSTANCES)


def _contradictions(label_ids: np.ndarray, instances: np.ndarray) -> Iterator[str]:
    """Instance ids (H, W) whose class is not the label id (H, W) there."""
    wrong = np.where(instances < 1000, instances, instances // 1000) != label_ids
    if wrong.any():
        pairs = np.unique(np.stack([instances[wrong], label_ids[wrong]]), axis=1).T
        shown = ", ".join(f"{instance} on {label_id}" for instance, label_id in pairs[:SHOWN])
        more = f", and {len(pairs) - SHOWN} other pairs" if len(pairs) > SHOWN else ""
        yield (f"instance ids contradict label ids on {wrong.sum():,} pixels (instance id on "
               f"label id: {shown}{more})")  # fmt: skip
