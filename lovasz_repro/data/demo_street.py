"""A drawn street: where things are, and how each of the 19 classes of Cityscapes looks.

Ground, sky and house fronts are planes whose textures are computed per pixel; everything that
stands on them is made of polygons, painted from far to near.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from lovasz_repro.data.demo_canvas import (
    IDS,
    ROUND,
    Canvas,
    Colour,
    Shape,
    disc,
    rectangle,
    smooth_noise,
    standing,
    upright,
)

HOUSES = ((168, 150, 126), (150, 98, 82), (176, 172, 166), (132, 126, 120), (188, 168, 118),
          (120, 108, 104))  # fmt: skip
"""Colours of plaster and brick."""
BODIES = {"car": (1.8, 1.45, 4.3), "truck": (2.5, 3.4, 8.0), "bus": (2.55, 3.1, 12.0),
          "train": (2.6, 3.5, 26.0), "trailer": (2.0, 2.2, 4.5)}  # fmt: skip
"""Width, height and length of vehicles, metres."""
SIGNS = (((205, 35, 35), (240, 238, 232)), ((40, 75, 180), (60, 95, 200)),
         ((235, 200, 40), (245, 225, 120)))  # fmt: skip
"""Rim and face of signs."""

GLASS, UNDERBODY = (47, 54, 65), (28, 28, 30)
CAR: tuple[Shape, Shape, Shape] = (
    [(-0.5, 0.3), (-0.5, 0.95), (-0.38, 1.45), (0.38, 1.45), (0.5, 0.95), (0.5, 0.3)],
    [(0, 0.3), (0, 1.0), (0.1, 1.45), (0.62, 1.45), (0.78, 0.98), (1, 0.85), (1, 0.3)],
    [(-0.41, 0.98), (-0.33, 1.38), (0.33, 1.38), (0.41, 0.98)],
)
"""End, side and windscreen."""
MOTORCYCLE = [(-0.6, 0.45), (-0.5, 0.85), (0.1, 0.8), (0.35, 1.05), (0.5, 0.8), (0.3, 0.3),
              (-0.3, 0.25)]  # fmt: skip
BICYCLE = [(-0.55, 0.34), (-0.2, 0.85), (0.4, 0.85), (0.0, 0.32)]


class Street:
    """One street: where things are, and how they look."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.canvas = Canvas(rng, size)
        self.grain = 0.6 * rng.uniform(-1, 1, (128, 128)) + smooth_noise(rng, (128, 128), 24) - 0.5
        half, right = rng.uniform(4.2, 6.2), rng.uniform(0.5, 1.5)
        self.middle = -right  # the camera drives on the right
        self.road = -half - right, half - right
        walks = rng.uniform(2.5, 5, 2)
        self.walk = self.road[0] - walks[0], self.road[1] + walks[1]

    def build(self, owed: Sequence[str]) -> None:
        """Paint everything, with the classes that this street owes well in view."""
        rng = self.rng
        grown = "terrain" in owed or rng.random() < 0.3
        verges = rng.uniform(1.5, 4, 2) if grown else np.zeros(2)
        self.front = self.walk[0] - verges[0], self.walk[1] + verges[1]
        self.paint_ground(tracks="train" in owed)
        self.paint_sky()
        self.paint_skyline()
        for side in (0, 1):
            self.paint_fronts(
                side, [name for name in ("wall", "fence")[side : side + 1] if name in owed]
            )
        for _, _, paint in sorted(self.place_things(owed), key=lambda thing: -thing[0]):
            paint()
        self.paint_borders()

    # ---- planes ------------------------------------------------------------------------------

    def paint_sky(self) -> None:
        """Clouds on a gradient, above the horizon."""
        canvas, top = self.canvas, int(self.canvas.horizon) + 1
        clouds = smooth_noise(self.rng, (top, canvas.size[1]), 5)[..., None]
        blue = np.array([135, 175, 225]) + self.rng.uniform(-30, 30)
        up = np.linspace(1, 0, top)[:, None, None] * (1 - clouds * self.rng.uniform(0.3, 1))
        canvas.colours[:top] = canvas.haze * 1.12 + (blue - canvas.haze) * up
        canvas.ids[:top] = canvas.instances[:top] = IDS["sky"]

    def paint_ground(self, tracks: bool) -> None:
        """Road, sidewalks, verges, and the rails of a tram, by where a pixel's ray meets Y = 0."""
        canvas, rng = self.canvas, self.rng
        top = int(canvas.horizon) + 1
        rows, columns = np.mgrid[top : canvas.size[0], : canvas.size[1]]
        z = canvas.focal * canvas.HEIGHT / (rows - canvas.horizon + 0.5)
        x = (columns - canvas.centre) * z / canvas.focal
        grain = self.grain[rows % 128, columns % 128][..., None]
        ids = np.full(x.shape, IDS["terrain"], np.uint8)
        colours = (rng.normal([125, 135, 75], 12, 3) + 45 * grain).astype(np.float32)
        paved = (x > self.walk[0]) & (x < self.walk[1])
        joints = ((x % 0.8 < 0.06) | (z % 0.8 < 0.06)) & (z < 25)
        slabs = (
            [150, 142, 136]
            + rng.normal(0, [12, 4, 4]).cumsum()
            + 16 * grain
            - 28 * joints[..., None]
        )
        driven = (x > self.road[0]) & (x < self.road[1])
        lines = (np.abs(x - self.middle) < 0.09) & (z % 6 < 3)
        lines |= np.abs(np.abs(x - self.middle) - (self.road[1] - self.middle - 2.3)) < 0.06
        asphalt = (
            [102, 100, 104]
            + rng.normal(0, [12, 3, 3]).cumsum()
            + 20 * grain
            + 105 * lines[..., None]
        )
        kerb = ((np.abs(x - self.road[0]) < 0.12) | (np.abs(x - self.road[1]) < 0.12))[..., None]
        for where, name, colour in ((paved, "sidewalk", slabs), (driven, "road", asphalt)):
            ids = np.where(where, IDS[name], ids)
            colours = np.where(where[..., None], colour, colours)
        colours = np.where(kerb, 180 + 20 * grain, colours)
        if tracks:
            from_centre = np.abs(x - (self.road[0] + self.middle) / 2)
            ids = np.where(from_centre < 1.3, IDS["rail track"], ids)
            colours = np.where((np.abs(from_centre - 0.72) < 0.07)[..., None], 60, colours)
        canvas.ids[top:] = canvas.instances[top:] = ids
        canvas.colours[top:] = canvas.hazy(colours, z[..., None])

    def paint_skyline(self) -> None:
        """What closes the street: roofs and tree tops far away."""
        for name, z, colour in (
            ("building", 140, (110, 105, 105)),
            ("vegetation", 125, (70, 90, 55)),
        ):
            across = np.linspace(-90, 90, 30)
            heights = self.rng.uniform(2, 16 if name == "building" else 9, 30)
            if name == "building":
                across, heights = across.repeat(2)[1:], heights.repeat(2)[:-1]
            top = [(float(x), float(y), float(z)) for x, y in zip(across, heights, strict=True)]
            self.canvas.paint([(-90, 0, z), *top, (90, 0, z)], self.grainy(colour, 30), name)

    def paint_fronts(self, side: int, owed: list[str]) -> None:
        """Houses, trees, walls and fences along one side of the street, from far to near."""
        rng, plane = self.rng, self.front[side]
        ends = np.cumsum([3.5, *rng.uniform(6, 18, 12)])
        kinds = rng.choice(["building", "vegetation", "wall", "fence"], 12, p=[0.6, 0.2, 0.1, 0.1])
        kinds[1:3] = owed * 2 or kinds[1:3]
        paint = {
            "building": self.paint_house,
            "vegetation": self.paint_garden,
            "wall": self.paint_wall,
            "fence": self.paint_fence,
        }
        for kind, (near, far) in reversed([*zip(kinds, pairwise(ends), strict=True)]):
            paint[str(kind)](plane, float(near), float(far))

    def paint_house(self, x: float, near: float, far: float) -> None:
        """A front with rows of windows, and the gable that closes it towards the camera."""
        rng = self.rng
        base = np.array(HOUSES[rng.integers(len(HOUSES))]) + rng.normal(0, 10, 3)
        height, storey, bay = rng.uniform(8, 19), rng.uniform(2.9, 3.6), rng.uniform(1.8, 3.2)
        lit = rng.uniform(0, 1, (32, 32)) ** 2
        canvas = self.canvas

        def look(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
            z = canvas.focal * x / np.where(columns == canvas.centre, 1, columns - canvas.centre)
            y = canvas.HEIGHT - (rows - canvas.horizon) * z / canvas.focal
            window = (z / bay % 1 > 0.28) & (z / bay % 1 < 0.78) & (y / storey % 1 > 0.3)
            window &= (y / storey % 1 < 0.82) & (y < height - 0.6)
            shine = lit[(z / bay).astype(int) % 32, (y / storey).astype(int) % 32]
            glass = np.array([55, 62, 72]) + 90 * shine[:, None]
            plinth = np.where(y < 0.9, 0.7, 1)[:, None]
            ledge = np.where(y / storey % 1 < 0.06, 22, 0)[:, None]
            plaster = base * plinth + ledge + 26 * self.grain[rows % 128, columns % 128][:, None]
            return np.where(window[:, None], glass, plaster)

        gable = rectangle(0, np.copysign(12, x), 0, height)
        self.canvas.paint(standing(gable, x, near), self.grainy(base * 0.8, 22), "building")
        self.canvas.paint(upright(x, 0, height, near, far), look, "building")

    def paint_garden(self, x: float, near: float, far: float) -> None:
        """A hedge with trees behind it."""
        for z in np.arange(far, near, -self.rng.uniform(3, 5)):
            self.paint_tree(x + np.copysign(self.rng.uniform(1.5, 4), x), float(z))
        hedge = upright(x, 0, self.rng.uniform(0.7, 1.6), near, far)
        self.canvas.paint(hedge, self.grainy((62, 84, 48), 50), "vegetation")

    def paint_wall(self, x: float, near: float, far: float) -> None:
        """Courses of stone, often with trees behind."""
        if self.rng.random() < 0.6:
            self.paint_tree(x + np.copysign(3, x), (near + far) / 2)
        base, height = self.rng.normal([142, 126, 112], 12, 3), self.rng.uniform(2, 3.2)
        for low in np.arange(0, height, 0.4).tolist():
            colour = base * self.rng.uniform(0.82, 1.08)
            course = upright(x, low, min(low + 0.4, height), near, far)
            self.canvas.paint(course, self.grainy(colour, 30), "wall")

    def paint_fence(self, x: float, near: float, far: float) -> None:
        """Bars through which bushes show."""
        base, height = self.rng.normal([95, 100, 98], 15, 3), self.rng.uniform(1.3, 2.0)
        for z in np.arange(far, near, -4):
            self.paint_bush(x + np.copysign(1.5, x), float(z))
        self.canvas.paint(upright(x, 0, height, near, far), base * 0.75, "fence", 0.45)
        posts = np.arange(far - 0.1, near, -0.35).tolist()
        bars = [upright(x, 0, height, z, z + 0.1) for z in posts]
        rails = [upright(x, y, y + 0.12, near, far) for y in (0.15, height - 0.15)]
        for part in bars + rails:
            self.canvas.paint(part, base * 1.25, "fence")

    def paint_borders(self) -> None:
        """What is in every photograph of one camera: its car's bonnet and the frame's edges."""
        canvas, rng = self.canvas, self.rng
        height, width = canvas.size
        rows, columns = np.mgrid[:height, :width]
        rise = 1 - ((columns - canvas.centre) / (0.6 * width)) ** 2
        shine = 40 + 50 * (rows / height > 0.97) + 25 * self.grain[rows % 128, columns % 128]
        edge = max(2 * round(height / 400), 2)
        ragged = edge + rng.integers(0, 2, height // 8 + 1).repeat(8)[:height, None] * edge
        sides = np.minimum(columns, width - 1 - columns)
        roi = np.minimum(sides, np.minimum(rows, height - 1 - rows)) >= edge
        for where, name, colour in (
            (rows > height * (1 - 0.07 * rise), "ego vehicle", shine),
            (sides < ragged, "rectification border", np.zeros_like(shine)),
            (~roi, "out of roi", None),
        ):
            if colour is not None:
                canvas.colours[where] = colour[where][:, None] * (0.9, 0.95, 1.05)
            canvas.ids[where] = canvas.instances[where] = IDS[name]

    # ---- things ------------------------------------------------------------------------------

    def place_things(self, owed: Sequence[str]) -> list[tuple[float, int, Callable[[], None]]]:
        """Everything that stands or drives in the street, with its distance."""
        rng, things = self.rng, []  # type: ignore[var-annotated]

        def put(z: float, paint: Callable[..., None], *arguments: object) -> None:
            things.append((float(z), len(things), lambda: paint(*arguments, float(z))))

        def may(name: str, chance: float) -> bool:
            return name in owed or bool(rng.random() < chance)

        for side, inward in ((0, 1), (1, -1)):
            kerb, walk = self.road[side] + inward * 1.1, self.walk[side]
            z, full = rng.uniform(7, 12), rng.choice([0.1, 0.5, 0.9])
            while z < 70:
                if rng.random() < full:
                    put(z, self.paint_vehicle, "car", kerb, bool(side))
                z += rng.uniform(5.2, 11)
            for z in np.cumsum(rng.uniform(5, 12, 6)):
                put(z + 3, self.paint_person, walk + inward * rng.uniform(0.5, 1.6))
            for z in np.cumsum(rng.uniform(7, 16, 5)):
                carries = rng.choice(["", "traffic light", "traffic sign"], p=[0.5, 0.2, 0.3])
                put(z + 2, self.paint_pole, self.road[side] - inward * 0.4, carries)
            if rng.random() < 0.6:
                put(rng.uniform(9, 30), self.paint_tree, walk)
            if rng.random() < 0.5:
                put(rng.uniform(8, 20), self.paint_bin, self.road[side] - inward * 0.9)
        oncoming, own = (self.road[0] + self.middle) / 2, (self.road[1] + self.middle) / 2 - 0.8
        tram, truck = may("train", 0.12), may("truck", 0.12)
        if truck:
            lane = self.road[1] - 1.4 if tram else oncoming
            put(rng.uniform(10, 18), self.paint_vehicle, "truck", lane, tram)
        for name, z in zip(["train" if tram else "car", "car"], (24, 60), strict=True):
            put(z + rng.uniform(-10, 0), self.paint_vehicle, name, oncoming, False)
        leader = "bus" if may("bus", 0.12) else "car"
        put(rng.uniform(16, 30), self.paint_vehicle, leader, own, True)
        put(rng.uniform(45, 80), self.paint_vehicle, "car", own, True)
        if rng.random() < 0.15:
            put(rng.uniform(15, 30), self.paint_vehicle, "trailer", self.road[1] - 1.2, True)
        for name, distance in (("motorcycle", 10), ("bicycle", 6)):
            if may(name, 0.2) or may("rider", 0.2):
                put(
                    distance + rng.uniform(0, 5),
                    self.paint_cycle,
                    name,
                    self.road[1] - rng.uniform(1.5, 3.5),
                    True,
                )
            if may(name, 0.3):
                put(rng.uniform(6, 12), self.paint_cycle, name, self.walk[1] - 0.8, False)
        for name in ("traffic light", "traffic sign"):
            if name in owed:
                put(rng.uniform(6, 9), self.paint_pole, self.road[1] + 0.5, name)
        put(rng.uniform(12, 30), self.paint_crowd, self.walk[int(rng.integers(2))])
        return things

    def paint_vehicle(self, name: str, x: float, from_behind: bool, z: float) -> None:
        """A car, or a box on wheels: the side that is in view, then the end."""
        paint, label = self.canvas.paint, self.canvas.instance(name)
        width, height, length = BODIES[name]
        body = vehicle_colour(self.rng, name)
        end, side, pane = CAR if name == "car" else box_shapes(height)
        left, right = x - width / 2, x + width / 2
        shadow = [(left - 0.2, 0, z - 0.2), (right + 0.2, 0, z - 0.2),
                  (right + 0.2, 0, z + length), (left - 0.2, 0, z + length)]  # fmt: skip
        paint(shadow, (35, 35, 38), None, 0.6)
        flank = left if left > 0 else right if right < 0 else None
        if flank is not None:
            paint(upright(flank, 0.12, 0.5, z + 0.1, z + length - 0.1), UNDERBODY, label)
            outline = [(flank, y, z + length * along) for along, y in side]
            paint(outline, self.grainy(0.8 * body, 10), label)
            if name == "car":  # the corner post between them
                post = x + np.copysign(0.38 * width, flank - x)
                corner = [(flank, 0.95, z), (post, 1.45, z), (flank, 1.45, z + 0.1 * length)]
                paint(corner, self.grainy(0.85 * body, 10), label)
            self.paint_flank(name, flank, z, label)
        paint(standing(rectangle(-0.46, 0.46, 0.08, 0.4), x, z, width), UNDERBODY, label)
        paint(standing(end, x, z, width), self.grainy(body, 10), label)
        if name != "trailer" and not (name == "truck" and from_behind):
            paint(standing(pane, x, z, width), GLASS, label)
        for low in (-0.47, 0.3):
            lamp = standing(rectangle(low, low + 0.17, 0.65, 0.85), x, z, width)
            paint(lamp, (200, 30, 25) if from_behind else (245, 240, 205), label)
        if z < 20:
            plate = standing(rectangle(-0.15, 0.15, 0.42, 0.56), x, z, width)
            paint(plate, (225, 225, 215), "unlabelled")

    def paint_flank(self, name: str, x: float, z: float, label: tuple[str, int]) -> None:
        """Windows and wheels of a vehicle's side."""
        _, height, length = BODIES[name]
        low, high = (0.98, 1.36) if name == "car" else (0.5 * height, 0.85 * height)
        rows = {"car": [0.14, 0.37, 0.6], "truck": [0.85, 0.97], "trailer": []}
        pillars = rows.get(name, np.linspace(0.02, 0.98, round(length / 1.6)).tolist())
        for start, stop in pairwise(pillars):
            pane = upright(x, low, high, z + length * start, z + length * (stop - 0.02))
            self.canvas.paint(pane, GLASS, label)
        radius = 0.32 if name == "car" else 0.48
        for along in () if name == "train" else (0.19, 0.81):
            for share, colour in ((1.0, (25, 25, 27)), (0.5, (120, 120, 122))):
                tyre = [(x, radius + y, z + length * along + on)
                        for on, y in disc(0, 0, share * radius)]  # fmt: skip
                self.canvas.paint(tyre, colour, label)

    def paint_person(
        self, x: float, z: float, name: str = "person", group: bool = False, up: float = 0.0
    ) -> None:
        """Legs, coat, arms and head; a rider sits ``up`` metres higher and bends the legs."""
        rng = self.rng
        label = (name, IDS[name]) if group else self.canvas.instance(name)
        tall = 1.0 if up else rng.uniform(0.85, 1.08)
        coat, trousers = rng.uniform(25, 190, 3), rng.uniform(25, 95, 3)
        skin = np.array([205, 160, 135]) * rng.uniform(0.55, 1.05)
        stride, lean = rng.uniform(0.05, 0.25), 0.12 if up else 0.0
        cap = (210, 205, 60) if up and rng.random() < 0.7 else rng.uniform(25, 110, 3)

        def paint(shape: Shape, colour: Colour, rough: float) -> None:
            points = standing([(tall * across, tall * y) for across, y in shape], x, z, 1, up)
            self.canvas.paint(points, self.grainy(colour, rough), label)

        foot = 0.42 if up else 0.0
        for way in (-1, 1):
            ankle, hand = way * stride, way * 0.29
            paint([(way * 0.03, 0.88), (way * 0.17, 0.88), (ankle + 0.06, foot),
                   (ankle - 0.06, foot)], trousers, 14)  # fmt: skip
            paint([(way * 0.2 + lean, 1.42), (hand + lean, 1.4), (hand + way * 0.04, 0.85),
                   (hand - way * 0.04, 0.85)], 0.85 * coat, 14)  # fmt: skip
        paint([(-0.2, 0.8), (-0.22 + lean, 1.44), (0.22 + lean, 1.44), (0.2, 0.8)], coat, 18)
        paint(disc(lean, 1.58, 0.13), skin, 4)
        paint([(across, max(y, 1.64)) for across, y in disc(lean, 1.62, 0.14)], cap, 8)

    def paint_crowd(self, x: float, z: float) -> None:
        """People too close to be told apart: a region without instances."""
        for step in range(6):
            self.paint_person(x + 0.45 * (step % 3 - 1), z + 1.2 - 0.2 * step, group=True)

    def paint_cycle(self, name: str, x: float, ridden: bool, z: float) -> None:
        """A bicycle or a motorcycle, with its rider or standing."""
        rng, paint, label = self.rng, self.canvas.paint, self.canvas.instance(name)
        turn, heavy = rng.uniform(0.6, 1.0), name == "motorcycle"
        body = rng.uniform(20, 200, 3) * (0.7 if heavy else 1.0)
        for wheel in (-0.55, 0.55):
            paint(standing(disc(wheel, 0.34, 0.34), x, z, turn), (22, 22, 24), label)
            spokes = standing(disc(wheel, 0.34, 0.27), x, z, turn)
            paint(spokes, (125, 125, 122), label, 0.2 if heavy else 0.7)
        if ridden:
            self.paint_person(x, z, "rider", up=0.12)
        opacity = 1.0 if heavy else 0.75
        frame = standing(MOTORCYCLE if heavy else BICYCLE, x, z, turn)
        paint(frame, self.grainy(body, 10), label, opacity)
        paint(standing(rectangle(0.38, 0.58, 1.05, 1.12), x, z, turn), UNDERBODY, label)

    def paint_pole(self, x: float, carries: str, z: float) -> None:
        """A pole: of a street lamp, a traffic light or a traffic sign."""
        rng, paint = self.rng, self.canvas.paint
        grey = rng.normal(118, 14) * np.array([1, 1, 1.02])
        top = {"": 6.0, "traffic light": 3.7}.get(carries, rng.uniform(2.7, 3.2))
        paint(standing(rectangle(-0.08, 0.08, 0, top), x, z), self.grainy(grey, 12), "pole")
        if carries == "traffic light":
            case = rectangle(-0.24, 0.24, top - 1.1, top + 0.1)
            paint(standing(case, x, z), (32, 34, 32), carries)
            lit = int(rng.integers(3))
            for lamp, bright in enumerate(((70, 235, 120), (250, 190, 50), (250, 55, 40))):
                colour = np.array(bright) * (1.0 if lamp == lit else 0.25)
                paint(standing(disc(0, top - 0.85 + 0.36 * lamp, 0.14), x, z), colour, carries)
        elif carries == "traffic sign":
            corners = (ROUND, ROUND[::4] + np.pi / 6, ROUND[::3] + np.pi / 4)[int(rng.integers(3))]
            rim, face = SIGNS[int(rng.integers(len(SIGNS)))]
            for radius, paintwork in ((0.42, rim), (0.28, face)):
                paint(standing(disc(0, top, radius, corners), x, z), paintwork, carries)
        else:
            arm = -np.copysign(1.6, x)
            reach = rectangle(min(0, arm), max(0, arm), top - 0.1, top)
            paint(standing(reach, x, z), grey, "pole")

    def paint_tree(self, x: float, z: float) -> None:
        """A trunk and a crown of overlapping clumps."""
        rng, tall = self.rng, self.rng.uniform(4, 7.5)
        trunk = standing(rectangle(-0.16, 0.16, 0, 0.6 * tall), x, z)
        self.canvas.paint(trunk, self.grainy((78, 66, 54), 20), "vegetation")
        green = rng.normal([72, 96, 50], 10, 3)
        for _ in range(9):
            across, y = rng.normal(0, 0.17 * tall), tall * rng.uniform(0.5, 0.95)
            self.paint_clump(x + across, y, z, rng.uniform(0.12, 0.22) * tall, green)

    def paint_bush(self, x: float, z: float) -> None:
        """A low clump."""
        self.paint_clump(x, 0.9, z, self.rng.uniform(0.8, 1.3), np.array([70, 92, 50]))

    def paint_clump(self, x: float, y: float, z: float, radius: float, green: np.ndarray) -> None:
        """Leaves: a ragged disc."""
        reach = radius * self.rng.uniform(0.75, 1.2, len(ROUND))
        edge = [
            (x + r * np.cos(a), max(y + r * np.sin(a), 0), z)
            for r, a in zip(reach, ROUND, strict=True)
        ]
        self.canvas.paint(edge, self.grainy(green * self.rng.uniform(0.75, 1.2), 60), "vegetation")

    def paint_bin(self, x: float, z: float) -> None:
        """Something that is in no class: a bin, or a dog."""
        name, tall = ("static", 1.1) if self.rng.random() < 0.6 else ("dynamic", 0.6)
        colour = self.grainy(self.rng.uniform(40, 160, 3), 12)
        self.canvas.paint(standing(rectangle(-0.3, 0.3, 0, tall), x, z), colour, name)

    def grainy(
        self, colour: Colour, amount: float
    ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """A colour with a rough surface."""
        return lambda rows, columns: (
            np.asarray(colour) + amount * self.grain[rows % 128, columns % 128][:, None]
        )


def vehicle_colour(rng: np.random.Generator, name: str) -> np.ndarray:
    """Cars have any paint, most of them grey; others what their kind is known for."""
    if name == "car":
        paint = rng.uniform(20, 215) * np.ones(3)
        return paint if rng.random() < 0.6 else rng.uniform(15, 190, 3)
    usual = {
        "truck": (205, 203, 196),
        "bus": (214, 170, 48),
        "train": (178, 44, 40),
        "trailer": (150, 150, 155),
    }
    return rng.normal(usual[name], 18, 3)


def box_shapes(height: float) -> tuple[Shape, Shape, Shape]:
    """End, side and windscreen of a vehicle that is a box, like ``CAR``."""
    end, pane = rectangle(-0.5, 0.5, 0.3, height), (0.55 * height, 0.9 * height)
    return end, rectangle(0, 1, 0.3, height), rectangle(-0.42, 0.42, *pane)
