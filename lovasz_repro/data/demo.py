"""Small data sets of drawn pictures (``demo_scene.py``), laid out as VOC with SBD, as Cityscapes,
and as a folder of one's own.

Every class has a look of its own, but colours overlap and the light changes from image to image, so
that a network has to learn. What is drawn depends on the seed, the split and the image's number
alone. All classes occur in every labelled split.

As in the real trees, VOC's masks have void borders and SBD's have none; some images have masks of
both, and some of SBD's are in VOC's val, so that train_aug goes without them. The annotations of
Cityscapes' test set hold ignore regions and no labels.

A folder of one's own has small objects, most of the image background. Its photographs show five
kinds of objects, each half as often as the one before. The first ``kinds`` of them have labels; the
others count as background, as in a real search for one thing. Every seventh photograph shows none.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data import cityscapes, voc
from lovasz_repro.data.check import Size, TreeNote, by, new_tree
from lovasz_repro.data.classes import CITYSCAPES, VOC_CLASSES, colourise, voc_colour
from lovasz_repro.data.demo_scene import (
    FINER,
    IDS,
    IGNORED,
    LOOKS,
    Room,
    Street,
    draw_scene,
    with_border,
)
from lovasz_repro.data.own_files import IMAGES, MASKS, OWN_SPLITS

VOC_TREE = Path("VOCdevkit", "VOC2012")
VOC_SPLITS = ("train_aug", "val", "test")
VOC_COUNTS, VOC_SIZE = (160, 80, 6), 128
"""Images of each split, and the long side of the photographs, pixels; VOC's is 500."""
STREET_COUNTS, STREET_SIZE = (40, 12, 6), (256, 512)
SMALLEST_VOC, SMALLEST_STREET = (64, 64), (64, 128)
"""Height and width below which thin things vanish, in streets or within void borders, pixels."""
VOC_VISIBLE, STREET_VISIBLE = 0.005, 2e-4
"""Share of the pixels that a class must have, of VOC's within void borders, to count as shown."""
MOST_DRAWINGS = 100

SHORT_SIDES = (0.66, 0.75, 0.75, 0.9, 1.0)
"""Short side over long side of VOC's photographs; equally likely."""
OTHERS = (0, 0, 1, 1, 2)
"""Objects beside the first; equally likely."""
PORTRAIT = 0.3
"""Share of photographs that are higher than wide."""
QUALITY = 92
"""Of the JPEG files."""
CITIES = {
    "train": ("altenfurth", "birkenried", "grauwinkel"),
    "val": ("hohenlinde", "kaltenau"),
    "test": ("neuwalden", "ostermark"),
}
RARE = ("train", "rider", "wall", "bus", "motorcycle", "truck", "traffic light", "fence", "bicycle",
        "terrain", "traffic sign")  # fmt: skip
"""Classes that not every street has; the images of a split take turns to show them."""
TURNS = 3
SMALL_KINDS = ("bird", "sheep", "bottle", "boat", "tvmonitor")
OWN_COUNTS, OWN_SIZE, SMALLEST_OWN = (60, 20, 20), 160, 64
"""Images for training, validation and test; long side of the photographs, pixels."""
SMALLEST_OBJECT, LARGEST_OBJECT = 0.07, 0.16
"""Height of an object as a share of the long side."""
EMPTY_EVERY = 7


def write_voc(
    root: Path,
    seed: int = 0,
    images: Sequence[int] = VOC_COUNTS,
    size: int = VOC_SIZE,
    advance: Callable[[int], None] = lambda images: None,
) -> bool:
    """Draw a tree in the layout of Pascal VOC and SBD.

    The tree appears under its name when it is whole; a stopped command leaves none.

    Args:
        root: folder to make.
        seed: of everything that is drawn.
        images: how many for train_aug, val and test, at least 1 each.
        size: long side of the photographs, at least 64 pixels.
        advance: called with 1 after each image.

    Returns:
        False where the same tree is there already, which is left alone.

    Raises:
        UserError: something else is at ``root``, or it cannot be written.
        ValueError: too few images or too small ones.
    """
    note = note_of("voc", seed, VOC_SPLITS, images, (size, size), SMALLEST_VOC)

    def write(folder: Path) -> None:
        names = name_images(seed, images)
        write_lists(folder, names)
        for split, number in numbered(note.images):
            name = names[split][number]
            photograph, labels = draw_objects(seed, split, number, size)
            write_photograph(folder, name, photograph)
            if split != "test" and in_voc(split, number):
                write_mask(folder, name, with_border(labels))
            if split != "test" and in_sbd(split, number):
                write_mat(folder, name, labels)
            advance(1)

    return new_tree(root, note, write)


