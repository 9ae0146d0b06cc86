"""Pascal VOC 2012 with SBD: 10,582 training, 1,449 validation, 1,456 test photographs, 21 classes.

The official downloads, unpacked side by side:

voc/VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg               photograph
voc/VOCdevkit/VOC2012/SegmentationClass/2007_000032.png        class ids 0-20, 255 = void
voc/VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val,test}.txt
voc/benchmark_RELEASE/dataset/cls/2008_000002.mat              SBD: class ids 0-20, no void
voc/benchmark_RELEASE/dataset/{train,val}.txt

or the popular layout, where SBD is merged in:

voc/VOC2012/JPEGImages, voc/VOC2012/SegmentationClassAug/2007_000032.png
voc/VOC2012/ImageSets/Segmentation/{train_aug,val}.txt

``train_aug`` is all of SBD and VOC's train without VOC's val, sorted, and without VOC's test where
its list is there (bermanmaxim/jaccardSegment: datasets/loadvoc.py); the published lists have no
image in common. Where both have a mask of an image, VOC's own counts.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from lovasz_repro.data.classes import VOC_CLASSES, VOC_IDS, VOID
from lovasz_repro.data.images import ImagePair, check_known, read_mask
from lovasz_repro.errors import UserError

VOC_SIZES: dict[str, int] = {"train_aug": 10582, "val": 1449, "trainval_aug": 12031, "test": 1456}
TRAIN_AUG_SHA256 = "d1326bd532648d73bc4b1bd275434eba81930982dc7401a65a8cecb26c028e24"
"""Of the published train_aug.txt: sorted names, each followed by a newline."""

JPEGS, CLASS_MASKS, MERGED_MASKS = "JPEGImages", "SegmentationClass", "SegmentationClassAug"
VOC_LISTS = Path("ImageSets", "Segmentation")
SBD = Path("benchmark_RELEASE", "dataset")
VOC_FROM = "VOC 2012 comes from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
SBD_FROM = "SBD (benchmark.tgz) comes from http://home.bharathh.info/pubs/codes/SBD/download.html"
MERGED_FROM = f"It merges the masks of two sets: {VOC_FROM} and {SBD_FROM}"

MAT_STRUCT, MAT_UINT8, MAT_COMPRESSED = 2, 9, 15  # array classes, and a type of element
MAT_LIMIT = 1 << 26
"""Most bytes that an annotation may inflate to; a mask of 500x500 takes 250,000."""


def list_images(root: Path, split: str, *, photographs: bool = True) -> list[ImagePair]:
    """Every image of a split, sorted by name, in whichever of the two layouts there is.

    Args:
        root: the folder that holds ``VOCdevkit`` and ``benchmark_RELEASE``, or ``VOC2012``.
        split: "train_aug", "val", "trainval_aug" or "test".
        photographs: insist on the photographs, which statistics of the masks do without.

    Raises:
        UserError: unknown split, or folders, lists, masks or photographs are missing.
    """
    if split not in VOC_SIZES:
        raise UserError(f"VOC 2012 has no split {split!r}; it has {', '.join(VOC_SIZES)}.")
    voc = voc_folder(root)
    if split == "test":
        names = read_list(voc / VOC_LISTS / "test.txt", VOC_FROM)
        masks = {name: voc / CLASS_MASKS / f"{name}.png" for name in names}
    elif (voc / MERGED_MASKS).is_dir():
        masks = merged_masks(voc, split)
    else:
        masks = official_masks(voc, root / SBD, split)
    images = [ImagePair(name, voc / JPEGS / f"{name}.jpg", masks[name]) for name in sorted(masks)]
    if split != "test":
        check_there([image.mask for image in images], "masks")
    if photographs:
        check_there([image.image for image in images], "photographs")
    return images


def check_train_aug(names: Iterable[str]) -> None:
    """Compare the names of train_aug with the published list, of which every VOC port has a copy.

    Raises:
        UserError: another number of names, or other names or another order.
    """
    lines = [f"{name}\n" for name in names]
    expected = VOC_SIZES["train_aug"]
    if len(lines) != expected:
        raise UserError(f"train_aug has {len(lines):,} images, not {expected:,}: "
                        "its lists are not the official ones.")  # fmt: skip
    found = hashlib.sha256("".join(lines).encode()).hexdigest()
    if found != TRAIN_AUG_SHA256:
        raise UserError(
            f"train_aug has {expected:,} images but not the published ones in sorted order "
            f"(sha256 {found[:8]}..., not {TRAIN_AUG_SHA256[:8]}...)."
        )


def read_labels(mask: Path) -> np.ndarray:
    """A mask, (H, W) uint8 with class ids 0..20 and 255 = void.

    Args:
        mask: a PNG, see ``read_mask``, or a .mat of SBD.

    Raises:
        UserError: missing, unreadable, not one 8-bit id per pixel, or an unknown id.
    """
    if mask.suffix != ".mat":
        return read_mask(mask, VOC_IDS)
    labels = read_sbd(mask)
    if labels.size == 0:
        raise UserError(f"{mask}: a mask without pixels.")
    check_known(mask, labels, VOC_IDS)
    return labels


def binary_labels(labels: np.ndarray, category: int) -> np.ndarray:
    """One class against the rest, as the paper's binary experiments have it
    (bermanmaxim/jaccardSegment: datasets/).

    Args:
        labels: the whole mask of a photograph, (H, W) uint8, class ids 0..20 and 255 = void.
        category: class id.

    Returns:
        (H, W) uint8: 1 where the category is, 0 elsewhere, 255 where void. All 0 if the photograph
        does not show the category, void pixels too.
    """
    foreground = labels == category
    binary = foreground.astype(np.uint8)
    if foreground.any():
        binary[labels == VOID] = VOID
    return binary


@lru_cache(maxsize=4)
def presence_of(root: Path, split: str) -> np.ndarray:
    """Which image of a split contains which class, (N, C) bool, in the order of ``list_images``.

    Raises:
        UserError: a mask is missing or unreadable.
    """
    images = list_images(root, split, photographs=False)
    presence = np.zeros((len(images), len(VOC_CLASSES)), dtype=bool)
    for row, image in zip(presence, images, strict=True):
        counts = np.bincount(read_labels(image.mask).ravel(), minlength=256)
        row[:] = counts[: len(VOC_CLASSES)] > 0
    return presence


def read_sbd(file: Path) -> np.ndarray:
    """``GTcls.Segmentation`` of an SBD annotation, (H, W) uint8.

    Read here, as far as SBD needs it: SciPy's reader of MAT 5 crashes on damaged files.

    Raises:
        UserError: missing, truncated, or another content.
    """
    try:
        return segmentation_of(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file}: no such file.") from None
    except (OSError, ValueError, IndexError, zlib.error, struct.error) as error:
        raise UserError(f"{file}: no readable GTcls.Segmentation of SBD ({error}).") from None


def segmentation_of(content: bytes) -> np.ndarray:
    """``GTcls.Segmentation`` in a MAT 5 file; raises ValueError and so on for any other."""
    if content[124:128] != b"\x00\x01IM":
        raise ValueError("not a MAT 5 file")
    for kind, data in elements(content[128:]):
        if kind == MAT_COMPRESSED:
            inflating = zlib.decompressobj()
            data = inflating.decompress(data, MAT_LIMIT)
            if not inflating.eof:
                raise ValueError("compressed data cut short or too large")
            _, data = next(elements(data), (0, b""))
        (_, flags), _, (_, name), *rest = elements(data)
        if name == b"GTcls" and flags[0] == MAT_STRUCT:
            length = int.from_bytes(rest[0][1], "little")
            names = [text.rstrip(b"\0") for (text,) in struct.iter_unpack(f"{length}s", rest[1][1])]
            (_, flags), (_, sides), _, (_, values) = elements(
                rest[2 + names.index(b"Segmentation")][1]
            )
            if flags[0] != MAT_UINT8 or len(sides) != 8:
                raise ValueError("not a uint8 matrix")
            height, width = struct.unpack("<2I", sides)
            return np.frombuffer(values, np.uint8).reshape(width, height).T
    raise ValueError("no struct GTcls")


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each data element of MAT 5; up to 4 bytes are stored inside the tag."""
    start = 0
    while start < len(data):
        kind, size = struct.unpack_from("<II", data, start)
        begin = start + 8
        if kind >> 16:
            kind, size, begin = kind & 0xFFFF, kind >> 16, start + 4
        end = begin + size
        if end > len(data) or (begin == start + 4 and size > 4):
            raise ValueError("cut short")
        yield kind, data[begin:end]
        start = end if kind == MAT_COMPRESSED else end + -end % 8


