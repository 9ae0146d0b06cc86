"""Which photographs and masks there are in a folder of one's own, and in which split each is."""

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from lovasz_repro.config.read import check_class, read_yaml
from lovasz_repro.data.classes import RGB, voc_colour
from lovasz_repro.data.images import GREYSCALE, SHOWN, ImagePair, by_name, opened, png_form
from lovasz_repro.errors import UserError, one_line
from lovasz_repro.host.files import read_text

# ---- Masks and their classes ---------------------------------------------------------------------
#
# Masks of a folder of one's own: which classes there are, and how a mask shows them.
#
# ``classes.txt`` has a line for each class, in the order of the network's outputs:
#
#     background              its grey value is the number of the line, from 0
#     crack: 255              or the one that is given,
#     rust: 192, 128, 0       or its colour;
#     background: 7           a name on a further line: this value is of that class too;
#     ignore: 128             pixels that are neither trained on nor scored
#
# ``classes.yaml`` has the same: ``classes``, a list of names or a mapping of names to values, and
# ``ignore_index``. In grey images a pixel is read by its value, in those with a palette or colours
# by its colour. Where classes have numbers alone, the palette of the folder's first mask says what
# colour each has.

OWN_VOID = 255
"""Label of pixels that are neither trained on nor scored, whatever their value in the masks."""
MOST_OWN_CLASSES = 255
MOST_CLASSES_BYTES = 100_000  # of classes.txt
CLASS_FILES = ("classes.txt", "classes.yaml", "classes.yml")
IGNORED_NAMES = ("ignore", "ignore_index", "void")
MASK_FORMATS = ["PNG", "TIFF", "JPEG"]


@dataclass(frozen=True)
class OwnClasses:
    """The classes of a folder, and the values that stand for them in its masks."""

    names: tuple[str, ...]
    values: tuple[RGB, ...]
    """One each; three equal ones are a grey value."""
    ignore: tuple[RGB, ...] = ()
    """Of pixels that are neither trained on nor scored."""
    further: tuple[tuple[int, RGB], ...] = ()
    """Labels of classes that have several values, with those after the first."""
    palette: Mapping[int, RGB] = field(default_factory=dict)
    """Colours that grey values have in masks with a palette."""

    @cached_property
    def of_grey(self) -> np.ndarray:
        """Grey value -> label; -1 where there is none, (256,)."""
        table = np.full(256, -1, np.int16)
        for label, (red, green, blue) in self._labelled():
            if red == green == blue:
                table[red] = label
        return table

    @cached_property
    def of_colour(self) -> dict[int, int]:
        """Colour as ``code`` -> label."""
        known: dict[int, int] = {}
        for label, value in self._labelled():
            shown = self.palette.get(value[0], value) if len({*value}) == 1 else value
            known[code(shown)] = label
        return known

    def _labelled(self) -> Iterable[tuple[int, RGB]]:
        void = [(OWN_VOID, value) for value in self.ignore]
        return [*enumerate(self.values), *self.further, *void]

    @property
    def colours(self) -> tuple[RGB, ...]:
        """What pictures show the classes in: the colours of the masks, else VOC's, whose black is
        for background."""
        if any(len({*value}) > 1 for value in self.values):
            return self.values
        first = 0 if self.has_background else 1
        return tuple(voc_colour(first + label) for label in range(len(self.names)))

    @property
    def has_background(self) -> bool:
        """Whether the first class is what is left of an image without objects."""
        return len(self.names) == 2 or self.names[0].lower() == "background"

    def lines(self) -> list[str]:
        """What ``classes.txt`` says of them."""
        names = {**dict(enumerate(self.names)), OWN_VOID: "ignore"}
        return [f"{names[label]}: {shown_value(value)}" for label, value in self._labelled()]

    def __str__(self) -> str:
        return "; ".join(self.lines())


