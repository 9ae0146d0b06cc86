"""A small Pascal VOC with SBD of drawn objects (``demo_scene.py``), in the official layout.

Every class has an outline, colours and a texture of its own, which change from object to object, so
that a network has to learn. What is drawn depends on the seed, the split and the image's number
alone. As in the real trees, VOC's masks have void borders and SBD's have none; some images have
masks of both, and some of SBD's are in VOC's val, so that train_aug goes without them.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data.check import TreeNote, new_tree
from lovasz_repro.data.demo_scene import draw_scene, with_border
from lovasz_repro.data.palettes import voc_colour
from lovasz_repro.data.voc import CLASSES, IMAGES, LISTS, MASKS, SBD

VOC = Path("VOCdevkit", "VOC2012")
SPLITS = ("train_aug", "val", "test")
COUNTS = (160, 80, 6)
SIZE = 128
"""Long side of the photographs, pixels; VOC's is 500."""
SMALLEST = 64
"""Long side below which void borders leave nothing of thin things, pixels."""
SHORT_SIDES = (0.66, 0.75, 0.75, 0.9, 1.0)
"""Short side over long side; equally likely."""
OTHERS = (0, 0, 1, 1, 2)
"""Objects beside the first; equally likely."""
PORTRAIT = 0.3
"""Share of photographs that are higher than wide."""
ATTEMPTS = 100
VISIBLE = 0.005
"""Share of the pixels that a class must have, within void borders, to count as shown."""
QUALITY = 92
"""Of the JPEG files."""


def write_demo(
    root: Path,
    seed: int = 0,
    images: Sequence[int] = COUNTS,
    size: int = SIZE,
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
    if len(images) != len(SPLITS) or min(images) < 1 or size < SMALLEST:
        raise ValueError(f"images {images} of size {size}: at least 1 per split and {SMALLEST}")
    counts = ",".join(map(str, images))
    made_by = f"lovasz-repro data demo voc --seed {seed} --images {counts} --size {size}"
    note = TreeNote("demo", made_by, (size, size), dict(zip(SPLITS, images, strict=True)))

    def write(folder: Path) -> None:
        names = name_images(seed, images)
        write_lists(folder, names)
        for split in SPLITS:
            for number, name in enumerate(names[split]):
                photograph, labels = draw(seed, split, number, size)
                write_photograph(folder, name, photograph)
                if split != "test" and in_voc(split, number):
                    write_mask(folder, name, with_border(labels))
                if split != "test" and in_sbd(split, number):
                    write_mat(folder, name, labels)
                advance(1)

    return new_tree(root, note, write)


def draw(seed: int, split: str, number: int, size: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Image ``number`` of a split: 1 to 3 objects, the first of class 1 + number modulo 20.

    Returns:
        The photograph (H, W, 3) and its class ids (H, W) without void, both uint8.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([seed, SPLITS.index(split), number, attempt])
        short = round(size * rng.choice(SHORT_SIDES))
        shape = (size, short) if rng.random() < PORTRAIT else (short, size)
        others = rng.integers(1, len(CLASSES), rng.choice(OTHERS)).tolist()
        shown = [1 + number % (len(CLASSES) - 1), *others]
        photograph, labels = draw_scene(rng, [CLASSES[index] for index in shown], shape)
        pixels = np.bincount(with_border(labels).ravel(), minlength=len(CLASSES))
        if min(pixels[shown]) >= VISIBLE * labels.size:
            return photograph, labels
    raise RuntimeError(f"no view of {', '.join(CLASSES[i] for i in shown)} in {ATTEMPTS} attempts")


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
    return {split: shuffled[ends[k] : ends[k + 1]] for k, split in enumerate(SPLITS)}


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
        VOC / LISTS / "train.txt": of_voc["train_aug"],
        VOC / LISTS / "val.txt": of_voc["val"],
        VOC / LISTS / "test.txt": names["test"],
        SBD / "train.txt": [name for name in sbd if name not in val],
        SBD / "val.txt": val,
    }
    for file, of_it in lists.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("".join(f"{name}\n" for name in sorted(of_it)), encoding="ascii")


# ---- files ---------------------------------------------------------------------------------------


def write_photograph(root: Path, name: str, photograph: np.ndarray) -> None:
    """Write an RGB photograph (H, W, 3) uint8."""
    file = root / VOC / IMAGES / f"{name}.jpg"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph).save(file, quality=QUALITY)


def write_mask(root: Path, name: str, labels: np.ndarray) -> None:
    """Write class ids (H, W) uint8 as VOC does, with its palette."""
    file = root / VOC / MASKS / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.fromarray(labels)
    mask.putpalette([value for index in range(256) for value in voc_colour(index)])
    mask.save(file)


def write_mat(root: Path, name: str, labels: np.ndarray) -> None:
    """Write class ids (H, W) uint8 as SBD does: ``GTcls.Segmentation`` of a MAT 5 file."""
    from scipy.io import savemat  # type: ignore[import-untyped]

    present = np.setdiff1d(labels, 0)[:, None]
    content = io.BytesIO()
    savemat(content, {"GTcls": {"Segmentation": labels, "CategoriesPresent": present}},
            do_compression=True)  # fmt: skip
    header = b"MATLAB 5.0 MAT-file, drawn by lovasz-repro".ljust(116)  # SciPy writes the time here
    file = root / SBD / "cls" / f"{name}.mat"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(header + content.getvalue()[116:])
