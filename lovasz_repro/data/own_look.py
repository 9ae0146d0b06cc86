"""One pass over a folder of one's own: every photograph and mask read once, and what they say.

``data check own`` reports it; ``data prepare own`` takes from it what the folder does not say and
writes it there: which classes there are, and which images are for validation.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from lovasz_repro.data.check import SHOWN, Begin, Fault, FilesOfImage, Size, by, unseen
from lovasz_repro.data.classes import RGB
from lovasz_repro.data.images import ImagePair, read_photograph
from lovasz_repro.data.own_files import (
    MOST_OWN_CLASSES,
    OWN_SPLITS,
    MaskPixels,
    OwnClasses,
    OwnFolder,
    code,
    colour_of,
    complete_pairs,
    decode_mask,
    folder_palette,
    in_folders,
    labels_of,
    list_file,
    list_pairs,
    own_command,
    own_splits,
    read_classes,
)
from lovasz_repro.errors import UserError
from lovasz_repro.host.files import write_durably
from lovasz_repro.host.processes import mapped

MOST_FOUND = 64
"""Values of masks that pass for classes where nothing lists them."""
GREYS_OF_JPEG = {0x000000, 0xFFFFFF}


@dataclass(frozen=True)
class Looked:
    """What was seen of an image."""

    split: str
    pair: ImagePair
    size: Size | None = None
    """Of the photograph; None where it cannot be read."""
    content: str = ""
    """Digest of the photograph's pixels."""
    values: Mapping[int, int] = field(default_factory=dict)
    """Pixels of each colour in the mask, as its ``code``."""
    indices: Mapping[int, int] = field(default_factory=dict)
    """Colour -> its index, of a mask with a palette."""
    labels: np.ndarray | None = None
    """Pixels of each label, (256,); None where classes are not known, or the mask cannot be read.
    """
    faults: tuple[Fault, ...] = ()


def look_at_all(
    root: Path,
    pairs: Mapping[str, Sequence[ImagePair]],
    classes: OwnClasses | None,
    begin: Begin,
    processes: int,
) -> list[Looked]:
    """Read every image of every split once.

    Where ``classes`` is None they are those that ``found_classes`` finds, and labels are counted
    by them.

    Raises:
        RunFailed: a process died.
    """
    every = [(split, pair) for split, of_it in pairs.items() for pair in of_it]
    advance, looked = begin(len(every)), list[Looked]()
    with mapped(min(processes, len(every)), "read images") as map_:
        for one in map_(partial(look_at, root, classes), every):
            looked.append(one)
            advance(1)
    return looked


def look_at(root: Path, classes: OwnClasses | None, item: tuple[str, ImagePair]) -> Looked:
    """Read a photograph and its mask."""
    split, pair = item
    files, size, content = FilesOfImage(root, split, pair.image, ()), None, ""
    photograph, faults = files.read(pair.image, read_photograph)
    if photograph is not None:
        size = photograph.shape[0], photograph.shape[1]
        content = hashlib.blake2b(repr(size).encode() + photograph.tobytes()).hexdigest()
    seen = Looked(split, pair, size, content)
    mask, unreadable = files.read(pair.mask, decode_mask)
    faults += unreadable
    if mask is None:
        return replace(seen, faults=tuple(faults))
    if size and mask.pixels.shape != size:
        what = f"{by(mask.pixels.shape)}; its photograph is {by(size)}"
        if mask.pixels.shape == size[::-1]:
            what += ", maybe turned by the orientation that its file notes"
        what += "; make the mask as large, without interpolation"
        faults += files.faults(pair.mask, [what])
    values, labels = mask.shown(), None
    try:
        if classes is None:
            check_values(pair.mask, mask, values)
        else:
            found = labels_of(pair.mask, mask, classes)
            labels = np.bincount(found.ravel(), minlength=256).astype(np.int32)
    except UserError as error:
        what = str(error).removeprefix(f"{pair.mask}: ").rstrip(".")
        faults += files.faults(pair.mask, [what])
        values = {}
    indices = {code(mask.palette[i]): i for i in np.unique(mask.pixels)} if mask.palette else {}
    return replace(seen, values=values, indices=indices, labels=labels, faults=tuple(faults))


def check_values(file: Path, mask: MaskPixels, values: Mapping[int, int]) -> None:
    """Raise UserError where values of a mask cannot be those of classes."""
    if len(values) > MOST_OWN_CLASSES + 1:
        raise UserError(f"{file}: {len(values):,} values, as of a photograph; not a mask.")
    if mask.jpeg and values.keys() - GREYS_OF_JPEG:
        raise UserError(f"{file}: {len(values)} values; JPEG makes new ones at edges. Save masks "
                        "as PNG.")  # fmt: skip


# -- classes ---------------------------------------------------------------------------------------


