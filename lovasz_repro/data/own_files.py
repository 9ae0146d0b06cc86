"""Which photographs and masks there are in a folder of one's own, and in which split each is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lovasz_repro.data.images import ImagePair, by_name
from lovasz_repro.data.own_masks import CLASS_FILES
from lovasz_repro.errors import UserError, one_line
from lovasz_repro.host.files import read_text

OWN_SPLITS = ("train", "val", "test")
IMAGES, MASKS = "images", "masks"
PHOTOGRAPH_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
MASK_ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg")
MOST_LIST_BYTES = 1 << 26
"""Of a list of names."""


def own_folder(data: Path) -> Path:
    """The folder of the user's data: the one that is named, or ``own`` in it as for other data."""
    holds = any((data / part).is_dir() for part in (IMAGES, "train"))
    return data / "own" if (data / "own").is_dir() and not holds else data


def check_folder(root: Path) -> None:
    """Refuse a folder that is not there.

    Raises:
        UserError: it is not.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder. Name that of your images with --data.")


def in_folders(root: Path) -> bool:
    """Whether splits are folders, ``train`` and so on; else lists say what is in which.

    Raises:
        UserError: neither can be, or both; or no such folder.
    """
    check_folder(root)
    lists, folders = (root / IMAGES).is_dir(), (root / "train" / IMAGES).is_dir()
    if lists and folders:
        raise UserError(f"{root}: both {IMAGES}/ and train/{IMAGES}/; move one of them away.")
    if not lists and not folders:
        raise UserError(f"{root}: neither {IMAGES}/ with {MASKS}/ nor train/{IMAGES}/ with "
                        f"train/{MASKS}/ is there.")  # fmt: skip
    return folders


def own_splits(root: Path) -> tuple[str, ...]:
    """The labelled splits: train, val, and test where it is there with masks.

    Raises:
        UserError: as ``in_folders``.
    """
    if in_folders(root):
        return (*OWN_SPLITS[:2], *(["test"] if (root / "test" / MASKS).is_dir() else []))
    return (*OWN_SPLITS[:2], *(["test"] if list_file(root, "test").is_file() else []))


def list_file(root: Path, split: str) -> Path:
    """The list of the names of a split."""
    return root / f"{split}.txt"


@dataclass(frozen=True)
class OwnFolder:
    """A folder with photographs in ``images`` and masks in ``masks``, by name."""

    place: Path
    images: dict[str, Path]
    masks: dict[str, Path]

    @classmethod
    def read(cls, place: Path) -> "OwnFolder":
        """What is in a folder; raises UserError as ``files_of``."""
        images = files_of(place / IMAGES, PHOTOGRAPH_ENDINGS)
        return cls(place, images, files_of(place / MASKS, MASK_ENDINGS))

    def lacking(self, names: Sequence[str]) -> Iterator[tuple[Path, str, list[str]]]:
        """Where, what and of which names something is missing."""
        kinds = (self.images, IMAGES, "photograph"), (self.masks, MASKS, "mask")
        for found, kind, what in kinds:
            if lacking := [name for name in names if name not in found]:
                yield self.place / kind, what, lacking

    def pairs(self, names: Iterable[str]) -> list[ImagePair]:
        """Those of some names that have a photograph and a mask, sorted by file."""
        wanted = {*names} & self.masks.keys()
        return [ImagePair(name, file, self.masks[name]) for name, file in self.images.items()
                if name in wanted]  # fmt: skip


def list_pairs(root: Path, split: str) -> list[ImagePair]:
    """The photographs of a split with their masks, sorted by file.

    Raises:
        UserError: folders, lists or masks are missing, the split is empty, or names are odd.
    """
    if in_folders(root):
        folder = OwnFolder.read(root / split)
        return complete_pairs(folder, [*folder.images])
    folder = OwnFolder.read(root)
    return complete_pairs(folder, read_names(list_file(root, split), folder))


def complete_pairs(folder: OwnFolder, names: list[str]) -> list[ImagePair]:
    """All of some images with their masks.

    Raises:
        UserError: there are none, or a photograph or a mask is missing.
    """
    if not names:
        raise UserError(f"{folder.place / IMAGES}: no photographs "
                        f"({', '.join(PHOTOGRAPH_ENDINGS)}).")  # fmt: skip
    for where, what, lacking in folder.lacking(names):
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise UserError(f"{where}: no {what} {lacking[0]!r}{more}; a mask has the name of its "
                        "photograph.")  # fmt: skip
    return folder.pairs(names)


def files_of(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Name without ending -> file, of the images in a folder.

    Raises:
        UserError: no such folder, two files of one name, or a name that no list can hold.
    """
    try:
        found = by_name(folder.iterdir(), endings)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}.") from None
    for name, file in found.items():
        if not name.isprintable() or name != name.strip() or name.startswith("#"):
            raise UserError(f"{file}: a name with characters that a list cannot have; rename it.")
    return found


def read_names(file: Path, folder: OwnFolder) -> list[str]:
    """The names of a list, one a line; an ending, and a folder before it, may be left out or not.

    Args:
        file: the list.
        folder: has the images.

    Raises:
        UserError: missing, empty, or a name given twice.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such list; `lovasz-repro data prepare own` splits the images "
                        "and writes it.")  # fmt: skip
    lines = [line.strip() for line in read_text(file, MOST_LIST_BYTES).splitlines()]
    listed = [line for line in lines if line and not line.startswith("#")]
    names = [line if line in folder.images else bare(line) for line in listed]
    if not names:
        raise UserError(f"{file}: an empty list; a name of {folder.place / IMAGES} a line is "
                        "expected.")  # fmt: skip
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file}: {one_line(repr(twice), 80)} is listed twice.")
    return names


def bare(line: str) -> str:
    """A line of a list without folder and ending."""
    name = line.removeprefix("./").removeprefix(f"{IMAGES}/")
    ending = next((e for e in PHOTOGRAPH_ENDINGS if name.lower().endswith(e)), "")
    return name[: len(name) - len(ending)]


def list_everything(root: Path) -> list[Path]:
    """Every file that a run may read.

    Raises:
        UserError: as ``list_pairs``, or an image in two lists.
    """
    seen: dict[Path, str] = {}
    files = list[Path]()
    for split in own_splits(root):
        for pair in list_pairs(root, split):
            if (other := seen.setdefault(pair.image, split)) != split:
                raise UserError(f"{list_file(root, split)}: {pair.name!r} is in {other}.txt too; "
                                "remove it from one of the two.")  # fmt: skip
            files += [pair.image, pair.mask]
    lists = [list_file(root, split) for split in OWN_SPLITS]
    others = [*lists, *(root / name for name in CLASS_FILES)]
    return files + [file for file in others if file.is_file()]
