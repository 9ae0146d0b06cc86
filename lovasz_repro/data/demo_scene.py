"""Drawn photographs: objects of VOC before a background, and streets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from lovasz_repro.data.classes import CITYSCAPES, RGB, VOC_CLASSES, VOID

# ---- Objects -------------------------------------------------------------------------------------
#
# How drawn objects look, of the 20 classes of Pascal VOC and in streets.
#
# A look is outline, colours and texture. An outline is a list of polygons in a square, x to the
# right and y down, both 0..1, painted one over the other.

HOLE, BODY, DARK, ACCENT = range(4)
"""What a part is painted with; a hole takes away what was painted before."""
NEARLY_BLACK, WHITE, GLASS, SKIN = (35, 33, 38), (236, 234, 228), (168, 205, 222), (226, 178, 148)


class Part(NamedTuple):
    """One polygon of an outline."""

    corners: list[tuple[float, float]]
    paint: int


def box(left: float, top: float, right: float, bottom: float, paint: int = BODY) -> Part:
    """An upright rectangle."""
    return Part([(left, top), (right, top), (right, bottom), (left, bottom)], paint)


def oval(left: float, top: float, right: float, bottom: float, paint: int = BODY) -> Part:
    """An ellipse with upright axes."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x = (left + right + (right - left) * np.cos(angles)) / 2
    y = (top + bottom + (bottom - top) * np.sin(angles)) / 2
    return Part([*zip(x.tolist(), y.tolist(), strict=True)], paint)


def disc(x: float, y: float, radius: float, paint: int = BODY) -> Part:
    """A circle."""
    return oval(x - radius, y - radius, x + radius, y + radius, paint)


def bar(x0: float, y0: float, x1: float, y1: float, width: float, paint: int = BODY) -> Part:
    """A straight line with a width."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) * width / 2 / np.hypot(*along)
    ends = np.array([(x0, y0), (x1, y1)])
    corners = [*(ends + across), *(ends - across)[::-1]]
    return Part([(float(x), float(y)) for x, y in corners], paint)


def shape(*corners: tuple[float, float], paint: int = BODY) -> Part:
    """Any polygon."""
    return Part([*corners], paint)


def legs(*left_edges: float, top: float, width: float = 0.09, paint: int = BODY) -> list[Part]:
    """Upright legs down to the ground."""
    return [box(left, top, left + width, 1, paint) for left in left_edges]


# ---- textures: brightness, about -1..1, at (x, y) in the square ----------------------------------

Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]


def plain(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Darker towards the ground."""
    return 0.5 - y


def stripes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Upright bands."""
    return np.sign(np.sin(2 * np.pi * 7 * x))


def planks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Level bands."""
    return np.sign(np.sin(2 * np.pi * 8 * y))


def checks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A chess board."""
    return stripes(x, y) * planks(x, y)


def curls(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Round bumps."""
    return np.sin(2 * np.pi * 9 * x) * np.sin(2 * np.pi * 9 * y)


@dataclass(frozen=True)
class Look:
    """How a class looks."""

    body: RGB
    accent: RGB
    parts: list[Part]
    aspect: float = 1.0
    """Width over height."""
    texture: Texture = plain


WHEELS = [disc(0.2, 0.82, 0.18, DARK), disc(0.8, 0.82, 0.18, DARK)]