def found_classes(looked: Iterable[Looked], root: Path) -> OwnClasses:
    """The classes that masks show, where nothing lists them.

    Two values are background and object. Of more, index 255 of a palette is ignored, and the grey
    value 255 where the others are below ``MOST_FOUND``; the others are classes in the order of
    their values, or of their indices in the first palette.

    Raises:
        UserError: one value alone, or more than pass for classes.
    """
    pixels: dict[int, int] = {}
    indices: dict[int, int] = {}
    for one in looked:
        for number, count in one.values.items():
            pixels[number] = pixels.get(number, 0) + count
        for number, index in one.indices.items():
            indices.setdefault(number, index)
    order = sorted(pixels, key=lambda number: (indices.get(number, number), number))
    if not 2 <= len(order) <= MOST_FOUND:
        what = "the same value everywhere" if len(order) == 1 else f"{len(order)} values"
        raise UserError(f"{root}: the masks have {what}; list the classes in classes.txt (up to "
                        f"{MOST_FOUND} are found by themselves).")  # fmt: skip
    if len(order) == 2:
        return OwnClasses(("background", "object"), colours(order))
    if all(len({*colour_of(number)}) == 1 for number in order):  # grey
        indices = {number: number & 255 for number in order} | indices
    kept = [number for number in order if indices.get(number) != 255]
    if any(indices.get(number, 0) >= MOST_FOUND for number in kept):
        kept = order
    names = [f"class {indices[n]}" if n in indices else "colour " + "-".join(map(str, colour_of(n)))
             for n in kept]  # fmt: skip
    void = [colour_of(number) for number in order if number not in kept]
    return OwnClasses(tuple(names), colours(kept), tuple(void))


def colours(numbers: Iterable[int]) -> tuple[RGB, ...]:
    """Codes as colours."""
    return tuple(map(colour_of, numbers))


def counted(looked: Sequence[Looked], classes: OwnClasses) -> list[Looked]:
    """The same with pixels of each label, by classes that were found in the values."""
    return [one if one.labels is not None or not one.values else
            replace(one, labels=_by_label(one.values, classes)) for one in looked]  # fmt: skip


def _by_label(values: Mapping[int, int], classes: OwnClasses) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for number, count in values.items():
        counts[classes.of_colour[number]] += count
    return counts


# -- splits ----------------------------------------------------------------------------------------


def split_images(
    presence: np.ndarray, contents: Sequence[str], seed: int, share: float
) -> list[bool]:
    """Which images are for validation: a share of them, in which every class is shown and which
    leaves every class to train on, where that can be.

    Photographs of the same content stay together.

    Args:
        presence: which image shows which class, (N, C) bool.
        contents: of each image.
        seed: of the order in which images are taken.
        share: of the images, for validation.

    Raises:
        UserError: all photographs have the same content.
    """
    groups: dict[str, list[int]] = {}
    for index, content in enumerate(contents):
        groups.setdefault(content or f"unread {index}", []).append(index)
    if len(groups) < 2:
        raise UserError("fewer than two different photographs; they cannot be split.")
    members = [*groups.values()]
    shown = np.array([presence[of_it].any(axis=0) for of_it in members])
    order = np.random.default_rng(seed).permutation(len(members)).tolist()
    left, taken = shown.sum(axis=0), dict[int, None]()
    wanted = max(1, round(share * len(contents)))

    def take(group: int) -> None:
        nonlocal left, wanted
        taken[group] = None
        left, wanted = left - shown[group], wanted - len(members[group])

    def spared(group: int) -> bool:
        return group not in taken and bool((left[shown[group]] > 1).all())

    for label in np.argsort(shown.sum(axis=0), kind="stable").tolist():  # the rarest first
        if not shown[[*taken], label].any():
            found = next((g for g in order if shown[g, label] and spared(g)), None)
            if found is not None:
                take(found)
    for group in order:
        if wanted > 0 and spared(group):
            take(group)
    if not taken:  # each image has a class of its own
        take(order[0])
    chosen = {index for group in taken for index in members[group]}
    return [index in chosen for index in range(len(contents))]


def with_palette(pairs: Sequence[ImagePair], classes: OwnClasses) -> OwnClasses:
    """The classes with the colours of the first mask, where it can be read."""
    try:
        return folder_palette(decode_mask(pairs[0].mask), classes)
    except UserError:
        return classes


def counts_of(looked: Sequence[Looked]) -> np.ndarray:
    """Pixels of each label in each image, (N, 256)."""
    rows = [one.labels for one in looked if one.labels is not None]
    return np.stack(rows) if rows else np.zeros((0, 256), np.int64)


# ---- What is written into the folder -------------------------------------------------------------
#
# What is written is plain text that may be edited; nothing that is there is changed. After it,
# training depends on files alone.

VALIDATION_SHARE = 0.2
COMMAND = "lovasz-repro data prepare own"