def read_list(file: Path, source: str) -> list[str]:
    """The image names of a list, one a line.

    Args:
        file: the list.
        source: where it comes from, for the message.

    Raises:
        UserError: missing, empty, or a line that is not a name.
    """
    try:
        names = file.read_text(encoding="ascii").split()
    except FileNotFoundError:
        raise UserError(f"{file}: no such list. {source}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: unreadable list ({error}). {source}") from None
    if not names:
        raise UserError(f"{file}: an empty list. {source}")
    for name in names:
        if not re.fullmatch(r"\d{4}_\d{6}", name):
            raise UserError(f"{file}: {name[:40]!r} is no image name like 2007_000032. {source}")
    return names


def voc_folder(root: Path) -> Path:
    """The folder ``VOC2012`` of either layout.

    Raises:
        UserError: there is none.
    """
    folders = [root / "VOCdevkit" / "VOC2012", root / "VOC2012"]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(f"VOC 2012 not found: no folder {folders[0]} or {folders[1]}. {VOC_FROM}")


def merged_masks(voc: Path, split: str) -> dict[str, Path]:
    """Name -> mask of a labelled split in the popular layout."""
    lists = ("train_aug", "val") if split == "trainval_aug" else (split,)
    names = [
        name for part in lists for name in read_list(voc / VOC_LISTS / f"{part}.txt", MERGED_FROM)
    ]
    return {name: voc / MERGED_MASKS / f"{name}.png" for name in names}