LOOKS: dict[str, Look] = {
    "aeroplane": Look((205, 212, 222), (40, 90, 190), [
        oval(0, 0.38, 1, 0.62),
        shape((0.62, 0.45), (0.42, 0.45), (0.28, 0), (0.4, 0)),
        shape((0.62, 0.55), (0.42, 0.55), (0.28, 1), (0.4, 1)),
        shape((0.18, 0.46), (0, 0.12), (0.1, 0.12), (0.32, 0.44), paint=ACCENT),
        oval(0.82, 0.44, 0.96, 0.54, DARK)], 1.9),
    "bicycle": Look((200, 45, 60), NEARLY_BLACK, [
        disc(0.23, 0.7, 0.23, ACCENT), disc(0.23, 0.7, 0.11, HOLE),
        disc(0.77, 0.7, 0.23, ACCENT), disc(0.77, 0.7, 0.11, HOLE),
        bar(0.23, 0.7, 0.38, 0.25, 0.11), bar(0.38, 0.32, 0.7, 0.32, 0.11),
        bar(0.4, 0.3, 0.52, 0.7, 0.11), bar(0.52, 0.7, 0.7, 0.3, 0.11),
        bar(0.23, 0.7, 0.52, 0.7, 0.09), bar(0.66, 0.15, 0.77, 0.7, 0.1),
        box(0.28, 0.15, 0.48, 0.26, DARK), box(0.6, 0.08, 0.84, 0.19, DARK)], 1.5),
    "bird": Look((45, 165, 205), (240, 150, 30), [
        shape((0.3, 0.55), (0, 0.3), (0, 0.62), (0.3, 0.75)), oval(0.2, 0.38, 0.8, 0.86),
        disc(0.75, 0.3, 0.19), shape((0.9, 0.22), (1, 0.34), (0.88, 0.42), paint=ACCENT),
        shape((0.3, 0.5), (0.65, 0.5), (0.25, 0.05), paint=DARK), disc(0.79, 0.26, 0.04, DARK),
        box(0.42, 0.82, 0.49, 1, ACCENT), box(0.55, 0.82, 0.62, 1, ACCENT)], 1.2),
    "boat": Look((140, 70, 40), WHITE, [
        box(0.47, 0.02, 0.53, 0.75, DARK), shape((0.5, 0.02), (0.95, 0.65), (0.5, 0.65),
        paint=ACCENT), shape((0.44, 0.12), (0.44, 0.65), (0.1, 0.65), paint=ACCENT),
        shape((0, 0.7), (1, 0.7), (0.84, 1), (0.16, 1))], 1.0, planks),
    "bottle": Look((30, 120, 60), (240, 225, 170), [
        box(0.38, 0.05, 0.62, 0.34), box(0.35, 0, 0.65, 0.08, DARK),
        oval(0.1, 0.24, 0.9, 0.6), box(0.1, 0.42, 0.9, 1), box(0.1, 0.55, 0.9, 0.85, ACCENT)],
        0.4),
    "bus": Look((235, 185, 30), GLASS, [
        box(0, 0.08, 1, 0.85), *(box(x, 0.18, x + 0.13, 0.45, ACCENT)
        for x in (0.05, 0.22, 0.39, 0.56)), box(0.75, 0.18, 0.97, 0.8, ACCENT),
        box(0, 0.55, 0.72, 0.62, DARK), disc(0.2, 0.86, 0.14, DARK), disc(0.68, 0.86, 0.14, DARK)],
        1.8),
    "car": Look((40, 80, 200), GLASS, [
        shape((0.18, 0.45), (0.32, 0.1), (0.68, 0.1), (0.84, 0.45)),
        shape((0, 0.5), (0.15, 0.42), (0.85, 0.42), (1, 0.52), (1, 0.82), (0, 0.82)),
        shape((0.25, 0.43), (0.36, 0.18), (0.48, 0.18), (0.48, 0.43), paint=ACCENT),
        shape((0.53, 0.43), (0.53, 0.18), (0.64, 0.18), (0.76, 0.43), paint=ACCENT), *WHEELS], 2.0),
    "cat": Look((228, 140, 50), (250, 220, 170), [
        bar(0.75, 0.95, 0.95, 0.5, 0.13), oval(0.2, 0.45, 0.8, 1.0), disc(0.45, 0.32, 0.26),
        shape((0.2, 0.25), (0.2, 0), (0.42, 0.12)), shape((0.7, 0.25), (0.7, 0), (0.48, 0.12)),
        oval(0.35, 0.36, 0.55, 0.5, ACCENT), disc(0.35, 0.28, 0.05, DARK),
        disc(0.55, 0.28, 0.05, DARK), oval(0.35, 0.6, 0.6, 0.95, ACCENT)], 0.85, stripes),
    "chair": Look((150, 90, 45), (185, 40, 60), [
        box(0.05, 0, 0.2, 1), box(0.2, 0.05, 0.35, 0.16), box(0.05, 0.05, 0.3, 0.45),
        box(0.05, 0.45, 0.95, 0.6, ACCENT), *legs(0.78, top=0.55, width=0.15),
        bar(0.2, 0.8, 0.8, 0.8, 0.1, DARK)], 0.7, planks),
    "cow": Look((238, 232, 225), NEARLY_BLACK, [
        *legs(0.12, 0.25, 0.6, 0.73, top=0.6, width=0.11), box(0.05, 0.18, 0.85, 0.75),
        oval(0.78, 0.12, 1, 0.5), shape((0.8, 0.2), (0.74, 0.02), (0.9, 0.14), paint=DARK),
        disc(0.25, 0.4, 0.14, ACCENT), disc(0.55, 0.55, 0.13, ACCENT), disc(0.62, 0.32, 0.09,
        ACCENT), oval(0.84, 0.38, 1, 0.52, ACCENT)], 1.5),
    "diningtable": Look((165, 115, 70), (215, 60, 60), [
        *legs(0.1, 0.8, top=0.3, width=0.1), shape((0.15, 0.05), (0.85, 0.05), (1, 0.35),
        (0, 0.35), paint=ACCENT), box(0, 0.33, 1, 0.48, ACCENT)], 1.7, checks),
    "dog": Look((120, 75, 45), (215, 180, 140), [
        bar(0.12, 0.5, 0.02, 0.1, 0.1), *legs(0.12, 0.25, 0.55, 0.66, top=0.6, width=0.1),
        oval(0.05, 0.38, 0.78, 0.75), oval(0.58, 0.1, 0.9, 0.5), box(0.8, 0.28, 1, 0.44, ACCENT),
        oval(0.55, 0.12, 0.68, 0.52, DARK), oval(0.94, 0.26, 1, 0.34, DARK)], 1.25),
    "horse": Look((95, 45, 30), (30, 22, 20), [
        *legs(0.12, 0.25, 0.6, 0.71, top=0.5, width=0.08), oval(0.08, 0.32, 0.8, 0.66),
        shape((0.6, 0.5), (0.78, 0.06), (0.92, 0.1), (0.82, 0.5)),
        shape((0.76, 0.02), (0.86, 0.02), (1, 0.22), (0.94, 0.28), (0.78, 0.2)),
        bar(0.1, 0.4, 0.03, 0.8, 0.1, ACCENT), bar(0.6, 0.4, 0.76, 0.06, 0.1, ACCENT)], 1.15),
    "motorbike": Look((60, 60, 68), (235, 80, 25), [
        disc(0.2, 0.75, 0.2, DARK), disc(0.8, 0.75, 0.2, DARK), disc(0.2, 0.75, 0.08),
        disc(0.8, 0.75, 0.08), shape((0.05, 0.4), (0.45, 0.4), (0.6, 0.22), (0.75, 0.35),
        (0.65, 0.72), (0.35, 0.75), paint=ACCENT), bar(0.66, 0.12, 0.8, 0.75, 0.09),
        box(0.02, 0.32, 0.42, 0.45, DARK), box(0.55, 0.05, 0.74, 0.16)], 1.5),
    "person": Look((90, 160, 70), SKIN, [
        box(0.28, 0.6, 0.47, 1, DARK), box(0.53, 0.6, 0.72, 1, DARK), disc(0.5, 0.12, 0.14,
        ACCENT), box(0.05, 0.28, 0.2, 0.6, ACCENT), box(0.8, 0.28, 0.95, 0.6, ACCENT),
        shape((0.05, 0.27), (0.95, 0.27), (0.95, 0.4), (0.74, 0.4), (0.74, 0.66), (0.26, 0.66),
        (0.26, 0.4), (0.05, 0.4)), oval(0.34, 0, 0.66, 0.1, DARK)], 0.5),
    "pottedplant": Look((70, 150, 40), (195, 100, 60), [
        oval(0.05, 0.1, 0.45, 0.55), oval(0.55, 0.1, 0.95, 0.55), oval(0.25, 0, 0.75, 0.65),
        oval(0, 0.36, 0.55, 0.68), oval(0.45, 0.36, 1, 0.68), box(0.2, 0.55, 0.8, 0.72, ACCENT),
        shape((0.25, 0.68), (0.75, 0.68), (0.65, 1), (0.35, 1), paint=ACCENT)], 0.75, curls),
    "sheep": Look((225, 215, 190), (50, 45, 45), [
        *legs(0.22, 0.35, 0.58, 0.7, top=0.65, width=0.08, paint=ACCENT),
        *(disc(x, y, 0.19) for x in (0.22, 0.4, 0.58, 0.7) for y in (0.35, 0.55)),
        oval(0.72, 0.2, 1, 0.52, ACCENT), disc(0.76, 0.2, 0.12)], 1.3, curls),
    "sofa": Look((130, 60, 150), (190, 130, 205), [
        box(0.08, 0, 0.92, 0.6), oval(0, 0.25, 0.2, 0.6), oval(0.8, 0.25, 1, 0.6),
        box(0, 0.42, 1, 0.92), box(0.2, 0.5, 0.8, 0.68, ACCENT), box(0.49, 0.5, 0.51, 0.68, DARK),
        box(0.05, 0.88, 0.15, 1, DARK), box(0.85, 0.88, 0.95, 1, DARK)], 1.9, stripes),
    "train": Look((20, 140, 130), (245, 245, 235), [
        box(0.05, 0.8, 0.9, 1, DARK), shape((0, 0.1), (0.75, 0.1), (1, 0.6), (1, 0.85), (0, 0.85)),
        box(0, 0.58, 1, 0.66, ACCENT), *(box(x, 0.22, x + 0.1, 0.48, DARK)
        for x in (0.03, 0.17, 0.31, 0.45)), shape((0.62, 0.22), (0.74, 0.22), (0.88, 0.48),
        (0.62, 0.48), paint=DARK)], 2.6),
    "tvmonitor": Look((40, 40, 48), (110, 190, 250), [
        box(0, 0, 1, 0.78), box(0.08, 0.08, 0.92, 0.7, ACCENT), box(0.42, 0.75, 0.58, 0.95),
        box(0.22, 0.9, 0.78, 1)], 1.25, planks),
}  # fmt: skip
"""Class name -> its look, in the order of the class ids from 1."""