def write_cityscapes(
    root: Path,
    seed: int = 0,
    images: Sequence[int] = STREET_COUNTS,
    size: Size = STREET_SIZE,
    advance: Callable[[int], None] = lambda images: None,
) -> bool:
    """Draw a tree in the layout of Cityscapes, as ``write_voc`` does.

    ``size`` is height and width of the photographs, at least 64x128 pixels.
    """
    note = note_of("cityscapes", seed, cityscapes.SPLITS, images, size, SMALLEST_STREET)

    def write(folder: Path) -> None:
        for split, number in numbered(note.images):
            street = draw_street(seed, split, number, note.images[split], size)
            write_street(folder, split, number, street)
            advance(1)

    return new_tree(root, note, write)


def write_own_demo(
    root: Path,
    seed: int = 0,
    images: Sequence[int] = OWN_COUNTS,
    size: int = OWN_SIZE,
    advance: Callable[[int], None] = lambda images: None,
    *,
    kinds: int = 1,
) -> bool:
    """Draw a folder of one's own, with lists and ``classes.txt``, as ``write_voc`` does.

    ``kinds`` of objects, 1 to 5, have labels; the photographs are the same. With one kind the masks
    are black and white, with more they have VOC's palette.
    """
    note = note_of("own", seed, OWN_SPLITS, images, (size, size), (SMALLEST_OWN, SMALLEST_OWN))
    note = replace(note, made_by=f"{note.made_by} --kinds {kinds}")

    def write(folder: Path) -> None:
        for kind in (IMAGES, MASKS):
            (folder / kind).mkdir()
        for split, count in note.images.items():
            listed = [f"{split}_{number:04d}" for number in range(count)]
            (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in listed))
            for number, name in enumerate(listed):
                photograph, labels = draw_small(seed, split, number, size)
                Image.fromarray(photograph).save(folder / IMAGES / f"{name}.jpg", quality=QUALITY)
                mask_of(labels, kinds).save(folder / MASKS / f"{name}.png")
                advance(1)
        values = ["0", "255"] if kinds == 1 else [*map(str, range(kinds + 1))]
        lines = zip(("background", *SMALL_KINDS), values, strict=False)
        (folder / "classes.txt").write_text("".join(f"{name}: {v}\n" for name, v in lines))

    return new_tree(root, note, write)


def note_of(
    layout: str, seed: int, splits: Sequence[str], images: Sequence[int], size: Size, smallest: Size
) -> TreeNote:
    """What a tree says of itself; raises ValueError for too few images or too small ones."""
    if len(images) != len(splits) or min(images) < 1 or np.any(np.less(size, smallest)):
        raise ValueError(f"images {images} of size {size}: at least 1 per split and {smallest}")
    counts = ",".join(map(str, images))
    shape = by(size) if layout == "cityscapes" else size[0]
    made_by = f"lovasz-repro data demo {layout} --seed {seed} --images {counts} --size {shape}"
    return TreeNote("demo", made_by, size, dict(zip(splits, images, strict=True)))