def official_masks(voc: Path, sbd: Path, split: str) -> dict[str, Path]:
    """Name -> mask of a labelled split in the official trees; "val" does without SBD."""
    val = {
        name: voc / CLASS_MASKS / f"{name}.png"
        for name in read_list(voc / VOC_LISTS / "val.txt", VOC_FROM)
    }
    if split == "val":
        return val
    if not sbd.is_dir():
        raise UserError(f"SBD not found: no folder {sbd}, for {split}. {SBD_FROM}")
    train = read_list(voc / VOC_LISTS / "train.txt", VOC_FROM)
    both = [*read_list(sbd / "train.txt", SBD_FROM), *read_list(sbd / "val.txt", SBD_FROM)]
    masks = {name: sbd / "cls" / f"{name}.mat" for name in both}
    masks |= {name: voc / CLASS_MASKS / f"{name}.png" for name in train}
    test = voc / VOC_LISTS / "test.txt"  # a download of its own
    others = {*val, *(read_list(test, VOC_FROM) if test.is_file() else ())}
    train_aug = {name: mask for name, mask in masks.items() if name not in others}
    return train_aug if split == "train_aug" else train_aug | val


def check_there(files: list[Path], what: str) -> None:
    """Raise UserError unless every file exists; names the first that does not."""
    missing = [file for file in files if not file.is_file()]
    if missing:
        source = SBD_FROM if missing[0].suffix == ".mat" else VOC_FROM
        if missing[0].parent.name == MERGED_MASKS:
            source = MERGED_FROM
        raise UserError(f"{missing[0]}: missing ({len(missing):,} of {len(files):,} {what} are). "
                        f"{source}")  # fmt: skip