STREET_LOOKS = {
    "person": LOOKS["person"], "bicycle": LOOKS["bicycle"], "motorcycle": LOOKS["motorbike"],
    "rider": replace(LOOKS["person"], body=(170, 80, 60)),
    "car": replace(LOOKS["car"], body=(112, 112, 118), aspect=1.25),
    "truck": Look((205, 203, 196), (120, 118, 116), [
        box(0, 0, 1, 0.84), box(0.49, 0, 0.51, 0.8, ACCENT), box(0.05, 0.8, 0.3, 1, DARK),
        box(0.7, 0.8, 0.95, 1, DARK)], 0.75, planks),
    "bus": replace(LOOKS["bus"], aspect=0.85),
    "train": replace(LOOKS["train"], body=(178, 44, 40), aspect=0.75),
    "pole": Look((118, 118, 122), WHITE, [box(0, 0, 1, 1)], 0.035),
    "traffic light": Look((38, 40, 38), (245, 120, 60), [
        box(0, 0, 1, 1), oval(0.25, 0.1, 0.75, 0.33, ACCENT)], 0.45),
    "traffic sign": Look((205, 45, 45), WHITE, [disc(0.5, 0.5, 0.5), disc(0.5, 0.5, 0.3, ACCENT)]),
    "vegetation": Look((72, 98, 50), (80, 66, 54), [
        box(0.45, 0.5, 0.55, 1, ACCENT), oval(0.1, 0.2, 0.9, 0.7), oval(0.25, 0, 0.75, 0.5)], 0.8,
        curls),
}  # fmt: skip
"""Class of Cityscapes -> how an object of it looks that faces the camera."""


