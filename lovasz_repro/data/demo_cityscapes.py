"""A small Cityscapes of drawn streets (``demo_street.py``), which needs no registration.

Every class has a look of its own, but colours overlap and the light changes from image to image, so
that a network has to learn. What is drawn depends on the seed, the split and the image's number
alone. All 19 classes occur in train, in val and in test.

As in the official release, the annotations of the test set hold ignore regions and no labels.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data.check import TreeNote, new_tree
from lovasz_repro.data.cityscapes import IMAGES, MASKS, SPLITS, TO_CLASS
from lovasz_repro.data.demo_canvas import IDS
from lovasz_repro.data.demo_street import Street
from lovasz_repro.data.palettes import CITYSCAPES, colourise

SIZE = (256, 512)
COUNTS = (40, 12, 6)
CITIES = {
    "train": ("altenfurth", "birkenried", "grauwinkel"),
    "val": ("hohenlinde", "kaltenau"),
    "test": ("neuwalden", "ostermark"),
}
SMALLEST = (64, 128)
"""Height and width below which thin things vanish, pixels."""

IGNORED = ("unlabelled", "ego vehicle", "rectification border", "out of roi")
RARE = ("train", "rider", "wall", "bus", "motorcycle", "truck", "traffic light", "fence", "bicycle",
        "terrain", "traffic sign")  # fmt: skip
"""Classes that not every street has; the images of a split take turns to show them."""
TURNS = 3
ATTEMPTS = 100
VISIBLE = 2e-4
"""Share of the pixels that a class must have to count as shown."""


def write_demo(
    root: Path,
    seed: int = 0,
    images: Sequence[int] = COUNTS,
    size: tuple[int, int] = SIZE,
    advance: Callable[[int], None] = lambda images: None,
) -> bool:
    """Draw a tree in the layout of Cityscapes.

    The tree appears under its name when it is whole; a stopped command leaves none.

    Args:
        root: folder to make.
        seed: of everything that is drawn.
        images: how many for train, val and test, at least 1 each.
        size: height and width of the photographs, at least 64x128 pixels.
        advance: called with 1 after each image.

    Returns:
        False where the same tree is there already, which is left alone.

    Raises:
        UserError: something else is at ``root``, or it cannot be written.
        ValueError: too few images or too small ones.
    """
    if len(images) != len(SPLITS) or min(images) < 1 or np.any(np.less(size, SMALLEST)):
        raise ValueError(f"images {images} of size {size}: at least 1 per split and {SMALLEST}")
    counts = ",".join(map(str, images))
    shape = f"{size[0]}x{size[1]}"
    made_by = f"lovasz-repro data demo cityscapes --seed {seed} --images {counts} --size {shape}"
    note = TreeNote("demo", made_by, size, dict(zip(SPLITS, images, strict=True)))

    def write(folder: Path) -> None:
        for split, count in note.images.items():
            for number in range(count):
                _write_street(folder, split, number, draw(seed, split, number, count, size))
                advance(1)

    return new_tree(root, note, write)


def draw(
    seed: int, split: str, number: int, count: int, size: tuple[int, int] = SIZE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image ``number`` of ``count`` of a split.

    Returns:
        The photograph (H, W, 3) uint8, its label ids (H, W) uint8 and instance ids (H, W) uint16.
    """
    turns = min(count, TURNS)
    owed = [name for turn, name in enumerate(RARE) if turn % turns == number % turns]
    wanted = [IDS[name] for name in CITYSCAPES.names[1:] if name in owed or name not in RARE]
    for attempt in range(ATTEMPTS):
        street = Street(np.random.default_rng([seed, SPLITS.index(split), number, attempt]), size)
        street.build(owed)
        photograph, ids, instances = street.canvas.develop(street.rng)
        pixels = np.bincount(ids.ravel(), minlength=256)
        if min(pixels[wanted]) >= VISIBLE * ids.size:
            return photograph, ids, instances
    raise RuntimeError(f"no street with {', '.join(owed)} after {ATTEMPTS} attempts")


def _write_street(
    root: Path, split: str, number: int, street: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    photograph, ids, instances = street
    if split == "test":
        ids = np.where(np.isin(ids, [IDS[name] for name in IGNORED]), ids, 0).astype(np.uint8)
        instances = ids.astype(np.uint16)
    cities = CITIES[split]
    city, frame = cities[number % len(cities)], f"{number // len(cities):06d}_000019"
    images, masks = root / IMAGES / split / city, root / MASKS / split / city
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photograph).save(images / f"{city}_{frame}_{IMAGES}.png")
    colours = colourise(TO_CLASS[ids], CITYSCAPES)
    for kind, mask in (("labelIds", ids), ("instanceIds", instances), ("color", colours)):
        Image.fromarray(mask).save(masks / f"{city}_{frame}_{MASKS}_{kind}.png")