def code(colour: Iterable[int]) -> int:
    """A colour as one number, 0xRRGGBB."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def colour_of(number: int) -> RGB:
    """The colour of a ``code``."""
    return number >> 16, number >> 8 & 255, number & 255


def shown_value(value: RGB) -> str:
    """A value as people write it: "255" or "192, 128, 0"."""
    return str(value[0]) if len({*value}) == 1 else ", ".join(map(str, value))


# -- the list of classes ---------------------------------------------------------------------------


def class_file(root: Path) -> Path | None:
    """The file that lists the classes, or None.

    Raises:
        UserError: there are several.
    """
    found = [root / name for name in CLASS_FILES if (root / name).is_file()]
    if len(found) > 1:
        raise UserError(f"{found[1]}: {found[0].name} lists classes too; remove one of the two.")
    return found[0] if found else None


def read_classes(root: Path) -> OwnClasses | None:
    """What the file in a folder lists, or None where there is none.

    Raises:
        UserError: there are several, or a line of it cannot be understood.
    """
    file = class_file(root)
    if file is None:
        return None
    listed = _of_yaml(file) if file.suffix != ".txt" else _of_text(file)
    return _checked(file, listed)


def expect_classes(root: Path) -> OwnClasses:
    """As `read_classes`, of a folder that has them; UserError of one that has not."""
    classes = read_classes(root)
    if classes is None:
        raise UserError(f"{root}: no classes.txt; `{own_command('prepare', root)}` finds the "
                        "classes in the masks and writes it.")  # fmt: skip
    return classes


def own_command(name: str, root: Path) -> str:
    """ "lovasz-repro data check own --root photos"."""
    return f"lovasz-repro data {name} own --root {shlex.quote(str(root))}"


def _of_text(file: Path) -> list[tuple[str, Any]]:
    """Name and value, None where there is none, of each line."""
    lines = [line.strip() for line in read_text(file, MOST_CLASSES_BYTES).splitlines()]
    listed: list[tuple[str, Any]] = []
    for line in lines:
        if line and not line.startswith("#"):
            name, colon, value = line.rpartition(":")
            listed.append((name.strip(), value.split(",")) if colon else (line, None))
    return listed


def _of_yaml(file: Path) -> list[tuple[str, Any]]:
    content = read_yaml(file)
    classes = content.get("classes")
    if not isinstance(classes, list | dict) or content.keys() - {"classes", "ignore_index"}:
        raise UserError(f"{file}: expected the keys classes, with names or with names and values, "
                        "and ignore_index.")  # fmt: skip
    pairs = classes.items() if isinstance(classes, dict) else [(name, None) for name in classes]
    if content.get("ignore_index") is not None:
        pairs = [*pairs, ("ignore", content["ignore_index"])]
    return [(str(name), value) for name, value in pairs]


def _checked(file: Path, listed: list[tuple[str, Any]]) -> OwnClasses:
    names, values, ignore = list[str](), list[RGB](), list[RGB]()
    further = list[tuple[int, RGB]]()
    for name, given in listed:
        value = _value(file, name, given)
        if name.lower() in IGNORED_NAMES:
            if value is None:
                raise UserError(f"{file}: {name} needs a value: {name}: 255.")
            ignore.append(value)
            continue
        try:
            check_class(name)
        except ValueError as error:
            raise UserError(f"{file}: class {one_line(repr(name), 60)}: {error}.") from None
        if name in names:
            if value is None:
                raise UserError(
                    f"{file}: the name {name} is given to two classes. A class of "
                    f"several values has each of them written out: {name}: 7."
                )
            further.append((names.index(name), value))
        else:
            names.append(name)
            values.append(value or (len(values) + len(further),) * 3)
    every = [shown_value(value) for value in (*values, *(extra for _, extra in further), *ignore)]
    twice = next((value for value in every if every.count(value) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: the value {twice} is given twice; each class has its own.")
    if not 2 <= len(names) <= MOST_OWN_CLASSES:
        raise UserError(f"{file}: classes listed: {len(names)}. Give 2 to {MOST_OWN_CLASSES}, "
                        "background included, a line each.")  # fmt: skip
    return OwnClasses(tuple(names), tuple(values), tuple(ignore), tuple(further))


def _value(file: Path, name: str, given: Any) -> RGB | None:
    """A grey value or a colour, as it was written."""
    if given is None:
        return None
    parts = [str(part).strip() for part in (given if isinstance(given, list) else [given])]
    numbers = [int(part) for part in parts if part.isdecimal() and part.isascii() and len(part) < 4]
    if len(numbers) != len(parts) or len(parts) not in (1, 3) or max(numbers) > 255:
        shown = one_line(", ".join(parts), 40)
        raise UserError(f"{file}: {one_line(name, 40)}: {shown!r} is neither a grey value of 0 to "
                        "255 nor a colour of three.")  # fmt: skip
    red, green, blue = numbers * 3 if len(numbers) == 1 else numbers
    return red, green, blue


# -- one mask --------------------------------------------------------------------------------------


class MaskPixels(NamedTuple):
    """A mask as its file has it."""

    pixels: np.ndarray
    """(H, W): grey values or indices into the palette, uint8; or codes of colours, int32."""
    kind: Literal["grey", "palette", "colours"]
    palette: tuple[RGB, ...] = ()
    stretched: np.ndarray | None = None
    """Grey values of fewer than 8 bits as decoders stretch them to 0..255."""
    jpeg: bool = False

    def shown(self) -> dict[int, int]:
        """Pixels of each colour, as its ``code``; a grey value is a colour too."""
        if self.kind == "colours":
            values, counts = np.unique(self.pixels, return_counts=True)
            return dict(zip(values.tolist(), counts.tolist(), strict=True))
        counts = np.bincount(self.pixels.ravel(), minlength=1)
        used = np.flatnonzero(counts).tolist()
        colours = self.palette or [(value,) * 3 for value in range(256)]
        return {code(colours[value]): int(counts[value]) for value in used}


def decode_mask(file: Path) -> MaskPixels:
    """Read the pixels of a mask: PNG, TIFF, or JPEG where that kept its values.

    Raises:
        UserError: as ``opened``, several pictures, transparent, of more than 8 bits, or a palette
            with one colour for two values.
    """
    with opened(file, MASK_FORMATS) as image:
        jpeg = image.format == "JPEG"
        depth, colour_type = png_form(image) if image.format == "PNG" else (8, GREYSCALE)
        if getattr(image, "n_frames", 1) > 1:
            raise UserError(f"{file}: several pictures in one file, not a mask.")
        ImageOps.exif_transpose(image, in_place=True)
        mode, flat = image.mode, Image.Image.getpalette(image, "RGB") or []
        if mode in ("RGBA", "LA") and np.asarray(image.getchannel("A")).min(initial=255) < 255:
            raise UserError(f"{file}: transparent pixels; save the mask without them.")
        opaque = {"RGBA": "RGB", "LA": "L", "1": "L"}.get(mode, mode)
        pixels = np.asarray(image if opaque == mode else image.convert(opaque))
    if mode == "P":
        return _indexed(file, pixels, flat)
    if pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        red, green, blue = np.moveaxis(pixels.astype(np.int32), 2, 0)
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return MaskPixels(pixels[..., 0], "grey", jpeg=jpeg)
        return MaskPixels(red << 16 | green << 8 | blue, "colours", jpeg=jpeg)
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu":
        raise UserError(f"{file}: neither grey values nor RGB; save the mask as PNG of 8 bits.")
    if pixels.size and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise UserError(f"{file}: grey values of {pixels.min()} to {pixels.max()}; save the mask "
                        "as PNG of 8 bits, with values up to 255.")  # fmt: skip
    grey = pixels.astype(np.uint8)
    bits = 1 if mode == "1" else depth
    if bits < 8 and colour_type == GREYSCALE:
        return MaskPixels(grey // (255 // (2**bits - 1)), "grey", stretched=grey)
    return MaskPixels(grey, "grey", jpeg=jpeg)


def _indexed(file: Path, indices: np.ndarray, flat: Sequence[int]) -> MaskPixels:
    """A mask with a palette of R, G, B after R, G, B."""
    palette = tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3))
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=1)).tolist()
    if used and used[-1] >= len(palette):
        raise UserError(f"{file}: a pixel of value {used[-1]}, its palette has {len(palette)}.")
    if len({palette[index] for index in used}) < len(used):
        raise UserError(f"{file}: its palette has one colour for several of its values, so the "
                        "picture does not show which is which; save it in grey.")  # fmt: skip
    return MaskPixels(indices, "palette", palette)


def read_own_mask(file: Path, classes: OwnClasses) -> np.ndarray:
    """Labels (H, W) uint8 of a mask: 0, 1, ... in the order of the classes, or ``OWN_VOID``.

    Raises:
        UserError: as ``decode_mask`` and ``labels_of``.
    """
    return labels_of(file, decode_mask(file), classes)


def labels_of(file: Path, mask: MaskPixels, classes: OwnClasses) -> np.ndarray:
    """What a decoded mask says, (H, W) uint8.

    Raises:
        UserError: a value that no class has, or few bits that can be read in two ways.
    """
    if mask.kind == "colours":
        codes = np.array(sorted(classes.of_colour), np.int32)
        labels = np.array([classes.of_colour[number] for number in codes.tolist()], np.int16)
        places = np.minimum(np.searchsorted(codes, mask.pixels), len(codes) - 1)
        readings = [np.where(codes[places] == mask.pixels, labels[places], -1)]
    elif mask.kind == "palette":
        labels = np.full(256, -1, np.int16)
        for index, colour in enumerate(mask.palette):
            labels[index] = classes.of_colour.get(code(colour), -1)
            if labels[index] < 0 and classes.palette and index not in classes.palette:
                labels[index] = classes.of_grey[index]  # a palette cut short, or continued
        readings = [labels[mask.pixels]]
    else:
        readings = [classes.of_grey[mask.pixels]]
        if mask.stretched is not None:
            readings.append(classes.of_grey[mask.stretched])
    known = [reading for reading in readings if reading.min(initial=0) >= 0]
    if not known:
        raise _unknown(file, mask, readings[0], classes)
    if len(known) > 1 and not np.array_equal(known[0], known[1]):
        raise UserError(f"{file}: its pixels may mean two classes each; save it in grey of 8 bits.")
    return known[0].astype(np.uint8)


def _unknown(file: Path, mask: MaskPixels, labels: np.ndarray, classes: OwnClasses) -> UserError:
    """What to say of a mask with values that no class has."""
    values = np.unique(mask.pixels[labels < 0]).tolist()
    wrong = [mask.palette[v] if mask.palette else colour_of(v) if mask.kind == "colours"
             else (v,) * 3 for v in values]  # fmt: skip
    shown = "; ".join(map(shown_value, wrong[:SHOWN]))
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    if mask.jpeg:
        return UserError(f"{file}: values between those of the classes ({shown}{more}), as JPEG "
                         "makes them at edges; save masks as PNG.")  # fmt: skip
    what = "colour" if mask.kind != "grey" else "value"
    first = shown_value(wrong[0])
    return UserError(
        f"{file}: {what} {shown}{more} is no class ({one_line(str(classes), 100)}); "
        f"say in classes.txt which it is, `NAME: {first}`, or `ignore: {first}`."
    )


def folder_palette(mask: MaskPixels, classes: OwnClasses) -> OwnClasses:
    """The classes with the colours that a first mask gives to their grey values."""
    if mask.kind != "palette" or any(len({*value}) > 1 for value in classes.values):
        return classes
    return replace(classes, palette=dict(enumerate(mask.palette)))


# ---- Photographs, masks and splits ---------------------------------------------------------------

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

    def lacking(self, names: Sequence[str]) -> Iterator[tuple[Path, str, list[str], str]]:
        """Where, what and of which names something is missing, and what to do."""
        kinds = (
            (self.images, IMAGES, "photograph", "put it there, or take the name out of the list"),
            (self.masks, MASKS, "mask", "a mask has the name of its photograph"),
        )
        for found, kind, what, remedy in kinds:
            if lacking := [name for name in names if name not in found]:
                yield self.place / kind, what, lacking, remedy

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
    for where, what, lacking, remedy in folder.lacking(names):
        more = f" and {len(lacking) - 1:,} more" if len(lacking) > 1 else ""
        raise UserError(f"{where}: no {what} {lacking[0]!r}{more}; {remedy}.")
    return folder.pairs(names)


def files_of(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Name without ending -> file, of the images in a folder.

    Raises:
        UserError: no such folder, two files of one name, or a name that no list can hold.
    """
    try:
        found = by_name(folder.iterdir(), endings)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}. Photographs are expected in {IMAGES}/, masks "
                        f"with the same names in {MASKS}/ beside it.") from None  # fmt: skip
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
        raise UserError(f"{file}: no such list; `{own_command('prepare', folder.place)}` "
                        "splits the images and writes it.")  # fmt: skip
    lines = [line.strip() for line in read_text(file, MOST_LIST_BYTES).splitlines()]
    listed = [line for line in lines if line and not line.startswith("#")]
    names = [line if line in folder.images else bare(line) for line in listed]
    if not names:
        raise UserError(f"{file}: an empty list; a name of {folder.place / IMAGES} a line is "
                        "expected.")  # fmt: skip
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file}: {one_line(repr(twice), 80)} is listed twice; remove one.")
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
