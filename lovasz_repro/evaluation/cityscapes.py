"""The official Cityscapes scores: IoU and iIoU of classes and categories (Sec. 4.4, Table 4).

With R the (label, prediction) counts of all pixels whose label is scored
(mcordts/cityscapesScripts: cityscapesscripts/evaluation/evalPixelLevelSemanticLabeling.py):

* Class IoU = TP / (TP + FP + FN) of each of the 19 classes. A scored pixel that is predicted as an
  id that is not scored is a miss; whatever is predicted on other pixels does not count.
* Category IoU: the same, where classes of one category count as one.
* Class iIoU = iTP / (iTP + FP + iFN) of the 8 classes that have instances. Pixels of an instance
  are weighted by average size of its class / size of the instance: each counts as much as an
  average one, so iTP + iFN is the number of instances times that average, and iTP is what share of
  them was found. Regions of several objects ("groups", instance ids below 1000) are no instances.
  False positives, unweighted, come from everywhere.
* Category iIoU: likewise, for human and vehicle. Here caravan and trailer, which are not scored,
  are vehicles too when they are predicted: right on another vehicle, wrong elsewhere.

Everything that is streamed is a sum over images, so parts of a set add up.
"""

import copy
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, distributed

from lovasz_repro.data.cityscapes import Frame, read_instances, read_label_ids
from lovasz_repro.data.classes import CITYSCAPES
from lovasz_repro.errors import UserError, install
from lovasz_repro.host.processes import mapped
from lovasz_repro.metrics import sum_over_ranks

LABELS = 34
"""Official label ids are 0..33; the instance ids of label l are l * 1000 .. l * 1000 + 999."""
CLASSES = dict(zip(CITYSCAPES.names[1:], CITYSCAPES.label_ids[1:], strict=True))
"""Scored class -> official label id; 19, in official order."""
CATEGORIES: dict[str, tuple[str, ...]] = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
CARAVAN, TRAILER = 29, 30
INSTANCE_CATEGORIES: dict[str, tuple[int, ...]] = {"human": (), "vehicle": (CARAVAN, TRAILER)}
"""Categories that have instances -> ids that are not scored, but count as theirs in the iIoU."""
AVERAGE_SIZES = {  # pixels: evalPixelLevelSemanticLabeling.py, avgClassSize
    "person": 3462.4756337644,
    "rider": 3930.4788056518,
    "car": 12794.0202738185,
    "truck": 27855.1264367816,
    "bus": 35732.1511111111,
    "train": 67583.7075812274,
    "motorcycle": 6298.7200839748,
    "bicycle": 4672.3249222261,
}
LABEL_TYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)

_SCORED = torch.tensor(list(CLASSES.values()))  # (19,)
_THINGS = torch.tensor([CLASSES[name] for name in AVERAGE_SIZES])  # (8,)
_SIZES = torch.tensor(list(AVERAGE_SIZES.values()), dtype=torch.float64)
_STUFF = torch.tensor([label for name, label in CLASSES.items() if name not in AVERAGE_SIZES])


@dataclass(frozen=True)
class CityscapesScores:
    """Fractions in [0, 1]; NaN for what neither labels nor predictions contain.

    The first four are means over the entries of the dicts below them that are not NaN.
    """

    class_iou: float
    class_iiou: float
    category_iou: float
    category_iiou: float
    classes: dict[str, float]
    """IoU of the 19 classes."""
    class_instances: dict[str, float]
    """iIoU of the 8 classes that have instances."""
    categories: dict[str, float]
    """IoU of the 7 categories."""
    category_instances: dict[str, float]
    """iIoU of human and vehicle."""

    def as_metrics(self, split: str) -> dict[str, float]:
        """Named for the store: ``<split>/dataset_miou`` (the class IoU) and so on."""
        parts = {
            "iou": self.classes,
            "iiou": self.class_instances,
            "categories/iou": self.categories,
            "categories/iiou": self.category_instances,
        }
        return {
            f"{split}/dataset_miou": self.class_iou,
            f"{split}/class_iiou": self.class_iiou,
            f"{split}/category_iou": self.category_iou,
            f"{split}/category_iiou": self.category_iiou,
        } | {
            f"{split}/{part}/{name}": score
            for part, scores in parts.items()
            for name, score in scores.items()
        }

    def summary(self) -> str:
        """ "Class IoU 60.40%, iIoU 36.20%, Category IoU 80.00%, iIoU 63.90%"."""
        return (
            f"Class IoU {self.class_iou:.2%}, iIoU {self.class_iiou:.2%}, "
            f"Category IoU {self.category_iou:.2%}, iIoU {self.category_iiou:.2%}"
        )


