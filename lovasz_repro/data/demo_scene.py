"""A drawn photograph with objects of Pascal VOC (``demo_objects.py``) before a background."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from lovasz_repro.data.demo_canvas import smooth_noise
from lovasz_repro.data.demo_objects import ACCENT, BODY, DARK, LOOKS
from lovasz_repro.data.voc import CLASSES, VOID

FINER = 2
"""Drawn at this many times the asked size, so that edges come out smooth."""
BORDER = 5
"""Side of the window around a pixel that makes it void if it holds two classes: a band of 2 pixels
to each side of an outline."""


class Scene:
    """A photograph and its labels in the making."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.size = FINER * size[0], FINER * size[1]
        self.labels = np.zeros(self.size, np.uint8)
        self.colours = self.background()

    def background(self) -> np.ndarray:
        """A wall or sky above a floor, of dull colours, (H, W, 3)."""
        rng, (height, width) = self.rng, self.size
        horizon = round(height * rng.uniform(0.35, 0.75))
        upper, lower = (rng.uniform(85, 195) + rng.normal(0, 16, 3) for _ in range(2))
        colours = np.empty((height, width, 3))
        colours[:horizon], colours[horizon:] = upper, lower
        for cells, strength in ((3, 50), (12, 40), (48, 30)):
            colours += strength * (smooth_noise(rng, self.size, cells)[..., None] - 0.5)
        return colours

    def paint(self, name: str, left: float, right: float) -> None:
        """Paint an object between two columns, given as shares of the width."""
        rng, look, (height, width) = self.rng, LOOKS[name], self.size
        room = (right - left) * width
        tall = min(0.95 * height, 1.15 * room / look.aspect) * rng.uniform(0.75, 1)
        wide = tall * look.aspect * rng.uniform(0.85, 1.15)
        angle = rng.uniform(-0.15, 0.15)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        to_pixels = turn @ np.diag([wide * rng.choice([-1, 1]), tall])
        slack = np.maximum([room - wide, height - tall], 0) / 2
        centre = [left * width + room / 2, height / 2] + slack * rng.uniform(-1, 1, 2)

        stencil = Image.new("L", (width, height))
        for part in look.parts:
            corners = (np.array(part.corners) - 0.5) @ to_pixels.T + centre
            ImageDraw.Draw(stencil).polygon(corners.ravel().tolist(), fill=part.paint)
        paints = np.asarray(stencil)
        rows, columns = np.nonzero(paints)
        inside = (np.stack([columns, rows], axis=1) - centre) @ np.linalg.inv(to_pixels).T + 0.5

        body, accent = (
            np.array(colour) * rng.uniform(0.75, 1.15) + rng.normal(0, 12, 3)
            for colour in (look.body, look.accent)
        )
        palette = np.zeros((4, 3))
        palette[[BODY, DARK, ACCENT]] = body, 0.35 * body, accent
        shade = 22 * look.texture(inside[:, 0], inside[:, 1])[:, None]
        self.colours[rows, columns] = palette[paints[rows, columns]] + shade
        self.labels[rows, columns] = CLASSES.index(name)

    def develop(self) -> tuple[np.ndarray, np.ndarray]:
        """The photograph (H, W, 3), in some light, and its class ids (H, W), both uint8."""
        rng, (height, width) = self.rng, self.size
        colours = self.colours.reshape(height // FINER, FINER, width // FINER, FINER, 3)
        light = rng.uniform(0.7, 1.15) * rng.uniform(0.94, 1.06, 3)
        photograph = colours.mean(axis=(1, 3)) * light
        photograph += rng.normal(0, rng.uniform(3, 8), photograph.shape)
        labels = self.labels[::FINER, ::FINER].copy()
        return np.clip(np.rint(photograph), 0, 255).astype(np.uint8), labels


def draw_scene(
    rng: np.random.Generator, names: Sequence[str], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Objects of these classes side by side, the first one in front.

    Args:
        rng: of everything that is drawn.
        names: class of each object.
        size: height and width, pixels.

    Returns:
        The photograph (H, W, 3) and its class ids (H, W), both uint8; 0 is background.
    """
    scene = Scene(rng, size)
    places = rng.permutation(len(names))
    for name, place in reversed([*zip(names, places.tolist(), strict=True)]):
        scene.paint(name, place / len(names), (place + 1) / len(names))
    return scene.develop()


def with_border(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) uint8 with a void border along every outline, as VOC has and SBD has not."""
    from scipy import ndimage  # type: ignore[import-untyped]

    edge = ndimage.maximum_filter(labels, BORDER) != ndimage.minimum_filter(labels, BORDER)
    return np.where(edge, np.uint8(VOID), labels)
