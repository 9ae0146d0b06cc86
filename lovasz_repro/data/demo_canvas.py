"""What drawn streets are painted on: a pinhole camera's picture with labels, and simple shapes."""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from lovasz_repro.data.palettes import CITYSCAPES

IDS = dict(zip(CITYSCAPES.names, CITYSCAPES.label_ids, strict=True)) | {
    "ego vehicle": 1,
    "rectification border": 2,
    "out of roi": 3,
    "static": 4,
    "dynamic": 5,
    "rail track": 10,
    "trailer": 30,
}
"""Name -> official label id, of what is drawn. Licence plates are "unlabelled": their official id
is -1, which no label file can hold."""
ROUND = np.linspace(0, 2 * np.pi, 12, endpoint=False)
"""Angles of the corners of a circle."""
Point = tuple[float, float, float]
"""X, Y, Z, metres."""
Shape = Sequence[tuple[float, float]]
"""Corners (across, up), metres; across in widths or lengths for vehicles."""
Colour = np.ndarray | tuple[float, float, float]


class Canvas:
    """What the camera sees: colours, label ids and instance ids, at twice the asked size.

    The world is in metres: X to the right, Y up from the ground, Z ahead.
    """

    HEIGHT, HORIZON, FOCAL = 1.6, 0.42, 1.05  # metres, share of the rows, share of the columns

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.size = 2 * size[0], 2 * size[1]
        self.horizon, self.focal = self.HORIZON * self.size[0], self.FOCAL * self.size[1]
        self.centre = self.size[1] / 2
        self.colours = np.zeros((*self.size, 3), np.float32)
        self.ids = np.zeros(self.size, np.uint8)
        self.instances = np.zeros(self.size, np.uint16)
        self.haze = np.array([200, 208, 215]) * rng.uniform(0.85, 1.05)
        self.numbers: dict[int, int] = {}

    def instance(self, name: str) -> tuple[str, int]:
        """A label with the instance id of a new object."""
        label_id = IDS[name]
        number = self.numbers[label_id] = self.numbers.get(label_id, -1) + 1
        return name, label_id * 1000 + number

    def paint(
        self,
        points: Sequence[Point],
        colour: "Colour | Callable[[np.ndarray, np.ndarray], np.ndarray]",
        label: str | tuple[str, int] | None,
        opacity: float = 1.0,
    ) -> None:
        """Fill a flat polygon.

        Args:
            points: corners (X, Y, Z) in front of the camera.
            colour: RGB, or a function of pixel rows (N,) and columns (N,) to RGB (N, 3).
            label: label, or label and instance id; None leaves both as they are (a shadow).
            opacity: of the colour; below 1 what is behind shines through.
        """
        x, y, z = np.array(points).T
        down = self.horizon + self.focal * (self.HEIGHT - y) / z
        corners = np.stack([self.centre + self.focal * x / z, down], axis=1)
        left, top = np.maximum(corners.min(axis=0), 0).astype(int).tolist()
        right, bottom = np.minimum(corners.max(axis=0) + 2, self.size[::-1]).astype(int).tolist()
        if right <= left or bottom <= top:
            return
        stencil = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(stencil).polygon((corners - (left, top)).ravel().tolist(), fill=1)
        rows, columns = np.nonzero(np.asarray(stencil))
        rows, columns = rows + top, columns + left
        if callable(colour):
            colour = colour(rows, columns)
        shown = self.hazy(np.asarray(colour), z.mean())
        if opacity < 1:
            shown = opacity * shown + (1 - opacity) * self.colours[rows, columns]
        self.colours[rows, columns] = shown
        if label is not None:
            name, instance = label if isinstance(label, tuple) else (label, IDS[label])
            self.ids[rows, columns] = IDS[name]
            self.instances[rows, columns] = instance

    def hazy(self, colour: np.ndarray, distance: np.ndarray | float) -> np.ndarray:
        """A colour as it looks from afar."""
        return np.asarray(self.haze + (colour - self.haze) * np.exp(-np.asarray(distance) / 130))

    def develop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The photograph, in the light of some time of day, and its labels, at the asked size."""
        height, width = self.size
        light = rng.uniform(0.6, 1.15) * rng.uniform(0.93, 1.07, 3)
        light = light * (0.85 + 0.3 * smooth_noise(rng, (height // 2, width // 2), 3)[..., None])
        colours = self.colours.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
        colours = 255 * (np.clip(colours * light, 0, 255) / 255) ** rng.uniform(0.85, 1.2)
        colours += rng.normal(0, rng.uniform(4, 9), colours.shape)
        photograph = np.clip(np.rint(colours), 0, 255).astype(np.uint8)
        return photograph, self.ids[::2, ::2].copy(), self.instances[::2, ::2].copy()


def rectangle(left: float, right: float, low: float, high: float) -> Shape:
    """Corners of an upright rectangle."""
    return [(left, low), (right, low), (right, high), (left, high)]


def disc(x: float, y: float, radius: float, angles: np.ndarray = ROUND) -> Shape:
    """Corners of a regular polygon."""
    return [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]


def standing(
    shape: Shape, x: float, z: float, stretch: float = 1.0, up: float = 0.0
) -> list[Point]:
    """A shape around ``x`` that faces the camera."""
    return [(x + stretch * across, up + y, z) for across, y in shape]


def upright(x: float, low: float, high: float, near: float, far: float) -> list[Point]:
    """Corners of a rectangle along the street."""
    return [(x, low, near), (x, low, far), (x, high, far), (x, high, near)]


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Noise (H, W) in 0..1 without detail below 1/cells of the height."""
    coarse = Image.fromarray(rng.random((cells + 1, 2 * cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)).clip(0, 1)