class CityscapesCounts:
    """Streaming counts over a set of images of any sizes; all on the CPU.

    `pairs` is (34, 34) int64, pixels by [label id, predicted id]. By class with instances, in the
    order of AVERAGE_SIZES: `instances` is (8,) int64, how many there are, and `found` is (2, 8)
    float64, the share of each instance's pixels that was predicted as its class (row 0), or as its
    category (row 1), added up.
    """

    def __init__(self) -> None:
        self.pairs = torch.zeros(LABELS, LABELS, dtype=torch.int64)
        self.instances = torch.zeros(len(_THINGS), dtype=torch.int64)
        self.found = torch.zeros(2, len(_THINGS), dtype=torch.float64)

    def update(self, predictions: Tensor, label_ids: Tensor, instance_ids: Tensor) -> None:
        """Add B images, each (B, H, W) integers on one device.

        Arguments:
            predictions: official label ids, 0..33.
            label_ids: likewise.
            instance_ids: of an instance, its label id * 1000 + a number 0..999; elsewhere the
                label id (whatever is at most 1000 is no instance).

        Raises:
            TypeError: no integers.
            ValueError: shapes or devices differ, an id is unknown, or an instance is of a scored
                class that has none. Nothing is added then.
        """
        _check_images(predictions, label_ids, instance_ids)
        if predictions.numel() == 0:
            return
        images = zip(predictions, label_ids, instance_ids, strict=True)
        for pairs, instances, found in [_count_image(*image) for image in images]:
            self._add(pairs, instances, found)

    def merge(self, other: "CityscapesCounts") -> None:
        """Add the counts of another part of the same set."""
        self._add(other.pairs, other.instances, other.found)

    def over_ranks(self, group: distributed.ProcessGroup) -> Self:
        """The counts of all ranks, the same on each; this part stays as it is."""
        total = type(self)()
        parts = (self.pairs, self.instances, self.found)
        total._add(*(sum_over_ranks(part, group) for part in parts))
        return total

    def scores(self) -> CityscapesScores:
        """What all images together score; all NaN before the first."""
        scored = torch.zeros_like(self.pairs)
        scored[_SCORED] = self.pairs[_SCORED]
        classes = _iou(scored)[_SCORED]
        class_instances = self._class_instances(scored)
        categories = _iou(_by_category(scored))[: len(CATEGORIES)]
        category_instances = self._category_instances(scored)
        return CityscapesScores(
            classes.nanmean().item(),
            class_instances.nanmean().item(),
            categories.nanmean().item(),
            category_instances.nanmean().item(),
            _named(CLASSES, classes),
            _named(AVERAGE_SIZES, class_instances),
            _named(CATEGORIES, categories),
            _named(INSTANCE_CATEGORIES, category_instances),
        )

    def _class_instances(self, scored: Tensor) -> Tensor:
        """iIoU of the classes with instances -> (8,) float64."""
        wrong = (scored.sum(dim=0) - scored.diagonal())[_THINGS]
        return self.found[0] * _SIZES / (self.instances * _SIZES + wrong)

    def _category_instances(self, scored: Tensor) -> Tensor:
        """iIoU of the categories with instances -> (2,) float64."""
        scores = []
        for category in INSTANCE_CATEGORIES:
            sizes = _SIZES * torch.tensor([n in CATEGORIES[category] for n in AVERAGE_SIZES])
            elsewhere = scored.clone()
            elsewhere[_label_ids(category)] = 0
            wrong = elsewhere[:, _instance_label_ids(category)].sum()
            found, total = (self.found[1] * sizes).sum(), (self.instances * sizes).sum()
            scores.append(found / (total + wrong))
        return torch.stack(scores)

    def _add(self, pairs: Tensor, instances: Tensor, found: Tensor) -> None:
        self.pairs += pairs
        self.instances += instances
        self.found += found