@dataclass(frozen=True)
class OwnData:
    """A folder that says all that training needs."""

    classes: OwnClasses
    images: dict[str, int]
    """Split -> how many."""
    wrote: tuple[Path, ...] = ()
    """Files that were missing."""
    notes: tuple[str, ...] = ()
    """Classes that are not in both halves of a split that was made here."""


def prepare_own(
    root: Path,
    *,
    seed: int = 0,
    share: float = VALIDATION_SHARE,
    begin: Begin = unseen,
    processes: int = 1,
) -> OwnData:
    """Write ``classes.txt``, ``train.txt`` and ``val.txt`` of a folder, those that are missing.

    Where all are there, no image is read.

    Args:
        root: the folder.
        seed: of the split, where one is made.
        share: of the images, for validation.
        begin: see ``Begin``.
        processes: how many share the images.

    Raises:
        UserError: no images, files that cannot be used, or a folder that cannot be written.
        RunFailed: a process died.
    """
    classes, split = read_classes(root), is_unsplit(root)
    if classes and not split:
        return OwnData(classes, count_images(root))
    pairs = pairs_to_read(root, split)
    every = [pair for of_it in pairs.values() for pair in of_it]
    known = classes and with_palette(every, classes)
    looked = look_at_all(root, pairs, known, begin, processes)
    check_sound(root, looked)
    known = known or found_classes(looked, root)
    files, notes = dict[Path, str](), list[str]()
    if split:
        files, notes = split_lists(root, counted(looked, known), known, seed, share)
    if not classes:
        head = f"# found by {COMMAND}; names may be changed, the order is that of the outputs\n"
        files[root / "classes.txt"] = head + "".join(f"{line}\n" for line in known.lines())
    write_all(files)
    return OwnData(known, count_images(root), tuple(files), tuple(notes))


def is_unsplit(root: Path) -> bool:
    """Whether nothing says which images are for training and which for validation.

    Raises:
        UserError: one of the lists is missing alone.
    """
    if in_folders(root):
        return False
    lists = [list_file(root, split) for split in OWN_SPLITS[:2]]
    missing = [file for file in lists if not file.is_file()]
    if len(missing) == 1:
        raise UserError(f"{missing[0]}: missing, and the other list is there. Write it, or remove "
                        "the other to have the images split.")  # fmt: skip
    return bool(missing)


def count_images(root: Path) -> dict[str, int]:
    """Images of each split."""
    return {split: len(list_pairs(root, split)) for split in own_splits(root)}


def check_sound(root: Path, looked: Sequence[Looked]) -> None:
    """Raise UserError where images or masks have faults, a line for each of the first few."""
    faults = [f"{root}/{fault}." for one in looked for fault in one.faults]
    if len(faults) > SHOWN:
        more = f"And {len(faults) - SHOWN:,} more; `{own_command('check', root)}` lists all."
        raise UserError(*faults[:SHOWN], more)
    if faults:
        raise UserError(*faults)


def split_lists(
    root: Path, looked: Sequence[Looked], classes: OwnClasses, seed: int, share: float
) -> tuple[dict[Path, str], list[str]]:
    """The lists of a split made here, and what could not be had.

    Raises:
        UserError: the images cannot be split.
    """
    presence = counts_of(looked)[:, : len(classes.names)] > 0
    try:
        chosen = np.array(split_images(presence, [one.content for one in looked], seed, share))
    except UserError as error:
        raise UserError(f"{root}: {error}") from None
    files, notes = dict[Path, str](), list[str]()
    for split, own in (("train", ~chosen), ("val", chosen)):
        names = [one.pair.name for one, wanted in zip(looked, own, strict=True) if wanted]
        head = f"# {COMMAND} --seed {seed} --share {share}\n"
        files[list_file(root, split)] = head + "".join(f"{name}\n" for name in names)
        shown = presence[own].any(axis=0)
        lacking = [name for name, some in zip(classes.names, shown, strict=True) if not some]
        if lacking:
            notes.append(f"{split}: no image shows {', '.join(lacking)}; too few images do")
    return files, notes


def pairs_to_read(root: Path, split: bool) -> dict[str, list[ImagePair]]:
    """Every image with its mask: of each split, or of all where nothing splits them yet."""
    if not split:
        return {name: list_pairs(root, name) for name in own_splits(root)}
    folder = OwnFolder.read(root)
    return {"all": complete_pairs(folder, [*folder.images])}


def write_all(files: dict[Path, str]) -> None:
    """Write text files.

    Raises:
        UserError: the folder or the disk refuses.
    """
    for file, text in files.items():
        try:
            write_durably(file, text.encode())
        except OSError as error:
            raise UserError(
                f"{file}: cannot be written ({error.strerror}). Make a folder that can be, with "
                "links to images and masks, and name that."
            ) from None
