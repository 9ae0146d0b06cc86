"""Drawn photographs: objects of VOC before a background, and streets (``demo_objects.py``)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageDraw

from lovasz_repro.data.classes import CITYSCAPES
from lovasz_repro.data.demo_objects import ACCENT, BODY, DARK, LOOKS, STREET_LOOKS, Look
from lovasz_repro.data.voc import VOC_CLASSES, VOID

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
HEIGHTS = {"car": 1.5, "truck": 3.4, "bus": 3.1, "train": 3.5, "motorcycle": 1.3, "bicycle": 1.15,
        "person": 1.75, "rider": 1.3, "pole": 5.5, "traffic light": 1.1, "traffic sign": 0.85,
        "vegetation": 5.5}  # fmt: skip
"""Heights, metres."""
TOLD_APART = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
"""Classes whose objects are told apart."""
FRONTS = {"building": (158, 140, 122), "wall": (140, 122, 108), "fence": (88, 94, 92),
          "vegetation": (66, 88, 50)}  # fmt: skip
"""What stands along a street, and its colours."""
Point = tuple[float, float, float]
"""X to the right, Y up from the road, Z ahead, metres."""


class Street(Scene):
    """A street with instance ids beside the label ids."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        super().__init__(rng, size)
        self.instances = np.zeros(self.size, np.uint16)
        self.numbers: dict[int, int] = {}
        self.grain = smooth_noise(rng, (128, 128), 40) - 0.5
        self.road = -rng.uniform(6, 8), rng.uniform(3.5, 4.5)
        walks = rng.uniform(2.5, 4.5, 2)
        self.walk = self.road[0] - walks[0], self.road[1] + walks[1]

    def build(self, owed: Sequence[str]) -> None:
        """Paint everything, from far to near, with the classes that this street owes in view."""
        rng = self.rng
        grown = "terrain" in owed or rng.random() < 0.3
        verges = rng.uniform(2, 4, 2) if grown else np.zeros(2)
        front = self.walk[0] - verges[0], self.walk[1] + verges[1]
        self.paint_ground()
        for side, kind in enumerate(("wall", "fence")):
            self.paint_fronts(float(front[side]), [kind] if kind in owed else [])
        for z, name, x in sorted(self.place_things(owed), reverse=True):
            self.paint_thing(name, x, z)
        self.paint_borders()

    def develop_all(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What ``develop`` gives, and the instance ids (H, W) uint16."""
        return *self.develop(), self.instances[::FINER, ::FINER].copy()

    def pixel(self, point: Point) -> tuple[float, float]:
        """Column and row at which the camera sees a point."""
        (height, width), (x, y, z) = self.size, point
        scale = FOCAL * width / z
        return width / 2 + scale * x, HORIZON * height + scale * (EYE_HEIGHT - y)

    def label(self, where: tuple[np.ndarray, np.ndarray], name: str, number: int = 0) -> None:
        """Give pixels their label id; their instance id is the same without a number."""
        self.labels[where] = IDS[name]
        self.instances[where] = number or IDS[name]

    def paint_surface(self, points: Sequence[Point], colour: np.ndarray, name: str) -> None:
        """Fill a flat polygon with a rough colour."""
        corners = np.array([self.pixel(point) for point in points])
        left, top = np.maximum(corners.min(axis=0), 0).astype(int).tolist()
        right, bottom = np.minimum(corners.max(axis=0) + 2, self.size[::-1]).astype(int).tolist()
        if right <= left or bottom <= top:
            return
        stencil = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(stencil).polygon((corners - (left, top)).ravel().tolist(), fill=1)
        rows, columns = np.nonzero(np.asarray(stencil))
        rows, columns = rows + top, columns + left
        rough = 70 * self.grain[rows % 128, columns % 128, None]
        self.colours[rows, columns] = colour + rough
        self.label((rows, columns), name)

    def paint_ground(self) -> None:
        """Sky, roofs and trees that close the street, and strips of ground below the horizon."""
        rng = self.rng
        clouds = smooth_noise(rng, self.size, 5)[..., None]
        self.colours[:] = (150, 180, 215) + 60 * (clouds - 0.5) + rng.uniform(-20, 20)
        self.label((slice(None), slice(None)), "sky")  # type: ignore[arg-type]
        for name, high in (("building", 14), ("vegetation", 7)):
            across, heights = np.linspace(-90, 90, 30).tolist(), rng.uniform(2, high, 30).tolist()
            top = [(x, y, FARTHEST) for x, y in zip(across, heights, strict=True)]
            far = 0.85 * np.array(FRONTS[name])
            self.paint_surface([(-90, 0, FARTHEST), *top, (90, 0, FARTHEST)], far, name)
        for name, colour, (left, right) in (
            ("terrain", (122, 132, 76), (-90, 90)),
            ("sidewalk", (152, 144, 138), self.walk),
            ("road", (100, 99, 103), self.road),
        ):
            self.paint_strip(left, right, rng.normal(colour, 9), name)
        middle = sum(self.road) / 2
        self.paint_strip(middle - 0.1, middle + 0.1, np.array([205, 205, 205]), "road")

    def paint_strip(self, left: float, right: float, colour: np.ndarray, name: str) -> None:
        """Ground of one kind along the street."""
        corners = [
            (left, 0, NEAREST),
            (left, 0, FARTHEST),
            (right, 0, FARTHEST),
            (right, 0, NEAREST),
        ]
        self.paint_surface(corners, colour, name)

    def paint_fronts(self, x: float, owed: list[str]) -> None:
        """Houses, hedges, walls and fences along one side of the street."""
        rng = self.rng
        ends = np.cumsum([NEAREST, *rng.uniform(6, 14, 8)])
        kinds = rng.choice(list(FRONTS), 8, p=[0.6, 0.12, 0.12, 0.16]).tolist()
        kinds[1:3] = owed * 2 or kinds[1:3]
        for kind, (near, far) in reversed([*zip(kinds, pairwise(ends.tolist()), strict=True)]):
            self.paint_front(kind, x, near, far)

    def paint_front(self, kind: str, x: float, near: float, far: float) -> None:
        """A house with bands of windows, a wall with courses, a fence with bars, or a hedge."""
        rng = self.rng
        colour = np.array(FRONTS[kind]) + rng.normal(0, 16) + rng.normal(0, 7, 3)
        high = rng.uniform(8, 18) if kind == "building" else rng.uniform(1.6, 2.6)

        def paint(low: float, top: float, start: float, stop: float, shade: float) -> None:
            corners = [(x, low, start), (x, low, stop), (x, top, stop), (x, top, start)]
            self.paint_surface(corners, shade * colour, kind)

        out = x + float(np.copysign(12, x))
        end = [(x, 0.0, near), (out, 0.0, near), (out, high, near), (x, high, near)]
        self.paint_surface(end, 0.8 * colour, kind)
        paint(0, high, near, far, 0.7 if kind == "fence" else 1)
        if kind == "building":
            for low in np.arange(1, high - 2, 3.2).tolist():
                for z in np.arange(near + 0.6, far - 1.5, 2.6).tolist():
                    paint(low, low + 1.6, z, z + 1.5, 0.45)
        elif kind == "wall":
            for low in np.arange(0.3, high, 0.6).tolist():
                paint(low, min(low + 0.3, high), near, far, 0.82)
        elif kind == "fence":
            for z in np.arange(near, far, 0.5).tolist():
                paint(0, high, z, z + 0.15, 1.5)

    def place_things(self, owed: Sequence[str]) -> list[tuple[float, str, float]]:
        """Distance, name and place across of everything that stands or drives in the street."""
        rng, (left, right) = self.rng, self.road
        things: list[tuple[float, str, float]] = []

        def put(name: str, x: float, near: float, far: float, chance: float = 1) -> None:
            if name in owed or rng.random() < chance:
                things.append((rng.uniform(near, far), name, x))

        for kerb, walk, inward in ((left, self.walk[0], 1), (right, self.walk[1], -1)):
            for z in np.cumsum(rng.uniform(6, 14, 5)).tolist():
                put("car", kerb + inward, z + 4, z + 6, 0.7)
                put("person", walk + inward * rng.uniform(0.4, 1.4), z, z + 3, 0.9)
                put("pole", kerb - inward * 0.4, z, z + 4, 0.4)
                put("vegetation", walk, z + 2, z + 8, 0.3)
            put("traffic light", kerb - inward * 0.4, 7, 14, 0.3)
            put("traffic sign", kerb - inward * 0.5, 6, 11, 0.5)
        put("pole", right + 0.4, 6, 9)
        put("train", left * 0.45, 16, 24, 0.1)
        put("truck", right - 1.4, 13, 18, 0.15)
        put("bus", right * 0.1, 18, 26, 0.15)
        put("car", left * 0.35, 26, 40)
        put("motorcycle", right - rng.uniform(3.2, 4.2), 8, 11, 0.2)
        put("bicycle", right - rng.uniform(1, 1.8), 7, 9, 0.2)
        put("rider", right - rng.uniform(1.5, 2.8), 10, 12, 0.2)
        put("crowd", self.walk[int(rng.integers(2))], 10, 25)
        return things

    def paint_thing(self, name: str, x: float, z: float) -> None:
        """Something with all that belongs to it."""
        if name == "crowd":  # people too close to be told apart: no instances
            for across in (-0.5, 0, 0.5, 0.2):
                self.paint_object("person", x + across, z, group=True)
        elif name == "rider":
            self.paint_object("bicycle", x, z)
            self.paint_object("rider", x, z, up=0.55)
        else:
            held = {"traffic light": 2.6, "traffic sign": 2.2, "vegetation": 0.0}.get(name, 0)
            if held:
                self.paint_object("pole", x, z)
            self.paint_object(name, x, z, up=held)

    def paint_object(
        self, name: str, x: float, z: float, up: float = 0.0, group: bool = False
    ) -> None:
        """One object that faces the camera, ``up`` metres above the ground."""
        rng, look = self.rng, STREET_LOOKS[name]
        high = HEIGHTS[name] * rng.uniform(0.9, 1.1)
        scale = FOCAL * self.size[1] / z
        wide = scale * high * look.aspect * rng.uniform(0.9, 1.1)
        to_pixels = np.diag([wide * rng.choice([-1, 1]), scale * high])
        where = self.stamp(look, to_pixels, np.array(self.pixel((x, up + high / 2, z))))
        number = 0
        if name in TOLD_APART and not group:
            index = self.numbers[IDS[name]] = self.numbers.get(IDS[name], -1) + 1
            number = 1000 * IDS[name] + index
        self.label(where, name, number)

    def paint_borders(self) -> None:
        """What is in every photograph of one camera: its car's bonnet and the frame's edges."""
        height, width = self.size
        rows, columns = np.mgrid[:height, :width]
        bonnet = rows > height * (0.93 + 0.2 * (columns / width - 0.5) ** 2)
        edge = max(FINER * round(height / 400), FINER)
        inside = np.zeros(self.size, bool)
        inside[edge:-edge, edge:-edge] = True
        self.colours[bonnet] = 45 + 60 * self.grain[rows % 128, columns % 128][bonnet, None]
        for where, label_id in ((bonnet, EGO), (~inside, OUT_OF_ROI)):
            self.labels[where] = self.instances[where] = label_id
