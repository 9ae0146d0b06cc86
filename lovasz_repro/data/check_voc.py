"""Is a Pascal VOC with SBD whole, in either layout? Finds everything that is wrong, file by file.

Every photograph and every mask that counts is decoded, over several processes. Masks of SBD that
count for nothing (VOC has its own, or validates on the image) are not read. A JPEG has no
checksum: bits that flipped and still decode go unnoticed.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lovasz_repro.data.check import SHOWN, CheckReport, Job, Problem, SplitReport, by
from lovasz_repro.data.check_voc_lists import Lists, read_lists, some
from lovasz_repro.data.images import read_photograph
from lovasz_repro.data.tree_note import TreeNote, read_note
from lovasz_repro.data.voc import (
    IMAGES,
    LISTS,
    MERGED_MASKS,
    SPLIT_SIZES,
    check_train_aug,
    read_labels,
    voc_folder,
)
from lovasz_repro.errors import UserError
from lovasz_repro.host.processes import mapped

ADVICE = (
    "{:,} photographs are missing. Noisy evidence (data.images=features) does without them: "
    "check the masks alone with --masks-only."
)


@dataclass(frozen=True)
class FilesReport(SplitReport):
    """What was found of one split."""

    masks: int
    photographs: int


@dataclass(frozen=True)
class _Job(Job):
    """A photograph and its mask, which may be missing; a test image has no mask."""

    image: Path
    mask: Path | None
    masks_only: bool
    """Leave the photograph unread."""


def check_voc(
    root: Path,
    advance: Callable[[int], None] = lambda images: None,
    *,
    masks_only: bool = False,
    processes: int = 1,
) -> CheckReport:
    """Read a whole tree and list everything that is wrong.

    A tree that this tool wrote is held against its note, any other against the published numbers
    and names. The test set, which takes a download of its own, may be missing.

    Args:
        root: the folder that holds ``VOCdevkit`` and ``benchmark_RELEASE``, or ``VOC2012``.
        advance: called with 1 after each image.
        masks_only: do without the photographs, and so without the test set.
        processes: how many share the images.

    Raises:
        UserError: there is no such tree, or its note cannot be read.
        RunFailed: a process died.
    """
    note, lists = read_tree(root, masks_only)
    expected = note.images if note else SPLIT_SIZES
    images = voc_folder(root) / IMAGES
    jobs = {
        split: [_Job(root, split, images / f"{name}.jpg", masks[name], masks_only)
                for name in masks]
        for split, masks in lists.masks.items()
    }  # fmt: skip
    problems = [*lists.problems, *faulty(root, "train_aug", lists.unlisted, "in no list", "masks")]
    for split, masks in lists.masks.items():
        problems += wrong_names(root, split, masks, expected.get(split, 0), published=not note)
        problems += missing(jobs[split])
    every = [job for of_split in jobs.values() for job in of_split]
    with mapped(min(processes, len(every)), "read images") as map_:
        for found in map_(check_pair, every):
            problems += found
            advance(1)
    rows = [count(split, jobs[split], expected.get(split, 0), problems) for split in jobs]
    absent = 0 if masks_only else sum(row.images - row.photographs for row in rows)
    return CheckReport(
        root=str(root),
        content=content(root, note) + (", masks only" if masks_only else ""),
        size=None,
        splits=tuple(rows),
        problems=tuple(problem for split in jobs for problem in problems if problem.split == split),
        advice=ADVICE.format(absent) if absent else "",
    )


def count(
    split: str, jobs: Sequence[_Job], expected: int, problems: Sequence[Problem]
) -> FilesReport:
    """What was found of a split, in numbers."""
    return FilesReport(
        split,
        images=len(jobs),
        expected=expected,
        problems=sum(problem.split == split for problem in problems),
        masks=sum(job.mask is not None and job.mask.is_file() for job in jobs),
        photographs=sum(job.image.is_file() for job in jobs),
    )


def count_images(root: Path, *, masks_only: bool = False) -> int:
    """How many images there are to check.

    Raises:
        UserError: there is no such tree, or its note cannot be read.
    """
    return sum(map(len, read_tree(root, masks_only)[1].masks.values()))


def read_tree(root: Path, masks_only: bool) -> tuple[TreeNote | None, Lists]:
    """The note of a tree, if it has one, and its lists."""
    voc, note = voc_folder(root), read_note(root)
    has_test = (voc / LISTS / "test.txt").exists() or (note is not None and "test" in note.images)
    return note, read_lists(root, test=has_test and not masks_only)


def content(root: Path, note: TreeNote | None) -> str:
    """Whose tree it is: what its note says, or the layout."""
    if note:
        return note.content
    return "merged" if (voc_folder(root) / MERGED_MASKS).is_dir() else "official"


def check_pair(job: _Job) -> list[Problem]:
    """What is wrong with a photograph and its mask; what is missing is listed elsewhere."""
    shapes: list[tuple[int, ...]] = []
    problems: list[Problem] = []
    image = None if job.masks_only else job.image
    for file, read in ((image, read_photograph), (job.mask, read_labels)):
        if file and file.is_file():
            pixels, faults = job.read(file, read)
            problems += faults
            shapes += [pixels.shape[:2]] if pixels is not None else []
    if job.mask and len(set(shapes)) == 2:
        photograph, mask = shapes
        problems += job.faults(job.mask, [f"{by(mask)}; its photograph is {by(photograph)}"])
    return problems


def wrong_names(
    root: Path, split: str, names: Iterable[str], expected: int, *, published: bool
) -> Iterator[Problem]:
    """Another number of images than expected, or not the published ones."""
    names = [*names]
    where = (voc_folder(root) / LISTS).relative_to(root).as_posix()
    if len(names) != expected:
        yield Problem(split, where, f"{split} has {len(names):,} images, not {expected:,}")
    elif published and split == "train_aug":
        try:
            check_train_aug(names)
        except UserError as error:
            yield Problem(split, where, str(error).rstrip("."))


def missing(jobs: Sequence[_Job]) -> Iterator[Problem]:
    """Files of a split that are not there: masks, and photographs if they are asked for."""
    for what, files in (
        ("masks", [job.mask for job in jobs if job.mask]),
        ("photographs", [job.image for job in jobs if not job.masks_only]),
    ):
        absent = [file for file in files if not file.is_file()]
        if absent:
            root, split = jobs[0].root, jobs[0].split
            yield from faulty(root, split, absent, "missing", f"of {len(files):,} {split} {what}")


def faulty(
    root: Path, split: str, files: Iterable[Path], fault: str, what: str
) -> Iterator[Problem]:
    """Files with the same fault: a problem each, or one for a folder that has many of them."""
    folders: dict[Path, list[Path]] = {}
    for file in files:
        folders.setdefault(file.parent, []).append(file)
    for folder, of_it in folders.items():
        if len(of_it) <= SHOWN:
            yield from (Problem(split, file.relative_to(root).as_posix(), fault) for file in of_it)
        else:
            names = some([file.name for file in of_it])
            where = folder.relative_to(root).as_posix()
            yield Problem(split, where, f"{len(of_it):,} {what} are {fault}: {names}")