def _count_image(prediction: Tensor, labels: Tensor, instances: Tensor) -> tuple[Tensor, ...]:
    """Pairs (34, 34), instances (8,) and what was found of them (2, 8), of one image (H, W).

    Masks consist of runs of equal pixels, thirty times fewer: those are looked up and counted.
    """
    first, lengths = _runs(prediction, labels, instances)
    predicted, label, instance = (
        ids.reshape(-1).index_select(0, first).long() for ids in (prediction, labels, instances)
    )
    pairs = _sum_by(label * LABELS + predicted, lengths, LABELS**2)
    relation = _RELATION.to(instance.device)[instance // 1000 * LABELS + predicted]
    counts = _sum_by(instance * 3 + relation, lengths, LABELS * 1000 * 3)
    counts = counts.view(LABELS, 1000, 3).cpu()
    if counts[_STUFF].any():
        label, number = counts[_STUFF].sum(dim=2).nonzero()[0].tolist()
        raise ValueError(f"instance id {_STUFF[label] * 1000 + number} is of a class without any")
    counts = counts[_THINGS]  # (8, 1000, 3)
    sizes = counts.sum(dim=2)
    found = torch.stack([counts[..., 2], counts[..., 1:].sum(dim=2)])  # (2, 8, 1000)
    shares = found.double() / sizes.clamp(min=1)
    return pairs.view(LABELS, LABELS).cpu(), (sizes > 0).sum(dim=1), shares.sum(dim=2)


def _runs(*images: Tensor) -> tuple[Tensor, Tensor]:
    """Where, in row-major order, any of some images (H, W) changes: first pixels and lengths."""
    flat = [image.reshape(-1) for image in images]
    if flat[0].device.type == "cpu":  # NumPy takes half the time
        ends = torch.from_numpy(np.flatnonzero(_changes([ids.numpy() for ids in flat])))
    else:
        ends = _changes(flat).nonzero().squeeze(1)
    first = torch.cat([ends.new_zeros(1), ends + 1])
    return first, first.diff(append=first.new_tensor([len(flat[0])]))


def _changes(images: list[Any]) -> Any:
    """Where any of some images (N,) differs from the next pixel -> (N - 1,) bool."""
    changes = images[0][1:] != images[0][:-1]
    for ids in images[1:]:
        changes |= ids[1:] != ids[:-1]
    return changes


def _sum_by(bins: Tensor, values: Tensor, count: int) -> Tensor:
    """Add the values of each bin -> (count,), exactly and in no order that matters."""
    return values.new_zeros(count).index_add_(0, bins, values)


def _iou(counts: Tensor) -> Tensor:
    """IoU from counts (C, C) [label, prediction] -> (C,) float64; 0/0 is NaN."""
    intersection = counts.diagonal()
    return intersection.double() / (counts.sum(dim=0) + counts.sum(dim=1) - intersection)


def _by_category(scored: Tensor) -> Tensor:
    """Counts (34, 34) by label -> (8, 8) by category; the last is what belongs to none."""
    member = torch.zeros(LABELS, len(CATEGORIES) + 1, dtype=torch.int64)
    for index, category in enumerate(CATEGORIES):
        member[_label_ids(category), index] = 1
    member[:, -1] = 1 - member.sum(dim=1)
    return member.T @ scored @ member


def _label_ids(category: str) -> list[int]:
    """Of the scored classes of a category."""
    return [CLASSES[name] for name in CATEGORIES[category]]


def _instance_label_ids(category: str) -> list[int]:
    """All that count as a category with instances in its iIoU."""
    return [*_label_ids(category), *INSTANCE_CATEGORIES[category]]


def _relation() -> Tensor:
    """Of a class with a prediction -> (34 * 34,): 2 is the class, 1 its category, 0 other."""
    relation = torch.zeros(LABELS, LABELS, dtype=torch.int64)
    for category in INSTANCE_CATEGORIES:
        for label in _label_ids(category):
            relation[label, _instance_label_ids(category)] = 1
    return relation.fill_diagonal_(2).flatten()


_RELATION = _relation()


def _named(names: Iterable[str], scores: Tensor) -> dict[str, float]:
    return dict(zip(names, scores.tolist(), strict=True))


def _check_images(predictions: Tensor, label_ids: Tensor, instance_ids: Tensor) -> None:
    """One shape (B, H, W), one device, integers in range."""
    given = {"predictions": predictions, "label_ids": label_ids, "instance_ids": instance_ids}
    for name, ids in given.items():
        if ids.dtype not in LABEL_TYPES:
            raise TypeError(f"{name} must be integer ids, got {ids.dtype}")
        if ids.ndim != 3 or ids.shape != predictions.shape:
            raise ValueError(f"{name} must be (B, H, W), like predictions, got {tuple(ids.shape)}")
        if ids.device != predictions.device:
            raise ValueError(f"{name} must be on {predictions.device}, got {ids.device}")
    if predictions.numel() == 0:
        return
    ends = torch.stack([end.long() for ids in given.values() for end in ids.aminmax()]).tolist()
    limits = (LABELS, LABELS, LABELS * 1000)
    for name, limit, low, high in zip(given, limits, ends[::2], ends[1::2], strict=True):
        if low < 0 or high >= limit:
            raise ValueError(f"{name}: {low if low < 0 else high} is no id in 0..{limit - 1}")


# ---- Predictions that lie in files, and the official script --------------------------------------
#
# The script is evaluation/evalPixelLevelSemanticLabeling.py of the package ``cityscapesscripts``,
# run inside this process as a library. It is slow, and no dependency of this project; nothing but
# the comparison needs it.


def score_files(
    predictions: Sequence[Path],
    frames: Sequence[Frame],
    *,
    processes: int = 1,
    advance: Callable[[int], None] = lambda images: None,
) -> CityscapesScores:
    """Score label files against the annotations of their frames.

    Args:
        predictions: a PNG of 8-bit official label ids for each frame, of its annotation's size.
        frames: in the same order; their photographs are not read.
        processes: how many share the images; the scores are the same, bit by bit. One thread each.
        advance: called with the number of images scored, whenever there are more.

    Raises:
        UserError: a file that is missing, unreadable, of another size or with an unknown id.
        ValueError: no frames, or another number of predictions.
        RunFailed: a process died.
    """
    check_pairing(predictions, frames)
    total, processes = CityscapesCounts(), min(processes, len(frames))
    count = _count_file if processes <= 1 else _count_file_on_one_thread
    with mapped(processes, "scored images") as map_:
        for counts in map_(count, predictions, frames):  # in order: sums come out alike
            total.merge(counts)
            advance(1)
    return total.scores()


def check_pairing(predictions: Sequence[Path], frames: Sequence[Frame]) -> None:
    """Raise ValueError unless there is a prediction for each frame, and a frame."""
    if not frames or len(predictions) != len(frames):
        raise ValueError(f"{len(predictions)} predictions for {len(frames)} frames")


def read_pair(prediction: Path, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted label ids, label ids (both (H, W) uint8) and instance ids (H, W) int32.

    Raises:
        UserError: as in :func:`score_files`.
    """
    predicted = read_label_ids(replace(frame, label_ids=prediction))
    labels, instances = read_label_ids(frame), read_instances(frame)
    for file, ids in ((prediction, predicted), (frame.instance_ids, instances)):
        if ids.shape != labels.shape:
            raise UserError(f"{file}: {ids.shape[0]}x{ids.shape[1]}, the label ids of "
                            f"{frame.name} are {labels.shape[0]}x{labels.shape[1]}.")  # fmt: skip
    return predicted, labels, instances


def _count_file(prediction: Path, frame: Frame) -> CityscapesCounts:
    counts, images = CityscapesCounts(), read_pair(prediction, frame)
    try:
        # What a decoder hands out may be read-only, which torch warns of
        writable = (np.require(image, requirements="W") for image in images)
        counts.update(*(torch.from_numpy(image)[None] for image in writable))
    except ValueError as error:  # of the readers' checks, only this one is left to fail
        raise UserError(f"{frame.instance_ids}: {error}.") from None
    return counts


def _count_file_on_one_thread(prediction: Path, frame: Frame) -> CityscapesCounts:
    torch.set_num_threads(1)
    return _count_file(prediction, frame)


# -- the official script -------------------------------------------------------------------------


def official_scores(predictions: Sequence[Path], frames: Sequence[Frame]) -> CityscapesScores:
    """Score label files against the annotations of their frames, as ``score_files`` does.

    Args:
        predictions: a PNG of 8-bit official label ids for each frame, of its annotation's size.
        frames: in the same order. The script looks for instance ids beside the label ids.

    Raises:
        UserError: the package is not installed, NumPy is too new for it, or the script stops.
        ValueError: no frames, or another number of predictions.
    """
    check_pairing(predictions, frames)
    script = official_script()
    for frame in frames:
        beside = str(frame.label_ids).replace("labelIds", "instanceIds")
        if beside != str(frame.instance_ids):
            raise UserError(f"{frame.instance_ids}: the official script would read {beside}.")
    results = _run(script, predictions, frames)
    return CityscapesScores(
        float(results["averageScoreClasses"]),
        float(results["averageScoreInstClasses"]),
        float(results["averageScoreCategories"]),
        float(results["averageScoreInstCategories"]),
        _select(results["classScores"], CLASSES),
        _select(results["classInstScores"], AVERAGE_SIZES),
        _select(results["categoryScores"], CATEGORIES),
        _select(results["categoryInstScores"], INSTANCE_CATEGORIES),
    )


def official_script() -> ModuleType:
    """The script as a module.

    Raises:
        UserError: it cannot run here.
    """
    try:
        from cityscapesscripts.evaluation import (  # type: ignore[import-untyped]
            evalPixelLevelSemanticLabeling as script,
        )
    except ImportError:
        raise UserError(
            f"the official Cityscapes script is not installed. Run: {install('cityscapes')}"
        ) from None
    except ValueError as error:  # CITYSCAPES_EXPORT_DIR is checked on import
        raise UserError(f"the official Cityscapes script does not start: {error}.") from None
    if not hasattr(np, "in1d"):
        raise UserError(
            f"the official Cityscapes script does not run on NumPy {np.__version__}: it calls "
            f"in1d, which 2.4 dropped. Run: {install('cityscapes')}"
        )
    return script


def _run(script: ModuleType, predictions: Sequence[Path], frames: Sequence[Frame]) -> Any:
    """What it returns; it prints its errors and exits, or fails on what it did not expect."""
    settings = copy.copy(script.args)  # the script's own stay as they are
    settings.quiet, settings.JSONOutput, settings.evalInstLevelScore = True, False, True
    files = [str(path) for path in predictions], [str(frame.label_ids) for frame in frames]
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # in1d is deprecated; priors may be 0/0
            return script.evaluateImgLists(*files, settings)
    except SystemExit:
        said = " ".join(printed.getvalue().removeprefix("ERROR:").split())
        raise UserError(f"the official Cityscapes script stops: {said}") from None
    except Exception as error:
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"the official Cityscapes script fails with {problem}") from error


def _select(scores: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    return {name: float(scores[name]) for name in names}