def numbered(images: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """Split and number of every image."""
    return ((split, number) for split, count in images.items() for number in range(count))


def attempts(*key: int) -> Iterator[np.random.Generator]:
    """Sources of chance for one image, until it shows what it must; RuntimeError after many."""
    for attempt in range(MOST_DRAWINGS):
        yield np.random.default_rng([*key, attempt])
    raise RuntimeError(f"no picture with all that it must show in {MOST_DRAWINGS} attempts")


def draw_objects(
    seed: int, split: str, number: int, size: int = VOC_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``number`` of a split: 1 to 3 objects, the first of class 1 + number modulo 20.

    Returns:
        The photograph (H, W, 3) and its class ids (H, W) without void, both uint8.
    """
    for rng in attempts(seed, VOC_SPLITS.index(split), number):
        short = round(size * rng.choice(SHORT_SIDES))
        shape = (size, short) if rng.random() < PORTRAIT else (short, size)
        others = rng.integers(1, len(VOC_CLASSES), rng.choice(OTHERS)).tolist()
        shown = [1 + number % (len(VOC_CLASSES) - 1), *others]
        photograph, labels = draw_scene(rng, [VOC_CLASSES[index] for index in shown], shape)
        pixels = np.bincount(with_border(labels).ravel(), minlength=len(VOC_CLASSES))
        if min(pixels[shown]) >= VOC_VISIBLE * labels.size:
            break
    return photograph, labels


def draw_street(
    seed: int, split: str, number: int, count: int, size: Size = STREET_SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``number`` of ``count`` of a split.

    Returns:
        The photograph (H, W, 3) uint8, its label ids (H, W) uint8 and instance ids (H, W) uint16.
    """
    turns = min(count, TURNS)
    owed = [name for turn, name in enumerate(RARE) if turn % turns == number % turns]
    wanted = [IDS[name] for name in CITYSCAPES.names[1:] if name in owed or name not in RARE]
    for rng in attempts(seed, cityscapes.SPLITS.index(split), number):
        street = Street(rng, size)
        street.build(owed)
        photograph, ids = street.develop()
        if min(np.bincount(ids.ravel(), minlength=256)[wanted]) >= STREET_VISIBLE * ids.size:
            break
    return photograph, ids, street.instances[::FINER, ::FINER]


def draw_small(
    seed: int, split: str, number: int, size: int = OWN_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Image ``number`` of a split: the photograph (H, W, 3) and its kinds (H, W), both uint8.

    Kinds count from 1; 0 is background. The first kind is in every photograph that has objects.
    """
    for rng in attempts(seed, OWN_SPLITS.index(split), number):
        short = round(size * rng.choice(SHORT_SIDES))
        scene = Meadow(rng, (size, short) if rng.random() < PORTRAIT else (short, size))
        if number % EMPTY_EVERY == EMPTY_EVERY - 1:
            return scene.develop()
        for kind in reversed(range(len(SMALL_KINDS))):
            for _ in range(int(rng.poisson(3 * 0.5**kind))):
                scene.drop(kind)
        photograph, labels = scene.develop()
        if (labels == 1).any():
            break
    return photograph, labels


class Meadow(Room):
    """A background with small objects anywhere."""

    def drop(self, kind: int) -> None:
        """Paint an object of a kind of ``SMALL_KINDS``, whole, somewhere."""
        rng, look, (height, width) = self.rng, LOOKS[SMALL_KINDS[kind]], self.size
        tall = max(height, width) * rng.uniform(SMALLEST_OBJECT, LARGEST_OBJECT)
        wide = tall * look.aspect * rng.uniform(0.85, 1.15)
        to_pixels = np.diag([wide * rng.choice([-1, 1]), tall])
        margin = np.array([wide, tall]) / 2 + FINER
        centre = margin + rng.random(2) * np.maximum([width, height] - 2 * margin, 0)
        self.labels[self.stamp(look, to_pixels, centre)] = 1 + kind


# ---- which image is whose ------------------------------------------------------------------------


def in_voc(split: str, number: int) -> bool:
    """Whether VOC has a mask of a labelled image: all of val, a third of train_aug."""
    return split == "val" or number % 3 == 0


def in_sbd(split: str, number: int) -> bool:
    """Whether SBD has one: half of val, half of what VOC has of train_aug, and all the rest."""
    return number % 2 == 0 if split == "val" else number % 3 > 0 or number % 6 == 0


def name_images(seed: int, images: Sequence[int]) -> dict[str, list[str]]:
    """Names like 2007_000032 for the images of each split, whose years and numbers mix."""
    total = sum(images)
    names = [f"{2007 + 5 * index // total}_{32 + 7 * index:06d}" for index in range(total)]
    shuffled = [names[index] for index in np.random.default_rng(seed).permutation(total)]
    ends = np.cumsum([0, *images]).tolist()
    return {split: shuffled[ends[k] : ends[k + 1]] for k, split in enumerate(VOC_SPLITS)}


def write_lists(root: Path, names: dict[str, list[str]]) -> None:
    """VOC's lists and those of SBD, whose val is every fourth image."""
    of_voc, of_sbd = (
        {split: [name for number, name in enumerate(names[split]) if has(split, number)]
         for split in ("train_aug", "val")}
        for has in (in_voc, in_sbd)
    )  # fmt: skip
    sbd = [*of_sbd["train_aug"], *of_sbd["val"]]
    val = sbd[1::4]
    lists = {
        VOC_TREE / voc.VOC_LISTS / "train.txt": of_voc["train_aug"],
        VOC_TREE / voc.VOC_LISTS / "val.txt": of_voc["val"],
        VOC_TREE / voc.VOC_LISTS / "test.txt": names["test"],
        voc.SBD / "train.txt": [name for name in sbd if name not in val],
        voc.SBD / "val.txt": val,
    }
    for file, of_it in lists.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("".join(f"{name}\n" for name in sorted(of_it)), encoding="ascii")


# ---- files ---------------------------------------------------------------------------------------


def write_photograph(root: Path, name: str, photograph: np.ndarray) -> None:
    """Write an RGB photograph (H, W, 3) uint8."""
    file = root / VOC_TREE / voc.JPEGS / f"{name}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph).save(file, quality=QUALITY)


def write_mask(root: Path, name: str, labels: np.ndarray) -> None:
    """Write class ids (H, W) uint8 as VOC does, with its palette."""
    file = root / VOC_TREE / voc.CLASS_MASKS / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels)
    mask.putpalette([value for index in range(256) for value in voc_colour(index)])
    mask.save(file)


def write_mat(root: Path, name: str, labels: np.ndarray) -> None:
    """Write class ids (H, W) uint8 as SBD does: ``GTcls.Segmentation`` of a MAT 5 file."""
    from scipy.io import savemat

    present = np.setdiff1d(labels, 0)[:, None]
    content = io.BytesIO()
    savemat(content, {"GTcls": {"Segmentation": labels, "CategoriesPresent": present}},
            do_compression=True)  # fmt: skip
    header = b"MATLAB 5.0 MAT-file, drawn by lovasz-repro".ljust(116)  # SciPy writes the time here
    file = root / voc.SBD / "cls" / f"{name}.mat"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(header + content.getvalue()[116:])


def mask_of(labels: np.ndarray, kinds: int) -> Image.Image:
    """The mask of the first so many kinds, from labels (H, W) of all."""
    kept = np.where(labels <= kinds, labels, 0).astype(np.uint8)
    if kinds == 1:
        return Image.fromarray(kept * 255)
    mask = Image.fromarray(kept)
    mask.putpalette([value for index in range(kinds + 1) for value in voc_colour(index)])
    return mask


def write_street(
    root: Path, split: str, number: int, street: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """Write photograph, label ids, instance ids and colours as Cityscapes does."""
    photograph, ids, instances = street
    if split == "test":
        ids = np.where(np.isin(ids, IGNORED), ids, 0).astype(np.uint8)
        instances = ids.astype(np.uint16)
    cities = CITIES[split]
    city, frame = cities[number % len(cities)], f"{number // len(cities):06d}_000019"
    images, masks = (
        root / kind / split / city for kind in (cityscapes.LEFT_IMAGES, cityscapes.FINE_MASKS)
    )
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph).save(images / f"{city}_{frame}_{cityscapes.LEFT_IMAGES}.png")
    colours = colourise(cityscapes.TO_CLASS[ids], CITYSCAPES)
    for kind, mask in (("labelIds", ids), ("instanceIds", instances), ("color", colours)):
        Image.fromarray(mask).save(masks / f"{city}_{frame}_{cityscapes.FINE_MASKS}_{kind}.png")


@dataclass(frozen=True)
class Demo:
    """How ``data demo`` draws a small data set in this layout."""

    write: Callable[..., bool]
    """(folder, seed, images, size, advance) -> whether the tree is new."""
    counts: tuple[int, int, int]
    """Images for training, validation and test."""
    size: tuple[int, ...]
    """Height and width of the images, or their long side alone, pixels."""
    smallest: tuple[int, ...]
    """The least that size may be."""
    things: str
    """What is drawn."""
    experiment: str | None
    """One whose profile demo runs on it; None: it is looked at first, by ``data check``."""


DEMOS = {
    "cityscapes": Demo(
        write_cityscapes, STREET_COUNTS, STREET_SIZE, SMALLEST_STREET, "streets", "cityscapes-enet"
    ),
    "voc": Demo(
        lambda root, seed, images, size, advance: write_voc(root, seed, images, size[0], advance),
        VOC_COUNTS, (VOC_SIZE,), SMALLEST_VOC[:1], "objects", "voc-binary",
    ),
    "own": Demo(
        lambda root, seed, images, size, advance, **how: write_own_demo(
            root, seed, images, size[0], advance, **how
        ),
        OWN_COUNTS, (OWN_SIZE,), (SMALLEST_OWN,), "small objects", None,
    ),
}  # fmt: skip
"""The data sets of ``config/tables.py`` that can be drawn."""