# ---- Photographs ---------------------------------------------------------------------------------

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
        self.colours = np.zeros((*self.size, 3))

    def stamp(
        self, look: Look, to_pixels: np.ndarray, centre: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Paint an object around a centre (column, row).

        ``to_pixels`` (2, 2) takes (x, y) in the object's square to columns and rows.

        Returns:
            Rows and columns of its pixels.
        """
        rng, (height, width) = self.rng, self.size
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
        return rows, columns

    def develop(self) -> tuple[np.ndarray, np.ndarray]:
        """The photograph (H, W, 3), in some light, and its class ids (H, W), both uint8."""
        rng, (height, width) = self.rng, self.size
        colours = self.colours.reshape(height // FINER, FINER, width // FINER, FINER, 3)
        light = rng.uniform(0.7, 1.15) * rng.uniform(0.94, 1.06, 3)
        photograph = colours.mean(axis=(1, 3)) * light
        photograph += rng.normal(0, rng.uniform(3, 8), photograph.shape)
        labels = self.labels[::FINER, ::FINER].copy()
        return np.clip(np.rint(photograph), 0, 255).astype(np.uint8), labels


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Noise (H, W) in 0..1 without detail below 1/cells of the height."""
    coarse = Image.fromarray(rng.random((cells + 1, 2 * cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC)).clip(0, 1)


# ---- objects of VOC ------------------------------------------------------------------------------


class Room(Scene):
    """A wall or sky above a floor, of dull colours, with objects."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        super().__init__(rng, size)
        horizon = round(self.size[0] * rng.uniform(0.35, 0.75))
        upper, lower = (rng.uniform(85, 195) + rng.normal(0, 16, 3) for _ in range(2))
        self.colours[:horizon], self.colours[horizon:] = upper, lower
        for cells, strength in ((3, 50), (12, 40), (48, 30)):
            self.colours += strength * (smooth_noise(rng, self.size, cells)[..., None] - 0.5)

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
        self.labels[self.stamp(look, to_pixels, centre)] = VOC_CLASSES.index(name)


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
    scene = Room(rng, size)
    places = rng.permutation(len(names))
    for name, place in reversed([*zip(names, places.tolist(), strict=True)]):
        scene.paint(name, place / len(names), (place + 1) / len(names))
    return scene.develop()


def with_border(labels: np.ndarray) -> np.ndarray:
    """Labels (H, W) uint8 with a void border along every outline, as VOC has and SBD has not."""
    from scipy import ndimage

    edge = ndimage.maximum_filter(labels, BORDER) != ndimage.minimum_filter(labels, BORDER)
    return np.where(edge, np.uint8(VOID), labels)


# ---- streets -------------------------------------------------------------------------------------

IDS = dict(zip(CITYSCAPES.names, CITYSCAPES.label_ids, strict=True))
EGO, OUT_OF_ROI = 1, 3
"""Label ids of the camera's own car and of the frame's edges."""
IGNORED = (0, EGO, OUT_OF_ROI)
EYE_HEIGHT, HORIZON, FOCAL = 1.6, 0.42, 1.05
"""Of the camera: metres above the road, share of the rows, share of the columns."""
NEAREST, FARTHEST = 3.0, 90.0
"""Distances between which there is a street, metres."""
GROUND = {"terrain": ((122, 132, 76), (-90, 90)), "sidewalk": ((152, 144, 138), (-10, 8)),
          "road": ((100, 99, 103), (-7, 4))}  # fmt: skip
"""Colour, and where it lies across, metres; one painted over the other."""
TOLD_APART = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""Classes whose objects are told apart."""
FRONTS = {"building": (158, 140, 122), "wall": (140, 122, 108), "fence": (88, 94, 92),
          "vegetation": (66, 88, 50)}  # fmt: skip
"""What stands along a street, and its colours."""
STREET_THINGS = (
    *((name, x, z, chance) for z in range(8, 48, 8) for name, x, chance in (
        ("car", -6, 0.7), ("person", -8.5, 0.8), ("pole", -7.4, 0.4), ("vegetation", -9.5, 0.3),
        ("car", 3, 0.7), ("person", 6, 0.8), ("pole", 4.4, 0.4), ("vegetation", 7.5, 0.3))),
    ("pole", 4.4, 7, 1), ("car", -2.5, 28, 1), ("group", 7, 12, 0.5), ("group", -9, 12, 0.5),
    ("train", -3, 18, 0.1), ("truck", 2.5, 14, 0.15), ("bus", 0.4, 20, 0.15),
    ("motorcycle", 0.3, 9, 0.2), ("bicycle", 2.6, 8, 0.2), ("rider", 1.8, 10, 0.2),
    ("traffic light", 4.4, 13, 0.4), ("traffic sign", -7.5, 20, 0.5),
)  # fmt: skip
"""Name, place across and ahead, metres, and how likely it is there."""
HEIGHTS = {"car": 1.5, "truck": 3.4, "bus": 3.1, "train": 3.5, "motorcycle": 1.3, "bicycle": 1.15,
           "person": 1.75, "rider": 1.3, "pole": 5.5, "traffic light": 1.1, "traffic sign": 0.85,
           "vegetation": 5.5}  # fmt: skip
"""Metres."""
ABOVE = {"rider": ("bicycle", 0.55), "traffic light": ("pole", 2.6), "traffic sign": ("pole", 2.2)}
"""What something is on, and how high above the ground, metres."""
Point = tuple[float, float, float]
"""X to the right, Y up from the road, Z ahead, metres."""


class Street(Scene):
    """A street with instance ids beside the label ids."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        super().__init__(rng, size)
        self.instances = np.zeros(self.size, np.uint16)
        self.numbers: dict[str, int] = {}
        self.grain = 45 * (smooth_noise(rng, self.size, 80)[..., None] - 0.5)
        self.camera = rng.uniform(-1, 1)

    def build(self, owed: Sequence[str]) -> None:
        """Paint everything, from far to near, with the classes that this street owes in view."""
        rng = self.rng
        self.colours[:] = rng.uniform(-20, 20) + self.grain + (150, 180, 215)
        self.label(np.s_[:], "sky")
        for name, (colour, (left, right)) in GROUND.items():
            ends = [(left, NEAREST), (left, FARTHEST), (right, FARTHEST), (right, NEAREST)]
            self.paint_surface([(x, 0, z) for x, z in ends], rng.normal(colour, 9), name)
        verge = 3 if "terrain" in owed or rng.random() < 0.3 else 0
        for front, kind in ((-10 - verge, "wall"), (8 + verge, "fence")):
            self.paint_fronts(front, kind if kind in owed else None)
        for thing, across, ahead, chance in sorted(STREET_THINGS, key=lambda one: -one[2]):
            if thing in owed or rng.random() < chance:
                self.paint_thing(thing, across + rng.normal(0, 0.3), ahead + rng.normal(0, 0.8))
        self.paint_borders()

    def pixel(self, point: Point) -> tuple[float, float]:
        """Column and row at which the camera sees a point."""
        (height, width), (x, y, z) = self.size, point
        scale = FOCAL * width / z
        return width / 2 + scale * (x - self.camera), HORIZON * height + scale * (EYE_HEIGHT - y)

    def label(self, where: Any, name: str, number: int = 0) -> None:
        """Give pixels their label id; their instance id is the same without a number."""
        self.labels[where] = IDS[name]
        self.instances[where] = number or IDS[name]

    def paint_surface(self, points: Sequence[Point], colour: np.ndarray, name: str) -> None:
        """Fill a flat polygon with a rough colour."""
        stencil = Image.new("L", self.size[::-1])
        ImageDraw.Draw(stencil).polygon([self.pixel(point) for point in points], fill=1)
        where = np.nonzero(np.asarray(stencil))
        self.colours[where] = colour + self.grain[where]
        self.label(where, name)

    def paint_fronts(self, x: float, owed: str | None) -> None:
        """Houses, hedges, walls and fences along one side of the street."""
        rng = self.rng
        ends = [NEAREST, 10, 19, 29, 40, 55, 70, FARTHEST]
        kinds = rng.choice(list(FRONTS), len(ends) - 1, p=[0.6, 0.12, 0.12, 0.16]).tolist()
        kinds[2:4] = [owed] * 2 if owed else kinds[2:4]
        for kind, (near, far) in reversed([*zip(kinds, pairwise(ends), strict=True)]):
            high = rng.uniform(8, 18) if kind == "building" else rng.uniform(1.6, 2.6)
            corners = [(x, 0.0, near), (x, 0.0, far), (x, high, far), (x, high, near)]
            colour = np.array(FRONTS[kind]) + rng.normal(0, 16) + rng.normal(0, 7, 3)
            self.paint_surface(corners, colour, kind)

    def paint_thing(self, name: str, x: float, z: float) -> None:
        """Something with all that belongs to it."""
        if name == "group":  # people too close to be told apart: no instances
            for across in (-0.5, 0, 0.5):
                self.paint_object("person", x + across, z, group=True)
            return
        below, up = ABOVE.get(name, ("", 0))
        if below:
            self.paint_object(below, x, z)
        self.paint_object(name, x, z, up)

    def paint_object(
        self, name: str, x: float, z: float, up: float = 0, group: bool = False
    ) -> None:
        """One object that faces the camera, ``up`` metres above the ground."""
        rng, look = self.rng, STREET_LOOKS[name]
        high = HEIGHTS[name] * rng.uniform(0.9, 1.1)
        scale = FOCAL * self.size[1] / z
        to_pixels = scale * high * np.diag([look.aspect * rng.choice([-1, 1]), 1])
        where = self.stamp(look, to_pixels, np.array(self.pixel((x, up + high / 2, z))))
        number = 0
        if name in TOLD_APART and not group:
            index = self.numbers[name] = self.numbers.get(name, -1) + 1
            number = 1000 * IDS[name] + index
        self.label(where, name, number)

    def paint_borders(self) -> None:
        """What is in every photograph of one camera: its car's bonnet and the frame's edges."""
        edge = max(FINER * round(self.size[0] / 400), FINER)
        bonnet = np.s_[round(0.94 * self.size[0]) :]
        self.colours[bonnet] = 45 + self.grain[bonnet]
        self.labels[bonnet] = self.instances[bonnet] = EGO
        for frame in (np.s_[:edge], np.s_[-edge:], np.s_[:, :edge], np.s_[:, -edge:]):
            self.labels[frame] = self.instances[frame] = OUT_OF_ROI
