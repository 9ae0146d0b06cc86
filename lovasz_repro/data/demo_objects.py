"""How drawn objects look, of the 20 classes of Pascal VOC and in streets.

A look is outline, colours and texture. An outline is a list of polygons in a square, x to the right
and y down, both 0..1, painted one over the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lovasz_repro.data.classes import RGB

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
    "rider": Look((170, 80, 60), SKIN, [
        bar(0.45, 0.55, 0.7, 0.95, 0.2, DARK), shape((0.1, 0.65), (0.4, 0.25), (0.65, 0.3),
        (0.5, 0.75)), bar(0.5, 0.35, 0.95, 0.6, 0.12), disc(0.6, 0.14, 0.15, ACCENT)], 0.75),
    "car": Look((112, 112, 118), GLASS, [
        shape((0.08, 0.5), (0.22, 0), (0.78, 0), (0.92, 0.5)), box(0, 0.42, 1, 0.85),
        shape((0.17, 0.42), (0.27, 0.08), (0.73, 0.08), (0.83, 0.42), paint=ACCENT),
        box(0.05, 0.8, 0.25, 1, DARK), box(0.75, 0.8, 0.95, 1, DARK)], 1.25),
    "truck": Look((205, 203, 196), (120, 118, 116), [
        box(0, 0, 1, 0.84), box(0.49, 0, 0.51, 0.8, ACCENT), box(0.05, 0.8, 0.3, 1, DARK),
        box(0.7, 0.8, 0.95, 1, DARK)], 0.75, planks),
    "bus": Look((214, 170, 48), GLASS, [
        box(0, 0, 1, 0.92), box(0.06, 0.12, 0.94, 0.5, ACCENT), box(0.08, 0.88, 0.3, 1, DARK),
        box(0.7, 0.88, 0.92, 1, DARK)], 0.85),
    "train": Look((178, 44, 40), (230, 225, 215), [
        box(0, 0, 1, 1), box(0.1, 0.12, 0.9, 0.48, DARK), box(0, 0.58, 1, 0.68, ACCENT)], 0.75),
    "pole": Look((118, 118, 122), WHITE, [box(0, 0, 1, 1)], 0.035),
    "traffic light": Look((38, 40, 38), (245, 120, 60), [
        box(0, 0, 1, 1), oval(0.25, 0.1, 0.75, 0.33, ACCENT)], 0.45),
    "traffic sign": Look((205, 45, 45), WHITE, [disc(0.5, 0.5, 0.5), disc(0.5, 0.5, 0.3, ACCENT)]),
    "vegetation": Look((72, 98, 50), (80, 66, 54), [
        box(0.45, 0.5, 0.55, 1, ACCENT), oval(0.1, 0.2, 0.9, 0.7), oval(0.25, 0, 0.75, 0.5)], 0.8,
        curls),
}  # fmt: skip
"""Class of Cityscapes -> how an object of it looks that faces the camera."""
