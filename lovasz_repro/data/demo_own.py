"""A small drawn data set in the layout of one's own: small objects, most of the image background.

The photographs show five kinds of objects, each half as often as the one before. The first
``kinds`` of them have labels; the others count as background, as in a real search for one thing.
Every seventh photograph shows none of the five.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lovasz_repro.data.check import TreeNote, new_tree
from lovasz_repro.data.classes import voc_colour
from lovasz_repro.data.demo import PORTRAIT, QUALITY, SHORT_SIDES, attempts
from lovasz_repro.data.demo_objects import LOOKS
from lovasz_repro.data.demo_scene import FINER, Room
from lovasz_repro.data.own_files import IMAGES, MASKS, OWN_SPLITS

SMALL_KINDS = ("bird", "sheep", "bottle", "boat", "tvmonitor")
OWN_COUNTS, OWN_SIZE, SMALLEST_OWN = (60, 20, 20), 160, 64
"""Images for training, validation and test; long side of the photographs, pixels."""
SMALLEST_OBJECT, LARGEST_OBJECT = 0.07, 0.16
"""Height of an object as a share of the long side."""
EMPTY_EVERY = 7


def write_own_demo(
    root: Path,
    seed: int = 0,
    images: Sequence[int] = OWN_COUNTS,
    size: int = OWN_SIZE,
    advance: Callable[[int], None] = lambda images: None,
    *,
    kinds: int = 1,
) -> bool:
    """Draw a tree in the layout of one's own, with lists and ``classes.txt``.

    With one kind the masks are black and white, with more they have VOC's palette.

    Args:
        root: folder to make.
        seed: of everything that is drawn.
        images: how many for train, val and test, at least 1 each.
        size: long side of the photographs, at least 64 pixels.
        advance: called with 1 after each image.
        kinds: how many kinds of objects have labels, 1 to 5; the photographs are the same.

    Returns:
        False where the same tree is there already, which is left alone.

    Raises:
        UserError: something else is at ``root``, or it cannot be written.
    """
    counts = ",".join(map(str, images))
    made_by = (
        f"lovasz-repro data demo own --seed {seed} --images {counts} --size {size} --kinds {kinds}"
    )
    names = dict(zip(OWN_SPLITS, images, strict=True))
    note = TreeNote("demo", made_by, (size, size), names)

    def write(folder: Path) -> None:
        for kind in (IMAGES, MASKS):
            (folder / kind).mkdir()
        for split, count in names.items():
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


def mask_of(labels: np.ndarray, kinds: int) -> Image.Image:
    """The mask of the first so many kinds, from labels (H, W) of all."""
    kept = np.where(labels <= kinds, labels, 0).astype(np.uint8)
    if kinds == 1:
        return Image.fromarray(kept * 255)
    mask = Image.fromarray(kept)
    mask.putpalette([value for index in range(kinds + 1) for value in voc_colour(index)])
    return mask


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
